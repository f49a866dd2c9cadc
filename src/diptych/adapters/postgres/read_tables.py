"""The table of one generation in PostgreSQL: its names, the statements that depend on its form alone, its definition.

A generation's rows are in a table of its own, `school_seats__g3`; the view `school_seats` shows the live one to other
programs. Where text is searched, a column holds the words of a row as a `tsvector` that Python makes: which letters are
words, and that case and accents do not matter, is then the same as everywhere.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from diptych.adapters.postgres.connection import state_of
from diptych.adapters.postgres.read_columns import TYPES, RowCodec
from diptych.errors import ConfigurationError
from diptych.read_side.read_store import Column, ColumnKind, Generation, Table

if TYPE_CHECKING:
    from diptych.adapters.postgres.connection import Link

__all__ = [
    "Builds",
    "StoredTable",
    "check_names",
    "create_table",
    "decode_table",
    "encode_table",
    "exponent_column",
    "numbered",
    "quoted",
]

NAME_BYTES_MAX = 63
"""Bytes of a name in PostgreSQL; it cuts longer ones off without an error."""
BUILDS_CACHED_MAX = 1_000
"""Generations whose form is kept at hand."""

_WORDS = '"__words"'
_MACHINE_TIME = "statement_timestamp()"
"""What views show rows as of: whoever reads them with another program has no other clock."""
_REFUSED_CLASSES = frozenset({"42", "54"})
"""States of the server that say a definition is wrong, or too large."""


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def fitting(name: str, ending: str = "") -> str:
    """The name with an ending, shortened where PostgreSQL would cut it; a hash keeps it apart from others."""
    whole = name + ending
    if len(whole.encode()) <= NAME_BYTES_MAX:
        return whole
    end = f"_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}{ending}"
    return name.encode()[: NAME_BYTES_MAX - len(end.encode())].decode("utf-8", "ignore") + end


def _literal(text: str) -> str:
    """Text as SQL takes it, whatever is in it."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def exponent_column(name: str) -> str:
    """The column that keeps the exponents above zero of a decimal one."""
    return fitting(name, "__exponent")


def encode_table(table: Table | None) -> str | None:
    """The form of a table as the catalog keeps it."""
    return None if table is None else msgspec.json.encode(table).decode()


def decode_table(form: str | None) -> Table | None:
    """The form of a table from the catalog."""
    return None if form is None else msgspec.json.decode(form, type=Table)


def numbered(first: int, count: int) -> list[str]:
    """The placeholders `$1`, `$2` and so on, from a number on."""
    return [f"${number}" for number in range(first, first + count)]


