"""How PostgreSQL keeps the values of read models: exact and in order, for any value (rule 32)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.adapters.postgres.read_columns import NUMERIC_DIGITS_MAX, NUMERIC_SCALE_MAX, refusal
from diptych.adapters.postgres.read_store import PostgresReadStore, connect
from diptych.read_side.read_store import (
    Column,
    ColumnKind,
    Comparison,
    Failed,
    Filter,
    Generation,
    Order,
    SliceWrite,
    Table,
    Written,
)
from diptych.testing.contracts.read_store_cases import create, place
from tests.postgres_server import new_read_store
from tests.properties.test_columns import ANYTHING, VALUES

KINDS = [kind for kind in VALUES if kind is not ColumnKind.DOCUMENT]
DECIMALS = st.builds(
    lambda sign, digits, exponent: Decimal(f"{sign}{digits}E{exponent}"),
    st.sampled_from(["", "-"]),
    st.text("0123456789", min_size=1, max_size=40),
    st.one_of(st.integers(-30, 30), st.integers(-NUMERIC_SCALE_MAX, NUMERIC_DIGITS_MAX - 41)),
)
"""As far as PostgreSQL's numbers reach."""
STORED = {**VALUES, ColumnKind.DECIMAL: DECIMALS}
EVERY_KIND = Table(
    "every_kind",
    (
        Column("id", ColumnKind.INTEGER),
        *(Column(kind.value, kind, nullable=True, indexed=kind is not ColumnKind.DECIMAL) for kind in KINDS),
    ),
    key=("id",),
)
ROWS = st.lists(st.tuples(*(st.none() | STORED[kind] for kind in KINDS)), min_size=1, max_size=8)
KEY = (Order("id"),)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Kept:
    """A store in an event loop of its own, with one table for all examples."""

    def __init__(self, runner: asyncio.Runner, store: PostgresReadStore) -> None:
        self.run = runner.run
        self.store = store
        self.generations: dict[str, Generation] = {}

    async def generation(self, table: Table, name: str) -> Generation:
        if name not in self.generations:
            self.generations[name] = await create(self.store, table, name)
        return self.generations[name]

    async def write(self, table: Table, name: str, rows: Sequence[Any]) -> str:
        """Replace all rows; why they are refused, if they are."""
        seen = await self.generation(table, name)
        async with self.store.snapshot() as snapshot:
            there = await snapshot.find(name, (), KEY, 1_000)
        where = place(seen.checkpoint.position + 1)
        kept = {row[0] for row in rows}
        gone = [row[:1] for row in there if row[0] not in kept]
        (result,) = await self.store.write([SliceWrite(seen, where, rows, gone)])
        if isinstance(result, Written):
            self.generations[name] = result.generation
        return result.reason if isinstance(result, Failed) else ""

    async def find(self, name: str, *filters: Filter, order: Sequence[Order] = KEY) -> list[Any]:
        async with self.store.snapshot() as snapshot:
            return await snapshot.find(name, filters, order, 1_000)


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with asyncio.Runner() as runner:
        store = connect(runner.run(new_read_store()))
        runner.run(store.open())
        yield Kept(runner, store)
        runner.run(store.close())


@QUICK
@given(ROWS)
def test_rows_of_every_kind_read_back_equal_and_in_order(kept: Kept, values: Sequence[tuple[Any, ...]]) -> None:
    """Equal, of the same type, decimals with their zeros, and sorted by each column as Python sorts, None first."""
    rows = [(number, *row) for number, row in enumerate(values)]
    assert kept.run(kept.write(EVERY_KIND, "every", rows)) == ""
    read = kept.run(kept.find("every"))
    assert read == rows
    assert [list(map(type, row)) for row in read] == [list(map(type, row)) for row in rows]
    decimals = KINDS.index(ColumnKind.DECIMAL) + 1
    assert [exponent(row[decimals]) for row in read] == [exponent(row[decimals]) for row in rows]
    for number, kind in enumerate(KINDS, 1):
        for descending in (False, True):
            order = (Order(kind.value, descending), Order("id", descending))
            expected = sorted(rows, key=lambda row: (row[number] is not None, row[number], row[0]), reverse=descending)
            assert kept.run(kept.find("every", order=order)) == expected
        for row in rows:
            wanted = [other for other in rows if other[number] == row[number]]
            assert kept.run(kept.find("every", Filter(kind.value, Comparison.EQUAL, row[number]))) == wanted


def exponent(value: Decimal | None) -> Any:
    return None if value is None else value.as_tuple().exponent


@QUICK
@given(st.sampled_from(KINDS), st.lists(ANYTHING, min_size=1, max_size=3))
def test_what_is_refused_is_refused_for_a_reason(kept: Kept, kind: ColumnKind, values: list[Any]) -> None:
    """A table takes exactly what is not refused beforehand, naming the column; the rest changes nothing."""
    column = Column("value", kind)
    table = Table(f"one_{kind.value}", (Column("id", ColumnKind.INTEGER), column), key=("id",))
    kept.run(kept.generation(table, kind.value))
    before = kept.run(kept.find(kind.value))
    refusals = [reason for value in values if (reason := refusal(column, value))]
    told = kept.run(kept.write(table, kind.value, list(enumerate(values))))
    assert bool(told) == bool(refusals)
    if refusals:
        assert refusals[0] in told
    assert kept.run(kept.find(kind.value)) == (before if refusals else list(enumerate(values)))


@QUICK
@given(st.sampled_from(KINDS), st.data())
def test_a_parameter_is_what_a_column_of_its_type_keeps(kept: Kept, kind: ColumnKind, data: st.DataObject) -> None:
    """A parameter of SQL comes back as it went in."""
    value = data.draw(STORED[kind])

    async def asked() -> Any:
        async with kept.store.snapshot() as snapshot:
            ((row),) = await snapshot.sql("SELECT ? AS v", (value,), {"v": (kind, False)})
            return row["v"]

    assert kept.run(asked()) == value
