"""Every event store of ours keeps the contract, in six lines each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.clock import Clock
from diptych.event_store.event_store import EventStore
from diptych.testing.contracts.event_store import EventStoreContract


@pytest.mark.anyio
class TestMemoryEventStore(EventStoreContract):
    shares_history = False

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        store = MemoryEventStore(clock)
        yield lambda: store


@pytest.mark.anyio
class TestSqliteEventStore(EventStoreContract):
    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        with TemporaryDirectory() as folder:
            yield lambda: SqliteEventStore(str(Path(folder, "events.db")), clock)
