"""Read models beside events in memory, as an append sees them. See the port."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.inline_rows import Appending, InlineFold, at_once
from diptych.read_side.read_store import (
    BlockedKey,
    Discard,
    Generation,
    Key,
    Row,
    RowsAsked,
    SliceWrite,
    WriteResult,
)

__all__ = ["InlineStep"]


class InlineStep:
    """What every append does to the read models in its process: nothing else runs before both are there."""

    def __init__(self, fold: InlineFold, rows: MemoryReadStore, log: EventLog) -> None:
        """Remember the rows, and the log, whose methods wait for nothing."""
        self._fold = fold
        self._rows = _Rows(rows, log)
        self._store = rows

    def __call__(self, appending: Appending) -> None:
        """Fold what was appended; all of it is written at the end, or nothing."""
        if self._store.is_open:
            try:
                at_once(self._fold.fold(self._rows, appending))
            except Exception as error:  # noqa: BLE001 - the events are there: the projector folds them
                self._fold.failed(error)


class _Rows:
    def __init__(self, rows: MemoryReadStore, log: EventLog) -> None:
        self._rows = rows
        self._log = log

    async def generations(self, names: Collection[str]) -> Sequence[Generation]:
        return [found for found in await self._rows.generations() if found.name in names]

    async def blocked(self, generation: Generation) -> Sequence[BlockedKey]:
        return await self._rows.view().blocked(generation.name, generation.number)

    async def discards(self, name: str) -> Sequence[Discard]:
        return await self._rows.discards(name)

    async def load(self, asked: RowsAsked) -> Mapping[Key, Row]:
        return await self._rows.view().get_many(asked.generation.name, asked.keys, asked.generation.number)

    async def expired(self, name: str, moment: datetime, limit: int, number: int) -> list[Key]:
        return await self._rows.view().expired(name, moment, limit, number)

    async def event_id(self, position: Position) -> bytes | None:
        place = await self._log.place_at(position)
        return None if place is None else place.event_id

    async def events(self, query: EventQuery, after: Position, until: Position) -> Sequence[RecordedEvent]:
        return (await self._log.read(query, after, until - after, until=until)).events

    async def write(self, writes: Sequence[SliceWrite]) -> Sequence[WriteResult]:
        return await self._rows.write(writes)
