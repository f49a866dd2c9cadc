"""How a schema in PostgreSQL comes to be, and what a store says of one that it does not know; and what URLs mean."""

from __future__ import annotations

import asyncio

import pytest

from diptych.adapters.connect import connect_event_store
from diptych.adapters.postgres.connection import HOSTS_MAX, parse_url
from diptych.adapters.postgres.deployment import migrate, migration_sql
from diptych.adapters.postgres.event_schema import EVENT_STORE_MIGRATIONS
from diptych.adapters.postgres.event_store import connect
from diptych.adapters.postgres.process_schema import PROCESS_MIGRATIONS
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, NewerStore
from diptych.testing.contracts.event_store_case import append_one, event, history_of, opened
from tests.postgres_server import new_database, new_store, run, with_parameter

pytestmark = pytest.mark.anyio

WAIT_S = 20.0
"""How long a test waits for what has to happen."""


# ── migrations ───────────────────────────────────────────────────────────────


async def test_a_schema_that_was_not_migrated_says_so() -> None:
    """Opening names the command; a password in the URL is not repeated."""
    database = await new_database()
    with pytest.raises(ConfigurationError, match="run diptych migrate --store 'postgresql:") as raised:
        await connect(database, SystemClock()).open()
    assert "schema diptych" in str(raised.value)
    assert await migrate(database, "event_store")
    async with opened(connect(database, SystemClock())) as store:
        assert await history_of(store) == []


async def test_a_newer_schema_is_left_alone() -> None:
    """What a newer Diptych has migrated is neither opened nor migrated."""
    url = await new_store()
    later = f"INSERT INTO {parse_url(url).quoted_schema}.migrations VALUES ('event store', 99, 'later')"
    await run(url, later)
    with pytest.raises(NewerStore) as raised:
        await connect(url, SystemClock()).open()
    assert raised.value.found == 99
    with pytest.raises(NewerStore):
        await migrate(url, "event_store")


async def test_migrating_again_changes_nothing() -> None:
    """The second time nothing is missing, and the history is as it was."""
    url = await new_store()
    async with opened(connect(url, SystemClock())) as store:
        await append_one(store, event("A"))
        assert await migrate(url, "event_store") == []
        assert len(await history_of(store)) == 1


async def test_migrating_at_the_same_time_is_done_once() -> None:
    """Of several that migrate one new database at once, one does each step, and all are content."""
    database = await new_database()
    done = await asyncio.gather(*(migrate(database, "event_store") for _ in range(5)))
    each = [(step.number, step.name) for steps in done for step in steps]
    assert len(each) == len(set(each)) == len(EVENT_STORE_MIGRATIONS.steps) + len(PROCESS_MIGRATIONS.steps)
    async with opened(connect(database, SystemClock())) as store:
        await append_one(store, event("A"))


async def test_the_printed_migrations_make_the_same_schema() -> None:
    """The script for psql makes a store that opens, and leaves nothing for migrate to do."""
    database = with_parameter(await new_database(), "schema", "printed")
    await run(database, migration_sql(database, "event_store"))
    assert await migrate(database, "event_store") == []
    async with opened(connect(database, SystemClock())) as store:
        await append_one(store, event("A"))


# ── URLs and loops ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://h/d?schema=",
        'postgresql://h/d?schema=a"b',
        "postgresql://h/d?schema=pg_mine",
        f"postgresql://h/d?schema={'a' * 41}",
        "postgresql://h/d?pgbouncer=maybe",
        "postgresql://h:port/d",
    ],
)
def test_a_url_that_cannot_be_read_is_refused(wrong: str) -> None:
    """A schema's name that needs escaping, or a value that means nothing, is a ConfigurationError."""
    with pytest.raises(ConfigurationError):
        connect_event_store(wrong, SystemClock())


def test_a_url_is_shown_without_its_password() -> None:
    """Neither the password before the host nor one among the parameters is shown."""
    url = parse_url("postgres://me:secret@h:5433/shop?schema=s&password=hidden&sslmode=require")
    assert url.shown == "postgresql://me@h:5433/shop?schema=s&sslmode=require"
    assert url.dsns[0] == "postgresql://me:secret@h:5433/shop?password=hidden&sslmode=require"
    assert (url.schema, url.pooled) == ("s", False)


