"""What is kept of commands in a SQLite file: by command id, and in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from diptych.event_store.event_store import KeptOutcome
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.refusal import is_storable

if TYPE_CHECKING:
    import sqlite3

__all__ = ["kept_outcome", "kept_outcomes"]

_SELECT = """
    SELECT o.command_id, o.payload_hash, o.position, o.event_count, o.rejection, e.event_id
    FROM ({outcomes}) AS o LEFT JOIN events AS e ON e.position = o.position
"""
_SELECT_ONE = _SELECT.format(outcomes="SELECT * FROM outcomes WHERE command_id = ?")
_SELECT_PAGE = (
    _SELECT.format(outcomes="SELECT * FROM outcomes WHERE command_id > ? ORDER BY command_id LIMIT ?")
    + "ORDER BY o.command_id"
)
_Row: TypeAlias = tuple[str, bytes, int, int, bytes | None, bytes]


def kept_outcome(connection: sqlite3.Connection, history_id: bytes, command_id: str) -> KeptOutcome | None:
    """What the file holds under a command id."""
    if not is_storable(command_id):
        return None
    row: _Row | None = connection.execute(_SELECT_ONE, (command_id,)).fetchone()
    return None if row is None else _kept(history_id, row)


def kept_outcomes(connection: sqlite3.Connection, history_id: bytes, after: str, limit: int) -> list[KeptOutcome]:
    """What the file holds under the first command ids behind one."""
    return [_kept(history_id, row) for row in connection.execute(_SELECT_PAGE, (after, limit))]


def _kept(history_id: bytes, row: _Row) -> KeptOutcome:
    command_id, payload_hash, position, event_count, rejection, event_id = row
    place = Place(history_id, Position(position), event_id if position else NOWHERE)
    return KeptOutcome(command_id, payload_hash, place, event_count, rejection)
