"""`diptych parked`: what failed and waits for somebody, in one place (G9, G10)."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diptych.application.parked import PARKED_PAGE_MAX
from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED, UsageError
from diptych.entrypoints.cli.instances import operator
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    StoreOptions,
    fields_of,
    settings_of,
)
from diptych.entrypoints.cli.question import confirmed
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.entrypoints.cli.status import IN_MEMORY
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from diptych.application.follower import Follower
    from diptych.application.parked import ByHand, Dealt, Discards, Parked, ParkedDetails, ParkedItem, ParkedPage

__all__ = ["discard", "list_discarded", "list_parked", "retry", "show"]

_log = logging.getLogger("diptych.cli")

_REMEDY = (
    "See one with diptych parked show ID. Where the code was wrong, mend it and start the application again.\n"
    "Where something around it was, retry the item; where the item is, discard it."
)

ItemId = Annotated[str, Parameter(name="ID")]
Json = Annotated[bool, Parameter(negative="", show_default=False)]
After = Annotated[str, Parameter(show_default=False)]


def list_parked(
    *app: AppNames,
    kind: Annotated[str | None, Parameter(show_default=False)] = None,
    after: After = "",
    limit: int = PARKED_PAGE_MAX,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """List events, process steps and commands that failed and wait, each with its id and why.

    Args:
        app: whose.
        kind: Of this one alone: "event", "delivery", "step", "command", "timeout" or "scheduled".
        after: The cursor of the next page, as the page before tells it.
        limit: At most so many, 1 to 100.
        json: Print one JSON object a line; where there is a next page, its cursor on stderr.
        stores: which.
        partition: which.
        log: how.
    """

    async def listed(parked: Parked) -> ParkedPage:
        return await parked.list(kind=kind, after=after, limit=limit)

    page = _run(settings_of(app, stores, partition, log), listed)
    if json:
        for item in page.items:
            screen.write(encode(item))
    elif page.items:
        screen.output().print(_table(page.items))
        screen.output().print(_REMEDY, style="dim")
    else:
        screen.output().print("Nothing is parked.")
    _tell_more(page.next)


def list_discarded(
    *app: AppNames,
    after: After = "",
    limit: int = PARKED_PAGE_MAX,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """List what was discarded, with who did it and why.

    Args:
        app: whose.
        after: The cursor of the next page, as the page before tells it.
        limit: At most so many, 1 to 100.
        json: Print one JSON object a line; where there is a next page, its cursor on stderr.
        stores: which.
        partition: which.
        log: how.
    """

    async def listed(parked: Parked) -> Discards:
        return await parked.discarded(after=after, limit=limit)

    page = _run(settings_of(app, stores, partition, log), listed)
    if json:
        for item in page.items:
            screen.write(encode(item))
    elif page.items:
        table = screen.table("", "kind", "what", "of", "key", "position", "who, when and why")
        for item in page.items:
            table.add_row(item.kind, item.type, item.name, item.key, screen.count(item.position), _told(item.by))
        screen.output().print(table)
    else:
        screen.output().print("Nothing was discarded.")
    _tell_more(page.next)


def show(
    item_id: ItemId,
    /,
    *app: AppNames,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Show a parked item: its fields, its error and stack trace, and who had it tried again.

    Args:
        item_id: As listed: "event-17-9c3f01aa".
        app: whose.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """
    found = _run(settings_of(app, stores, partition, log), lambda parked: parked.show(item_id))
    if json:
        screen.write(encode(found))
        return
    output = screen.output()
    output.print(_table([found]))
    output.print(f"\nsince    {found.since:%Y-%m-%d %H:%M:%S}, attempts {screen.count(found.attempts)}")
    output.print(f"fields   {encode(found.data).decode()}", soft_wrap=True)
    for each in found.retries:
        output.print(f"retried  {_told(each)}", soft_wrap=True)
    if found.trace:
        output.print(f"\n{found.trace.rstrip()}", soft_wrap=True)


