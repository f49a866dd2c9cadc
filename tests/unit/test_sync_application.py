"""The application for code without an event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from anyio.lowlevel import checkpoint

from diptych import BoundedContext, ConfigurationError, NotFresh, Query, Rejected, SyncApplication
from diptych.errors import StoreClosed
from tests.school import CourseId, Enrol, OpenCourse, Seats, SeatsOf, StudentId, school, with_seats

PYTHON = CourseId("python")
WAIT_S = 30.0
"""Seconds after which a test gives up on a thread."""
TURNS_MAX = 100_000
"""Turns of the event loop after which a test gives up on a task."""


def context() -> BoundedContext:
    made = with_seats(school())
    made.command_handlers = [found for found in made.command_handlers if not found.name.endswith("audit")]
    return made


def test_calls_block_until_they_are_answered(store_url: str) -> None:
    """A command, a query after it, and errors as they are."""
    with SyncApplication(context(), store=store_url) as app:
        app.execute(OpenCourse(course=PYTHON, capacity=1))
        receipt = app.execute(Enrol(course=PYTHON, student=StudentId("ada")), command_id="enrol-1", actor="ada")
        assert app.query(SeatsOf(course=PYTHON), after=receipt) == Seats(course=PYTHON, taken=1)
        answer = app.answer(SeatsOf(course=PYTHON), freshness="latest")
        assert (answer.value, answer.shows[0].low) == (Seats(course=PYTHON, taken=1), 2)
        with pytest.raises(Rejected, match="already-enrolled"):
            app.execute(Enrol(course=PYTHON, student=StudentId("ada")))
        app.projected()
        assert app.status().head == 2
        assert app.health().ready


def test_many_threads_share_it(store_url: str) -> None:
    """Each seat is sold once, whichever thread asks."""
    with SyncApplication(context(), store=store_url) as app, ThreadPoolExecutor(8) as pool:
        app.execute(OpenCourse(course=PYTHON, capacity=10))

        def enrol(number: int) -> bool:
            try:
                app.execute(Enrol(course=PYTHON, student=StudentId(f"s{number}")))
            except Rejected:
                return False
            return True

        assert sum(pool.map(enrol, range(40))) == 10


def test_before_open_and_after_close_it_says_so(tmp_path: Path) -> None:
    """Every call does; closing twice is no error, and it may be opened again."""
    app = SyncApplication(context(), store=f"sqlite:{tmp_path}/events.db")
    calls: list[Callable[[], object]] = [
        lambda: app.execute(OpenCourse(course=PYTHON, capacity=1)),
        lambda: app.query(SeatsOf(course=PYTHON)),
        app.status,
    ]
    for call in calls:
        with pytest.raises(StoreClosed, match="not open"):
            call()
    with app:
        with pytest.raises(StoreClosed, match="open already"):
            app.open()
        app.execute(OpenCourse(course=PYTHON, capacity=1))
    app.close()
    for call in calls:
        with pytest.raises(StoreClosed):
            call()
    with app:
        assert app.status().head == 1


def test_an_open_that_fails_leaves_no_thread() -> None:
    """And may be tried again once the code is mended."""
    app = SyncApplication(BoundedContext("school", modules=["tests.missing"]), store="memory:")
    with pytest.raises(ConfigurationError):
        app.open()
    assert "diptych" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConfigurationError):
        app.open()


def test_whoever_waits_when_it_closes_is_told() -> None:
    """A query that waits for a projection in another thread ends with the application, not never."""
    app = SyncApplication(context(), store="memory:", projecting=False)
    app.open()
    receipt = app.execute(OpenCourse(course=PYTHON, capacity=1))
    with pytest.raises(NotFresh):
        app.query(SeatsOf(course=PYTHON), after=receipt, wait_s=0.0)
    outcome: Future[object] = Future()

    def ask() -> None:
        try:
            outcome.set_result(app.query(SeatsOf(course=PYTHON), after=receipt, wait_s=60.0))
        except BaseException as error:  # noqa: BLE001 — whatever ends it
            outcome.set_exception(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert _waits(app, "QueryPanel.query")
    app.close()
    with pytest.raises(StoreClosed):
        outcome.result(timeout=WAIT_S)


def _waits(app: SyncApplication, what: str) -> bool:
    """Wait until the application's event loop has such a task, and that task waits for something."""
    loop = app._loop
    assert loop is not None

    async def look() -> bool:
        for _ in range(TURNS_MAX):
            await checkpoint()
            if any(what in str(task) and "wait_for=" in str(task) for task in asyncio.all_tasks()):
                return True
        return False

    return asyncio.run_coroutine_threadsafe(look(), loop).result(timeout=WAIT_S)


def test_a_live_query_blocks_until_there_is_the_next_answer(store_url: str) -> None:
    """The loop goes on with each change, `break` leaves it, and closing the application ends it."""
    app = SyncApplication(context(), store=store_url)
    with app, ThreadPoolExecutor(1) as pool:
        app.execute(OpenCourse(course=PYTHON, capacity=10))
        taken: list[int] = []
        last = None
        for answer in app.subscribe(SeatsOf(course=PYTHON)):
            last = answer
            taken.append(answer.value.taken if answer.value else 0)
            if taken[-1] == 3:
                break
            app.execute(Enrol(course=PYTHON, student=StudentId(f"s{len(taken)}")))
        assert (taken[0], taken[-1]) == (0, 3)
        assert taken == sorted(set(taken))
        assert last is not None
        answers = app.subscribe(SeatsOf(course=PYTHON), after=last)
        assert next(answers).value == Seats(course=PYTHON, taken=3)
        ended = pool.submit(lambda: list(answers))
        app.close()
        assert ended.result(WAIT_S) == []
    with pytest.raises(StoreClosed):
        next(app.subscribe(SeatsOf(course=PYTHON)))


def test_a_live_query_that_nobody_holds_is_let_go_of_in_any_thread(store_url: str) -> None:
    """The garbage collector may end it in the very thread that it would wait for."""
    made = context()

    class Swept(Query[int]):
        """How much the garbage collector has found."""

    @made.query_handler
    async def swept(query: Swept) -> int:
        return gc.collect()

    def abandon() -> Seats | None:
        with SyncApplication(made, store=store_url) as app:
            circle: list[object] = [app.subscribe(SeatsOf(course=PYTHON))]
            circle.append(circle)
            next(cast("Generator[object]", circle[0]))
            del circle
            app.query(Swept())
            return app.query(SeatsOf(course=PYTHON))

    gone: Future[Seats | None] = Future()
    threading.Thread(target=lambda: gone.set_result(abandon()), daemon=True).start()
    assert gone.result(WAIT_S) is None
