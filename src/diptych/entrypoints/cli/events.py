"""`diptych events`: the history as it is stored, without the code that wrote it."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import UUID

import msgspec
from cyclopts import Parameter
from rich.text import Text

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
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from diptych.event_store.event_query import EventQuery
    from diptych.event_store.event_store import EventStore
    from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["events"]

PAGE_EVENTS = 500
"""Events read at once."""
POSITION_COLUMNS = 7
"""Columns of a position, so that those up to ten million stand below each other."""
FOLLOW_WAIT_S = 3_600.0
"""Seconds after which `--follow` looks again without having been woken."""

_log = logging.getLogger("diptych.cli")


def events(
    *,
    after: Annotated[int, at_least(0), Parameter(metavar="POSITION")] = 0,
    tag: Annotated[list[str] | None, Parameter(metavar="NAME:VALUE", negative="")] = None,
    type: Annotated[list[str] | None, Parameter(metavar="EVENT", negative="")] = None,
    limit: Annotated[int | None, at_least(1), Parameter(metavar="N")] = None,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: EventStoreOptions = EVENT_STORE_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Print events in the order of the history.

    A terminal shows as much of each as fits its width; a pipe, and --json, get one whole line each.

    Args:
        after: Begin after this position.
        tag: Only events that carry this tag; given several times, all of them.
        type: Only events of this type, "school.Enrolled" or "Enrolled"; given several times, any of them.
        limit: Stop after so many events.
        follow: Go on with the events to come, until Ctrl-C.
        json: Print one JSON object a line.
        stores: which.
        partition: which.
        log: how.
    """
    for given in tag or ():
        if not given.partition(":")[2]:
            raise UsageError(f"{given!r} is no tag: write it as name:value, course:python")
    settings = settled(
        verbose=log.verbose, store=stores.store, partition=partition.partition, log_format=log.log_format
    )
    wanted = Wanted(tuple(tag or ()), tuple(type or ()), after, limit, follow)
    run_async(lambda: _print(settings, wanted, _in_json if json else _for_people()))


class Wanted(NamedTuple):
    """Which events: see `events` for the fields."""

    tags: tuple[str, ...]
    types: tuple[str, ...]
    after: int
    limit: int | None
    follow: bool


async def _print(settings: Settings, wanted: Wanted, show: Callable[[RecordedEvent], None]) -> None:
    from diptych.entrypoints.cli.looking import opened_store

    async with opened_store(settings) as store:
        query = await _query(store, wanted)
        async for page in _pages(store, query, wanted):
            for recorded in page:
                show(recorded)
            sys.stdout.flush()


async def _query(store: EventStore, wanted: Wanted) -> EventQuery:
    from diptych.event_store.event_query import EventQuery, QueryItem

    stored = await store.stored_types() if wanted.types or wanted.tags else []
    types = [_stored_name(name, {found.name for found in stored}, wanted) for name in wanted.types]
    _warn_of_unknown(wanted.tags, {name for found in stored for name in found.tag_names})
    return EventQuery((QueryItem(frozenset(types), frozenset(wanted.tags)),))


def _warn_of_unknown(tags: Sequence[str], known: Collection[str]) -> None:
    """Say of a tag's name that nothing here is tagged so: it looks like an empty history otherwise."""
    from diptych.entrypoints.cli.looking import hint

    for name in dict.fromkeys(tag.partition(":")[0] for tag in tags):
        if name not in known:
            _log.warning("no event type in this store is tagged %r; %s", name, hint(name, known))


def _stored_name(name: str, stored: set[str], wanted: Wanted) -> str:
    from diptych.entrypoints.cli.looking import choose

    if wanted.follow and "." in name:
        return name  # there may be none of them yet
    return choose("event type in this store", name, stored)


async def _pages(store: EventStore, query: EventQuery, wanted: Wanted) -> AsyncIterator[Sequence[RecordedEvent]]:
    position, left = Position(wanted.after), wanted.limit
    while left is None or left > 0:
        found = await store.read(query, position, PAGE_EVENTS if left is None else min(left, PAGE_EVENTS))
        yield found.events
        left = None if left is None else left - len(found.events)
        position = max(position, found.through)
        if not found.more and left != 0:
            if not wanted.follow:
                return
            await store.wait_for_events(position, FOLLOW_WAIT_S)


# ── one event ────────────────────────────────────────────────────────────────


def _in_json(recorded: RecordedEvent) -> None:
    shown = {
        "position": recorded.position,
        "event_id": str(UUID(bytes=recorded.event_id)),
        "type": recorded.type,
        "version": recorded.version,
        "recorded_at": recorded.recorded_at,
        "tags": recorded.tags,
        "data": msgspec.Raw(recorded.data or b"null"),
        "metadata": msgspec.Raw(recorded.metadata),
    }
    sys.stdout.write(encode(shown).decode() + "\n")


def _for_people() -> Callable[[RecordedEvent], None]:
    output = screen.output()
    if not output.is_terminal:
        return _for_pipe

    def show(recorded: RecordedEvent) -> None:
        data = Text(f"{'':>{POSITION_COLUMNS}}  {_data(recorded)}")
        output.print(_headline(recorded), data, sep="\n", no_wrap=True, overflow="ellipsis")

    return show


def _for_pipe(recorded: RecordedEvent) -> None:
    sys.stdout.write(f"{_headline(recorded).plain}  {_data(recorded)}\n")


def _headline(recorded: RecordedEvent) -> Text:
    return Text.assemble(
        (f"{recorded.position:>{POSITION_COLUMNS}}", "bold"),
        (f"  {recorded.recorded_at:%Y-%m-%d %H:%M:%S}Z  ", "dim"),
        (recorded.type, "cyan"),
        *((f"  {screen.printable(tag)}", "green") for tag in recorded.tags),
    )


def _data(recorded: RecordedEvent) -> str:
    return screen.printable(recorded.data.decode(errors="replace")) or "(pruned)"
