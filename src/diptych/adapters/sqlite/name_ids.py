"""The small integers that stand for tags and event types in one SQLite file, as one connection sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.event_store.refusal import is_storable

if TYPE_CHECKING:
    import sqlite3

__all__ = ["NameIds"]

TAG_IDS_MAX = 200_000
"""Tags whose ids are kept in memory; past it all are forgotten, and looked up again as they come."""


class NameIds:
    """Looks ids up, and remembers what it found. Ids never change, so that what is committed stays true.

    Use it only where the connection sees nothing uncommitted: a rollback would let ids be given out again.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Know nothing yet."""
        self._connection = connection
        self._tags: dict[str, int] = {}
        self._types: dict[str, int] = {}
        self._type_names: dict[int, str] = {}

    def tag(self, tag: str) -> int | None:
        """The id of a tag; None while no event carries it."""
        found = self._tags.get(tag)
        return self._find_tag(tag) if found is None else found

    def type(self, name: str) -> int | None:
        """The id of an event type; None while the store has not heard of it."""
        found = self._types.get(name)
        return self._find_type(name) if found is None else found

    def type_name(self, type_id: int) -> str:
        """The name behind the id of an event type."""
        name = self._type_names.get(type_id)
        if name is None:
            row = self._connection.execute("SELECT name FROM event_types WHERE id = ?", (type_id,)).fetchone()
            assert row is not None, f"event type {type_id} has no name: the store is damaged"
            name = self._type_names[type_id] = row[0]
        return name

    def remember_tags(self, tags: dict[str, int]) -> None:
        """Take in ids that were committed."""
        if len(self._tags) + len(tags) > TAG_IDS_MAX:
            self._tags.clear()
        self._tags.update(tags)

    def _find_tag(self, tag: str) -> int | None:
        row = self._find("SELECT id FROM tags WHERE tag = ?", tag)
        if row is not None:
            self.remember_tags({tag: row})
        return row

    def _find_type(self, name: str) -> int | None:
        row = self._find("SELECT id FROM event_types WHERE name = ?", name)
        if row is not None:
            self._types[name] = row
        return row

    def _find(self, statement: str, name: str) -> int | None:
        if not is_storable(name):
            return None
        row = self._connection.execute(statement, (name,)).fetchone()
        return None if row is None else int(row[0])
