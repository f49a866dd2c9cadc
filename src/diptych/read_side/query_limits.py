"""How long a query may take, and how much it may ask of a store.

@limited(seconds=2, rows=1_000)                    the author: on the class of a query, or on its handler
class OrdersOf(Query[list[Order]]): ...

Application(…, query_limits=QueryLimits(...))      for all others
app.query(…, limits=QueryLimits(seconds=0.5))      the caller: less, never more; `context.limited(...)` a middleware

Both hold for one run of the handler: time from when it wants a snapshot, so that a wait for freshness does not count;
rows as they come out of the store, whichever store that is.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from diptych.errors import ConfigurationError, InvalidMessage, MessageError, Unavailable
from diptych.security import REQUIRABLE

__all__ = [
    "DEFAULT_LIMITS",
    "HANDLER_S_MAX",
    "NO_LIMITS",
    "QueryLimits",
    "QueryTimedOut",
    "QueryTooCostly",
    "RowCount",
    "TimeLimit",
    "check_limits",
    "declared_limits",
    "limited",
]

HANDLER_S_MAX = 60
"""Seconds that one run of a query handler may hold its snapshot, whatever is declared; also those of a stream."""
QUERY_S = 30
"""Seconds that a query may take of which nobody says anything else; past it, `QueryTimedOut`."""
QUERY_ROWS = 100_000
"""Rows that a query may ask a store for of which nobody says anything else; past it, `QueryTooCostly`."""

_MARK = "__diptych_limits__"

H = TypeVar("H", bound=Callable[..., Any])


class QueryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a query may take, and how much it may cost: `QueryLimits(seconds=0.5, rows=1_000)`.

    Attributes:
        seconds: from when it wants a snapshot, more than 0. None: nothing is said of it.
        rows: that it may ask the store for, at least 1. Rows count as they come out of the store, keys as they are
            asked for, and a call that gives none, or a number, as one. None: nothing is said of it.

    Raises:
        InvalidMessage: either is none.
    """

    seconds: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InvalidMessage("limits", [("$.seconds", f"seconds are more than 0, not {self.seconds}")])
        if self.rows is not None and self.rows < 1:
            raise InvalidMessage("limits", [("$.rows", f"rows are at least 1, not {self.rows}")])

    def within(self, other: QueryLimits) -> QueryLimits:
        """What both allow."""
        if other == NO_LIMITS:
            return self
        return QueryLimits(seconds=_less(self.seconds, other.seconds), rows=_less(self.rows, other.rows))

    def or_else(self, other: QueryLimits) -> QueryLimits:
        """These, and of what they say nothing about what the others do."""
        return QueryLimits(
            seconds=other.seconds if self.seconds is None else self.seconds,
            rows=other.rows if self.rows is None else self.rows,
        )


NO_LIMITS = QueryLimits()
"""Nothing is said."""
DEFAULT_LIMITS = QueryLimits(seconds=QUERY_S, rows=QUERY_ROWS)
"""Of an application that says nothing else."""

N = TypeVar("N", int, float)


def _less(some: N | None, other: N | None) -> N | None:
    if some is None or other is None:
        return other if some is None else some
    return min(some, other)


class QueryTimedOut(Unavailable):
    """A query took longer than it may; what it asked of its store was stopped.

    Attributes:
        query: the name of the query's type.
        seconds: how long it may take.
    """

    def __init__(self, query: str, seconds: float) -> None:
        self.query = query
        self.seconds = seconds
        super().__init__(
            f"{query} took longer than the {seconds:g} seconds that it may, and was stopped: ask for less, filter by "
            "key or Indexed fields, keep what it computes in a read model; or let it take longer with "
            f"@limited(seconds=…), {HANDLER_S_MAX} at most"
        )


class QueryTooCostly(MessageError):
    """A query asks a store for more rows than it may; sent again it fails again.

    Attributes:
        query: the name of the query's type.
        rows: how many it may ask for.
        asked: what it asked for when that was reached: "find of Order".
    """

    def __init__(self, query: str, rows: int, asked: str) -> None:
        self.query = query
        self.rows = rows
        self.asked = asked
        super().__init__(
            f"{query} may ask its store for {rows:,} rows, and {asked} asks for more: ask for a page, narrow it, keep "
            "what it computes in a read model, stream it; or let it cost more with @limited(rows=…)"
        )


