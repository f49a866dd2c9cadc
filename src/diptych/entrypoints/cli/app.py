"""The command line, assembled: `diptych --help`.

Commands import what they need when they run, so that help, version and mistakes are answered quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cyclopts import App, CycloptsError

from diptych.entrypoints.cli import parked as parked_items
from diptych.entrypoints.cli.check import check
from diptych.entrypoints.cli.copy import copy
from diptych.entrypoints.cli.demo import demo
from diptych.entrypoints.cli.events import events
from diptych.entrypoints.cli.export import export
from diptych.entrypoints.cli.failures import UsageError, exit_code
from diptych.entrypoints.cli.history import history
from diptych.entrypoints.cli.instances import close, list_instances, retry, send, show
from diptych.entrypoints.cli.migrate import migrate
from diptych.entrypoints.cli.model import model
from diptych.entrypoints.cli.prune import prune
from diptych.entrypoints.cli.rebuild import rebuild
from diptych.entrypoints.cli.retag import retag
from diptych.entrypoints.cli.run import run
from diptych.entrypoints.cli.scheduled import cancel, list_scheduled
from diptych.entrypoints.cli.scheduled import show as show_scheduled
from diptych.entrypoints.cli.schema import check as check_schema
from diptych.entrypoints.cli.schema import show as show_schema
from diptych.entrypoints.cli.status import status

__all__ = ["command_line", "main", "run_command_line"]

_ABOUT = """Diptych runs CQRS applications: commands decide, events are kept, queries show.

