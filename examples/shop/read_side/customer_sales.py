"""What was sold, by customer."""

from __future__ import annotations

from decimal import Decimal

from diptych import Indexed, Key, Query, Reader, ReadModel, replace
from shop.context import shop
from shop.messages.events import GoodsReturned, OrderPlaced
from shop.messages.identities import CustomerId
from shop.messages.order_line import total
from shop.read_side.limit import Limit

__all__ = ["CustomerSales", "TopCustomers", "customer_sales", "top_customers"]


class CustomerSales(ReadModel):
    """One customer: what they bought, and what they brought back."""

    customer_id: Key[CustomerId]
    orders: int = 0
    revenue: Indexed[Decimal] = Decimal(0)
    returns: int = 0
    refunds: Decimal = Decimal(0)


class TopCustomers(Query[list[CustomerSales]]):
    """The customers who bought for most money; of equal ones, the lower id first."""

    limit: Limit = 10


@shop.projection
def customer_sales(row: CustomerSales, event: OrderPlaced | GoodsReturned) -> CustomerSales:
    """Add an order, or a return, to its customer."""
    match event:
        case OrderPlaced():
            return replace(row, orders=row.orders + 1, revenue=row.revenue + total(event.lines))
        case GoodsReturned():
            return replace(row, returns=row.returns + 1, refunds=row.refunds + total(event.lines))


@shop.query_handler
async def top_customers(query: TopCustomers, read: Reader) -> list[CustomerSales]:
    """The first rows by revenue; the key decides between equal ones."""
    return await read.find(CustomerSales, order_by="-revenue", limit=query.limit)
