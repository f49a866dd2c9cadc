"""What the processes of one schema of PostgreSQL agree on: read by all, written by calls that wait for each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from diptych.adapters.postgres.connection import DRIVER_ERRORS, Connections, PostgresUrl, failure

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Register"]


class Register:
    """One register of one schema."""

    def __init__(
        self,
        url: PostgresUrl,
        fetch: Callable[..., Awaitable[list[asyncpg.Record]]],
        writing: Connections,
        lock_wait_s: float,
    ) -> None:
        """Read with `fetch`, write with connections that append, and wait that long for others."""
        self._url = url
        self._schema = url.quoted_schema
        self._fetch = fetch
        self._writing = writing
        self._lock_wait_ms = max(1, round(lock_wait_s * 1_000))

    async def _write(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """What a call answers whose last argument is how long it waits for the lock, in milliseconds."""
        try:
            async with self._writing.connection() as link:
                return await self._writing.rows_on(link, statement, [*arguments, self._lock_wait_ms])
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error) or error) from error
