"""Who waits for events: woken by this process's own appends, by notifications, and every now and then.

Nothing rests on notifications: whoever is woken looks at the head, and all who were woken together look once; nobody
does where it was read since then, as by a projector that has just come to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from diptych.adapters.postgres.connection import PostgresUrl
from diptych.adapters.postgres.known_history import KnownHistory
from diptych.adapters.postgres.wake_ups import WakeUps
from diptych.clock import pause
from diptych.event_store.head_watch import HeadWatch
from diptych.event_store.position import Place, Position

__all__ = ["EventWatch"]

POLL_S = 1.0
"""How often the head is asked for while somebody waits and notifications come: one may be lost …"""
POLL_DEAF_S = 0.05
"""… and while none can come."""


class EventWatch:
    """Waits for the head of one history to move."""

    def __init__(
        self,
        url: PostgresUrl,
        channel: str,
        known: KnownHistory,
        look_at_head: Callable[[], Awaitable[Place]],
        is_own: Callable[[int], bool],
    ) -> None:
        """Remember the settings: where notifications come from, what is known, how to know better, whose are own."""
        self._known = known
        self._look_at_head = look_at_head
        self._watch = HeadWatch()
        self._wakes = 0
        self._told_at = -1
        self._waiting = 0
        self._look: tuple[int, asyncio.Future[Place]] | None = None
        self._poll: asyncio.Task[None] | None = None
        self._wake_ups = WakeUps(url, channel, self.wake, is_own)

    async def close(self) -> None:
        """Let go of the connection; who waits is woken, to hear that it is over."""
        self.wake()
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.cancel()
            await asyncio.wait((poll,))
        await self._wake_ups.close()

    def wake(self) -> None:
        """Let everyone who waits look again."""
        self._wakes += 1
        self._watch.wake()

    @property
    def wakes(self) -> int:
        """How often all were woken: whoever is about to read the head hands it to `told`."""
        return self._wakes

    def told(self, wakes: int) -> None:
        """Note that what is known of the head was read since there had been so many wake-ups."""
        self._told_at = wakes

    async def wait(self, after: Position, timeout_s: float, check_open: Callable[[], None]) -> bool:
        """Wait until the head is past a position; not for longer than until the history turns out to be another.

        Args:
            after: the position.
            timeout_s: seconds after which it is False.
            check_open: raises where the store was closed meanwhile.
        """
        self._waiting += 1
        try:
            return await self._passed(after, time.monotonic() + timeout_s, check_open)
        finally:
            self._waiting -= 1

    async def _passed(self, after: Position, deadline: float, check_open: Callable[[], None]) -> bool:
        forks = self._known.forks
        while forks == self._known.forks:
            self._keep_watch()  # before the look at the head, so that nothing falls between
            wakes = self._wakes
            if self._known.place.position > after:
                return True
            if not self._is_told() and (await self._shared_look()).position > after:
                return True
            if wakes == self._wakes and not await self._watch.wait(deadline - time.monotonic()):
                return False
            check_open()
        return False

    def _is_told(self) -> bool:
        """Whether the head is known that somebody read, and nothing was heard of a later one."""
        return self._wake_ups.is_listening and self._told_at == self._wakes

    async def _shared_look(self) -> Place:
        """The head, asked for once by all who were woken together."""
        if self._look is None or self._look[0] != self._wakes:
            looking = asyncio.ensure_future(self._look_at_head())
            looking.add_done_callback(partial(self._look_done, self._wakes))
            self._look = (self._wakes, looking)
        return await asyncio.shield(self._look[1])

    def _look_done(self, wakes: int, looking: asyncio.Future[Any]) -> None:
        if self._look is not None and self._look[0] == wakes:
            self._look = None
        if not looking.cancelled():
            looking.exception()  # heard by those who wait, if they still do

    def _keep_watch(self) -> None:
        self._wake_ups.ensure()
        if self._poll is None:
            self._poll = asyncio.get_running_loop().create_task(self._wake_regularly())

    async def _wake_regularly(self) -> None:
        """Let those who wait look again every now and then; ends when nobody does. Who is just looking waits too."""
        while True:
            await pause(POLL_S if self._wake_ups.is_listening else POLL_DEAF_S)
            if not self._waiting:
                self._poll = None
                return
            self.wake()
