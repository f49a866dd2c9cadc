"""The tables, as they have always been. No step changes them."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Order", "Product", "Tables"]


class Tables(DeclarativeBase):
    """What `create_all` makes."""


class Product(Tables):
    """What can be ordered, and how many are left."""

    __tablename__ = "products"

    sku: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Tables):
    """What was ordered."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    sku: Mapped[str]
    quantity: Mapped[int]
