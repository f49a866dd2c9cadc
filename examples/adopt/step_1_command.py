"""Step 1, a command: what the endpoint did is done by a handler, in the same tables, and what happened is recorded.

The body of the endpoint has moved, and lost its `commit`: rows, events and the outcome under the command's id are
committed together. Whoever sends the same order twice has ordered once.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from adopt.tables import Order, Product
from diptych import BoundedContext, Command, Event, Identity, Rejected, SyncApplication

__all__ = ["OrderId", "OrderPlaced", "PlaceOrder", "post_order", "shop"]

shop = BoundedContext("shop")


class OrderId(Identity):
    """Names an order."""


class PlaceOrder(Command):
    """What POST /orders takes."""

    id: OrderId
    customer: str
    sku: str
    quantity: int


class OrderPlaced(Event):
    """It was taken from the stock."""

    order: OrderId
    customer: str
    sku: str
    quantity: int


@shop.command_handler
def place_order(command: PlaceOrder, session: Session) -> OrderPlaced:
    """As before. On PostgreSQL, `async`, with an `AsyncSession`, and the product locked: `with_for_update`."""
    product = session.get(Product, command.sku)
    if product is None or product.stock < command.quantity:
        raise Rejected("out-of-stock")
    product.stock -= command.quantity
    session.add(Order(id=command.id, customer=command.customer, sku=command.sku, quantity=command.quantity))
    return OrderPlaced(order=command.id, customer=command.customer, sku=command.sku, quantity=command.quantity)


def post_order(app: SyncApplication, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST /orders. Other endpoints go on as they are."""
    try:
        receipt = app.execute(PlaceOrder(**body), command_id=f"order-{body['id']}")
    except Rejected as rejected:
        return 409, {"error": rejected.code}
    return 201, {"id": body["id"], "seen": receipt.token}
