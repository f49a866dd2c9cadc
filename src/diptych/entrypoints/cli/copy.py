"""`diptych copy`: the history of one store, and what its processes keep, moved to another as it is."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import CommandFailed, UsageError
from diptych.entrypoints.cli.options import LOGS_UNSET, LogOptions
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import Terminated, run_async
from diptych.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from diptych.process_managers.process_store import ProcessStore

__all__ = ["CopyReport", "copy"]

_SAME = "--from and --to name the same store"
_GOES_ON = "what was copied is kept: run the same again, and it goes on"


def copy(
    *,
    source: Annotated[str, Parameter(name="--from", env_var="DIPTYCH_COPY_FROM", metavar="URL")],
    target: Annotated[str, Parameter(name="--to", env_var="DIPTYCH_COPY_TO", metavar="URL")],
    verify: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Copy an event store to another, empty one: the same history, compared by digest at the end; and its processes.

    Stopped at any point, it goes on when it is run again. The source may be in use while it runs. Before the last run,
    stop whatever runs commands on it; once commands run on the target, never run one on the source again.

    Args:
        source: the event store to copy, sqlite:shop.db or postgresql://user@host/database.
        target: an empty event store, or one that an earlier copy of the same source began.
        verify: copy nothing, compare only.
        json: Print one JSON object.
        log: how.
    """
    settled(verbose=log.verbose, log_format=log.log_format)
    _check_urls(source, target)
    try:
        report = run_async(lambda: _run(source, target, verify=verify))
    except (KeyboardInterrupt, Terminated):
        if not verify:
            screen.errors().print(f"stopped; {_GOES_ON}", soft_wrap=True)
        raise
    except StoreUnavailable as error:
        raise error if verify else CommandFailed(f"{error}; {_GOES_ON}") from error
    if json:
        screen.write(msgspec.json.encode(report))
    else:
        _show(report, verify=verify)
    _check(report)


class CopyReport(msgspec.Struct, frozen=True):
    """How it ended.

    Attributes:
        source: its URL, without a password.
        target: its URL, without a password.
        history_id: of both, hexadecimal.
        position: up to which both were compared.
        source_position: the source's head, after that.
        copied_events: how many this run copied.
        outcomes: how many the source keeps up to the position.
        source_digest: SHA-256 of the source's history up to the position, hexadecimal.
        target_digest: the target's.
        difference: what differs first; None where the digests are equal.
        took_s: seconds in all.
        copy_s: seconds of it until everything was copied.
    """

    source: str
    target: str
    history_id: str
    position: int
    source_position: int
    copied_events: int
    outcomes: int
    source_digest: str
    target_digest: str
    difference: str | None
    took_s: float
    copy_s: float


def _check_urls(source: str, target: str) -> None:
    for flag, url in (("--from", source), ("--to", target)):
        if url.startswith("memory:"):
            raise UsageError(f"{flag} {url} ends with its process: name a store that is kept")
    if _where(source) == _where(target):
        raise UsageError(_SAME)


def _where(url: str) -> str:
    """What says where it is: a file may have several names, and a password says not where."""
    from diptych.adapters.connect import without_password

    scheme, _, path = url.partition(":")
    if scheme != "sqlite":
        return without_password(url)
    try:
        found = Path(path).stat()
    except OSError:  # not there yet, or an error when it is opened
        return f"sqlite:{Path(path).resolve()}"
    return f"sqlite:{found.st_dev}:{found.st_ino}"


async def _run(source_url: str, target_url: str, *, verify: bool) -> CopyReport:
    from diptych.adapters.connect import connect_process_store, whereabouts, without_password
    from diptych.entrypoints.cli.looking import opened_store
    from diptych.event_store.copying import compare, copied_up_to, copy_history
    from diptych.process_managers.copying import copy_processes, differing_process

    began = time.perf_counter()
    async with (
        opened_store(Settings(store=source_url)) as source,
        opened_store(Settings(store=target_url), or_new=not verify) as target,
        _opened(connect_process_store(source_url)) as processes,
        _opened(connect_process_store(target_url)) as copied_processes,
    ):
        if await whereabouts(source_url) == await whereabouts(target_url):
            raise UsageError(_SAME)
        before = await copied_up_to(source, target)
        if verify:
            at = before = await source.head()
        else:
            at = await copy_history(source, target, screen.progress)
            with screen.progress("Copying processes") as moved:
                await copy_processes(processes, copied_processes, at, moved)
        copied = time.perf_counter()
        compared = await compare(source, target, at, screen.progress)
        difference = compared.difference or await differing_process(processes, copied_processes, at)
        return CopyReport(
            source=without_password(source_url),
            target=without_password(target_url),
            history_id=source.history_id.hex(),
            position=at.position,
            source_position=(await source.head()).position,
            copied_events=at.position - before.position,
            outcomes=compared.source.outcomes,
            source_digest=compared.source.sha256,
            target_digest=compared.target.sha256,
            difference=difference,
            took_s=time.perf_counter() - began,
            copy_s=copied - began,
        )


@asynccontextmanager
async def _opened(store: ProcessStore) -> AsyncGenerator[ProcessStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def _show(report: CopyReport, *, verify: bool) -> None:
    output = screen.output()
    lines = [
        f"from     {report.source}",
        f"to       {report.target}",
        f"history  {report.history_id}",
        f"digest   sha256:{report.source_digest}" + ("" if report.difference is None else " in the source"),
    ]
    if report.difference is not None:
        lines.append(f"         sha256:{report.target_digest} in the target")
    if not verify:
        rate = round(report.copied_events / max(report.copy_s, 1e-9))
        lines.append(
            f"copied   {screen.count(report.copied_events)} events in {report.copy_s:.1f} s ({screen.count(rate)}/s)"
        )
    output.print("\n".join(lines), soft_wrap=True)
    if report.difference is None:
        output.print(
            f"\nBoth hold the same {screen.count(report.position)} events and {screen.count(report.outcomes)} kept "
            "outcomes.",
            soft_wrap=True,
        )
    if _is_moved(report) and not verify:
        output.print(
            "The target is the whole history only if nothing ran commands on the source meanwhile, and nothing does "
            "again: stop it first, and if you did not, stop it now and run this once more. Two stores that both go on "
            "are a fork, which cannot be joined.",
            soft_wrap=True,
        )


def _is_moved(report: CopyReport) -> bool:
    return report.difference is None and report.source_position == report.position


def _check(report: CopyReport) -> None:
    """Fail where the target is not what the source is."""
    if report.difference is not None:
        raise CommandFailed(
            f"source and target differ up to position {report.position:,}: {report.difference}. If commands ran on "
            "either of them meanwhile, stop them and run this again; if not, what one of them holds is damaged: begin "
            "again with an empty target"
        )
    if report.source_position != report.position:
        raise CommandFailed(
            f"the source has gone on to position {report.source_position:,}, the target holds it up to "
            f"{report.position:,}: commands still run there. Stop them, and run this again: it copies the rest"
        )
