"""Before: two endpoints over two tables. What they take and give is JSON, whatever the web framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adopt.tables import Order, Product

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["get_customer", "post_order"]


def post_order(engine: Engine, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST /orders."""
    with Session(engine) as session:
        product = session.get(Product, body["sku"])
        if product is None or product.stock < body["quantity"]:
            return 409, {"error": "out-of-stock"}
        product.stock -= body["quantity"]
        session.add(Order(**body))
        session.commit()
    return 201, {"id": body["id"]}


def get_customer(engine: Engine, customer: str) -> tuple[int, dict[str, Any]]:
    """GET /customers/{customer}: it reads every order of theirs, each time."""
    with Session(engine) as session:
        units, orders = func.sum(Order.quantity), func.count()
        found = session.execute(select(orders, units).where(Order.customer == customer)).one()
    return 200, {"customer": customer, "orders": found[0], "units": found[1] or 0}
