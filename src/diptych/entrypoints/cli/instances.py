"""`diptych processes`: the instances of process managers, and how those that are stuck are helped on (G10)."""

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
    fields_of,
    settings_of,
)
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import Codec, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import timedelta

    from diptych.messages.command import Command
    from diptych.process_managers.processes import InstanceDetails, InstanceStatus, Processes, Waiting

__all__ = ["close", "list_instances", "operator", "retry", "send", "show"]

Json = Annotated[bool, Parameter(negative="", show_default=False)]
ProcessName = Annotated[str, Parameter(name="PROCESS")]
InstanceName = Annotated[str, Parameter(name="INSTANCE")]


def list_instances(
    *app: AppNames,
    process: Annotated[str | None, Parameter(show_default=False)] = None,
    stuck: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    ended: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """List the instances of process managers, each with its state and age.

    Args:
        app: whose.
        process: Of this one alone: "bank.Transferring" or "Transferring".
        stuck: Only those that are blocked, or have a command or timeout that was given up.
        ended: Those that have ended as well.
        json: Print one JSON object a line.
        stores: which.
        partition: which.
        log: how.
    """

    async def listed() -> Sequence[InstanceStatus]:
        async with _opened(settings_of(app, stores, partition, log)) as processes:
            return await processes.list(process, stuck=stuck, ended=ended)

    found = run_async(listed)
    if json:
        for each in found:
            screen.write(encode(each))
    elif found:
        screen.output().print(_table(found))
    else:
        screen.output().print("Nothing is stuck." if stuck else "There are no instances.")


def show(
    process: ProcessName,
    instance: InstanceName,
    /,
    *app: AppNames,
    json: Json = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Show an instance: its state, the events that reached it, and what waits to go out.

    Args:
        process: "bank.Transferring" or "Transferring".
        instance: The identity of the instance.
        app: whose.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """

    async def shown() -> InstanceDetails:
        async with _opened(settings_of(app, stores, partition, log)) as processes:
            return await processes.show(process, instance)

    found = run_async(shown)
    if json:
        events = [{"position": each.position, "type": each.type, "at": each.recorded_at} for each in found.events]
        parts = {"status": found.status, "events": events, "commands": found.commands, "timeouts": found.timeouts}
        screen.write(encode(parts))
        return
    output = screen.output()
    output.print(_table([found.status]))
    output.print(f"\nstate    {encode(found.status.state).decode()}", soft_wrap=True)
    for each in found.events:
        output.print(f"{screen.count(each.position):>8} {each.recorded_at:%Y-%m-%d %H:%M:%S} {each.type}")
    for title, waiting in (("Commands", found.commands), ("Timeouts", found.timeouts)):
        if waiting:
            output.print()
            output.print(_waiting_table(title, waiting))


def retry(
    process: ProcessName,
    instance: InstanceName,
    /,
    *app: AppNames,
    reason: str = "",
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Let a blocked instance take the event again that it could not react to, and send what was given up.

    The worker that has the process does so soon after.

    Args:
        process: "bank.Transferring" or "Transferring".
        instance: The identity of the instance.
        app: whose.
        reason: Why; kept in the history.
        stores: which.
        partition: which.
        log: how.
    """

    async def retried() -> int:
        async with _opened(settings_of(app, stores, partition, log)) as processes:
            return await processes.retry(process, instance, reason=reason, actor=operator())

    _say(run_async(retried), f"{process} {instance} is tried again")


def close(
    process: ProcessName,
    instance: InstanceName,
    /,
    *app: AppNames,
    reason: str,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """End an instance; its timeouts, and the commands that it has not sent, are dropped.

    The worker that has the process does so soon after.

    Args:
        process: "bank.Transferring" or "Transferring".
        instance: The identity of the instance.
        app: whose.
        reason: Why; kept in the history.
        stores: which.
        partition: which.
        log: how.
    """

    async def closed() -> int:
        async with _opened(settings_of(app, stores, partition, log)) as processes:
            return await processes.close(process, instance, reason=reason, actor=operator())

    _say(run_async(closed), f"{process} {instance} is closed")


def send(
    process: ProcessName,
    instance: InstanceName,
    command: Annotated[str, Parameter(name="COMMAND")],
    fields: Annotated[str, Parameter(name="FIELDS")],
    /,
    *app: AppNames,
    reason: str = "",
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Have an instance send a command, as if it had reacted with it; its rejection comes back to it.

    The worker that has the process does so soon after.

    Args:
        process: "bank.Transferring" or "Transferring".
        instance: The identity of the instance.
        command: "bank.Refund" or "Refund".
        fields: Its fields as a JSON object: '{"transfer": "t1"}'.
        app: whose.
        reason: Why; kept in the history.
        stores: which.
        partition: which.
        log: how.
    """
    settings = settings_of(app, stores, partition, log)

    async def sent() -> int:
        given = _command(settings, command, fields)
        async with _opened(settings) as processes:
            return await processes.send(process, instance, given, reason=reason, actor=operator())

    _say(run_async(sent), f"{process} {instance} sends {command}")


def _command(settings: Settings, name: str, fields: str) -> Command:
    """A command of the contexts, by its name."""
    from diptych.application.registration import handled_commands
    from diptych.entrypoints.cli.contexts import load_contexts
    from diptych.messages.registry import MessageTypes

    contexts = load_contexts(settings.app)
    for context in contexts:
        context.load()
    cls = MessageTypes("command", handled_commands(contexts)).find(name)
    command: Command = Codec(cls).decode(encode(fields_of(fields)))
    return command


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncGenerator[Processes]:
    from diptych.entrypoints.cli.looking import opened_history

    async with opened_history(settings) as partition:
        yield partition.processes


def operator() -> str:
    """Who is at the terminal, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


def _say(position: int, what: str) -> None:
    screen.output().print(f"{what}, says the event at position {screen.count(position)}.", soft_wrap=True)


def _table(listed: Sequence[InstanceStatus]) -> object:
    table = screen.table("", "process", "instance", "state", "age", "why")
    for each in listed:
        state = "blocked" if each.blocked else "ended" if each.ended else "running"
        where = f"position {screen.count(each.blocked)}: " if each.blocked else ""
        style = "yellow" if each.blocked else ""
        table.add_row(each.process, each.id, state, _duration(each.age), where + each.failure, style=style)
    return table


def _waiting_table(title: str, waiting: Sequence[Waiting]) -> object:
    table = screen.table(title, "name", "state", "due", "attempts", "why")
    for each in waiting:
        state = "given up" if each.dead else "waits"
        due = f"{each.due_at:%Y-%m-%d %H:%M:%S}"
        style = "yellow" if each.dead else ""
        table.add_row(each.name, state, due, screen.count(each.attempts), each.failure, style=style)
    return table


def _duration(age: timedelta) -> str:
    """An age as it is read: without parts of a second."""
    return str(age).partition(".")[0]
