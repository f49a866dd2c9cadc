"""Events that one context folds and another publishes, where not both are opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych import Application, BoundedContext, Command, ConfigurationError, DecisionModel, Event, Identity, replace
from tests.postgres_server import new_stores

pytestmark = pytest.mark.anyio


class BillId(Identity): ...


class Pay(Command):
    bill: BillId


class Paid(Event):
    bill: BillId


class NamedPaid(Event, stored_as="cash.NamedPaid"):
    bill: BillId


class Close(Command):
    bill: BillId


class Closed(Event):
    bill: BillId
    payments: int


class Bill(DecisionModel[BillId]):
    payments: int = 0

    def evolve(self, event: Paid | NamedPaid) -> Bill:
        return replace(self, payments=self.payments + 1)


def books() -> BoundedContext:
    """Folds what others publish."""
    context = BoundedContext("books")

    @context.command_handler
    def close(command: Close, bill: Bill) -> Closed:
        return Closed(bill=command.bill, payments=bill.payments)

    return context


def cash(named: bool) -> BoundedContext:
    """Publishes one of them."""
    context = BoundedContext("cash")

    if named:

        @context.command_handler
        def pay_named(command: Pay) -> NamedPaid:
            return NamedPaid(bill=command.bill)

    else:

        @context.command_handler
        def pay(command: Pay) -> Paid:
            return Paid(bill=command.bill)

    return context


@pytest.mark.parametrize("named", [False, True], ids=["by-context", "named"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_g3_who_folds_what_another_context_has_stored_is_told(kind: str, named: bool, tmp_path: Path) -> None:
    """Opened without it, its models would be made of nothing; an event that says whose it is has one name anyway."""
    url = await new_stores() if kind == "postgres" else f"sqlite:{tmp_path}/events.db"
    bill = BillId("1")
    async with Application(books(), cash(named), store=url) as app:
        await app.execute(Pay(bill=bill))
        assert (await app.execute(Close(bill=bill))).events == (Closed(bill=bill, payments=1),)
    alone = Application(books(), store=url)
    if named:
        async with alone as app:
            assert (await app.execute(Close(bill=bill))).events == (Closed(bill=bill, payments=1),)
    else:
        with pytest.raises(ConfigurationError, match=r"'books\.Paid'.*'cash\.Paid' is\. Open the context 'cash'"):
            await alone.open()
