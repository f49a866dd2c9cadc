"""Recorded events as a table of columns: for DuckDB, pandas and polars, and as a Parquet file.

They go through a DuckDB database, in memory or in a file beside the target, so that a history of any length is
exported in bounded memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import duckdb

from diptych.adapters.duckdb.connection import failures
from diptych.adapters.duckdb.whole_files import put_in_place

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["events_relation", "export_events"]

BATCH_EVENTS = 5_000
"""Events that are converted and appended at once."""
ROW_GROUP_ROWS = 122_880
"""Of the Parquet file; a reader leaves out groups that a condition on position or time rules out."""

T = TypeVar("T")

_TABLE = """CREATE OR REPLACE TABLE events (
    position BIGINT NOT NULL, recorded_at TIMESTAMPTZ NOT NULL, type VARCHAR NOT NULL, version INTEGER NOT NULL,
    event_id UUID NOT NULL, tags VARCHAR[] NOT NULL, metadata JSON NOT NULL, data JSON
)"""


async def events_relation(events: AsyncIterable[RecordedEvent]) -> DuckDBPyRelation:
    """A relation of DuckDB, in memory, with a row for each event.

    `await events_relation(app.events(ALL_EVENTS))` is the history of an application. It has an Arrow stream
    (`__arrow_c_stream__`), from which polars and pyarrow make their tables, and `df()` for pandas.
    Columns: position, recorded_at, type, version, event_id, tags, metadata and data (JSON; None where it was pruned).

    Raises:
        StoreUnavailable: memory ran out; ask for fewer, or export them to a file.
    """
    connection = duckdb.connect(":memory:")
    try:
        await _fill(connection, "memory", events)
    except BaseException:
        connection.close()
        raise
    return connection.table("events")


async def export_events(
    events: AsyncIterable[RecordedEvent], target: Path, moved: Callable[[int], object] = lambda _: None
) -> int:
    """Write events to a Parquet file, whole or not at all: it takes the place of one of that name when it is done.

    Beside it there are `<name>.exporting` and `<name>.exporting.duckdb` meanwhile. They are removed, also where it is
    cancelled; what a crash has left is written over by the next export.

    Args:
        events: ordered by position.
        target: the file.
        moved: is told after each batch how many there are.

    Returns:
        How many there were.

    Raises:
        StoreUnavailable: the file cannot be written, or is being exported to by somebody else; with the reason.
    """
    unfinished, staging = Path(f"{target}.exporting"), Path(f"{target}.exporting.duckdb")
    with failures(str(staging)):
        connection = duckdb.connect(str(staging))
    try:
        count = await _fill(connection, str(staging), events, moved)
        statement = (
            f"COPY (SELECT * FROM events) TO {_text(unfinished)} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
        )
        await _on_thread(connection, str(target), lambda: connection.execute(statement))
        await asyncio.to_thread(put_in_place, unfinished, target)
        return count
    finally:
        connection.close()
        for left in (unfinished, staging, Path(f"{staging}.wal")):
            left.unlink(missing_ok=True)


async def _fill(
    connection: DuckDBPyConnection,
    path: str,
    events: AsyncIterable[RecordedEvent],
    moved: Callable[[int], object] = lambda _: None,
) -> int:
    with failures(path):
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(_TABLE)
    count, batch = 0, list[Any]()
    async for recorded in events:
        batch.append(_row(recorded))
        if len(batch) == BATCH_EVENTS:
            count += len(batch)
            await _append(connection, path, batch)
            moved(count)
            batch = []
    await _append(connection, path, batch)
    moved(count + len(batch))
    return count + len(batch)


def _row(recorded: RecordedEvent) -> tuple[Any, ...]:
    return (
        *(recorded.position, recorded.recorded_at, recorded.type, recorded.version, UUID(bytes=recorded.event_id)),
        *(list(recorded.tags), recorded.metadata.decode(), recorded.data.decode() or None),
    )


async def _append(connection: DuckDBPyConnection, path: str, rows: Sequence[tuple[Any, ...]]) -> None:
    def append() -> None:
        with connection.appender("events") as appender:
            appender.append_rows(rows)

    if rows:
        await _on_thread(connection, path, append)


async def _on_thread(connection: DuckDBPyConnection, path: str, work: Callable[[], T]) -> T:
    """Do it on a thread; a caller that is cancelled has it stopped, and waits until it is."""
    running: Awaitable[T] = asyncio.ensure_future(asyncio.to_thread(work))
    with failures(path):
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            connection.interrupt()
            with suppress(duckdb.Error):
                await running
            raise


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
