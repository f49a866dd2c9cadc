"""Notifications of other processes' commits: a hint that comes quickly, on a connection of its own.

Nothing rests on them. While the connection is down, or was never made since a pooler stands before the server, whoever
waits polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg

from diptych.adapters.postgres.connection import Link, PostgresUrl, connect
from diptych.errors import ConfigurationError, StoreUnavailable

__all__ = ["WakeUps"]

RECONNECT_S_MIN = 0.1
"""How long after its loss the connection is made again at the earliest; doubled each time that this fails …"""
RECONNECT_S_MAX = 5.0
"""… up to this."""
CLOSE_S_MAX = 1.0
"""How long closing waits for a connection that is just being made, before it is cut off."""


class WakeUps:
    """Listens to one channel, from the first `ensure` on until it is closed."""

    def __init__(self, url: PostgresUrl, channel: str, wake: Callable[[], None], is_own: Callable[[int], bool]) -> None:
        """Remember the settings.

        Args:
            url: of the server.
            channel: to listen to.
            wake: is called on every notification of others, and when listening begins or ends.
            is_own: whether the backend of this number is at the other end of one of this store's connections: what it
                tells is known here, or will be when its call comes back.
        """
        self._url = url
        self._channel = channel
        self._wake = wake
        self._is_own = is_own
        self._task: asyncio.Task[None] | None = None
        self._backoff_s = RECONNECT_S_MIN
        self._not_before = 0.0
        self._lost = asyncio.Event()
        self.is_listening = False

    def ensure(self) -> None:
        """See to it that there is a connection, soon, unless one was lost only just now."""
        if self._task is None and not self._url.pooled:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._not_before:
                self._task = loop.create_task(self._listen())

    async def close(self) -> None:
        """Let go of the connection."""
        task, self._task = self._task, None
        if task is not None:
            self._lost.set()
            await asyncio.wait((task,), timeout=CLOSE_S_MAX)  # a driver that is cut off while it connects complains
            task.cancel()
            await asyncio.wait((task,))
        self._not_before = 0.0

    async def _listen(self) -> None:
        self._lost = asyncio.Event()
        try:
            link = await connect(self._url)
            try:
                if not self._lost.is_set():
                    await self._listen_on(link)
            finally:
                self.is_listening = False
                link.terminate()
        except (StoreUnavailable, ConfigurationError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            # Who waits polls, and hears from its own query what is wrong.
            self._backoff_s = min(2 * self._backoff_s, RECONNECT_S_MAX)
        self._not_before = asyncio.get_running_loop().time() + self._backoff_s
        self._task = None

    async def _listen_on(self, link: Link) -> None:
        link.add_termination_listener(lambda *_: self._lost.set())
        await link.add_listener(self._channel, self._heard)
        self.is_listening = True
        self._backoff_s = RECONNECT_S_MIN
        self._wake()  # what was committed before anybody listened
        await self._lost.wait()
        self.is_listening = False
        self._wake()

    def _heard(self, _link: object, backend: int, _channel: str, _payload: object) -> None:
        if not self._is_own(backend):
            self._wake()
