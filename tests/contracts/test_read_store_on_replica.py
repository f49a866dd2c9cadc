"""The contract of read stores with every snapshot taken on a replica, once that has replayed what was written."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from diptych.adapters.postgres.connection import parse_url
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.adapters.postgres.replica import Replica
from diptych.errors import StoreUnavailable
from diptych.testing.contracts.read_store import ReadStoreContract
from diptych.testing.contracts.read_store_cases import NAME, SEATS, build
from tests.postgres_server import in_thread, new_read_store, with_parameter
from tests.postgres_standby import SKIPPED, Standby, the_standby

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from diptych.event_store.position import Place, Position
    from diptych.read_side.read_store import ReadSnapshot, ReadStore

pytestmark = pytest.mark.skipif(bool(SKIPPED), reason=SKIPPED)


async def no_history(position: Position) -> Place | None:
    """What the contract writes is of a history that is nowhere: only strict queries ask for it."""
    raise StoreUnavailable(f"no history to find {position} in")


class OnReplica(PostgresReadStore):
    """Writes on the primary, takes snapshots on the replica."""

    def __init__(self, url: str, standby: Standby) -> None:
        super().__init__(parse_url(url))
        schema = url.rpartition("schema=")[2]
        self._standby = standby
        self.replica = Replica(parse_url(with_parameter(standby.url_of(url), "schema", schema)), no_history)

    async def open(self) -> None:
        await super().open()
        self.replica.open(await self.server_state())

    async def close(self) -> None:
        await self.replica.close()
        await super().close()

    def snapshot(self) -> AbstractAsyncContextManager[ReadSnapshot]:  # type: ignore[override]
        super().snapshot()  # refused where it is not open
        return self._caught_up()

    @asynccontextmanager
    async def _caught_up(self) -> AsyncGenerator[ReadSnapshot]:
        await self._standby.caught_up()
        async with self.replica.snapshot(strict=False) as snapshot:
            assert await snapshot.connection.fetchval("SELECT pg_is_in_recovery()")
            yield snapshot


class TestReadStoreOnReplica(ReadStoreContract):
    @pytest.fixture(autouse=True)
    def make_schema(self) -> None:
        self.standby = the_standby()
        self.url = in_thread(new_read_store())

    def connect(self, folder: Path) -> ReadStore:
        return OnReplica(self.url, self.standby)


@pytest.mark.anyio
async def test_a_replica_answers_on_while_the_history_cannot_be_asked() -> None:
    """That nobody can tell whether its last checkpoint is of the history speaks against no replica."""
    standby = the_standby()
    store = OnReplica(await new_read_store(), standby)
    await store.open()
    try:
        generation = await build(store, SEATS, [("a", 1)])
        assert generation.checkpoint.position
        await standby.caught_up()
        assert await store.replica.look(None) is None
        assert store.replica.left_out == ""
        async with store.replica.snapshot(strict=True) as snapshot:
            with pytest.raises(StoreUnavailable, match="cannot be known now") as unknown:
                await snapshot.slices(NAME)
        assert not store.replica.fails(unknown.value)
    finally:
        await store.close()
