"""Snapshots of a read store's file: read-only connections, each with one read transaction for its lifetime (G8, G13).

What is quick (a row by its key, a checkpoint) is read on the event loop, where it costs less than the way to a thread
and back; what may take long is read on a thread, and stopped past a limit or once nobody waits for it any more.
"""

from __future__ import annotations

import datetime as dt
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.adapters.reader_pool import NOT_WAITED_FOR, ReaderPool, SnapshotTurn, ThreadReads
from diptych.adapters.sqlite.columns import (
    DecodeError,
    decode_result,
    encode_moment,
    encode_parameter,
    exponent_column,
)
from diptych.adapters.sqlite.connection import Failures, data_version, open_reader
from diptych.adapters.sqlite.read_queries import (
    after_place,
    filtered,
    match_expression,
    order_by,
    rows_of_keys,
    where,
    with_unexpired,
)
from diptych.adapters.sqlite.read_tables import SELECT_GENERATIONS, StoredTable, decode_table, generation_of
from diptych.errors import ConfigurationError, Overloaded, StoreUnavailable
from diptych.read_side.read_store import (
    SQL_ROWS_MAX,
    BlockedKey,
    ColumnKind,
    Filter,
    Generation,
    Key,
    Order,
    Row,
)

if TYPE_CHECKING:
    import asyncio

__all__ = ["Builds", "Reader", "Snapshots", "SqliteReadSnapshot", "blocked_keys", "rows_by_key"]

READ_THREADS = 4
"""Threads for reads that may take long."""
READ_S_MAX = 10
"""Seconds that one such read may run before it is stopped with `Overloaded`."""
STEPS_BETWEEN_CHECKS = 20_000
"""Of SQLite's machine, from one look at the clock to the next."""
BUILDS_CACHED_MAX = 1_000
"""Generations whose form is kept at hand."""

T = TypeVar("T")

_LIVE_SLICES = f"{SELECT_GENERATIONS} WHERE name = ? AND live = 1 ORDER BY slice"
_NUMBERED_SLICES = f"{SELECT_GENERATIONS} WHERE name = ? AND number = ? ORDER BY slice"
_KEPT = """SELECT number FROM diptych_generations
    WHERE name = ? AND fingerprint = ? AND kept_until IS NOT NULL ORDER BY number DESC LIMIT 1"""
_BLOCKED = "SELECT key, position, error, attempts FROM diptych_blocked_keys WHERE name = ? AND number = "
_LIVE_BLOCKED = f"""{_BLOCKED} (SELECT number FROM diptych_generations WHERE name = ? AND live = 1 AND slice = 0)
    ORDER BY position, key"""
_NUMBERED_BLOCKED = f"{_BLOCKED} ? ORDER BY position, key"
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})


class Builds:
    """The tables of generations, at hand by name and number, which never mean another one."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, int], StoredTable] = {}

    def of(self, generation: Generation) -> StoredTable | None:
        """The table of a generation; None for a subscriber."""
        if generation.table is None:
            return None
        place = generation.name, generation.number
        table = self._tables.get(place)
        if table is None or (table.form is not generation.table and table.form != generation.table):
            if len(self._tables) >= BUILDS_CACHED_MAX:
                self._tables.clear()
            table = self._tables[place] = StoredTable(generation.table, *place)
        return table

    def known(self, name: str, number: int) -> StoredTable | None:
        """The table of a generation that was read before."""
        return self._tables.get((name, number))


# ── connections ──────────────────────────────────────────────────────────────


class Reader:
    """A connection that cannot write, and what it is allowed at the moment.

    Attributes:
        slices: of the generations that it read since anybody last committed, by name and number.
        blocked: likewise, the blocked keys of generations.
    """

    def __init__(self, path: str) -> None:
        self.connection = open_reader(path)
        self.slices: dict[tuple[str, int | None], Sequence[Generation]] = {}
        self.blocked: dict[tuple[str, int | None], Sequence[BlockedKey]] = {}
        self._version = 0
        self.of_user = False
        self.deadline = math.inf
        self.abandoned = False
        self.connection.set_authorizer(self._authorize)
        self.connection.set_progress_handler(self._is_over, STEPS_BETWEEN_CHECKS)

    def begin(self) -> None:
        """Take the view, which SQLite does with the first read, and forget what may have changed."""
        self.connection.execute("BEGIN")
        version = data_version(self.connection)
        if version != self._version:
            self._version = version
            self.slices.clear()
            self.blocked.clear()

    def end(self) -> None:
        """Let the view go."""
        self.of_user = self.abandoned = False
        self.connection.rollback()

    def abandon(self) -> None:
        """Stop the read that goes on, until the view is let go: nobody waits for it."""
        self.abandoned = True

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Allow reading, and what virtual tables ask for when they open.

        FTS5 asks for `PRAGMA data_version`. Each declares its columns, which counts as an update of the schema table;
        a real update of that SQLite refuses all the same.
        """
        if action in _ALLOWED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_TRANSACTION and not self.of_user:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second != "load_extension":
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and first == "data_version" and second is None:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def _is_over(self) -> bool:
        return self.abandoned or time.monotonic() > self.deadline


