"""Snapshots of a DuckDB read store: connections, each with one read-only transaction for its lifetime (G8, G13).

Every read is on a thread, and is stopped past a limit or once nobody waits for it any more. A read that fails or is
stopped ends DuckDB's transaction, and with it the snapshot: it shows nothing more, rather than another moment.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from diptych.adapters.duckdb.columns import decode_result, encode_moment, encode_parameter, exponent_column
from diptych.adapters.duckdb.connection import Database, failures
from diptych.adapters.duckdb.read_queries import (
    Condition,
    after_place,
    filtered,
    order_by,
    search,
    where,
    with_unexpired,
)
from diptych.adapters.duckdb.read_tables import SELECT_GENERATIONS, StoredTable, decode_table, generation_of
from diptych.adapters.reader_pool import ReaderPool, SnapshotTurn, ThreadReads
from diptych.adapters.sorting_decimals import DecodeError
from diptych.errors import ConfigurationError, Overloaded, StoreUnavailable
from diptych.read_side.read_store import SQL_ROWS_MAX, BlockedKey, ColumnKind, Filter, Generation, Key, Order, Row
from diptych.read_side.row_filters import words_of

if TYPE_CHECKING:
    import asyncio

    from duckdb import DuckDBPyConnection

__all__ = ["Builds", "DuckdbReadSnapshot", "Snapshots"]

READ_THREADS = 4
"""Reads at a time; each of them may use all cores."""
READ_S_MAX = 10
"""Seconds that one read may run before it is stopped with `Overloaded`."""
BUILDS_CACHED_MAX = 1_000
"""Generations whose form is kept at hand."""

T = TypeVar("T")


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
        if table is None or table.form != generation.table:
            if len(self._tables) >= BUILDS_CACHED_MAX:
                self._tables.clear()
            table = self._tables[place] = StoredTable(generation.table, *place)
        return table


class Snapshots(ReaderPool["DuckDBPyConnection"]):
    """The connections of one database that read."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.path, ThreadPoolExecutor(READ_THREADS, thread_name_prefix="diptych-duckdb-reader"))
        self.builds = Builds()
        self._database = database

    def begin(self, idle: DuckDBPyConnection | None) -> DuckDBPyConnection:
        """The idle connection, or a new one; DuckDB takes its view with the first read at the latest."""
        with failures(self.path):
            connection = self._database.cursor() if idle is None else idle
            connection.execute("BEGIN TRANSACTION READ ONLY")
        return connection

    def end(self, reader: DuckDBPyConnection) -> bool:
        """Let its view go; whether it may be handed on."""
        try:
            reader.rollback()
        except duckdb.Error:
            return False
        return True

    def drop(self, reader: DuckDBPyConnection) -> None:
        """Close a connection."""
        reader.close()

    def snapshot(self) -> SnapshotTurn[DuckDBPyConnection, DuckdbReadSnapshot]:
        """A view of this moment."""
        return SnapshotTurn(self, lambda connection: DuckdbReadSnapshot(connection, self))


