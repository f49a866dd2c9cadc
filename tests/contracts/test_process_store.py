"""Every process store of ours keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from diptych import Application
from diptych.adapters.connect import default_read_store
from diptych.adapters.memory.process_store import MemoryProcessStore
from diptych.adapters.postgres import process_store as postgres
from diptych.adapters.postgres.grants import role_name
from diptych.adapters.sqlite.process_store import SqliteProcessStore
from diptych.errors import NotGranted
from diptych.process_managers.process_store import ProcessStore
from diptych.testing.contracts.process_store import ProcessStoreContract
from tests.postgres_pooler import pooled
from tests.postgres_server import (
    ROLE_PREFIX,
    as_role,
    by_hand,
    make_login,
    new_granted_store,
    new_granted_stores,
    new_store,
    url_as,
)
from tests.transferring import Request, TransferId, banking


@pytest.mark.anyio
class TestMemoryProcessStore(ProcessStoreContract):
    shares_place = False

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
        store = MemoryProcessStore()
        yield lambda: store


@pytest.mark.anyio
class TestSqliteProcessStore(ProcessStoreContract):
    leases_are_locks = True

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
        with TemporaryDirectory() as folder:
            yield lambda: SqliteProcessStore(str(Path(folder, "events.db")))


@pytest.mark.anyio
class TestPostgresProcessStore(ProcessStoreContract):
    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
        url = await new_store()
        yield lambda: postgres.connect(url)


@pytest.mark.anyio
class TestPostgresProcessStoreBehindAPooler(ProcessStoreContract):
    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
        url = pooled(await new_store())
        yield lambda: postgres.connect(url)


WORKER = f"{ROLE_PREFIX}_the_process_worker"


async def granted() -> str:
    """The URL of new stores in which the roles do their part; with a user in the writer's and the projector's."""
    url = await new_granted_stores()
    async with by_hand(url) as link:
        await make_login(link, WORKER, role_name(ROLE_PREFIX, "writer"), role_name(ROLE_PREFIX, "projector"))
    return url


@pytest.mark.anyio
class TestPostgresProcessStoreAsWorker(ProcessStoreContract):
    """A user in the projector's role does all that a worker does with processes."""

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
        url = as_role(await new_granted_store(), "projector")
        yield lambda: postgres.connect(url)


@pytest.mark.anyio
async def test_a_worker_is_a_writer_and_a_projector() -> None:
    """With one of the roles alone an application with processes does not start, and says what is refused."""
    url = await granted()
    read_store = as_role(default_read_store(url), "projector")
    with pytest.raises(NotGranted, match="permission denied for table processes"):
        async with Application(banking(), store=as_role(url, "writer"), read_store=read_store):
            pass
    async with Application(banking(), store=url_as(url, WORKER), read_store=read_store) as app:
        await app.execute(Request(transfer=TransferId("t1")))
        await app.partition().process_worker.at_rest()
        assert [found.state["deposits"] for found in await app.processes.list()] == [1]
    async with Application(banking(), store=as_role(url, "writer"), read_store=read_store, projecting=False) as app:
        assert [found.id for found in await app.processes.list()] == ["t1"]
        await app.processes.close("Transferring", "t1", reason="by phone")
