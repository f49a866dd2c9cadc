"""Stored events as folds take them: with their classes, decoded once for all projections."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import UnreadableEvent
from diptych.event_store.history import History
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.event import Event
from diptych.read_side.batch import DecodedEvent, DecodedPart

__all__ = ["decoded"]


def decoded(history: History, events: Sequence[RecordedEvent], *, in_context: bool) -> list[DecodedEvent]:
    """Recorded events with their classes, and with their contexts if these are asked for."""
    splitting = history.types.splitting
    if splitting and any(recorded.type in splitting for recorded in events):
        return [_decode_parts(history, recorded, in_context=in_context) for recorded in events]
    return [_decode(history, recorded, in_context=in_context) for recorded in events]


def _decode(history: History, recorded: RecordedEvent, *, in_context: bool) -> DecodedEvent:
    event: Event | None = None
    error = ""
    try:
        event = history.event(recorded)
    except UnreadableEvent as unreadable:
        error = str(unreadable)
    context = history.context(recorded) if in_context else None
    return DecodedEvent(recorded.position, recorded.event_id, recorded.type, event, context, error)


def _decode_parts(history: History, recorded: RecordedEvent, *, in_context: bool) -> DecodedEvent:
    """An event that may be several now, or none: they stay together, for they are at one place."""
    if not history.splits(recorded):
        return _decode(history, recorded, in_context=in_context)
    parts: Sequence[DecodedPart] | None = None
    error = ""
    try:
        parts = [
            DecodedPart(event, history.context(recorded, ordinal) if in_context else None)
            for ordinal, event in enumerate(history.parts(recorded))
        ]
    except UnreadableEvent as unreadable:
        error = str(unreadable)
    context = history.context(recorded) if in_context else None
    return DecodedEvent(recorded.position, recorded.event_id, recorded.type, None, context, error, parts)
