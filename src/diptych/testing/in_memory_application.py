"""The whole application in memory, at rest after every command: for tests that go through both panels."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar, Unpack

from diptych.application import registration
from diptych.application.application import Application
from diptych.application.bounded_context import BoundedContext
from diptych.application.partitions import Partitions
from diptych.application.query_panel import HowAsked
from diptych.errors import ConfigurationError
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Appended, Commit
from diptych.event_store.history import History
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.messages.command import Command
from diptych.messages.event import Event, EventContext
from diptych.messages.query import Query
from diptych.messages.registry import EventTypes
from diptych.messages.unique_id import unique_bytes
from diptych.process_managers.process_worker import ProcessStatus
from diptych.process_managers.scheduled_commands import Scheduled
from diptych.process_managers.scheduler import SCHEDULED
from diptych.read_side.projection import Projection
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_limits import NO_LIMITS, QueryLimits
from diptych.read_side.query_middleware import QueryMiddleware
from diptych.read_side.read_model import ReadModel
from diptych.read_side.read_store import Order
from diptych.read_side.snapshot_reader import moment_shown
from diptych.security import Actor
from diptych.testing.manual_clock import ManualClock
from diptych.write_side.command_bus import CommandMiddleware
from diptych.write_side.idempotency import Receipt

__all__ = ["Fact", "InMemoryApplication"]

SETTLE_S = 30.0
"""Seconds that projections and subscribers may take to come to rest."""
SUBSCRIBER_LOOK_S = 0.2
"""Seconds after which a subscriber that does not move is looked at again: its failure wakes nobody."""
ROWS_MAX = 10_000
"""Rows of one read model that `rows` gives at most."""

R = TypeVar("R")
M = TypeVar("M", bound=ReadModel)


class Fact(NamedTuple):
    """A recorded event as the store holds it, as its class reads it, and what is known beside.

    What was stored as one event and is several now is as many facts, with one position, and ordinals in their contexts.
    """

    recorded: RecordedEvent
    event: Event
    context: EventContext


class InMemoryApplication(Application):
    """An `Application` for tests: `async with InMemoryApplication(school) as app: await app.execute(...)`.

    It is deterministic: events and rows are in memory, time stands still until `app.clock` is moved, and when
    `execute`, `given` or `advance` returns, every projection shows the whole history, every subscriber has had it, and
    every process has reacted and sent what is due. So queries need no token; and they are strict, so that a fold that
    failed is an error in the test that met it (`Blocked`).

    Args:
        contexts: at least one.
        services: what handlers and subscribers take, by type.
        command_middleware: wraps the way of every command, the first outermost.
        query_middleware: wraps the way of every query, the first outermost.
        query_limits: what queries may take of which their author says nothing, see `Application`.
        clock: tells the time; a new `ManualClock` by default.
        reacting: whether processes react to what happens, and send.
        store: the URL of an empty store, where it is the store that is tried.
    """

    def __init__(
        self,
        *contexts: BoundedContext,
        services: Mapping[type[Any], object] | None = None,
        command_middleware: Sequence[CommandMiddleware] = (),
        query_middleware: Sequence[QueryMiddleware] = (),
        query_limits: QueryLimits = NO_LIMITS,
        clock: ManualClock | None = None,
        reacting: bool = True,
        store: str = "memory:",
    ) -> None:
        self.clock = clock or ManualClock()
        super().__init__(
            *contexts,
            store=store,
            services=services,
            command_middleware=command_middleware,
            query_middleware=query_middleware,
            query_limits=query_limits,
            clock=self.clock,
        )
        self._types = EventTypes(())
        self._projections: Mapping[type, Projection] = {}
        self._reacting = reacting
        self._executed = False
        self._settling = False

    async def open(self) -> None:
        """See `Application.open`."""
        await super().open()
        self._types = registration.event_types(self.contexts)
        found = registration.projections(self.contexts, self._types)
        self._projections = {projection.form.cls: projection for projection in found}

    def _wired(self) -> Partitions:
        wired = super()._wired()
        wired.find("").process_worker.may_run = self._reacting
        return wired

    # ── the two panels ───────────────────────────────────────────────────────

    async def given(self, *events: Event) -> None:
        """Append facts as they are, at the clock's time, as if they had been decided before this application began.

        Raises:
            InvalidMessage: a field is of the wrong type.
            RuntimeError: a command was executed already; what comes then is for commands to decide.
        """
        if self._executed:
            raise RuntimeError("given() tells what was before the first command; this application has executed one")
        new = tuple(self._new_event(event) for event in events)
        (result,) = await self.partition().store.append([Commit(events=new)])
        assert isinstance(result, Appended), f"the store did not take {events!r}: {result!r}"
        await self.settled()

    async def execute(
        self,
        command: Command,
        /,
        *,
        command_id: str | None = None,
        actor: Actor | str | None = None,
        reason: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        based_on: Receipt | Answer[Any] | str | None = None,
    ) -> Receipt:
        """See `Application.execute`; nothing that follows from the command is left to be done when it returns."""
        self._executed = True
        try:
            return await super().execute(
                command,
                command_id=command_id,
                actor=actor,
                reason=reason,
                correlation_id=correlation_id,
                causation_id=causation_id,
                traceparent=traceparent,
                based_on=based_on,
            )
        finally:
            await self.settled()

    async def schedule(  # noqa: PLR0913 — by keyword, most of them
        self,
        command: Command,
        /,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        expires_at: datetime | None = None,
        expires_after: timedelta | None = None,
        priority: int = 0,
        command_id: str | None = None,
        actor: Actor | str | None = None,
        reason: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
    ) -> Scheduled:
        """See `Application.schedule`; what is due at once is done when it returns, the rest with `advance`."""
        self._executed = True
        try:
            return await super().schedule(
                command,
                at=at,
                after=after,
                expires_at=expires_at,
                expires_after=expires_after,
                priority=priority,
                command_id=command_id,
                actor=actor,
                reason=reason,
                correlation_id=correlation_id,
                causation_id=causation_id,
                traceparent=traceparent,
            )
        finally:
            await self.settled()

    async def answer(self, query: Query[R], /, **how: Unpack[HowAsked]) -> Answer[R]:
        """See `Application.answer`; unless told otherwise it shows everything."""
        return await super().answer(query, **_latest_unless_told(how))

    async def answer_many(self, queries: Sequence[Query[Any]], /, **how: Unpack[HowAsked]) -> Answer[list[Any]]:
        """See `Application.answer_many`; unless told otherwise it shows everything."""
        return await super().answer_many(queries, **_latest_unless_told(how))

    async def advance(self, by: timedelta | float) -> None:
        """Move the clock on, by a duration or so many seconds; timeouts and scheduled commands due then are done.

        Raises:
            ValueError: it is negative.
        """
        self._executed = True
        self.clock.advance(by)
        await self.settled()

    # ── what has come about ──────────────────────────────────────────────────

    async def facts(self) -> list[Fact]:
        """The whole history, in order."""
        history = History(self._types)
        return [
            Fact(recorded, event, history.context(recorded, ordinal))
            async for recorded in self.events(ALL_EVENTS)
            for ordinal, event in enumerate(history.parts(recorded))
        ]

    async def rows(self, model: type[M]) -> list[M]:
        """The rows of a read model that have not expired, ordered by key, at most `ROWS_MAX`.

        Raises:
            ConfigurationError: no projection feeds it.
        """
        projection = self._projections.get(model)
        if projection is None:
            raise ConfigurationError(f"{model.__name__} is fed by no projection of {self.contexts!r}")
        order = [Order(name) for name in projection.form.key_fields]
        async with self.partition().read_store.snapshot() as snapshot:
            slices = await snapshot.slices(projection.name)
            shown = projection.form.unexpired(moment_shown(slices, self.clock.now()))
            return [projection.form.model(row) for row in await snapshot.find(projection.name, shown, order, ROWS_MAX)]

    async def settled(self) -> None:
        """Wait until projections, subscribers and processes have followed the history to its end.

        A command that a subscriber executes meanwhile returns at once: it is this wait that covers it.

        Raises:
            AssertionError: a subscriber or process fails, or they do not come to rest within `SETTLE_S` seconds.
        """
        if self._settling:
            return
        self._settling = True
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._follow_to_the_end()
        except TimeoutError:
            raise AssertionError(f"after {SETTLE_S:g} s still not at rest: {await self.status()}") from None
        finally:
            self._settling = False

    async def _follow_to_the_end(self) -> None:
        seen = 0
        while True:
            await self.partition().process_worker.at_rest()
            await self.projected()
            status = await self.status()
            for process in status.processes if self._reacting else ():
                await self._check_process(process)
            if self._reacting:
                await self._check_scheduled()
            for subscriber in status.subscribers:
                if subscriber.stopped:
                    raise AssertionError(f"the subscriber {subscriber.name} fails: {subscriber.stopped}")
            behind = any(found.lag_events for found in status.subscribers)
            behind = behind or not self.partition().process_worker.is_at_rest
            if not behind and (await self.partition().store.head()).position == status.head:
                return
            seen = await self.partition().read_store.wait_for_change(seen, SUBSCRIBER_LOOK_S)

    async def _check_process(self, process: ProcessStatus) -> None:
        """Raise what is wrong with a process."""
        if process.stopped:
            raise AssertionError(f"the process {process.name} fails: {process.stopped}")
        if process.count.blocked or process.count.dead:
            (found, *_) = await self.processes.list(process.name, stuck=True)
            shown = await self.processes.show(process.name, found.id)
            given_up = [f"{item.name}: {item.failure}" for item in (*shown.commands, *shown.timeouts) if item.dead]
            reason = found.failure or "; ".join(given_up)
            raise AssertionError(f"the instance {found.id!r} of {process.name} is stuck: {reason}")
        for failing in await self.partition().process_worker.failing(process.name):
            raise AssertionError(
                f"{failing.type}, sent by {process.name} {failing.instance!r}, fails: {failing.failure}"
            )

    async def _check_scheduled(self) -> None:
        """Raise what is wrong with commands that were scheduled."""
        failing = await self.partition().process_worker.failing(SCHEDULED)
        told = [(found.type, found.id, found.failure) for found in failing]
        told += [(found.command, found.command_id, found.failure) for found in await self.scheduled.list(failed=True)]
        for name, command_id, failure in told:
            raise AssertionError(f"{name}, scheduled as {command_id!r}, fails: {failure}")

    def _new_event(self, event: Event) -> NewEvent:
        found = self._types.of(type(event))
        data, settled = found.codec.settle(event)
        return NewEvent(unique_bytes(), found.name, found.version, data, found.tags(settled))


def _latest_unless_told(how: HowAsked) -> HowAsked:
    asked = (how.get(name) for name in ("freshness", "after", "within_s", "as_of"))
    return how if any(value is not None for value in asked) else {**how, "freshness": "latest"}
