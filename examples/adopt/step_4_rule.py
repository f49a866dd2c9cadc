"""Step 4, a rule that no table has: it is decided on what happened, and guarded (G3), in a handler without tables."""

from __future__ import annotations

from adopt.step_1_command import OrderId, OrderPlaced, shop
from adopt.step_2_projection import OrderTakenOver
from diptych import Command, DecisionModel, Event, Rejected, replace

__all__ = ["OrderReturned", "ReturnOrder"]


class ReturnOrder(Command):
    """Some of an order comes back."""

    order: OrderId
    quantity: int


class OrderReturned(Event):
    """It did."""

    order: OrderId
    quantity: int


class Returnable(DecisionModel[OrderId]):
    """How much of an order may still come back."""

    quantity: int = 0

    def evolve(self, event: OrderPlaced | OrderTakenOver | OrderReturned) -> Returnable:
        """Ordered less returned."""
        change = -event.quantity if isinstance(event, OrderReturned) else event.quantity
        return replace(self, quantity=self.quantity + change)


@shop.command_handler
def return_order(command: ReturnOrder, order: Returnable) -> OrderReturned:
    """No table, no lock: of two at the same moment, the second is decided again."""
    if command.quantity > order.quantity:
        raise Rejected("more-than-ordered", returnable=order.quantity)
    return OrderReturned(order=command.order, quantity=command.quantity)
