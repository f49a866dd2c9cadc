"""Events read in slices, each by a statement of its own, as if in one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diptych.adapters.postgres.event_rows import EventRows
from diptych.adapters.postgres.matching_events import reading
from diptych.errors import HistoryDiverged
from diptych.event_store.position import Place, Position

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from diptych.adapters.postgres.event_watch import EventWatch
    from diptych.adapters.postgres.known_history import KnownHistory
    from diptych.event_store.event_query import EventQuery
    from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["EventSlices"]

READ_SLICE_EVENTS = 1_000
"""Events read by one statement; a longer read takes several."""


class EventSlices:
    """Reads the events of one schema.

    Args:
        schema: quoted.
        fetch: runs a statement that reads.
        known: learns of every head that is read.
        watch: is told of it.
    """

    def __init__(
        self, schema: str, fetch: Callable[..., Awaitable[list[Any]]], known: KnownHistory, watch: EventWatch
    ) -> None:
        self._schema = schema
        self._fetch = fetch
        self._known = known
        self._watch = watch
        self._rows = EventRows()

    async def through(
        self, query: EventQuery, after: int, until: int | None, limit: int, *, backward: bool
    ) -> tuple[list[RecordedEvent], int, bool]:
        """Events, the head of the first snapshot, and whether there are more.

        What was committed when the read began never changes: the slices after the first end where that one saw.

        Raises:
            HistoryDiverged: it did change, since the history is another now.
        """
        forks = self._known.forks
        events: list[RecordedEvent] = []
        first_head: int | None = None
        while True:
            wanted = min(limit - len(events), READ_SLICE_EVENTS)
            rows, head = await self._slice(query, after, until, wanted + 1, backward=backward)
            if first_head is None:
                first_head = head
                until = head if until is None else min(until, head)
            events += map(self._rows.event, rows[:wanted])
            more = len(rows) > wanted
            if forks != self._known.forks:
                raise HistoryDiverged("what was read", "the history turned out to be another one meanwhile")
            if not more or len(events) >= limit:
                return events, first_head, more
            if backward:
                until = events[-1].position - 1
            else:
                after = events[-1].position

    async def _slice(
        self, query: EventQuery, after: int, until: int | None, limit: int, *, backward: bool
    ) -> tuple[list[asyncpg.Record], int]:
        rows: list[asyncpg.Record] = []
        head: int | None = None
        merged = False
        for statement, arguments in reading(self._schema, query, after, until, limit, backward=backward):
            merged = head is not None
            if head is not None:
                arguments[1] = head if until is None else min(until, head)  # as far as the first snapshot
            forks, wakes = self._known.forks, self._watch.wakes
            found = await self._fetch(statement, *arguments)
            if head is None:
                head = int(found[0][0])
                self._known.learn(Place(self._known.history_id, Position(head), found[0][1]), forks)
                if forks == self._known.forks:
                    self._watch.told(wakes)
            if found[0][2] is not None:
                rows += found
        assert head is not None
        if merged:
            rows = sorted({row[2]: row for row in rows}.values(), key=_position_of, reverse=backward)[:limit]
        return rows, head


def _position_of(row: asyncpg.Record) -> int:
    return int(row[2])
