"""Read models in the events' file, as the transaction of an append sees them. See the port."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from diptych.adapters.sqlite import read_writes
from diptych.adapters.sqlite.columns import encode_moment
from diptych.adapters.sqlite.read_snapshot import Builds, blocked_keys, rows_by_key
from diptych.adapters.sqlite.read_tables import SELECT_GENERATIONS, decode_table, generation_of, stored_discards
from diptych.event_store.event_query import EventQuery
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
    Table,
    WriteResult,
)

if TYPE_CHECKING:
    import sqlite3

__all__ = ["InlineStep", "ReadEvents"]

ReadEvents: TypeAlias = "Callable[[sqlite3.Connection, EventQuery, Position, Position], Sequence[RecordedEvent]]"
"""Reads the events in (after, until] that match, on a connection."""


class InlineStep:
    """What every append does to the read models in its file."""

    def __init__(self, fold: InlineFold, read_events: ReadEvents) -> None:
        self._fold = fold
        self._read_events = read_events
        self._builds = Builds()

    def __call__(self, connection: sqlite3.Connection, appending: Appending) -> None:
        """Fold what is appended, inside its transaction; or leave all rows as they were, and the events with it."""
        connection.execute("SAVEPOINT inline")
        try:
            at_once(self._fold.fold(_Rows(connection, self._builds, self._read_events), appending))
        except Exception as error:
            if not connection.in_transaction:  # SQLite itself has ended it: the disk is full, or fails
                raise
            connection.execute("ROLLBACK TO inline")
            self._fold.failed(error)
        connection.execute("RELEASE inline")


class _Rows:
    def __init__(self, connection: sqlite3.Connection, builds: Builds, read_events: ReadEvents) -> None:
        self._connection = connection
        self._builds = builds
        self._read_events = read_events

    async def generations(self, names: Collection[str]) -> Sequence[Generation]:
        marks = ", ".join("?" * len(names))
        found = self._connection.execute(f"{SELECT_GENERATIONS} WHERE name IN ({marks})", tuple(names)).fetchall()
        generations = [generation_of(row, self._form(row[0], row[1], row[3])) for row in found]
        for each in generations:
            self._builds.of(each)
        return generations

    def _form(self, name: str, number: int, form: str | None) -> Table | None:
        known = self._builds.known(name, number)
        return decode_table(form) if known is None else known.form

    async def blocked(self, generation: Generation) -> Sequence[BlockedKey]:
        return blocked_keys(self._connection, generation.name, generation.number)

    async def discards(self, name: str) -> Sequence[Discard]:
        return stored_discards(self._connection, name)

    async def load(self, asked: RowsAsked) -> Mapping[Key, Row]:
        table = self._builds.of(asked.generation)
        return {} if table is None else rows_by_key(self._connection, table, asked.keys)

    async def expired(self, name: str, moment: datetime, limit: int, number: int) -> list[Key]:
        table = self._builds.known(name, number)
        if table is None or table.form.expires is None:
            return []
        found = self._connection.execute(table.select_expired, (encode_moment(moment), limit)).fetchall()
        return [table.codec.decode_key(key) for key in found]

    async def event_id(self, position: Position) -> bytes | None:
        found = self._connection.execute("SELECT event_id FROM events WHERE position = ?", (position,)).fetchone()
        return None if found is None else found[0]

    async def events(self, query: EventQuery, after: Position, until: Position) -> Sequence[RecordedEvent]:
        return self._read_events(self._connection, query, after, until)

    async def write(self, writes: Sequence[SliceWrite]) -> Sequence[WriteResult]:
        return [read_writes.apply(self._connection, write, self._builds.of) for write in writes]
