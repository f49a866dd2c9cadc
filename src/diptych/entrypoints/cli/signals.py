"""Runs one piece of work until it ends, or a signal ends it.

The first SIGINT or SIGTERM cancels the work, which then closes what it holds. The second one, or `STOP_S_MAX`, ends
the process at once: what was acknowledged is durable all the same.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, TypeVar

__all__ = ["INTERRUPTED", "STOP_S_MAX", "TERMINATED", "Terminated", "ended_by_signals", "run_async"]

STOP_S_MAX = 20.0
"""Seconds from the signal to the end of the process, however much is under way."""
INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM, but for servers: those are meant to be stopped so."""

T = TypeVar("T")


class Terminated(BaseException):
    """SIGTERM came, and the work was stopped."""


def run_async(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` in an event loop of its own.

    Raises:
        KeyboardInterrupt: SIGINT came, and the work was stopped.
        Terminated: SIGTERM came, and the work was stopped.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_stopped_by_signals(work))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: it makes more of each core."""
    try:
        import uvloop
    except ImportError:  # pragma: no cover - there is none for Windows
        return None
    return uvloop.new_event_loop


async def _stopped_by_signals(work: Callable[[], Awaitable[T]]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if came:
            _end(number, "a second signal came")
        came.append(number)
        late = threading.Timer(STOP_S_MAX, _end, (number, f"stopping took more than {STOP_S_MAX:g} s"))
        late.daemon = True
        late.start()
        loop.call_soon_threadsafe(task.cancel)

    with _handling(stop):
        try:
            return await work()
        except asyncio.CancelledError:
            if not came:
                raise
            raise (KeyboardInterrupt if came[0] == signal.SIGINT else Terminated) from None


def ended_by_signals() -> AbstractContextManager[None]:
    """A block that waits for somebody, and holds the event loop up: a signal raises what ends the work, in it."""
    return _handling(_raise)


def _raise(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _end(number: int, why: str) -> None:
    sys.stderr.write(f"ended at once: {why}; what was acknowledged is kept\n")
    sys.stderr.flush()
    os._exit(128 + number)


@contextmanager
def _handling(stop: Callable[[int, FrameType | None], Any]) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; whoever runs this in another one stops it another way
        return
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
