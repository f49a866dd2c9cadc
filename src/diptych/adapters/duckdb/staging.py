"""A DuckDB database that is filled in batches, and then read as columns or written as a Parquet file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb

from diptych.adapters.duckdb.columns import quoted
from diptych.adapters.duckdb.connection import failures
from diptych.adapters.duckdb.whole_files import put_in_place

__all__ = ["BATCH_ROWS", "Staging", "staging_file"]

BATCH_ROWS = 5_000
"""Rows that are appended at once."""
ROW_GROUP_ROWS = 122_880
"""Of a Parquet file, at most; a reader leaves out groups that a condition on a column in order rules out."""
ROW_GROUP_BYTES_MAX = 33_554_432
"""Of text in one group, about, where rows are long: it is in memory as a whole while it is written."""

STAGED_GROUP_ROWS = 2_048
"""Rows of one group in a database's file: as many are written anew when DuckDB takes what was logged into the file."""
STAGING_MEMORY_MB_MIN = 256
"""Of memory that DuckDB may take for a database in a file, which may be of any size; more where rows are long."""
LONG_GROUPS_MAX = 8
"""Groups of staged rows that there is memory for, however long the rows are."""
SAMPLE_ROWS_EVERY = 16
"""Rows of which one is measured, to tell how long they are."""

T = TypeVar("T")


class Staging:
    """One table of a database of its own, in memory or in a file. Not for concurrent use.

    Args:
        path: of the database's file; one that a crash has left is written over. None: in memory.
        table: the table's name.

    Attributes:
        connection: to the database.
    """

    def __init__(self, path: Path | None, table: str) -> None:
        self._path = path
        self._named = "memory" if path is None else str(path)
        self._table = table
        self._unfinished: list[Path] = []
        self._row_bytes = 0
        with failures(self._named):
            self.connection = duckdb.connect(":memory:")
            try:
                self.connection.execute("SET TimeZone = 'UTC'")
                if path is not None:
                    self._attach(path)
            except BaseException:
                self.connection.close()
                raise

    def _attach(self, path: Path) -> None:
        """Have the table in a file. Attached, the same process is refused it as well where an export has it."""
        for statement in (
            f"SET memory_limit = '{STAGING_MEMORY_MB_MIN}MB'",
            f"SET temp_directory = {_text(_spilled(path))}",
            f"ATTACH {_text(path)} AS staging (ROW_GROUP_SIZE {STAGED_GROUP_ROWS})",
            "USE staging",
        ):
            self.connection.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it, and remove its file and what has not become a whole one. May be called twice."""
        self.connection.close()
        own = [] if self._path is None else [self._path, Path(f"{self._path}.wal")]
        for left in (*own, *self._unfinished):
            left.unlink(missing_ok=True)
        if self._path is not None:
            rmtree(_spilled(self._path), ignore_errors=True)

    async def create(self, columns: str) -> None:
        """Make the table, empty, in the place of any of its name.

        Args:
            columns: as SQL, each with its type.
        """
        statement = f"CREATE OR REPLACE TABLE {quoted(self._table)} ({columns})"
        await self._on_thread(lambda: self.connection.execute(statement))

    async def append(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows, at most `BATCH_ROWS` of them.

        Raises:
            StoreUnavailable: disk or memory are full.
        """

        def append() -> None:
            self._make_room_for(rows)
            with self.connection.appender(self._table) as appender:
                appender.append_rows(rows)

        if rows:
            await self._on_thread(append)

    def relation(self) -> duckdb.DuckDBPyRelation:
        """The table, as long as the database is open."""
        return self.connection.table(quoted(self._table))

    async def write_parquet(self, target: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the table to a file, whole or not at all: it takes the place of one of that name.

        Until then it is `<name>.exporting`, which goes with the database where it fails.

        Raises:
            StoreUnavailable: the file cannot be written; with the reason.
        """
        unfinished = Path(f"{target}.exporting")
        self._unfinished.append(unfinished)
        facts = ", ".join(f"{_text(key)}: {_text(value)}" for key, value in (metadata or {}).items())
        with_facts = f", KV_METADATA {{{facts}}}" if facts else ""

        def write() -> None:
            self.connection.execute("SET threads = 1")  # each one has a group in memory
            self.connection.execute(
                f"COPY (SELECT * FROM {quoted(self._table)}) TO {_text(unfinished)} (FORMAT parquet, "
                f"COMPRESSION zstd, ROW_GROUP_SIZE {self._rows_of_a_group()}{with_facts})"
            )

        await self._on_thread(write)
        await asyncio.to_thread(put_in_place, unfinished, target)

    def _rows_of_a_group(self) -> int:
        return max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES_MAX // max(1, self._row_bytes)))

    def _make_room_for(self, rows: Sequence[Sequence[Any]]) -> None:
        """Where these rows are longer than those before, let DuckDB take more memory: it handles 2,048 rows at once."""
        sample = rows[::SAMPLE_ROWS_EVERY]
        size = sum(len(value) for row in sample for value in row if isinstance(value, (str, bytes))) // len(sample)
        if size > self._row_bytes:
            self._row_bytes = size
            if self._path is not None:
                more = LONG_GROUPS_MAX * STAGED_GROUP_ROWS * size // 1_000_000
                self.connection.execute(f"SET memory_limit = '{STAGING_MEMORY_MB_MIN + more}MB'")

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """Do it on a thread; a caller that is cancelled has it stopped, and waits until it is."""
        running: Awaitable[T] = asyncio.ensure_future(asyncio.to_thread(work))
        with failures(self._named):
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                self.connection.interrupt()
                with suppress(duckdb.Error):
                    await running
                raise


def staging_file(target: Path) -> Path:
    """The database beside a file that is exported."""
    return Path(f"{target}.exporting.duckdb")


def _spilled(path: Path) -> Path:
    """Where DuckDB puts what it has no room for in memory."""
    return Path(f"{path}.tmp")


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
