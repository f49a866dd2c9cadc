"""Which events match: query items as SQL over one SQLite file.

Every item becomes one or more *streams*, selects that find their positions in order by one index; several streams are
merged by SQLite as it reads them (`UNION` under `ORDER BY`), so that a limit ends the work early.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from diptych.adapters.sqlite.name_ids import NameIds
from diptych.event_store.event_query import EventQuery, QueryItem

if TYPE_CHECKING:
    import sqlite3

__all__ = ["EVENT_COLUMNS", "EventRow", "MatchingEvents"]

STREAMS_MAX = 100
"""Streams merged by one statement; more are taken in groups, and those merged here."""
SHAPES_MAX = 512
"""Statements kept as text, by the shape of their query."""
RAREST_PROBE = 64
"""Positions counted of each of several tags, at first, to find the rarest one."""
RAREST_PROBE_GROWTH = 8
"""How much further each next count goes, until one tag is counted out."""

EventRow: TypeAlias = tuple[int, int, int, int, bytes, bytes, bytes, bytes]
"""Position, type, version, recorded at, event id, data, tags, metadata."""

EVENT_COLUMNS = "e.position, e.type, e.version, e.recorded_at, e.event_id, e.data, e.tags, e.metadata"

_Stream: TypeAlias = tuple[int, ...]
"""The type of a stream of one type; or the tags and then the types of a stream of tags."""
_Shape: TypeAlias = tuple[int, int]
"""How many tags and how many types a stream has."""


class MatchingEvents:
    """Finds events on one connection."""

    def __init__(self, connection: sqlite3.Connection, names: NameIds) -> None:
        """Use the connection, and the names as it sees them."""
        self._connection = connection
        self._names = names

    def first_after(self, item: QueryItem, after: int) -> int | None:
        """The position of one event after `after` that the item matches; None where there is none."""
        row: tuple[int] | None = None
        if not (item.tags or item.types):
            row = self._connection.execute("SELECT max(position) FROM events", ()).fetchone()
            return row[0] if row is not None and (row[0] or 0) > after else None
        for shape, stream in self._streams(item, after):
            row = self._connection.execute(_first_statement(shape), (*stream, after)).fetchone()
            if row is not None:
                return row[0]
        return None

    def rows(self, query: EventQuery, after: int, until: int, limit: int, *, backward: bool = False) -> list[EventRow]:
        """Rows of the matching events in (after, until], in order, at most `limit` of them."""
        if after >= until or limit <= 0:
            return []
        if any(not (item.tags or item.types) for item in query.items):
            statement = _scan_statement(backward=backward)
            return self._connection.execute(statement, (after, until, limit)).fetchall()
        listed = list(dict.fromkeys(stream for item in query.items for stream in self._streams(item, after)))
        rows: list[EventRow] = []
        for start in range(0, len(listed), STREAMS_MAX):
            rows += self._merged(listed[start : start + STREAMS_MAX], after, until, limit, backward=backward)
        if len(listed) > STREAMS_MAX:
            rows = list({row[0]: row for row in rows}.values())
        rows.sort(reverse=backward)  # by position; SQLite has left little or nothing to do
        return rows[:limit]

    def _merged(
        self, streams: Sequence[tuple[_Shape, _Stream]], after: int, until: int, limit: int, *, backward: bool
    ) -> list[EventRow]:
        shapes = tuple(shape for shape, _ in streams)
        parameters: list[int] = []
        for _, stream in streams:
            parameters += stream
            parameters += (after, until)
        parameters.append(limit)
        return self._connection.execute(_merge_statement(shapes, backward=backward), parameters).fetchall()

    def _streams(self, item: QueryItem, after: int) -> list[tuple[_Shape, _Stream]]:
        """The streams of an item that names tags or types; none where a name is not in the store."""
        types = [known for known in map(self._names.type, item.types) if known is not None]
        if item.types and not types:
            return []
        if not item.tags:
            return [((0, 1), (type,)) for type in types]
        tags = [known for known in map(self._names.tag, item.tags) if known is not None]
        if len(tags) < len(item.tags):
            return []
        if len(tags) > 1:
            tags = self._rarest_first(tags, after)
        return [((len(tags), len(types)), (*tags, *types))]

    def _rarest_first(self, tags: list[int], after: int) -> list[int]:
        """With a tag in front that is about the rarest: the work then follows the rarest tag, not the commonest."""
        limit = RAREST_PROBE
        while True:
            counts = {tag: self._count(tag, after, limit) for tag in tags}
            if min(counts.values()) < limit:
                return sorted(tags, key=counts.__getitem__)
            limit *= RAREST_PROBE_GROWTH

    def _count(self, tag: int, after: int, limit: int) -> int:
        statement = "SELECT count(*) FROM (SELECT 1 FROM event_tags WHERE tag = ? AND position > ? LIMIT ?)"
        return int(self._connection.execute(statement, (tag, after, limit)).fetchone()[0])


@lru_cache(SHAPES_MAX)
def _first_statement(shape: _Shape) -> str:
    return f"{_stream_statement(shape, bounded=False)} LIMIT 1"


@lru_cache(2)
def _scan_statement(*, backward: bool) -> str:
    order = "DESC" if backward else "ASC"
    return (
        f"SELECT {EVENT_COLUMNS} FROM events AS e WHERE e.position > ? AND e.position <= ? "
        f"ORDER BY e.position {order} LIMIT ?"
    )


@lru_cache(SHAPES_MAX)
def _merge_statement(shapes: tuple[_Shape, ...], *, backward: bool) -> str:
    order = "DESC" if backward else "ASC"
    merged = " UNION ".join(_stream_statement(shape, bounded=True) for shape in shapes)
    return (
        f"SELECT {EVENT_COLUMNS} FROM ({merged} ORDER BY 1 {order} LIMIT ?) AS found "
        "CROSS JOIN events AS e ON e.position = found.position"
    )


def _stream_statement(shape: _Shape, *, bounded: bool) -> str:
    tag_count, type_count = shape
    span = "AND t.position > ? AND t.position <= ?" if bounded else "AND t.position > ?"
    if not tag_count:
        return f"SELECT t.position AS position FROM events AS t WHERE t.type = ? {span}"
    others = " AND EXISTS (SELECT 1 FROM event_tags AS o WHERE o.tag = ? AND o.position = t.position)" * (tag_count - 1)
    types = f" AND t.type IN ({', '.join('?' * type_count)})" if type_count else ""
    return f"SELECT t.position AS position FROM event_tags AS t WHERE t.tag = ?{others}{types} {span}"
