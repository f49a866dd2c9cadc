"""What of the processes of one history waits for somebody: blocked steps, and what was given up; helped on one by one.

As with everything that is done to processes by hand, what is done is an event of the instance: it is in order with all
else, is kept with who did it and why, and is taken in by whichever worker has the process. An event that comes too
late, since somebody else was faster, changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from diptych.errors import ConfigurationError, MessageError
from diptych.event_store.event_store import EventStore, KeptOutcome
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import decode
from diptych.messages.command import Command
from diptych.messages.envelope import Envelope
from diptych.messages.event import Event, EventContext
from diptych.process_managers.process_events import InstanceEvent, OutgoingDiscarded, StepSkipped
from diptych.process_managers.process_runner import ProcessRunner
from diptych.process_managers.process_store import Instance, Outgoing, ProcessStore
from diptych.process_managers.processes import append_by_hand

__all__ = ["FindOutcome", "HandEvent", "StuckOutgoing", "StuckProcesses", "StuckStep"]

RETRIES_LOOK_MAX = 200
"""Events by hand of one instance that are looked through for the retries of one step or command: the latest."""

FindOutcome: TypeAlias = Callable[[Command, str], Awaitable[KeptOutcome | None]]
"""The outcome that is kept of a command under an id, in whichever partition it belongs to."""


class StuckStep(NamedTuple):
    """A blocked instance, and its process."""

    process: str
    instance: Instance


class StuckOutgoing(NamedTuple):
    """A command or timeout that was given up, and the process that sends it."""

    process: str
    item: Outgoing


class HandEvent(NamedTuple):
    """Something that was done to an instance by hand."""

    process: str
    instance: str
    event: Event
    context: EventContext


class StuckProcesses:
    """What is stuck in the processes of one history. Made by the application.

    Args:
        runners: one for each process.
        events: the history.
        history: reads it.
        store: where the processes are kept.
        outcome: finds what is kept of a command.
    """

    def __init__(
        self,
        runners: Sequence[ProcessRunner],
        events: EventStore,
        history: History,
        store: ProcessStore,
        outcome: FindOutcome,
    ) -> None:
        self._runners = {runner.process.name: runner for runner in sorted(runners, key=lambda each: each.process.name)}
        self._events = events
        self._history = history
        self._store = store
        self._outcome = outcome

    # ── what is stuck ────────────────────────────────────────────────────────

    async def steps(self, after: tuple[str, str] | None, limit: int) -> list[StuckStep]:
        """The first `limit` blocked instances behind a process and an instance, by both."""
        found: list[StuckStep] = []
        for process in self._from(after and after[0]):
            behind = after[1] if after and after[0] == process else None
            if len(found) < limit:
                page = await self._store.page(process, behind, limit - len(found), blocked=True)
                found += [StuckStep(process, instance) for instance in page]
        return found

    async def outgoing(self, after: tuple[str, str, str] | None, limit: int) -> list[StuckOutgoing]:
        """The first `limit` that were given up, behind a process, an instance and an id, by the three of them."""
        found: list[StuckOutgoing] = []
        for process in self._from(after and after[0]):
            behind = (after[1], after[2]) if after and after[0] == process else None
            if len(found) < limit:
                page = await self._store.dead(process, behind, limit - len(found))
                found += [StuckOutgoing(process, item) for item in page]
        return found

    async def steps_at(self, recorded: RecordedEvent) -> list[StuckStep]:
        """The instances that are blocked at an event."""
        return [
            StuckStep(name, instance)
            for name, runner in self._runners.items()
            if (named := runner.process.named_by(recorded.tags))
            for instance in await self._store.instances(name, named)
            if instance.blocked == recorded.position
        ]

    async def outgoing_at(self, recorded: RecordedEvent) -> list[StuckOutgoing]:
        """What was given up of the reactions to an event."""
        return [
            StuckOutgoing(name, item)
            for name, runner in self._runners.items()
            for instance in runner.process.named_by(recorded.tags)
            for item in await self._store.outgoing(name, instance)
            if item.dead and item.position == recorded.position
        ]

    def _from(self, process: str | None) -> list[str]:
        return [name for name in self._runners if process is None or name >= process]

    # ── by hand ──────────────────────────────────────────────────────────────

    async def retry_step(self, step: StuckStep, actor: str, reason: str) -> int:
        """Have a blocked instance take its event again; the position of the event that says so."""
        cls = self._runners[step.process].process.by_hand.step_retried
        event = cls(instance=step.instance.id, reason=reason, position=step.instance.blocked)
        return await self._append(event, Envelope(actor=actor))

    async def skip_step(self, step: StuckStep, actor: str, reason: str) -> int:
        """Have a blocked instance leave its event out; the position of the event that says so."""
        cls = self._runners[step.process].process.by_hand.step_skipped
        event = cls(instance=step.instance.id, reason=reason, position=step.instance.blocked)
        return await self._append(event, Envelope(actor=actor))

    async def resend(self, stuck: StuckOutgoing, edited: Mapping[str, Any] | None, actor: str, reason: str) -> int:
        """Send one again that was given up, with other fields where some are given.

        An edited command is another one, under an id made of the event that says so: what may be kept under the
        id of before, a rejection for one, is not its outcome (G4). It keeps its place among the instance's commands.

        Returns:
            The position of that event.

        Raises:
            ConfigurationError: it is a timeout, whose fields are an event's; or it has taken effect after all.
            InvalidMessage: a field is unknown, or of the wrong type.
            UnknownMessage: nobody handles the command any more.
        """
        process, item = self._runners[stuck.process], stuck.item
        data = None if edited is None else await self._edited(process, item, edited)
        cls = process.process.by_hand.outgoing_retried
        text = None if data is None else data.decode()
        event = cls(instance=item.instance, reason=reason, outgoing=item.id, data=text)
        return await self._append(event, _envelope(item, actor))

    async def _edited(self, runner: ProcessRunner, item: Outgoing, fields: Mapping[str, Any]) -> bytes | None:
        if item.kind != "command":
            raise ConfigurationError(
                f"{item.type} is a timeout, which becomes an event, and is never edited: retry it as it is, or discard "
                "it"
            )
        data = runner.outbox.edited(item, fields)
        kept = await self._kept(runner, item)
        if data is not None and kept is not None and kept.rejection is None:
            raise ConfigurationError(
                f"{item.type} {item.id} has taken effect after all, at position {kept.place.position}: retry it as it "
                "is, which does nothing more, or discard it"
            )
        return data

    async def _kept(self, runner: ProcessRunner, item: Outgoing) -> KeptOutcome | None:
        """What is kept of a command as it was; None where it names no handler or partition that could have had it."""
        try:
            return await self._outcome(runner.outbox.command(item.type, item.data), item.id)
        except MessageError:
            return None

    async def drop(self, stuck: StuckOutgoing, actor: str, reason: str) -> int:
        """Drop one that was given up; the position of the event that says so."""
        item = stuck.item
        cls = self._runners[stuck.process].process.by_hand.outgoing_discarded
        event = cls(
            instance=item.instance,
            reason=reason,
            outgoing=item.id,
            kind=item.kind,
            name=item.type,
            data=item.data.decode(),
        )
        return await self._append(event, _envelope(item, actor))

    async def _append(self, event: InstanceEvent, envelope: Envelope) -> int:
        return await append_by_hand(self._events, self._history, event, envelope)

    # ── what was done ────────────────────────────────────────────────────────

    async def retries(self, process: str, instance: str) -> list[HandEvent]:
        """The latest retries of what was stuck in an instance, the latest first; at most `RETRIES_LOOK_MAX`."""
        found = self._runners[process].process
        hand = found.by_hand
        query = found.done_by_hand(hand.retried, hand.step_retried, hand.outgoing_retried, instance=instance)
        events = (await self._events.read_backward(query, RETRIES_LOOK_MAX)).events
        return [self._hand_event(process, recorded) for recorded in sorted(events, key=_position, reverse=True)]

    async def discarded(self, cls: type[StepSkipped | OutgoingDiscarded], after: int, limit: int) -> list[HandEvent]:
        """The first `limit` events behind a position that say that a step was skipped, or something dropped."""
        found: list[HandEvent] = []
        for name, runner in self._runners.items():
            classes = [each for each in runner.process.by_hand if issubclass(each, cls)]
            query = runner.process.done_by_hand(*classes)
            events = (await self._events.read(query, Position(after), limit)).events
            found += [self._hand_event(name, recorded) for recorded in events]
        return sorted(found, key=lambda each: each.context.position)[:limit]

    def _hand_event(self, process: str, recorded: RecordedEvent) -> HandEvent:
        event = self._history.event(recorded)
        assert isinstance(event, InstanceEvent), "what is done by hand is done to an instance"
        return HandEvent(process, event.instance, event, self._history.context(recorded))


def _position(recorded: RecordedEvent) -> int:
    return recorded.position


def _envelope(item: Outgoing, actor: str) -> Envelope:
    """What is done to something belongs to what that belongs to."""
    of = decode(item.metadata, Envelope)
    return Envelope(actor=actor, correlation_id=of.correlation_id, traceparent=of.traceparent)
