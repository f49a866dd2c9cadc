"""`diptych scheduled`: the commands that are executed later, and how one is cancelled."""

from __future__ import annotations

import getpass
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    StoreOptions,
    settings_of,
)
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from diptych.process_managers.scheduled_commands import CommandStatus, ScheduledCommands

__all__ = ["cancel", "list_scheduled", "show"]

Json = Annotated[bool, Parameter(negative="", show_default=False)]
CommandName = Annotated[str, Parameter(name="ID")]


def list_scheduled(
    *app: AppNames,
    failed: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    after: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """List the commands that wait to be executed, by id, a thousand at most.

    Args:
        app: whose.
        failed: Only those that were given up.
        after: Those behind this id: the last one of the page before.
        json: Print one JSON object a line.
        stores: which.
        partition: which.
        log: how.
    """

    async def listed() -> Sequence[CommandStatus]:
        async with _opened(settings_of(app, stores, partition, log)) as scheduled:
            return await scheduled.list(after=after, failed=failed)

    found = run_async(listed)
    if json:
        for each in found:
            screen.write(encode(each))
    elif found:
        screen.output().print(_table(found))
    else:
        screen.output().print("Nothing was given up." if failed else "Nothing waits.")


def show(
    command_id: CommandName,
    /,
    *app: AppNames,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Show how far a command is, scheduled or executed: when it is due, what has become of it, and why.

    Args:
        command_id: Its id.
        app: whose.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """

    async def shown() -> CommandStatus | None:
        async with _opened(settings_of(app, stores, partition, log)) as scheduled:
            return await scheduled.status(command_id)

    found = _known(run_async(shown), command_id)
    if json:
        screen.write(encode(found))
        return
    screen.output().print(_table([found]))
    if found.data:
        screen.output().print(f"\nfields   {encode(found.data).decode()}", soft_wrap=True)
    if found.receipt is not None:
        screen.output().print(f"\nIt took effect at position {screen.count(found.receipt.position)}.")


def cancel(
    command_id: CommandName,
    /,
    *app: AppNames,
    reason: Annotated[str | None, Parameter(show_default=False)] = None,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Cancel a command that waits, for good. One that took effect, or was rejected, before stays as it is.

    Args:
        command_id: Its id.
        app: whose.
        reason: Why; kept with who did it.
        stores: which.
        partition: which.
        log: how.
    """

    async def cancelled() -> CommandStatus | None:
        async with _opened(settings_of(app, stores, partition, log)) as scheduled:
            return await scheduled.cancel(command_id, reason=reason, actor=_operator())

    found = _known(run_async(cancelled), command_id)
    if found.code == "cancelled":
        screen.output().print(f"{command_id} is cancelled.", soft_wrap=True)
    else:
        raise _failed(f"{command_id} was {_outcome(found)} before: nothing is changed")


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncGenerator[ScheduledCommands]:
    from diptych.entrypoints.cli.looking import opened_history

    async with opened_history(settings) as partition:
        yield partition.scheduled


def _known(found: CommandStatus | None, command_id: str) -> CommandStatus:
    if found is None:
        raise _failed(f"no command was scheduled or executed as {command_id!r} here; diptych scheduled list has those")
    return found


def _failed(why: str) -> Exception:
    from diptych.entrypoints.cli.failures import CommandFailed

    return CommandFailed(why)


def _operator() -> str:
    """Who is at the terminal, for what is kept of it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


def _outcome(found: CommandStatus) -> str:
    return f"{found.state} ({found.code})" if found.code else found.state


def _table(listed: Sequence[CommandStatus]) -> object:
    table = screen.table("", "id", "command", "state", "due", "priority", "attempts", "why")
    for each in listed:
        due = f"{each.due_at:%Y-%m-%d %H:%M:%S}" if each.due_at else ""
        why = each.failure or (encode(each.facts).decode() if each.facts else "")
        style = "yellow" if each.state == "failed" else ""
        counts = (str(each.priority), screen.count(each.attempts))
        table.add_row(each.command_id, each.command, _outcome(each), due, *counts, why, style=style)
    return table
