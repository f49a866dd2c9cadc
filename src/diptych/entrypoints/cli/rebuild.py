"""`diptych rebuild`: read models built anew from the history, beside those that answer; and how the two differ."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED, UsageError
from diptych.entrypoints.cli.options import (
    BUILDS_UNSET,
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    BuildOptions,
    LogOptions,
    PartitionOptions,
    StoreOptions,
    settings_of,
)
from diptych.entrypoints.cli.question import confirmed
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.entrypoints.cli.status import IN_MEMORY
from diptych.errors import ConfigurationError
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from diptych.application.follower import Follower
    from diptych.application.status import ProjectionStatus
    from diptych.read_side.comparison import Comparison, RowDifference

__all__ = ["rebuild"]

CHANGED, ALL = "changed", "all"
"""Words for read models: those whose code is another one than that of their rows; every one."""
VALUE_CHARACTERS_MAX = 60
"""Characters of one value that a difference shows; the rest is left out."""

_log = logging.getLogger("diptych.cli")


def rebuild(  # noqa: PLR0913 — by keyword, all but the first
    read_model: Annotated[str, Parameter(name="READ_MODEL")],
    /,
    *app: AppNames,
    diff: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    back: Annotated[bool, Parameter(negative=())] = False,
    yes: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    builds: BuildOptions = BUILDS_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Build a read model anew, and switch to it when it has caught up.

    The old rows answer until then, and are kept for a time; a server that runs their code goes on with them meanwhile.
    Stopped in the middle, it has changed nothing, and goes on from there when it is run again.

    With --back the rows answer again that did before the last switch, as long as they are kept.

    With --diff the new rows are compared with the old ones, at one position, and you are asked before it switches:
    `diptych rebuild changed school:school --diff` shows what a changed projection does to them.

    Args:
        read_model: "school.Seats" or "Seats"; several with commas between them; `changed` for all whose code has
            changed, `all` for all.
        app: whose.
        diff: Compare the rows, show how many are added, removed and changed, with samples, and ask.
        back: Go back to the rows that were replaced last.
        dry_run: Compare the rows, and switch to nothing; what was built is dropped again.
        yes: Do not ask.
        json: Print the comparison of each read model as one JSON object.
        stores: which.
        partition: which.
        builds: how.
        log: how.
    """
    if back and (diff or dry_run or json or read_model in (CHANGED, ALL) or "," in read_model):
        raise UsageError(
            "--back takes one read model, and none of --diff, --dry-run and --json: nothing is built for it"
        )
    if back:
        return run_async(lambda: _gone_back(settings_of(app, stores, partition, log, builds), read_model))
    if diff and not (yes or dry_run) and not sys.stdin.isatty():
        raise UsageError("--diff asks before it switches: answer on a terminal, or give --yes or --dry-run")
    asking = _Asking(compare=diff or dry_run, switch=not dry_run, ask=not yes, json=json)
    return run_async(lambda: _rebuilt(settings_of(app, stores, partition, log, builds), read_model, asking))


class _Asking:
    """Whether to compare before a switch, and who says that it may be done."""

    def __init__(self, *, compare: bool, switch: bool, ask: bool, json: bool) -> None:
        self.compare = compare
        self.dry = not switch
        self.json = json
        self._ask = ask

    def approves(self, found: Comparison) -> bool:
        """Show how they differ; whether to switch."""
        if self.json:
            screen.write(encode(found))
        else:
            _show(found)
        if self.dry or not self._ask:
            return not self.dry
        return confirmed(f"Switch to the new rows of {found.read_model}?", self.people)

    @property
    def people(self) -> Console:
        """Where people are told: with JSON not on stdout."""
        return screen.errors() if self.json else screen.output()


async def _rebuilt(settings: Settings, wanted: str, asking: _Asking) -> int:
    from diptych.entrypoints.cli.looking import opened_partition

    async with opened_partition(settings) as partition:
        found = (await partition.status()).projections
        kept = [each for each in found if each.store != IN_MEMORY]
        known = {each.name: each for each in kept if not each.other_code}
        known |= {each.name: each for each in kept if each.other_code}  # in one of its stores, at least
        if wanted in (CHANGED, ALL):
            names = [name for name in known if wanted == ALL or known[name].other_code]
        else:
            names = list(dict.fromkeys(_chosen(name, found) for name in wanted.split(",")))
        if not names:
            where = "of this code" if known else "in the memory of each process that runs it"
            asking.people.print(f"The rows of every read model are {where}: there is nothing to rebuild.")
        declined = [name for name in names if not await _one(partition, known[name], asking, settings)]
    return FAILED if declined and asking.compare and not asking.dry else 0


