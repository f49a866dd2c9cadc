"""A PostgreSQL that hangs: whoever waits for it hears so within the limits, and who leaves waits for nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres import connection, event_store
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.adapters.postgres.event_store import connect
from diptych.adapters.postgres.read_store import connect as connect_rows
from diptych.clock import SystemClock
from diptych.errors import OutcomeUnknown, StoreUnavailable
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import append_one, commit, event, opened
from diptych.testing.contracts.inline import Fold
from tests.faults.test_postgres_event_store import until_blocked
from tests.postgres_line import Line
from tests.postgres_server import by_hand, new_stores

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name == "nt", reason="the line is a Unix socket")]

WAIT_S = 20.0
"""How long a test waits for what has to happen, and for ever is longer."""
LIMIT_S = 0.2


@pytest.fixture
async def direct() -> str:
    """The URL of an event store, beside which there is a read store."""
    return await new_stores()


@pytest.fixture
async def line(direct: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Line]:
    """To that server; what hung goes on when a test has ended."""
    line = Line(direct, tmp_path_factory.mktemp("l"))
    yield line
    await line.close()


@asynccontextmanager
async def locked(url: str, statement: str) -> AsyncIterator[Link]:
    """While a transaction by hand holds a lock."""
    async with by_hand(url) as link, link.transaction():
        await link.execute(f"SET search_path = {parse_url(url).schema}")
        await link.execute(statement)
        yield link


async def test_who_is_cancelled_waits_for_no_rollback(direct: str, line: Line) -> None:
    """Also not while a new connection is looked at, in a transaction that a server that hangs never rolls back."""
    rows = connect_rows(default_read_store(await line.open()))
    await rows.open()

    async def ask() -> None:
        async with rows.snapshot():
            raise AssertionError("unreachable: its connection is looked at")

    async with rows.snapshot(), locked(default_read_store(direct), "LOCK TABLE migrations") as shell:
        asking = asyncio.create_task(ask())
        await until_blocked(shell)
        line.swallows = True
        asking.cancel()
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([asking])
        assert asking.cancelled()
        line.swallows = False
    line.cut()
    await rows.close()


async def test_an_append_that_folds_ends_within_its_limit(
    direct: str, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was done is not known; nobody waits for what it did to be rolled back."""
    monkeypatch.setattr(event_store, "APPEND_S_MAX", LIMIT_S)
    url = await line.open()
    store = connect(url, SystemClock())
    store.fold_inline(connect_rows(default_read_store(url)), Fold())
    async with opened(store), locked(direct, "SELECT * FROM history FOR UPDATE") as shell:
        appending = asyncio.create_task(store.append([commit(event("Happened"), command_id="c-1")]))
        await until_blocked(shell)
        line.swallows = True
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(OutcomeUnknown, match="c-1"):
                await appending
        line.swallows = False
        line.cut()


async def test_every_statement_has_a_limit(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that say none."""
    monkeypatch.setattr(connection, "UNANSWERED_S_MAX", LIMIT_S)
    async with opened(connect(await line.open(), SystemClock())) as store:
        await append_one(store, event("Happened"))
        line.swallows = True
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(StoreUnavailable):
                await store.prune("Happened", Position(0), Position(1), 1)
        line.swallows = False
        line.cut()
