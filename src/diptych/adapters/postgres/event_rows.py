"""Rows of the table of events as recorded events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.timestamp import moment

if TYPE_CHECKING:
    import asyncpg

__all__ = ["EventRows", "decode_tags"]

TAG_LISTS_MAX = 10_000
"""Lists of tags kept decoded, since the events of one entity mostly carry the same."""

decode_tags = msgspec.json.Decoder(tuple[str, ...]).decode
"""Tags as they are stored, as names and values."""


class EventRows:
    """Rows of `reading` as events; what they have in common is made once."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._tag_lists: dict[bytes, tuple[str, ...]] = {}
        self._moment = (0, moment(0))

    def event(self, row: asyncpg.Record) -> RecordedEvent:
        """One row that `matching_events.reading` gives, as an event."""
        _, _, position, type, version, recorded_at_us, event_id, data, tags, metadata = row
        tag_list = self._tag_lists.get(tags) or self._decode_tags(tags)
        if recorded_at_us != self._moment[0]:
            self._moment = (recorded_at_us, moment(recorded_at_us))
        name = self._names.setdefault(type, type)
        return RecordedEvent(position, event_id, name, version, data, tag_list, metadata, self._moment[1])

    def _decode_tags(self, tags: bytes) -> tuple[str, ...]:
        if len(self._tag_lists) >= TAG_LISTS_MAX:
            self._tag_lists.clear()
        decoded = self._tag_lists[tags] = decode_tags(tags)
        return decoded
