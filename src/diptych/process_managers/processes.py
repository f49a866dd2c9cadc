"""The processes of one history: listed, and helped on by hand.

What is done by hand is an event of the process, appended to the history like any other: so it is in order with all
else that happened, is kept with who did it and why, and is taken in by whichever worker has the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from diptych.clock import Clock
from diptych.errors import ConfigurationError, InvalidMessage
from diptych.event_store.event_store import Appended, Commit, EventStore, Refused
from diptych.event_store.history import History
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.event_store.timestamp import moment
from diptych.messages.codec import decode, encode
from diptych.messages.command import Command
from diptych.messages.envelope import Envelope
from diptych.messages.unique_id import unique_bytes
from diptych.process_managers.process_events import InstanceEvent
from diptych.process_managers.process_runner import ProcessRunner
from diptych.process_managers.process_store import Instance, Outgoing, ProcessStore

__all__ = ["InstanceDetails", "InstanceStatus", "Processes", "Waiting", "append_by_hand"]

LIST_INSTANCES_MAX = 1_000
"""Instances that one call lists."""
SHOWN_EVENTS_MAX = 1_000
"""Events of one instance that are shown."""


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, as it is listed.

    Attributes:
        process: its process, with the context: "bank.Transferring".
        id: its identity.
        state: its fields, as JSON reads them.
        started_at: when the event that began it was recorded.
        age: since then, until now, or until it ended.
        last_position: of the last event that it has taken; 0 where it has taken none.
        ended: whether it takes no more events.
        blocked: the position of the event that it could not react to; 0 where it goes on.
        failure: why it is blocked, or was closed; empty where neither is so.
    """

    process: str
    id: str
    state: dict[str, Any]
    started_at: datetime
    age: timedelta
    last_position: int
    ended: bool
    blocked: int
    failure: str


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A command or timeout that has not gone out.

    Attributes:
        id: the command's id, or that of the timeout's commit.
        name: of the command or timeout.
        data: its fields, as JSON reads them.
        due_at: when it goes out, or is tried again.
        position: of the event that it is a reaction to.
        attempts: how often it has failed.
        failure: how it failed last.
        dead: whether it was given up.
    """

    id: str
    name: str
    data: dict[str, Any]
    due_at: datetime
    position: int
    attempts: int
    failure: str
    dead: bool


class InstanceDetails(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of an instance.

    Attributes:
        status: as it is listed.
        events: that reach it, in order; the last `SHOWN_EVENTS_MAX`.
        commands: that wait to be sent, or were given up.
        timeouts: that wait to be due, or were given up.
    """

    status: InstanceStatus
    events: Sequence[RecordedEvent]
    commands: Sequence[Waiting]
    timeouts: Sequence[Waiting]


