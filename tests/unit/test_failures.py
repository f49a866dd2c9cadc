"""What becomes of a failure, by its branch of the error tree: one table, in the code and in the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest

from diptych import Application, ContextChanged, Rejected, errors
from diptych.errors import Conflict, DiptychError, Forbidden, Overloaded, StoreClosed
from diptych.failures import TRACE_CHARACTERS_MAX, Branch, branch_of, line_of, trace_of
from diptych.process_managers import sender
from diptych.testing import ManualClock
from tests.examples.pages import ROOT, Page
from tests.transferring import Request, TransferId, banking

ROW = re.compile(r"^\| `(?P<name>\w+)` \|(?:[^|]+\|){3} (?P<branch>[^|]+) \|$", re.MULTILINE)


def errors_of(cls: type[DiptychError]) -> Iterator[type[DiptychError]]:
    """Every public error below one."""
    for each in cls.__subclasses__():
        if each.__name__ in errors.__all__ or each in (Rejected, ContextChanged):
            yield each
        yield from errors_of(each)


def test_every_error_has_its_branch_in_the_docs() -> None:
    """Those that are raised themselves; each is what the code says that it is."""
    told = {found["name"]: found["branch"] for found in ROW.finditer(Page(ROOT / "docs/reference/errors.md").text)}
    known = {cls.__name__: branch_of(cls.__new__(cls)).value for cls in errors_of(DiptychError)}
    roots = {"MessageError", "HistoryError", "Unavailable"}
    assert len(told) > 25
    assert {name: branch for name, branch in known.items() if name not in roots} == told


@pytest.mark.parametrize(
    "error", [ValueError(), KeyError(), TimeoutError(), ConnectionError(), ExceptionGroup("", [OSError()])]
)
def test_an_error_of_anybody_else_is_a_fault(error: Exception) -> None:
    """Whether it is worth another try is not known, so tries are counted."""
    assert branch_of(error) is Branch.FAULT


def test_a_trace_tells_of_what_caused_an_error() -> None:
    """With the line that raised it; of a recursion without end, its ends."""

    def endless(n: int) -> int:
        return endless(n + 1) + n

    def raise_from_it() -> None:
        try:
            endless(0)
        except RecursionError as error:
            raise ValueError("too deep") from error

    with pytest.raises(ValueError, match="too deep") as raised:
        raise_from_it()
    told = trace_of(raised.value)
    assert "return endless(n + 1) + n" in told
    assert "RecursionError" in told
    assert told.endswith("ValueError: too deep\n")
    assert len(told) <= TRACE_CHARACTERS_MAX


def test_an_error_is_listed_in_one_line() -> None:
    """However many it has, and however long they are."""
    assert line_of("one\n  two\tthree ") == "one two three"
    assert len(line_of("long " * 1_000)) == 500


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (Conflict("Deposit", 10, 5), False),
        (Overloaded("COMMANDS_WAITING_MAX", 1), False),
        (StoreClosed("closed"), False),
        (Forbidden("Deposit", "ann", ["write"]), True),
        (ZeroDivisionError("no"), True),
    ],
    ids=lambda found: type(found).__name__,
)
async def test_a_command_of_a_process_is_given_up_for_faults_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, counted: bool
) -> None:
    """What others were in the way of, or what is not there now, is tried for as long as it takes."""
    clock = ManualClock()
    async with Application(banking(), store="memory:", clock=clock) as app:
        worker = app.partition().process_worker
        tries = 0

        async def fail(*_: object) -> object:
            nonlocal tries
            tries += 1
            raise error

        monkeypatch.setattr(worker._runners[0].sender, "_execute", fail)
        await app.execute(Request(transfer=TransferId("t1")))
        for _ in range(2 * sender.SEND_ATTEMPTS_MAX):
            await worker.at_rest()
            clock.advance(timedelta(seconds=sender.SEND_BACKOFF_MAX_S / 4))
        dead = (await app.parked.list(kind="command")).items
        assert bool(dead) == counted
        assert (tries == sender.SEND_ATTEMPTS_MAX) == counted
