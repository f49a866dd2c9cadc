"""Selling: an order is placed once."""

from __future__ import annotations

from diptych import DecisionModel, Rejected
from shop.context import shop
from shop.messages.commands import PlaceOrder
from shop.messages.events import OrderPlaced
from shop.messages.identities import OrderId
from shop.write_side.plausible import check_plausible

__all__ = ["Order", "place_order"]


class Order(DecisionModel[OrderId]):
    """What is known of one order before it is placed: whether it was placed before."""

    is_placed: bool = False

    def evolve(self, event: OrderPlaced) -> Order:
        """It is placed."""
        return Order(is_placed=True)


@shop.command_handler
def place_order(command: PlaceOrder, order: Order) -> OrderPlaced:
    """Sell, unless the order number is taken or a price or the time is none."""
    if order.is_placed:
        raise Rejected("order-exists", order_id=command.order_id)
    check_plausible(command.lines, command.placed_at)
    return OrderPlaced(
        order_id=command.order_id,
        customer_id=command.customer_id,
        country=command.country,
        placed_at=command.placed_at,
        lines=command.lines,
    )