async def _gone_back(settings: Settings, wanted: str) -> int:
    from diptych.entrypoints.cli.looking import opened_partition

    async with opened_partition(settings) as partition:
        name = _chosen(wanted, (await partition.status()).projections)
        with screen.progress(f"Going back with {name}") as bar:
            position = await partition.rebuilds.back(name, bar)
    screen.output().print(f"{name} answers from the rows of before, up to position {screen.count(position)}.")
    return 0


def _chosen(wanted: str, known: Sequence[ProjectionStatus]) -> str:
    """The name of the read model that is meant.

    Raises:
        ConfigurationError: there is none, or it is nowhere but in the memory of processes.
    """
    from diptych.entrypoints.cli.looking import choose

    name = choose("read model", wanted, {found.name for found in known})
    if all(found.store == IN_MEMORY for found in known if found.name == name):
        raise ConfigurationError(
            f"{name} is in the memory of each process that runs it, where this one cannot look: start them again with "
            "the code of now, and each folds it from the history"
        )
    return name


async def _one(partition: Follower, status: ProjectionStatus, asking: _Asking, settings: Settings) -> bool:
    """Rebuild one read model; whether it was switched to."""
    name, others = status.name, status.other_code
    if others and not asking.dry:
        _log.warning(
            "the live rows of %s are of other code than this: once this has switched, a server that still runs that "
            "code answers from them for %g s more, and then its queries of it end in NotFresh until it is restarted",
            *(name, settings.keep),
        )
    started = time.perf_counter()
    with screen.progress(f"Rebuilding {name}") as bar:

        def approve(found: Comparison) -> bool:
            bar.stop()
            return asking.approves(found)

        position = await partition.rebuilds.rebuild(name, bar, approve=approve if asking.compare else None)
    took_s = time.perf_counter() - started
    if position is None:
        asking.people.print(f"{name} is as it was.")
        return False
    done = f"{name} is rebuilt up to position {screen.count(position)}, in {took_s:.1f} s."
    restart = f" Restart with this code what still runs the other within {settings.keep:g} s." if others else ""
    asking.people.print(done + restart, soft_wrap=True)
    return True


# ── differences ──────────────────────────────────────────────────────────────


def _show(found: Comparison) -> None:
    output = screen.output()
    title = f"{found.read_model}, {_rows(found.rows)} at position {screen.count(found.position)}"
    if found.same:
        output.print(f"{title}: no row differs.", soft_wrap=True)
    else:
        counts = ", ".join(
            f"{screen.count(count)} {kind}"
            for kind, count in (("added", found.added), ("removed", found.removed), ("changed", found.changed))
            if count
        )
        output.print(f"{title}: {counts}.", soft_wrap=True)
        for sample in found.samples:
            output.print(_told(sample), markup=False, highlight=False, soft_wrap=True)
        more = found.added + found.removed + found.changed - len(found.samples)
        if more:
            output.print(f"  … and {_rows(more)} more")
    if found.blocked:
        output.print(f"  In the new rows {screen.count(found.blocked)} keys are blocked: see `diptych parked list`.")


def _told(sample: RowDifference) -> str:
    """A row in one line: what is added or removed whole, else its key columns first and what has changed."""
    if sample.before is None or sample.after is None:
        sign, row = ("+", sample.after) if sample.before is None else ("-", sample.before)
        return f"  {sign} {_columns(row or {})}"
    before, after = sample.before, sample.after
    same = {name: value for name, value in after.items() if name in before and before[name] == value}
    others = [name for name in {**before, **after} if name not in same]
    changes = ", ".join(f"{name} {_value(before, name)} → {_value(after, name)}" for name in others)
    return f"  ~ {_columns(same)}: {changes}" if same else f"  ~ {changes}"


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(row, name)}" for name in row)


def _value(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "(no such column)"
    text = encode(row[name]).decode()
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}…"


def _rows(count: int) -> str:
    return f"{screen.count(count)} row{'' if count == 1 else 's'}"
