"""What the PostgreSQL event store does on a server that is set otherwise than it needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import asyncpg
import pytest

from diptych.adapters.postgres.append_section import Batch, append_statement
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.adapters.postgres.event_store import PostgresEventStore, connect
from diptych.clock import SystemClock
from diptych.errors import StoreUnavailable
from diptych.event_store.event_store import Appended, Conflicting, Duplicate, Refused
from diptych.testing.contracts.event_store_case import commit, condition, event, expect, history_of, opened
from tests.postgres_server import by_hand, new_store, with_parameter

pytestmark = pytest.mark.anyio


@pytest.fixture
async def url() -> str:
    return await new_store()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresEventStore]:
    store = connect(url, SystemClock())
    async with opened(store):
        yield store


@pytest.fixture
async def shell(url: str) -> AsyncIterator[Link]:
    """A connection by hand that sees the store's schema."""
    async with by_hand(url) as link:
        await link.execute(f"SET search_path = {parse_url(url).schema}")
        yield link


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "synchronous_commit = off",
        "search_path = nowhere",
        "bytea_output = 'escape'",
        "TimeZone = 'Asia/Kathmandu'",
        "enable_indexscan = off",
    ],
)
@pytest.mark.parametrize("pooled", ["false", "true"])
async def test_settings_of_the_database_change_nothing(url: str, shell: Link, setting: str, pooled: str) -> None:
    """What an administrator has set as default for the database is overridden, in a pooler's connections too."""
    name = await shell.fetchval("SELECT current_database()")
    await shell.execute(f"ALTER DATABASE {name} SET {setting}")
    try:
        pooled_url = with_parameter(url, "pgbouncer", pooled)
        async with opened(connect(pooled_url, SystemClock())) as one, opened(connect(pooled_url, SystemClock())) as two:
            for number in range(3):
                decided = commit(event("A", "a"), conditions=[condition(number, tags={"a"})])
                expect(Appended, (await one.append([decided]))[0])
                expect(Conflicting, (await two.append([decided]))[0])
            assert len(await history_of(two)) == 3
    finally:
        await shell.execute(f"ALTER DATABASE {name} RESET {setting.partition(' ')[0]}")


def arguments_of(store: PostgresEventStore) -> list[object]:
    return store._call(Batch([commit(event())], [None], None), store._known.now, closely=False)[1]


async def test_the_section_makes_its_commit_durable(store: PostgresEventStore, shell: Link) -> None:
    """A transaction that was to commit without waiting for the disk waits for it all the same."""
    statement = append_statement(store._url.quoted_schema)
    await shell.execute("SET synchronous_commit = off")
    async with shell.transaction():
        await shell.execute(statement, *arguments_of(store))
        assert await shell.fetchval("SHOW synchronous_commit") == "on"
        assert await shell.fetchval("SHOW enable_seqscan") == "on"
    await shell.execute("SET synchronous_commit = remote_apply")
    async with shell.transaction():
        await shell.execute(statement, *arguments_of(store))
        assert await shell.fetchval("SHOW synchronous_commit") == "remote_apply"


@pytest.mark.parametrize("isolation", ["serializable", "repeatable_read"])
async def test_the_section_refuses_another_isolation(store: PostgresEventStore, shell: Link, isolation: str) -> None:
    """In a snapshot that was taken before the lock nothing can be judged: the section says so, and does nothing."""
    async with shell.transaction(isolation=isolation):  # type: ignore[arg-type]
        with pytest.raises(asyncpg.PostgresError, match="needs READ COMMITTED"):
            await shell.execute(append_statement(store._url.quoted_schema), *arguments_of(store))
    assert await history_of(store) == []


async def test_a_read_only_server_is_unavailable(url: str, shell: Link) -> None:
    """On a replica, or a database set read-only, reads answer and appends say what is wrong."""
    name = await shell.fetchval("SELECT current_database()")
    await shell.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        async with opened(connect(url, SystemClock())) as store:
            assert await history_of(store) == []
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.append([commit(event())])
    finally:
        await shell.execute("SET default_transaction_read_only = off")
        await shell.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


@pytest.mark.parametrize("pooled", ["false", "true"])
async def test_what_reads_cannot_write(url: str, pooled: str) -> None:
    """The server refuses a write on a connection for reading (G13)."""
    store = connect(with_parameter(url, "pgbouncer", pooled), SystemClock())
    async with opened(store):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await store._reading.rows(f"DELETE FROM {store._url.quoted_schema}.events RETURNING 1")


async def test_what_the_database_cannot_store_is_refused_alone(store: PostgresEventStore) -> None:
    """A name too long for an index refuses its commit, wherever it stands in the batch, and no other."""
    too_long = Random(1).randbytes(6_000).hex()
    results = await store.append(
        [
            commit(event("A"), command_id="a"),
            commit(event("Fine"), event(too_long), command_id="lost"),
            commit(event("B", "b"), conditions=[condition(0, tags={"b"})]),
            commit(event("C"), conditions=[condition(0, tags={"b"})]),
            commit(event(too_long[::-1])),
            commit(command_id="a"),
        ]
    )
    assert [type(result) for result in results] == [Appended, Refused, Appended, Conflicting, Refused, Duplicate]
    assert [recorded.type for recorded in await history_of(store)] == ["A", "B"]
    assert await store.outcome("lost") is None
