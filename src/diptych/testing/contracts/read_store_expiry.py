"""The part of the read stores' contract that is about rows that expire (rule 40)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import msgspec
import pytest

from diptych.read_side.read_store import (
    Column,
    ColumnKind,
    Comparison,
    Fenced,
    Filter,
    Key,
    Order,
    ReadStore,
    Row,
    SliceWrite,
    Table,
)
from diptych.testing.contracts.read_store_cases import (
    NAME,
    SEATS,
    SORTED,
    build,
    create,
    place,
    rows_of,
    stored_generation,
    write,
)

__all__ = ["ExpiryContract"]

_SESSIONS = Table(
    "web_sessions",
    (
        Column("id", ColumnKind.TEXT),
        Column("until", ColumnKind.DATETIME, nullable=True),
        Column("words", ColumnKind.TEXT, searchable=True),
    ),
    key=("id",),
    expires="until",
)
_NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
_BY_ID = (Order("id"),)


def _at(minutes: int) -> dt.datetime:
    return _NOON + dt.timedelta(minutes=minutes)


def _row(name: str, minutes: int | None, words: str = "tea") -> Row:
    return name, None if minutes is None else _at(minutes), words


async def _expired(store: ReadStore, minutes: int, limit: int = 100, number: int | None = None) -> list[Key]:
    async with store.snapshot() as snapshot:
        return await snapshot.expired(NAME, _at(minutes), limit, number)


def _keys(names: str) -> list[Key]:
    return [(name,) for name in names]


@pytest.mark.anyio
class ExpiryContract:
    """What expires and when; what is left out is for the caller to say. Its tests take an empty, open `store`."""

    async def test_expired_rows_are_found_by_time(self, store: ReadStore) -> None:
        """At the moment or before it, the earliest first, ties by key, up to the limit; asking changes nothing."""
        ends: Sequence[tuple[str, int | None]] = [("c", 5), ("z", None), ("a", 5), ("e", 1), ("b", 9), ("d", 10)]
        await build(store, _SESSIONS, [_row(name, end) for name, end in ends])
        for minutes, found in ((0, ""), (1, "e"), (4, "e"), (5, "eac"), (9, "eacb"), (10, "eacbd"), (99, "eacbd")):
            assert await _expired(store, minutes) == _keys(found), minutes
            assert await _expired(store, minutes) == _keys(found), minutes
        assert await _expired(store, 99, limit=2) == _keys("ea")
        async with store.snapshot() as snapshot:
            assert await snapshot.expired(NAME, _at(1) - dt.timedelta(microseconds=1), 10) == []

    async def test_keys_of_every_kind_expire(self, store: ReadStore) -> None:
        """They come as they were written, so that a write can delete them."""
        for kind, values in SORTED.items():
            columns = (Column("key", kind), Column("until", ColumnKind.DATETIME))
            table = Table(f"expiring_{kind.value}", columns, key=("key",), expires="until")
            generation = await build(store, table, [(value, _at(0)) for value in values], kind.value)
            async with store.snapshot() as snapshot:
                found = await snapshot.expired(kind.value, _at(0), 1_000)
            assert sorted(found) == [(value,) for value in sorted(values)]
            assert [repr(key) for (key,) in found if kind is ColumnKind.DECIMAL] in ([], list(map(repr, values)))
            await write(store, generation, deletes=found)
            assert await rows_of(store, order=(Order("key"),), name=kind.value) == []

    async def test_where_nothing_expires_nothing_has(self, store: ReadStore) -> None:
        """A table without an expiry has no expired rows."""
        await build(store, SEATS, [("a", 1)])
        assert await _expired(store, 99) == []

    async def test_what_expires_follows_the_rows(self, store: ReadStore) -> None:
        """Put off, put forward, lifted, put back, deleted, written again: the rows as they are now count, once."""
        generation = await build(store, _SESSIONS, [_row(name, 5) for name in "abcdefg"])
        changed = [_row("a", 50), _row("b", 1), _row("c", None), _row("d", 50), _row("f", 5, "new")]
        generation = await write(store, generation, upserts=changed, deletes=_keys("eg"))
        assert await _expired(store, 5) == _keys("bf")
        generation = await write(store, generation, upserts=[_row("d", 5), _row("c", 3), _row("e", 4)])
        assert await _expired(store, 5) == _keys("bcedf")
        assert await _expired(store, 99) == _keys("bcedfa")
        await write(store, generation, deletes=_keys("abcdefg"))
        assert await _expired(store, 99) == []

    async def test_a_snapshot_shows_what_had_expired(self, store: ReadStore) -> None:
        """As the rows were at its first read at the latest, whatever is written then."""
        generation = await build(store, _SESSIONS, [_row("a", 1), _row("b", 2), _row("c", 9)])
        async with store.snapshot() as snapshot:
            assert len(await snapshot.slices(NAME)) == 1
            generation = await write(store, generation, upserts=[_row("c", 0), _row("d", 1), _row("a", 3)])
            generation = await write(store, generation, deletes=_keys("b"))
            assert await snapshot.expired(NAME, _at(5), 10) == _keys("ab")
            assert await snapshot.expired(NAME, _at(5), 1) == _keys("a")
            assert await snapshot.expired(NAME, _at(9), 10) == _keys("abc")
        assert await _expired(store, 5) == _keys("cda")

    async def test_generations_expire_on_their_own(self, store: ReadStore) -> None:
        """One that is built beside is asked by its number."""
        await build(store, _SESSIONS, [_row("a", 1)])
        second = await create(store, _SESSIONS, live=False)
        await write(store, second, upserts=[_row("b", 1)])
        assert await _expired(store, 5) == _keys("a")
        assert await _expired(store, 5, number=second.number) == _keys("b")

    async def test_expired_rows_are_shown_unless_they_are_filtered(self, store: ReadStore) -> None:
        """Without a filter every read shows them; more than, or None, leaves them out, before the limit counts."""
        rows = [_row("a", 1), _row("b", 5), _row("c", None), _row("d", 6), _row("e", 2, "coffee")]
        await build(store, _SESSIONS, rows)
        later = Filter("until", Comparison.MORE_THAN_OR_NONE, _at(5))
        async with store.snapshot() as snapshot:
            assert len(await snapshot.get_many(NAME, _keys("abcde"))) == 5
            assert await snapshot.find(NAME, (), _BY_ID, 10) == rows
            assert await snapshot.count(NAME, ()) == 5
            assert len(await snapshot.search(NAME, "tea", 10)) == 4
            assert await snapshot.find(NAME, [later], _BY_ID, 1) == rows[2:3]
            assert await snapshot.find(NAME, [later], _BY_ID, 10, ["c"]) == rows[3:4]
            assert await snapshot.find(NAME, [later, Filter("id", Comparison.EQUAL, "b")], _BY_ID, 10) == []
            assert await snapshot.count(NAME, [later]) == 2
            assert await snapshot.search(NAME, "tea", 1, [later]) == rows[2:3]
            assert await snapshot.search(NAME, "coffee", 10, [later]) == []

    async def test_the_time_of_the_checkpoint_is_kept(self, store: ReadStore) -> None:
        """It changes with the rows, stays where a write says nothing, and not at all where one is fenced."""
        old = await create(store, _SESSIONS)
        assert old.recorded_at is None
        written = await write(store, old, recorded_at=_at(1))
        assert written == msgspec.structs.replace(old, checkpoint=place(1), recorded_at=_at(1))
        assert await stored_generation(store) == written
        assert await store.generations() == [written]
        assert await store.write([SliceWrite(old, place(9), recorded_at=_at(9))]) == [Fenced()]
        assert await stored_generation(store) == written
        written = await write(store, written, by_hand=True)
        assert written.recorded_at == _at(1)
        assert await stored_generation(store) == written
