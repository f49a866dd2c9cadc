"""What both decisions refuse before anything else: prices and times that no shop has."""

from __future__ import annotations

from datetime import datetime

from diptych import Rejected
from shop.messages.order_line import OrderLine, is_price

__all__ = ["YEAR_FIRST", "YEAR_LAST", "check_plausible", "is_moment"]

YEAR_FIRST, YEAR_LAST = 1900, 2999
"""The years in which something can be sold."""


def is_moment(at: datetime) -> bool:
    """Whether something can be sold at this time."""
    return YEAR_FIRST <= at.year <= YEAR_LAST


def check_plausible(lines: tuple[OrderLine, ...], at: datetime) -> None:
    """Refuse what would be a fact that cannot be summed, or shown, exactly.

    Raises:
        Rejected: "no-price" or "no-time".
    """
    if not is_moment(at):
        raise Rejected("no-time", year=at.year)
    for line in lines:
        if not is_price(line.unit_price):
            raise Rejected("no-price", sku=line.sku, unit_price=str(line.unit_price))
