"""Logs on stderr, by stdlib logging: for people by default, JSON lines with `--log-format json`.

Quiet unless something is wrong, and each problem once: what repeats is held back, counted, and told again after a
while with the count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from rich.text import Text

from diptych.entrypoints.cli import screen

__all__ = ["JsonFormatter", "OncePerProblem", "configure", "in_json", "is_verbose"]

REPEAT_SILENCE_S = 60.0
"""Seconds for which a problem that was told is not told again."""
PROBLEMS_KEPT_MAX = 1_000
"""Problems that are remembered; past it the one not seen for longest is forgotten."""

_STYLES = {"DEBUG": "dim", "INFO": "cyan", "WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "repeated", "taskName"}


def configure(*, verbose: bool, form: Literal["text", "json"]) -> None:
    """Let the root logger write to stderr; may be called again, the last call counts."""
    handler = TextHandler() if form == "text" else logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter())
    handler.addFilter(OncePerProblem())
    root = logging.getLogger()
    for ours in [found for found in root.handlers if hasattr(found, _MARK)]:
        root.removeHandler(ours)
    setattr(handler, _MARK, form)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("diptych").setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("diptych.cli").setLevel(logging.INFO)  # what a command has to say, it always says
    logging.captureWarnings(capture=True)


_MARK = "diptych_form"


def is_verbose() -> bool:
    """Whether `configure` was told to be verbose."""
    return logging.getLogger("diptych").level == logging.DEBUG


def in_json() -> bool:
    """Whether `configure` was told to write JSON."""
    return any(getattr(found, _MARK, None) == "json" for found in logging.getLogger().handlers)


class TextHandler(logging.Handler):
    """Writes for people: time, level, what happened; above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            told = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
            line = Text.assemble(
                (f"{told} ", "dim"), (f"{record.levelname.lower():<8}", _STYLES.get(record.levelname, ""))
            )
            line.append(self.format(record))
            screen.errors().print(line, soft_wrap=True)
        except Exception:  # noqa: BLE001  # as every handler of logging: what goes wrong here must not end the caller
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: time, level, logger, message, what `extra=` brought, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, as one line."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _ORDINARY},
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(told, enc_hook=repr).decode()


class OncePerProblem(logging.Filter):
    """Holds back a warning or error that was told within the last `REPEAT_SILENCE_S` seconds.

    Two records tell of the same problem if they differ in measurements (floats) at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: OrderedDict[tuple[object, ...], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this one is told; it then says how many were not."""
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False  # work was stopped on purpose: who stopped it says so, where that is worth a word
        if record.levelno < logging.WARNING or record.exc_info:
            return True
        problem = (record.name, record.msg, *(repr(part) for part in _parts(record.args)))
        last, held = self._told.get(problem, (float("-inf"), 0))
        now = time.monotonic()
        tell = now - last >= REPEAT_SILENCE_S
        if tell and held:
            record.msg, record.args = f"{record.getMessage()} ({held} times more since it was told last)", ()
        self._told[problem] = (now, 0) if tell else (last, held + 1)
        self._told.move_to_end(problem)
        if len(self._told) > PROBLEMS_KEPT_MAX:
            self._told.popitem(last=False)
        return tell


def _parts(arguments: object) -> list[object]:
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    return [part for part in given if not isinstance(part, float)]
