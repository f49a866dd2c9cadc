"""The language of the stock.

Two of its events are given by handlers of `ordering` as well, which decide on stock and more at once: `stored_as` says
that they are the stock's, whoever gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

from diptych import Command, Event, Value
from shop.messages.identities import OrderId, Sku
from shop.messages.order_line import QUANTITY_MAX

__all__ = [
    "ITEMS_MAX",
    "GoodsReceived",
    "GoodsReleased",
    "GoodsReserved",
    "GoodsShipped",
    "Item",
    "Items",
    "PriceSet",
    "Quantity",
    "ReceiveGoods",
    "ReleaseGoods",
    "ReserveGoods",
    "SetPrice",
    "units_of",
]

ITEMS_MAX = 50
"""Items of one order: each one's product is a tag of the events about it."""

Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
"""Units, at least one."""


class Item(Value):
    """So many units of one product. Here the sku is a tag, unlike in an invoice's line: stock is decided by product."""

    sku: Sku
    quantity: Quantity


Items = Annotated[tuple[Item, ...], Meta(min_length=1, max_length=ITEMS_MAX)]
"""At least one item; a product may stand in several."""


def units_of(sku: Sku, items: Iterable[Item]) -> int:
    """How many units of one product the items hold."""
    return sum(item.quantity for item in items if item.sku == sku)


# ── what can be asked ────────────────────────────────────────────────────────


class SetPrice(Command):
    """Sell a product at this price from now on."""

    sku: Sku
    unit_price: Decimal


class ReceiveGoods(Command):
    """Put units of a product on the shelf."""

    sku: Sku
    quantity: Quantity


class ReserveGoods(Command):
    """Promise goods to an order: all of them, or none."""

    order_id: OrderId
    items: Items


class ReleaseGoods(Command):
    """Take back what was promised to an order. Where nothing is, there is nothing to do."""

    order_id: OrderId


# ── what happened ────────────────────────────────────────────────────────────


class PriceSet(Event):
    """A product has this price from now on."""

    sku: Sku
    unit_price: Decimal


class GoodsReceived(Event):
    """Units of a product were put on the shelf."""

    sku: Sku
    quantity: int


class GoodsReserved(Event, stored_as="stock.GoodsReserved"):
    """Goods are promised to an order. They are still on the shelf, and for nobody else."""

    order_id: OrderId
    items: tuple[Item, ...]


class GoodsReleased(Event):
    """What was promised to an order is for others again."""

    order_id: OrderId
    items: tuple[Item, ...]


class GoodsShipped(Event, stored_as="stock.GoodsShipped"):
    """What was promised to an order has left the house."""

    order_id: OrderId
    items: tuple[Item, ...]
