"""The read store's file: its catalog of generations, and the tables, views and search indexes of each.

A generation's rows are in a table of its own, `school_seats__g3`; the view `school_seats` shows the live one, so that
SQL written by hand has a name that lasts. Rows have a number (`__row`, or the key where that is one integer) that the
search index refers to. The index keeps no text; triggers keep it in step, but only when searchable text changes.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from diptych.adapters.sqlite.columns import RowCodec, decode_moment, exponent_column
from diptych.adapters.sqlite.event_schema import EVENT_STORE_FORMAT
from diptych.errors import ConfigurationError, NewerStore, StoreUnavailable
from diptych.event_store.position import Place, Position
from diptych.event_store.timestamp import moment as moment_of
from diptych.read_side.read_store import Column, ColumnKind, Discard, Generation, Table

__all__ = [
    "APPLICATION_ID",
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
    "quoted",
    "read_generations",
    "show_table",
    "stored_discards",
    "table_names",
]

APPLICATION_ID = 0x44507972
"""In the file's header: this is a read store of Diptych."""
SCHEMA_VERSION = 6
"""Of the catalog; in the file's header, or in `diptych_read_format` beside events."""
SQLITE_VERSION_MIN = (3, 37, 0)
"""For STRICT tables."""

SELECT_GENERATIONS = """SELECT name, number, fingerprint, form, live, history_id, position, event_id, epoch, stopped,
    recorded_at, slice, slices, barrier, slices_next, kept_until FROM diptych_generations"""
"""Selects what `generation_of` takes."""

_MACHINE_TIME = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
"""What views show rows as of: whoever reads the file with another program has no other clock."""

_GENERATIONS = """CREATE TABLE diptych_generations (
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        slice INTEGER NOT NULL,
        slices INTEGER NOT NULL,
        fingerprint TEXT NOT NULL,
        table_name TEXT COLLATE NOCASE,
        form TEXT,
        live INTEGER NOT NULL,
        history_id BLOB NOT NULL,
        position INTEGER NOT NULL,
        event_id BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        stopped TEXT NOT NULL,
        recorded_at INTEGER,
        barrier INTEGER,
        slices_next INTEGER NOT NULL,
        last_holder TEXT,{kept}
        PRIMARY KEY (name, number, slice)
    ) STRICT, WITHOUT ROWID"""
_GENERATIONS_UNKEPT = _GENERATIONS.replace("{kept}", "")
"""As it was up to version 5."""
_ONE_IS_LIVE = "CREATE UNIQUE INDEX diptych_live ON diptych_generations (name) WHERE live = 1 AND slice = 0"

