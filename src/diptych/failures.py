"""What becomes of a failure, by the branch of the error tree that it is on; and what is kept of one.

Everything that tries again by itself asks here whether a failure counts: what sends the commands of processes, and what
delivers to subscribers. `docs/reference/errors.md` has the table.
"""

from __future__ import annotations

import enum
import traceback

from diptych.errors import Conflict, StoreClosed, Unavailable
from diptych.messages.rejected import Rejected

__all__ = ["Branch", "branch_of", "line_of", "told", "trace_of"]

FAILURE_CHARACTERS_MAX = 2_000
"""Characters that are kept of what an exception says."""

TRACE_CHARACTERS_MAX = 8_000
"""Characters that are kept of a stack trace; of a longer one, its two ends."""
TRACE_FRAMES_MAX = 50
"""Calls of each exception in a trace that are looked at, counted from where it was raised."""
LINE_CHARACTERS_MAX = 500
"""Characters of an error where it is listed in one line."""


class Branch(enum.Enum):
    """What a failure is to whoever may try again."""

    ANSWER = "answer"  # the domain's no: an outcome, not tried again
    NOT_NOW = "not now"  # others were in the way, or what it takes is not there: again after a pause, uncounted
    FAULT = "fault"  # it is likely to fail again: so many times by itself, then a human looks at it


def branch_of(error: BaseException) -> Branch:
    """The branch of an error, Diptych's own or of anybody's code."""
    if isinstance(error, Rejected):
        return Branch.ANSWER
    return Branch.NOT_NOW if isinstance(error, Conflict | Unavailable | StoreClosed) else Branch.FAULT


def told(error: BaseException) -> str:
    """An exception in one line, with its place in the code, as every store can keep it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = (
        f" ({frames[-1].name}, line {frames[-1].lineno} of {frames[-1].filename.rpartition('/')[2]})" if frames else ""
    )
    return _storable(f"{type(error).__name__}: {error}"[:FAILURE_CHARACTERS_MAX] + where)


def trace_of(error: BaseException) -> str:
    """The stack trace of an exception, with what caused it, as every store can keep it; no values of variables."""
    trace = traceback.TracebackException.from_exception(
        error, limit=-TRACE_FRAMES_MAX, lookup_lines=True, capture_locals=False
    )
    return _storable(_shortened("".join(trace.format())))


def line_of(text: str) -> str:
    """A text as one line that can be listed."""
    line = " ".join(text.split())
    return line if len(line) <= LINE_CHARACTERS_MAX else f"{line[: LINE_CHARACTERS_MAX - 1]}…"


def _storable(text: str) -> str:
    """Without NUL and lone surrogates."""
    return text.replace("\0", "�").encode(errors="replace").decode()


def _shortened(text: str) -> str:
    if len(text) <= TRACE_CHARACTERS_MAX:
        return text
    between = "\n[...]\n"
    half = (TRACE_CHARACTERS_MAX - len(between)) // 2
    return text[:half] + between + text[-half:]
