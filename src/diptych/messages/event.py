"""Events: what happened, in the past tense, kept for good."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from diptych.errors import ConfigurationError
from diptych.messages.annotations import members, subclasses
from diptych.messages.message import Message

__all__ = ["Event", "EventContext", "event_classes"]


class Event(Message):
    """What happened: `class Enrolled(Event): course: CourseId`.

    What is stored is its name, qualified by the bounded context that publishes it (`school.Enrolled`), its version
    (`class Enrolled(Event, version=2)`) and its fields. A class that was renamed names what it was stored as before,
    `class CourseEnrolled(Event, formerly=["Enrolled"])`, or keeps its stored name for new events as well, with
    `class CourseEnrolled(Event, stored_as="school.Enrolled")`.
    """


class EventContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a recorded event beside its fields.

    Attributes:
        position: its place in the one order of the history, from 1.
        ordinal: which one of the parts that an upcaster made of what is stored there, from 0; 0 for all other events.
        event_id: its UUIDv7, as text; the parts of one stored event share it.
        recorded_at: when it was appended, aware, in UTC; never runs backwards along positions.
        command_id: the command that caused it.
        correlation_id: what it belongs to, as given with the command.
        causation_id: what caused the command, as given with it.
        actor: who wanted it.
        traceparent: the W3C trace context of the command.
        reason: why it was wanted, as given with the command.
    """

    position: int
    event_id: str
    recorded_at: datetime
    command_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    actor: str | None = None
    traceparent: str | None = None
    reason: str | None = None
    ordinal: int = 0


def event_classes(annotation: Any, owner: str) -> tuple[type[Event], ...]:
    """The concrete event classes that an annotation means: unions opened, base classes with their subclasses.

    Raises:
        ConfigurationError: a member is no event.
    """
    found: dict[type[Event], None] = {}
    for member in members(annotation):
        if not (isinstance(member, type) and issubclass(member, Event)):
            raise ConfigurationError(f"{owner}: {member!r} is no Event")
        found.update(dict.fromkeys(subclasses(member)))
    return tuple(found)