class StoredTable:
    """The table of one generation."""

    def __init__(self, table: Table, name: str, number: int, schema: str) -> None:
        self.form = table
        self.of = name
        self.number = number
        self.codec = RowCodec(table)
        self.plain_name = fitting(table.name, f"__g{number}")
        self.name = f"{schema}.{quoted(self.plain_name)}"
        self.view = f"{schema}.{quoted(table.name)}"
        self.is_searchable = any(column.searchable for column in table.columns)
        self.key = ", ".join(map(quoted, table.key))
        decimals = [column.name for column in table.columns if column.kind is ColumnKind.DECIMAL]
        self.exponents = {name: exponent_column(name) for name in decimals}
        self.select = f"SELECT {self._read([column.name for column in table.columns])} FROM {self.name} AS t"
        self.select_one = self.select_one_from(1)
        self.select_many = f"{self.select} JOIN {self._keys()} USING ({self.key})"
        self.is_there = (
            f"EXISTS (SELECT FROM {schema}.diptych_generations AS g "
            f"WHERE g.name = {_literal(name)} AND g.number = {number})"
        )
        self.delete = f"DELETE FROM {self.name} AS t USING {self._keys()} WHERE {_same(table.key)}"
        self.width = len(table.columns) + len(self.exponents)
        self.upsert_parameters = self.width + self.is_searchable
        self.upsert = self.upsert_from(1)
        self.select_expired = self._select_expired()

    def select_one_from(self, first: int) -> str:
        """Selects the row of a key that is given in the parameters from this number on."""
        marks = numbered(first, len(self.form.key))
        same = " AND ".join(f"t.{quoted(name)} = {mark}" for name, mark in zip(self.form.key, marks, strict=True))
        return f"{self.select} WHERE {same}"

    def if_there(self, first: int) -> str:
        """As `select_one_from`, with `true` before the columns: joined to something, it tells if there is a row."""
        return self.select_one_from(first).replace("SELECT ", "SELECT true, ", 1)

    def select_unexpired(self, moment: str) -> str:
        """Selects the rows, as SQL written by hand sees them, that have not expired at a moment, an SQL expression."""
        columns = [*(column.name for column in self.form.columns), *self.exponents.values()]
        select = f"SELECT {', '.join(map(quoted, columns))} FROM {self.name}"
        if self.form.expires is None:
            return select
        expires = quoted(self.form.expires)
        return f"{select} WHERE {expires} > {moment} OR {expires} IS NULL"

    def shown(self) -> str:
        """The select of the view."""
        return self.select_unexpired(_MACHINE_TIME)

    def _read(self, names: list[str]) -> str:
        """Columns as the codec decodes them: decimals as text, their exponents at the end."""
        values = [f"t.{quoted(name)}{'::text' if name in self.exponents else ''}" for name in names]
        return ", ".join([*values, *(f"t.{quoted(self.exponents[n])}" for n in names if n in self.exponents)])

    def _keys(self) -> str:
        """Keys given as one array for each column."""
        types = [f"{TYPES[column.kind]}[]" for column in self.codec.key_columns]
        arrays = ", ".join(f"{mark}::{type}" for mark, type in zip(numbered(1, len(types)), types, strict=True))
        return f"unnest({arrays}) AS k ({self.key})"

    def upsert_from(self, first: int, condition: str = "") -> str:
        """Writes rows, given as one array for each column, for each exponent, and for the words.

        Args:
            first: the number of the first of these parameters.
            condition: a WHERE clause, without which all are written.
        """
        types = {quoted(column.name): TYPES[column.kind] for column in self.form.columns}
        types |= {quoted(name): "integer" for name in self.exponents.values()}
        given = [*types, *([_WORDS] if self.is_searchable else [])]
        arrays = [f"{mark}::{type}[]" for mark, type in zip(numbered(first, len(types)), types.values(), strict=True)]
        arrays += [f"${first + len(types)}::text[]"] if self.is_searchable else []
        values = [f"r.{name}" for name in types] + ([f"r.{_WORDS}::tsvector"] if self.is_searchable else [])
        # A decimal in the key is set too: the row that is there may write the same number with other zeros.
        kept = {quoted(name) for name in self.form.key if name not in self.exponents}
        updates = ", ".join(f"{name} = excluded.{name}" for name in given if name not in kept)
        return (
            f"INSERT INTO {self.name} ({', '.join(given)}) SELECT {', '.join(values)} "
            f"FROM unnest({', '.join(arrays)}) AS r ({', '.join(given)}) {condition} "
            f"ON CONFLICT ({self.key}) DO {f'UPDATE SET {updates}' if updates else 'NOTHING'}"
        )

    def _select_expired(self) -> str:
        """The keys of what has expired at a moment, the earliest first; empty where nothing does."""
        if self.form.expires is None:
            return ""
        expires, keys = f"t.{quoted(self.form.expires)}", ", ".join(f"t.{quoted(name)}" for name in self.form.key)
        select = f"SELECT {self._read(list(self.form.key))} FROM {self.name} AS t"
        return f"{select} WHERE {expires} <= $1 ORDER BY {expires}, {keys} LIMIT $2"


def _same(names: tuple[str, ...]) -> str:
    return " AND ".join(f"t.{quoted(name)} = k.{quoted(name)}" for name in names)


