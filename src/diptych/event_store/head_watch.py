"""Waiting for the head to move, woken by whoever moves it."""

from __future__ import annotations

import asyncio
from functools import partial

__all__ = ["HeadWatch"]


class HeadWatch:
    """Those who wait for events. Belongs to the event loop of its waiters; bound to none while nobody waits."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def wake(self) -> None:
        """Let every waiter look again."""
        for waiter in self._waiters:
            _answer(waiter, woken=True)

    def fail(self, error: Exception) -> None:
        """Let every waiter raise."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next `wake`. False when the time is over first."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_later(timeout_s, partial(_answer, waiter, woken=False))
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)


def _answer(waiter: asyncio.Future[bool], *, woken: bool) -> None:
    if not waiter.done():
        waiter.set_result(woken)
