"""States of decision models in a SQLite file, and events that have no data any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diptych.event_store.event_store import KeptState, Pruned, StoredState
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.restoring import check_folded
from diptych.event_store.tagging import check_tagging

if TYPE_CHECKING:
    import sqlite3

__all__ = ["horizons", "keep_states", "model_state", "model_states", "prune"]


def model_state(connection: sqlite3.Connection, model: str, key: str) -> KeptState | None:
    """What is kept of one decision model."""
    statement = "SELECT fold, data, position FROM model_states WHERE model = ? AND key = ?"
    row = connection.execute(statement, (model, key)).fetchone()
    return None if row is None else KeptState(*row)


def model_states(connection: sqlite3.Connection, after: tuple[str, str], limit: int) -> list[StoredState]:
    """What is kept of the first decision models behind one."""
    rows = connection.execute(
        "SELECT model, key, fold, data, position FROM model_states WHERE (model, key) > (?, ?) "
        "ORDER BY model, key LIMIT ?",
        (*after, limit),
    )
    return [StoredState(model, key, fold, data, position=position) for model, key, fold, data, position in rows]


def keep_states(connection: sqlite3.Connection, states: Sequence[StoredState], at: Place, tagging: bytes) -> None:
    """Keep these where nothing as late of the same fold is kept, inside a write transaction.

    Raises:
        HistoryDiverged: the file has another event where they were folded up to, or none.
        Retagged: the id of the tagging is another one.
    """
    history_id, tagged = connection.execute("SELECT history_id, tagging FROM history").fetchone()
    check_tagging(tagged, tagging)
    row = connection.execute("SELECT event_id FROM events WHERE position = ?", (at.position,)).fetchone()
    event_id = NOWHERE if at.position == 0 else row and row[0]
    check_folded(at, Place(history_id, at.position, event_id) if event_id else None)
    connection.executemany(
        "INSERT INTO model_states (model, key, fold, data, position) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (model, key) DO UPDATE SET fold = excluded.fold, data = excluded.data, "
        "position = excluded.position WHERE position < excluded.position OR fold <> excluded.fold",
        [(state.model, state.key, state.fold, state.data, state.position) for state in states],
    )


def prune(connection: sqlite3.Connection, type: str, after: int, until: int, limit: int, *, tagging: bytes) -> Pruned:
    """Drop the data of a type's events, inside a write transaction.

    Raises:
        Retagged: the id of the tagging is another one.
    """
    (tagged,) = connection.execute("SELECT tagging FROM history").fetchone()
    check_tagging(tagged, tagging)
    connection.execute(
        "INSERT INTO horizons (type, position) VALUES (?, ?) "
        "ON CONFLICT (type) DO UPDATE SET position = max(position, excluded.position)",
        (type, until),
    )
    rows = connection.execute(
        "SELECT position FROM events WHERE type = (SELECT id FROM event_types WHERE name = ?) "
        "AND position > ? AND position <= ? ORDER BY position LIMIT ?",
        (type, after, until, limit),
    ).fetchall()
    done = connection.executemany("UPDATE events SET data = x'' WHERE position = ? AND length(data) > 0", rows)
    return Pruned(Position(rows[-1][0] if len(rows) == limit else until), done.rowcount if rows else 0)


def horizons(connection: sqlite3.Connection) -> Mapping[str, Position]:
    """Up to where events have no data any more, by stored type."""
    return {type: Position(position) for type, position in connection.execute("SELECT type, position FROM horizons")}