class Processes:
    """The processes of one history. Made by the application.

    Args:
        runners: one for each process.
        events: the history.
        history: reads it.
        store: where the processes are kept.
        clock: tells the time.
    """

    def __init__(
        self,
        runners: Sequence[ProcessRunner],
        events: EventStore,
        history: History,
        store: ProcessStore,
        clock: Clock,
    ) -> None:
        self._runners = runners
        self._store = store
        self._events = events
        self._history = history
        self._clock = clock

    # ── what is known ────────────────────────────────────────────────────────

    async def list(
        self,
        process: str | None = None,
        *,
        ended: bool = False,
        stuck: bool = False,
        after: InstanceStatus | None = None,
        limit: int = LIST_INSTANCES_MAX,
    ) -> Sequence[InstanceStatus]:
        """A page of instances, by process and id.

        Args:
            process: of this one alone; its name, with or without that of its context.
            ended: those that have ended as well.
            stuck: only those that are blocked, or have a command or timeout that was given up.
            after: the last one of the page before; None for the first page.
            limit: at most so many, up to `LIST_INSTANCES_MAX`.

        Raises:
            ConfigurationError: there is no such process.
        """
        found: list[InstanceStatus] = []
        room = min(limit, LIST_INSTANCES_MAX)
        names = sorted(each.process.name for each in (self._runners if process is None else [self._runner(process)]))
        for name in names:
            if room > len(found) and (after is None or name >= after.process):
                behind = after.id if after is not None and name == after.process else None
                page = await self._store.page(name, behind, room - len(found), ended=ended, stuck=stuck)
                found += [self._status(name, instance) for instance in page]
        return found

    async def show(self, process: str, instance: str) -> InstanceDetails:
        """All that is known of an instance.

        Raises:
            ConfigurationError: there is no such process or instance.
        """
        runner, known = await self._instance(process, instance)
        name = runner.process.name
        outgoing = await self._store.outgoing(name, instance)
        found = await self._events.read_backward(runner.process.of_instance(instance), SHOWN_EVENTS_MAX)
        is_meant = self._history.holds(runner.process.wanted_by(instance))
        return InstanceDetails(
            status=self._status(name, known),
            events=[each for each in found.events[::-1] if is_meant is None or is_meant(each)],
            commands=[_waiting(item) for item in outgoing if item.kind == "command"],
            timeouts=[_waiting(item) for item in outgoing if item.kind == "timeout"],
        )

    def _status(self, process: str, instance: Instance) -> InstanceStatus:
        started_at = moment(instance.started_at_us)
        until = moment(instance.last_at_us) if instance.ended else self._clock.now()
        return InstanceStatus(
            process=process,
            id=instance.id,
            state=decode(instance.state, dict[str, Any]),
            started_at=started_at,
            age=max(until - started_at, timedelta(0)),
            last_position=instance.last,
            ended=instance.ended,
            blocked=instance.blocked,
            failure=instance.failure,
        )

    def _runner(self, process: str) -> ProcessRunner:
        names = [runner for runner in self._runners if process in (runner.process.name, runner.process.cls.__name__)]
        if len(names) != 1:
            known = ", ".join(runner.process.name for runner in self._runners) or "none"
            raise ConfigurationError(f"there is no process {process!r} here, or several; there are {known}")
        return names[0]

    async def _instance(self, process: str, instance: str) -> tuple[ProcessRunner, Instance]:
        runner = self._runner(process)
        found = await self._store.instances(runner.process.name, [instance])
        if not found:
            raise ConfigurationError(f"{runner.process.name} has no instance {instance!r}")
        return runner, found[0]

    # ── by hand ──────────────────────────────────────────────────────────────

    async def retry(self, process: str, instance: str, *, reason: str = "", actor: str | None = None) -> int:
        """Let a blocked instance take the event again that it could not react to, and send what was given up.

        Returns:
            The position of the event that says so; it is taken in soon after.

        Raises:
            ConfigurationError: there is no such process or instance.
        """
        runner, _ = await self._instance(process, instance)
        retried = runner.process.by_hand.retried
        return await self._append(retried(instance=instance, reason=reason), actor)

    async def close(self, process: str, instance: str, *, reason: str, actor: str | None = None) -> int:
        """End an instance; its timeouts, and the commands that it has not sent, are dropped.

        Returns:
            The position of the event that says so; it is taken in soon after.

        Raises:
            ConfigurationError: there is no such process or instance.
        """
        runner, _ = await self._instance(process, instance)
        closed = runner.process.by_hand.closed
        return await self._append(closed(instance=instance, reason=reason), actor)

    async def send(
        self, process: str, instance: str, command: Command, *, reason: str = "", actor: str | None = None
    ) -> int:
        """Have an instance send a command, as if it had reacted with it; its rejection comes back to it.

        Returns:
            The position of the event that says so; it is sent soon after.

        Raises:
            ConfigurationError: there is no such process or instance.
            TypeError: nobody handles the command.
            InvalidMessage: a field is of the wrong type.
        """
        runner, _ = await self._instance(process, instance)
        name, data = runner.outbox.encoded(command)
        given = runner.process.by_hand.given
        event = given(instance=instance, reason=reason, command=name, data=data.decode())
        return await self._append(event, actor)

    async def _append(self, event: InstanceEvent, actor: str | None) -> int:
        return await append_by_hand(self._events, self._history, event, Envelope(actor=actor))


async def append_by_hand(events: EventStore, history: History, event: InstanceEvent, envelope: Envelope) -> int:
    """Append what somebody does to an instance; the position of the event. Why is in its metadata, as with every event.

    Raises:
        InvalidMessage: it cannot be stored, as where it is too large.
    """
    envelope = msgspec.structs.replace(envelope, reason=getattr(event, "reason", "") or None)
    found = history.types.of(type(event))
    data, settled = found.codec.settle(event)
    new = NewEvent(unique_bytes(), found.name, found.version, data, found.tags(settled), encode(envelope))
    (result,) = await events.append([Commit(events=(new,))])
    if isinstance(result, Refused):
        raise InvalidMessage(found.name, [("$", result.reason)])
    assert isinstance(result, Appended), f"an event without conditions is appended, and not {result!r}"
    return result.place.position


def _waiting(item: Outgoing) -> Waiting:
    return Waiting(
        id=item.id,
        name=item.type,
        data=decode(item.data, dict[str, Any]),
        due_at=moment(item.due_us),
        position=item.position,
        attempts=item.attempts,
        failure=item.failure,
        dead=item.dead,
    )