# ── what authors declare ─────────────────────────────────────────────────────


def limited(*, seconds: float | None = None, rows: int | None = None) -> Callable[[H], H]:
    """Say how long a query may take, and how many rows it may ask for: more, or less, than the application allows all.

    On the class of a query, where it holds for its subclasses as well unless they say something else, or on the
    function that handles it; where both say something, the less holds.

    Args:
        seconds: more than 0, `HANDLER_S_MAX` at most.
        rows: at least 1.

    Raises:
        ConfigurationError: it says nothing, or something that cannot be, or stands on what is no query.
    """
    limits = check_limits("limited()", seconds=seconds, rows=rows)

    def mark(declared: H) -> H:
        function: object = declared
        if not inspect.isfunction(function) and not getattr(function, REQUIRABLE, False):
            raise ConfigurationError(
                f"@limited stands on {declared!r}: put it on the class of a query, or on the function that handles it"
            )
        layer: Any = declared  # on what a decorator has wrapped as well: that may be what was declared
        while layer is not None:
            setattr(layer, _MARK, limits)
            layer = getattr(layer, "__wrapped__", None)
        return declared

    return mark


def check_limits(where: str, *, seconds: float | None, rows: int | None) -> QueryLimits:
    """Limits that the code states.

    Raises:
        ConfigurationError: there are none, or they cannot be.
    """
    try:
        found = QueryLimits(seconds=seconds, rows=rows)
    except InvalidMessage as error:
        raise ConfigurationError(f"{where}: {error.problems[0][1]}") from error
    if found == NO_LIMITS:
        raise ConfigurationError(f"{where} says nothing: give seconds=, rows=, or both")
    if seconds is not None and seconds > HANDLER_S_MAX:
        raise ConfigurationError(f"{where}: seconds={seconds:g} is more than HANDLER_S_MAX={HANDLER_S_MAX}")
    return found


def declared_limits(declared: Any) -> QueryLimits:
    """What `limited` says on a class or function."""
    found: QueryLimits = getattr(declared, _MARK, NO_LIMITS)
    return found


# ── while it is answered ─────────────────────────────────────────────────────


class TimeLimit:
    """Stops what is awaited inside when the time is over: `async with TimeLimit(query, seconds)`.

    It is cancelled, and every read store stops a read whose caller is.

    Raises:
        QueryTimedOut: at the end, where that was so.
    """

    __slots__ = ("_query", "_seconds", "_timeout")

    def __init__(self, query: str, seconds: float | None) -> None:
        self._query = query
        self._seconds = min(HANDLER_S_MAX if seconds is None else seconds, HANDLER_S_MAX)
        self._timeout = asyncio.timeout(self._seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as over:
            raise QueryTimedOut(self._query, self._seconds) from over


class RowCount:
    """Counts the rows that one run of a query asks for.

    Args:
        query: its name.
        rows_max: how many it may ask for; None: as many as those around it.
        around: what it is a part of, which counts them as well.
        taken: how many it has had before.

    Attributes:
        taken: how many it has had so far.
    """

    __slots__ = ("_around", "_query", "_rows_max", "taken")

    def __init__(self, query: str, rows_max: int | None, around: RowCount | None = None, taken: int = 0) -> None:
        self.taken = taken
        self._query = query
        self._rows_max = rows_max
        self._around = around

    def allowed(self, rows: int, asked: str) -> int:
        """How many rows to ask the store for of these: one more than may come, where there may be too many.

        Raises:
            QueryTooCostly: none may come.
        """
        if self._rows_max is not None:
            left = self._rows_max - self.taken
            if left < 1:
                raise QueryTooCostly(self._query, self._rows_max, asked)
            rows = min(rows, left + 1)
        return rows if self._around is None else self._around.allowed(rows, asked)

    def take(self, rows: int, asked: str) -> None:
        """Count rows; a call without any is one.

        Raises:
            QueryTooCostly: there are more than there may be.
        """
        self.taken += max(rows, 1)
        if self._rows_max is not None and self.taken > self._rows_max:
            raise QueryTooCostly(self._query, self._rows_max, asked)
        if self._around is not None:
            self._around.take(rows, asked)
