"""Scenarios of processes: what a process makes of an event, without an application around it."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from diptych import BoundedContext, CommandRejected, Event, Identity, ProcessManager, Reaction
from diptych.errors import ConfigurationError
from diptych.testing import ManualClock, scenario
from tests.transferring import (
    OVERDUE,
    Confirmed,
    Deposit,
    Deposited,
    DepositOverdue,
    Refund,
    Request,
    Requested,
    TransferId,
    Transferring,
    banking,
)

ONE = TransferId("t1")
REQUESTED = Requested(transfer=ONE, to="open")
bank = banking()
listing = BoundedContext("listing", modules=["late_processes"])


def test_commands_and_timeouts_of_a_reaction() -> None:
    """Those of the last event alone, in order."""
    outcome = scenario(bank).when_event(REQUESTED)
    outcome.then_commands(Deposit(transfer=ONE, to="open")).then_going_on()
    outcome.then_timeouts((DepositOverdue(transfer=ONE), OVERDUE))
    outcome.then_timeouts((DepositOverdue(transfer=ONE), ManualClock().now() + OVERDUE))
    begun = scenario(bank).given(REQUESTED, ago=timedelta(minutes=1))
    begun.when_event(Deposited(transfer=ONE)).then_nothing().then_state(Transferring(transfer=ONE, deposits=1))
    begun.when_event(DepositOverdue(transfer=ONE)).then_commands(Refund(transfer=ONE, because="overdue")).then_ended()


def test_a_rejection_is_an_event_too() -> None:
    """As it is written in the annotation: it is turned into the one of the process."""
    rejected = CommandRejected(instance=ONE, command=Deposit(transfer=ONE, to="x"), code="closed", facts={})
    outcome = scenario(bank).given(REQUESTED).when_event(rejected)
    outcome.then_commands(Refund(transfer=ONE, because="closed")).then_ended()
    with pytest.raises(AssertionError, match="expected an instance that goes on, and 't1' has ended"):
        outcome.then_going_on()


def test_what_differs_is_told() -> None:
    """What was expected, and what came."""
    outcome = scenario(bank).when_event(REQUESTED)
    with pytest.raises(AssertionError, match=r"the commands differ; expected\n.*\nand got\n.*to='open'"):
        outcome.then_commands(Deposit(transfer=ONE, to="other"))
    with pytest.raises(AssertionError, match="the timeouts differ"):
        outcome.then_timeouts()
    with pytest.raises(AssertionError, match="expected the end of an instance, and 't1' goes on"):
        outcome.then_ended()
    with pytest.raises(AssertionError, match="no instance has the state"):
        outcome.then_state(Transferring(transfer=ONE, deposits=9))
    with pytest.raises(AssertionError, match="and it meets none"):
        scenario(bank).when_event(Confirmed(transfer=ONE)).then_ended()


def test_a_command_scenario_sends_nothing() -> None:
    """It is about the decision: the processes of its contexts do not react."""
    scenario(bank).when(Request(transfer=ONE)).then(REQUESTED)


def test_the_modules_of_a_context_are_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no application is opened: a process whose module nobody has imported yet reacts."""
    (tmp_path / "late_processes.py").write_text(
        "from tests.transferring import Requested, Transferring\n"
        "from tests.unit.test_process_scenario import listing\n"
        "listing.process_manager(starts=[Requested])(Transferring)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    listing.command_handlers.extend(bank.command_handlers)
    scenario(listing).when_event(REQUESTED).then_commands(Deposit(transfer=ONE, to="open"))


class NumberId(Identity): ...


class Counted(Event):
    number: NumberId


_numbers = count()


class Counting(ProcessManager[NumberId]):
    number: NumberId
    n: int = 0

    def react(self, event: Counted) -> Reaction[Counting]:
        if event.number == "broken":
            raise ZeroDivisionError("no")
        return Reaction(Counting(number=self.number, n=next(_numbers)))


def test_a_reaction_that_fails_or_is_not_pure_fails_the_scenario() -> None:
    """So that neither is met in production."""
    context = BoundedContext("counting")
    with pytest.raises(ConfigurationError, match="no process is declared"):
        scenario(context).when_event(Counted(number=NumberId("a")))
    context.process_manager(Counting)
    with pytest.raises(AssertionError, match=r"Counting\.react is not pure"):
        scenario(context).when_event(Counted(number=NumberId("a")))
    with pytest.raises(AssertionError, match=r"Counting\.react fails at .*ZeroDivisionError: no"):
        scenario(context).when_event(Counted(number=NumberId("broken")))
