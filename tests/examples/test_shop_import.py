"""The shop imports: one customer's invoices in order, different customers side by side, each invoice once."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from diptych import Application, Command, CommandContext, Receipt, Rejected
from diptych.errors import CommandIdReused
from diptych.write_side.command_bus import NextCommand
from shop import shop
from shop.importer import INVOICES_AT_ONCE_MAX, import_invoices
from shop.invoice import Invoice, command_of
from shop.messages.commands import PlaceOrder, ReturnGoods
from shop.messages.identities import CustomerId, Sku
from shop.messages.order_line import OrderLine
from shop.read_side.import_totals import ImportSummary

pytestmark = pytest.mark.anyio

WAIT_S = 20
"""How long a test waits for what must come."""


def invoice(number: str, customer: str = "1", quantity: int = 1) -> Invoice:
    return Invoice(
        number=number,
        customer_id=CustomerId(customer),
        country="France",
        issued_at=datetime(2011, 1, 10, 12, tzinfo=UTC),
        lines=(OrderLine(sku=Sku("A"), description="TEAPOT", quantity=quantity, unit_price=Decimal("1.50")),),
    )


class Watch:
    """A middleware that sees which commands are under way, and holds them until so many are."""

    def __init__(self, holds: int = 0) -> None:
        self.begun: defaultdict[str, list[str]] = defaultdict(list)
        self.under_way: Counter[str] = Counter()
        self.most = 0
        self.most_of_one = 0
        self._holds = holds
        self._enough = asyncio.Event()

    async def __call__(self, command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        assert isinstance(command, PlaceOrder | ReturnGoods)
        customer = command.customer_id
        self.begun[customer].append(context.command_id)
        self.under_way[customer] += 1
        self.most = max(self.most, self.under_way.total())
        self.most_of_one = max(self.most_of_one, self.under_way[customer])
        if self.under_way.total() >= self._holds:
            self._enough.set()
        await self._enough.wait()
        try:
            return await proceed(command, context)
        finally:
            self.under_way[customer] -= 1


async def imported(invoices: Iterable[Invoice], watch: Watch) -> list[int]:
    done: list[int] = []
    async with Application(shop, store="memory:", command_middleware=[watch]) as app, asyncio.timeout(WAIT_S):
        assert await import_invoices(app, invoices, done.append) == len(done)
    return done


async def test_commands_of_one_customer_run_one_after_the_other() -> None:
    """In the order of their invoices, while those of other customers run."""
    invoices = [invoice(f"{number}", customer=f"{number % 3}") for number in range(60)]
    watch = Watch(holds=3)
    assert await imported(invoices, watch) == list(range(1, 61))
    assert watch.begun == {f"{rest}": [f"{number}" for number in range(rest, 60, 3)] for rest in range(3)}
    assert (watch.most, watch.most_of_one) == (3, 1)


async def test_as_many_customers_run_side_by_side_as_the_limit_says() -> None:
    """The import fills the limit, and never goes past it."""
    watch = Watch(holds=INVOICES_AT_ONCE_MAX)
    invoices = [invoice(f"{number}", customer=f"{number}") for number in range(INVOICES_AT_ONCE_MAX + 50)]
    assert len(await imported(invoices, watch)) == INVOICES_AT_ONCE_MAX + 50
    assert watch.most == INVOICES_AT_ONCE_MAX


async def test_an_import_again_changes_nothing(store_url: str) -> None:
    """Orders are not placed twice, and what was refused stays refused, though it was bought since."""
    invoices = [invoice("C1"), invoice("2", quantity=5), invoice("C3"), invoice("4", customer="2")]
    async with Application(shop, store=store_url) as app:
        seen = []
        for _ in range(2):
            assert await import_invoices(app, invoices, lambda done: None) == 4
            seen.append(((await app.status()).head, await app.query(ImportSummary(), freshness="latest")))
    assert seen[0] == seen[1]
    assert seen[0][0] == 4
    assert (seen[0][1].orders, seen[0][1].returns_accepted, seen[0][1].returns_rejected) == (2, 1, 1)


async def test_another_invoice_under_the_same_number_ends_the_import() -> None:
    """It is told, not taken for the one that was imported before."""
    async with Application(shop, store="memory:") as app, asyncio.timeout(WAIT_S):
        await import_invoices(app, [invoice("1")], lambda done: None)
        with pytest.raises(CommandIdReused):
            await import_invoices(app, [invoice("1", quantity=2), invoice("2")], lambda done: None)


async def test_a_refused_order_ends_the_import() -> None:
    """Only a return can be refused as a matter of course: anything else would be lost in silence."""
    async with Application(shop, store="memory:") as app, asyncio.timeout(WAIT_S):
        await app.execute(command_of(invoice("1")))
        with pytest.raises(Rejected, match="order-exists"):
            await import_invoices(app, [invoice("1")], lambda done: None)


async def test_an_error_of_the_source_ends_the_import() -> None:
    """It comes out as it is, also with commands under way and more customers than places."""

    def failing() -> Iterable[Invoice]:
        yield from [invoice(f"{number}", customer=f"{number}") for number in range(INVOICES_AT_ONCE_MAX + 1)]
        raise ValueError("no more")

    async with Application(shop, store="memory:") as app, asyncio.timeout(WAIT_S):
        with pytest.raises(ValueError, match="no more"):
            await import_invoices(app, failing(), lambda done: None)
