"""Facts of event types, and stored events that are tagged anew, in one SQLite file; inside write transactions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from diptych.adapters.sqlite.append_section import INSERT_EVENT_TAG
from diptych.adapters.sqlite.restoring import tag_ids, type_id
from diptych.event_store.event_store import StoredType, TypeFacts
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.stored_facts import decode_facts, encode_facts
from diptych.event_store.tagging import Tagging, check_tagging
from diptych.messages.unique_id import unique_bytes

if TYPE_CHECKING:
    import sqlite3

__all__ = ["begin_retag", "end_retag", "keep_facts", "stored_types", "tagging", "write_tags"]

_OF_TYPE = "type = (SELECT id FROM event_types WHERE name = ?) AND version = ?"
_encode = msgspec.json.Encoder().encode
_names_decoder = msgspec.json.Decoder(tuple[str, ...])
_types_decoder = msgspec.json.Decoder(tuple[tuple[str, int], ...])


def stored_types(connection: sqlite3.Connection) -> list[StoredType]:
    """Types and versions that events are stored of, by name and version."""
    rows = connection.execute(
        "SELECT t.name, v.version, v.tag_names, v.facts FROM event_versions AS v "
        "JOIN event_types AS t ON t.id = v.type WHERE v.held = 1 ORDER BY t.name, v.version"
    ).fetchall()
    return [
        StoredType(name, version, _names_decoder.decode(tags) if tags else (), decode_facts(facts))
        for name, version, tags, facts in rows
    ]


def keep_facts(connection: sqlite3.Connection, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
    """Replace the facts of types that are still as before."""
    connection.executemany(
        f"UPDATE event_versions SET facts = ? WHERE {_OF_TYPE} AND facts IS ?",
        [
            (encode_facts(facts), type.name, type.version, encode_facts(type.facts))
            for type, facts in zip(before, after, strict=True)
        ],
    )


def tagging(connection: sqlite3.Connection) -> Tagging:
    """How events are tagged now."""
    found, unfinished = connection.execute("SELECT tagging, unfinished FROM history").fetchone()
    return Tagging(found, _types_decoder.decode(unfinished) if unfinished else ())


def begin_retag(connection: sqlite3.Connection, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
    """Begin, where events are still tagged as the caller knows."""
    check_tagging(tagging(connection).id, instead_of.id)
    begun = Tagging(unique_bytes(), tuple(types))
    connection.execute("UPDATE history SET tagging = ?, unfinished = ?", (begun.id, _encode(begun.unfinished)))
    return begun


def write_tags(
    connection: sqlite3.Connection, begun: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]
) -> None:
    """Give events other tags, where nobody else has begun."""
    check_tagging(tagging(connection).id, begun.id)
    ids = tag_ids(connection, (tag for event, tags in changes for tag in (*event.tags, *tags)))
    connection.executemany(
        "UPDATE events SET tags = ? WHERE position = ?", [(_encode(tags), event.position) for event, tags in changes]
    )
    gone = [(ids[tag], event.position) for event, tags in changes for tag in set(event.tags) - set(tags)]
    connection.executemany("DELETE FROM event_tags WHERE tag = ? AND position = ?", gone)
    types = {event.type: type_id(connection, event.type) for event, _ in changes}
    new = [
        (ids[tag], event.position, types[event.type]) for event, tags in changes for tag in set(tags) - set(event.tags)
    ]
    connection.executemany(INSERT_EVENT_TAG, new)


def end_retag(
    connection: sqlite3.Connection, begun: Tagging, types: Sequence[StoredType], unaffected: Collection[str]
) -> None:
    """Make tag names and facts true, and drop kept states but for those of the models named."""
    check_tagging(tagging(connection).id, begun.id)
    connection.executemany(
        f"UPDATE event_versions SET tag_names = ?, facts = ? WHERE {_OF_TYPE}",
        [(_encode(type.tag_names), encode_facts(type.facts), type.name, type.version) for type in types],
    )
    kept = _encode(sorted(unaffected)).decode()
    connection.execute("DELETE FROM model_states WHERE model NOT IN (SELECT value FROM json_each(?))", (kept,))
    connection.execute("UPDATE history SET unfinished = NULL")
