"""What the processes of a scenario make of its last event: the fold of an application, and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from diptych.application import registration
from diptych.application.bounded_context import BoundedContext
from diptych.errors import ConfigurationError
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.timestamp import moment
from diptych.messages.codec import Codec
from diptych.messages.command import Command
from diptych.messages.event import Event, EventContext
from diptych.messages.registry import EventTypes, MessageTypes
from diptych.process_managers.process_events import CommandRejected, Timeout
from diptych.process_managers.process_manager import Process, ProcessManager
from diptych.process_managers.process_store import Instance, Outgoing
from diptych.process_managers.reactions import Folded, Given, Outbox
from diptych.testing.difference import listed

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Happened", "ProcessOutcome", "react_to"]


class Happened(NamedTuple):
    """An event that has happened, and when it was recorded."""

    event: Event
    recorded_at: datetime


class _Reacted(NamedTuple):
    """What came of the last event in one process."""

    process: Process
    instances: Mapping[str, Instance]
    outgoing: Sequence[Outgoing]


class ProcessOutcome:
    """What processes made of an event. Each check gives the same outcome again, for the next one."""

    def __init__(self, event: Event, reacted: Sequence[_Reacted], types: EventTypes, commands: MessageTypes) -> None:
        self._event = event
        self._reacted = reacted
        self._types = types
        self._commands = commands

    def then_commands(self, *commands: Command) -> Self:
        """Exactly these commands are sent, in this order.

        Raises:
            AssertionError: others are.
        """
        __tracebackhide__ = True
        expected = [Codec(type(command)).settle(command)[1] for command in commands]
        actual = [self._decoded(item) for item in self._of("command")]
        self._compare("commands", expected, actual)
        return self

    def then_timeouts(self, *timeouts: tuple[Timeout, timedelta | datetime]) -> Self:
        """Exactly these timeouts are set, in this order: each for a time, or so long after the event.

        Raises:
            AssertionError: others are.
        """
        __tracebackhide__ = True
        items = self._of("timeout")
        after = [due for _, due in timeouts]
        actual: list[object] = []
        for n, item in enumerate(items):
            due = moment(item.due_us)
            as_duration = n < len(after) and isinstance(after[n], timedelta)
            actual.append((self._decoded(item), due - self._recorded_at if as_duration else due))
        self._compare("timeouts", list(timeouts), actual)
        return self

    def then_nothing(self) -> Self:
        """Nothing is sent or set.

        Raises:
            AssertionError: something is.
        """
        __tracebackhide__ = True
        return self.then_commands().then_timeouts()

    def then_state(self, state: ProcessManager[Any]) -> Self:
        """The instance that this is the state of has it now.

        Raises:
            AssertionError: no instance of its process has.
        """
        __tracebackhide__ = True
        states = [
            reacted.process.codec.decode(instance.state)
            for reacted in self._reacted
            for instance in reacted.instances.values()
            if reacted.process.cls is type(state)
        ]
        if state not in states:
            raise AssertionError(
                f"when {self._event!r}: no instance has the state {state!r}; there are\n{listed(states)}"
            )
        return self

    def then_ended(self) -> Self:
        """Every instance that the event is for has ended.

        Raises:
            AssertionError: one has not, or there is none.
        """
        __tracebackhide__ = True
        ended = [instance.ended for instance in self._meant()]
        if not ended or not all(ended):
            raise AssertionError(f"when {self._event!r}: expected the end of an instance, and {self._told()}")
        return self

    def then_going_on(self) -> Self:
        """Every instance that the event is for goes on.

        Raises:
            AssertionError: one has ended, or there is none.
        """
        __tracebackhide__ = True
        ended = [instance.ended for instance in self._meant()]
        if not ended or any(ended):
            raise AssertionError(f"when {self._event!r}: expected an instance that goes on, and {self._told()}")
        return self

    def _meant(self) -> list[Instance]:
        last = max((instance.last for each in self._reacted for instance in each.instances.values()), default=0)
        return [instance for each in self._reacted for instance in each.instances.values() if instance.last == last > 0]

    def _told(self) -> str:
        return ", ".join(f"{each.id!r} {'has ended' if each.ended else 'goes on'}" for each in self._meant()) or (
            "it meets none"
        )

    def _of(self, kind: str) -> list[Outgoing]:
        return [item for reacted in self._reacted for item in reacted.outgoing if item.kind == kind]

    def _decoded(self, item: Outgoing) -> Any:
        if item.kind == "command":
            return Codec(self._commands.find(item.type)).decode(item.data)
        found = self._types.stored_as(item.type)
        assert found is not None, "it was encoded as an event of the application"
        return found.codec.decode(item.data)

    @property
    def _recorded_at(self) -> datetime:
        return max(moment(each.last_at_us) for reacted in self._reacted for each in reacted.instances.values())

    def _compare(self, what: str, expected: Sequence[object], actual: Sequence[object]) -> None:
        __tracebackhide__ = True
        if list(expected) != list(actual):
            raise AssertionError(
                f"when {self._event!r}: the {what} differ; expected\n{listed(expected)}\nand got\n{listed(actual)}"
            )


def react_to(contexts: Sequence[BoundedContext], happened: Sequence[Happened]) -> ProcessOutcome:
    """Let every process take the events in order; twice, and compare.

    Raises:
        AssertionError: `react` fails, or is not pure.
        ConfigurationError: there is no process.
    """
    for context in contexts:
        context.load()
    types = registration.event_types(contexts)
    commands = MessageTypes("command", registration.handled_commands(contexts))
    processes = registration.processes(contexts, types, commands.names)
    if not processes:
        raise ConfigurationError("no process is declared in the contexts of the scenario")
    reacted: list[_Reacted] = []
    for process in processes:
        once, again = (_reacted(process, types, commands, happened) for _ in range(2))
        if once != again:
            raise AssertionError(
                f"{process.cls.__name__}.react is not pure: of the same events it made\n{listed(once[1:])}\n"
                f"and then\n{listed(again[1:])}"
            )
        reacted.append(once)
    return ProcessOutcome(happened[-1].event, reacted, types, commands)


def _reacted(process: Process, types: EventTypes, commands: MessageTypes, happened: Sequence[Happened]) -> _Reacted:
    folded = Folded(process, Outbox(process, commands, types), ())
    instances: dict[str, Instance] = {}
    for n, each in enumerate(happened, 1):
        given = _given(process, types, Position(n), each)
        if given.recorded.type not in process.query.items[0].types:
            continue
        for instance in process.named_by(given.recorded.tags):
            folded.take(instance, given)
            known = folded.find(instance)
            if known is not None:
                if known.blocked:
                    raise AssertionError(f"{process.cls.__name__}.react fails at {each.event!r}: {known.failure}")
                instances[instance] = known
    last = Position(len(happened))
    return _Reacted(process, instances, [item for item in folded.added if item.position == last])


def _given(process: Process, types: EventTypes, position: Position, happened: Happened) -> Given:
    event = happened.event
    if type(event) is CommandRejected:
        rejected: CommandRejected[Any] = event
        cls = process.rejections.get(type(rejected.command))
        if cls is not None:
            event = cls(instance=rejected.instance, command=rejected.command, code=rejected.code, facts=rejected.facts)
    event_id = position.to_bytes(16, "big")
    context = EventContext(position=position, event_id=str(UUID(bytes=event_id)), recorded_at=happened.recorded_at)
    if type(event) is CommandRejected:  # of another process
        return Given(RecordedEvent(position, event_id, "", 1, b"", (), b"{}", happened.recorded_at), event, context)
    found = types.of(type(event))
    data, settled = found.codec.settle(event)
    tags = found.tags(settled)
    recorded = RecordedEvent(position, event_id, found.name, found.version, data, tags, b"{}", happened.recorded_at)
    return Given(recorded, settled, context)
