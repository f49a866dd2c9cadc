"""The contract of read stores, for every adapter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from diptych.adapters.duckdb import read_store as duckdb
from diptych.adapters.memory import read_store as memory
from diptych.adapters.opensearch import read_store as opensearch
from diptych.adapters.postgres import read_store as postgres
from diptych.adapters.sqlite import read_store as sqlite
from diptych.adapters.valkey import read_store as valkey
from diptych.errors import Overloaded
from diptych.read_side import change_count, snapshot_turns
from diptych.testing.contracts.read_store import WAIT_S_MAX, ReadStoreContract
from diptych.testing.contracts.read_store_cases import NAME, SEATS, create, shown_generation
from tests import valkey_server
from tests.contracts.read_store_sql import opened
from tests.opensearch_server import new_read_store as new_opensearch
from tests.postgres_pooler import pooled
from tests.postgres_server import as_role, in_thread, new_granted_read_store, new_read_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from diptych.read_side.read_store import ReadStore


class TestMemoryReadStore(ReadStoreContract):
    def connect(self, folder: Path) -> ReadStore:
        return memory.connect("memory:")


class TestSqliteReadStore(ReadStoreContract):
    leases_are_locks = True

    def connect(self, folder: Path) -> ReadStore:
        return sqlite.connect(f"sqlite:{folder / 'read.db'}")


class TestDuckdbReadStore(ReadStoreContract):
    def connect(self, folder: Path) -> ReadStore:
        return duckdb.connect(f"duckdb:{folder / 'read.duckdb'}")


class TestPostgresReadStore(ReadStoreContract):
    @pytest.fixture(autouse=True)
    def make_schema(self) -> None:
        self.url = in_thread(new_read_store())

    def connect(self, folder: Path) -> ReadStore:
        return postgres.connect(self.url)


class TestPostgresReadStoreBehindAPooler(TestPostgresReadStore):
    """With `pgbouncer=true` no statement is prepared for later, nothing is set, and nobody listens."""

    def connect(self, folder: Path) -> ReadStore:
        return postgres.connect(pooled(self.url))


class TestPostgresReadStoreAsProjector(TestPostgresReadStore):
    """A user in the projector's role does all that a read store has to."""

    @pytest.fixture(autouse=True)
    def make_schema(self) -> None:
        self.url = as_role(in_thread(new_granted_read_store()), "projector")


class TestValkeyReadStore(ReadStoreContract):
    @pytest.fixture(autouse=True)
    def make_prefix(self) -> None:
        self.url = valkey_server.new_read_store()

    def connect(self, folder: Path) -> ReadStore:
        return valkey.connect(self.url)


class TestOpenSearchReadStore(ReadStoreContract):
    @pytest.fixture(autouse=True)
    def make_prefix(self) -> None:
        self.url = new_opensearch()

    def connect(self, folder: Path) -> ReadStore:
        return opensearch.connect(self.url)


# ── limits that all of them share ────────────────────────────────────────────


@pytest.fixture(params=["memory", "sqlite", "postgres", "duckdb", "opensearch", "valkey"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ReadStore]:
    """One that takes one snapshot at a time, one caller that waits for it, and one that waits for a change."""
    monkeypatch.setattr(snapshot_turns, "SNAPSHOTS_MAX", 1)
    monkeypatch.setattr(snapshot_turns, "SNAPSHOTS_WAITING_MAX", 1)
    monkeypatch.setattr(change_count, "CHANGE_WAITERS_MAX", 1)
    url = await new_read_store() if request.param == "postgres" else ""
    made: dict[str, Callable[[], ReadStore]] = {
        "memory": lambda: memory.connect("memory:"),
        "duckdb": lambda: duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}"),
        "sqlite": lambda: sqlite.connect(f"sqlite:{tmp_path / 'read.db'}"),
        "postgres": lambda: postgres.connect(url),
        "valkey": lambda: valkey.connect(valkey_server.new_read_store()),
        "opensearch": lambda: opensearch.connect(new_opensearch()),
    }
    async with opened(made[request.param]()) as store:
        yield store


async def number(store: ReadStore) -> int:
    async with store.snapshot() as snapshot:
        found = await shown_generation(snapshot, NAME)
    assert found is not None
    return found.number


@pytest.mark.anyio
async def test_snapshots_and_those_who_wait_for_one_are_limited(
    store: ReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One open, one waiting: the next is told so at once; the waiting one has its turn, or is told past its time."""
    await create(store, SEATS)
    async with store.snapshot():
        waiting = asyncio.create_task(number(store))
        await asyncio.wait([waiting], timeout=0)
        with pytest.raises(Overloaded, match="SNAPSHOTS_WAITING_MAX=1"):
            await number(store)
    assert await asyncio.wait_for(waiting, WAIT_S_MAX) == 1
    monkeypatch.setattr(snapshot_turns, "SNAPSHOT_WAIT_S_MAX", 0.01)
    async with store.snapshot():
        with pytest.raises(Overloaded, match="SNAPSHOT_WAIT_S_MAX"):
            await number(store)
    assert await number(store) == 1


@pytest.mark.anyio
async def test_those_who_wait_for_a_change_are_limited(store: ReadStore) -> None:
    """The next is told so at once, and the one who waits is woken all the same."""
    seen = store.changes
    waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
    await asyncio.wait([waiting], timeout=0)
    with pytest.raises(Overloaded, match="CHANGE_WAITERS_MAX=1"):
        await store.wait_for_change(seen, WAIT_S_MAX)
    await create(store, SEATS)
    assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen
