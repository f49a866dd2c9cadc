"""Snapshots of a store in a file: a connection each, given out in turn; reads on threads stop with their caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from diptych.errors import ConfigurationError, StoreClosed, StoreUnavailable
from diptych.read_side.snapshot_turns import SnapshotTurns

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor
    from types import TracebackType

__all__ = ["NOT_WAITED_FOR", "ReaderPool", "SnapshotTurn", "ThreadReads"]

NOT_WAITED_FOR = "before this: whoever asked for it has not waited for all that they read"
"""How a snapshot ended that is read from afterwards."""

R = TypeVar("R")
T = TypeVar("T")


class ReaderPool(Generic[R]):
    """Gives out at most `SNAPSHOTS_MAX` connections at a time, first come, first served.

    Args:
        path: of the file.
        threads: that read, and may take long.

    Attributes:
        closed: whether nothing is read any more, also in a snapshot that was open before.
    """

    def __init__(self, path: str, threads: ThreadPoolExecutor) -> None:
        self.path = path
        self.threads = threads
        self._idle: list[R] = []
        self._turns = SnapshotTurns()
        self.closed = False

    def begin(self, idle: R | None) -> R:
        """The idle connection, or a new one, with its view."""
        raise NotImplementedError

    def end(self, reader: R) -> bool:
        """Let its view go; whether it is whole, and may be handed on."""
        raise NotImplementedError

    def drop(self, reader: R) -> None:
        """Close a connection."""
        raise NotImplementedError

    async def take(self) -> R:
        """A connection with its view.

        Raises:
            Overloaded: too many wait, or this one has waited too long.
            StoreClosed: the store was closed.
        """
        await self._turns.take()
        try:
            if self.closed:
                raise StoreClosed(f"{self.path} was closed")
            return self.begin(self._idle.pop() if self._idle else None)
        except BaseException:
            self._turns.give_back()
            raise

    def give_back(self, reader: R) -> None:
        """End the view and let the next one have the connection."""
        try:
            if self.end(reader) and not self.closed:
                self._idle.append(reader)
            else:
                self.drop(reader)
        finally:
            self._turns.give_back()

    async def close(self) -> None:
        """Let go of the idle connections, and of the others once they come back."""
        self.closed = True
        while self._idle:
            self.drop(self._idle.pop())
        await asyncio.get_running_loop().run_in_executor(None, self.threads.shutdown)


class Finishing(Protocol):
    """A snapshot that can be over while a thread still reads for it."""

    def finish(self) -> asyncio.Future[Any] | None:
        """The read that its caller has left behind, told to stop; None where there is none."""


S = TypeVar("S", bound=Finishing)


class SnapshotTurn(Generic[R, S]):
    """One snapshot's lifetime, as an async context manager."""

    __slots__ = ("_made", "_make", "_pool")

    def __init__(self, pool: ReaderPool[R], make: Callable[[R], S]) -> None:
        self._pool = pool
        self._make = make
        self._made: tuple[R, S]

    async def __aenter__(self) -> S:
        """Take a connection."""
        reader = await self._pool.take()
        self._made = reader, self._make(reader)
        return self._made[1]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back, or have it given back once the read that its caller left behind has stopped."""
        reader, snapshot = self._made
        running = snapshot.finish()
        if running is None:
            self._pool.give_back(reader)
        else:
            running.add_done_callback(lambda _: self._pool.give_back(reader))


class ThreadReads:
    """Reads of one snapshot, on threads, one at a time: a handler may ask for several things at once.

    Args:
        pool: whose threads.
        stop: stops the read that runs, from another thread.
        read_s_max: seconds that it may run, from when a thread begins it; None: the read itself looks at the clock.
        lasting: whether the snapshot lasts when a read fails.
    """

    def __init__(
        self, pool: ReaderPool[Any], stop: Callable[[], object], *, read_s_max: float | None, lasting: bool
    ) -> None:
        self._pool = pool
        self._stop = stop
        self._read_s_max = read_s_max
        self._lasting = lasting
        self._turn = asyncio.Lock()
        self._submitted: Future[Any] | None = None
        self._running: asyncio.Future[Any] | None = None
        self._ended = ""

    async def run(self, read: Callable[[], T]) -> T:
        """What a read gives; where its caller is cancelled, it is left to the next one, or to `finish`.

        Raises:
            StoreUnavailable: the snapshot is over.
            StoreClosed: the store was closed.
        """
        async with self._turn:
            await self.settled()
            if self._ended:
                raise StoreUnavailable(f"this snapshot of {self._pool.path} ended {self._ended}")
            if self._pool.closed:
                raise StoreClosed(f"{self._pool.path} was closed")
            limit = None if self._read_s_max is None else _RunTime(self._read_s_max, self._stop)
            self._submitted = self._pool.threads.submit(read if limit is None else partial(limit.begin, read))
            self._running = asyncio.wrap_future(self._submitted)
            self._running.add_done_callback(_heard)
            if limit is not None:
                self._running.add_done_callback(limit.end)
            try:
                return await asyncio.shield(self._running)
            except (ConfigurationError, StoreUnavailable) as error:
                if not self._lasting:
                    self._ended = f"with a read that failed: {error}"
                raise

    async def settled(self) -> None:
        """Wait until no thread reads: until it is left, the event loop has the connection to itself."""
        while self._running is not None and not self._running.done():
            await asyncio.wait([self._running])

    def finish(self) -> asyncio.Future[Any] | None:
        """End the snapshot; the read that its caller has left behind, told to stop."""
        self._ended = self._ended or NOT_WAITED_FOR
        if self._submitted is None or self._submitted.done():
            return None
        if not self._submitted.cancel():  # it has begun
            self._stop()
        return self._running


class _RunTime:
    """Stops one read when it has run for so many seconds, however long it waited for a thread before."""

    __slots__ = ("_began", "_seconds", "_stop", "_timer")

    def __init__(self, seconds: float, stop: Callable[[], object]) -> None:
        self._seconds = seconds
        self._stop = stop
        self._began: float | None = None
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def begin(self, read: Callable[[], T]) -> T:
        """Read; called on its thread."""
        self._began = time.monotonic()
        return read()

    def end(self, _: object) -> None:
        """It is over."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._seconds if self._began is None else self._began + self._seconds - time.monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self._stop()


def _heard(read: asyncio.Future[Any]) -> None:
    """That a read was stopped whose caller is gone is nobody's news."""
    if not read.cancelled():
        read.exception()
