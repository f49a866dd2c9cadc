"""What the command line writes on: tables and lines on stdout, problems and progress on stderr.

Colours and bars are for terminals only (`NO_COLOR` is honoured); a pipe gets plain text of a fixed, generous width.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.table import Table

__all__ = ["Bar", "count", "errors", "output", "printable", "progress", "table", "write"]

PIPE_COLUMNS = 160
"""Columns of tables that go to no terminal."""
BAR_COLUMNS = 24
"""Columns of the bar itself; its figures come on top."""


def output() -> Console:
    """Stdout."""
    return _console(Console(highlight=False, emoji=False, markup=False))


def errors() -> Console:
    """Stderr."""
    return _console(Console(stderr=True, highlight=False, emoji=False, markup=False))


def _console(console: Console) -> Console:
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def write(line: bytes) -> None:
    """One line for machines on stdout, at once, whatever the console is."""
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


def count(number: int) -> str:
    """A number for people: 12,345."""
    return f"{number:,}"


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def table(title: str, *columns: str, numbers: int = 0) -> Table:
    """An empty table; its last `numbers` columns are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        is_number = index >= len(columns) - numbers
        made.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return made


class Bar:
    """How far a long piece of work is. Called with what is done, and with all that is to do."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None)

    def __call__(self, done: int, total: int | None) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        """Take the bar away, before something else is written or asked."""
        self._progress.stop()

    def describe(self, what: str) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=what)


@contextmanager
def progress(what: str) -> Generator[Bar]:
    """A bar with rate and time left on stderr, gone at the end; nothing at all where that is no terminal."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    class Figures(ProgressColumn):
        def render(self, task: Task) -> Text:
            done, total = count(int(task.completed)), "" if task.total is None else f"/{count(int(task.total))}"
            rate = "" if task.finished_speed is None and task.speed is None else f"  {_rate(task)}"
            return Text(f"{done}{total}{rate}", style="progress.download")

    console = errors()
    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(BAR_COLUMNS),
        Figures(),
        TimeRemainingColumn(compact=True),
        TextColumn("left", style="progress.remaining"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with shown:
        yield Bar(shown, what)


def _rate(task: Task) -> str:
    return f"{count(round(task.finished_speed or task.speed or 0))}/s"
