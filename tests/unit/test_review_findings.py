"""Races, crashes and rude user code that the core once answered with a hang, or with harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from diptych import Application, BoundedContext, EventContext, SyncApplication, replace
from diptych.adapters.connect import connect_event_store, connect_read_store, default_read_store
from diptych.adapters.sqlite import read_writes
from diptych.clock import SystemClock
from diptych.errors import StoreClosed, StoreUnavailable
from diptych.read_side.read_store import SliceWrite
from tests.school import (
    CourseId,
    CourseOpened,
    Enrol,
    Enrolled,
    EnrolmentRefused,
    OpenCourse,
    Seats,
    SeatsOf,
    StudentId,
    Touch,
)

pytestmark = pytest.mark.anyio

PYTHON = CourseId("python")
ADA = StudentId("ada")
HANG_S = 10
"""Seconds after which a test that waits has hung."""


class Exit(BaseException):
    """What user code raises to end more than itself, as test frameworks do."""


def courses() -> BoundedContext:
    """Courses that are opened without a decision; students who enrol in them; the seats taken."""
    context = BoundedContext("school", events=[EnrolmentRefused])

    @context.command_handler
    def open_course(command: OpenCourse) -> CourseOpened:
        return CourseOpened(course=command.course, capacity=command.capacity)

    @context.command_handler
    def enrol(command: Enrol) -> Enrolled:
        return Enrolled(course=command.course, student=command.student)

    @context.command_handler
    def touch(command: Touch) -> None:
        raise Exit

    return context


def with_seats() -> BoundedContext:
    context = courses()

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 1)

    return context


def with_other_seats() -> BoundedContext:
    context = courses()

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 2)

    return context


# ── rebuilds ─────────────────────────────────────────────────────────────────


async def test_concurrent_comparisons_leave_the_live_read_model_alone(store_url: str) -> None:
    """Two comparisons of one read model at once neither fail nor drop the rows that answer."""
    async with Application(with_seats(), store=store_url) as app:
        for n in range(30):
            await app.execute(Enrol(course=PYTHON, student=StudentId(f"s{n}")))
        await app.execute(OpenCourse(course=PYTHON, capacity=2))
        await app.projected()
        async with asyncio.timeout(HANG_S):
            found = await asyncio.gather(*(app.rebuilds.compare("Seats") for _ in range(3)))
            assert [(each.same, each.rows) for each in found] == [(True, 1)] * 3
            await asyncio.gather(*(app.rebuilds.rebuild("Seats") for _ in range(3)))
            assert await app.query(SeatsOf(course=PYTHON), freshness="latest") == Seats(course=PYTHON, taken=30)


@pytest.mark.parametrize("work", ["rebuild", "compare"])
async def test_a_build_that_another_process_drops_ends_the_work_and_leaves_the_live_one(
    tmp_path: Path, work: str
) -> None:
    """A build that vanished is neither waited for, nor is the live generation taken for it, or dropped with it."""
    url = f"sqlite:{tmp_path}/events.db"

    def drop(position: int, until: int) -> None:
        if position == until:
            with contextlib.closing(sqlite3.connect(tmp_path / "events.read.db")) as other, other:
                read_writes.drop_generation(other, "school.Seats", 2)

    async with Application(with_seats(), store=url) as app:
        await app.execute(Enrol(course=PYTHON, student=ADA))
        await app.projected()
        with pytest.raises(StoreUnavailable):
            await (app.rebuilds.rebuild("Seats", drop) if work == "rebuild" else app.rebuilds.compare("Seats", drop))
        assert await app.query(SeatsOf(course=PYTHON), freshness="latest") == Seats(course=PYTHON, taken=1)


# ── crashes ──────────────────────────────────────────────────────────────────


async def test_a_build_that_was_complete_when_its_process_died_is_switched_to(tmp_path: Path) -> None:
    """After a crash between a new generation's last batch and the switch, the next process switches."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(with_seats(), store=url) as app:
        await app.execute(Enrol(course=PYTHON, student=ADA))
        await app.projected()
    async with Application(with_other_seats(), store=url, projecting=False) as app:
        projector = app.partition().projector
        await projector.generations.create(projector.slices[0].projection, live=False)
    store, read_store = connect_event_store(url, SystemClock()), connect_read_store(default_read_store(url))
    await store.open()
    await read_store.open()
    (building,) = [found for found in await read_store.generations() if not found.live]
    await read_store.write([SliceWrite(building, await store.head(), upserts=[(PYTHON, 2)])])
    await read_store.close()
    await store.close()
    async with asyncio.timeout(HANG_S), Application(with_other_seats(), store=url) as app:
        assert await app.query(SeatsOf(course=PYTHON), freshness="latest", wait_s=1) == Seats(course=PYTHON, taken=2)
        await app.projected()


