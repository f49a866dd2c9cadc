"""`diptych copy` as a process that is killed, stopped, or loses the server in the middle: run again, it goes on."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from diptych.adapters.connect import connect_event_store
from diptych.adapters.postgres import restoring
from diptych.clock import SystemClock
from diptych.errors import HistoryDiverged, StoreUnavailable
from diptych.event_store.copying import compare, copied_up_to
from diptych.event_store.event_store import EventStore, HistoryPart, StoredType
from diptych.testing.contracts.event_store_case import commit, event, opened
from diptych.testing.contracts.event_store_copies import whole
from tests.cli_project import Outcome, Project, project_in
from tests.faults.counting import Count, CountOf, Increment, TotalOf
from tests.faults.failing_over import increments
from tests.faults.incrementing import COUNTERS, divided
from tests.postgres_cluster import Server, cluster, migrated, psutil
from tests.postgres_server import by_hand, new_store, new_stores, run
from tests.unit.test_copying import quietly

pytestmark = pytest.mark.anyio

SOURCE = "sqlite:source.db"
EVENTS = 9_000
"""Several times the limit of a page."""
STOP_AT = 5_000
"""The event at which the target stops."""
GATE = 20_241_130
"""The advisory lock that it stops at."""
WAITS = f"locktype = 'advisory' AND objid = {GATE} AND NOT granted"
"""Who waits at the gate."""
MOVED = 600
"""Events of a partition, of which a copy stops at the last."""
EXIT_WAIT_S = 60.0
"""A process that is still there has failed."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


@asynccontextmanager
async def opened_at(url: str) -> AsyncIterator[EventStore]:
    async with opened(connect_event_store(url, SystemClock())) as store:
        yield store


async def fill() -> None:
    """A history to copy, with an outcome for each event."""
    async with opened_at(SOURCE) as source:
        await source.register_types([StoredType("Happened", 1, ("a",))])
        for first in range(0, EVENTS, 500):
            await source.append(
                [commit(event("Happened", f"a:{n % 700}"), command_id=f"c-{n}") for n in range(first, first + 500)]
            )


@asynccontextmanager
async def gated(target: str, stop_at: int = STOP_AT) -> AsyncIterator[None]:
    """While in the block, no event gets past the gate into the target."""
    schema = target.rpartition("schema=")[2]
    await run(
        target,
        f"""CREATE FUNCTION "{schema}".stop() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
            PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NEW; END $$""",
        f"""CREATE TRIGGER stop BEFORE INSERT ON "{schema}".events FOR EACH ROW
            WHEN (NEW.position = {stop_at}) EXECUTE FUNCTION "{schema}".stop()""",
    )
    async with by_hand(target) as link:
        await link.execute(f"SELECT pg_advisory_lock({GATE})")
        yield
    await run(target, f'DROP TRIGGER stop ON "{schema}".events')


async def at_the_gate(process: subprocess.Popen[str], target: str) -> str:
    """Wait until the process has come to the gate, in the middle of a transaction; what it has said on stderr."""
    assert process.stderr is not None
    told = ""
    while "copied up to position" not in told:
        line = await asyncio.to_thread(process.stderr.readline)
        assert line, told
        told += line
    async with by_hand(target) as link:
        while not await link.fetchval(f"SELECT count(*) FROM pg_locks WHERE {WAITS}"):
            assert process.poll() is None
    return told