def retry(
    item_id: ItemId,
    /,
    *app: AppNames,
    reason: str,
    fields: Annotated[str | None, Parameter(show_default=False)] = None,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Try a parked item again, once the cause is mended; a command also with other fields.

    The exit code is 1 where its key is still blocked. What is of a process is done by its worker soon after.

    Args:
        item_id: As listed: "event-17-9c3f01aa".
        app: whose.
        reason: Why; kept for good.
        fields: The fields of a command that are others now, as a JSON object: '{"amount": 5}'.
        stores: which.
        partition: which.
        log: how.
    """
    edited = None if fields is None else fields_of(fields)

    async def retried(parked: Parked) -> Dealt:
        return await parked.retry(item_id, actor=operator(), reason=reason, edited=edited)

    return _say(
        _run(settings_of(app, stores, partition, log), retried),
        "is tried again",
        "every event is folded",
        "as command {}",
    )


def discard(
    item_id: ItemId,
    /,
    *app: AppNames,
    reason: str,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Leave a parked item out for good: an event out of a row or of a process, a command unsent.

    The event stays in the history; rebuilds leave it out of the row too.

    Args:
        item_id: As listed: "event-17-9c3f01aa".
        app: whose.
        reason: Why; kept for good.
        yes: Do not ask.
        stores: which.
        partition: which.
        log: how.
    """
    if not yes and not sys.stdin.isatty():
        raise UsageError("a discard is for good: answer on a terminal, or give --yes")

    async def discarded(parked: Parked) -> Dealt | None:
        if not (yes or _confirmed(await parked.show(item_id))):
            return None
        return await parked.discard(item_id, actor=operator(), reason=reason)

    dealt = _run(settings_of(app, stores, partition, log), discarded)
    if dealt is None:
        screen.output().print("Nothing was changed.")
        return FAILED
    return _say(dealt, "is discarded", "it is left out", "and command {} is rejected")


def _run(settings: Settings, work: Callable[[Parked], Awaitable[Any]]) -> Any:
    """What comes of it, in the partition that is meant."""

    async def run() -> Any:
        from diptych.entrypoints.cli.looking import opened_partition
        from diptych.errors import ConfigurationError

        async with opened_partition(settings) as partition:
            if any(each.url == IN_MEMORY for each in partition.stores):
                _log.warning(
                    "what is parked of read models in the memory of each process, only that process knows: its "
                    "log tells, and app.parked"
                )
            try:
                return await work(partition.parked)
            except ConfigurationError as error:
                hint = await _unbuilt(partition)
                raise ConfigurationError(f"{error}{hint}") from error

    return run_async(run)


async def _unbuilt(partition: Follower) -> str:
    """A hint, where what is parked is not to be seen since the rows that it is of are not of this code."""
    names = [found.name for found in (await partition.status()).projections if not found.live]
    if not names:
        return ""
    return (
        f". {' and '.join(names)} has no live rows of this code, whose keys could be parked: run the application, or "
        f"diptych rebuild {names[0]}, and see what is still parked then"
    )


def _confirmed(item: ParkedDetails) -> bool:
    screen.output().print(_table([item]))
    return confirmed(f"Leave {item.type} out of {item.name} {item.key} for good?")


def _say(dealt: Dealt, done: str, at_once: str, as_command: str) -> int:
    if dealt.still is not None:
        still = dealt.still
        screen.errors().print(
            f"{still.name} {still.key} is still blocked, at position {still.position} ({still.id}): {still.error}",
            soft_wrap=True,
        )
        return FAILED
    if dealt.command_id:
        says = as_command.format(dealt.command_id)
    elif dealt.position:
        says = f"says the event at position {screen.count(dealt.position)}"
    else:
        says = f"and its key goes on: {at_once}"
    screen.output().print(f"{dealt.id} {done}, {says}.", soft_wrap=True)
    return 0


def _tell_more(cursor: str) -> None:
    if cursor:
        screen.errors().print(f"there is more: --after {cursor}", soft_wrap=True)


def _told(by: ByHand) -> str:
    who = by.actor or "somebody"
    when = "" if by.at is None else f", {by.at:%Y-%m-%d %H:%M:%S}"
    return f"{who}{when}: {by.reason or 'no reason was kept'}"


def _table(listed: Sequence[ParkedItem]) -> object:
    table = screen.table("", "id", "what", "of", "key", "why")
    for item in listed:
        table.add_row(item.id, item.type, item.name, item.key, item.error)
    return table
