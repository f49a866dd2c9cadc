"""What every read store does: the contract of `read_side/read_store.py` as a test suite.

An adapter's test is a subclass that says how to connect:

    class TestSqliteReadStore(ReadStoreContract):
        def connect(self, folder: Path) -> ReadStore:
            return connect(f"sqlite:{folder / 'read.db'}")

Needs pytest with the anyio plugin on its asyncio backend.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych.errors import InvalidMessage, StoreClosed, StoreUnavailable
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
    Discard,
    Failed,
    Fenced,
    Filter,
    Generation,
    Order,
    ReadStore,
    Row,
    SliceWrite,
    Table,
    Written,
)

__all__ = ["ReadStoreContract"]

BUSY_WRITES = 50
"""Writes that go on while others read."""
WAIT_S_MAX = 10.0
"""No wait of a test that is to succeed takes longer."""

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
    "1E-999 0.009 0.01 0.5 1.2 1.21 9.99 10 40.0 100 1000000000000000000000000000 1000000000000000000000000000.01 1E+999"
)
SORTED: Mapping[ColumnKind, Sequence[Any]] = {
    ColumnKind.TEXT: ("", "\x01", "A", "Z", "a", "a b", "aa", "é", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"),
    ColumnKind.INTEGER: (-(2**63), -(2**53) - 1, -1, 0, 1, 9, 10, 2**53 + 1, 2**63 - 1),
    ColumnKind.REAL: (float("-inf"), -1.5, -5e-324, 0.0, 5e-324, 0.1, 0.1 + 2**-55, 1.7976931348623157e308, float("inf")),
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
_AS_PYTHON = {
    Comparison.EQUAL: lambda value, bound: value == bound,
    Comparison.AT_LEAST: lambda value, bound: value >= bound,
    Comparison.AT_MOST: lambda value, bound: value <= bound,
    Comparison.MORE_THAN: lambda value, bound: value > bound,
    Comparison.LESS_THAN: lambda value, bound: value < bound,
}


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
    return await store.create_generation(name, fingerprint, table, place(0), live=live)


async def write(store: ReadStore, generation: Generation, **changes: Any) -> Generation:
    """Write changes that nothing is wrong with, to the next place if none is given."""
    changes.setdefault("checkpoint", place(generation.checkpoint.position + 1))
    (result,) = await store.write([SliceWrite(generation, **changes)])
    assert isinstance(result, Written), result
    return result.generation


async def build(store: ReadStore, table: Table, rows: Sequence[Row], name: str = NAME) -> Generation:
    """A live generation with rows."""
    return await write(store, await create(store, table, name), upserts=rows)


async def rows_of(store: ReadStore, *filters: Filter, order: Sequence[Order] = BY_COURSE, name: str = NAME) -> list[Row]:
    """The rows that a snapshot of now shows."""
    async with store.snapshot() as snapshot:
        return await snapshot.find(name, filters, order, 1_000)


async def stored_generation(store: ReadStore, name: str = NAME) -> Generation | None:
    """The live generation that a snapshot of now shows."""
    async with store.snapshot() as snapshot:
        return await snapshot.generation(name)


@pytest.mark.anyio
class ReadStoreContract:
    """The contract; subclasses say how to connect."""

    def connect(self, folder: Path) -> ReadStore:
        """A store that keeps what it keeps in that folder, not opened yet."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncGenerator[ReadStore, None]:
        """An empty store, open."""
        store = self.connect(tmp_path)
        await store.open()
        yield store
        await store.close()

    # ── values ───────────────────────────────────────────────────────────────

    async def test_every_kind_reads_back_equal(self, store: ReadStore) -> None:
        """What is written is read back equal, by key and by find, None included."""
        for kind, values in {**SORTED, ColumnKind.DOCUMENT: ('{"a": [1, "é"]}', "null")}.items():
            rows = list(enumerate([*values, None]))
            await build(store, one_column(kind, nullable=True), rows, kind.value)
            async with store.snapshot() as snapshot:
                got = await snapshot.get_many(kind.value, [(number,) for number, _ in rows])
                found = await snapshot.find(kind.value, (), (Order("id"),), 1_000)
            assert found == rows
            assert got == {(number,): (number, value) for number, value in rows}
            assert [type(value) for _, value in found] == [type(value) for _, value in rows]

    async def test_decimals_keep_their_exponent_and_datetimes_come_in_utc(self, store: ReadStore) -> None:
        """40.0 is not made 40 nor 40.00; an instant given in another time zone reads back in UTC."""
        texts = ["40", "40.0", "40.00", "4E+1", "0.000", "0E+3", "-1.50"]
        await build(store, one_column(ColumnKind.DECIMAL), [(n, Decimal(text)) for n, text in enumerate(texts)])
        assert [str(value) for _, value in await rows_of(store, order=(Order("id"),))] == texts
        instants = SORTED[ColumnKind.DATETIME]
        await build(store, one_column(ColumnKind.DATETIME), list(enumerate(instants)), "at")
        zones = [value.utcoffset() for _, value in await rows_of(store, order=(Order("id"),), name="at")]
        assert zones == [dt.timedelta(0)] * len(instants)

    async def test_every_kind_orders_as_python_does(self, store: ReadStore) -> None:
        """`find` orders each kind as `sorted` does, None first, and last when descending."""
        for kind, values in SORTED.items():
            shuffled = [None, *values[1::2], *values[::2]]
            await build(store, one_column(kind, nullable=True), list(enumerate(shuffled)), kind.value)
            up = await rows_of(store, order=(Order("value"), Order("id")), name=kind.value)
            down = await rows_of(store, order=(Order("value", descending=True), Order("id")), name=kind.value)
            assert [value for _, value in up] == [None, *sorted(values)]
            assert [value for _, value in down] == [*sorted(values, reverse=True), None]

    async def test_equal_decimals_tie_whatever_their_exponent(self, store: ReadStore) -> None:
        """40.0 and 40.00 are one value to filters, to order and as a key."""
        rows = [(3, Decimal("40.0")), (1, Decimal("40.00")), (2, Decimal("4E+1")), (0, Decimal(41))]
        await build(store, one_column(ColumnKind.DECIMAL), rows)
        found = await rows_of(store, order=(Order("value"), Order("id")))
        assert [number for number, _ in found] == [1, 2, 3, 0]
        assert len(await rows_of(store, Filter("value", Comparison.EQUAL, Decimal(40)), order=(Order("id"),))) == 3
        keyed = Table("prices", (Column("price", ColumnKind.DECIMAL),), key=("price",))
        await write(
            store, await build(store, keyed, [(Decimal("1.0"),)], "prices"), upserts=[(Decimal("1.00"),)]
        )
        assert [str(price) for (price,) in await rows_of(store, order=(Order("price"),), name="prices")] == ["1.00"]

    async def test_refused_values_fail_their_write_with_a_reason(self, store: ReadStore) -> None:
        """What no column can hold fails the whole write, says which column, and changes nothing."""
        for kind, values in REFUSED.items():
            good: Any = SORTED.get(kind, ("{}",))[0]
            generation = await build(store, one_column(kind), [(1, good)], kind.value)
            for value in values:
                upserts = [(2, good), (3, value)]
                (result,) = await store.write([SliceWrite(generation, place(2), upserts=upserts)])
                assert isinstance(result, Failed), (kind, value, result)
                assert "column value" in result.reason
                assert await rows_of(store, order=(Order("id"),), name=kind.value) == [(1, good)]
                assert await stored_generation(store, kind.value) == generation

    async def test_other_refusals_have_a_reason_too(self, store: ReadStore) -> None:
        """A row of the wrong length, None in a key, and rows for a subscriber fail."""
        nullable_key = Table("odd", (Column("a", ColumnKind.TEXT, nullable=True),), key=("a",))
        subscriber = await create(store, None, "mail")
        for generation, row in (
            (await create(store, SEATS), ("python",)),
            (await create(store, nullable_key, "odd"), (None,)),
            (subscriber, ("python", 1)),
        ):
            (result,) = await store.write([SliceWrite(generation, place(1), upserts=[row])])
            assert isinstance(result, Failed), (row, result)
            assert generation.name in result.reason

    async def test_a_failed_slice_does_not_hurt_its_sibling(self, store: ReadStore) -> None:
        """Of three writes in one call the second fails and the others hold."""
        builds = [await create(store, msgspec.structs.replace(SEATS, name=f"t{n}"), f"t{n}") for n in range(3)]
        taken = [1, 2**63, 3]
        writes = [SliceWrite(g, place(1), upserts=[("a", 0), ("b", n)]) for g, n in zip(builds, taken, strict=True)]
        first, second, third = await store.write(writes)
        assert [type(result) for result in (first, second, third)] == [Written, Failed, Written]
        assert await rows_of(store, name="t0") == [("a", 0), ("b", 1)]
        assert await rows_of(store, name="t1") == []
        assert await rows_of(store, name="t2") == [("a", 0), ("b", 3)]
        assert [g.checkpoint.position for g in await store.generations()] == [1, 0, 1]

    # ── rows and keys ────────────────────────────────────────────────────────

    async def test_upserts_replace_and_deletes_remove(self, store: ReadStore) -> None:
        """A row with a stored key replaces the whole row; deleting what is not there is no error."""
        generation = await build(store, SEATS, [("a", 1), ("b", 2), ("c", 3)])
        generation = await write(store, generation, upserts=[("b", 20), ("d", 4)], deletes=[("a",), ("z",)])
        assert await rows_of(store) == [("b", 20), ("c", 3), ("d", 4)]
        await write(store, generation, deletes=[("b",), ("c",), ("d",)])
        assert await rows_of(store) == []

    async def test_keys_of_several_columns(self, store: ReadStore) -> None:
        """Rows are told apart by the whole key, whatever the order of the columns."""
        day, next_day = dt.date(2026, 1, 1), dt.date(2026, 1, 2)
        rows: list[Row] = [
            (Decimal(1), 1, day, "a"),
            (Decimal(2), 2, day, "a"),
            (None, 1, next_day, "a"),
            (Decimal(4), 1, day, "b"),
        ]
        generation = await build(store, LINES, rows)
        keys = [("a", 1, next_day), ("b", 1, day), ("b", 2, day)]
        async with store.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, keys) == {keys[0]: rows[2], keys[1]: rows[3]}
            assert await snapshot.get_many(NAME, keys[:1]) == {keys[0]: rows[2]}
        await write(store, generation, upserts=[(Decimal(9), 1, day, "a")], deletes=[("a", 2, day)])
        order = (Order("order"), Order("line"), Order("day"))
        assert await rows_of(store, order=order) == [(Decimal(9), 1, day, "a"), rows[2], rows[3]]

    async def test_keys_of_every_kind(self, store: ReadStore) -> None:
        """A key may be of any kind that has an order; many rows are found at once, replaced and deleted by it."""
        for kind, values in SORTED.items():
            table = Table(f"by_{kind.value}", (Column("id", kind), Column("n", ColumnKind.INTEGER)), key=("id",))
            generation = await build(store, table, [(value, 1) for value in values], kind.value)
            generation = await write(store, generation, upserts=[(value, 2) for value in values])
            async with store.snapshot() as snapshot:
                got = await snapshot.get_many(kind.value, [(value,) for value in values])
            assert got == {(value,): (value, 2) for value in values}
            await write(store, generation, deletes=[(value,) for value in values[1:]])
            assert await rows_of(store, order=(Order("id"),), name=kind.value) == [(values[0], 2)]

    async def test_thousands_of_keys_at_once(self, store: ReadStore) -> None:
        """`get_many` takes thousands of keys, some without a row, some twice, none at all."""
        await build(store, SEATS, [(f"c{n}", n) for n in range(0, 5_000, 2)])
        async with store.snapshot() as snapshot:
            got = await snapshot.get_many(NAME, [(f"c{n}",) for n in range(5_000)] + [("c0",)])
            assert await snapshot.get_many(NAME, []) == {}
        assert got == {(f"c{n}",): (f"c{n}", n) for n in range(0, 5_000, 2)}

    async def test_keys_that_no_row_can_have(self, store: ReadStore) -> None:
        """Keys that cannot be stored have no row, and do not spoil the call."""
        await build(store, SEATS, [("a", 1), ("b", 2)])
        numbered = one_column(ColumnKind.INTEGER)
        await build(store, numbered, [(1, 1), (2, 2)], "numbers")
        async with store.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, [("a",), ("\ud800",), ("b\0",)]) == {("a",): ("a", 1)}
            assert await snapshot.get_many(NAME, [("\ud800",)]) == {}
            assert await snapshot.get_many("numbers", [(2**64,), (2,)]) == {(2,): (2, 2)}
            assert await snapshot.get_many("numbers", [(2**64,)]) == {}

    # ── checkpoints and fences ───────────────────────────────────────────────

    async def test_rows_and_checkpoint_change_together(self, store: ReadStore) -> None:
        """After a write both are new; the result is the generation as it is stored."""
        generation = await create(store, SEATS)
        written = await write(store, generation, checkpoint=place(7), upserts=[("a", 1)], stopped="too many")
        assert written == msgspec.structs.replace(generation, checkpoint=place(7), stopped="too many")
        assert await stored_generation(store) == written
        assert await rows_of(store) == [("a", 1)]
        assert (await write(store, written)).stopped == ""

    async def test_a_stale_checkpoint_is_fenced(self, store: ReadStore) -> None:
        """A writer whose checkpoint is not the stored one changes nothing, be it behind, ahead or of another history."""
        old = await create(store, SEATS)
        current = await write(store, old, upserts=[("a", 1)])
        elsewhere = Place(b"x" * 16, current.checkpoint.position, current.checkpoint.event_id)
        forked = Place(current.checkpoint.history_id, current.checkpoint.position, b"x" * 16)
        for stale in (old.checkpoint, place(2), elsewhere, forked):
            await self._is_fenced(store, msgspec.structs.replace(current, checkpoint=stale), current)

    async def test_a_change_by_hand_fences_those_who_do_not_know_of_it(self, store: ReadStore) -> None:
        """It raises the epoch, though the checkpoint may stay; the old epoch is fenced, the new one goes on."""
        old = await build(store, SEATS, [("a", 1)])
        current = await write(store, old, checkpoint=old.checkpoint, by_hand=True)
        assert (current.epoch, current.checkpoint) == (old.epoch + 1, old.checkpoint)
        await self._is_fenced(store, old, current)
        await write(store, current, upserts=[("a", 2)])
        assert await rows_of(store) == [("a", 2)]

    async def test_a_generation_that_is_gone_is_fenced(self, store: ReadStore) -> None:
        """A writer of a dropped generation, or of one that never was, is fenced."""
        gone = await create(store, SEATS)
        current = await build(store, SEATS, [("a", 1)])
        await store.drop_generation(NAME, gone.number)
        for generation in (gone, msgspec.structs.replace(current, number=99)):
            await self._is_fenced(store, generation, current)

    async def _is_fenced(self, store: ReadStore, stale: Generation, current: Generation) -> None:
        blocked = BlockedKey(NAME, '["a"]', Position(1), "boom")
        discard = Discard(NAME, '["a"]', Position(1))
        bad = SliceWrite(stale, place(9), [("a", 99)], [("b",)], [blocked], (), [discard], by_hand=True)
        assert await store.write([bad]) == [Fenced()]
        assert await stored_generation(store) == current
        assert await rows_of(store) == [("a", 1)]
        assert await store.discards(NAME) == []
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == []

    # ── snapshots ────────────────────────────────────────────────────────────

    async def test_a_snapshot_shows_one_moment(self, store: ReadStore) -> None:
        """Rows, checkpoint and blocked keys are those of the moment it was taken, whatever is written meanwhile."""
        blocked = BlockedKey(NAME, '["a"]', Position(1), "boom")
        old = await write(store, await create(store, SEATS), upserts=[("a", 1), ("b", 2)], block=[blocked])
        async with store.snapshot() as snapshot:
            new = await write(store, old, upserts=[("a", 10), ("c", 3)], deletes=[("b",)], unblock=['["a"]'])
            new = await write(store, new, upserts=[("b", 20)], deletes=[("a",)])
            assert await snapshot.generation(NAME) == old
            assert await snapshot.get_many(NAME, [("a",), ("b",), ("c",)]) == {("a",): ("a", 1), ("b",): ("b", 2)}
            assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1), ("b", 2)]
            assert await snapshot.count(NAME, ()) == 2
            assert await snapshot.blocked(NAME) == [blocked]
            await store.drop_generation(NAME, new.number)
            assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1), ("b", 2)]
        assert await stored_generation(store) is None

    async def test_snapshots_are_consistent_while_writes_go_on(self, store: ReadStore) -> None:
        """Each write sets every row to its position; no snapshot ever shows two positions."""
        state = await build(store, SEATS, [(course, 1) for course in "abc"])
        done = asyncio.Event()

        async def keep_writing(generation: Generation) -> None:
            for _ in range(BUSY_WRITES):
                position = Position(generation.checkpoint.position + 1)
                rows = [(course, position) for course in "abc"]
                block = [BlockedKey(NAME, '["a"]', position, "boom")]
                generation = await write(store, generation, upserts=rows, block=block)
                await asyncio.wait_for(seen.wait(), WAIT_S_MAX)
                seen.clear()
            done.set()

        seen = asyncio.Event()
        shown: list[int] = []
        writing = asyncio.create_task(keep_writing(state))
        while not done.is_set():
            async with store.snapshot() as snapshot:
                generation = await snapshot.generation(NAME)
                assert generation is not None
                seen.set()
                rows = await snapshot.find(NAME, (), BY_COURSE, 10)
                got = await snapshot.get_many(NAME, [("a",)])
                blocked = await snapshot.blocked(NAME)
                position = generation.checkpoint.position
                assert {taken for _, taken in [*rows, *got.values()]} == {position}
                assert {key.position for key in blocked} <= {position}
                shown.append(position)
        await writing
        assert len(rows) == 3
        assert len(set(shown)) > 1

    # ── generations ──────────────────────────────────────────────────────────

    async def test_a_generation_is_listed_as_it_was_made(self, store: ReadStore) -> None:
        """`generations` gives each with its form and checkpoint, by name and number; subscribers have no table."""
        made = [
            await store.create_generation("b", "1", LINES, place(5), live=True),
            await store.create_generation("b", "2", SEATS, place(0), live=False),
            await store.create_generation("a", "1", None, place(3), live=True),
        ]
        assert made[0] == Generation("b", 1, "1", LINES, True, place(5))
        assert made[1] == Generation("b", 2, "2", SEATS, False, place(0))
        assert await store.generations() == [made[2], made[0], made[1]]
        async with store.snapshot() as snapshot:
            assert await snapshot.generation("b") == made[0]
            assert await snapshot.generation("b", 2) == made[1]
            assert await snapshot.generation("b", 3) is None
            assert await snapshot.generation("c") is None

    async def test_racing_to_create_makes_one(self, store: ReadStore) -> None:
        """The same fingerprint again gives the generation that is live or newer, not a second one."""
        racers = [store.create_generation(NAME, "1", SEATS, place(0), live=True) for _ in range(5)]
        made = await asyncio.gather(*racers)
        assert {generation.number for generation in made} == {1}
        again = [store.create_generation(NAME, "2", SEATS, place(0), live=False) for _ in range(5)]
        assert {generation.number for generation in await asyncio.gather(*again)} == {2}
        assert len(await store.generations()) == 2

    async def test_an_older_fingerprint_is_built_anew(self, store: ReadStore) -> None:
        """What the live one has replaced is not returned: going back to old code is a new generation."""
        for fingerprint in ("1", "2"):
            await store.create_generation(NAME, fingerprint, SEATS, place(0), live=True)
        back = await store.create_generation(NAME, "1", SEATS, place(0), live=True)
        assert (back.number, back.live) == (3, True)
        assert [generation.live for generation in await store.generations()] == [False, False, True]

    async def test_generations_have_rows_of_their_own(self, store: ReadStore) -> None:
        """A second one is built beside the live one, in another form; reads of it say its number."""
        await build(store, SEATS, [("a", 1)])
        wider = Table(SEATS.name, (*SEATS.columns, Column("note", ColumnKind.TEXT)), SEATS.key)
        second = await create(store, wider, live=False)
        await write(store, second, upserts=[("b", 2, "new")])
        assert await rows_of(store) == [("a", 1)]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), BY_COURSE, 10, None, 2) == [("b", 2, "new")]
            assert await snapshot.get_many(NAME, [("b",)], 2) == {("b",): ("b", 2, "new")}
            assert await snapshot.get_many(NAME, [("b",)]) == {}

    async def test_a_switch_is_refused_while_behind(self, store: ReadStore) -> None:
        """A generation that is behind the live one cannot replace it; nothing changes."""
        await write(store, await create(store, SEATS), checkpoint=place(5), upserts=[("a", 1)])
        second = await write(store, await create(store, SEATS, live=False), checkpoint=place(4), upserts=[("b", 2)])
        before = await store.generations()
        assert not await store.switch(NAME, second.number)
        assert not await store.switch(NAME, 99)
        assert await store.generations() == before
        assert await rows_of(store) == [("a", 1)]

    async def test_a_switch_shows_the_new_one_and_drops_the_others(self, store: ReadStore) -> None:
        """Level with the live one it answers from now on; the old one is gone and its writer fenced."""
        first = await write(store, await create(store, ARTICLES), upserts=[("x", 1, "old", None)])
        second = await create(store, ARTICLES, live=False)
        third = await write(store, await create(store, ARTICLES, live=False), upserts=[("y", 2, "new", None)])
        assert await store.switch(NAME, third.number)
        assert await store.generations() == [msgspec.structs.replace(third, live=True)]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), (Order("id"),), 10) == [("y", 2, "new", None)]
            assert await snapshot.search(NAME, "old", 10) == []
            assert await snapshot.search(NAME, "new", 10) == [("y", 2, "new", None)]
        for gone in (first, second):
            assert await store.write([SliceWrite(gone, place(9))]) == [Fenced()]
        third = await write(store, third, upserts=[("z", 3, "newer", None)])
        assert third.live, "a writer that has not seen the switch goes on, and learns of it"

    async def test_numbers_are_never_reused(self, store: ReadStore) -> None:
        """After a drop the next generation has a new number and no rows."""
        for number in (1, 2, 3):
            generation = await build(store, ARTICLES, [("x", 1, "title", None)])
            assert generation.number == number
            await store.drop_generation(NAME, number)
            await store.drop_generation(NAME, number)
        assert await store.generations() == []
        await create(store, ARTICLES)
        assert await rows_of(store, order=(Order("id"),)) == []

    async def test_without_a_generation_there_are_no_answers(self, store: ReadStore) -> None:
        """Rows of what has no live generation, or no table, are unavailable rather than none."""
        await create(store, SEATS, live=False)
        await create(store, None, "mail")
        async with store.snapshot() as snapshot:
            for name, number in ((NAME, None), (NAME, 9), ("mail", None), ("none", None)):
                with pytest.raises(StoreUnavailable):
                    await snapshot.get_many(name, [("a",)], number)
                with pytest.raises(StoreUnavailable):
                    await snapshot.find(name, (), BY_COURSE, 1, None, number)
            with pytest.raises(StoreUnavailable):
                await snapshot.count(NAME, ())
            with pytest.raises(StoreUnavailable):
                await snapshot.search(NAME, "a", 1)

    # ── blocked keys and discards ────────────────────────────────────────────

    async def test_keys_are_blocked_and_unblocked(self, store: ReadStore) -> None:
        """Blocked keys are listed by position, until they are unblocked; blocking again replaces."""
        keys = [BlockedKey(NAME, f'["{n}"]', Position(9 - n), "boom\n\ud800") for n in range(3)]
        generation = await write(store, await create(store, SEATS), block=keys)
        async with store.snapshot() as snapshot:
            assert [(key.key, key.position) for key in await snapshot.blocked(NAME)] == [
                ('["2"]', 7),
                ('["1"]', 8),
                ('["0"]', 9),
            ]
        later = BlockedKey(NAME, '["1"]', Position(20), "again")
        await write(store, generation, block=[later], unblock=['["0"]', '["2"]', '["7"]'])
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [later]
            assert await snapshot.blocked("other") == []

    async def test_blocked_keys_belong_to_their_generation(self, store: ReadStore) -> None:
        """One built beside has blocked keys of its own, which answer with it after a switch and go when it goes."""
        first, second = await create(store, SEATS), await create(store, SEATS, live=False)
        old, new = (BlockedKey(NAME, '["a"]', Position(n), f"boom {n}") for n in (1, 2))
        await write(store, first, block=[old])
        await write(store, second, block=[new])
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [old]
            assert await snapshot.blocked(NAME, second.number) == [new]
        await store.switch(NAME, second.number)
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [new]
            assert await snapshot.blocked(NAME, first.number) == []

    async def test_discards_outlive_generations(self, store: ReadStore) -> None:
        """A discard is kept once, by projection, and stays when every generation is dropped."""
        wanted = [Discard(NAME, '["b"]', Position(3)), Discard(NAME, '["a"]', Position(4))]
        generation = await write(store, await create(store, SEATS), discard=wanted[::-1], by_hand=True)
        await write(store, generation, discard=wanted[:1], by_hand=True)
        await store.drop_generation(NAME, generation.number)
        assert await store.discards(NAME) == wanted
        assert await store.discards("other") == []

    async def test_what_a_durable_store_keeps_survives_reopening(self, store: ReadStore, tmp_path: Path) -> None:
        """Rows, checkpoints, blocked keys, discards and numbers are there after closing and connecting anew."""
        if not store.durable:
            pytest.skip("this store says that it is not durable")
        blocked = BlockedKey(NAME, '["a"]', Position(1), "boom")
        discard = Discard(NAME, '["b"]', Position(2))
        generation = await write(
            store, await create(store, SEATS), upserts=[("a", 1)], block=[blocked], discard=[discard], by_hand=True
        )
        await create(store, SEATS, "second")
        await store.drop_generation("second", 1)
        await store.close()
        again = self.connect(tmp_path)
        await again.open()
        try:
            assert await again.generations() == [generation]
            assert await rows_of(again) == [("a", 1)]
            assert await again.discards(NAME) == [discard]
            async with again.snapshot() as snapshot:
                assert await snapshot.blocked(NAME) == [blocked]
            assert (await create(again, SEATS, "second")).number == 2
        finally:
            await again.close()

    # ── filters, order, pages ────────────────────────────────────────────────

    async def test_each_comparison_is_pythons(self, store: ReadStore) -> None:
        """For every kind and each pair of values the filters match as Python compares; None matches none of them."""
        for kind, values in SORTED.items():
            await build(store, one_column(kind, nullable=True), [*enumerate(values), (-1, None)], kind.value)
            async with store.snapshot() as snapshot:
                for bound in values:
                    for comparison, matches in _AS_PYTHON.items():
                        wanted = {value for value in values if matches(value, bound)}
                        found = await snapshot.find(
                            kind.value, (Filter("value", comparison, bound),), (Order("id"),), 100
                        )
                        assert {value for _, value in found} == wanted, (kind, comparison, bound)
                        counted = await snapshot.count(kind.value, (Filter("value", comparison, bound),))
                        assert counted == len(found)

    async def test_none_in_filters(self, store: ReadStore) -> None:
        """EQUAL None finds rows without a value, ONE_OF may name None, no other comparison matches with it."""
        table = one_column(ColumnKind.TEXT, nullable=True)
        await build(store, table, [(1, None), (2, "a"), (3, "b")])

        async def numbers(comparison: Comparison, value: Any) -> list[int]:
            return [row[0] for row in await rows_of(store, Filter("value", comparison, value), order=(Order("id"),))]

        assert await numbers(Comparison.EQUAL, None) == [1]
        assert await numbers(Comparison.ONE_OF, (None, "b")) == [1, 3]
        assert await numbers(Comparison.ONE_OF, ("a", "b", "b")) == [2, 3]
        assert await numbers(Comparison.STARTS_WITH, "") == [2, 3]
        for comparison in set(_AS_PYTHON) - {Comparison.EQUAL} | {Comparison.STARTS_WITH}:
            assert await numbers(comparison, None) == []

    async def test_one_of_every_kind(self, store: ReadStore) -> None:
        """ONE_OF finds what the tuple names, of every kind; an empty tuple finds nothing."""
        for kind, values in SORTED.items():
            await build(store, one_column(kind), list(enumerate(values)), kind.value)
            some = tuple(values[::2])
            found = await rows_of(
                store, Filter("value", Comparison.ONE_OF, some), order=(Order("id"),), name=kind.value
            )
            assert [value for _, value in found] == list(some)
            nothing = Filter("value", Comparison.ONE_OF, ())
            assert await rows_of(store, nothing, order=(Order("id"),), name=kind.value) == []

    async def test_starts_with_minds_case_and_the_last_code_points(self, store: ReadStore) -> None:
        """A prefix is compared letter by letter; wildcards mean nothing; the last letters there are do not overflow."""
        last = "\U0010ffff"
        texts = ["a", "ab", "aB", "Ab", "a%", "a_c", "b", "\ud7ff", "\ud7ffx", "\ue000", last, last + last, f"a{last}"]
        await build(store, one_column(ColumnKind.TEXT), list(enumerate(texts)))
        for prefix in ("", "a", "A", "a%", "a_", "\ud7ff", last, last * 2, last * 3, f"a{last}", "zz"):
            wanted = Filter("value", Comparison.STARTS_WITH, prefix)
            found = {value for _, value in await rows_of(store, wanted, order=(Order("id"),))}
            assert found == {text for text in texts if text.startswith(prefix)}, prefix

    async def test_every_filter_has_to_match(self, store: ReadStore) -> None:
        """Several filters, also on one column, are all demanded; the limit cuts after them."""
        await build(store, SEATS, [(f"c{n}", n) for n in range(10)])
        filters = (Filter("taken", Comparison.AT_LEAST, 3), Filter("taken", Comparison.LESS_THAN, 8))
        assert [taken for _, taken in await rows_of(store, *filters)] == [3, 4, 5, 6, 7]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, filters, BY_COURSE, 2) == [("c3", 3), ("c4", 4)]
            assert await snapshot.count(NAME, filters) == 5

    async def test_a_filter_value_that_no_row_can_have_is_an_invalid_message(self, store: ReadStore) -> None:
        """It comes from a caller, so that it is told which column and why."""
        await build(store, SEATS, [("a", 1)])
        for column, value in (("taken", 2**63), ("taken", "1"), ("course", "\ud800")):
            with pytest.raises(InvalidMessage, match=column):
                await rows_of(store, Filter(column, Comparison.EQUAL, value))
        with pytest.raises(InvalidMessage, match="taken"):
            await rows_of(store, Filter("taken", Comparison.ONE_OF, (1, 2**63)))

    async def test_pages_cover_everything_once(self, store: ReadStore) -> None:
        """Page after page, in every mix of directions, with ties and None: each row once, in the order of one find."""
        day = dt.date(2026, 1, 1)
        prices = [None, Decimal("-1"), Decimal("2.0"), Decimal("2.00"), Decimal("10"), None]
        rows = [(price, line, day, order) for price in prices for line in (1, 2) for order in "ab"]
        numbered = [(price, n, day, order) for n, (price, _, _, order) in enumerate(rows)]
        await build(store, LINES, numbered)
        for directions in range(8):
            down = [bool(directions >> bit & 1) for bit in range(3)]
            names = ("price", "order", "line")
            order = (*(Order(name, way) for name, way in zip(names, down, strict=True)), Order("day"))
            await self._pages_agree(store, order, 5, len(numbered))

    async def _pages_agree(self, store: ReadStore, order: Sequence[Order], size: int, total: int) -> None:
        index = {column.name: n for n, column in enumerate(LINES.columns)}
        async with store.snapshot() as snapshot:
            everything = await snapshot.find(NAME, (), order, 1_000)
            assert len(everything) == total
            pages: list[Row] = []
            after: list[Any] | None = None
            for _ in range(total):
                page = await snapshot.find(NAME, (), order, size, after)
                if not page:
                    break
                pages += page
                after = [page[-1][index[by.column]] for by in order]
        assert pages == everything, order

    async def test_pages_keep_the_filters(self, store: ReadStore) -> None:
        """`after` narrows what the filters match."""
        await build(store, SEATS, [(f"c{n}", n % 3) for n in range(9)])
        order = (Order("taken", descending=True), Order("course"))
        async with store.snapshot() as snapshot:
            filters = (Filter("taken", Comparison.LESS_THAN, 2),)
            found = await snapshot.find(NAME, filters, order, 3, (1, "c4"))
        assert found == [("c7", 1), ("c0", 0), ("c3", 0)]

    # ── search ───────────────────────────────────────────────────────────────

    async def test_search_finds_beginnings_of_words(self, store: ReadStore) -> None:
        """Every word of the text begins a word, in whichever column, without regard to case and accents."""
        rows: list[Row] = [
            ("1", 0, "Café au lait", "Warm drinks"),
            ("2", 0, "CAFETERIA", None),
            ("3", 0, "Decaf", "A café, warmed-up"),
            ("4", 0, "Ночь", "x86 cafe\u0301"),
        ]
        await build(store, ARTICLES, rows)
        async with store.snapshot() as snapshot:
            for text, wanted in (
                ("cafe", "1234"),
                ("CAFÉ", "1234"),
                ("cafe warm", "13"),
                ("warm cafe", "13"),
                ("caf caf", "1234"),
                ("cafet", "2"),
                ("lait drinks", "1"),
                ("ночь", "4"),
                ("x8", "4"),
                ("up", "3"),
                ("afe", ""),
                ("caf nothing", ""),
            ):
                found = await snapshot.search(NAME, text, 10)
                assert sorted(row[0] for row in found) == list(wanted), text

    async def test_search_text_is_never_a_query_language(self, store: ReadStore) -> None:
        """Signs and operators of any search syntax are words or nothing; a text without a word finds nothing."""
        await build(store, ARTICLES, [("1", 0, "salt AND pepper near title", "or NOT"), ("2", 0, "salt", None)])
        async with store.snapshot() as snapshot:
            for text in ("", " ", '"', "*", "-", "()", "^", "\0", "\ud800", "'; --", "\u0301"):
                assert await snapshot.search(NAME, text, 10) == [], text
            for text in ('"salt', "salt AND", "salt* AND pepper", "(salt NEAR)", "title:salt", "salt OR not", "salt\0and"):
                assert [row[0] for row in await snapshot.search(NAME, text, 10)] == ["1"], text
            many = " ".join(["salt"] * 1_000 + ["pepper"] * 1_000)
            assert [row[0] for row in await snapshot.search(NAME, many, 10)] == ["1"]

    async def test_search_has_the_best_first_and_ties_by_key(self, store: ReadStore) -> None:
        """Who names the word more often in as many words comes first; equals come by key; the limit cuts the worst."""
        rows: list[Row] = [(name, 0, title, None) for name, title in (
            ("d", "tea cup"), ("a", "tea cup"), ("z", "tea tea"), ("c", "cup cup"), ("b", "tea cup"), ("e", "jug jug")
        )]
        await build(store, ARTICLES, rows)
        async with store.snapshot() as snapshot:
            assert [row[0] for row in await snapshot.search(NAME, "tea", 10)] == ["z", "a", "b", "d"]
            assert [row[0] for row in await snapshot.search(NAME, "tea", 2)] == ["z", "a"]

    async def test_search_keeps_step_with_the_rows(self, store: ReadStore) -> None:
        """A changed, deleted or untouched text is found as it is now, and a snapshot finds what was."""
        rows: list[Row] = [("1", 0, "one", "old"), ("2", 0, "two", None), ("3", 0, "three", None)]
        generation = await build(store, ARTICLES, rows)
        async with store.snapshot() as before:
            changed: list[Row] = [("1", 0, "one", "new"), ("3", 5, "three", None)]
            await write(store, generation, upserts=changed, deletes=[("2",)])
            assert await before.search(NAME, "old", 10) == [rows[0]]
            assert await before.search(NAME, "two", 10) == [rows[1]]
        async with store.snapshot() as snapshot:
            for text, wanted in (("old", []), ("two", []), ("new", [changed[0]]), ("three", [changed[1]])):
                assert await snapshot.search(NAME, text, 10) == wanted, text

    # ── waiting, opening, closing ────────────────────────────────────────────

    async def test_a_write_wakes_who_waits_for_a_change(self, store: ReadStore) -> None:
        """Waiting since before a write returns at once; waiting since now returns with the next write."""
        generation = await create(store, SEATS)
        seen = await store.wait_for_change(0, 0)
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await write(store, generation, upserts=[("a", 1)])
        now = await waiting
        assert now != seen
        assert await store.wait_for_change(seen, WAIT_S_MAX) == now

    async def test_without_a_write_the_wait_ends_unchanged(self, store: ReadStore) -> None:
        """Past its time the wait returns the number it was given."""
        await build(store, SEATS, [("a", 1)])
        seen = await store.wait_for_change(0, 0)
        assert await store.wait_for_change(seen, 0.01) == seen

    async def test_a_closed_store_says_so(self, store: ReadStore) -> None:
        """Every method raises `StoreClosed` after closing, and who waits hears it too; closing twice is no error."""
        generation = await create(store, SEATS)
        seen = await store.wait_for_change(0, 0)
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await asyncio.wait([waiting], timeout=0)
        await store.close()
        await store.close()
        with pytest.raises(StoreClosed):
            await waiting
        await self._is_closed(store, generation)

    async def test_a_store_that_was_not_opened_says_so(self, tmp_path: Path) -> None:
        """Every method raises `StoreClosed` before opening."""
        await self._is_closed(self.connect(tmp_path / "other"), Generation(NAME, 1, "1", SEATS, True, place(0)))

    async def _is_closed(self, store: ReadStore, generation: Generation) -> None:
        for call in (
            store.generations(),
            store.create_generation(NAME, "1", SEATS, place(0), live=True),
            store.switch(NAME, 1),
            store.drop_generation(NAME, 1),
            store.write([SliceWrite(generation, place(1))]),
            store.discards(NAME),
            store.wait_for_change(0, 0),
        ):
            with pytest.raises(StoreClosed):
                await call
        with pytest.raises(StoreClosed):
            async with store.snapshot():
                pass
