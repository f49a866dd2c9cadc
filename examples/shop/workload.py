"""A made-up year of the shop, the same for the same seed: for those who have no invoices at hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from diptych import replace
from shop.invoice import RETURN_PREFIX, Invoice
from shop.messages.identities import CustomerId, Sku
from shop.messages.order_line import QUANTITY_MAX, OrderLine

__all__ = ["ORDERS_DEFAULT", "SEED_DEFAULT", "Workload"]

ORDERS_DEFAULT = 2_000
"""Orders of a workload where nobody says how many."""
SEED_DEFAULT = 1
"""The seed of a workload where nobody says which."""
CUSTOMERS = 150
"""How many customers buy."""
ORDERS_PER_RETURN = 5
"""After so many orders comes a return."""
RETURNS_PER_EXCESS = 3
"""Of so many returns, one asks for more than was bought."""
LINES_MAX = 8
"""Lines of one order."""
UNITS_MAX = 24
"""Units of one line."""

FIRST_ORDER_AT = datetime(2024, 1, 1, 9, tzinfo=UTC)
STEP = timedelta(days=1, hours=5, minutes=7)
YEAR = timedelta(days=366)

COUNTRIES = ("United Kingdom", "United Kingdom", "Germany", "France", "EIRE", "Spain", "Norway", "Japan")
THINGS = ("LANTERN", "TEAPOT", "CUSHION", "CLOCK", "BUNTING", "NOTEBOOK", "MUG", "BASKET", "CANDLE", "APRON")
LOOKS = ("RED", "BLUE", "VINTAGE", "KNITTED", "WOODEN", "SMALL", "FLORAL", "GLASS", "STRIPED", "ENAMEL", "RETRO", "TIN")


class Workload:
    """Invoices of so many orders, and of the returns between them. With more orders, the first ones stay the same.

    Args:
        orders: how many, 0 or more.
        seed: another one gives other invoices, under other numbers.
    """

    skipped_lines = 0

    def __init__(self, orders: int = ORDERS_DEFAULT, seed: int = SEED_DEFAULT) -> None:
        self._orders = orders
        self._seed = seed

    def __len__(self) -> int:
        """How many invoices, returns included."""
        return self._orders + self._orders // ORDERS_PER_RETURN

    def __iter__(self) -> Iterator[Invoice]:
        """The invoices, in the order of their numbers."""
        chance = random.Random(self._seed)  # noqa: S311  # not a secret: the same again for the same seed
        last_of: dict[CustomerId, Invoice] = {}
        for count in range(1, self._orders + 1):
            order = self._order(count, chance)
            last_of[order.customer_id] = order
            yield order
            if count % ORDERS_PER_RETURN == 0:
                bought = chance.choice(list(last_of.values()))
                is_excess = count // ORDERS_PER_RETURN % RETURNS_PER_EXCESS == 0
                yield self._return(count, bought, order.issued_at, is_excess=is_excess)

    def _order(self, count: int, chance: random.Random) -> Invoice:
        customer = chance.randrange(CUSTOMERS)
        return Invoice(
            number=f"{self._seed}-{count:07}",
            customer_id=CustomerId(f"{self._seed}-{customer:04}"),
            country=COUNTRIES[customer % len(COUNTRIES)],
            issued_at=FIRST_ORDER_AT + (count - 1) * STEP % YEAR,
            lines=tuple(_line(chance) for _ in range(chance.randint(1, LINES_MAX))),
        )

    def _return(self, count: int, bought: Invoice, at: datetime, *, is_excess: bool) -> Invoice:
        """One unit of something that was bought; in excess, more units of it than anyone buys."""
        line = bought.lines[0]
        quantity = QUANTITY_MAX if is_excess else 1
        return replace(
            bought,
            number=f"{RETURN_PREFIX}{self._seed}-{count:07}",
            issued_at=at + timedelta(hours=1),
            lines=(replace(line, quantity=quantity),),
        )


def _line(chance: random.Random) -> OrderLine:
    look, thing = chance.randrange(len(LOOKS)), chance.randrange(len(THINGS))
    return OrderLine(
        sku=Sku(f"{thing}{look:02}"),
        description=f"{LOOKS[look]} {THINGS[thing]}",
        quantity=chance.randint(1, UNITS_MAX),
        unit_price=Decimal(95 + 100 * thing + 35 * look) / 100,
    )
