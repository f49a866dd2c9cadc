"""What travels with every event beside its fields."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from diptych.messages.event import EventContext

__all__ = ["Envelope", "event_context"]


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Who and what caused an event: one envelope for all events of a command. See `EventContext` for the fields."""

    command_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    actor: str | None = None
    traceparent: str | None = None
    reason: str | None = None


def event_context(
    position: int, event_id: bytes, recorded_at: datetime, envelope: Envelope, ordinal: int = 0
) -> EventContext:
    """The envelope together with what the store assigned, and which part of the event it is for."""
    return EventContext(
        position=position,
        event_id=str(UUID(bytes=event_id)),
        recorded_at=recorded_at,
        command_id=envelope.command_id,
        correlation_id=envelope.correlation_id,
        causation_id=envelope.causation_id,
        actor=envelope.actor,
        traceparent=envelope.traceparent,
        reason=envelope.reason,
        ordinal=ordinal,
    )
