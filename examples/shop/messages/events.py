"""What happened in the shop, kept for good."""

from __future__ import annotations

from datetime import datetime

from diptych import Event
from shop.messages.identities import CustomerId, OrderId, ReturnId
from shop.messages.order_line import OrderLine

__all__ = ["GoodsReturned", "OrderPlaced", "ReturnRefused"]


class OrderPlaced(Event):
    """A customer has bought goods."""

    order_id: OrderId
    customer_id: CustomerId
    country: str
    placed_at: datetime
    lines: tuple[OrderLine, ...]


class GoodsReturned(Event):
    """A customer has brought goods back, and was refunded."""

    return_id: ReturnId
    customer_id: CustomerId
    country: str
    returned_at: datetime
    lines: tuple[OrderLine, ...]


class ReturnRefused(Event):
    """A customer wanted to return more than they had bought. Nothing came back; that it was tried is a fact too."""

    return_id: ReturnId
    customer_id: CustomerId
    returned_at: datetime
