"""Whose SQLite file it is, and of which version: asked before anything is read or changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from diptych.errors import ConfigurationError, NewerStore

if TYPE_CHECKING:
    import sqlite3

__all__ = ["FileFormat"]

TABLES_NAMED = 5
"""Tables that a message names at most."""


class FileFormat(msgspec.Struct, frozen=True):
    """What a kind of file of ours looks like.

    Attributes:
        name: what the file is, "event store".
        application_id: four letters as a number, kept in the file's header.
        version: of the schema, kept in the file's header.
        schema: the statements that make it.
        upgrades: by version, the statements that make the next one of it.
    """

    name: str
    application_id: int
    version: int
    schema: Sequence[str]
    upgrades: Mapping[int, Sequence[str]] = {}

    @property
    def tables(self) -> frozenset[str]:
        """The names of its tables."""
        return frozenset(re.findall(r"CREATE TABLE (\w+)", " ".join(self.schema)))

    def prepare(self, connection: sqlite3.Connection, path: str, *, beside_tables: bool = False) -> bool:
        """Make sure, inside a write transaction, that the file is of this format. True if it was not and now is.

        Args:
            connection: to the file.
            path: of it, for messages.
            beside_tables: whether tables of others may be there already.

        One of an older version is upgraded.

        Raises:
            NewerStore: a newer Diptych wrote it.
            ConfigurationError: it belongs to something else.
        """
        found_id, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        if found_id == self.application_id:
            if version > self.version:
                raise NewerStore(path, version, self.version)
            for older in range(version, self.version):
                self._make(connection, self.upgrades[older], older + 1)
            return False
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        if found_id or version or (tables and not beside_tables):
            raise ConfigurationError(
                f"{path} is no {self.name} of Diptych but another SQLite file (application id {found_id:#x}, user "
                f"version {version}, tables {', '.join(tables[:TABLES_NAMED]) or 'none'}): give the {self.name} a file "
                "of its own"
            )
        taken = sorted(self.tables.intersection(name.lower() for name in tables))
        if taken:
            raise ConfigurationError(
                f"{path} has tables of the names that the {self.name} needs for its own: {', '.join(taken)}; rename "
                f"them, or give the {self.name} a file of its own"
            )
        self._make(connection, self.schema, self.version)
        connection.execute(f"PRAGMA application_id = {self.application_id}")
        return True

    def _make(self, connection: sqlite3.Connection, statements: Sequence[str], version: int) -> None:
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