@pytest.mark.parametrize(
    ("asked", "wanted"), [("", "primary"), ("&target_session_attrs=any", "any"), ("&target_session_attrs=", "")]
)
def test_a_url_names_several_hosts(asked: str, wanted: str) -> None:
    """Each is tried with the same user, password and parameters; shown are all of them, without the password."""
    url = parse_url(f"postgresql://me:se%40cret@h:5433,[::1]:5434,i/shop?sslmode=require{asked}")
    assert url.dsns == tuple(
        f"postgresql://me:se%40cret@{host}/shop?sslmode=require" for host in ("h:5433", "[::1]:5434", "i")
    )
    assert url.attributes == wanted
    assert url.shown == f"postgresql://me@h:5433,[::1]:5434,i/shop?sslmode=require{asked}"


def test_the_hosts_of_a_url_are_bounded() -> None:
    """Each of them may have to be waited for."""
    hosts = ",".join(f"h{number}" for number in range(HOSTS_MAX))
    assert len(parse_url(f"postgresql://{hosts}/d").dsns) == HOSTS_MAX
    with pytest.raises(ConfigurationError, match="HOSTS_MAX"):
        parse_url(f"postgresql://{hosts},one-more/d")


@pytest.mark.parametrize("listed", ["host=a,b", "host=a,b&port=1,2", "host=a&port=1,2", "host=%2Frun%2Fa%2C%2Frun%2Fb"])
def test_hosts_are_not_listed_in_a_parameter(listed: str) -> None:
    """They would be bounded by nothing, and the first taken, primary or not; the error says how they are written."""
    with pytest.raises(ConfigurationError, match="several as //user@host:port,host:port/database"):
        parse_url(f"postgresql://me@/d?{listed}")


def test_a_folder_of_sockets_is_a_host() -> None:
    """With the port of the socket in it."""
    (dsn,) = parse_url("postgresql://me@/d?host=/run/pg&port=5433").dsns
    assert dsn == "postgresql://me@/d?host=%2Frun%2Fpg&port=5433"


def test_one_store_lives_in_several_loops_in_turn() -> None:
    """Opened in one event loop and closed, it works in the next; waiting included."""
    store = connect(asyncio.run(new_store()), SystemClock())

    async def use() -> int:
        async with opened(store):
            waiting = asyncio.create_task(store.wait_for_events((await store.head()).position, WAIT_S))
            await append_one(store, event())
            assert await waiting
            return len(await history_of(store))

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://me:hunter2@h/d",
        "Postgresql://h/d?password=hunter2",
        "postgres//me:hunter2@h/d",
        "postgresql://me:hunter2/x@h/d",
        "postgresql://me:12/hunter2@h/d",
        "postgresql://me:hunter2#x@h/d",
        "postgresql://me:12?hunter2@h/d",
        "postgresql://me:hunter2[@h/d",
        "postgresql://me:hunter2\u2100@h/d",
        "postgresql://me:hunter@2hunter2@h/d",
        "postgresql://me:hunter2@h:1,other:hunter2@i:2/d",
        "postgresql://me:hunter2@h:1,/d",
        "postgresql://me:hunter2@,h/d",
        "postgresql://me:hunter2@h:1,i:/d",
        "postgresql://me:hunter2@h:1,i:x/d",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    """A misspelt scheme, or a password that is not escaped, repeats nothing of it: neither the error nor its cause."""
    with pytest.raises(ConfigurationError) as refused:
        connect_event_store(url, SystemClock())
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("name", ["sslpassword", "PASSWORD"])
def test_no_password_among_the_parameters_is_shown(name: str) -> None:
    """The one of a key's file is a password too."""
    assert parse_url(f"postgresql://me@h/d?{name}=hidden&sslmode=require").shown == (
        "postgresql://me@h/d?sslmode=require"
    )
