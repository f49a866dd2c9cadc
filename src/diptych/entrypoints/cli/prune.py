"""`diptych prune`: the data of old events, dropped where nothing folds them any more."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from diptych.clock import SystemClock
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
    settings_of,
)
from diptych.entrypoints.cli.question import confirmed
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from diptych.application.pruning import PruneReport

__all__ = ["prune"]


def prune(
    event: Annotated[str, Parameter(name="EVENT")],
    /,
    *app: AppNames,
    before: str | None = None,
    older_than_days: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Drop the data of old events of one type, for good; position, type, tags and time stay.

    It is refused while something folds them that has to begin with the first event: a model that is not state-stored,
    a process, a projection, a subscriber. Name every context whose code reads the store. Stopped in the middle, it
    goes on when it is run again.

    Args:
        event: "school.Enrolled" or "Enrolled".
        app: whose.
        before: Those that were recorded before this time, 2026-01-31 (UTC) or 2026-01-31T12:00+01:00.
        older_than_days: Those that were recorded more than so many days ago.
        dry_run: Only say how many they are.
        yes: Do not ask.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """
    moment = _moment(before, older_than_days)
    if not (yes or dry_run) and not sys.stdin.isatty():
        raise UsageError("what is pruned is gone for good: answer on a terminal, or give --yes or --dry-run")
    settings = settings_of(app, stores, partition, log)
    found = run_async(lambda: _pruned(settings, event, moment, dry_run=dry_run, ask=not yes))
    if found is None:
        screen.output().print("Nothing was changed.")
        return FAILED
    if json:
        screen.write(encode(found))
    else:
        _show(found, dry_run=dry_run)
    return 0


def _moment(before: str | None, older_than_days: int | None) -> datetime:
    if (before is None) == (older_than_days is None):
        raise UsageError("say how old: --before 2026-01-31, or --older-than-days 90")
    if before is None:
        assert older_than_days is not None
        return SystemClock().now() - timedelta(days=older_than_days)
    try:
        moment = datetime.fromisoformat(before)
    except ValueError as error:
        raise UsageError(f"--before {before!r} is no time: write 2026-01-31, or 2026-01-31T12:00+01:00") from error
    if moment.tzinfo is None and moment != datetime.combine(moment.date(), datetime.min.time()):
        raise UsageError(f"--before {before!r} has no time zone: write {before}Z, or with the offset")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


async def _pruned(settings: Settings, event: str, moment: datetime, *, dry_run: bool, ask: bool) -> PruneReport | None:
    from diptych.entrypoints.cli.looking import choose, opened_history

    async with opened_history(settings) as partition:
        coded = {found.name: found.cls for found in partition.history.types}
        cls = coded[choose("event", event, coded)]
        with screen.progress("Counting") as bar:
            would = await partition.pruning.prune(cls, before=moment, dry_run=True, moved=bar)
        if dry_run or (ask and not _confirmed(would)):
            return would if dry_run else None
        with screen.progress("Pruning") as bar:
            return await partition.pruning.prune(cls, before=moment, moved=bar)


def _confirmed(would: PruneReport) -> bool:
    what = " and ".join(_events(name, events) for name, events in would.pruned.items())
    up_to = f"up to position {screen.count(would.until)}"
    return confirmed(f"Drop the data of {what}, {up_to}, for good?")


def _show(found: PruneReport, *, dry_run: bool) -> None:
    output = screen.output()
    for name, events in found.pruned.items():
        done = "would be" if dry_run else "is" if events == 1 else "are"
        output.print(f"{_events(name, events)} {done} pruned, up to position {screen.count(found.until)}.")
    if found.states:
        output.print(f"{screen.count(found.states)} state-stored models that nothing had changed since are kept now.")


def _events(name: str, count: int) -> str:
    return f"{screen.count(count)} event{'' if count == 1 else 's'} of {name}"
