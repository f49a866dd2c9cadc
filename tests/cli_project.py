"""A user's project in a folder of its own, and the command line run in it: in this process, or as one of its own."""

from __future__ import annotations

import importlib
import io
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

import diptych.entrypoints.cli
from diptych import SyncApplication
from diptych.entrypoints.cli.app import run_command_line

__all__ = ["STORE", "Outcome", "Project", "Terminal", "project_in"]

STORE = "sqlite:school.db"

_SOURCE = """
import os
from collections.abc import Sequence

from diptych import BoundedContext, Command, Event, EventContext, Identity, Key, Query, ReadModel, replace

school = BoundedContext("school")


class CourseId(Identity): ...


class Enrol(Command):
    course: CourseId


class Enrolled(Event):
    course: CourseId


class Audited(Event):
    course: CourseId


class Audit(Command):
    course: CourseId


class Seats(ReadModel):
    course: Key[CourseId]
    taken: int = 0


class SeatsOf(Query[Seats | None]):
    course: CourseId


@school.command_handler
def enrol(command: Enrol) -> Enrolled:
    return Enrolled(course=command.course)


@school.command_handler
def audit(command: Audit) -> Audited:
    return Audited(course=command.course)


@school.projection
def seats(row: Seats, event: Enrolled) -> Seats:
    if event.course == os.environ.get("UNFOLDABLE"):
        raise ValueError("no such room")
    return replace(row, taken=row.taken + 1)


@school.subscriber
async def inform(events: Sequence[tuple[Enrolled, EventContext]]) -> None:
    with open("informed.txt", "a") as file:
        file.writelines(f"{context.position}\\n" for _, context in events)
"""
"""Folds what it is given, but for the course that UNFOLDABLE names; and writes to informed.txt, which is outside."""

_SOURCES = str(Path(diptych.entrypoints.cli.__file__).parents[3])
_numbers = itertools.count(1)


class Outcome(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


class Project:
    """A folder with a module of a name that no other test uses: one process can import them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = f"school_of_test_{os.getpid()}_{next(_numbers)}"
        self.context = f"{self.module}:school"
        (folder / f"{self.module}.py").write_text(_SOURCE)

    def run(self, *arguments: str) -> Outcome:
        """Run a command line in this process."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run_command_line(arguments)
        return Outcome(code, out.getvalue(), err.getvalue())

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command line as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "diptych", *arguments],
            cwd=self.folder,
            env={**_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def changed(self) -> str:
        """Another module with the same context, whose fold counts by ten; its name for the command line."""
        changed = f"{self.module}_changed"
        (self.folder / f"{changed}.py").write_text(_SOURCE.replace("row.taken + 1)", "row.taken + 10)"))
        return f"{changed}:school"

    def settings(self, text: str) -> None:
        """Write diptych.toml."""
        (self.folder / "diptych.toml").write_text(text)

    def enrol(self, *courses: str, store: str = STORE) -> None:
        """Append an event for each course, and project what can be."""
        school = importlib.import_module(self.module)
        with SyncApplication(school.school, store=store) as app:
            for course in courses:
                app.execute(school.Enrol(course=course))
            app.projected()

    def schedule(self, course: str) -> None:
        """Have a course enrolled tomorrow."""
        school = importlib.import_module(self.module)
        with SyncApplication(school.school, store=STORE) as app:
            app.schedule(school.Enrol(course=course), after=timedelta(days=1))

    def audit(self, course: str) -> None:
        """Append an event of another type."""
        school = importlib.import_module(self.module)
        with SyncApplication(school.school, store=STORE) as app:
            app.execute(school.Audit(course=course))
            app.projected()

    def taken(self, course: str) -> int:
        """What the read model shows."""
        school = importlib.import_module(self.module)
        with SyncApplication(school.school, store=STORE) as app:
            row = app.query(school.SeatsOf(course=course), freshness="latest")
            return 0 if row is None else int(row.taken)


def _environment() -> dict[str, str]:
    """As users have it: output is buffered, and the library is found from any folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": _SOURCES}


@contextmanager
def project_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project in the working directory; logging, import path and environment are as before afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name in [name for name in os.environ if name.startswith("DIPTYCH_")]:
        monkeypatch.delenv(name)
    loggers = [logging.getLogger(name) for name in ("", "diptych", "diptych.cli")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    try:
        yield Project(folder)
    finally:
        logging.captureWarnings(capture=False)
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers = handlers
