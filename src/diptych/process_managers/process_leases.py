"""This worker's leases: which processes it may work on now.

A lease tells who is to work; it protects nothing. What protects a process is the epoch, which goes up when the lease
changes hands, and which every commit is compared with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from diptych.clock import pause
from diptych.errors import Unavailable
from diptych.event_store.head_watch import HeadWatch
from diptych.process_managers.process_store import ProcessStore

__all__ = ["ProcessLeases"]

LEASE_S = 10.0
"""Seconds for which a lease is valid: what a worker that stalls held is taken over after so long."""
LEASE_RENEW_S = 3.0
"""Seconds between renewals, and between looks for what others have left."""

_log = logging.getLogger("diptych.processes")


class ProcessLeases:
    """Keeps the leases of one worker on the processes of one history.

    Attributes:
        failure: why they are not renewed; empty while all is well.
    """

    def __init__(
        self,
        store: ProcessStore,
        processes: Collection[str],
        worker: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failure = ""
        self._store = store
        self._processes = frozenset(processes)
        self._worker = worker
        self._monotonic = monotonic
        self._epochs: Mapping[str, int] = {}
        self._until = float("-inf")
        self._changes = HeadWatch()
        self._asking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Get what is free, and keep it from now on.

        Raises:
            StoreUnavailable: the store cannot be reached.
        """
        await self.renew()
        self._task = asyncio.get_running_loop().create_task(self._keep(), name="diptych process leases")

    async def close(self) -> None:
        """Give everything up at once; who works on it has stopped before."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task, self._epochs = None, {}
        await self._give_up()

    def epoch(self, process: str) -> int | None:
        """The epoch of a process that may be worked on; None where it may not, or not any more."""
        return None if self._monotonic() >= self._until else self._epochs.get(process)

    async def wait(self, timeout_s: float) -> None:
        """Wait until what is held has changed."""
        await self._changes.wait(timeout_s)

    async def renew(self) -> None:
        """Ask for everything.

        Raises:
            Unavailable: the store cannot be reached; what is held is valid until its time is over.
        """
        async with self._asking:
            began = self._monotonic()  # before the store's clock is read: nothing is valid for longer than it thinks
            epochs = await self._store.lease(self._worker, self._processes, LEASE_S)
            lapsed = self._monotonic() >= self._until
            changed, self._epochs = lapsed or epochs != self._epochs, epochs
            self._until = began + LEASE_S
        if changed:
            self._changes.wake()

    async def leave(self, process: str) -> None:
        """Give a process up for good, so that others get it at once."""
        async with self._asking:  # a renewal under way would take it again
            self._processes -= {process}
            self._epochs = {name: epoch for name, epoch in self._epochs.items() if name != process}
            await self._give_up([process])

    async def _give_up(self, processes: Collection[str] | None = None) -> None:
        try:
            await self._store.release(self._worker, processes)
        except Unavailable as error:
            _log.warning("leases were not released, others have to wait until they run out: %s", error)

    async def _keep(self) -> None:
        while True:  # until it is closed
            await pause(LEASE_RENEW_S)
            try:
                await self.renew()
                self.failure = ""
            except Exception as error:  # noqa: BLE001  # told by status and health, and tried again
                self.failure = f"leases are not renewed: {error}"
                _log.warning("leases of processes are not renewed: %s", error)
