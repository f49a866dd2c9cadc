"""Workers that fold into OpenSearch and are killed at a request: the next one goes on, and nothing shows of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from diptych import Application
from diptych.adapters.connect import connect_read_store
from diptych.read_side.read_store import Order, Row
from diptych.testing import InMemoryApplication
from tests.faults.counting import CounterId, Increment, counting
from tests.opensearch_server import new_read_store

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

ROOT = Path(__file__).parents[2]
KILLS = 4
FOLDING = range(18, 36)
"""Requests at which a worker is killed: it begins to fold, is in the midst of it, or has just come to the end."""
EVENTS = 6
"""Appended before each kill."""
WAIT_S = 60.0
WORKER = """
import asyncio, sys
from diptych import Application
from diptych.read_side import leases
from tests.faults.counting import counting

leases.LEASE_S, leases.LEASE_RENEW_S = 0.5, 0.2  # so that the next one need not wait long for what this one holds

async def main(store, read_store):
    async with Application(counting, store=store, read_store=read_store) as app:
        await app.projected()
        print("projected", flush=True)
        sys.stdin.readline()

asyncio.run(main(*sys.argv[1:]))
"""


class Proxy:
    """The way of a worker to the server, on which it is killed."""

    def __init__(self, url: str) -> None:
        self._there = urlsplit(url)
        self.requests = 0
        self.fatal: int | None = None
        self.worker: subprocess.Popen[str] | None = None
        self.killed = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[str]:
        """The URL by which it is taken."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield self._there._replace(netloc=f"127.0.0.1:{port}").geturl()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._there.hostname, self._there.port)
        await asyncio.gather(self._forward(reader, there[1], counting=True), self._forward(there[0], writer))

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counting: bool = False
    ) -> None:
        try:
            while chunk := await reader.read(1 << 20):
                self.requests += counting and b" HTTP/1.1\r\n" in chunk
                if counting and self.requests == self.fatal and self.worker is not None:
                    self.worker.kill()
                    self.killed.set()
                    if self.requests % 2:  # the server may have had the fatal one, or not
                        break
                writer.write(chunk)
        except ConnectionError:
            pass  # the worker has ended
        writer.close()


@asynccontextmanager
async def working(store: str, read_store: str, proxy: Proxy, fatal: int | None) -> AsyncGenerator[asyncio.Task[str]]:
    """A worker in a process of its own; what it says, empty when it was killed before."""
    proxy.requests, proxy.fatal, proxy.killed = 0, fatal, asyncio.Event()
    proxy.worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, store, read_store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        cwd=ROOT,
        text=True,
    )
    with proxy.worker as process:
        assert process.stdout is not None
        try:
            yield asyncio.create_task(asyncio.to_thread(process.stdout.readline))
        finally:
            process.kill()


async def test_a_worker_that_is_killed_at_any_request_leaves_the_rows_of_its_checkpoint(tmp_path: Path) -> None:
    """Rows are those of their checkpoint after each kill, and in the end those of the store in memory."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    store, url = f"sqlite:{tmp_path}/events.db", new_read_store()
    commands = [Increment(counter=CounterId(chance.choice("abc"))) for _ in range((KILLS + 1) * EVENTS)]
    proxy, position = Proxy(url), 0
    async with proxy.open() as way:
        for kill in range(KILLS + 1):
            await append(store, commands[kill * EVENTS : (kill + 1) * EVENTS])
            fatal = chance.choice(FOLDING) if kill < KILLS else None
            async with working(store, way, proxy, fatal) as said, asyncio.timeout(WAIT_S):
                killed = asyncio.create_task(proxy.killed.wait())
                await asyncio.wait([said, killed], return_when=asyncio.FIRST_COMPLETED)
                killed.cancel()
                if fatal is None:
                    assert await said == "projected\n"
            position, rows = await shown(url)
            print(f"killed at {fatal}: rows are at {position}")
            assert rows == await in_memory(commands[:position])
        assert position == len(commands)


async def append(store: str, commands: list[Increment]) -> None:
    """Where nothing is folded."""
    async with Application(counting, store=store, read_store="memory:", projecting=False) as app:
        for command in commands:
            await app.execute(command)


async def shown(url: str) -> tuple[int, list[Row]]:
    """Where the read model is, and its rows."""
    store = connect_read_store(url)
    await store.open()
    try:
        async with store.snapshot() as snapshot:
            slices = await snapshot.slices("counting.Count")
            if not slices:
                return 0, []
            rows = await snapshot.find("counting.Count", (), (Order("counter"),), 100)
            return slices[0].checkpoint.position, rows
    finally:
        await store.close()


async def in_memory(commands: list[Increment]) -> list[Row]:
    """The rows after so many events, as the store in memory has them."""
    async with InMemoryApplication(counting) as app:
        for command in commands:
            await app.execute(command)
        async with app.partition().read_store.snapshot() as snapshot:
            return await snapshot.find("counting.Count", (), (Order("counter"),), 100)
