"""What an import brought: a read model of one row, and a query that reads several read models of one moment."""

from __future__ import annotations

from diptych import Key, Query, Reader, ReadModel, Value, replace
from shop.context import shop
from shop.messages.events import GoodsReturned, OrderPlaced, ReturnRefused
from shop.read_side.customer_sales import CustomerSales
from shop.read_side.product_sales import ProductSales

__all__ = ["ImportSummary", "ImportTotals", "Summary", "import_summary", "import_totals"]

WHOLE_SHOP = "shop"
"""The key of the only row."""


class ImportTotals(ReadModel):
    """Everything that was decided, counted."""

    scope: Key[str]
    orders: int = 0
    returns_accepted: int = 0
    returns_rejected: int = 0


class Summary(Value):
    """What was decided, and how many customers and products were part of it.

    A customer, or product, counts from the first sale on. A return cannot be the first: it needs a sale before it.
    """

    orders: int
    returns_accepted: int
    returns_rejected: int
    customers: int
    products: int


class ImportSummary(Query[Summary]):
    """The figures of the whole shop."""


def whole_shop(event: OrderPlaced | GoodsReturned | ReturnRefused) -> str:
    """Every event concerns the one row."""
    return WHOLE_SHOP


@shop.projection(key=whole_shop)
def import_totals(row: ImportTotals, event: OrderPlaced | GoodsReturned | ReturnRefused) -> ImportTotals:
    """Count one event."""
    match event:
        case OrderPlaced():
            return replace(row, orders=row.orders + 1)
        case GoodsReturned():
            return replace(row, returns_accepted=row.returns_accepted + 1)
        case ReturnRefused():
            return replace(row, returns_rejected=row.returns_rejected + 1)


@shop.query_handler
async def import_summary(query: ImportSummary, read: Reader) -> Summary:
    """All from one snapshot, so that the figures fit each other."""
    totals = await read.get(ImportTotals, WHOLE_SHOP) or ImportTotals(scope=WHOLE_SHOP)
    return Summary(
        orders=totals.orders,
        returns_accepted=totals.returns_accepted,
        returns_rejected=totals.returns_rejected,
        customers=await read.count(CustomerSales),
        products=await read.count(ProductSales),
    )
