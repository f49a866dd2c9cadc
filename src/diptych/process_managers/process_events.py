"""The events of processes themselves: timeouts, rejections of their commands, and what is done to them by hand.

They are events like any other, in the one order of the history, so that folding a process again gives the same
(rule 42). Beside timeouts, which the user writes, each is a class made for its process and registered with it: it is
tagged with the instance that it is for, and with nothing else.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from diptych.messages.command import Command
from diptych.messages.event import Event
from diptych.messages.identity import UNTAGGED, Untagged
from diptych.messages.message import MessageMeta

__all__ = [
    "CommandGiven",
    "CommandRejected",
    "InstanceClosed",
    "InstanceEvent",
    "InstanceRetried",
    "OutgoingDiscarded",
    "OutgoingRetried",
    "StepRetried",
    "StepSkipped",
    "Timeout",
    "event_of_process",
]

C = TypeVar("C", bound=Command)


class Timeout(Event):
    """What a process set itself to hear later: `class DepositOverdue(Timeout): transfer: TransferId`.

    It is appended when it is due, as an event of the context, and reaches the instance that it names.
    """


class InstanceEvent(Event):
    """What Diptych appends for one instance of a process.

    Attributes:
        instance: its identity. The event is tagged with it.
    """

    instance: Untagged[str]


class CommandRejected(InstanceEvent, Generic[C]):
    """A command that a process sent was rejected: `CommandRejected[Deposit]` in the annotation of `react`.

    Attributes:
        instance: the identity of the instance that sent it.
        command: as it was sent.
        code: of the rejection.
        facts: of the rejection, as JSON reads them back.
    """

    command: Untagged[C]
    code: str
    facts: dict[str, Any]


class InstanceRetried(InstanceEvent):
    """Somebody lets a blocked instance react again, and sends what was given up."""

    reason: str


class InstanceClosed(InstanceEvent):
    """Somebody ends an instance: what it waits for, and what it has not sent, is dropped."""

    reason: str


class CommandGiven(InstanceEvent):
    """Somebody has an instance send a command.

    Attributes:
        command: its name, with that of its context: "bank.Refund".
        data: its fields as JSON text.
    """

    reason: str
    command: str
    data: str


class StepRetried(InstanceEvent):
    """Somebody has a blocked instance take the event again that it could not react to.

    Attributes:
        position: of that event; where it is blocked at another one, nothing is done.
    """

    reason: str
    position: int


class StepSkipped(InstanceEvent):
    """Somebody has a blocked instance leave out the event that it could not react to, and go on behind it.

    Attributes:
        position: of that event; where it is blocked at another one, nothing is done.
    """

    reason: str
    position: int


class OutgoingRetried(InstanceEvent):
    """Somebody has a command or timeout sent again that was given up.

    Attributes:
        outgoing: its id; where it is not given up any more, nothing is done.
        data: the fields that the command has from now on, as JSON text, under an id made of this event; None where
            they stay, with the id.
    """

    reason: str
    outgoing: str
    data: str | None = None


class OutgoingDiscarded(InstanceEvent):
    """Somebody drops a command or timeout that was given up. What never went out is kept here.

    Attributes:
        outgoing: its id; where it is not given up any more, nothing is done.
        kind: "command" or "timeout".
        name: of the command with its context, or the stored name of the timeout.
        data: its fields as JSON text.
    """

    reason: str
    outgoing: str
    kind: str
    name: str
    data: str


def event_of_process(
    base: type[InstanceEvent], name: str, stored_as: str, identity: type, command: type[Command] | None = None
) -> type[Any]:
    """A concrete class of one of these, for one process: its instance is typed with the process's identity."""
    annotations: dict[str, Any] = {"instance": identity}
    if command is not None:
        annotations["command"] = Annotated[command, UNTAGGED]
    namespace = {"__module__": __name__, "__doc__": base.__doc__, "__annotations__": annotations}
    return MessageMeta(name, (base,), namespace, stored_as=stored_as)
