"""Recorded events of any type as a table of columns: for DuckDB, pandas and polars, and as a Parquet file.

They go through a DuckDB database, in memory or in a file beside the target, so that a history of any length is
exported in bounded memory. Events of one type with a column for each field are `columnar_rows`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from diptych.adapters.duckdb.staging import BATCH_ROWS, Staging, staging_file

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyRelation

    from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["events_relation", "export_events"]

_COLUMNS = """position BIGINT NOT NULL, recorded_at TIMESTAMPTZ NOT NULL, type VARCHAR NOT NULL,
    version INTEGER NOT NULL, event_id UUID NOT NULL, tags VARCHAR[] NOT NULL, metadata JSON NOT NULL, data JSON"""


async def events_relation(events: AsyncIterable[RecordedEvent]) -> DuckDBPyRelation:
    """A relation of DuckDB, in memory, with a row for each event.

    `await events_relation(app.events(ALL_EVENTS))` is the history of an application. It has an Arrow stream
    (`__arrow_c_stream__`), from which polars and pyarrow make their tables, and `df()` for pandas.
    Columns: position, recorded_at, type, version, event_id, tags, metadata and data (JSON; None where it was pruned).

    Raises:
        StoreUnavailable: memory ran out; ask for fewer, or export them to a file.
    """
    staging = Staging(None, "events")
    try:
        await _fill(staging, events)
    except BaseException:
        staging.close()
        raise
    return staging.relation()


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
    with Staging(staging_file(target), "events") as staging:
        count = await _fill(staging, events, moved)
        await staging.write_parquet(target)
        return count


async def _fill(
    staging: Staging, events: AsyncIterable[RecordedEvent], moved: Callable[[int], object] = lambda _: None
) -> int:
    await staging.create(_COLUMNS)
    count, batch = 0, list[Any]()
    async for recorded in events:
        batch.append(_row(recorded))
        if len(batch) == BATCH_ROWS:
            count += len(batch)
            await staging.append(batch)
            moved(count)
            batch = []
    await staging.append(batch)
    moved(count + len(batch))
    return count + len(batch)


def _row(recorded: RecordedEvent) -> tuple[Any, ...]:
    return (
        *(recorded.position, recorded.recorded_at, recorded.type, recorded.version, UUID(bytes=recorded.event_id)),
        *(list(recorded.tags), recorded.metadata.decode(), recorded.data.decode() or None),
    )
