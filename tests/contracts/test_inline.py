"""Every event store of ours that folds rows with each append keeps the contract, which is proven on broken ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from diptych.adapters.connect import connect_read_store, default_read_store
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.event_store import connect as connect_memory
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.postgres.event_store import connect as connect_postgres
from diptych.adapters.sqlite import inline_rows as sqlite_inline_rows
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.clock import Clock, SystemClock
from diptych.errors import ConfigurationError
from diptych.event_store.event_store import EventStore
from diptych.read_side.inline_rows import Appending, InlineRows, at_once
from diptych.read_side.read_store import ReadStore
from diptych.testing.contracts.event_store_case import append_one, event
from diptych.testing.contracts.inline import Fold, InlineContract, count
from diptych.testing.contracts.read_store_cases import NAME, rows_of
from tests.postgres_server import as_role, by_hand, new_granted_stores, new_stores

pytestmark = pytest.mark.anyio


class MemoryInlineRows(InlineContract):
    shares_history = False

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        store = MemoryEventStore(clock)
        yield lambda: store

    def rows(self, store: EventStore) -> ReadStore:
        return MemoryReadStore()

    def elsewhere(self) -> ReadStore:
        return SqliteReadStore("elsewhere.db")


class TestMemory(MemoryInlineRows): ...


class TestMemoryBesideTables(MemoryInlineRows):
    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        store = connect_memory("memory:?own_tables=inline-contract", clock)
        yield lambda: store


class SqliteInlineRows(InlineContract):
    store_class: type[SqliteEventStore] = SqliteEventStore
    path = ""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        with TemporaryDirectory() as folder:
            self.path = str(Path(folder, "events.db"))
            yield lambda: self.store_class(self.path, clock)

    def rows(self, store: EventStore) -> ReadStore:
        return SqliteReadStore(self.path)

    def elsewhere(self) -> ReadStore:
        return SqliteReadStore(f"{self.path}.read.db")


class _SqlRows(InlineContract):
    """What a database with savepoints does beyond the contract."""

    async def test_what_a_fold_that_fails_has_written_is_taken_back(self) -> None:
        """The events are there."""
        async with self.both() as (store, rows, fold):

            async def write_and_fail(there: InlineRows, appending: Appending) -> None:
                await count(there, appending)
                raise ValueError("after its write")

            fold.work = write_and_fail
            await append_one(store, event("A"))
            assert await rows_of(rows) == []
            fold.work = count
            await append_one(store, event("A"))
            assert await rows_of(rows) == [("A", 2)]


class TestSqlite(SqliteInlineRows, _SqlRows): ...


class TestPostgres(_SqlRows):
    url = ""
    latest_url = ""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        self.url = TestPostgres.latest_url = await new_stores()
        yield lambda: connect_postgres(self.url, clock)

    def rows(self, store: EventStore) -> ReadStore:
        return connect_read_store(default_read_store(self.url))

    def elsewhere(self) -> ReadStore:
        return connect_read_store("postgresql://somebody@elsewhere/database?schema=diptych_read")


async def test_no_append_waits_for_who_moves_a_checkpoint() -> None:
    """On PostgreSQL: the rows are passed over, and the next append catches up."""
    async with TestPostgres().both() as (store, rows, fold):
        seen: list[int] = []

        async def look(there: InlineRows, appending: Appending) -> None:
            found = await there.generations([NAME])
            seen.append(len(found))
            if found:
                await count(there, appending)

        fold.work = look
        schema = rows.url.quoted_schema  # type: ignore[attr-defined]
        async with by_hand(TestPostgres.latest_url) as link, link.transaction():
            await link.execute(f"SELECT FROM {schema}.diptych_generations FOR UPDATE")
            await append_one(store, event("A"))
        await append_one(store, event("A"))
        assert seen == [0, 1]
        assert await rows_of(rows) == [("A", 2)]


async def test_a_user_who_may_not_write_the_rows_is_refused_when_it_opens() -> None:
    """On PostgreSQL, where each process has few rights, the one that appends has none on read models."""
    url = await new_granted_stores()
    store, rows = connect_postgres(as_role(url, "writer"), SystemClock()), connect_read_store(default_read_store(url))
    store.fold_inline(rows, Fold())
    with pytest.raises(ConfigurationError, match="make it a member of the role that projects"):
        await store.open()
    await store.close()


# ── broken ones ──────────────────────────────────────────────────────────────


class _FoldsLater(SqliteEventStore):
    """Folds in a transaction of its own, after that of the append; the first time, others have looked meanwhile."""

    folded = False

    async def append(self, commits, base=None):  # type: ignore[no-untyped-def]
        step, told = self._inline, list[Appending]()
        section: Any = self._section
        section._inline = lambda _, appending: told.append(appending)
        results = await super().append(commits, base)
        section._inline = step
        if not self.folded:
            self.folded = True
            for _ in range(2):  # the first may have read the head before
                Broken.looked.clear()
                await Broken.looked.wait()
        for appending in told:
            await self._writer.run(lambda connection, told=appending: step(connection, told), self._wake)  # type: ignore[misc]
        return results


class _Unguarded(SqliteEventStore):
    """Lets what the fold raises out."""

    def fold_inline(self, rows, fold):  # type: ignore[no-untyped-def]
        super().fold_inline(rows, fold)

        def step(connection, appending):  # type: ignore[no-untyped-def]
            there = sqlite_inline_rows._Rows(connection, self._inline._builds, self._events_between)  # type: ignore[union-attr]
            at_once(fold.fold(there, appending))

        self._inline, step._builds = step, self._inline._builds  # type: ignore[assignment,union-attr,attr-defined]


class _TakesAny(SqliteEventStore):
    def fold_inline(self, rows, fold):  # type: ignore[no-untyped-def]
        super().fold_inline(SqliteReadStore(self._path), fold)


class Broken(SqliteInlineRows):
    """A history in a store that breaks the contract."""

    looked = asyncio.Event()
    """Set by every snapshot of the rows."""

    def __init__(self, broken: type[SqliteEventStore]) -> None:
        self.store_class = broken

    def rows(self, store: EventStore) -> ReadStore:
        found = super().rows(store)
        snapshot = found.snapshot

        def counted() -> Any:
            Broken.looked.set()
            return snapshot()

        found.snapshot = counted  # type: ignore[method-assign]
        return found


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (_FoldsLater, "test_g8_no_reader_sees_events_without_their_rows"),
        (_Unguarded, "test_a_fold_that_fails_keeps_nobody_from_appending"),
        (_TakesAny, "test_rows_in_another_database_are_refused"),
    ],
)
async def test_the_contract_finds_out(broken: type[SqliteEventStore], test: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        await getattr(Broken(broken), test)()
