"""One order with all its lines. The query's field is the key of the read model, so it needs no handler."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from diptych import Key, Query, ReadModel
from shop.context import shop
from shop.messages.events import OrderPlaced
from shop.messages.identities import CustomerId, OrderId
from shop.messages.order_line import OrderLine, total

__all__ = ["OrderDetails", "PlacedOrder", "placed_order"]


class PlacedOrder(ReadModel):
    """One order with its lines."""

    order_id: Key[OrderId]
    customer_id: CustomerId
    country: str
    placed_at: datetime
    total: Decimal
    lines: tuple[OrderLine, ...]


class OrderDetails(Query[PlacedOrder | None]):
    """One order; null where there is none of that number."""

    order_id: OrderId


@shop.projection
def placed_order(event: OrderPlaced) -> PlacedOrder:
    """Every order is a document of its own."""
    return PlacedOrder(
        order_id=event.order_id,
        customer_id=event.customer_id,
        country=event.country,
        placed_at=event.placed_at,
        total=total(event.lines),
        lines=event.lines,
    )
