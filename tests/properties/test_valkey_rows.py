"""Rows in Valkey are in Python's order, whatever the values (rule 32); snapshots show what those in memory do (G8)."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.adapters.memory import read_store as memory
from diptych.adapters.valkey import read_store as valkey
from diptych.adapters.valkey.values import as_text, from_text, sortable, sortable_all
from diptych.event_store.position import Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
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
from diptych.read_side.row_filters import as_read, rank
from diptych.testing.contracts.read_store_cases import NAME, place
from tests.properties.test_columns import VALUES
from tests.valkey_server import new_read_store

KINDS = [kind for kind in VALUES if kind is not ColumnKind.DOCUMENT]
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# ── values ───────────────────────────────────────────────────────────────────


@given(st.data(), st.sampled_from(list(VALUES)))
def test_a_value_reads_back_equal(data: st.DataObject, kind: ColumnKind) -> None:
    """Of every kind, with its type; a decimal with its exponent too."""
    value = data.draw(VALUES[kind])
    column = Column("c", kind)
    (expected,) = as_read(Table("t", (column,), ("c",)), (value,))
    found = from_text(column, as_text(column, value))
    assert (found, type(found), str(found)) == (expected, type(expected), str(expected))


@given(st.data(), st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
def test_members_are_ordered_as_the_values_are(data: st.DataObject, kinds: list[ColumnKind]) -> None:
    """Of one column or of several, None first; what is equal has one form, and no other begins with it."""
    columns = [Column(f"c{n}", kind) for n, kind in enumerate(kinds)]
    some = [data.draw(st.lists(st.none() | VALUES[kind], min_size=2, max_size=3)) for kind in kinds]
    one, other = (tuple(data.draw(st.sampled_from(values)) for values in some) for _ in range(2))
    a, b = sortable_all(columns, one), sortable_all(columns, other)
    assert (a < b) == (tuple(map(rank, one)) < tuple(map(rank, other)))
    assert (a == b) == (one == other)
    assert a == b or not b.startswith(a)


def test_members_of_near_decimals_are_told_apart() -> None:
    """As many digits as there are, on both sides of zero, are in order."""
    texts = "-1E+30 -1.001 -1.0001 -1 -0.1 -1E-30 0 1E-30 0.1 1 1.0001 1.001 1.01 1.1 9.9 10 1E+30"
    members = [sortable(Column("c", ColumnKind.DECIMAL), Decimal(text)) for text in texts.split()]
    assert members == sorted(set(members))


# ── snapshots ────────────────────────────────────────────────────────────────

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SALES = Table(
    "sales",
    (
        Column("shop", ColumnKind.TEXT),
        Column("number", ColumnKind.INTEGER),
        Column("price", ColumnKind.DECIMAL, nullable=True, indexed=True),
        Column("until", ColumnKind.DATETIME, nullable=True),
        Column("note", ColumnKind.TEXT, nullable=True, searchable=True),
    ),
    key=("shop", "number"),
    expires="until",
)
KEYS = st.tuples(st.sampled_from(["a", "ab", "b"]), st.integers(-1, 1))
PRICES = st.none() | st.sampled_from([Decimal(text) for text in ("-1", "0", "2.0", "2.00", "10")])
MOMENTS = st.none() | st.integers(0, 2).map(lambda hours: NOON + dt.timedelta(hours=hours))
NOTES = st.none() | st.sampled_from(["tea", "tea tent", "ten cups of tea", "cup"])
SALE = st.builds(lambda key, price, until, note: (*key, price, until, note), KEYS, PRICES, MOMENTS, NOTES)
CHANGES = st.tuples(
    st.just("write"),
    st.lists(SALE, max_size=3, unique_by=lambda row: row[:2]),
    st.lists(KEYS, max_size=2),
)
FILTERS = st.one_of(
    st.builds(
        Filter,
        st.just("price"),
        st.sampled_from([each for each in Comparison if each not in (Comparison.ONE_OF, Comparison.STARTS_WITH)]),
        PRICES,
    ),
    st.builds(Filter, st.just("price"), st.just(Comparison.ONE_OF), st.lists(PRICES, max_size=2).map(tuple)),
    st.builds(Filter, st.just("shop"), st.sampled_from([Comparison.EQUAL, Comparison.STARTS_WITH]), st.just("a")),
    st.builds(
        Filter,
        st.just("number"),
        st.sampled_from([Comparison.EQUAL, Comparison.MORE_THAN, Comparison.AT_MOST]),
        st.integers(-1, 1),
    ),
    st.builds(Filter, st.just("note"), st.just(Comparison.EQUAL), NOTES),
)
ORDERS = st.permutations(["shop", "number", "price", "note"]).flatmap(
    lambda names: st.tuples(*(st.builds(Order, st.just(name), st.booleans()) for name in names))
)
FIND = st.tuples(
    st.just("find"), st.lists(FILTERS, max_size=2), ORDERS, st.integers(1, 5), st.none() | st.integers(0, 4)
)
READS = st.one_of(
    FIND,
    st.tuples(st.just("count"), st.lists(FILTERS, max_size=2)),
    st.tuples(st.just("search"), st.sampled_from(["te", "tea", "cup te"]), st.integers(1, 5)),
    st.tuples(st.just("expired"), MOMENTS.filter(bool), st.integers(1, 5)),
    st.tuples(st.just("get"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("slices")),
)
BUILDS = st.tuples(st.just("build"), st.sampled_from(["anew", "anew, keep", "back", "take up", "drop"]))
BUILDS_READ = 6
"""Builds, from the first on, that are looked for among those that are kept."""
BY_KEY = (Order("shop"), Order("number"))
STEPS = st.lists(
    st.one_of(CHANGES, BUILDS, st.tuples(st.just("open")), st.tuples(st.just("read"), st.integers(0, 2), READS)),
    min_size=5,
    max_size=25,
)


async def read(snapshot: ReadSnapshot, what: Sequence[Any]) -> Any:
    """What a snapshot shows."""
    match what:
        case ["find", filters, order, limit, page]:
            rows = await snapshot.find(NAME, filters, order, 100)
            index = {column.name: n for n, column in enumerate(SALES.columns)}
            after = [rows[page][index[by.column]] for by in order] if page is not None and page < len(rows) else None
            return await snapshot.find(NAME, filters, order, limit, after)
        case ["count", filters]:
            return await snapshot.count(NAME, filters)
        case ["search", text, limit]:
            return await snapshot.search(NAME, text, limit)
        case ["expired", moment, limit]:
            return await snapshot.expired(NAME, moment, limit)
        case ["get", keys]:
            return await snapshot.get_many(NAME, keys)
        case _:
            blocked = await snapshot.blocked(NAME)
            kept = [await read_kept(snapshot, str(fingerprint)) for fingerprint in range(BUILDS_READ)]
            return [each.checkpoint for each in await snapshot.slices(NAME)], [key.position for key in blocked], kept


async def read_kept(snapshot: ReadSnapshot, fingerprint: str) -> Any:
    """What a snapshot shows of a generation that is kept."""
    found = await snapshot.kept(NAME, fingerprint)
    if not found:
        return None
    number, states = found[0].number, [(each.checkpoint, each.epoch, each.live, each.under_way) for each in found]
    return (
        states,
        await snapshot.find(NAME, (), BY_KEY, 100, None, number),
        await snapshot.count(NAME, (), number),
        await snapshot.search(NAME, "tea", 100, (), number),
        [key.position for key in await snapshot.blocked(NAME, number)],
    )


class Both:
    """The same done to a store in memory and to one in Valkey, and the same read from snapshots of one moment."""

    def __init__(self, stores: Sequence[ReadStore], generations: list[Generation], stack: AsyncExitStack) -> None:
        self.stores = stores
        self.generations = generations
        self.stack = stack
        self.snapshots: list[list[ReadSnapshot]] = []
        self.built = 1

    async def do(self, step: Sequence[Any]) -> None:
        """One step."""
        match step:
            case ["write", upserts, deletes]:
                gone = [key for key in deletes if key not in {row[:2] for row in upserts}]
                await self.write(upserts, gone)
            case ["open"]:
                opened = [await self.stack.enter_async_context(store.snapshot()) for store in self.stores]
                for snapshot in opened:  # its moment is that of its first read at the latest
                    await snapshot.slices(NAME)
                self.snapshots.append(opened)
            case ["build", what]:
                for n, store in enumerate(self.stores):
                    self.generations[n] = await self.build(store, self.generations[n], what)
                self.built += 1
            case ["read", number, what] if number < len(self.snapshots):
                expected, found = [await read(each, what) for each in self.snapshots[number]]
                assert found == expected, what

    async def write(self, upserts: Sequence[Row], deletes: Sequence[Row]) -> None:
        """One batch."""
        for n, store in enumerate(self.stores):
            of = self.generations[n]
            at = Position(of.checkpoint.position + 1)
            block = [BlockedKey(NAME, f"[{at % 2}]", at, "boom")]
            unblock = [f"[{(at + 1) % 2}]"]
            change = SliceWrite(of, place(at), upserts, deletes, block, unblock)
            (result,) = await store.write([change])
            assert isinstance(result, Written)
            self.generations[n] = result.generation

    async def build(self, store: ReadStore, live: Generation, what: str) -> Generation:
        """The generation that answers after another one was switched to, as far as it; or the same."""
        kept = [each for each in await store.generations() if each.kept_until is not None]
        keep_s = 3_600 if what in ("anew, keep", "back") else 0
        if what.startswith("anew"):
            chosen = await store.create_generation(NAME, str(self.built), SALES, place(0), live=False)
        elif what == "take up" and kept:
            chosen = await store.create_generation(NAME, kept[0].fingerprint, SALES, place(0), live=False)
        elif what == "drop" and kept:
            await store.drop_generation(NAME, kept[0].number)
            return live
        else:
            chosen = kept
        if not chosen or what == "drop":
            return live
        row = (what, self.built, None, None, "tea")
        (result,) = await store.write([SliceWrite(chosen[0], live.checkpoint, [row])])
        assert isinstance(result, Written)
        assert await store.switch(NAME, result.generation.number, keep_s=keep_s)
        (found,) = [each for each in await store.generations() if each.live]
        return found


@asynccontextmanager
async def both() -> AsyncGenerator[Both]:
    """Two empty stores, open."""
    stores: list[ReadStore] = [memory.connect("memory:"), valkey.connect(new_read_store())]
    async with AsyncExitStack() as stack:
        generations: list[Generation] = []
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
            generations += await store.create_generation(NAME, "0", SALES, place(0), live=True)
        yield Both(stores, generations, stack)


async def agree(steps: Sequence[Sequence[Any]]) -> None:
    async with both() as stores:
        for step in (*steps, ("open",)):
            await stores.do(step)
        for number in range(len(stores.snapshots)):
            await stores.do(("read", number, ("slices",)))


@QUICK
@given(STEPS)
def test_snapshots_show_what_they_show_in_memory(steps: Sequence[Sequence[Any]]) -> None:
    """Whatever is written, dropped and built anew while they are open; rows, pages, counts, words, expiries, keys."""
    asyncio.run(agree(steps))
