"""What processes do, in memory and at rest."""

from __future__ import annotations

import pytest

from diptych import Command, CommandContext, Receipt, SyncApplication
from diptych.errors import StoreUnavailable
from diptych.testing import InMemoryApplication, ManualClock
from diptych.write_side.command_bus import NextCommand
from tests.transferring import (
    OVERDUE,
    Confirm,
    Deposit,
    Refund,
    Request,
    TransferId,
    banking,
)

pytestmark = pytest.mark.anyio

ONE = TransferId("t1")


async def happened(app: InMemoryApplication) -> list[str]:
    """The names of all events, in order."""
    return [fact.recorded.type.removeprefix("bank.") for fact in await app.facts()]


async def test_a_process_sends_commands() -> None:
    """What a reaction sends is executed, and what follows from it reaches the instance."""
    async with InMemoryApplication(banking()) as app:
        await app.execute(Request(transfer=ONE))
        assert await happened(app) == ["Requested", "Deposited"]
        (found,) = await app.processes.list()
        assert (found.id, found.state, found.ended) == ("t1", {"transfer": "t1", "deposits": 1}, False)


async def test_a_timeout_fires_when_it_is_due() -> None:
    """Not before; and then it reaches the instance like any event."""
    async with InMemoryApplication(banking()) as app:
        await app.execute(Request(transfer=ONE))
        await app.advance(OVERDUE.total_seconds() - 1)
        assert await happened(app) == ["Requested", "Deposited"]
        await app.advance(1)
        assert await happened(app) == ["Requested", "Deposited", "DepositOverdue", "Refunded"]
        assert await app.processes.list() == []


async def test_an_ended_instance_hears_nothing_more() -> None:
    """Its timeouts are dropped with the end, and later events are ignored."""
    async with InMemoryApplication(banking()) as app:
        await app.execute(Request(transfer=ONE))
        await app.execute(Confirm(transfer=ONE))
        await app.advance(OVERDUE)
        await app.execute(Request(transfer=ONE))
        assert await happened(app) == ["Requested", "Deposited", "Confirmed", "Requested"]


async def test_a_rejection_comes_back() -> None:
    """As `CommandRejected` with the command, the code and the facts, tagged with the instance alone."""
    async with InMemoryApplication(banking()) as app:
        await app.execute(Request(transfer=ONE, to="closed"), correlation_id="c-1")
        assert await happened(app) == ["Requested", "Transferring.DepositRejected", "Refunded"]
        rejected = (await app.facts())[1]
        assert rejected.recorded.tags == ("transfer:t1",)
        assert rejected.context.correlation_id == "c-1"
        assert (await app.facts())[2].context.actor == "process:bank.Transferring"


async def test_a_command_that_fails_is_an_error_in_the_test_that_met_it() -> None:
    """With what it failed with; one that is only not available now is waited for."""
    async with InMemoryApplication(banking()) as app:
        with pytest.raises(
            AssertionError, match=r"bank\.Deposit, sent by bank\.Transferring 't1', fails: Zero.*broken"
        ):
            await app.execute(Request(transfer=ONE, to="broken"))
    down = [True]

    async def refuse(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if isinstance(command, Deposit) and down:
            down.clear()
            raise StoreUnavailable("not now")
        return await proceed(command, context)

    async with InMemoryApplication(banking(), command_middleware=[refuse]) as app:
        await app.execute(Request(transfer=ONE))
        assert await happened(app) == ["Requested"]
        await app.advance(1)
        assert await happened(app) == ["Requested", "Deposited"]


def test_instances_are_helped_on_without_an_event_loop() -> None:
    """`SyncApplication.processes()` has the same calls, which block."""
    with SyncApplication(banking(), store="memory:", clock=ManualClock()) as app:
        receipt = app.execute(Request(transfer=ONE))
        while not (found := app.processes().list()):
            app.projected()
        assert [each.id for each in found] == ["t1"]
        assert app.processes().retry("Transferring", "t1") > receipt.position
        assert app.processes().send("Transferring", "t1", Refund(transfer=ONE, because="asked")) > receipt.position
        assert app.processes().close("Transferring", "t1", reason="by phone") > receipt.position
        shown = app.processes().show("Transferring", "t1")
        assert shown.events[0].type == "bank.Requested"
