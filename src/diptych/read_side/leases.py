"""This process's leases: which generations it may work on now.

    read store ◀── renewed every LEASE_RENEW_S, in a task of its own ──▶ projector and subscriptions ask `epoch()`

A lease tells who is to work; it protects nothing. What protects the rows is the epoch, which goes up when a lease is
lost, and which every write is compared with. So whoever works on after his time (a stopped process that wakes up, a
clock that stood still) wastes work, and writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable
from contextlib import contextmanager

from diptych.clock import pause
from diptych.errors import Unavailable
from diptych.read_side.projection import told
from diptych.read_side.read_store import Leased, LeaseKey, ReadStore

__all__ = ["LEASE_S", "Leases"]

LEASE_S = 10.0
"""Seconds for which a lease is valid: what a process that stalls worked on is taken over after so long."""
LEASE_RENEW_S = 3.0
"""Seconds between renewals, and between looks for what others have left."""
LEASE_LOOK_S = 0.5
"""Seconds between looks where there is a reason: rows have changed while others hold something, or a renewal failed."""

_log = logging.getLogger("diptych.leases")


class Leases:
    """Keeps the leases of one process on the generations of its projections and subscribers.

    Attributes:
        worker: the name under which they are held.
        version: changes with what is held; see `wait`.
        asked: what was asked for last.
        gone: what of it is not in the store any more.
        failure: why they are not renewed at all; empty while all is well.
    """

    def __init__(
        self,
        read_store: ReadStore,
        wanted: Callable[[], Collection[LeaseKey]],
        worker: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker = worker
        self.version = 0
        self.asked: frozenset[LeaseKey] = frozenset()
        self.gone: frozenset[LeaseKey] = frozenset()
        self.failure = ""
        self._read_store = read_store
        self._wanted = wanted
        self._monotonic = monotonic
        self._leased = Leased({})
        self._until = float("-inf")
        self._in_use = Counter[LeaseKey]()
        self._working = _Waits()
        self._renewing = _Waits()
        self._again = False
        self._urgent = False
        self._seen = 0
        self._task: asyncio.Task[None] | None = None

    # ── life ─────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Get what is free, and keep it from now on; nothing to do where nothing is wanted.

        Raises:
            StoreUnavailable: the read store cannot be reached.
        """
        if self._wanted():
            await self.renew()
            self._task = asyncio.get_running_loop().create_task(self._keep(), name="diptych leases")

    async def close(self) -> None:
        """Give everything up at once; who works on it has stopped before. Also where opening has failed."""
        if not self.asked and self._task is None:
            return
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
        finally:  # also where the caller is cancelled meanwhile: others need not wait for the leases to run out
            self._task, self.asked, self._leased = None, frozenset(), Leased({})
            await self._release()

    async def _release(self) -> None:
        try:
            await self._read_store.release(self.worker)
        except Unavailable as error:
            _log.warning("leases were not released, others have to wait until they run out: %s", error)

    # ── what is held ─────────────────────────────────────────────────────────

    def epoch(self, key: LeaseKey) -> int | None:
        """The epoch of a generation that may be worked on; None where it may not, or not any more."""
        if key in self._leased.surplus or self._monotonic() >= self._until:
            return None
        return self._leased.epochs.get(key)

    @contextmanager
    def using(self, keys: Iterable[LeaseKey]) -> Generator[None]:
        """While work is under way: of these nothing is handed to others that are alive before it is over."""
        used = tuple(keys)
        self._in_use.update(used)
        try:
            yield
        finally:
            self._in_use.subtract(used)
            if not self._leased.surplus.isdisjoint(used):
                self.ask()

    def ask(self) -> None:
        """Ask the store again at once: other generations are wanted, or a surplus can be released."""
        self._again = True
        self._renewing.cut_short()

    async def wait(self, version: int, waiting: Callable[[], Awaitable[object]]) -> None:
        """Wait for something, but only while what is held is as it was at that `version`."""
        if self.version == version:
            await self._working.until(waiting)

    # ── renewing ─────────────────────────────────────────────────────────────

    async def renew(self) -> None:
        """Ask for what is wanted, and release the surplus that is not in use.

        Raises:
            Unavailable: the read store cannot be reached; what is held is valid until its time is over.
        """
        self._again, self._urgent = False, True
        self.asked = frozenset(self._wanted())
        began = self._monotonic()  # before the store's own clock is read: nothing is valid for longer than it thinks
        leased = await self._read_store.lease(self.worker, self.asked, LEASE_S)
        lapsed = self._monotonic() >= self._until
        self._until = began + LEASE_S
        changed, self._leased, self.gone = lapsed or leased != self._leased, leased, leased.gone
        if changed:
            self.version += 1
            self._working.cut_short()
        idle = [key for key in leased.surplus if not self._in_use[key]]
        if idle:
            await self._read_store.release(self.worker, idle)
        self._urgent = not self.asked <= leased.epochs.keys() - leased.surplus

    async def _keep(self) -> None:
        try:
            while True:
                if not self._again:
                    await self._renewing.until(self._until_due)
                try:
                    await self.renew()
                except Unavailable as error:
                    left_s = self._until - self._monotonic()
                    _log.warning("leases are not renewed, and end in %.1f s: %s", left_s, error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = told(error)  # whatever it is, health tells of it
            _log.exception("leases are not renewed any more; others take over. Restart the application")
            if not isinstance(error, Exception):
                raise

    async def _until_due(self) -> None:
        """Until it is time to renew; where others hold something, until rows change, which is how a release shows."""
        if not self._urgent:
            await pause(LEASE_RENEW_S)
            return
        await pause(LEASE_LOOK_S)
        try:
            self._seen = await self._read_store.wait_for_change(self._seen, LEASE_RENEW_S - LEASE_LOOK_S)
        except Unavailable:
            return  # renewing says what is wrong


class _Waits:
    """Waits that can be cut short."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Timeout] = set()

    async def until(self, waiting: Callable[[], Awaitable[object]]) -> None:
        """Wait for something, or until this is cut short."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._under_way.add(limit)
                try:
                    await waiting()
                finally:
                    self._under_way.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise

    def cut_short(self) -> None:
        """End every wait that is under way."""
        limits, self._under_way = self._under_way, set()
        for limit in limits:
            limit.reschedule(asyncio.get_running_loop().time())