class DuckdbReadSnapshot:
    """One moment of the file. See the port."""

    def __init__(self, connection: DuckDBPyConnection, pool: Snapshots) -> None:
        self._connection = connection
        self._pool = pool
        self._known: dict[tuple[str, int | None], Sequence[Generation]] = {}
        self._reads = ThreadReads(pool, connection.interrupt, read_s_max=READ_S_MAX, lasting=False)

    def finish(self) -> asyncio.Future[Any] | None:
        """The read that its caller has left behind, told to stop."""
        return self._reads.finish()

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return await self._read(lambda connection: connection.execute(statement, list(parameters)).fetchall())

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one. See the port."""
        del expecting  # one more statement costs less than a guess
        if (name, number) not in self._known:
            which, value = ("live", True) if number is None else ("number", number)
            self._known[name, number] = await self._generation(f"name = ? AND {which} = ?", name, value)
        return self._known[name, number]

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept; there is one of a name at most. See the port."""
        return await self._generation("name = ? AND fingerprint = ? AND kept_until IS NOT NULL", name, fingerprint)

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, by position."""
        slices = await self.slices(name, number)
        if not slices:
            return []
        found = await self.rows(
            """SELECT key, position, error, attempts FROM diptych.blocked_keys WHERE name = ? AND number = ?
            ORDER BY position, key""",
            (name, slices[0].number),
        )
        return [BlockedKey(name, key, position, error, attempts) for key, position, error, attempts in found]

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out."""
        table = await self._table(name, number)
        codec = table.codec
        encoded = [codec.encode_key(key) for key in map(tuple, keys) if codec.may_have_row(key)]
        if not encoded:
            return {}
        if len(encoded) == 1:
            found = await self.rows(table.select_one, encoded[0])
        else:
            found = await self.rows(table.select_many, [list(values) for values in zip(*encoded, strict=True)])
        rows = {codec.key_of(row): row for row in map(codec.decode, found)}
        return {key: rows[key] for key in map(tuple, keys) if key in rows}

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
        statement = f"{table.select}{condition.text} ORDER BY {order_by(table, order)} LIMIT ?"
        return await self._decoded(table, Condition(statement, (*condition.parameters, limit)))

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches."""
        table = await self._table(name, number)
        condition = where([filtered(table, wanted) for wanted in filters])
        found = await self.rows(f"SELECT count(*) FROM {table.name}{condition.text}", condition.parameters)
        return int(found[0][0])

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word. See the port."""
        table = await self._table(name, number)
        words, condition = words_of(text), where([filtered(table, wanted) for wanted in filters])
        if not words or not table.codec.is_searchable:
            return []
        return await self._decoded(table, search(table, words, condition, limit))

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, in that order. See the port."""
        table = await self._table(name, number)
        if table.form.expires is None:
            return []
        return [table.codec.decode_key(row) for row in await self.rows(table.select_expired, (moment, limit))]

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = MappingProxyType({}),
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Rows of the user's SQL, decoded; columns that are not asked for are left out. See the port."""
        given = [encode_parameter(value) for value in parameters]
        if why_not := await self._read(lambda connection: _unlike_one_select(connection, statement)):
            raise ConfigurationError(why_not)
        for name, moment in moments.items():
            microseconds = encode_moment(moment)
            assert microseconds is not None
            statement = with_unexpired(statement, await self._table(name, None), microseconds)

        def read(connection: DuckDBPyConnection) -> tuple[list[str], list[tuple[Any, ...]]]:
            try:
                result = connection.execute(statement, given)
                found = result.fetchmany(limit)
                return [column[0] for column in result.description or ()], found
            except (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError, UnicodeError) as error:
                raise ConfigurationError(_why_not(error)) from error

        named, found = await self._read(read)
        return _decode_results(named, found, columns)

    # ── how ──────────────────────────────────────────────────────────────────

    async def _decoded(self, table: StoredTable, statement: Condition) -> list[Row]:
        return [table.codec.decode(row) for row in await self.rows(statement.text, statement.parameters)]

    async def _generation(self, condition: str, *parameters: Any) -> Sequence[Generation]:
        """The slices of the one generation of which this holds."""
        found = await self.rows(f"{SELECT_GENERATIONS} WHERE {condition} ORDER BY slice", parameters)
        table = decode_table(found[0][3]) if found else None
        return tuple([generation_of(row, table) for row in found])

    async def _table(self, name: str, number: int | None) -> StoredTable:
        slices = await self.slices(name, number)
        table = self._pool.builds.of(slices[0]) if slices else None
        if table is None:
            which = "live generation" if number is None else f"generation {number}"
            raise StoreUnavailable(f"{name} has no {which} with a table here; is its first build still under way?")
        return table

    async def _read(self, read: Callable[[DuckDBPyConnection], T]) -> T:
        """Read on a thread, one at a time."""

        def run() -> T:
            with failures(self._pool.path):
                return read(self._connection)

        try:
            return await self._reads.run(run)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, duckdb.InterruptException):
                raise Overloaded("READ_S_MAX", READ_S_MAX) from error
            raise


def _unlike_one_select(connection: DuckDBPyConnection, statement: str) -> str:
    """Why this is not read: the transaction is read-only, but settings are none of it. Empty for one SELECT."""
    try:
        parsed = connection.extract_statements(statement)
    except (duckdb.Error, UnicodeError) as error:
        return _why_not(error)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        return _why_not(f"there are {len(parsed)} statements, or it is no SELECT")
    return ""


def _why_not(reason: object) -> str:
    return f"this SQL cannot be run: {reason} (read models take one SELECT, or WITH … SELECT)"


def _decode_results(
    named: Sequence[str], found: Sequence[tuple[Any, ...]], columns: Mapping[str, tuple[ColumnKind, bool]]
) -> list[dict[str, Any]]:
    missing = [name for name in columns if name not in named]
    if missing:
        raise ConfigurationError(f"this SQL selects {', '.join(named)}, but not {', '.join(missing)}")
    places = [(name, *of, named.index(name), _place(named, exponent_column(name))) for name, of in columns.items()]
    return [
        {
            name: None
            if row[place] is None and nullable
            else _decode_one(name, kind, row[place], None if exponent is None else row[exponent])
            for name, kind, nullable, place, exponent in places
        }
        for row in found
    ]


def _place(named: Sequence[str], name: str) -> int | None:
    return named.index(name) if name in named else None


def _decode_one(name: str, kind: ColumnKind, value: Any, exponent: Any) -> Any:
    try:
        return decode_result(kind, value, exponent)
    except DecodeError as error:
        raise ConfigurationError(f"this SQL does not fit its result: column {name}: {error}") from error
