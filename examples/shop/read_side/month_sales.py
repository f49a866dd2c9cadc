"""What was sold, by month: the row's key is computed, since no event has a field for it."""

from __future__ import annotations

from decimal import Decimal

from diptych import Key, Query, ReadModel, replace
from shop.context import shop
from shop.messages.events import GoodsReturned, OrderPlaced
from shop.messages.order_line import total, units

__all__ = ["MonthSales", "SalesByMonth", "month_sales"]


class MonthSales(ReadModel):
    """One month, "2011-02": what was sold in it, and what came back in it."""

    month: Key[str]
    orders: int = 0
    units: int = 0
    revenue: Decimal = Decimal(0)
    returned_units: int = 0
    refunds: Decimal = Decimal(0)


class SalesByMonth(Query[list[MonthSales]]):
    """The sales of every month, the first month first."""


def month(event: OrderPlaced | GoodsReturned) -> str:
    """The month in which it happened."""
    moment = event.placed_at if isinstance(event, OrderPlaced) else event.returned_at
    return moment.isoformat()[: len("2011-02")]


@shop.projection(key=month)
def month_sales(row: MonthSales, event: OrderPlaced | GoodsReturned) -> MonthSales:
    """Add an order, or a return, to its month."""
    match event:
        case OrderPlaced(lines=lines):
            return replace(
                row, orders=row.orders + 1, units=row.units + units(lines), revenue=row.revenue + total(lines)
            )
        case GoodsReturned(lines=lines):
            return replace(row, returned_units=row.returned_units + units(lines), refunds=row.refunds + total(lines))
