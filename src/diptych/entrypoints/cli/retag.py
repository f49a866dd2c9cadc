"""`diptych retag`: stored events, tagged as the code of today tags them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED, UsageError
from diptych.entrypoints.cli.options import (
    EVENT_STORE_UNSET,
    LOGS_UNSET,
    PARTITION_UNSET,
    AppNames,
    EventStoreOptions,
    LogOptions,
    PartitionOptions,
)
from diptych.entrypoints.cli.question import confirmed
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.application.retagging import Standing
    from diptych.event_store.retag import RetaggedType, Retagging

__all__ = ["retag"]


def retag(
    *app: AppNames,
    types: Annotated[tuple[str, ...], Parameter(name="--type", negative="", show_default=False)] = (),
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="", show_default=False)] = False,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: EventStoreOptions = EVENT_STORE_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Tag stored events as the code tags them, where it would tag them otherwise.

    Stop what writes to the store first: whatever has it open appends nothing any more once this has begun, and has to
    be started again, with the code. Positions, ids and fields stay. Stopped in the middle, it is to be run again. On
    PostgreSQL it is for the owner of the schema.

    Args:
        app: the code.
        types: tag the events of this type anew, whether or not it is known to have changed; may be given several times.
        dry_run: count what would be tagged anew, and change nothing.
        yes: do not ask.
        json: Print one JSON object; with --yes or --dry-run.
        stores: which.
        partition: which.
        log: how.
    """
    ask = not (yes or dry_run)
    if ask and (json or not sys.stdin.isatty()):
        raise UsageError("it would ask before it begins, and nobody answers here: say --yes, or --dry-run")
    settings = settled(
        verbose=log.verbose, app=app, store=stores.store, partition=partition.partition, log_format=log.log_format
    )
    return run_async(lambda: _retagged(settings, types, dry_run=dry_run, ask=ask, json=json))


async def _retagged(settings: Settings, types: Sequence[str], *, dry_run: bool, ask: bool, json: bool) -> int:
    from diptych.application.registration import event_types
    from diptych.application.retagging import check_states, standing_on
    from diptych.entrypoints.cli.contexts import load_contexts
    from diptych.entrypoints.cli.looking import opened_store
    from diptych.event_store.history import History
    from diptych.event_store.retag import plan_retag

    contexts = load_contexts(settings.app)
    for context in contexts:
        context.load()
    history = History(event_types(contexts))
    async with opened_store(settings) as store:
        plan = await plan_retag(store, history, types)
        standing = standing_on([stored.name for stored in plan.types], contexts, history.types)
        await check_states(store, standing)
        with screen.progress("Counting") as bar:
            found = await plan.counted(bar)
        if not json:
            _tell(plan, found, standing)
        if plan.types and not dry_run:
            if ask and not _confirmed():
                screen.output().print("Nothing was changed.")
                return FAILED
            await check_states(store, standing)  # who was asked may have taken long to answer
            with screen.progress("Tagging") as bar:
                found = await plan.run(standing.unaffected, bar)
    if json:
        done = bool(plan.types) and not dry_run
        screen.write(encode({"done": done, "types": found, "models": standing.models, "processes": standing.processes}))
    elif plan.types and not dry_run:
        _tell_done(found)
    return 0


def _tell(plan: Retagging, found: Sequence[RetaggedType], standing: Standing) -> None:
    output = screen.output()
    if not plan.types:
        output.print("All stored events of these contexts are tagged as the code tags them.")
        return
    table = screen.table("To be tagged anew", "type", "version", "events", "with other tags", numbers=3)
    for each in found:
        table.add_row(each.type, *map(screen.count, (each.version, each.events, each.retagged)))
    output.print(table)
    if plan.resumed:
        output.print("This was begun before, and left: until it is done, nothing is appended.", soft_wrap=True)
    if standing.models:
        models = ", ".join(standing.models)
        output.print(f"Kept states are dropped, and folded anew when they are needed: {models}.", soft_wrap=True)
    if standing.processes:
        names = ", ".join(standing.processes)
        output.print(
            f"Instances of {names} are found by the new tags from then on. What they have made of these events stays "
            "as it is: a process is never run again. Stop its workers before you begin.",
            style="yellow",
            soft_wrap=True,
        )


def _tell_done(found: Sequence[RetaggedType]) -> None:
    retagged = screen.count(sum(each.retagged for each in found))
    events = screen.count(sum(each.events for each in found))
    screen.output().print(
        f"{retagged} of {events} events were tagged anew. Start with this code again what has the store open.",
        soft_wrap=True,
    )


def _confirmed() -> bool:
    return confirmed("Whatever has this store open appends nothing any more, until it is started again. Begin?")
