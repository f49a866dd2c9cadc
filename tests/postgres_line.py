"""A line between a store and its server, at which tests listen in, and which they cut."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from anyio.lowlevel import checkpoint

from diptych.adapters.postgres.connection import parse_url
from tests.postgres_server import by_hand

WAIT_S_MAX = 30.0
LOOKS = 10
"""Rounds of the event loop in which it reads what was written to it before."""

_END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Line:
    """A line to the server that can be made to swallow its answers, to stay when the server has gone, and be cut."""

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        self._query = parse_qs(parts.query)
        self._writers: list[asyncio.StreamWriter] = []
        self._parts = parts
        self._folder = folder
        self._goodbyes = asyncio.Semaphore(0)
        self._taken = 0
        self._stays = False
        self.swallows = False

    async def open(self) -> str:
        """The URL by which the line is taken."""
        self._server = await asyncio.start_unix_server(self._serve, self._folder / ".s.PGSQL.5432")
        dsn = parse_url(self._parts.geturl())
        user = self._parts.username or "postgres"
        return f"postgresql://{user}@{self._parts.path}?host={self._folder}&schema={dsn.schema}"

    async def close(self) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def say_goodbye(self) -> None:
        """Have the server end its connections, of which the other side hears the reason, and not yet the end."""
        self._stays = True
        async with by_hand(self._parts.geturl()) as link:
            taken = self._taken
            await link.execute(_END_ALL, timeout=WAIT_S_MAX)
        for _ in range(taken):
            await asyncio.wait_for(self._goodbyes.acquire(), WAIT_S_MAX)
        await _heard()
        self._stays = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if "host" in self._query:
            there = await asyncio.open_unix_connection(f"{self._query['host'][0]}/.s.PGSQL.{self._parts.port or 5432}")
        else:
            there = await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)
        self._writers += [writer, there[1]]
        self._taken += 1
        try:
            await asyncio.gather(self._forward(reader, there[1]), self._forward(there[0], writer, answers=True))
        finally:
            self._taken -= 1

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        try:
            while chunk := await reader.read(65_536):
                if not (answers and self.swallows):
                    writer.write(chunk)
        except ConnectionError:
            pass  # cut
        if answers and self._stays:
            self._goodbyes.release()
        else:
            writer.transport.abort()


async def _heard() -> None:
    """Wait until what was written to a socket of this event loop was read."""
    for _ in range(LOOKS):
        await checkpoint()
