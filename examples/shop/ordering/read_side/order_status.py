"""How far an order has come: events of three contexts, one row."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from diptych import Indexed, Key, Page, Query, Reader, ReadModel, replace
from shop.accounts.messages import PaymentRefunded, PaymentTaken
from shop.messages.identities import CustomerId, OrderId
from shop.ordering.context import ordering
from shop.ordering.messages.events import BoughtOnCredit, OrderCancelled, OrderSubmitted
from shop.read_side.limit import Limit
from shop.stock.messages import GoodsReserved, GoodsShipped

__all__ = ["OrderStatus", "OrdersOfCustomer", "StatusOfOrder", "order_begun", "order_moved_on", "orders_of_customer"]


class OrderStatus(ReadModel):
    """One order: how far it has come, and why no further."""

    order_id: Key[OrderId]
    customer_id: Indexed[CustomerId]
    total: Decimal
    status: Literal["submitted", "on-credit", "reserved", "paid", "refunded", "shipped", "cancelled"]
    because: str = ""


class StatusOfOrder(Query[OrderStatus | None]):
    """One order; null where there is none."""

    order_id: OrderId


class OrdersOfCustomer(Query[Page[OrderStatus]]):
    """The orders of one customer, by their numbers."""

    customer_id: CustomerId
    limit: Limit = 10
    cursor: str | None = None


@ordering.projection
def order_begun(event: OrderSubmitted | BoughtOnCredit) -> OrderStatus:
    """Every order is a row."""
    return OrderStatus(
        order_id=event.order_id,
        customer_id=event.customer_id,
        total=event.total,
        status="submitted" if isinstance(event, OrderSubmitted) else "on-credit",
    )


@ordering.projection
def order_moved_on(
    row: OrderStatus | None, event: GoodsReserved | PaymentTaken | PaymentRefunded | GoodsShipped | OrderCancelled
) -> OrderStatus | None:
    """One step further. What was reserved for an order that nobody submitted is no order."""
    if row is None:
        return None
    match event:
        case GoodsReserved():
            return replace(row, status="reserved") if row.status == "submitted" else row
        case PaymentTaken():
            return replace(row, status="paid")
        case PaymentRefunded():
            return replace(row, status="refunded")
        case GoodsShipped():
            return replace(row, status="shipped")
        case OrderCancelled():
            return replace(row, status="cancelled", because=event.because)


@ordering.query_handler
async def orders_of_customer(query: OrdersOfCustomer, read: Reader) -> Page[OrderStatus]:
    """One page."""
    return await read.page(OrderStatus, customer_id=query.customer_id, limit=query.limit, cursor=query.cursor)
