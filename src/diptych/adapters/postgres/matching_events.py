"""Which events match: queries as SQL over PostgreSQL, with the head of the same snapshot.

Every item becomes one or more *streams*, selects that find their first positions in order by one index; the streams are
merged, and only then the events themselves are fetched. Names are resolved inside the statement, so that a read is one
round trip and one snapshot, whatever it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from diptych.adapters.postgres.append_function import RAREST_PROBE
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.refusal import is_storable

__all__ = ["reading"]

STREAMS_MAX = 100
"""Streams in one statement; a query of more is asked as one statement for each such group, and merged."""
SHAPES_MAX = 512
"""Statements kept as text, by the shape of their query."""

_Shape: TypeAlias = tuple[bool, int]
"""Whether a stream is of types, and how many tags it has."""
_Stream: TypeAlias = tuple[_Shape, tuple[object, ...]]
"""A stream of one type; of tags; or of tags and types. With its parameters: tags as a list, then types."""


def reading(
    schema: str, query: EventQuery, after: int, until: int | None, limit: int, *, backward: bool
) -> Iterator[tuple[str, list[Any]]]:
    """Statements, with their arguments, that give the matching events in (after, until], at most `limit` each.

    Each gives rows of head, event id there, position, type, version, recorded at, event id, data, tags, metadata; the
    first head is there also where nothing matches, with nulls beside it.
    """
    bounds: list[Any] = [after, until, limit]
    if any(not (item.tags or item.types) for item in query.items):
        yield _statement(schema, None, backward=backward), bounds
        return
    streams = list(dict.fromkeys(stream for item in query.items for stream in _streams(item)))
    for start in range(0, max(len(streams), 1), STREAMS_MAX):
        group = streams[start : start + STREAMS_MAX]
        statement = _statement(schema, tuple(shape for shape, _ in group), backward=backward)
        yield statement, [*bounds, *(list(v) if isinstance(v, tuple) else v for _, vs in group for v in vs)]


def _streams(item: QueryItem) -> list[_Stream]:
    """The streams of an item that names tags or types; none where a name cannot be in any store."""
    types = tuple(sorted(filter(is_storable, item.types)))
    if (item.types and not types) or not all(map(is_storable, item.tags)):
        return []
    if not item.tags:
        return [((True, 0), (type,)) for type in types]
    tags = sorted(item.tags)
    named: object = tuple(tags) if len(tags) > 1 else tags[0]
    return [((bool(types), len(tags)), (named, types) if types else (named,))]


@lru_cache(SHAPES_MAX)
def _statement(schema: str, shapes: Sequence[_Shape] | None, *, backward: bool) -> str:
    order = "DESC" if backward else "ASC"
    if shapes is None:
        found = f"({_select('*', f'{schema}.events AS t', 'true', order)}) AS e "
    else:
        found = f"({_positions(schema, shapes, order)}) AS p JOIN {schema}.events AS e ON e.position = p.position "
    return (
        f"SELECT h.position AS head, h.event_id AS head_event, m.* FROM {schema}.history AS h LEFT JOIN LATERAL ("
        "SELECT e.position, n.name, e.version, e.recorded_at, e.event_id, e.data, e.tags, e.metadata "
        f"FROM {found}JOIN {schema}.event_types AS n ON n.id = e.type"
        f") AS m ON true WHERE h.one = 1 ORDER BY m.position {order}"
    )


def _positions(schema: str, shapes: Sequence[_Shape], order: str) -> str:
    if not shapes:
        return "SELECT $1::bigint AS position WHERE $2::bigint < 0 AND $3::bigint < 0"
    streams: list[str] = []
    number = 4
    for of_types, tag_count in shapes:
        streams.append(f"({_stream(schema, number, tag_count, order, of_types=of_types)})")
        number += 1 + (of_types and tag_count > 0)
    if len(streams) == 1:
        return streams[0]
    return f"SELECT position FROM ({' UNION ALL '.join(streams)}) AS u GROUP BY position ORDER BY 1 {order} LIMIT $3"


def _stream(schema: str, number: int, tag_count: int, order: str, *, of_types: bool) -> str:
    if not tag_count:
        one = f"t.type = (SELECT n.id FROM {schema}.event_types AS n WHERE n.name = ${number}::text)"
        return _select("t.position", f"{schema}.events AS t", one, order)
    types = ""
    if of_types:
        names = f"${number + 1}::text[]"
        types = f" AND t.type = ANY (ARRAY(SELECT n.id FROM {schema}.event_types AS n WHERE n.name = ANY ({names})))"
    if tag_count == 1:
        one = f"t.tag = (SELECT n.id FROM {schema}.tags AS n WHERE n.tag = ${number}::text)"
        return _select("t.position", f"{schema}.event_tags AS t", one + types, order)
    listed = f"SELECT n.id FROM {schema}.tags AS n WHERE n.tag = ANY (${number}::text[])"
    span = "p.position > $1 AND ($2::bigint IS NULL OR p.position <= $2)"
    probe = f"SELECT 1 FROM {schema}.event_tags AS p WHERE p.tag = n.id AND {span} LIMIT {RAREST_PROBE}"
    rarest = (
        f"SELECT n.id FROM ({listed}) AS n WHERE (SELECT count(*) FROM ({listed}) AS c) = {tag_count} "
        f"ORDER BY (SELECT count(*) FROM ({probe}) AS c), n.id LIMIT 1"
    )
    carried = f"SELECT 1 FROM {schema}.event_tags AS o WHERE o.tag = n.id AND o.position = t.position"
    others = f"NOT EXISTS (SELECT 1 FROM ({listed}) AS n WHERE NOT EXISTS ({carried}))"
    return _select("t.position", f"{schema}.event_tags AS t", f"t.tag = ({rarest}) AND {others}{types}", order)


def _select(columns: str, table: str, condition: str, order: str) -> str:
    return (
        f"SELECT {columns} FROM {table} WHERE {condition} AND t.position > $1::bigint "
        f"AND t.position <= coalesce($2::bigint, {(1 << 63) - 1}) ORDER BY t.position {order} LIMIT $3::bigint"
    )
