"""Who waits for a replica to replay something: a standby takes no LISTEN, so its catalog is looked at.

It is looked at only while somebody waits, by one for all of them, and each is woken when the read model that was behind
is another one than the snapshot showed in which it was: nothing is counted, so that nothing can be missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from diptych.adapters.postgres.connection import DRIVER_ERRORS
from diptych.clock import pause
from diptych.errors import DiptychError, Overloaded
from diptych.read_side.read_store import Generation

__all__ = ["ReplayWatch"]

REPLAY_POLL_S = 0.01
"""How often a replica is looked at while somebody waits for it."""
REPLAY_WAITERS_MAX = 10_000
"""Callers that wait for one replica; more get `Overloaded`."""


class _Waiter(NamedTuple):
    """Who waits, for which read model, and what they know of it."""

    woken: asyncio.Future[None]
    name: str
    seen: tuple[Generation, ...]


class ReplayWatch:
    """Watches one replica."""

    def __init__(self, look: Callable[[Collection[str]], Awaitable[Mapping[str, Sequence[Generation]]]]) -> None:
        """Watch with `look`, which gives the slices of live generations as the replica shows them now."""
        self._look = look
        self._waiters: set[_Waiter] = set()
        self._watching: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def wait(self, name: str, seen: Sequence[Generation], timeout_s: float) -> None:
        """Wait until one of these slices is another one, or was moved on; or the time is over, or nobody can tell.

        Raises:
            Overloaded: too many wait.
        """
        if len(self._waiters) >= REPLAY_WAITERS_MAX:
            raise Overloaded("REPLAY_WAITERS_MAX", REPLAY_WAITERS_MAX)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), name, tuple(seen))
        self._waiters.add(waiter)
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.woken
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """Let everyone who waits look for themselves."""
        for waiter in self._waiters:
            _wake(waiter)

    async def close(self) -> None:
        """Wake everyone, to find that it is over."""
        self.wake()
        task, self._watching = self._watching, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _watch(self) -> None:
        """Look every now and then; ends when nobody waits."""
        try:
            while self._waiters:
                try:
                    shown = await self._look({waiter.name for waiter in self._waiters})
                except (DiptychError, *DRIVER_ERRORS):
                    self.wake()  # their own reads say what is wrong
                else:
                    for waiter in self._waiters:
                        if waiter.name in shown and _moved(waiter.seen, shown[waiter.name]):
                            _wake(waiter)
                await pause(REPLAY_POLL_S)
        finally:
            self._watching = None


def _moved(seen: Sequence[Generation], shown: Sequence[Generation]) -> bool:
    """Whether one of the slices that were seen is another one now; where there was none, whether there is one."""
    return bool(shown) if not seen else any(slice not in shown for slice in seen)


def _wake(waiter: _Waiter) -> None:
    if not waiter.woken.done():
        waiter.woken.set_result(None)
