"""`diptych check`: what is wrong with an application, told without running it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED
from diptych.entrypoints.cli.options import (
    EVENT_STORE_UNSET,
    LOGS_UNSET,
    PARTITION_UNSET,
    AppNames,
    EventStoreOptions,
    LogOptions,
    PartitionOptions,
)
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.application.checks import Finding
    from diptych.application.model import ApplicationModel
    from diptych.application.reached_code import Place
    from diptych.event_store.schema_check import CheckedSchema

__all__ = ["check"]


def check(
    *app: AppNames,
    strict: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: EventStoreOptions = EVENT_STORE_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Look for what is wrong with bounded contexts, without running them.

    Commands and queries have handlers, events somewhere to go; folds have a case for each event; folds and deciders
    name no clock, chance or I/O. Where a store is set, its events are read with the code as well, as by `schema check`.
    The exit code is 1 where there is an error.

    Args:
        app: the code.
        strict: Exit with 1 where there are only warnings, too.
        json: Print one JSON object a finding.
        stores: where events are that the code has to read.
        partition: which.
        log: how.
    """
    settings = settled(
        verbose=log.verbose, app=app, store=stores.store, partition=partition.partition, log_format=log.log_format
    )
    model, found = _found(settings)
    schemas = _schemas(settings) if model is not None else []
    stored = [each for schema in schemas for each in _of_store(schema)]
    if json:
        for finding in (*found, *stored):
            screen.write(encode(_plain(finding)))
    else:
        _tell(found, schemas)
        screen.output().print(_summary(model, [*found, *stored]), soft_wrap=True)
    found += stored
    failed = any(finding.severity == "error" for finding in found) or (strict and found)
    return FAILED if failed else 0


def _found(settings: Settings) -> tuple[ApplicationModel | None, list[Finding]]:
    """The application, where it can be compiled, and what is wrong with its code."""
    from diptych.application.checks import findings, misfit
    from diptych.application.model import application_model
    from diptych.entrypoints.cli.contexts import load_contexts
    from diptych.errors import ConfigurationError

    contexts = load_contexts(settings.app)
    try:
        model = application_model(contexts)
    except ConfigurationError as error:
        return None, [misfit(error, contexts)]
    return model, findings(model)


def _schemas(settings: Settings) -> list[CheckedSchema]:
    """What the code makes of each store that is set; none where there is none."""
    if settings.store is None:
        return []
    from diptych.entrypoints.cli.schema import checked

    return [run_async(partial(checked, each)) for each in settings.each()]


def _of_store(found: CheckedSchema) -> list[Finding]:
    """The same as findings. They have no place: it is the store that has the events."""
    from diptych.application.checks import Finding
    from diptych.application.reached_code import Place

    nowhere = Place("", 0)
    broken = [
        Finding(
            "events-unreadable",
            "error",
            nowhere,
            f"{screen.count(each.events)} events of {each.type} (version {each.version}) cannot be read, from position "
            f"{each.position} on",
            each.reason,
        )
        for each in found.breaks
    ]
    unread = [
        Finding(
            "field-unread",
            "warning",
            nowhere,
            f"nothing reads the field {each.field!r} that {screen.count(each.events)} events of {each.type} (version "
            f"{each.version}) have, from position {each.position} on",
            "where it is gone on purpose, raise the version and leave it out in an upcaster",
        )
        for each in found.ignored
    ]
    outgrown = [
        Finding(
            "model-outgrown",
            "error" if each.stored else "warning",
            nowhere,
            f"newer code's {each.model} folds {' and '.join(each.types)} as well"
            + (", and there are such events" if each.stored else ""),
            f"run that code; if this is the newer one, say version={each.version + 1} in the class statement",
        )
        for each in found.lacking
    ]
    return broken + unread + outgrown


def _plain(finding: Finding) -> dict[str, object]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "file": _shown(finding.place.file),
        "line": finding.place.line,
        "problem": finding.problem,
        "remedy": finding.remedy,
    }


def _shown(file: str) -> str:
    """A path as it is found from the working directory, where it is below it."""
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if file and Path(file).is_relative_to(here) else file


def _told(place: Place) -> str:
    return f"{_shown(place.file)}:{place.line}: " if place.line else (f"{place.file}: " if place.file else "")


def _tell(found: Sequence[Finding], schemas: Sequence[CheckedSchema]) -> None:
    """What is wrong with the code, then what `schema check` says of each store."""
    from rich.text import Text

    from diptych.entrypoints.cli.schema import tell

    output = screen.output()
    for finding in found:
        style = "bold red" if finding.severity == "error" else "bold yellow"
        output.print(
            Text.assemble(
                _told(finding.place),
                (f"{finding.severity}: ", style),
                f"{finding.problem} ",
                (f"[{finding.code}]", "dim"),
            ),
            soft_wrap=True,
        )
        output.print(f"    {finding.remedy}", soft_wrap=True)
    for schema in schemas:
        tell(schema)


def _summary(model: ApplicationModel | None, found: Sequence[Finding]) -> str:
    """One line: what was looked at, and how it is."""
    errors = sum(finding.severity == "error" for finding in found)
    warnings = len(found) - errors
    counted = [_counted(count, what) for count, what in ((errors, "error"), (warnings, "warning")) if count]
    how = " and ".join(counted) or "all is well"
    if model is None:
        return how
    from diptych.application.model import Kind

    kinds = (Kind.COMMAND, Kind.EVENT, Kind.QUERY, Kind.READ_MODEL, Kind.PROCESS)
    parts = [_counted(len(model.of(kind)), kind) for kind in kinds if model.of(kind)]
    return f"{', '.join(parts) or 'Nothing is declared'}: {how}"


def _counted(number: int, what: str) -> str:
    plural = {"query": "queries", "process": "processes"}.get(what, f"{what}s")
    return f"{screen.count(number)} {what if number == 1 else plural}"
