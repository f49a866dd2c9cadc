"""What was sold, by country."""

from __future__ import annotations

from decimal import Decimal

from diptych import Key, Query, ReadModel, replace
from shop.context import shop
from shop.messages.events import GoodsReturned, OrderPlaced
from shop.messages.order_line import total, units

__all__ = ["CountrySales", "SalesByCountry", "country_sales"]


class CountrySales(ReadModel):
    """One country: what was sold there, and what of it came back."""

    country: Key[str]
    orders: int = 0
    units: int = 0
    revenue: Decimal = Decimal(0)
    returned_units: int = 0
    refunds: Decimal = Decimal(0)


class SalesByCountry(Query[list[CountrySales]]):
    """The sales of every country, by name."""


@shop.projection
def country_sales(row: CountrySales, event: OrderPlaced | GoodsReturned) -> CountrySales:
    """Add an order, or a return, to its country."""
    match event:
        case OrderPlaced(lines=lines):
            return replace(
                row, orders=row.orders + 1, units=row.units + units(lines), revenue=row.revenue + total(lines)
            )
        case GoodsReturned(lines=lines):
            return replace(row, returned_units=row.returned_units + units(lines), refunds=row.refunds + total(lines))
