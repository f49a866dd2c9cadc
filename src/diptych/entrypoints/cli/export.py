"""`diptych export`: the history, a read model, or the events of one type as a Parquet file."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import UsageError
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    StoreOptions,
    at_least,
    settings_of,
)
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.event_store.position import Position
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from diptych.event_store.event_query import EventQuery
    from diptych.event_store.event_store import EventStore
    from diptych.event_store.recorded_event import RecordedEvent
    from diptych.read_side.columnar_rows import ColumnarRows

__all__ = ["export"]

PAGE_EVENTS = 1_000
"""Events read at once."""


class _Wanted(NamedTuple):
    """What to export, and how: see `export` for the fields."""

    after: Position
    types: Sequence[str]
    model: str | None
    event: str | None
    decimals: Literal["decimal", "text"]


def export(  # noqa: PLR0913 — by keyword, all but the first
    *app: AppNames,
    parquet: Annotated[Path, Parameter(name="--parquet", metavar="FILE")],
    model: Annotated[str | None, Parameter(metavar="READ_MODEL")] = None,
    event: Annotated[str | None, Parameter(metavar="EVENT")] = None,
    after: Annotated[int, at_least(0), Parameter(metavar="POSITION")] = 0,
    type: Annotated[list[str] | None, Parameter(metavar="EVENT", negative="")] = None,
    decimals: Annotated[Literal["decimal", "text"], Parameter()] = "decimal",
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Write the history to a Parquet file, up to where it is now; or a read model, or the events of one type.

    The history alone needs no APP; fields are JSON in it. With --model or --event each field is a column of its type.
    The file takes the place of one of that name when it is whole; stopped before, there is none. Needs
    `pip install 'diptych[duckdb]'`.

    Args:
        app: whose.
        parquet: the file to write.
        model: Every row of this read model, "school.Seats" or "Seats", as of one moment.
        event: The events of this type, "school.Enrolled" or "Enrolled"; older versions are upcast.
        after: Begin after this position.
        type: Of the history, only events of this type; given several times, any of them.
        decimals: What decimals become with --model or --event: DECIMAL(38,12), or text of any length.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """
    wanted = _Wanted(Position(after), type or (), model, event, decimals)
    _check(wanted)
    settings = settings_of(app, stores, partition, log)
    if not parquet.parent.is_dir():
        raise UsageError(f"there is no folder {parquet.parent}")
    if parquet.is_dir():
        raise UsageError(f"{parquet} is a folder: name a file in it")
    if model is None and event is None:
        run_async(lambda: _history(settings, parquet, wanted, json=json))
    else:
        run_async(lambda: _rows(settings, parquet, wanted, json=json))


def _check(wanted: _Wanted) -> None:
    of_one = wanted.model is not None or wanted.event is not None
    if wanted.model is not None and wanted.event is not None:
        raise UsageError("--model and --event: give one of them, each has a file of its own")
    if wanted.types and of_one:
        raise UsageError("--type chooses from the history as a whole: leave it out with --model and --event")
    if wanted.after and wanted.model is not None:
        raise UsageError("--after is a position of the history: a read model is exported as it is now")
    if wanted.decimals == "text" and not of_one:
        raise UsageError("--decimals is for --model and --event: in the history as a whole decimals are in JSON")


# ── rows ─────────────────────────────────────────────────────────────────────


async def _rows(settings: Settings, target: Path, wanted: _Wanted, *, json: bool) -> None:
    from diptych.adapters.connect import export_rows
    from diptych.entrypoints.cli.looking import choose, opened_partition

    async with opened_partition(settings) as partition:
        rows: ColumnarRows
        if wanted.model is not None:
            rows = partition.read_model_rows(
                partition.read_models[choose("read model", wanted.model, partition.read_models)]
            )
        else:
            types = partition.history.types
            known = {found.name: found.cls for found in types}
            rows = partition.event_rows(known[choose("event", wanted.event or "", known)], after=wanted.after)
        with screen.progress(f"Exporting {rows.name}") as bar:
            count, metadata = await export_rows(rows, target, bar, wanted.decimals)
    facts = {fact: metadata[f"diptych.{fact}"] for fact in _FACTS if f"diptych.{fact}" in metadata}
    if json:
        told = {name: fact if name == "token" else msgspec.Raw(fact.encode()) for name, fact in facts.items()}
        of = "read_model" if wanted.model is not None else "event"
        screen.write(encode({"file": str(target), of: rows.name, "rows": count, **told}))
    else:
        screen.output().print(_summary(rows.name, count, target, facts, model=wanted.model is not None), soft_wrap=True)


_FACTS = ("position", "after", "token", "incomplete", "pruned")
"""What is told of rows, of their metadata."""


def _summary(name: str, count: int, target: Path, facts: Mapping[str, str], *, model: bool) -> str:
    what, moment = ("rows", "as of") if model else ("events", "up to")
    position = screen.count(int(facts["position"]))
    lines = [f"{screen.count(count)} {what} of {name} {moment} position {position} are in {target}."]
    if facts.get("incomplete") == "true":
        lines.append("Events of blocked keys are missing from them: see `diptych parked list`.")
    if facts.get("pruned", "0") != "0":
        lines.append(f"Of {screen.count(int(facts['pruned']))} of them the fields are empty: they were pruned.")
    return " ".join(lines)


# ── the history ──────────────────────────────────────────────────────────────


async def _history(settings: Settings, target: Path, wanted: _Wanted, *, json: bool) -> None:
    count, through = await _exported(settings, target, wanted.after, wanted.types)
    if json:
        screen.write(encode({"file": str(target), "events": count, "after": wanted.after, "through": through}))
    else:
        screen.output().print(
            f"{screen.count(count)} events up to position {screen.count(through)} are in {target}.", soft_wrap=True
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
