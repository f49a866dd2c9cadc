"""A PostgreSQL that says no, under load: read-only, a replica, out of time, out of disk; and that is back again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest

from diptych.adapters.postgres import read_catalog
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.adapters.postgres.read_store import connect
from diptych.errors import OutcomeUnknown, StoreUnavailable
from diptych.read_side import leases
from diptych.testing.contracts.read_store_cases import SEATS, create
from tests.faults.incrementing import COMMANDS, COUNTERS, loaded, prepared, schemas
from tests.postgres_cluster import Server, cluster
from tests.postgres_server import by_hand, in_thread, new_read_store, run, with_parameter

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="servers are killed by signals here"),
]


async def cut(server: Server) -> None:
    """End every connection but one's own."""
    await run(server.url(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'diptych'")


# ── read-only ────────────────────────────────────────────────────────────────


async def test_a_read_only_database_refuses_commands_and_answers_queries() -> None:
    """Nothing is done, and said so; once it may be written to again it is, also by connections made meanwhile."""
    with cluster() as server:
        url = await prepared(server.url())
        async with loaded(url) as load, load.failing():
            await run(url, "ALTER DATABASE postgres SET default_transaction_read_only = on")
            await cut(server)
            await load.failed()
            await load.refused(StoreUnavailable, r"nothing was done.*read-only.*again")
            await load.still_answers()
            async with by_hand(url) as link:
                await link.execute("SET default_transaction_read_only = off")
                await link.execute("ALTER DATABASE postgres RESET default_transaction_read_only")


class Noticed(logging.Handler):
    """Whether something was logged since it was last looked for."""

    def __init__(self, logger: str) -> None:
        super().__init__()
        self._event = asyncio.Event()
        self._logger = logging.getLogger(logger)

    def emit(self, record: logging.LogRecord) -> None:
        self._event.set()

    async def next(self) -> None:
        self._event.clear()
        self._logger.addHandler(self)
        try:
            await self._event.wait()
        finally:
            self._logger.removeHandler(self)


async def test_on_a_hot_standby_queries_are_answered_and_work_goes_on_once_it_is_promoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands fail with nothing done, workers wait; nobody has to be restarted."""
    monkeypatch.setattr(leases, "LEASE_RENEW_S", 0.1)
    monkeypatch.setattr(leases, "LEASE_LOOK_S", 0.05)
    with cluster() as primary:
        await prepared(primary.url())
        standby = primary.standby(primary.data.with_name("second"))
        await primary.confirm_with_standby()
        url = with_parameter(primary.url(standby), "target_session_attrs", "any")
        async with loaded(url) as load, load.failing():
            await asyncio.to_thread(primary.kill)
            await load.failed()
            await load.refused(StoreUnavailable, r"nothing was done.*read-only.*again")
            await load.still_answers()
            await Noticed("diptych.leases").next()
            await asyncio.to_thread(standby.promote)


# ── out of time ──────────────────────────────────────────────────────────────


@asynccontextmanager
async def history_locked(url: str) -> AsyncGenerator[Link]:
    """While a transaction by hand holds the rows that every append takes last, of each history one."""
    async with by_hand(url) as link, link.transaction():
        await link.execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL transaction_timeout = 0; SET LOCAL lock_timeout = 0"
        )
        for each in (url, *schemas(url).values()):
            await link.execute(f"SELECT 1 FROM {parse_url(each).quoted_schema}.history FOR UPDATE")
        yield link


@pytest.mark.parametrize(
    ("setting", "failure"), [("statement_timeout", StoreUnavailable), ("transaction_timeout", OutcomeUnknown)]
)
@pytest.mark.parametrize("pooled", ["false", "true"])
async def test_what_takes_longer_than_the_server_allows_is_not_done(
    setting: str, failure: type[Exception], pooled: str
) -> None:
    """A command that waits for somebody's lock past the server's limit says so; one cuts the connection as well."""
    with cluster() as server:
        url = with_parameter(await prepared(server.url()), "pgbouncer", pooled)
        async with loaded(url) as load, load.failing():
            await server.set(setting, "'500ms'")
            async with history_locked(url):
                await load.failed()
                await load.refused(failure, "again")
                await load.still_answers()
            await server.set(setting)


async def test_a_lock_timeout_of_the_server_does_not_end_an_append() -> None:
    """Its own limit holds, which is long enough for others to be done."""
    with cluster() as server:
        url = await prepared(server.url())
        async with loaded(url) as load:
            await server.set("lock_timeout", "'1ms'")
            async with history_locked(url) as link:
                waiting = (
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND clock_timestamp() - query_start > interval '50 ms'"
                )
                while await link.fetchval(waiting) < 1 + len(COUNTERS):
                    await link.execute("SELECT pg_stat_clear_snapshot()")
            await load.acknowledged(COMMANDS)
            assert not [calls.failures for calls in load.both if calls.failures]


async def test_a_transaction_that_stood_still_for_too_long_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stalls in the middle of a write hears so when it goes on; nothing of it was done."""
    monkeypatch.setattr(read_catalog, "TRANSACTION_IDLE_S_MAX", 0.05)
    url = await new_read_store()
    store = connect(url)
    await store.open()

    async def gone(pid: int) -> None:
        async with by_hand(url) as look:
            while await look.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
                pass

    async def stalls(link: Link) -> None:
        in_thread(gone(link.get_server_pid()))  # the loop stands still meanwhile
        await link.execute("SELECT 1")

    with pytest.raises(StoreUnavailable, match="closed"):
        await store._transaction(stalls, durably=True)
    await create(store, SEATS)
    await store.close()


# ── out of disk ──────────────────────────────────────────────────────────────


@contextmanager
def small_disk(megabytes: int) -> Generator[Path]:
    """A file system of that size; the test is skipped where nobody may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="diptych-disk-"))
    folder.chmod(0o755)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=777", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], check=False, capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path) -> Path:
    """A file that leaves no room for any other; the server takes some meanwhile, so the last blocks come one by one."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        free = os.statvfs(disk)
        block = bytes(free.f_frsize)
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        file.seek(0, os.SEEK_END)
        while True:  # until the disk is full
            file.write(block)
    return filler


async def use_up_log(server: Server) -> None:
    """Go on to the next segment of the log until there is no room for one, which ends the server."""
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        while True:
            await run(server.url(), "SELECT pg_switch_wal()")


@pytest.mark.skipif(sys.platform != "linux", reason="a small file system is made as Linux does it")
@pytest.mark.parametrize("full", ["tables", "log"])
async def test_a_full_disk_loses_nothing(full: str) -> None:
    """Full of tables, commands fail with nothing done; where the log does not fit, the server ends, and comes back."""
    with small_disk(48) as disk, cluster(**{full: disk / "of-server"}) as server:
        async with loaded(await prepared(server.url())) as load, load.failing():
            filler = fill(disk)
            if full == "log":
                await use_up_log(server)
            await load.failed()
            if full == "tables":
                for calls in load.both:  # another command might find room in a table
                    assert any(re.search(r"nothing was done: its disk is full.*again", told) for told in calls.told)
                await load.still_answers()
            filler.unlink()
            if full == "log":
                server.kill()
                await asyncio.to_thread(server.start)
