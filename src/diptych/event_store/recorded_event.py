"""Events as the store holds them: bytes with a name, a version and tags."""

from __future__ import annotations

from datetime import datetime

import msgspec

from diptych.event_store.position import Position

__all__ = ["NewEvent", "RecordedEvent"]


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event to be appended.

    Attributes:
        event_id: 16 bytes, unique in the history.
        type: its stored name.
        version: its stored version, from 1.
        data: its fields as JSON.
        tags: each once.
        metadata: its envelope as JSON.
    """

    event_id: bytes
    type: str
    version: int
    data: bytes
    tags: tuple[str, ...] = ()
    metadata: bytes = b"{}"


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event of the history: what was appended, its position, and when.

    Attributes:
        position: its place in the one order, from 1.
        recorded_at: aware, in UTC, to the microsecond; never before that of an earlier position.
    """

    position: Position
    event_id: bytes
    type: str
    version: int
    data: bytes
    tags: tuple[str, ...]
    metadata: bytes
    recorded_at: datetime
