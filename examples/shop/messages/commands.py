"""What can be asked of the shop. The times are given, since the shop also imports what happened long ago."""

from __future__ import annotations

from datetime import datetime

from diptych import Command
from shop.messages.identities import CustomerId, OrderId, ReturnId
from shop.messages.order_line import Lines

__all__ = ["PlaceOrder", "ReturnGoods"]


class PlaceOrder(Command):
    """Sell these goods to a customer."""

    order_id: OrderId
    customer_id: CustomerId
    country: str
    placed_at: datetime
    lines: Lines


class ReturnGoods(Command):
    """Take goods back from a customer, all of them or none; quantities count what comes back."""

    return_id: ReturnId
    customer_id: CustomerId
    country: str
    returned_at: datetime
    lines: Lines