class Builds:
    """The tables of generations, at hand by name and number, which never mean another one."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._tables: dict[tuple[str, int], StoredTable] = {}
        self._live: dict[str, StoredTable] = {}

    def of(self, generation: Generation) -> StoredTable | None:
        """The table of a generation; None for a subscriber."""
        if generation.table is None:
            return None
        place = generation.name, generation.number
        table = self._tables.get(place)
        if table is None or (table.form is not generation.table and table.form != generation.table):
            if len(self._tables) >= BUILDS_CACHED_MAX:
                self._tables.clear()
                self._live.clear()
            table = self._tables[place] = StoredTable(generation.table, *place, self._schema)
        return table

    def known(self, name: str, number: int) -> StoredTable | None:
        """The table of a generation that was read before."""
        return self._tables.get((name, number))

    def last_live(self, name: str) -> StoredTable | None:
        """The table that was live when last somebody looked, and most likely is."""
        return self._live.get(name)

    def note_live(self, name: str, table: StoredTable | None) -> None:
        """Remember which table is live; None where that is not known any more."""
        if table is None:
            self._live.pop(name, None)
        else:
            self._live[name] = table


# ── making ───────────────────────────────────────────────────────────────────


def check_names(of: str, table: Table) -> None:
    """Make sure that PostgreSQL cuts no name off.

    Raises:
        ConfigurationError: it would; with the name.
    """
    for name in (table.name, *(column.name for column in table.columns)):
        if len(name.encode()) > NAME_BYTES_MAX:
            raise ConfigurationError(
                f"the read model {of} cannot be a table of PostgreSQL: the name {name} has more than "
                f"{NAME_BYTES_MAX} bytes"
            )


async def create_table(link: Link, table: StoredTable) -> None:
    """Make a generation's table and indexes.

    Raises:
        ConfigurationError: PostgreSQL cannot have such a table; with the reason.
    """
    try:
        for statement in _definitions(table):
            await link.execute(statement)
    except asyncpg.PostgresError as error:
        state = state_of(error)
        if state[:2] not in _REFUSED_CLASSES or isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise
        raise ConfigurationError(f"the read model {table.of} cannot be a table of PostgreSQL: {error}") from error


def _definitions(table: StoredTable) -> list[str]:
    form = table.form
    parts = [_column(column, form) for column in form.columns]
    parts += [f"{quoted(name)} integer" for name in table.exponents.values()]
    parts += [f"{_WORDS} tsvector NOT NULL"] if table.is_searchable else []
    indexes = [_index(table, column) for column in form.columns if _has_index(column, form)]
    indexes += [_expiry_index(table, form.expires)] if form.expires is not None else []
    indexes += [f"CREATE INDEX ON {table.name} USING gin ({_WORDS})"] if table.is_searchable else []
    return [f"CREATE TABLE {table.name} ({', '.join(parts)}, PRIMARY KEY ({table.key}))", *indexes]


def _column(column: Column, form: Table) -> str:
    required = column.name in form.key or not column.nullable
    collation = ' COLLATE "C"' if column.kind is ColumnKind.TEXT else ""
    return f"{quoted(column.name)} {TYPES[column.kind]}{collation}{' NOT NULL' if required else ''}"


def _has_index(column: Column, form: Table) -> bool:
    """Not the first column of the key, which the primary key serves; nor documents, which nothing looks for."""
    return column.indexed and column.name != form.key[0] and column.kind is not ColumnKind.DOCUMENT


def _index(table: StoredTable, column: Column) -> str:
    """It ends in the key, as the orders that pages need do."""
    first = "" if not column.nullable or column.name in table.form.key else " NULLS FIRST"
    rest = "".join(f", {quoted(part)}" for part in table.form.key if part != column.name)
    return f"CREATE INDEX ON {table.name} ({quoted(column.name)}{first}{rest})"


def _expiry_index(table: StoredTable, expires: str) -> str:
    """It holds the rows that expire at all, in the order in which they do."""
    keys = "".join(f", {quoted(part)}" for part in table.form.key if part != expires)
    return f"CREATE INDEX ON {table.name} ({quoted(expires)}{keys}) WHERE {quoted(expires)} IS NOT NULL"
