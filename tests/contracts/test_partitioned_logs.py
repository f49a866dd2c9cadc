"""The contracts hold of a partition, too: beside it in its database, or folder, another one is written all the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from diptych.adapters.memory import read_store as memory
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.postgres import event_store as postgres_events
from diptych.adapters.postgres import read_store as postgres
from diptych.adapters.sqlite import read_store as sqlite
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.clock import Clock, SystemClock
from diptych.event_store.event_store import Appended, EventStore
from diptych.read_side.read_store import ReadStore, SliceWrite, Written
from diptych.testing.contracts.event_store import EventStoreContract
from diptych.testing.contracts.event_store_case import commit, condition, event, opened
from diptych.testing.contracts.read_store import ReadStoreContract
from diptych.testing.contracts.read_store_cases import SEATS, create, place
from tests.postgres_server import in_thread, new_read_store, new_store

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def busy(step: Callable[[int], Awaitable[None]]) -> AsyncIterator[None]:
    """Take one step after the other meanwhile, the first one before anything else."""
    await step(1)

    async def go_on() -> None:
        number = 1
        while True:
            number += 1
            await step(number)
            await asyncio.sleep(0)  # noqa: TID251 — let the others go on, also where a step never waits

    going_on = asyncio.ensure_future(go_on())
    try:
        yield
    finally:
        going_on.cancel()
        (ended,) = await asyncio.gather(going_on, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


@asynccontextmanager
async def beside_events(neighbour: EventStore) -> AsyncIterator[None]:
    """Events of the types, tags and command ids that the contract uses come into the history of a neighbour."""
    async with opened(neighbour):

        async def append(number: int) -> None:
            stands = [condition(number - 1, types=["A"], tags=["a"])]
            (result,) = await neighbour.append([commit(event("A", "a"), conditions=stands, command_id=f"c-{number}")])
            assert isinstance(result, Appended), result
            assert result.place.position == number

        async with busy(append):
            yield


@asynccontextmanager
async def beside_rows(neighbour: ReadStore) -> AsyncIterator[None]:
    """Rows of the table that the contract uses come into the read store of a neighbour."""
    await neighbour.open()
    try:
        generation = await create(neighbour, SEATS)

        async def write(number: int) -> None:
            nonlocal generation
            (result,) = await neighbour.write([SliceWrite(generation, place(number))])
            assert isinstance(result, Written), result
            generation = result.generation

        async with busy(write):
            yield
    finally:
        await neighbour.close()


# ── event stores ─────────────────────────────────────────────────────────────


class TestMemoryPartition(EventStoreContract):
    shares_history = False

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        store = MemoryEventStore(clock)
        async with beside_events(MemoryEventStore(SystemClock())):
            yield lambda: store


class TestSqlitePartition(EventStoreContract):
    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        with TemporaryDirectory() as folder:
            async with beside_events(SqliteEventStore(str(Path(folder, "other.db")), SystemClock())):
                yield lambda: SqliteEventStore(str(Path(folder, "events.db")), clock)


class TestPostgresPartition(EventStoreContract):
    """In one database, in schemas of their own."""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        url = await new_store()
        async with beside_events(postgres_events.connect(await new_store(), SystemClock())):
            yield lambda: postgres_events.connect(url, clock)


# ── read stores ──────────────────────────────────────────────────────────────


class TestMemoryReadPartition(ReadStoreContract):
    @pytest.fixture(autouse=True)
    async def neighbour(self) -> AsyncIterator[None]:
        async with beside_rows(memory.connect("memory:")):
            yield

    def connect(self, folder: Path) -> ReadStore:
        return memory.connect("memory:")


class TestSqliteReadPartition(ReadStoreContract):
    leases_are_locks = True

    @pytest.fixture(autouse=True)
    async def neighbour(self, tmp_path: Path) -> AsyncIterator[None]:
        async with beside_rows(sqlite.connect(f"sqlite:{tmp_path / 'other.db'}")):
            yield

    def connect(self, folder: Path) -> ReadStore:
        return sqlite.connect(f"sqlite:{folder / 'read.db'}")


class TestPostgresReadPartition(ReadStoreContract):
    """In one database, in schemas of their own."""

    @pytest.fixture(autouse=True)
    async def neighbour(self) -> AsyncIterator[None]:
        self.url = in_thread(new_read_store())
        async with beside_rows(postgres.connect(in_thread(new_read_store()))):
            yield

    def connect(self, folder: Path) -> ReadStore:
        return postgres.connect(self.url)
