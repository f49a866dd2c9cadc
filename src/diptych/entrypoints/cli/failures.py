"""How a command that failed ends: one message on stderr, and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback

from rich.text import Text

from diptych.entrypoints.cli import logs, screen
from diptych.entrypoints.cli.signals import INTERRUPTED, TERMINATED, Terminated
from diptych.errors import DiptychError, MissingService

__all__ = ["FAILED", "MISUSED", "CommandFailed", "UsageError", "exit_code"]

FAILED = 1
"""The exit code of a command that could not do what it was told."""
MISUSED = 2
"""The exit code of a command line that is none."""
PIPE_CLOSED = 141
"""The exit code where nobody reads the output any more: the one of SIGPIPE."""

_NO_SERVICES = (
    "The command line has no services to give: make the ASGI application yourself, http_app(Application(..., "
    "services={...})), and run it with uvicorn"
)

_log = logging.getLogger("diptych.cli")


class CommandFailed(Exception):
    """The command cannot do what it was told; with the reason."""


class UsageError(CommandFailed):
    """The command line asks for something that it cannot have."""


def exit_code(error: BaseException) -> int:
    """Tell what went wrong, once, and give the process's exit code."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case Terminated():
            return TERMINATED
        case BrokenPipeError():
            # What is still buffered must not fail again when the interpreter flushes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        case SystemExit() if isinstance(error.__context__, BrokenPipeError):  # rich has seen to what is buffered
            return PIPE_CLOSED
        case UsageError():
            _tell(str(error), error)
            return MISUSED
        case MissingService():
            _tell(f"{error}. {_NO_SERVICES}", error)
            return FAILED
        case DiptychError() | CommandFailed():
            _tell(str(error), error)
            return FAILED
        case _:
            _tell(_unexpected(error), error)
            return FAILED


def _unexpected(error: BaseException) -> str:
    again = "" if logs.is_verbose() else "; run it again with --verbose to see where"
    return f"unexpected {type(error).__name__}: {error}{again}"


def _tell(text: str, error: BaseException) -> None:
    if logs.in_json():
        _log.error(text, exc_info=error if logs.is_verbose() else None)
        return
    if logs.is_verbose():
        sys.stderr.write("".join(traceback.format_exception(error)))
    screen.errors().print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
