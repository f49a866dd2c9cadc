"""The rows of one generation: as hashes, with what indexes hold of them, and back."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from diptych.adapters.valkey.framing import frames, unframed
from diptych.adapters.valkey.values import as_text, from_text, sortable, sortable_all
from diptych.read_side.read_store import Column, ColumnKind, Key, Row, Table
from diptych.read_side.row_filters import key_getter, words_of
from diptych.read_side.row_refusal import value_refusal

__all__ = ["WORDS", "TableRows", "index_name", "table_rows"]

WORDS = b"words"
"""The index of the words of what is searchable."""
TABLES_CACHED = 256
"""Tables whose way from and to rows is kept at hand."""

_LENGTH = struct.Struct(">I")


def index_name(column: str) -> bytes:
    """The name of a column's index; that of the keys has none."""
    return f"by {column}".encode()


class TableRows:
    """From rows of a table to what is stored of them, and back.

    Attributes:
        columns: by name.
        key: the key's columns.
        indexed: those that have an index of their own.
        key_of: a row to its key.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.columns: Mapping[str, Column] = {column.name: column for column in table.columns}
        self.key = [self.columns[name] for name in table.key]
        self.indexed = [
            column
            for column in table.columns
            if (column.indexed or column.name == table.expires)
            and (column.name,) != table.key[:1]
            and column.kind is not ColumnKind.DOCUMENT
        ]
        self.key_of = key_getter(table)
        self._places = {column.name: place for place, column in enumerate(table.columns)}
        self._names = [column.name.encode() for column in table.columns]
        self._searched = [place for place, column in enumerate(table.columns) if column.searchable]

    @property
    def indexes(self) -> list[bytes]:
        """The names of all indexes but that of the keys."""
        return [index_name(column.name) for column in self.indexed] + ([WORDS] if self._searched else [])

    def may_have_row(self, key: Key) -> bool:
        """Whether any row could have this key."""
        return not any(
            value is None or value_refusal(column, value) for column, value in zip(self.key, key, strict=True)
        )

    def stored_key(self, key: Key) -> bytes:
        """What tells the row of a key from others; sorts as the keys do."""
        return sortable_all(self.key, key)

    def stored(self, row: Row) -> tuple[bytes, bytes]:
        """The key and the fields of a row's hash, in one; the first field is what the indexes hold of it."""
        key = self.stored_key(self.key_of(row))
        fields: list[bytes | None] = [b"", self._entries(row, key)]
        for column, name, value in zip(self.table.columns, self._names, row, strict=True):
            if value is not None:
                fields += (name, as_text(column, value))
        return key, frames(fields)

    def _entries(self, row: Row, key: bytes) -> bytes:
        entries: list[bytes | None] = []
        for column in self.indexed:
            entries += (index_name(column.name), member(sortable(column, row[self._places[column.name]]), key))
        for word in sorted({word for at in self._searched if row[at] is not None for word in words_of(row[at])}):
            entries += (WORDS, member(word.encode() + b"\0", key))
        return frames(entries)

    def row(self, fields: Sequence[bytes | None]) -> Row:
        """The row of a hash: fields and their texts by turns."""
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        return tuple(
            None if (text := found.get(name)) is None else from_text(column, text)
            for column, name in zip(self.table.columns, self._names, strict=True)
        )

    def row_of(self, text: bytes) -> Row:
        """The row of a hash whose fields are in one."""
        return self.row(unframed(text))

    def value(self, row: Row, column: str) -> Any:
        """The value of one column."""
        return row[self._places[column]]


def member(begin: bytes, key: bytes) -> bytes:
    """What an index holds: something, the key of the row, and where that begins."""
    return begin + key + _LENGTH.pack(len(begin))


@lru_cache(TABLES_CACHED)
def table_rows(table: Table) -> TableRows:
    """The way from and to the rows of a table."""
    return TableRows(table)