class Snapshots(ReaderPool[Reader]):
    """The connections of one file."""

    def __init__(self, path: str) -> None:
        super().__init__(path, ThreadPoolExecutor(READ_THREADS, thread_name_prefix="diptych-sqlite-reader"))
        self.failures = Failures(path)
        self.builds = Builds()

    def begin(self, idle: Reader | None) -> Reader:
        """The idle connection, or a new one, with its view."""
        with self.failures:
            reader = Reader(self.path) if idle is None else idle
            try:
                reader.begin()
            except BaseException:
                reader.connection.close()
                raise
        return reader

    def end(self, reader: Reader) -> bool:
        """Let its view go; whether it may be handed on."""
        try:
            reader.end()
        except sqlite3.Error:
            return False
        return True

    def drop(self, reader: Reader) -> None:
        """Close a connection."""
        reader.connection.close()

    def snapshot(self) -> SnapshotTurn[Reader, SqliteReadSnapshot]:
        """A view of this moment."""
        return SnapshotTurn(self, lambda reader: SqliteReadSnapshot(reader, self))


# ── reads ────────────────────────────────────────────────────────────────────


class SqliteReadSnapshot:
    """One moment of the file. See the port."""

    def __init__(self, reader: Reader, pool: Snapshots) -> None:
        self._reader = reader
        self._pool = pool
        self._builds = pool.builds
        self._failures = pool.failures
        self._reads: ThreadReads | None = None
        self._is_over = False

    @property
    def connection(self) -> sqlite3.Connection:
        """The read-only connection itself."""
        return self._reader.connection

    def finish(self) -> asyncio.Future[Any] | None:
        """The read on a thread that its caller has left behind, told to stop."""
        self._is_over = True
        return None if self._reads is None else self._reads.finish()

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one. See the port."""
        del expecting  # rows are at hand
        await self._alone()
        with self._failures:
            return self._slices(name, number)

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept. See the port."""
        await self._alone()
        with self._failures:
            found = self.connection.execute(_KEPT, (name, fingerprint)).fetchone()
            return self._slices(name, found[0]) if found else ()

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, by position."""
        await self._alone()
        found = self._reader.blocked.get((name, number))
        if found is None:
            with self._failures:
                found = self._reader.blocked[name, number] = self._read_blocked(name, number)
        return list(found)

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out."""
        await self._alone()
        with self._failures:
            return rows_by_key(self.connection, self._table_of(name, number), keys)

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in order. See the port."""
        table = await self._table(name, number)
        conditions = [filtered(table, wanted) for wanted in filters]
        if after is not None:
            conditions.append(after_place(table, order, after))
        condition = where(conditions)
        text = f"{table.select}{condition.text} ORDER BY {order_by(order)} LIMIT ?"

        def read(connection: sqlite3.Connection) -> list[Row]:
            found = connection.execute(text, (*condition.parameters, limit)).fetchall()
            return [table.codec.decode(row) for row in found]

        return await self._on_thread(read)

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches."""
        table = await self._table(name, number)
        condition = where([filtered(table, wanted) for wanted in filters])
        text = f"SELECT count(*) FROM {table.name}{condition.text}"

        def read(connection: sqlite3.Connection) -> int:
            return int(connection.execute(text, condition.parameters).fetchone()[0])

        return await self._on_thread(read)

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word. See the port."""
        table = await self._table(name, number)
        words, condition = match_expression(text), where([filtered(table, wanted) for wanted in filters])
        if not words or not table.is_searchable:
            return []
        statement = (
            f'{table.select} JOIN (SELECT rowid AS "__match", rank AS "__rank" FROM {table.words} '
            f'WHERE {table.words} MATCH ?) ON "__match" = {table.row}{condition.text} '
            f'ORDER BY "__rank", {table.key} LIMIT ?'
        )
        parameters = (words, *condition.parameters, limit)

        def read(connection: sqlite3.Connection) -> list[Row]:
            return [table.codec.decode(row) for row in connection.execute(statement, parameters).fetchall()]

        return await self._on_thread(read)

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, in that order. See the port."""
        await self._alone()
        with self._failures:
            table = self._table_of(name, number)
            if table.form.expires is None:
                return []
            found = self.connection.execute(table.select_expired, (encode_moment(moment), limit)).fetchall()
            return [table.codec.decode_key(key) for key in found]

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = MappingProxyType({}),
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Rows of the user's SQL, decoded; columns that are not asked for are left out. See the port.

        A decimal reads back with the exponent it was written with where `<name>__exponent` is selected too.
        """
        encoded = [encode_parameter(value) for value in parameters]
        for name, moment in moments.items():
            statement = with_unexpired(statement, await self._table(name, None), encode_moment(moment))

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            self._reader.of_user = True
            try:
                cursor = connection.execute(statement, encoded)
                found = cursor.fetchmany(limit)
                named = [column[0] for column in cursor.description or ()]
                cursor.close()
            except (sqlite3.Error, sqlite3.Warning, UnicodeError, OverflowError) as error:
                raise _explained(error) from error
            finally:
                self._reader.of_user = False
            return _decode_results(named, found, columns)

        return await self._on_thread(read)

    # ── how ──────────────────────────────────────────────────────────────────

    def _slices(self, name: str, number: int | None) -> Sequence[Generation]:
        known = self._reader.slices
        if (name, number) not in known:
            known[name, number] = self._read_slices(name, number)
        return known[name, number]

    def _read_blocked(self, name: str, number: int | None) -> Sequence[BlockedKey]:
        if number is None:
            found = self.connection.execute(_LIVE_BLOCKED, (name, name))
        else:
            return blocked_keys(self.connection, name, number)
        return _blocked(name, found)

    def _read_slices(self, name: str, number: int | None) -> Sequence[Generation]:
        if number is None:
            found = self.connection.execute(_LIVE_SLICES, (name,)).fetchall()
        else:
            found = self.connection.execute(_NUMBERED_SLICES, (name, number)).fetchall()
        if not found:
            return ()
        known = self._builds.known(name, found[0][1])
        table = decode_table(found[0][3]) if known is None else known.form
        return tuple([generation_of(row, table) for row in found])

    async def _alone(self) -> None:
        """Wait until no thread reads on the connection.

        Whoever binds a parameter or prepares a statement holds the interpreter's lock while it waits for SQLite's; a
        thread that holds SQLite's needs the interpreter's for each look at the clock, and neither would ever go on.

        Raises:
            StoreUnavailable: the snapshot is over, and the connection may be somebody else's.
        """
        if self._reads is not None:
            await self._reads.settled()
        if self._is_over:
            raise StoreUnavailable(f"this snapshot of {self._pool.path} ended {NOT_WAITED_FOR}")

    async def _table(self, name: str, number: int | None) -> StoredTable:
        await self._alone()
        return self._table_of(name, number)

    def _table_of(self, name: str, number: int | None) -> StoredTable:
        slices = self._slices(name, number)
        table = self._builds.of(slices[0]) if slices else None
        if table is None:
            which = "live generation" if number is None else f"generation {number}"
            raise StoreUnavailable(f"{name} has no {which} with a table here; is its first build still under way?")
        return table

    async def _on_thread(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read on a thread, one at a time."""
        if self._reads is None:
            self._reads = ThreadReads(self._pool, self._reader.abandon, read_s_max=None, lasting=True)
        return await self._reads.run(lambda: self._read_in_time(read))

    def _read_in_time(self, read: Callable[[sqlite3.Connection], T]) -> T:
        self._reader.deadline = time.monotonic() + READ_S_MAX
        try:
            with self._failures:
                return read(self.connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise Overloaded("READ_S_MAX", READ_S_MAX) from error
            raise
        finally:
            self._reader.deadline = math.inf


def rows_by_key(connection: sqlite3.Connection, table: StoredTable, keys: Sequence[Key]) -> dict[Key, Row]:
    """The rows of these keys in one table; keys without a row are left out."""
    codec = table.codec
    try:
        rows = _rows(connection, table, [codec.encode_key(key) for key in keys])
    except (TypeError, ValueError, ArithmeticError):
        # A key that no row can have (a number past 64 bits, a lone surrogate) spoils the statement.
        rows = _rows(connection, table, [codec.encode_key(key) for key in keys if codec.may_have_row(key)])
    return {codec.key_of(row): row for row in map(codec.decode, rows)}


def _rows(connection: sqlite3.Connection, table: StoredTable, keys: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    if len(keys) == 1:
        return connection.execute(table.select_one, keys[0]).fetchall()
    return rows_of_keys(connection, table, keys) if keys else []


def blocked_keys(connection: sqlite3.Connection, name: str, number: int) -> list[BlockedKey]:
    """The blocked keys of one generation, by position."""
    return _blocked(name, connection.execute(_NUMBERED_BLOCKED, (name, number)))


def _blocked(name: str, found: Iterable[tuple[Any, ...]]) -> list[BlockedKey]:
    return [BlockedKey(name, key, position, error, attempts) for key, position, error, attempts in found]


_STATEMENT_IS_WRONG = frozenset(
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
)


def _explained(error: Exception) -> Exception:
    """What is wrong with the user's SQL; failures of the file, and of its limits, as they are."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int) and code & 0xFF not in _STATEMENT_IS_WRONG:
        return error
    return ConfigurationError(f"this SQL cannot be run: {error} (read models take one SELECT, or WITH … SELECT)")


def _decode_results(
    named: Sequence[str], found: Sequence[tuple[Any, ...]], columns: Mapping[str, tuple[ColumnKind, bool]]
) -> list[dict[str, Any]]:
    missing = [name for name in columns if name not in named]
    if missing:
        raise ConfigurationError(f"this SQL selects {', '.join(named)}, but not {', '.join(missing)}")
    places = [(name, *columns[name], named.index(name)) for name in columns]
    exponents = {name: named.index(other) for name in columns if (other := exponent_column(name)) in named}
    try:
        return [
            {
                name: _decode_one(
                    name, kind, row[place], row[exponents[name]] if name in exponents else None, nullable=nullable
                )
                for name, kind, nullable, place in places
            }
            for row in found
        ]
    except DecodeError as error:
        raise ConfigurationError(f"this SQL does not fit its result: {error}") from error


def _decode_one(name: str, kind: ColumnKind, value: Any, exponent: int | None, *, nullable: bool) -> Any:
    if value is None and nullable:
        return None
    try:
        return decode_result(kind, value, exponent)
    except DecodeError as error:
        raise DecodeError(f"column {name}: {error}") from error