# ── user code that raises more than an Exception ─────────────────────────────


async def test_a_handler_that_raises_a_base_exception_fails_alone(store_url: str) -> None:
    """Commands of the same batch, and those that wait behind it, have their outcomes."""
    async with Application(courses(), store=store_url) as app:
        commands = [Enrol(course=PYTHON, student=StudentId(f"s{n}")) for n in range(300)]
        async with asyncio.timeout(HANG_S):
            first, *others = await asyncio.gather(
                app.execute(Touch(course=PYTHON)), *map(app.execute, commands), return_exceptions=True
            )
        assert isinstance(first, Exit)
        assert [found for found in others if isinstance(found, BaseException)] == []


async def test_a_subscriber_that_takes_cancellation_for_its_own_does_not_hold_up_closing(store_url: str) -> None:
    """`close` ends also where user code swallows the `CancelledError` that ends its delivery."""
    delivering = asyncio.Event()
    context = courses()

    @context.subscriber
    async def mails(events: Sequence[tuple[Enrolled, EventContext]]) -> None:
        delivering.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    app = Application(context, store=store_url)
    await app.open()
    await app.execute(Enrol(course=PYTHON, student=ADA))
    await delivering.wait()
    async with asyncio.timeout(HANG_S):
        await app.close()


# ── closing ──────────────────────────────────────────────────────────────────


async def test_a_cancelled_close_still_lets_go_of_the_stores(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling `close` while it waits for the projector leaves no store open behind."""
    app = Application(with_seats(), store=store_url)
    await app.open()
    parts = app.partition()  # pyright: ignore[reportPrivateUsage]
    close_processes, processes_closed = parts.process_worker.close, asyncio.Event()

    async def close() -> None:
        await close_processes()
        processes_closed.set()

    monkeypatch.setattr(parts.process_worker, "close", close)
    async with parts.projector.lock:
        closing = asyncio.create_task(app.close())
        await processes_closed.wait()
        await checkpoint()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    with pytest.raises(StoreClosed):
        await parts.store.head()
    with pytest.raises(StoreClosed):
        await parts.read_store.generations()


async def test_closing_ends_after_the_loop_cancelled_every_task(store_url: str) -> None:
    """`asyncio.run` cancels all tasks at its end: the application that closes then does not wait for a dead one."""
    async with Application(courses(), store=store_url) as app:
        under_way = [
            asyncio.create_task(app.execute(Enrol(course=PYTHON, student=StudentId(f"s{n}")))) for n in range(600)
        ]
        await under_way[0]
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "GroupCommit" in str(task.get_coro()):
                task.cancel()
        async with asyncio.timeout(HANG_S):
            await asyncio.gather(*under_way, return_exceptions=True)
            await app.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_hears_that_the_application_is_not_its_own() -> None:
    """In a fork there is no thread that would answer: calls raise rather than wait for ever."""
    with SyncApplication(courses()) as app:
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            signal.alarm(HANG_S)
            try:
                app.execute(Enrol(course=PYTHON, student=ADA))
            except StoreClosed:
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == 0


async def test_a_verify_never_drops_the_live_generation(tmp_path: Path) -> None:
    """Where a build vanishes half-way, what answers is not compared with itself, and then dropped as the build."""
    context = courses()

    def of_ada(event: Enrolled) -> list[object]:
        return [event.course] if event.student == ADA else []

    @context.projection(keys=of_ada)
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 1)

    def drop(position: int, until: int) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "events.read.db")) as other, other:
            read_writes.drop_generation(other, "school.Seats", 2)

    async with Application(context, store=f"sqlite:{tmp_path}/events.db") as app:
        students = [ADA, *(StudentId(f"s{n}") for n in range(1_100))]
        await asyncio.gather(*(app.execute(Enrol(course=PYTHON, student=student)) for student in students))
        await app.projected()
        with pytest.raises(StoreUnavailable):
            await app.rebuilds.compare("Seats", drop)
        assert await app.query(SeatsOf(course=PYTHON), freshness="latest") == Seats(course=PYTHON, taken=1)
