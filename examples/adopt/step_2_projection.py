"""Step 2, a projection: a table for the question, kept by the events.

Orders from before step 1 have no events. They are taken over by a command for each, which may be run again: those that
have an event are known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from adopt.step_1_command import OrderId, OrderPlaced, shop
from adopt.tables import Order
from diptych import Command, DecisionModel, Event, Key, ReadModel, replace

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from diptych import SyncApplication

__all__ = ["CustomerOrders", "OrderTakenOver", "TakeOver", "take_over_all"]


class TakeOver(Command):
    """An order is to have an event."""

    order: OrderId


class OrderTakenOver(Event):
    """It was there before orders had events."""

    order: OrderId
    customer: str
    quantity: int


class Recorded(DecisionModel[OrderId]):
    """Whether an order has an event."""

    yes: bool = False

    def evolve(self, event: OrderPlaced | OrderTakenOver) -> Recorded:
        """It has."""
        return Recorded(yes=True)


@shop.command_handler
def take_over(command: TakeOver, recorded: Recorded, session: Session) -> OrderTakenOver | None:
    """Once for each order."""
    if recorded.yes:
        return None
    order = session.get_one(Order, command.order)
    return OrderTakenOver(order=command.order, customer=order.customer, quantity=order.quantity)


def take_over_all(app: SyncApplication, engine: Engine) -> int:
    """Take over every order; how many had no event."""
    with Session(engine) as session:
        ids = session.scalars(select(Order.id).order_by(Order.id)).all()
    return sum(len(app.execute(TakeOver(order=OrderId(each))).events) for each in ids)


class CustomerOrders(ReadModel):
    """A row for each customer."""

    customer: Key[str]
    orders: int = 0
    units: int = 0


@shop.projection
def customer_orders(row: CustomerOrders, event: OrderPlaced | OrderTakenOver) -> CustomerOrders:
    """Count."""
    return replace(row, orders=row.orders + 1, units=row.units + event.quantity)
