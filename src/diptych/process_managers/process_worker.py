"""The worker: runs the processes of one history, and its scheduler, in this operating system's process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

import msgspec

from diptych.clock import Clock
from diptych.errors import NotGranted
from diptych.event_store.event_store import EventStore
from diptych.event_store.position import START, Position
from diptych.event_store.timestamp import to_microseconds
from diptych.process_managers.process_leases import ProcessLeases
from diptych.process_managers.process_runner import ProcessRunner
from diptych.process_managers.process_store import InstanceCount, Outgoing, ProcessStore
from diptych.process_managers.scheduler import SCHEDULED, Scheduler
from diptych.process_managers.sender import SEND_BACKOFF_MAX_S, OutgoingSender

__all__ = ["ProcessStatus", "ProcessWorker", "ScheduledStatus"]

FAILING_LOOK_MAX = 1_000
"""Commands and timeouts of a process that are looked through for those that fail, in tests."""
REST_LOOK_S = 0.2
"""Seconds after which a process that is waited for is looked at again: its failure wakes nobody."""

_log = logging.getLogger("diptych.processes")


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a process is.

    Attributes:
        name: with its context.
        checkpoint: up to where it has followed the history, as it is stored.
        lag_events: how many positions the history is ahead of it; 0 where nothing there is for it.
        count: its instances, and what waits.
        stopped: why it cannot go on; empty while it can.
    """

    name: str
    checkpoint: int
    lag_events: int
    count: InstanceCount
    stopped: str = ""


class ScheduledStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How many commands are scheduled.

    Attributes:
        waiting: that are not due, or not executed yet.
        failed: that were given up.
        stopped: why none is executed here, though this process is meant to; empty where that is not so.
    """

    waiting: int = 0
    failed: int = 0
    stopped: str = ""


class ProcessWorker:
    """Opens, runs and closes the processes of one history, and its scheduler. Made by the application.

    Args:
        runners: one for each process.
        scheduler: executes what was scheduled.
        events: the history.
        store: where the processes are kept.
        leases: of this worker.
        clock: tells the time.

    Attributes:
        may_run: whether they run once it is opened; else they are only looked at.
    """

    def __init__(
        self,
        runners: Sequence[ProcessRunner],
        scheduler: Scheduler,
        events: EventStore,
        store: ProcessStore,
        leases: ProcessLeases,
        clock: Clock,
    ) -> None:
        self._runners = runners
        self._scheduler = scheduler
        self._working = [runner for runner in runners if not runner.process.retired]
        self._events = events
        self._store = store
        self._leases = leases
        self._clock = clock
        self._running = False
        self._refused = ""
        self.may_run = True

    async def open(self, *, running: bool) -> None:
        """Open the store; and react, and execute what is due, if `running`.

        Raises:
            StoreUnavailable: the store cannot be opened.
            NotGranted: there are processes, and this role of the database may not work on them.
        """
        await self._store.open()
        if running and self.may_run:
            for runner in self._working:
                await runner.open()
            if await self._may_lease():
                for runner in self._working:
                    runner.start()
                self._scheduler.start()
                self._running = True

    async def _may_lease(self) -> bool:
        try:
            await self._scheduler.open()
            await self._leases.open()
        except NotGranted as error:
            if self._working:
                raise
            self._refused = str(error)
            _log.warning("scheduled commands are not executed by this process: %s", error)
            return False
        return True

    async def close(self) -> None:
        """Stop; what is under way comes again."""
        self._running = False
        async with AsyncExitStack() as closing:  # one that fails, or is cancelled, leaves none of the others open
            closing.push_async_callback(self._store.close)
            closing.push_async_callback(self._leases.close)
            for runner in self._runners:
                closing.push_async_callback(runner.close)
            closing.push_async_callback(self._scheduler.close)

    async def at_rest(self) -> None:
        """Wait until every process that can go on has taken in all that there is, and all that is due has gone out."""
        seen: Position | None = None
        while self._running:
            head = (await self._events.head()).position
            if head == seen:
                return
            seen = head
            for runner in self._working:
                while runner.position < head and not runner.failure:
                    await runner.moved(REST_LOOK_S)
                await _rest(runner.sender, partial(getattr, runner, "failure"))
            await _rest(self._scheduler.sender, self._scheduled_elsewhere)

    def _scheduled_elsewhere(self) -> str:
        return "" if self._leases.epoch(SCHEDULED) is not None else "another worker executes what is scheduled"

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing has been given to the scheduler since it was at rest."""
        elsewhere = not self._running or self._scheduled_elsewhere() or self._scheduler.sender.failure
        return bool(elsewhere) or self._scheduler.sender.is_at_rest

    async def failure(self) -> str:
        """Why one of them does not go on; empty where all do, here or elsewhere."""
        stored = await self._checkpoints() if any(runner.stopped for runner in self._working) else {}
        found = ((runner.process.name, _stopped(runner, stored)) for runner in self._working)
        failures = (f"process {name}: {failure}" for name, failure in found if failure)
        return next(failures, self._leases.failure if self._running and self._working else "")

    async def _checkpoints(self) -> Mapping[str, Position]:
        return {found.name: found.checkpoint.position for found in await self._store.processes()}

    async def stuck(self) -> list[tuple[str, str]]:
        """Each process of which an instance is blocked, or has something that was given up, and the first such one."""
        found = [
            (runner.process.name, await self._store.page(runner.process.name, None, 1, stuck=True))
            for runner in self._runners
        ]
        return [(name, page[0].id) for name, page in found if page]

    async def wrong_with_scheduled(self) -> list[str]:
        """What is wrong with scheduled commands: that none is executed here, or that some were given up."""
        failure = (self._scheduler.sender.failure or self._leases.failure) if self._running else ""
        given_up = await self._store.dead(SCHEDULED, None, 1)
        return [
            *([f"scheduled commands are not executed: {failure}"] if failure else []),
            *(f"scheduled commands were given up, the first is {found.id!r}" for found in given_up),
        ]

    async def scheduled(self) -> ScheduledStatus:
        """How many commands are scheduled."""
        count = await self._store.count(SCHEDULED)
        stopped = self._refused or self._scheduler.sender.failure
        return ScheduledStatus(waiting=count.waiting, failed=count.dead, stopped=stopped)

    async def failing(self, process: str) -> list[Outgoing]:
        """What is tried again soon since it failed; what was only not available is not counted among it."""
        soon_us = to_microseconds(self._clock.now()) + round(SEND_BACKOFF_MAX_S * 1_000_000)
        waiting = await self._store.due(process, soon_us, FAILING_LOOK_MAX)
        return [item for item in waiting if item.attempts]

    async def status(self) -> list[ProcessStatus]:
        """How far each is, by name."""
        if not self._runners:
            return []
        head = (await self._events.head()).position
        stored = await self._checkpoints()
        found: list[ProcessStatus] = []
        for runner in sorted(self._runners, key=lambda runner: runner.process.name):
            name = runner.process.name
            checkpoint = stored.get(name, head)
            waits = (await self._events.read(runner.process.query, max(checkpoint, runner.position), 1)).events
            found.append(
                ProcessStatus(
                    name=name,
                    checkpoint=checkpoint,
                    lag_events=head - waits[0].position + 1 if waits and not runner.process.retired else 0,
                    count=await self._store.count(name),
                    stopped=_stopped(runner, stored),
                )
            )
        return found


async def _rest(sender: OutgoingSender, failure: Callable[[], str]) -> None:
    sender.wake()
    while not (failure() or sender.failure or await sender.rest(REST_LOOK_S)):
        continue


def _stopped(runner: ProcessRunner, stored: Mapping[str, Position]) -> str:
    """Why a process does not go on; empty also where this one has left it to others, and they have gone on."""
    left = runner.stopped and stored.get(runner.process.name, START) > runner.position
    return "" if left else runner.failure or runner.sender.failure
