"""The read store's file: its catalog of generations in the schema `diptych`, and the table and view of each.

A generation's rows are in a table of its own, `school_seats__g3`; the view `school_seats` shows the live one, so that
SQL written by hand has a name that lasts. The catalog has no indexes: it is small, and one process writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import msgspec

from diptych.adapters.duckdb.columns import (
    DECIMAL_TYPE,
    SQL_DECIMAL_DIGITS,
    SQL_DECIMAL_SCALE,
    RowCodec,
    compared_column,
    decode_moment,
    exponent_column,
    quoted,
    sorted_column,
    stored_type,
)
from diptych.errors import ConfigurationError, NewerStore, StoreUnavailable
from diptych.event_store.position import Place, Position
from diptych.read_side.read_store import Column, ColumnKind, Generation, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "SCHEMA_VERSION",
    "SELECT_GENERATIONS",
    "StoredTable",
    "create_table",
    "decode_table",
    "drop_table",
    "encode_table",
    "generation_of",
    "hide_table",
    "prepare_file",
    "read_generations",
    "show_table",
]

SCHEMA_VERSION = 1
"""Of the catalog."""

SELECT_GENERATIONS = """SELECT name, number, fingerprint, form, live, history_id, position, event_id, epoch, stopped,
    recorded_at, slice, slices, barrier, slices_next, kept_until FROM diptych.generations"""
"""Selects what `generation_of` takes."""

_CATALOG = (
    "CREATE SCHEMA diptych",
    "CREATE TABLE diptych.store (version INTEGER NOT NULL)",
    f"INSERT INTO diptych.store VALUES ({SCHEMA_VERSION})",
    "CREATE TABLE diptych.projections (name VARCHAR NOT NULL, last_number BIGINT NOT NULL)",
    """CREATE TABLE diptych.generations (
        name VARCHAR NOT NULL, number BIGINT NOT NULL, slice BIGINT NOT NULL, slices BIGINT NOT NULL,
        fingerprint VARCHAR NOT NULL, table_name VARCHAR, form VARCHAR, live BOOLEAN NOT NULL,
        history_id BLOB NOT NULL, position BIGINT NOT NULL, event_id BLOB NOT NULL, epoch BIGINT NOT NULL,
        stopped VARCHAR NOT NULL, recorded_at BIGINT, barrier BIGINT, slices_next BIGINT NOT NULL, last_holder VARCHAR,
        kept_until BIGINT
    )""",
    """CREATE TABLE diptych.blocked_keys (
        name VARCHAR NOT NULL, number BIGINT NOT NULL, key VARCHAR NOT NULL, position BIGINT NOT NULL,
        error VARCHAR NOT NULL, attempts BIGINT NOT NULL, trace VARCHAR NOT NULL
    )""",
    """CREATE TABLE diptych.discards (
        name VARCHAR NOT NULL, position BIGINT NOT NULL, key VARCHAR NOT NULL, actor VARCHAR, reason VARCHAR NOT NULL,
        decided_at BIGINT
    )""",
    "CREATE SEQUENCE diptych.retry_numbers",
    """CREATE TABLE diptych.retries (
        number BIGINT NOT NULL DEFAULT nextval('diptych.retry_numbers'), name VARCHAR NOT NULL, key VARCHAR NOT NULL,
        position BIGINT NOT NULL, actor VARCHAR NOT NULL, reason VARCHAR NOT NULL, decided_at BIGINT NOT NULL
    )""",
)

_NOT_A_TABLE = (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException)
"""How DuckDB says that a table or view cannot be as it is wanted."""


def prepare_file(connection: DuckDBPyConnection, path: str) -> None:
    """Make the catalog in a new file; check that any other is one of ours. Inside a transaction.

    Raises:
        NewerStore: a newer Diptych wrote it.
        StoreUnavailable: it is something else.
    """
    tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
    if ("diptych", "store") in tables:
        versions = connection.execute("SELECT version FROM diptych.store").fetchall()
        if versions != [(SCHEMA_VERSION,)]:
            raise NewerStore(path, max((found for (found,) in versions), default=0), SCHEMA_VERSION)
        return
    if tables or connection.execute("SELECT 1 FROM duckdb_views() WHERE NOT internal").fetchall():
        raise StoreUnavailable(f"{path} is a database, but no read store of Diptych: give the read store its own file")
    for statement in _CATALOG:
        connection.execute(statement)


def read_generations(
    connection: DuckDBPyConnection, name: str | None = None, number: int | None = None
) -> list[Generation]:
    """The slices of generations, by name, number and slice; those of one name, or of one generation."""
    conditions = [("name = ?", name), ("number = ?", number)]
    given = [(text, value) for text, value in conditions if value is not None]
    where = f"WHERE {' AND '.join(text for text, _ in given)}" if given else ""
    rows = connection.execute(
        f"{SELECT_GENERATIONS} {where} ORDER BY name, number, slice", [value for _, value in given]
    ).fetchall()
    return [generation_of(row, decode_table(row[3])) for row in rows]


def generation_of(row: tuple[Any, ...], table: Table | None) -> Generation:
    """A slice from its row in the catalog, with the form of its table."""
    name, number, fingerprint, _, live, history_id, position, event_id, epoch, stopped, recorded_at = row[:11]
    place = Place(history_id, Position(position), event_id)
    slice, slices, barrier, slices_next, kept_until = row[11:]
    return Generation(
        *(name, number, fingerprint, table, live, place, epoch, stopped, decode_moment(recorded_at)),
        *(slice, slices, barrier, slices_next, decode_moment(kept_until)),
    )


def encode_table(table: Table | None) -> str | None:
    """The form of a table as the catalog keeps it."""
    return None if table is None else msgspec.json.encode(table).decode()


def decode_table(form: str | None) -> Table | None:
    """The form of a table from the catalog."""
    return None if form is None else msgspec.json.decode(form, type=Table)


class StoredTable:
    """The table of one generation: its names, and the statements that depend on its form alone."""

    def __init__(self, table: Table, name: str, number: int) -> None:
        self.form = table
        self.of = name
        self.codec = RowCodec(table)
        self.raw_name = f"{table.name}__g{number}"
        self.name = quoted(self.raw_name)
        self.compared_key = [compared_column(column) for column in self.codec.key_columns]
        self.key = ", ".join(map(quoted, self.compared_key))
        self.select = f"SELECT {self.codec.selected} FROM {self.name}"
        self.select_one = f"{self.select} WHERE {' AND '.join(f'{quoted(part)} = ?' for part in self.compared_key)}"
        lists = ", ".join(f"unnest(CAST(? AS {stored_type(column.kind)}[]))" for column in self.codec.key_columns)
        self.select_many = f"{self.select} WHERE ({self.key}) IN (SELECT {lists})"
        self.select_expired = _select_expired(self)

    def shown(self, moment: str) -> str:
        """Selects what SQL sees: the rows that have not expired at a moment, an SQL expression."""
        columns = ", ".join(shown for column in self.form.columns for shown in _shown(column))
        if self.form.expires is None:
            return f"SELECT {columns} FROM {self.name}"
        expires = quoted(self.form.expires)
        return f"SELECT {columns} FROM {self.name} WHERE {expires} IS NULL OR {expires} > {moment}"


def _shown(column: Column) -> list[str]:
    name = quoted(column.name)
    if column.kind is not ColumnKind.DECIMAL:
        return [name]
    before = SQL_DECIMAL_DIGITS - SQL_DECIMAL_SCALE
    reason = f"a decimal here has more than {before} digits before the point or {SQL_DECIMAL_SCALE} behind it"
    is_there = f"{quoted(sorted_column(column.name))} IS NOT NULL"
    exact = f"CASE WHEN {name} IS NULL AND {is_there} THEN error('{reason}')::{DECIMAL_TYPE} ELSE {name} END"
    return [f"{exact} AS {name}", quoted(exponent_column(column.name))]


def _select_expired(table: StoredTable) -> str:
    """The keys of what has expired at a moment, the earliest first; empty where nothing does."""
    if table.form.expires is None:
        return ""
    expires = quoted(table.form.expires)
    return (
        f"SELECT {table.codec.selected_key} FROM {table.name} WHERE {expires} <= ? "
        f"ORDER BY {expires}, {table.key} LIMIT ?"
    )


# ── making and removing ──────────────────────────────────────────────────────


def create_table(connection: DuckDBPyConnection, table: StoredTable) -> None:
    """Make a generation's table.

    Raises:
        ConfigurationError: DuckDB cannot have such a table; with the reason.
    """
    form = table.form
    parts = [_column(column, form) for column in form.columns]
    for column in form.columns:
        if column.kind is ColumnKind.DECIMAL:
            parts += [
                f"{quoted(sorted_column(column.name))} VARCHAR",
                f"{quoted(exponent_column(column.name))} INTEGER",
            ]
    parts += ['"__words" VARCHAR NOT NULL'] if table.codec.is_searchable else []
    parts.append(f"PRIMARY KEY ({table.key})")
    try:
        connection.execute(f"CREATE TABLE {table.name} ({', '.join(parts)})")
    except _NOT_A_TABLE as error:
        raise ConfigurationError(f"the read model {table.of} cannot be a table of DuckDB: {error}") from error


def drop_table(connection: DuckDBPyConnection, table: StoredTable) -> None:
    """Remove what `create_table` made."""
    connection.execute(f"DROP TABLE IF EXISTS {table.name}")


def show_table(connection: DuckDBPyConnection, table: StoredTable) -> None:
    """Let the view of its name show this table.

    Raises:
        ConfigurationError: something else has that name.
    """
    try:
        connection.execute(f"CREATE VIEW {quoted(table.form.name)} AS {table.shown('now()')}")
    except _NOT_A_TABLE as error:
        raise ConfigurationError(f"the read model {table.of} cannot have a view in DuckDB: {error}") from error


def hide_table(connection: DuckDBPyConnection, table: StoredTable) -> None:
    """Remove the view of its name."""
    connection.execute(f"DROP VIEW IF EXISTS {quoted(table.form.name)}")


def _column(column: Column, form: Table) -> str:
    if column.kind is ColumnKind.DECIMAL:
        return f"{quoted(column.name)} {DECIMAL_TYPE}"
    required = column.name in form.key or not column.nullable
    return f"{quoted(column.name)} {stored_type(column.kind)}{' NOT NULL' if required else ''}"
