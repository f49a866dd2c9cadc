"""The lines of orders and returns. Money is Decimal: exact, never rounded."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

from diptych import Untagged, Value
from shop.messages.identities import Sku

__all__ = [
    "LINES_MAX",
    "PRICE_DECIMALS_MAX",
    "PRICE_MAX",
    "QUANTITY_MAX",
    "Lines",
    "OrderLine",
    "is_price",
    "total",
    "units",
]

LINES_MAX = 5_000
"""Lines of one order or return."""
QUANTITY_MAX = 10_000_000
"""Units in one line."""
PRICE_MAX = 10_000_000
"""The highest price of one unit. With it, and the two limits beside, sums stay within the 28 digits of Decimal."""
PRICE_DECIMALS_MAX = 6
"""Digits of a price behind the point."""


class OrderLine(Value):
    """One product in an order or in a return.

    An order can have hundreds of lines, and no decision asks for the events of one product: so the sku is no tag.
    """

    sku: Untagged[Sku]
    description: str
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        """Its price; 0 is a gift."""
        return self.quantity * self.unit_price


Lines = Annotated[tuple[OrderLine, ...], Meta(min_length=1, max_length=LINES_MAX)]
"""At least one line."""


def units(lines: Iterable[OrderLine]) -> int:
    """How many pieces the lines hold."""
    return sum(line.quantity for line in lines)


def total(lines: Iterable[OrderLine]) -> Decimal:
    """What the lines cost together."""
    return sum((line.amount for line in lines), Decimal(0))


def is_price(price: Decimal) -> bool:
    """Whether a unit can be sold at this price: a number from 0 to `PRICE_MAX`, with a few decimals at most."""
    exponent = price.as_tuple().exponent  # a letter where it is no number
    return isinstance(exponent, int) and exponent >= -PRICE_DECIMALS_MAX and 0 <= price <= PRICE_MAX