_RETRIES = (
    """CREATE TABLE diptych_retries (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        position INTEGER NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        decided_at INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX diptych_retries_of ON diptych_retries (name, key, number)",
)

_CATALOG = (
    """CREATE TABLE diptych_projections (
        name TEXT NOT NULL PRIMARY KEY,
        last_number INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    _GENERATIONS.replace("{kept}", "\n        kept_until INTEGER,"),
    _ONE_IS_LIVE,
    """CREATE TABLE diptych_blocked_keys (
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        key TEXT NOT NULL,
        position INTEGER NOT NULL,
        error TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 1,
        trace TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (name, number, key)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE diptych_discards (
        name TEXT NOT NULL,
        position INTEGER NOT NULL,
        key TEXT NOT NULL,
        actor TEXT,
        reason TEXT NOT NULL DEFAULT '',
        decided_at INTEGER,
        PRIMARY KEY (name, position, key)
    ) STRICT, WITHOUT ROWID""",
    *_RETRIES,
)

_FORMAT = """CREATE TABLE diptych_read_format (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        version INTEGER NOT NULL
    ) STRICT"""
"""Of the catalog in a file that is another store's."""

_UPGRADES = (
    ("ALTER TABLE diptych_generations ADD COLUMN recorded_at INTEGER",),
    ("ALTER TABLE diptych_generations ADD COLUMN last_holder TEXT",),
    (
        "DROP INDEX diptych_live",
        "ALTER TABLE diptych_generations RENAME TO diptych_whole_generations",
        _GENERATIONS_UNKEPT,
        """INSERT INTO diptych_generations
        SELECT name, number, 0, 1, fingerprint, table_name, form, live, history_id, position, event_id, epoch, stopped,
            recorded_at, NULL, 0, last_holder FROM diptych_whole_generations""",
        "DROP TABLE diptych_whole_generations",
        _ONE_IS_LIVE,
    ),
    (
        "ALTER TABLE diptych_blocked_keys ADD COLUMN attempts INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE diptych_blocked_keys ADD COLUMN trace TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE diptych_discards ADD COLUMN actor TEXT",
        "ALTER TABLE diptych_discards ADD COLUMN reason TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE diptych_discards ADD COLUMN decided_at INTEGER",
        *_RETRIES,
    ),
    ("ALTER TABLE diptych_generations ADD COLUMN kept_until INTEGER",),
)
"""What makes a catalog of version 1 one of version 2, and so on."""

_TYPES = {
    ColumnKind.TEXT: "TEXT",
    ColumnKind.INTEGER: "INTEGER",
    ColumnKind.REAL: "REAL",
    ColumnKind.BOOLEAN: "INTEGER",
    ColumnKind.DECIMAL: "TEXT",
    ColumnKind.DATETIME: "INTEGER",
    ColumnKind.DATE: "INTEGER",
    ColumnKind.DURATION: "INTEGER",
    ColumnKind.BYTES: "BLOB",
    ColumnKind.DOCUMENT: "TEXT",
}


def prepare_file(connection: sqlite3.Connection, path: str) -> None:
    """Make the catalog in a new file, or beside the events in theirs; check that any other is one of ours.

    Inside a transaction.

    Raises:
        NewerStore: a newer Diptych wrote it.
        StoreUnavailable: it is something else.
    """
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        wanted = ".".join(map(str, SQLITE_VERSION_MIN))
        raise StoreUnavailable(f"this Python has SQLite {sqlite3.sqlite_version}; read stores need {wanted}")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application == EVENT_STORE_FORMAT.application_id:
        _prepare_beside_events(connection, path)
        return
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION_ID:
        _upgrade(connection, path, version)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application or version or objects:
        raise StoreUnavailable(f"{path} is a database, but no read store of Diptych: give the read store its own file")
    for statement in _CATALOG:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _prepare_beside_events(connection: sqlite3.Connection, path: str) -> None:
    """The header of the file tells the version of the events; that of the catalog is in a table of its own."""
    there = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'diptych_read_format'").fetchone()
    if there is None:
        for statement in (*_CATALOG, _FORMAT):
            connection.execute(statement)
    else:
        (version,) = connection.execute("SELECT version FROM diptych_read_format").fetchone()
        _upgrade(connection, f"the read models in {path}", version)
    connection.execute("INSERT OR REPLACE INTO diptych_read_format (one, version) VALUES (1, ?)", (SCHEMA_VERSION,))


def _upgrade(connection: sqlite3.Connection, path: str, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise NewerStore(path, version, SCHEMA_VERSION)
    for statements in _UPGRADES[version - 1 :]:
        for statement in statements:
            connection.execute(statement)


def table_names(connection: sqlite3.Connection) -> frozenset[str]:
    """The names, in lower case, of all tables that read models have in this file; none where it has no catalog."""
    found = [name.lower() for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    if "diptych_generations" not in found:
        return frozenset()
    rows = connection.execute("SELECT DISTINCT table_name, number FROM diptych_generations WHERE table_name NOT NULL")
    builds = tuple(f"{name.lower()}__g{number}" for name, number in rows)
    parts = tuple(f"{build}__words" for build in builds)
    return frozenset(name for name in found if name.startswith(("diptych_", *parts)) or name in builds)


def read_generations(
    connection: sqlite3.Connection, name: str | None = None, number: int | None = None
) -> list[Generation]:
    """The slices of generations, by name, number and slice; those of one name, or of one generation."""
    rows = connection.execute(
        f"""{SELECT_GENERATIONS} WHERE ? IS NULL OR name = ? AND (? IS NULL OR number = ?)
        ORDER BY name, number, slice""",
        (name, name, number, number),
    )
    return [generation_of(row, decode_table(row[3])) for row in rows]


def generation_of(row: tuple[Any, ...], table: Table | None) -> Generation:
    """A slice from its row in the catalog, with the form of its table."""
    name, number, fingerprint, _, live, history_id, position, event_id, epoch, stopped, recorded_at = row[:11]
    place = Place(history_id, Position(position), event_id)
    moment = decode_moment(recorded_at)
    slice, slices, barrier, slices_next = row[11:15]
    return Generation(
        *(name, number, fingerprint, table, bool(live), place, epoch, stopped, moment),
        *(slice, slices, barrier, slices_next, decode_moment(row[15])),
    )


def stored_discards(connection: sqlite3.Connection, name: str) -> list[Discard]:
    """The discards of a projection, by position and key."""
    rows = connection.execute(
        "SELECT key, position, actor, reason, decided_at FROM diptych_discards WHERE name = ? ORDER BY position, key",
        (name,),
    )
    return [
        Discard(name, key, Position(position), actor, reason, None if at is None else moment_of(at))
        for key, position, actor, reason, at in rows
    ]


def encode_table(table: Table | None) -> str | None:
    """The form of a table as the catalog keeps it."""
    return None if table is None else msgspec.json.encode(table).decode()


def decode_table(form: str | None) -> Table | None:
    """The form of a table from the catalog."""
    return None if form is None else msgspec.json.decode(form, type=Table)


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


class StoredTable:
    """The table of one generation: its names, and the statements that depend on its form alone."""

    def __init__(self, table: Table, name: str, number: int) -> None:
        self.form = table
        self.of = name
        self.number = number
        self.codec = RowCodec(table)
        raw_name = f"{table.name}__g{number}"
        self.name = quoted(raw_name)
        self.words = quoted(f"{raw_name}__words")
        self.trigger = f"{raw_name}__words"
        self.row = _row_column(table)
        self.is_searchable = any(column.searchable for column in table.columns)
        self.columns = ", ".join(map(quoted, self.codec.stored))
        self.key = ", ".join(map(quoted, table.key))
        key_is = " AND ".join(f"{quoted(part)} = ?" for part in table.key)
        self.select = f"SELECT {self.columns} FROM {self.name}"
        self.select_one = f"{self.select} WHERE {key_is}"
        self.delete = f"DELETE FROM {self.name} WHERE {key_is}"
        self.upsert = _upsert(self)
        self.select_expired = _select_expired(self)

    def select_unexpired(self, moment: str) -> str:
        """Selects the rows that have not expired at a moment, an SQL expression for microseconds since 1970."""
        if self.form.expires is None:
            return self.select
        expires = quoted(self.form.expires)
        return f"{self.select} WHERE +{expires} > {moment} OR {expires} IS NULL"


def _row_column(table: Table) -> str:
    kinds = {column.name: column.kind for column in table.columns}
    integer = len(table.key) == 1 and _TYPES[kinds[table.key[0]]] == "INTEGER"
    return quoted(table.key[0] if integer else "__row")


def _select_expired(table: StoredTable) -> str:
    """The keys of what has expired at a moment, the earliest first; empty where nothing does."""
    if table.form.expires is None:
        return ""
    expires, key = quoted(table.form.expires), ", ".join(map(quoted, table.codec.stored_key))
    return f"SELECT {key} FROM {table.name} WHERE {expires} <= ? ORDER BY {expires}, {table.key} LIMIT ?"


def _upsert(table: StoredTable) -> str:
    stored = table.codec.stored
    changing = [quoted(name) for name in stored if name not in table.form.key]
    updates = ", ".join(f"{name} = excluded.{name}" for name in changing)
    marks = ", ".join("?" * len(stored))
    return (
        f"INSERT INTO {table.name} ({table.columns}) VALUES ({marks}) "
        f"ON CONFLICT ({table.key}) DO {f'UPDATE SET {updates}' if updates else 'NOTHING'}"
    )


# ── making and removing ──────────────────────────────────────────────────────


def create_table(connection: sqlite3.Connection, table: StoredTable) -> None:
    """Make a generation's table, indexes, search index and triggers.

    Raises:
        ConfigurationError: SQLite cannot have such a table; with the reason.
    """
    try:
        for statement in _definitions(table):
            connection.execute(statement)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise ConfigurationError(f"the read model {table.of} cannot be a table of SQLite: {error}") from error


def drop_table(connection: sqlite3.Connection, table: StoredTable) -> None:
    """Remove what `create_table` made."""
    if table.is_searchable:
        connection.execute(f"DROP TABLE IF EXISTS {table.words}")
    connection.execute(f"DROP TABLE IF EXISTS {table.name}")


def show_table(connection: sqlite3.Connection, table: StoredTable) -> None:
    """Let the view of its name show this table.

    Raises:
        ConfigurationError: something else has that name.
    """
    try:
        connection.execute(f"CREATE VIEW {quoted(table.form.name)} AS {table.select_unexpired(_MACHINE_TIME)}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise ConfigurationError(f"the read model {table.of} cannot have a view in SQLite: {error}") from error


def hide_table(connection: sqlite3.Connection, table: StoredTable) -> None:
    """Remove the view of its name."""
    connection.execute(f"DROP VIEW IF EXISTS {quoted(table.form.name)}")


def _definitions(table: StoredTable) -> list[str]:
    form = table.form
    row_is_key = table.row == quoted(form.key[0])
    parts = [] if row_is_key else [f"{table.row} INTEGER PRIMARY KEY"]
    parts += [_column(column, form, is_row=row_is_key and column.name == form.key[0]) for column in form.columns]
    decimals = [column.name for column in form.columns if column.kind is ColumnKind.DECIMAL]
    parts += [f"{quoted(exponent_column(name))} INTEGER" for name in decimals]
    parts += [] if row_is_key else [f"UNIQUE ({table.key})"]
    indexes = [_index(table, column) for column in form.columns if column.indexed and column.name != form.key[0]]
    indexes += [_expiry_index(table, form.expires)] if form.expires is not None else []
    return [f"CREATE TABLE {table.name} ({', '.join(parts)}) STRICT", *indexes, *_search_definitions(table)]


def _column(column: Column, form: Table, *, is_row: bool) -> str:
    required = column.name in form.key or not column.nullable
    constraint = " PRIMARY KEY" if is_row else " NOT NULL" if required else ""
    return f"{quoted(column.name)} {_TYPES[column.kind]}{constraint}"


def _index(table: StoredTable, column: Column) -> str:
    """It ends in the key, as the orders that pages need do."""
    rest = "".join(f", {quoted(part)}" for part in table.form.key if part != column.name)
    name = quoted(f"{table.form.name}__g{table.number}__index_{column.name}")
    return f"CREATE INDEX {name} ON {table.name} ({quoted(column.name)}{rest})"


def _expiry_index(table: StoredTable, expires: str) -> str:
    """It holds the rows that expire at all, in the order in which they do."""
    name = quoted(f"{table.form.name}__g{table.number}__expiry")
    keys = "".join(f", {quoted(part)}" for part in table.form.key if part != expires)
    return f"CREATE INDEX {name} ON {table.name} ({quoted(expires)}{keys}) WHERE {quoted(expires)} IS NOT NULL"


def _search_definitions(table: StoredTable) -> list[str]:
    names = [quoted(column.name) for column in table.form.columns if column.searchable]
    if not names:
        return []
    changed = " OR ".join(f"old.{name} IS NOT new.{name}" for name in names)
    index = table.words
    remove = f"INSERT INTO {index} ({index}, rowid, words) VALUES ('delete', old.{table.row}, {_text('old', names)});"
    add = f"INSERT INTO {index} (rowid, words) VALUES (new.{table.row}, {_text('new', names)});"

    def trigger(event: str, action: str) -> str:
        name = quoted(f"{table.trigger}_{event.partition(' ')[0].lower()}")
        return f"CREATE TRIGGER {name} AFTER {event} {action} END"

    return [
        f"CREATE VIRTUAL TABLE {index} USING fts5(words, content='', tokenize='unicode61 remove_diacritics 2')",
        trigger("INSERT", f"ON {table.name} BEGIN {add}"),
        trigger("DELETE", f"ON {table.name} BEGIN {remove}"),
        trigger(f"UPDATE OF {', '.join(names)}", f"ON {table.name} WHEN {changed} BEGIN {remove} {add}"),
    ]


def _text(version: str, names: list[str]) -> str:
    """What of a row is searched; the line ends keep words of two columns apart."""
    return " || char(10) || ".join(f"coalesce({version}.{name}, '')" for name in names)
