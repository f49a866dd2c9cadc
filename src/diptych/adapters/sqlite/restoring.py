"""Parts of another store's history, written into one SQLite file as they are.

Ids of tags and types are the file's own: what stands for a name here need not stand for it in the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from diptych.adapters.sqlite.append_section import (
    HOLD_VERSION,
    INSERT_EVENT,
    INSERT_EVENT_TAG,
    INSERT_OUTCOME,
    add_type,
)
from diptych.adapters.sqlite.kept_outcomes import kept_outcome
from diptych.event_store.event_store import HistoryPart, KeptOutcome, StoredType
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.restoring import check_outcomes, check_part, check_places, refused
from diptych.event_store.stored_facts import encode_facts
from diptych.event_store.tagging import Tagging
from diptych.event_store.timestamp import to_microseconds

if TYPE_CHECKING:
    import sqlite3

__all__ = ["register", "restore", "tag_ids", "type_id"]

_encode_tags = msgspec.json.Encoder().encode


def register(connection: sqlite3.Connection, types: Sequence[StoredType]) -> None:
    """Remember the tag names and facts of types; what is known of a type that events are stored of stays."""
    for type in types:
        facts = encode_facts(type.facts)
        connection.execute(
            "INSERT INTO event_versions (type, version, tag_names, held, facts) VALUES (?, ?, ?, 0, ?) "
            "ON CONFLICT (type, version) DO UPDATE SET tag_names = excluded.tag_names, "
            "facts = iif(held = 0, excluded.facts, facts) WHERE held = 0 OR tag_names IS NULL",
            (type_id(connection, type.name), type.version, msgspec.json.encode(type.tag_names), facts),
        )


def restore(connection: sqlite3.Connection, part: HistoryPart) -> None:
    """Write a part, inside a write transaction.

    Raises:
        HistoryDiverged: it does not go on where the file ends, or contradicts it or itself.
    """
    _check(connection, part)
    missing = check_outcomes(part, _kept(connection, part))
    connection.execute("UPDATE history SET history_id = ?, tagging = ?", (part.after.history_id, part.tagging))
    register(connection, part.types)
    _write_events(connection, part.events)
    connection.executemany(
        INSERT_OUTCOME,
        [(o.command_id, o.payload_hash, o.place.position, o.event_count, o.rejection) for o in missing],
    )


def _check(connection: sqlite3.Connection, part: HistoryPart) -> None:
    history_id, tagging, unfinished = connection.execute(
        "SELECT history_id, tagging, unfinished FROM history"
    ).fetchone()
    last = connection.execute(
        "SELECT position, event_id, recorded_at FROM events ORDER BY position DESC LIMIT 1"
    ).fetchone()
    position, event_id, recorded_at_us = last or (0, NOWHERE, 0)
    empty = last is None and connection.execute("SELECT 1 FROM outcomes LIMIT 1").fetchone() is None
    tagged = Tagging(tagging, msgspec.json.decode(unfinished, type=tuple[tuple[str, int], ...]) if unfinished else ())
    check_part(part, Place(history_id, Position(position), event_id), recorded_at_us, tagged, empty=empty)
    found: dict[Position, bytes] = {}
    for earlier in part.earlier_places():
        row = connection.execute("SELECT event_id FROM events WHERE position = ?", (earlier,)).fetchone()
        if row is not None:
            found[earlier] = row[0]
    check_places(part, found)
    for event in part.events:
        if connection.execute("SELECT 1 FROM events WHERE event_id = ?", (event.event_id,)).fetchone() is not None:
            raise refused(f"an event with the id {event.event_id.hex()} is stored already")


def _kept(connection: sqlite3.Connection, part: HistoryPart) -> dict[str, KeptOutcome]:
    found = (kept_outcome(connection, part.after.history_id, outcome.command_id) for outcome in part.outcomes)
    return {kept.command_id: kept for kept in found if kept is not None}


def _write_events(connection: sqlite3.Connection, events: Sequence[RecordedEvent]) -> None:
    versions = {(event.type, event.version) for event in events}
    types = {name: type_id(connection, name) for name, _ in versions}
    tags = tag_ids(connection, (tag for event in events for tag in event.tags))
    connection.executemany(HOLD_VERSION, [(types[name], version) for name, version in versions])
    connection.executemany(
        INSERT_EVENT,
        [
            (
                event.position,
                types[event.type],
                event.version,
                to_microseconds(event.recorded_at),
                event.event_id,
                event.data,
                _encode_tags(event.tags),
                event.metadata,
            )
            for event in events
        ],
    )
    connection.executemany(
        INSERT_EVENT_TAG,
        [(tags[tag], event.position, types[event.type]) for event in events for tag in event.tags],
    )


def type_id(connection: sqlite3.Connection, name: str) -> int:
    """The id of an event type, made where it is missing."""
    row = connection.execute("SELECT id FROM event_types WHERE name = ?", (name,)).fetchone()
    return add_type(connection, name) if row is None else int(row[0])


def tag_ids(connection: sqlite3.Connection, tags: Iterable[str]) -> dict[str, int]:
    """The id of each tag, made where it is missing."""
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM tags").fetchone()
    ids: dict[str, int] = {}
    new: list[tuple[str, int]] = []
    for tag in dict.fromkeys(tags):
        row = connection.execute("SELECT id FROM tags WHERE tag = ?", (tag,)).fetchone()
        if row is None:
            new.append((tag, last + len(new) + 1))
        ids[tag] = new[-1][1] if row is None else row[0]
    connection.executemany("INSERT INTO tags (tag, id) VALUES (?, ?)", new)
    return ids
