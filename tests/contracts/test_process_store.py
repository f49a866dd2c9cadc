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
from diptych.adapters.postgres.grants import Role, role_name
from diptych.adapters.postgres.process_schema import PROCESS_MIGRATIONS
from diptych.adapters.sqlite import process_rows
from diptych.adapters.sqlite.process_store import SqliteProcessStore
from diptych.errors import ConfigurationError, NewerStore, NotGranted
from diptych.process_managers.process_store import ProcessStore
from diptych.testing.contracts.process_store import ProcessStoreContract
from diptych.testing.contracts.process_store_case import item
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
from tests.reminders import NoteId, Remind, reminders
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
async def test_older_tables_in_a_file_are_upgraded(tmp_path: Path) -> None:
    """What they hold stays, and is helped on as what comes later is: a step that is blocked has failed once."""
    path = tmp_path / "events.db"
    async with seen_through(f"sqlite:{path}"):
        pass
    with closing(sqlite3.connect(path)) as connection:
        for table, column in OF_VERSION_3:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("UPDATE process_instances SET blocked = 2, failure = 'no'")
        connection.execute("UPDATE processes_format SET version = 2")
        connection.commit()
    await check_upgraded(f"sqlite:{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM processes_format").fetchone() == (process_rows.VERSION,)


@pytest.mark.anyio
async def test_an_older_schema_is_migrated() -> None:
    """Likewise."""
    url = await new_stores()
    async with seen_through(url):
        pass
    schema = parse_url(url).quoted_schema
    await run(
        url,
        *(f"ALTER TABLE {schema}.{table} DROP COLUMN {column}" for table, column in OF_VERSION_3),
        f"UPDATE {schema}.process_instances SET blocked = 2, failure = 'no'",
        f"DELETE FROM {schema}.migrations WHERE store = 'processes' AND number > 7",
    )
    with pytest.raises(ConfigurationError, match="run diptych migrate --store"):
        await postgres.connect(url).open()
    assert [step.name for step in await migrate(url, "event_store")] == ["attempts and stack traces of processes"]
    await check_upgraded(url)


OF_VERSION_3 = [("process_instances", "attempts"), ("process_instances", "trace"), ("process_outgoing", "trace")]
"""Tables, and columns that they had not before."""


async def check_upgraded(url: str) -> None:
    """Whether what the tables of before had is there: an instance that is blocked, and a timeout that waits."""
    async with Application(banking(), store=url, projecting=False) as app:
        (step,) = (await app.parked.list()).items
        assert (step.kind, step.key, step.position, step.attempts, step.error) == ("step", "t1", 2, 1, "no")
        shown = await app.processes.show("Transferring", "t1")
        assert [each.name for each in shown.timeouts] == ["bank.DepositOverdue"]


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
    assert [step.name for step in await migrate(url, "event_store")] == [
        "tables of processes",
        "commands in time",
        "attempts and stack traces of processes",
    ]
    async with seen_through(url) as app:
        assert [found.id for found in await app.processes.list()] == ["t1"]


AS_IT_WAS = """
    CREATE TABLE process_outgoing (
        id TEXT PRIMARY KEY, process TEXT NOT NULL, instance TEXT NOT NULL, kind TEXT NOT NULL,
        position INTEGER NOT NULL, ordinal INTEGER NOT NULL, due INTEGER NOT NULL, type TEXT NOT NULL,
        version INTEGER NOT NULL, data BLOB NOT NULL, tags BLOB NOT NULL, metadata BLOB NOT NULL,
        attempts INTEGER NOT NULL, failure TEXT NOT NULL, dead INTEGER NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO process_outgoing SELECT {columns} FROM now_outgoing;
    DROP TABLE now_outgoing;
    CREATE INDEX process_outgoing_of ON process_outgoing (process, instance, kind, position, ordinal, dead);
    CREATE INDEX process_outgoing_due ON process_outgoing (process, due, position, ordinal) WHERE dead = 0;
    CREATE INDEX process_outgoing_dead ON process_outgoing (process, instance) WHERE dead = 1;
    UPDATE processes_format SET version = 1;
"""
"""Makes the tables of version 1 again, of those of now."""
COLUMNS_AS_THEY_WERE = (
    "id, process, instance, kind, position, ordinal, due, type, version, data, tags, metadata, attempts, failure, dead"
)


