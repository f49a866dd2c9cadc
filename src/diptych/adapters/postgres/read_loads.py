"""Rows that batches start from: those of several read models with one statement, where each is of one key.

That is the usual live batch, one event that concerns a row of each, and somebody may wait for it. Rows of many keys are
read for one read model after the other: behind a backlog, a round trip for each batch and read model costs little.

Nothing is said of the moments in which they are read: see the port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from diptych.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from diptych.adapters.postgres.read_tables import Builds, StoredTable
    from diptych.read_side.read_store import Key, Row, RowsAsked

__all__ = ["Loads"]

ROWS_TOGETHER_MAX = 16
"""Rows, of as many read models or slices, that one statement reads; more take several."""
STATEMENTS_TOGETHER_MAX = 64
"""Statements of that kind that are kept, one for each set of tables; the oldest goes."""


class _Load(NamedTuple):
    """Rows of one table: its key columns, each as an array, without those that no row can have."""

    number: int
    table: StoredTable
    keys: Sequence[Sequence[Any]]


class Loads:
    """Reads such rows for one store."""

    def __init__(self, builds: Builds, fetch: Callable[..., Awaitable[list[asyncpg.Record]]]) -> None:
        """Remember where tables are known, and how a statement is run in a transaction of its own."""
        self._builds = builds
        self._fetch = fetch
        self._statements: dict[tuple[StoredTable, ...], str] = {}

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """The rows of each.

        Raises:
            StoreUnavailable: a generation was replaced so long ago that its table is gone.
        """
        found: list[dict[Key, Row]] = [{} for _ in asked]
        loads = [_load(number, self._table(each), each.keys) for number, each in enumerate(asked)]
        single = [load for load in loads if len(load.keys[0]) == 1]
        for begin in range(0, len(single), ROWS_TOGETHER_MAX):
            await self._read_together(single[begin : begin + ROWS_TOGETHER_MAX], found)
        for load in loads:
            if len(load.keys[0]) > 1:
                rows = await self._rows((load.table,), load.table.select_many, *load.keys)
                found[load.number] = load.table.codec.by_key(rows)
        return found

    async def _read_together(self, loads: Sequence[_Load], found: list[dict[Key, Row]]) -> None:
        tables = tuple(load.table for load in loads)
        given = [values[0] for load in loads for values in load.keys]
        (row,) = await self._rows(tables, self._statement(tables), *given)
        begin = 0
        for load in loads:
            end = begin + 1 + load.table.width
            if row[begin] is not None:
                found[load.number] = load.table.codec.by_key([row[begin + 1 : end]])
            begin = end

    def _statement(self, tables: tuple[StoredTable, ...]) -> str:
        statement = self._statements.get(tables)
        if statement is None:
            if len(self._statements) >= STATEMENTS_TOGETHER_MAX:
                del self._statements[next(iter(self._statements))]
            statement = self._statements[tables] = _statement(tables)
        return statement

    def _table(self, asked: RowsAsked) -> StoredTable:
        table = self._builds.of(asked.generation)
        assert table is not None, "what has no table has no rows"
        return table

    async def _rows(self, tables: Sequence[StoredTable], statement: str, *given: Any) -> list[asyncpg.Record]:
        try:
            return await self._fetch(statement, *given)
        except ConfigurationError as error:
            if isinstance(error.__cause__, asyncpg.UndefinedTableError):
                names = ", ".join(f"{table.of}: generation {table.number}" for table in tables)
                raise StoreUnavailable(f"a table is gone ({names}): it was replaced; it is loaded anew") from error
            raise


def _load(number: int, table: StoredTable, keys: Sequence[Key]) -> _Load:
    return _Load(number, table, table.codec.key_arrays(keys))


def _statement(tables: Sequence[StoredTable]) -> str:
    """One row: of each table whether it has the key, and its columns."""
    joined, first = ["(VALUES (true)) AS one (there)"], 1
    for number, table in enumerate(tables):
        joined.append(f"LEFT JOIN ({table.if_there(first)}) AS r{number} ON true")
        first += len(table.form.key)
    shown = ", ".join(f"r{number}.*" for number in range(len(tables)))
    return f"SELECT {shown} FROM {' '.join(joined)}"
