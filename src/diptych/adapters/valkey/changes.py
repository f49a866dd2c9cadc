"""Hears of the changes that other processes make: by what the server publishes and, should that be lost, by looking."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from diptych.adapters.valkey.connection import Connections, Listener
from diptych.clock import pause
from diptych.errors import StoreUnavailable
from diptych.read_side.change_count import ChangeCount

__all__ = ["NOTICED_S_MAX", "Changes"]

NOTICED_S_MAX = 1.0
"""Seconds after which a change by another process is noticed at the latest, while the server can be reached."""

LOOK_S = NOTICED_S_MAX / 2
"""Seconds between looks for changes that were not heard of."""

_log = logging.getLogger("diptych.valkey")


class Changes:
    """Counts changes, from when it is opened until it is closed.

    Args:
        connections: to the server.
        origin: by which this store's own messages are known: its changes are counted when they are made.
        between: what is to be done now and then.
    """

    def __init__(self, connections: Connections, origin: bytes, between: Callable[[], Awaitable[object]]) -> None:
        self.noticed = ChangeCount(connections.url.shown)
        self._connections = connections
        self._origin = origin
        self._between = between
        self._last: bytes | None = None
        self._doubted: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen from now on.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        listener = await self._connections.listener()
        self._task = asyncio.get_running_loop().create_task(self._listen(listener), name="diptych valkey changes")
        self._last = await self._latest()

    async def close(self) -> None:
        """Listen no more; those who wait hear of it."""
        self.noticed.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self, listener: Listener | None) -> None:
        while True:
            try:
                if listener is None:
                    listener = await self._connections.listener()
                await self._hear(listener)
            except StoreUnavailable as error:
                _log.warning("changes of other processes are not heard of: %s", error)
            finally:
                if listener is not None:
                    await listener.close()
                listener = None
            self.noticed.wake()  # their own looks at the store say what is wrong
            await pause(NOTICED_S_MAX)

    async def _hear(self, listener: Listener) -> None:
        """Count what is heard of, and look now and then whether anything was not.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            heard = await listener.next(LOOK_S)
            if heard is not None:
                origin, _, self._last = heard.partition(b" ")
                if origin != self._origin:
                    self.noticed.note()
            if loop.time() >= due:
                await self._look()
                await self._between()
                due = loop.time() + LOOK_S

    async def _look(self) -> None:
        """Count a change that was not heard of by the second look: until then, word of it may be on its way."""
        latest = await self._latest()
        if latest != self._last and latest == self._doubted:
            self._last = latest
            self.noticed.note()
        self._doubted = latest

    async def _latest(self) -> bytes | None:
        """The number of the last change."""
        found = await self._connections.command("GET", f"{self._connections.url.prefix}:change")
        return found if isinstance(found, bytes) else None
