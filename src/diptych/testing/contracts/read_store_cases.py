"""What the contract of read stores writes: tables, values of every kind, and the steps that its tests share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from diptych.event_store.position import NOWHERE, Place, Position
from diptych.read_side.read_store import (
    Column,
    ColumnKind,
    Filter,
    Generation,
    Order,
    ReadSnapshot,
    ReadStore,
    Row,
    SliceWrite,
    Table,
    Written,
)

__all__ = [
    "ARTICLES",
    "BY_COURSE",
    "LINES",
    "NAME",
    "REFUSED",
    "SEATS",
    "SORTED",
    "build",
    "create",
    "one_column",
    "place",
    "rows_of",
    "shown_generation",
    "stored_generation",
    "write",
]

NAME = "school.Seats"
SEATS = Table(
    "school_seats",
    (Column("course", ColumnKind.TEXT), Column("taken", ColumnKind.INTEGER, indexed=True)),
    key=("course",),
)
LINES = Table(
    "shop_lines",
    (
        Column("price", ColumnKind.DECIMAL, nullable=True, indexed=True),
        Column("line", ColumnKind.INTEGER),
        Column("day", ColumnKind.DATE),
        Column("order", ColumnKind.TEXT),
    ),
    key=("order", "line", "day"),
)
ARTICLES = Table(
    "press_articles",
    (
        Column("id", ColumnKind.TEXT),
        Column("rank", ColumnKind.INTEGER),
        Column("title", ColumnKind.TEXT, searchable=True),
        Column("body", ColumnKind.TEXT, nullable=True, searchable=True),
    ),
    key=("id",),
)
BY_COURSE = (Order("course"),)

_INDIA = dt.timezone(dt.timedelta(hours=5, minutes=30))
_DECIMALS = (
    "-1E+999 -1000000000000000000000000000.01 -1000000000000000000000000000 -10 -9.99 -1.21 -1.2 -0.5 -1E-999 0.00 "
    "1E-999 0.009 0.01 0.5 1.2 1.21 9.99 10 40.0 100 "
    "1000000000000000000000000000 1000000000000000000000000000.01 1E+999"
)
SORTED: Mapping[ColumnKind, Sequence[Any]] = {
    ColumnKind.TEXT: (
        "",
        "\x01",
        "A",
        "Z",
        "a",
        "a b",
        "aa",
        "é",
        "\ud7ff",
        "\ue000",
        "\uffff",
        "\U00010000",
        "\U0010ffff",
    ),
    ColumnKind.INTEGER: (-(2**63), -(2**53) - 1, -1, 0, 1, 9, 10, 2**53 + 1, 2**63 - 1),
    ColumnKind.REAL: (
        float("-inf"),
        -1.5,
        -5e-324,
        0.0,
        5e-324,
        0.1,
        0.1 + 2**-55,
        1.7976931348623157e308,
        float("inf"),
    ),
    ColumnKind.BOOLEAN: (False, True),
    ColumnKind.DECIMAL: tuple(map(Decimal, _DECIMALS.split())),
    ColumnKind.DATETIME: (
        dt.datetime.min.replace(tzinfo=dt.UTC),
        dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
        dt.datetime(2026, 3, 1, 0, 0, tzinfo=_INDIA),
        dt.datetime(2026, 2, 28, 18, 31, tzinfo=dt.UTC),
        dt.datetime.max.replace(tzinfo=dt.UTC),
    ),
    ColumnKind.DATE: (dt.date.min, dt.date(1999, 12, 31), dt.date(2000, 1, 1), dt.date.max),
    ColumnKind.DURATION: (
        dt.timedelta(microseconds=-(2**63)),
        dt.timedelta(days=-1),
        dt.timedelta(0),
        dt.timedelta(microseconds=1),
        dt.timedelta(microseconds=2**63 - 1),
    ),
    ColumnKind.BYTES: (b"", b"\0", b"\0\0", b"\0a", b"a", b"\xff"),
}
"""Values of each kind that has an order, in Python's order, extremes included."""
REFUSED: Mapping[ColumnKind, Sequence[Any]] = {
    ColumnKind.TEXT: ("a\0b", "\ud800", 5, None),
    ColumnKind.INTEGER: (2**63, -(2**63) - 1, "5", 1.5, None),
    ColumnKind.REAL: (float("nan"), 2**53 + 1, "1.5", None),
    ColumnKind.BOOLEAN: (1, "true", None),
    ColumnKind.DECIMAL: (Decimal("NaN"), Decimal("Infinity"), 1.5, None),
    ColumnKind.DATETIME: (
        dt.datetime(2026, 1, 1),  # noqa: DTZ001
        dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-1))),
        dt.date(2026, 1, 1),
        None,
    ),
    ColumnKind.DATE: (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "2026-01-01", None),
    ColumnKind.DURATION: (dt.timedelta.max, 5, None),
    ColumnKind.BYTES: ("a", bytearray(b"a"), None),
    ColumnKind.DOCUMENT: ("\0", b"{}", None),
}
"""Values that no column of the kind takes; None where it is not nullable."""


def place(position: int) -> Place:
    """A place of one made-up history."""
    return Place(b"h" * 16, Position(position), position.to_bytes(16, "big") if position else NOWHERE)


def one_column(kind: ColumnKind, *, nullable: bool = False) -> Table:
    """A table of numbered values of one kind."""
    columns = (Column("id", ColumnKind.INTEGER), Column("value", kind, nullable=nullable, indexed=True))
    return Table(f"kind_{kind.value}", columns, key=("id",))


async def create(store: ReadStore, table: Table | None, name: str = NAME, *, live: bool = True) -> Generation:
    """A new generation at the beginning of the history."""
    fingerprint = f"{name} {len(await store.generations())}"
    (made,) = await store.create_generation(name, fingerprint, table, place(0), live=live)
    return made


async def write(store: ReadStore, generation: Generation, **changes: Any) -> Generation:
    """Write changes that nothing is wrong with, to the next place if none is given."""
    changes.setdefault("checkpoint", place(generation.checkpoint.position + 1))
    (result,) = await store.write([SliceWrite(generation, **changes)])
    assert isinstance(result, Written), result
    return result.generation


async def build(store: ReadStore, table: Table, rows: Sequence[Row], name: str = NAME) -> Generation:
    """A live generation with rows."""
    return await write(store, await create(store, table, name), upserts=rows)


async def rows_of(
    store: ReadStore, *filters: Filter, order: Sequence[Order] = BY_COURSE, name: str = NAME
) -> list[Row]:
    """The rows that a snapshot of now shows."""
    async with store.snapshot() as snapshot:
        return await snapshot.find(name, filters, order, 1_000)


async def stored_generation(store: ReadStore, name: str = NAME) -> Generation | None:
    """The live generation that a snapshot of now shows."""
    async with store.snapshot() as snapshot:
        return await shown_generation(snapshot, name)


async def shown_generation(snapshot: ReadSnapshot, name: str = NAME, number: int | None = None) -> Generation | None:
    """The live generation, or the numbered one, of one slice, that a snapshot shows."""
    found = await snapshot.slices(name, number)
    return found[0] if found else None
