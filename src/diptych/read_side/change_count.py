"""How many changes of a read store were noticed, and who waits for the next one; for every read store."""

from __future__ import annotations

import asyncio

from diptych.errors import Overloaded, StoreClosed

__all__ = ["ChangeCount"]

CHANGE_WAITERS_MAX = 10_000
"""Callers that wait for rows to change; more get `Overloaded`."""


class ChangeCount:
    """Whoever notices a change counts it here. Belongs to the event loop of those who wait.

    Attributes:
        count: of the changes noticed.
    """

    def __init__(self, store: str) -> None:
        """Begin at 0. `store` is its URL or path, for messages."""
        self.count = 0
        self._store = store
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def wait(self, seen: int, timeout_s: float) -> int:
        """The count, once it is another than `seen`, or the time is over, or `wake` was called.

        Raises:
            StoreClosed: the store was closed meanwhile.
            Overloaded: too many wait.
        """
        if self.count != seen:
            return self.count
        if len(self._waiters) >= CHANGE_WAITERS_MAX:
            raise Overloaded("CHANGE_WAITERS_MAX", CHANGE_WAITERS_MAX)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)
        if self._closed:
            raise StoreClosed(f"the read store {self._store} was closed")
        return self.count

    def note(self) -> None:
        """Count a change, and wake who waits for it."""
        self.count += 1
        self.wake()

    def wake(self) -> None:
        """Let everyone who waits look for themselves: whoever looks for changes cannot say."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Wake everyone, to hear that it is over."""
        self._closed = True
        self.wake()