@pytest.mark.anyio
async def test_a_file_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    """What was to go out is there as it was, once; and the tables are those that a new file has."""
    path, new = tmp_path / "events.db", tmp_path / "new.db"
    given = [item("a", 2, attempts=3, failure="no"), item("b", 1, 1, "timeout", tags=("x:y",), due_us=9)]
    dead = item("c", dead=True)
    store = SqliteProcessStore(str(path))
    await store.open()
    await store.add("bank.Transferring", [*given, dead])
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE process_outgoing RENAME TO now_outgoing")
        for name in ("of", "due", "dead"):
            connection.execute(f"DROP INDEX process_outgoing_{name}")
        for column in ("attempts", "trace"):
            connection.execute(f"ALTER TABLE process_instances DROP COLUMN {column}")
        connection.executescript(AS_IT_WAS.format(columns=COLUMNS_AS_THEY_WERE))
    for _ in range(2):
        store = SqliteProcessStore(str(path))
        await store.open()
        assert await store.due("bank.Transferring", 9, 10) == [given[0], given[1]]
        assert await store.dead("bank.Transferring", None, 10) == [dead]
        await store.close()
    fresh = SqliteProcessStore(str(new))
    await fresh.open()
    await fresh.close()
    assert schema_of(path) == schema_of(new)


def schema_of(path: Path) -> list[tuple[str, str]]:
    """The tables and indexes of processes in a file, with what made them."""
    with closing(sqlite3.connect(path)) as connection:
        statement = "SELECT name, sql FROM sqlite_schema WHERE name LIKE 'process%' ORDER BY name"
        return [(name, " ".join(sql.replace('"', "").split())) for name, sql in connection.execute(statement)]


@pytest.mark.anyio
async def test_a_schema_of_before_is_migrated() -> None:
    """What was to go out is there as it was; without the migration, the remedy is named."""
    url = await new_stores()
    schema = parse_url(url).quoted_schema
    store = postgres.connect(url)
    await store.open()
    given = [item("a", 2, attempts=3, failure="no"), item("b", 1, 1, "timeout", tags=("x:y",), due_us=9)]
    await store.add("bank.Transferring", given)
    await store.close()
    out = f"{schema}.process_outgoing"
    await run(
        url,
        f"ALTER TABLE {out} DROP CONSTRAINT process_outgoing_pkey, ADD PRIMARY KEY (id)",
        f"DROP INDEX {schema}.process_outgoing_due, {schema}.process_outgoing_dead",
        f"ALTER TABLE {out} DROP COLUMN priority, DROP COLUMN expires, DROP COLUMN begun",
        f"CREATE INDEX process_outgoing_due ON {out} (process, due, position, ordinal) WHERE NOT dead",
        f"CREATE INDEX process_outgoing_dead ON {out} (process, instance) WHERE dead",
        *(f"ALTER TABLE {schema}.{table} DROP COLUMN {column}" for table, column in OF_VERSION_3),
        f"DELETE FROM {schema}.migrations WHERE store = 'processes' AND number > 1",
    )
    with pytest.raises(ConfigurationError, match="run diptych migrate --store"):
        await store.open()
    assert [step.number for step in await migrate(url, "event_store")] == [7, 8]
    await store.open()
    try:
        assert await store.due("bank.Transferring", 9, 10) == given
    finally:
        await store.close()


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


@pytest.mark.anyio
async def test_who_may_not_execute_leaves_what_is_scheduled_to_others() -> None:
    """A writer accepts and cancels. A writer or a projector alone starts and executes none; it says why."""
    url = await granted()
    read_store = as_role(default_read_store(url), "projector")
    notes = reminders(slow=False)
    async with Application(notes, store=as_role(url, "writer"), read_store=read_store, projecting=False) as app:
        for command_id in ("a", "b"):
            await app.schedule(Remind(note=NoteId(command_id)), command_id=command_id)
        await app.scheduled.cancel("b")
    alone: list[tuple[Role, str]] = [("writer", "processes"), ("projector", "outcomes")]
    for role, refused in alone:
        async with Application(notes, store=as_role(url, role), read_store=read_store) as app:
            found = (await app.status()).scheduled
            assert found.waiting == 1
            assert f"permission denied for table {refused}" in found.stopped
            assert (await app.health()).ready
    async with Application(notes, store=url_as(url, WORKER), read_store=read_store) as app:
        await app.partition().process_worker.at_rest()
        assert [each and each.state for each in [await app.scheduled.status(one) for one in "ab"]] == [
            "done",
            "rejected",
        ]
