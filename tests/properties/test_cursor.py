"""Pages cover all rows exactly once, whatever the order: with ties, None, and every kind of column."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cmp_to_key
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Identity, Key, ReadModel
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.clock import SystemClock
from diptych.errors import InvalidMessage
from diptych.event_store.position import NOWHERE, START, Place
from diptych.messages.registry import EventTypes
from diptych.read_side.freshness import EVENTUAL, Freshness
from diptych.read_side.projection import Projection
from diptych.read_side.query_context import query_context
from diptych.read_side.read_model import RowForm
from diptych.read_side.read_store import ReadStore, SliceWrite
from diptych.read_side.snapshot_reader import SnapshotReader
from diptych.security import actor_of

EVERYTHING = query_context(actor_of(None), SystemClock().now())


class Sku(Identity): ...


class Row(ReadModel):
    one: Key[Sku]
    two: Key[int]
    text: str | None = None
    number: int | None = None
    real: float | None = None
    flag: bool | None = None
    money: Decimal | None = None
    moment: datetime | None = None
    day: date | None = None
    length: timedelta | None = None
    raw: bytes | None = None


def optional(*values: object) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values)


NOW = datetime(2026, 1, 1, tzinfo=UTC)
rows = st.builds(
    Row,
    one=st.sampled_from([Sku("a"), Sku("b"), Sku("é"), Sku("z")]),
    two=st.sampled_from([-(2**63), -1, 0, 7, 2**53 + 1, 2**63 - 1]),
    text=optional("", "a", "A", "aa", "é", "\U0001f600", "\uffff", "\x01"),
    number=optional(0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)),
    real=optional(0.0, -0.0, 0.1, 1e308, -1e308, 5e-324, float("inf"), float("-inf")),
    flag=optional(False, True),
    money=optional(Decimal(0), Decimal("0.1"), Decimal("1e-9"), Decimal("-12345678901234567890.5"), Decimal("40.0")),
    moment=optional(
        NOW, NOW + timedelta(microseconds=1), datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    ),
    day=optional(date(1, 1, 1), date(2026, 1, 1), date(9999, 12, 31)),
    length=optional(timedelta(0), timedelta(microseconds=-1), timedelta(days=-999_999), timedelta(days=99_999_999)),
    raw=optional(b"", b"\0", b"\0\0", b"\xff", b"a"),
)
tables = st.lists(rows, max_size=14, unique_by=lambda row: (row.one, row.two))
columns = ["one", "two", "text", "number", "real", "flag", "money", "moment", "day", "length", "raw"]
orders = st.lists(st.tuples(st.sampled_from(columns), st.booleans()), max_size=3, unique_by=lambda by: by[0])


def compare(order: list[tuple[str, bool]]) -> Callable[[Row, Row], int]:
    """As Python orders values, None first; or the other way round."""

    def compared(one: Row, other: Row) -> int:
        for column, descending in [*order, ("one", False), ("two", False)]:
            mine, theirs = getattr(one, column), getattr(other, column)
            if mine == theirs:
                continue
            less = mine is None or (theirs is not None and mine < theirs)
            return (-1 if less else 1) * (-1 if descending else 1)
        return 0

    return compared


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_pages_cover_every_row_once_in_order(kind: str) -> None:
    """For any order and page size the pages put together are the sorted table; each cursor is opaque text."""

    @settings(max_examples=150 if kind == "memory" else 60, deadline=None)
    @given(tables, orders, st.integers(1, 5))
    def holds(table: list[Row], order: list[tuple[str, bool]], limit: int) -> None:
        async def run() -> None:
            with TemporaryDirectory() as folder:
                made: ReadStore = MemoryReadStore() if kind == "memory" else SqliteReadStore(f"{folder}/rows.db")
                await made.open()
                try:
                    await check(made, table, order, limit)
                finally:
                    await made.close()

        asyncio.run(run())

    async def check(store: ReadStore, table: list[Row], order: list[tuple[str, bool]], limit: int) -> None:
        form = RowForm(Row, "shop")
        projection = Projection("shop", form, {}, EventTypes([]), partitions=1)
        start = Place(b"h" * 16, START, NOWHERE)
        (generation,) = await store.create_generation(projection.name, "f", form.table, start, live=True)
        await store.write([SliceWrite(generation, start, upserts=[form.row(row) for row in table])])
        events = MemoryEventStore(SystemClock())
        async with store.snapshot() as snapshot:
            checks = Freshness(events, SystemClock()).checks(EVENTUAL)
            reader = SnapshotReader(snapshot, {Row: (projection, "f")}, checks).narrowed(EVERYTHING)
            order_by = ", ".join(f"{'-' if descending else ''}{column}" for column, descending in order)
            found: list[Row] = []
            cursor, pages = None, 0
            while pages <= len(table):
                page = await reader.page(Row, order_by=order_by, limit=limit, cursor=cursor)
                found += page.items
                pages += 1
                cursor = page.next
                if cursor is None:
                    break
                assert len(page.items) == limit
                assert cursor.replace("-", "").replace("_", "").isalnum()
            assert found == sorted(table, key=cmp_to_key(compare(order)))
            assert pages == max(1, -(-len(table) // limit))
            if pages > 1:
                first = await reader.page(Row, order_by=order_by, limit=limit)
                with pytest.raises(InvalidMessage, match="no cursor of this query"):
                    await reader.page(Row, order_by=order_by, limit=limit, cursor=first.next, flag=True)

    holds()
