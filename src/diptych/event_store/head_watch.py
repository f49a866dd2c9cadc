"""Waiting for the head to move, woken by whoever moves it."""

from __future__ import annotations

import asyncio

__all__ = ["HeadWatch"]


class HeadWatch:
    """Those who wait for events. Belongs to the event loop of its waiters; bound to none while nobody waits."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def wake(self) -> None:
        """Let every waiter look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Let every waiter raise."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next `wake`. False when the time is over first."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
            if not waiter.done():
                return False
            waiter.result()
            return True
        finally:
            self._waiters.discard(waiter)
