"""Turns at snapshots, for every read store: there are few, whoever comes first is first, and nobody waits for ever."""

from __future__ import annotations

import asyncio

from diptych.errors import Overloaded

__all__ = ["SNAPSHOTS_MAX", "SnapshotTurns"]

SNAPSHOTS_MAX = 16
"""Open snapshots of one read store in one process; more wait for their turn."""
SNAPSHOTS_WAITING_MAX = 1_000
"""Callers that wait for a snapshot; more get `Overloaded`."""
SNAPSHOT_WAIT_S_MAX = 10
"""Seconds that a caller waits for a snapshot before it gets `Overloaded`."""


class SnapshotTurns:
    """Belongs to the event loop of those who wait: a store that is opened again makes new ones."""

    def __init__(self, at_once: int | None = None) -> None:
        self._free = asyncio.Semaphore(SNAPSHOTS_MAX if at_once is None else at_once)
        self._waiting = 0

    async def take(self) -> None:
        """Have a turn, which the caller gives back.

        Raises:
            Overloaded: too many wait, or this one has waited too long.
        """
        if not self._free.locked():
            await self._free.acquire()
            return
        if self._waiting >= SNAPSHOTS_WAITING_MAX:
            raise Overloaded("SNAPSHOTS_WAITING_MAX", SNAPSHOTS_WAITING_MAX)
        self._waiting += 1
        try:
            async with asyncio.timeout(SNAPSHOT_WAIT_S_MAX):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded("SNAPSHOT_WAIT_S_MAX", SNAPSHOT_WAIT_S_MAX) from None
        finally:
            self._waiting -= 1

    def give_back(self) -> None:
        """Let the next one have its turn."""
        self._free.release()
