"""Every process store of ours keeps the contract."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from diptych import Application
from diptych.adapters.connect import default_read_store
from diptych.adapters.memory.process_store import MemoryProcessStore
from diptych.adapters.postgres import process_store as postgres
from diptych.adapters.postgres.connection import parse_url
from diptych.adapters.postgres.deployment import migrate
from diptych.adapters.postgres.grants import role_name
from diptych.adapters.postgres.process_schema import PROCESS_MIGRATIONS
from diptych.adapters.sqlite import process_rows
from diptych.adapters.sqlite.process_store import SqliteProcessStore
from diptych.errors import ConfigurationError, NewerStore, NotGranted
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
    new_stores,
    run,
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


# ── stores of other versions ─────────────────────────────────────────────────


@asynccontextmanager
async def seen_through(url: str) -> AsyncGenerator[Application]:
    """An application that has its process see one transfer through to the deposit."""
    async with Application(banking(), store=url) as app:
        await app.execute(Request(transfer=TransferId("t1")), command_id="t1")
        await app.partition().process_worker.at_rest()
        yield app


@pytest.mark.anyio
async def test_newer_tables_in_a_file_are_refused_and_left_alone(tmp_path: Path) -> None:
    """The error has both versions; nothing is read or changed, and the code that made them goes on."""
    path = tmp_path / "events.db"

    def by_hand(statement: str) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(statement)
            connection.commit()

    async with seen_through(f"sqlite:{path}"):
        pass
    by_hand(f"UPDATE processes_format SET version = {process_rows.VERSION + 1}")
    store = SqliteProcessStore(str(path))
    for _ in range(2):
        with pytest.raises(NewerStore, match="the processes in") as refusal:
            await store.open()
        assert (refusal.value.found, refusal.value.known) == (process_rows.VERSION + 1, process_rows.VERSION)
    with pytest.raises(NewerStore):
        async with Application(banking(), store=f"sqlite:{path}", projecting=False):
            pass
    by_hand(f"UPDATE processes_format SET version = {process_rows.VERSION}")
    async with seen_through(f"sqlite:{path}") as app:
        assert [found.state["deposits"] for found in await app.processes.list()] == [1]


@pytest.mark.anyio
async def test_newer_tables_in_a_schema_are_refused_and_left_alone() -> None:
    """The error has both numbers; nothing is read, changed or migrated."""
    url = await new_stores()
    async with seen_through(url):
        pass
    table = parse_url(url).quoted_schema + ".migrations"
    await run(url, f"INSERT INTO {table} VALUES ('processes', 99, 'of tomorrow')")
    with pytest.raises(NewerStore) as refusal:
        await postgres.connect(url).open()
    assert (refusal.value.found, refusal.value.known) == (99, PROCESS_MIGRATIONS.newest)
    with pytest.raises(NewerStore):
        async with Application(banking(), store=url, projecting=False):
            pass
    with pytest.raises(NewerStore):
        await migrate(url, "event_store")
    await run(url, f"DELETE FROM {table} WHERE number = 99")
    async with seen_through(url) as app:
        assert [found.state["deposits"] for found in await app.processes.list()] == [1]


@pytest.mark.anyio
@pytest.mark.parametrize("projecting", [True, False])
async def test_a_schema_that_was_not_migrated_for_processes_says_so(*, projecting: bool) -> None:
    """That of an older Diptych has events and no processes: an application with processes names the remedy."""
    url = await new_stores()
    schema = parse_url(url).quoted_schema
    tables = ", ".join(f"{schema}.{table}" for table in ("processes", "process_instances", "process_outgoing"))
    await run(url, f"DROP TABLE {tables}", f"DELETE FROM {schema}.migrations WHERE store = 'processes'")
    with pytest.raises(ConfigurationError, match="run diptych migrate --store"):
        async with Application(banking(), store=url, projecting=projecting):
            pass
    assert [step.name for step in await migrate(url, "event_store")] == ["tables of processes"]
    async with seen_through(url) as app:
        assert [found.id for found in await app.processes.list()] == ["t1"]


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


@pytest.mark.anyio
async def test_a_reader_looks_at_processes_and_helps_nobody_on() -> None:
    """Who may only read lists instances; whoever helps one on appends, and needs the right to."""
    url = await granted()
    read_store = as_role(default_read_store(url), "projector")
    async with Application(banking(), store=url_as(url, WORKER), read_store=read_store) as app:
        await app.execute(Request(transfer=TransferId("t1")))
        await app.partition().process_worker.at_rest()
    store = postgres.connect(as_role(url, "reader"))
    await store.open()
    try:
        assert [found.id for found in await store.page("bank.Transferring", None, 10)] == ["t1"]
        assert (await store.count("bank.Transferring")).running == 1
        with pytest.raises(NotGranted, match="permission denied"):
            await store.create("bank.Other", (await store.processes())[0].checkpoint, "")
    finally:
        await store.close()