Settings come from flags, then from DIPTYCH_* variables, then from diptych.toml in the working directory."""

_FIRST_STEPS = """[bold]First steps[/bold]

  diptych demo
      watch a shop being run, from command to query
  diptych run school:school --store sqlite:school.db
      serve the bounded context `school` of school.py over HTTP
  diptych check school:school
      find what is wrong with it before it runs
  diptych status school:school --store sqlite:school.db
      see how far its projections are"""

_STORE = "--store sqlite:school.db"


def command_line() -> App:
    """The commands, their help and their options."""
    app = App(
        name="diptych",
        help=_ABOUT,
        help_epilogue=_FIRST_STEPS,
        help_format="rich",
        usage="Usage: diptych COMMAND",
        version=_version,
        exit_on_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    _add(app, 1, demo, "demo", "diptych demo", "diptych demo --input invoices.csv.gz --data shop-data --json")
    _add(
        app,
        2,
        run,
        "run",
        f"diptych run school:school {_STORE} --port 9000",
        "curl localhost:9000/commands/Enrol -H 'Content-Type: application/json' \\",
        '     -d \'{"course": "python"}\'',
        arguments="[APP...]",
    )
    example = "diptych check school:school --strict"
    _add(app, 3, check, "check", example, f"diptych check school:school {_STORE}", arguments="[APP...]")
    example = "diptych model school:school > school.svg"
    _add(app, 4, model, "model", example, "diptych model school:school --mermaid", arguments="[APP...]")
    _add(app, 5, status, "status", f"diptych status school:school {_STORE}", arguments="[APP...]")
    _add(
        app,
        6,
        events,
        "events",
        f"diptych events {_STORE} --tag course:python --type Enrolled",
        f"diptych events {_STORE} --follow --json",
    )
    _add(
        app,
        4,
        history,
        "history",
        f"diptych history Seats python school:school {_STORE}",
        'diptych history Places \'["python", "2026"]\' school:school --json',
        arguments="READ_MODEL KEY [APP...]",
    )
    app.command(_parked())
    app.command(_processes())
    app.command(_scheduled())
    _add(app, 10, rebuild, "rebuild", f"diptych rebuild Seats school:school {_STORE}", arguments="READ_MODEL [APP...]")
    url = "--store postgresql://localhost/school"
    _add(app, 11, migrate, "migrate", f"diptych migrate {url}", f"diptych migrate {url} --sql | psql school")
    _add(app, 12, copy, "copy", "diptych copy --from sqlite:school.db --to postgresql://localhost/school")
    types = f"diptych export {_STORE} --parquet enrolments.parquet --type Enrolled"
    rows = f"diptych export school:school {_STORE} --parquet seats.parquet --model Seats"
    _add(
        *(app, 12, export, "export", f"diptych export {_STORE} --parquet school.parquet", types, rows),
        arguments="[APP...]",
    )
    app.command(_schema())
    example = f"diptych prune PriceSeen school:school {_STORE} --older-than-days 90 --dry-run"
    _add(app, 14, prune, "prune", example, arguments="EVENT [APP...]")
    retag_one = f"diptych retag school:school {_STORE} --type Enrolled --yes"
    _add(app, 13, retag, "retag", f"diptych retag school:school {_STORE} --dry-run", retag_one, arguments="[APP...]")
    return app


def _parked() -> App:
    parked = _group("parked", 7, "List, show, retry or discard what failed: events, process steps, commands.")
    _add(
        parked,
        1,
        parked_items.list_parked,
        "list",
        f"diptych parked list school:school {_STORE}",
        arguments="[APP...]",
    )
    by_id: tuple[tuple[Callable[..., Any], str], ...] = (
        (parked_items.show, ""),
        (parked_items.retry, ' --reason "the library is mended"'),
        (parked_items.discard, ' --reason "sold by hand"'),
    )
    for key, (command, reason) in enumerate(by_id, 2):
        name = command.__name__
        example = f"diptych parked {name} event-17-9c3f01aa school:school{reason}"
        _add(parked, key, command, name, example, arguments="ID [APP...]")
    _add(
        parked,
        5,
        parked_items.list_discarded,
        "discarded",
        f"diptych parked discarded school:school {_STORE}",
        arguments="[APP...]",
    )
    return parked


def _processes() -> App:
    processes = _group("processes", 8, "List instances of process managers, or help on those that are stuck.")
    _add(processes, 1, list_instances, "list", f"diptych processes list bank:bank {_STORE}", arguments="[APP...]")
    by_hand: tuple[Callable[..., Any], ...] = (show, retry, close)
    for key, helping in enumerate(by_hand, 2):
        reason = "" if helping is show else ' --reason "by phone"'
        example = f"diptych processes {helping.__name__} Transferring t1 bank:bank{reason}"
        _add(processes, key, helping, helping.__name__, example, arguments="PROCESS INSTANCE [APP...]")
    example = 'diptych processes send Transferring t1 Refund \'\\{"transfer": "t1"}\' bank:bank'
    _add(processes, 5, send, "send", example, arguments="PROCESS INSTANCE COMMAND FIELDS [APP...]")
    return processes


def _scheduled() -> App:
    scheduled = _group("scheduled", 9, "List commands that are executed later, or cancel one.")
    _add(scheduled, 1, list_scheduled, "list", f"diptych scheduled list notes:notes {_STORE}", arguments="[APP...]")
    for key, name, command in (2, "show", show_scheduled), (3, "cancel", cancel):
        example = f"diptych scheduled {name} reminder-17 notes:notes"
        _add(scheduled, key, command, name, example, arguments="ID [APP...]")
    return scheduled


def _schema() -> App:
    schema = _group("schema", 13, "List the event types of a store, or check that the code reads them.")
    _add(schema, 1, show_schema, "show", f"diptych schema show {_STORE}")
    _add(schema, 2, check_schema, "check", f"diptych schema check school:school {_STORE}", arguments="[APP...]")
    return schema


def _group(name: str, key: int, told: str) -> App:
    """Commands under one name."""
    return App(name=name, help=told, usage=f"Usage: diptych {name} COMMAND", help_epilogue="", sort_key=key)


def _version() -> str:
    try:
        return f"diptych {version('diptych')}"
    except PackageNotFoundError:
        return "diptych, not installed: run from its sources"


def _add(app: App, sort_key: int, command: Callable[..., Any], name: str, *examples: str, arguments: str = "") -> None:
    path = "diptych" if app.name[0] == "diptych" else f"diptych {app.name[0]}"
    app.command(
        command,
        name=name,
        usage=f"Usage: {path} {name} [OPTIONS] {arguments}".rstrip(),
        help_epilogue="\n".join(["[bold]Example[/bold]", "", *(f"  {line}" for line in examples)]),
        sort_key=sort_key,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, by default that of this process, and leave with its exit code."""
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))


def run_command_line(arguments: Sequence[str]) -> int:
    """Run a command line; its exit code. Whatever went wrong was told on stderr."""
    try:
        result = command_line()(arguments, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:  # told as every other error is
        text = " ".join(str(error).split())
        return exit_code(UsageError(f"{text[:1].lower()}{text[1:]}"))
    except BaseException as error:  # noqa: BLE001  # nothing is above this but the process
        return exit_code(error)
    return result if isinstance(result, int) else 0
