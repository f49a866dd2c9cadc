"""`diptych status`: how far the history is, and everything that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    REPLICAS_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    ReplicaOptions,
    StoreOptions,
)
from diptych.entrypoints.cli.settings import Settings, by_read_model, settled
from diptych.entrypoints.cli.signals import run_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diptych.application.status import ProjectionStatus, Status
    from diptych.process_managers.process_worker import ProcessStatus
    from diptych.read_side.query_source import ReplicaStatus

__all__ = ["IN_MEMORY", "status"]

IN_MEMORY = "memory:"
"""The store of what no other process can look into."""


def status(
    *app: AppNames,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    replicas: ReplicaOptions = REPLICAS_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Show the head of the history, and how far each projection is.

    Without APP it shows what the event store alone tells: the head and the history.
    Of a store in partitions it shows one after the other.

    Args:
        app: whose projections to show.
        json: Print one JSON object; of a store in partitions one a line.
        stores: which.
        partition: which.
        replicas: which.
        log: how.
    """
    settings = settled(
        verbose=log.verbose,
        app=app,
        store=stores.store,
        read_store=stores.read_store,
        read_stores=by_read_model(stores.read_stores),
        partition=partition.partition,
        read_replica=replicas.read_replica,
        replica_policy=replicas.replica_policy,
        log_format=log.log_format,
    )
    run_async(lambda: _statuses(settings, json=json))


async def _statuses(settings: Settings, *, json: bool) -> None:
    for number, each in enumerate(settings.each()):
        if number and not json:
            screen.output().print()
        await _status(each, json=json)


async def _status(settings: Settings, *, json: bool) -> None:
    import msgspec

    from diptych.adapters.connect import commits_survive
    from diptych.messages.codec import encode

    found = await (_of_application(settings) if settings.app else _of_store(settings))
    survive = await commits_survive(settings.looked_into().store or "")
    if json:
        partition = {"partition": settings.partition} if settings.partition else {}
        screen.write(encode(partition | msgspec.structs.asdict(found) | {"commits_survive": survive}))
    else:
        _show(settings, found, survive)


async def _of_application(settings: Settings) -> Status:
    from diptych.entrypoints.cli.looking import opened_partition

    async with opened_partition(settings, replicas=True) as partition:
        return await partition.status()


async def _of_store(settings: Settings) -> Status:
    from diptych.application.status import Status
    from diptych.entrypoints.cli.looking import opened_store

    async with opened_store(settings) as store:
        head = await store.head()
        return Status(head=head.position, history_id=store.history_id.hex(), projections=[], subscribers=[])


def _show(settings: Settings, found: Status, survive: str) -> None:
    from diptych.adapters.connect import without_password

    output = screen.output()
    store = without_password(settings.looked_into().store or "")
    if settings.partition:
        output.print(f"partition {settings.partition}", style="bold")
    output.print(f"store    {store}\nhistory  {found.history_id}\nhead     {screen.count(found.head)}")
    output.print(f"commits  survive {survive}")
    for title, listed in (("Projections", found.projections), ("Subscribers", found.subscribers)):
        if listed:
            output.print()
            output.print(_table(title, listed, found.head))
    if found.processes:
        output.print()
        output.print(_process_table(found.processes))
    if found.scheduled.waiting or found.scheduled.failed or found.scheduled.stopped:
        counts = (screen.count(found.scheduled.waiting), screen.count(found.scheduled.failed))
        output.print("\nScheduled commands: {} wait, {} were given up".format(*counts))
    if found.replicas:
        output.print()
        output.print(_replica_table(found.replicas))
    if not settings.app:
        output.print("\nName the application to see its projections: diptych status module:context", style="dim")
    for hint in _hints(found):
        output.print(f"\n{hint}")


def _hints(found: Status) -> Iterator[str]:
    """What to look at next."""
    if any(not each.live and each.store != IN_MEMORY for each in found.projections):
        yield "What is not live answers no query of this code: run the application, or diptych rebuild changed"
    for each in found.projections:
        if each.kept_until is not None:
            yield (
                f"What {_named(each)} answered from before is kept until {each.kept_until:%Y-%m-%d %H:%M:%S} UTC, at "
                f"position {screen.count(each.kept_checkpoint)}, to go back to: see diptych rebuild --help"
            )
    if any(each.blocked for each in found.projections):
        yield "Some keys wait behind an event that cannot be folded: see diptych parked list"
    if any(each.count.blocked or each.count.dead for each in found.processes):
        yield "Some instances of processes are stuck: see diptych processes list --stuck"
    if found.scheduled.failed:
        yield "Some scheduled commands were given up: see diptych parked list --kind scheduled"


def _table(title: str, listed: list[ProjectionStatus], head: int) -> object:
    columns = ["name", "state", "checkpoint", "behind", "for", "parked"]
    in_several = any(each.store for each in listed)
    table = screen.table(title, *(["store"] if in_several else []), *columns, numbers=4)
    for each in listed:
        table.add_row(
            *([each.store] if in_several else []),
            each.name,
            _state(each, head),
            screen.count(each.checkpoint),
            screen.count(each.lag_events),
            f"{each.lag_s:,.1f} s",
            screen.count(each.blocked),
            style="red" if each.stopped else "yellow" if each.blocked else "",
        )
    return table


def _named(each: ProjectionStatus) -> str:
    return f"{each.name} in {each.store}" if each.store else each.name


def _process_table(listed: list[ProcessStatus]) -> object:
    columns = ("name", "checkpoint", "behind", "running", "blocked", "waiting", "given up")
    table = screen.table("Processes", *columns, numbers=6)
    for each in listed:
        count = each.count
        counts = (each.checkpoint, each.lag_events, count.running, count.blocked, count.waiting, count.dead)
        table.add_row(each.name, *map(screen.count, counts), style="yellow" if count.blocked or count.dead else "")
    return table


def _replica_table(listed: list[ReplicaStatus]) -> object:
    table = screen.table("Replicas", "url", "state", "bytes behind", "for", numbers=2)
    for each in listed:
        state = f"left out: {each.left_out}" if each.left_out else "asked"
        style = "red" if each.left_out else ""
        table.add_row(each.url, state, screen.count(each.lag_bytes), f"{each.lag_s:,.1f} s", style=style)
    return table


def _state(each: ProjectionStatus, head: int) -> str:
    """In words. Whether some process builds what is not live yet is nothing that a store knows."""
    if each.store == IN_MEMORY:
        return "in the memory of each process that runs it"
    if each.stopped:
        return f"stopped: {each.stopped}"
    if each.live:
        return "live" if each.slices == 1 else f"live, {each.slices} slices"
    others = "; rows of other code answer" if each.other_code else ""
    return f"not live: checkpoint {screen.count(each.checkpoint)} of {screen.count(head)}{others}"
