"""`diptych export`: the history as a Parquet file, for pandas, polars and DuckDB."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import UsageError
from diptych.entrypoints.cli.options import (
    EVENT_STORE_UNSET,
    LOGS_UNSET,
    PARTITION_UNSET,
    EventStoreOptions,
    LogOptions,
    PartitionOptions,
    at_least,
)
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async
from diptych.event_store.position import Position
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from diptych.event_store.event_query import EventQuery
    from diptych.event_store.event_store import EventStore
    from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["export"]

PAGE_EVENTS = 1_000
"""Events read at once."""


def export(
    *,
    parquet: Annotated[Path, Parameter(name="--parquet", metavar="FILE")],
    after: Annotated[int, at_least(0), Parameter(metavar="POSITION")] = 0,
    type: Annotated[list[str] | None, Parameter(metavar="EVENT", negative="")] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: EventStoreOptions = EVENT_STORE_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Write the history to a Parquet file, up to where it is now.

    The file takes the place of one of that name when it is whole; stopped before, there is none. Needs
    `pip install 'diptych[duckdb]'`.

    Args:
        parquet: the file to write.
        after: Begin after this position.
        type: Only events of this type, "school.Enrolled" or "Enrolled"; given several times, any of them.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """
    settings = settled(
        verbose=log.verbose, store=stores.store, partition=partition.partition, log_format=log.log_format
    )
    if not parquet.parent.is_dir():
        raise UsageError(f"there is no folder {parquet.parent}")
    if parquet.is_dir():
        raise UsageError(f"{parquet} is a folder: name a file in it")
    count, through = run_async(lambda: _exported(settings, parquet, Position(after), type or ()))
    if json:
        screen.write(encode({"file": str(parquet), "events": count, "after": after, "through": through}))
    else:
        screen.output().print(
            f"{screen.count(count)} events up to position {screen.count(through)} are in {parquet}.", soft_wrap=True
        )


async def _exported(settings: Settings, target: Path, after: Position, types: Sequence[str]) -> tuple[int, Position]:
    from diptych.adapters.connect import export_events
    from diptych.entrypoints.cli.looking import choose, opened_store
    from diptych.event_store.event_query import EventQuery, QueryItem

    async with opened_store(settings) as store:
        stored = {found.name for found in await store.stored_types()} if types else set[str]()
        names = frozenset(choose("event type in this store", name, stored) for name in types)
        head = (await store.head()).position
        query = EventQuery((QueryItem(names),))
        with screen.progress("Exporting") as bar:
            count = await export_events(
                _events(store, query, after, head), target, lambda done: bar(done, None if names else head - after)
            )
        return count, head


async def _events(
    store: EventStore, query: EventQuery, after: Position, head: Position
) -> AsyncIterator[RecordedEvent]:
    """Up to a position: what is appended meanwhile is for the next time."""
    while True:
        found = await store.read(query, after, PAGE_EVENTS, until=head)
        for recorded in found.events:
            yield recorded
        if not found.more:
            return
        after = found.through
