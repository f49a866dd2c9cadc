"""What was sold, by product: one order changes as many rows as it has lines."""

from __future__ import annotations

from decimal import Decimal

from diptych import Indexed, Key, Query, Reader, ReadModel, replace
from shop.context import shop
from shop.messages.events import GoodsReturned, OrderPlaced
from shop.messages.identities import Sku
from shop.messages.order_line import OrderLine
from shop.read_side.limit import Limit

__all__ = ["ProductSales", "TopProducts", "product_sales", "top_products"]


class ProductSales(ReadModel):
    """One product: what was sold of it, and how much of it came back."""

    sku: Key[Sku]
    units: Indexed[int] = 0
    revenue: Decimal = Decimal(0)
    returned_units: int = 0


class TopProducts(Query[list[ProductSales]]):
    """The products of which most units were sold; of equal ones, the lower sku first."""

    limit: Limit = 10


def lines(event: OrderPlaced | GoodsReturned) -> tuple[OrderLine, ...]:
    """The parts of the event, each of which concerns one product."""
    return event.lines


@shop.projection(each=lines, partitions=2)
def product_sales(row: ProductSales, event: OrderPlaced | GoodsReturned, line: OrderLine) -> ProductSales:
    """Add one line to its product."""
    match event:
        case OrderPlaced():
            return replace(row, units=row.units + line.quantity, revenue=row.revenue + line.amount)
        case GoodsReturned():
            return replace(row, returned_units=row.returned_units + line.quantity)


@shop.query_handler
async def top_products(query: TopProducts, read: Reader) -> list[ProductSales]:
    """The first rows by units; the key decides between equal ones."""
    return await read.find(ProductSales, order_by="-units", limit=query.limit)
