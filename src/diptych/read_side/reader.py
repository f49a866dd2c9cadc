"""What a query handler reads with: read-only, all from one moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from diptych.read_side.read_model import ReadModel

__all__ = ["FIND_ROWS_MAX", "Page", "Reader"]

FIND_ROWS_MAX = 10_000
"""Rows that one call of a reader gives at most."""

M = TypeVar("M", bound=ReadModel)
S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some items, and where the next ones are.

    Attributes:
        items: in the order asked for, may be empty.
        next: the cursor of the next page; None after the last.
    """

    items: list[T]
    next: str | None = None


class Reader(Protocol):
    """Reads read models, all from one snapshot. `where` compares columns with values or conditions (`at_least(10)`).

    Rows that have expired (`ExpiresAt`) are left out: by one time for all that is read, never before the last event
    that is shown.

    Every row that a store is asked for counts towards what the query may cost (`QueryTooCostly`).

    `order_by` names columns, "-" for descending: "-units, sku"; the key is always added, so that the order is total.
    """

    async def get(self, model: type[M], /, *key: object) -> M | None:
        """The row with this key, the values in the order of the key fields."""
        ...

    async def get_many(self, model: type[M], keys: Sequence[object], /) -> dict[Any, M]:
        """The rows with these keys, by key; the others are left out. Composite keys are tuples."""
        ...

    async def find(self, model: type[M], /, *, order_by: str = "", limit: int = 100, **where: object) -> list[M]:
        """The first rows that match, at most `limit` (1 to 10,000)."""
        ...

    async def page(
        self, model: type[M], /, *, order_by: str = "", limit: int = 100, cursor: str | None = None, **where: object
    ) -> Page[M]:
        """The rows that match, a page at a time: give `next` back as `cursor` with the same order and conditions.

        Pages are by key, not by number: rows that come or go meanwhile neither repeat nor hide others.

        Raises:
            InvalidMessage: the cursor is not one of this query.
        """
        ...

    async def count(self, model: type[M], /, **where: object) -> int:
        """How many rows match."""
        ...

    async def search(self, model: type[M], text: str, /, *, limit: int = 100) -> list[M]:
        """Rows in whose `Searchable` fields every word of the text begins a word, the best first."""
        ...

    async def sql(
        self, result: type[S], statement: str, /, *parameters: object, touches: Sequence[type[ReadModel]]
    ) -> list[S]:
        """Rows of a read-only SQL statement, as instances of `result` by column name.

        A read model's table is named by context and class, `shop_product_sales`. `touches` names the read models
        that the statement reads, for freshness, the answer's token, and to leave out what has expired.
        """
        ...