async def ended(process: subprocess.Popen[str], told: str) -> Outcome:
    out, err = await asyncio.to_thread(process.communicate, timeout=EXIT_WAIT_S)
    return Outcome(process.returncode, out, told + err)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_a_copy_that_was_stopped_goes_on(project: Project, number: signal.Signals) -> None:
    """What is in the target is a part of the history; run again, the copy ends as if it had never been stopped."""
    await fill()
    target = await new_store()
    async with gated(target):
        with project.start("copy", "--from", SOURCE, "--to", target, "--verbose") as process:
            try:
                told = await at_the_gate(process, target)
                process.send_signal(number)
                stopped = await ended(process, told)
            finally:
                process.kill()
    assert stopped.code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert stopped.out == ""
    assert ("run the same again, and it goes on" in stopped.err) == (number != signal.SIGKILL)
    assert "Traceback" not in stopped.err
    async with opened_at(SOURCE) as source, opened_at(target) as copy:
        head = await copied_up_to(source, copy)
        assert 0 < head.position < STOP_AT
        assert (await compare(source, copy, head, quietly)).source.events == head.position
    again = await asyncio.to_thread(project.run, "copy", "--from", SOURCE, "--to", target, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["copied_events"] == EVENTS - head.position
    async with opened_at(SOURCE) as source, opened_at(target) as copy:
        assert await whole(copy) == await whole(source)


async def test_a_copy_whose_server_goes_away_says_so(project: Project) -> None:
    """The connection is cut in the middle of a transaction: one line, exit code 1, and run again it goes on."""
    await fill()
    target = await new_store()
    async with gated(target):
        with project.start("copy", "--from", SOURCE, "--to", target, "--verbose") as process:
            try:
                told = await at_the_gate(process, target)
                await run(target, f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {WAITS}")
                stopped = await ended(process, told)
            finally:
                process.kill()
    assert stopped.code == 1
    assert "terminating connection due to administrator command" in stopped.err
    assert "run the same again, and it goes on" in stopped.err
    again = await asyncio.to_thread(project.run, "copy", "--from", SOURCE, "--to", target)
    assert again.code == 0, again.err


# ── a partition ──────────────────────────────────────────────────────────────


async def test_a_partition_is_moved_by_a_copy_that_was_killed(project: Project) -> None:
    """Half of it is taken for no partition, and nothing is put into it; all of it is, with its tokens and rows."""
    one, other, _ = COUNTERS
    here = {one: "sqlite:one.db", other: "sqlite:other.db", "*": "sqlite:across.db"}
    there = {**here, one: await new_stores()}
    async with divided(here) as app:
        receipts = await increments(app, 1, MOVED, [one])
        receipts |= await increments(app, MOVED + 1, MOVED + 3, [other])
        await app.projected()
        seen = await app.answer(TotalOf(name="all"))
    copy = ("copy", "--from", here[one], "--to", there[one])
    async with gated(there[one], MOVED):
        with project.start(*copy, "--verbose") as process:
            try:
                await at_the_gate(process, there[one])
                process.kill()
                await asyncio.to_thread(process.communicate, timeout=EXIT_WAIT_S)
            finally:
                process.kill()
    with pytest.raises(HistoryDiverged) as refusal:
        await divided(there).open()
    assert refusal.value.__notes__ == ["It was opening the partition '*'."]
    again = await asyncio.to_thread(project.run, *copy)
    assert again.code == 0, again.err
    async with divided(there) as app:
        assert (await increments(app, 1, MOVED, [one])) == {n: receipts[n] for n in range(1, MOVED + 1)}
        last = await app.execute(Increment(counter=one))
        assert last.position == MOVED + 1
        row = await app.query(CountOf(counter=one), after=last, wait_s=EXIT_WAIT_S)
        assert row == Count(counter=one, value=MOVED + 1, events=MOVED + 1)
        total = await app.query(TotalOf(name="all"), after=f"{seen.token},{last.token}", wait_s=EXIT_WAIT_S)
        assert total is not None
        assert total.events == MOVED + 3 + 1
        assert (await app.across.rebuilds.compare("totals.Total")).same


# ── a server that stands still ───────────────────────────────────────────────


@contextmanager
def standing_still(server: Server) -> Iterator[None]:
    """While in the block, no process of the server does anything; its connections stay."""
    processes = server.processes()
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a worker of the server may end by itself
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


async def test_a_part_is_written_within_its_limit_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing is `StoreUnavailable`; once it answers again, the copy goes on."""
    with cluster() as server:
        await migrated(server.url())
        async with opened_at(server.url()) as store:
            part = HistoryPart(await store.head())
            await store.restore(part)
            monkeypatch.setattr(restoring, "RESTORE_S_MAX", 0.1)
            with standing_still(server):
                writing = asyncio.create_task(store.restore(part))
                done, _ = await asyncio.wait([writing], timeout=EXIT_WAIT_S)
            assert done
            with pytest.raises(StoreUnavailable, match="RESTORE_S_MAX"):
                await writing
            monkeypatch.undo()
            await store.restore(part)


async def test_a_copy_is_cancelled_though_the_server_says_nothing() -> None:
    """In the middle of a transaction: it is not waited for that the server takes it back."""
    with cluster() as server:
        await migrated(server.url())
        async with opened_at(server.url()) as store, by_hand(server.url()) as link:
            part = HistoryPart(await store.head())
            async with link.transaction():
                await link.execute("SELECT * FROM own.history FOR UPDATE")
                writing = asyncio.create_task(store.restore(part))
                while not await link.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    assert not writing.done()
                with standing_still(server):
                    writing.cancel()
                    done, _ = await asyncio.wait([writing], timeout=EXIT_WAIT_S)
            assert done
            with pytest.raises(asyncio.CancelledError):
                await writing
            await store.restore(part)
