"""`diptych parked`: keys that wait behind an event which cannot be folded (G9)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED, UsageError
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    StoreOptions,
)
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.application.follower import Follower
    from diptych.read_side.read_store import BlockedKey

__all__ = ["discard", "list_parked", "replay"]

_REMEDY = (
    "If the projection is wrong, mend it and restart the application, which builds the read model anew.\n"
    "If something around it was, replay the key; if the event is, discard it."
)

ReadModelName = Annotated[str, Parameter(name="READ_MODEL")]
KeyText = Annotated[str, Parameter(name="KEY")]


def list_parked(
    *app: AppNames,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """List parked keys, each with the event that could not be folded, and why.

    Args:
        app: whose.
        json: Print one JSON object a line.
        stores: which.
        partition: which.
        log: how.
    """
    found = run_async(lambda: _listed(_settings(app, stores, partition, log)))
    if json:
        for blocked in found:
            screen.write(encode(blocked))
    elif found:
        screen.output().print(_table(found))
        screen.output().print(_REMEDY, style="dim")
    else:
        screen.output().print("Nothing is parked.")


def replay(
    read_model: ReadModelName,
    key: KeyText,
    /,
    *app: AppNames,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Fold the waiting events of a key, once the projection is mended.

    The exit code is 1 where the key is still blocked.

    Args:
        read_model: "school.Seats" or "Seats".
        key: The key as a JSON array, as listed.
        app: whose.
        stores: which.
        partition: which.
        log: how.
    """
    return run_async(
        lambda: _dealt_with(_settings(app, stores, partition, log), read_model, key, discarding=False, ask=False)
    )


def discard(
    read_model: ReadModelName,
    key: KeyText,
    /,
    *app: AppNames,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Leave the event that blocks a key out of its row, for good, and fold the others.

    The event stays in the history; rebuilds leave it out too.

    Args:
        read_model: "school.Seats" or "Seats".
        key: The key as a JSON array, as listed.
        app: whose.
        yes: Do not ask.
        stores: which.
        partition: which.
        log: how.
    """
    if not yes and not sys.stdin.isatty():
        raise UsageError("a discard is for good: answer on a terminal, or give --yes")
    return run_async(
        lambda: _dealt_with(_settings(app, stores, partition, log), read_model, key, discarding=True, ask=not yes)
    )


def _settings(app: Sequence[str], stores: StoreOptions, partition: PartitionOptions, log: LogOptions) -> Settings:
    return settled(
        verbose=log.verbose,
        app=app,
        store=stores.store,
        read_store=stores.read_store,
        partition=partition.partition,
        log_format=log.log_format,
    )


async def _listed(settings: Settings) -> list[BlockedKey]:
    from diptych.entrypoints.cli.looking import opened_partition

    async with opened_partition(settings) as partition:
        return await partition.parked()


async def _dealt_with(settings: Settings, read_model: str, key: str, *, discarding: bool, ask: bool) -> int:
    from diptych.entrypoints.cli.looking import opened_partition

    canonical = _canonical(key)
    async with opened_partition(settings) as partition:
        blocked = await _blocked(partition, read_model, canonical)
        if discarding and ask and not _confirmed(blocked):
            screen.output().print("Nothing was changed.")
            return FAILED
        deal = partition.discard if discarding else partition.replay
        still = await deal(blocked.name, blocked.key)
    if still is None:
        done = f"event {blocked.position} is left out" if discarding else "every event is folded"
        screen.output().print(f"{blocked.name} {blocked.key} goes on: {done}.")
        return 0
    screen.errors().print(
        f"{still.name} {still.key} is still blocked, at position {still.position}: {still.error}", soft_wrap=True
    )
    return FAILED


def _canonical(key: str) -> str:
    """The key as it is stored, however it is spaced."""
    from diptych.errors import InvalidMessage

    try:
        return encode(decode(key.encode(), list[object])).decode()
    except (InvalidMessage, UnicodeError) as error:
        raise UsageError(f"{key!r} is no key: write it as a JSON array, as in diptych parked list") from error


async def _blocked(partition: Follower, read_model: str, key: str) -> BlockedKey:
    from diptych.entrypoints.cli.looking import choose
    from diptych.errors import ConfigurationError

    known = {found.name: found for found in (await partition.status()).projections}
    name = choose("read model", read_model, known)
    if not known[name].live:
        raise ConfigurationError(
            f"{name} has no live rows of this code, whose keys could be parked: run the application, or "
            f"diptych rebuild {name}, and see what is still parked then"
        )
    found = {blocked.key: blocked for blocked in await partition.parked() if blocked.name == name}
    if key not in found:
        listed = ", ".join(found) or "none"
        raise ConfigurationError(f"{name} has no parked key {key}; parked are: {listed}")
    return found[key]


def _confirmed(blocked: BlockedKey) -> bool:
    screen.output().print(_table([blocked]))
    screen.output().print(
        f"Leave event {blocked.position} out of {blocked.name} {blocked.key} for good? [y/N] ", end=""
    )
    return input().strip().lower() in {"y", "yes"}


def _table(listed: Sequence[BlockedKey]) -> object:
    table = screen.table("", "read model", "key", "position", "why")
    for blocked in listed:
        table.add_row(blocked.name, blocked.key, screen.count(blocked.position), blocked.error)
    return table
