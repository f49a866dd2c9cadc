"""The orders of a customer, a page at a time: short rows, so that a page of them is quick."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from diptych import Indexed, Key, Page, Query, Reader, ReadModel
from shop.context import shop
from shop.messages.events import OrderPlaced
from shop.messages.identities import CustomerId, OrderId
from shop.messages.order_line import total, units
from shop.read_side.limit import Limit

__all__ = ["CustomerOrder", "CustomerOrders", "customer_order", "customer_orders"]


class CustomerOrder(ReadModel):
    """One order, without its lines."""

    order_id: Key[OrderId]
    customer_id: Indexed[CustomerId]
    placed_at: datetime
    country: str
    units: int
    total: Decimal


class CustomerOrders(Query[Page[CustomerOrder]]):
    """The orders of one customer, the latest first; the next page begins at the cursor that this one gives."""

    customer_id: CustomerId
    limit: Limit = 10
    cursor: str | None = None


@shop.projection
def customer_order(event: OrderPlaced) -> CustomerOrder:
    """Every order is a row of its own."""
    return CustomerOrder(
        order_id=event.order_id,
        customer_id=event.customer_id,
        placed_at=event.placed_at,
        country=event.country,
        units=units(event.lines),
        total=total(event.lines),
    )


@shop.query_handler
async def customer_orders(query: CustomerOrders, read: Reader) -> Page[CustomerOrder]:
    """One page, by time."""
    return await read.page(
        CustomerOrder,
        customer_id=query.customer_id,
        order_by="-placed_at",
        limit=query.limit,
        cursor=query.cursor,
    )
