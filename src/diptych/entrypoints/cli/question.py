"""A question to whoever sits at the terminal, before something is done that cannot be taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.signals import ended_by_signals

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["confirmed"]


def confirmed(question: str, console: Console | None = None) -> bool:
    """Whether the answer is yes; the end of the input is a no.

    Args:
        question: what is to be done.
        console: where it is asked; None: on stdout.

    Raises:
        KeyboardInterrupt: the answer was Ctrl-C.
        Terminated: SIGTERM came instead.
    """
    console = console or screen.output()
    console.print(f"{question} [y/N] ", end="", soft_wrap=True)
    with ended_by_signals():
        try:
            return input().strip().lower() in {"y", "yes"}
        except EOFError:
            console.print()
            return False
