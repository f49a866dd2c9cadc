"""The history as columns: what DuckDB reads of it, from a running application and from an exported file."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from diptych import Application, BoundedContext, Command, Event, Identity
from diptych.adapters.duckdb import staging
from diptych.adapters.duckdb.event_table import events_relation, export_events
from diptych.errors import StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

school = BoundedContext("school")


class CourseId(Identity): ...


class Enrol(Command):
    course: CourseId


class Enrolled(Event):
    course: CourseId


@school.command_handler
def enrol(command: Enrol) -> Enrolled:
    return Enrolled(course=command.course)


COLUMNS = ["position", "recorded_at", "type", "version", "event_id", "tags", "metadata", "data"]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def recorded(position: int, data: str = '{"a": "é"}') -> RecordedEvent:
    return RecordedEvent(
        Position(position), position.to_bytes(16, "big"), "x.Y", 1, data.encode(), ("a:b", "c:d"), b"{}", NOON
    )


async def given(*events: RecordedEvent) -> AsyncIterator[RecordedEvent]:
    for event in events:
        yield event


async def given_then_stuck(stuck: asyncio.Event, *events: RecordedEvent) -> AsyncIterator[RecordedEvent]:
    for event in events:
        yield event
    stuck.set()
    await asyncio.Event().wait()


def rows(source: str) -> list[Any]:
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(f"SELECT * FROM '{source}' ORDER BY position").fetchall()


async def test_a_history_is_a_relation_with_an_arrow_stream(store_url: str) -> None:
    """On every store: each event with its place, time, tags and data, as they were recorded."""
    async with Application(school, store=store_url) as app:
        for course in ("python", "ruby", "python"):
            await app.execute(Enrol(course=CourseId(course)))
        stored = [event async for event in app.events(ALL_EVENTS)]
        relation = await events_relation(app.events(ALL_EVENTS))
    assert relation.columns == COLUMNS
    found = relation.fetchall()
    assert len(found) == len(stored) == 3
    for row, event in zip(found, stored, strict=True):
        assert row[0] == event.position
        assert row[1] == event.recorded_at
        assert row[2:4] == (event.type, event.version)
        assert row[4].bytes == event.event_id
        assert tuple(row[5]) == event.tags
        assert (row[6].encode(), row[7].encode()) == (event.metadata, event.data)
    assert hasattr(relation, "__arrow_c_stream__")
    totals = relation.aggregate("data ->> 'course' AS course, count(*) AS events", "course").fetchall()
    assert dict(totals) == {"python": 2, "ruby": 1}


async def test_an_exported_history_is_read_by_duckdb_alone(tmp_path: Path) -> None:
    """In the order of positions over any number of batches; a pruned event has no data."""
    target = tmp_path / "it's.parquet"
    events = [recorded(n) for n in range(1, staging.BATCH_ROWS * 2 + 2)]
    events[3] = recorded(4, data="")
    told: list[int] = []
    assert await export_events(given(*events), target, told.append) == len(events)
    assert told == [staging.BATCH_ROWS, staging.BATCH_ROWS * 2, len(events)]
    with duckdb.connect(":memory:") as connection:
        relation = connection.read_parquet(str(target))
        assert relation.columns == COLUMNS
        assert relation.project("position").fetchall() == [(event.position,) for event in events]
        (row,) = relation.filter("position = 4").project("data, tags, epoch_us(recorded_at)").fetchall()
        assert row == (None, ["a:b", "c:d"], int(NOON.timestamp()) * 1_000_000)
        (text,) = relation.filter("position = 5").project("data").fetchall()[0]
        assert json.loads(text) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [target]


async def test_an_empty_history_is_an_empty_table(tmp_path: Path) -> None:
    """With its columns."""
    assert await export_events(given(), tmp_path / "none.parquet") == 0
    with duckdb.connect(":memory:") as connection:
        relation = connection.read_parquet(str(tmp_path / "none.parquet"))
        assert (relation.columns, relation.fetchall()) == (COLUMNS, [])


async def test_an_export_that_is_cancelled_leaves_what_was_there(tmp_path: Path) -> None:
    """Neither half a file nor a staging one; the file of before is whole."""
    target = tmp_path / "history.parquet"
    await export_events(given(recorded(1)), target)
    before, stuck = target.read_bytes(), asyncio.Event()
    events = given_then_stuck(stuck, *(recorded(n) for n in range(1, staging.BATCH_ROWS + 10)))
    exporting = asyncio.create_task(export_events(events, target))
    await asyncio.wait_for(stuck.wait(), 10)
    with pytest.raises(StoreUnavailable, match="missing"):
        await export_events(given(recorded(1)), tmp_path / "missing" / "history.parquet")
    exporting.cancel()
    await asyncio.wait([exporting])
    assert exporting.cancelled()
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


async def test_what_a_crash_has_left_is_written_over(tmp_path: Path) -> None:
    """A staging file with events of another export is not exported again."""
    with duckdb.connect(tmp_path / "h.parquet.exporting.duckdb") as connection:
        connection.execute("CREATE TABLE events AS SELECT 99 AS position")
    (tmp_path / "h.parquet.exporting").write_text("half a file")
    await export_events(given(recorded(1), recorded(2)), tmp_path / "h.parquet")
    assert [row[0] for row in rows(str(tmp_path / "h.parquet"))] == [1, 2]
    assert list(tmp_path.iterdir()) == [tmp_path / "h.parquet"]
