"""The shop's fulfilment: reserve, pay, ship; its deadline, its retries, and what it undoes."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from diptych import Application, Command, CommandRejected, replace
from diptych.testing import InMemoryApplication, ManualClock, scenario
from shop.accounts.messages import DepositMoney, OpenAccount, PaymentTaken
from shop.accounts.read_side import BalanceOf
from shop.accounts.write_side import INSUFFICIENT_FUNDS
from shop.ordering.messages.commands import (
    CancelOrder,
    Checkout,
    GrantCredit,
    IssueCoupon,
    PayOrder,
    RefundOrder,
    ShipOrder,
)
from shop.ordering.messages.events import BoughtOnCredit, OrderCancelled, PaymentOverdue, PaymentRetryDue
from shop.ordering.process_managers.fulfilment import OVERDUE, PAYMENT_RETRY_AFTER, PAYMENT_WITHIN, Fulfilment
from shop.ordering.read_side.coupon_status import StatusOfCoupon
from shop.ordering.read_side.order_status import OrdersOfCustomer, StatusOfOrder
from shop.stock.messages import GoodsShipped, ReceiveGoods, ReleaseGoods, ReserveGoods, SetPrice
from shop.stock.read_side import StockOf
from shop.stock.write_side import OUT_OF_STOCK
from tests.shop_orders import (
    ADA,
    CONTEXTS,
    COUPON,
    ITEMS,
    LAMP,
    ORDER,
    PURSE,
    RESERVED,
    SAFE,
    SUBMIT,
    SUBMITTED,
    TOTAL,
    at_rest,
    happened,
    opening,
)

BEGUN = scenario(*CONTEXTS).given(SUBMITTED)
WAITING = BEGUN.given(RESERVED)
PAID = PaymentTaken(account_id=PURSE, order_id=ORDER, amount=TOTAL)
PAY = PayOrder(order_id=ORDER, account_id=PURSE)
SHIP = ShipOrder(order_id=ORDER)
RETRY, DEADLINE = PaymentRetryDue(order_id=ORDER), PaymentOverdue(order_id=ORDER)


def refused(command: Command, code: str) -> CommandRejected[Command]:
    return CommandRejected(instance=ORDER, command=command, code=code, facts={})


def cancel(because: str) -> CancelOrder:
    return CancelOrder(order_id=ORDER, because=because)


# ── what it makes of an event ────────────────────────────────────────────────


def test_reserve_then_pay_then_ship() -> None:
    """One after the other; with the reservation, the time for paying begins."""
    first = scenario(*CONTEXTS).when_event(SUBMITTED)
    first.then_commands(ReserveGoods(order_id=ORDER, items=ITEMS)).then_timeouts().then_going_on()
    BEGUN.when_event(RESERVED).then_commands(PAY).then_timeouts((DEADLINE, PAYMENT_WITHIN)).then_going_on()
    paid = WAITING.when_event(PAID).then_commands(SHIP).then_timeouts().then_going_on()
    paid.then_state(Fulfilment(order_id=ORDER, account_id=PURSE, is_settled=True))
    WAITING.given(PAID).when_event(GoodsShipped(order_id=ORDER, items=ITEMS)).then_nothing().then_ended()


def test_what_was_bought_on_credit_is_shipped() -> None:
    """Its goods are reserved already, and there is nothing to be paid."""
    bought = BoughtOnCredit(order_id=ORDER, customer_id=ADA, items=ITEMS, total=TOTAL)
    scenario(*CONTEXTS).when_event(bought).then_nothing().then_going_on()
    scenario(*CONTEXTS).given(bought).when_event(RESERVED).then_commands(SHIP).then_timeouts()


def test_without_goods_the_order_is_cancelled() -> None:
    """The refusal comes back, and is what the customer is told."""
    reserve = ReserveGoods(order_id=ORDER, items=ITEMS)
    BEGUN.when_event(refused(reserve, OUT_OF_STOCK)).then_commands(cancel(OUT_OF_STOCK)).then_going_on()


def test_an_account_that_is_short_is_asked_again_later() -> None:
    """After a while, until it has been paid."""
    short = refused(PAY, INSUFFICIENT_FUNDS)
    WAITING.when_event(short).then_commands().then_timeouts((RETRY, PAYMENT_RETRY_AFTER)).then_going_on()
    WAITING.given(short).when_event(RETRY).then_commands(PAY).then_timeouts()
    WAITING.given(short, PAID).when_event(RETRY).then_nothing()
    WAITING.given(PAID).when_event(short).then_nothing()


def test_an_account_that_is_none_is_not_asked_again() -> None:
    """Another refusal of the payment cancels the order."""
    WAITING.when_event(refused(PAY, "no-such-account")).then_commands(cancel("no-such-account")).then_timeouts()


def test_the_deadline_cancels_what_is_not_paid() -> None:
    """And nothing else. Asked too late, it is refused, and the order goes on."""
    WAITING.when_event(DEADLINE).then_commands(cancel(OVERDUE)).then_going_on()
    WAITING.given(PAID).when_event(DEADLINE).then_nothing().then_going_on()
    WAITING.given(DEADLINE).when_event(refused(cancel(OVERDUE), "not-to-be-cancelled")).then_nothing().then_going_on()


def test_goods_of_a_cancelled_order_are_released() -> None:
    """Whoever cancelled it: the end of the process is the same."""
    cancelled = OrderCancelled(order_id=ORDER, customer_id=ADA, coupon_id=None, credit=Decimal(0), because="any")
    for so_far in BEGUN, WAITING:
        so_far.when_event(cancelled).then_commands(ReleaseGoods(order_id=ORDER)).then_ended()


def test_what_cannot_be_shipped_is_refunded() -> None:
    """Before it is cancelled."""
    not_sent = WAITING.given(PAID).when_event(refused(SHIP, "not-reserved"))
    not_sent.then_commands(RefundOrder(order_id=ORDER), cancel("not-reserved")).then_going_on()


# ── in memory, by the manual clock ───────────────────────────────────────────


@pytest.mark.anyio
async def test_money_that_comes_in_time_is_found_by_a_retry() -> None:
    """The account is short at first; the goods stay reserved meanwhile, and nobody else has to do anything."""
    async with InMemoryApplication(*CONTEXTS) as app:
        for command in (*opening(funds=59), SUBMIT):
            await app.execute(command)
        await app.advance(PAYMENT_RETRY_AFTER)
        status, level = await app.query(StatusOfOrder(order_id=ORDER)), await app.query(StockOf(sku=LAMP))
        assert status is not None
        assert level is not None
        assert (status.status, level.available) == ("reserved", 1)
        await app.execute(DepositMoney(account_id=PURSE, amount=Decimal(1)))
        await app.advance(PAYMENT_RETRY_AFTER)
        assert await app.query(StatusOfOrder(order_id=ORDER)) == replace(status, status="shipped")
        await app.advance(PAYMENT_WITHIN)
        refusals = [fact.event for fact in await app.facts() if isinstance(fact.event, CommandRejected)]
        assert [refusal.code for refusal in refusals] == [INSUFFICIENT_FUNDS] * 2
        assert not any(isinstance(fact.event, PaymentOverdue) for fact in await app.facts())


@pytest.mark.anyio
async def test_a_customer_may_pay_by_hand() -> None:
    """From another account; what the process asks for later does not matter then."""
    async with InMemoryApplication(*CONTEXTS) as app:
        for command in (*opening(funds=1), SUBMIT, OpenAccount(account_id=SAFE, customer_id=ADA)):
            await app.execute(command)
        await app.execute(DepositMoney(account_id=SAFE, amount=TOTAL))
        await app.execute(PayOrder(order_id=ORDER, account_id=SAFE))
        status = await app.query(StatusOfOrder(order_id=ORDER))
        assert status is not None
        assert status.status == "shipped"
        assert await app.processes.list() == []


@pytest.mark.anyio
async def test_a_customer_may_cancel_while_it_is_not_paid() -> None:
    """Goods and coupon are for others again, and no timeout fires."""
    async with InMemoryApplication(*CONTEXTS) as app:
        await app.execute(IssueCoupon(coupon_id=COUPON, worth=Decimal(5), uses=1))
        for command in (*opening(funds=1), replace(SUBMIT, coupon_id=COUPON), cancel("changed-mind")):
            await app.execute(command)
        coupon, level = await app.query(StatusOfCoupon(coupon_id=COUPON)), await app.query(StockOf(sku=LAMP))
        assert coupon is not None
        assert level is not None
        assert (coupon.left, level.available) == (1, 3)
        before = len(await app.facts())
        await app.advance(2 * PAYMENT_WITHIN)
        assert len(await app.facts()) == before


@pytest.mark.anyio
async def test_goods_that_are_gone_when_they_are_paid_are_refunded() -> None:
    """Somebody in the warehouse releases them by hand: the payment is undone, and the order cancelled."""
    async with InMemoryApplication(*CONTEXTS) as app:
        for command in (*opening(funds=59), SUBMIT, ReleaseGoods(order_id=ORDER)):
            await app.execute(command)
        await app.execute(DepositMoney(account_id=PURSE, amount=Decimal(1)))
        await app.advance(PAYMENT_RETRY_AFTER)
        balance, status = await app.query(BalanceOf(account_id=PURSE)), await app.query(StatusOfOrder(order_id=ORDER))
        assert balance is not None
        assert status is not None
        assert (balance.balance, status.status, status.because) == (TOTAL, "cancelled", "not-reserved")
        kinds = [fact.recorded.type for fact in await app.facts()]
        assert kinds[kinds.index("accounts.PaymentTaken") :] == [
            "accounts.PaymentTaken",
            "ordering.Fulfilment.ShipOrderRejected",
            "accounts.PaymentRefunded",
            "ordering.OrderCancelled",
        ]


# ── on every store ───────────────────────────────────────────────────────────


async def left(app: Application) -> tuple[str, str, int, int, Decimal]:
    """How far the order has come, and why no further; what is on the shelf and available; what the account holds."""
    status = await app.query(StatusOfOrder(order_id=ORDER), freshness="latest")
    level = await app.query(StockOf(sku=LAMP), freshness="latest")
    balance = await app.query(BalanceOf(account_id=PURSE), freshness="latest")
    assert status is not None
    assert level is not None
    assert balance is not None
    return status.status, status.because, level.on_hand, level.available, balance.balance


@pytest.mark.anyio
async def test_an_order_is_reserved_paid_and_shipped(store_url: str) -> None:
    """One command of the customer; the process does the rest, and ends."""
    async with Application(*CONTEXTS, store=store_url, clock=ManualClock()) as app:
        for command in opening(funds=100):
            await app.execute(command)
        receipt = await app.execute(SUBMIT)
        await at_rest(app)
        assert await left(app) == ("shipped", "", 1, 1, Decimal(40))
        assert await happened(app, after=receipt.position) == [
            "stock.GoodsReserved",
            "accounts.PaymentTaken",
            "stock.GoodsShipped",
        ]
        assert [instance.ended for instance in await app.processes.list(ended=True)] == [True]
        page = await app.query(OrdersOfCustomer(customer_id=ADA))
        assert [row.order_id for row in page.items] == [ORDER]


@pytest.mark.anyio
async def test_a_checkout_on_credit_is_shipped(store_url: str) -> None:
    """Reserved and charged by its own decision, so the process only ships."""
    async with Application(*CONTEXTS, store=store_url, clock=ManualClock()) as app:
        await app.execute(SetPrice(sku=LAMP, unit_price=Decimal(30)))
        await app.execute(ReceiveGoods(sku=LAMP, quantity=3))
        await app.execute(GrantCredit(customer_id=ADA, limit=Decimal(60)))
        receipt = await app.execute(Checkout(order_id=ORDER, customer_id=ADA, items=ITEMS))
        assert len(receipt.events) == 2
        await at_rest(app)
        assert await happened(app, after=receipt.position) == ["stock.GoodsShipped"]
        assert [instance.ended for instance in await app.processes.list(ended=True)] == [True]


@pytest.mark.anyio
async def test_a_missed_deadline_releases_the_goods_and_cancels_the_order(store_url: str) -> None:
    """The account was asked again for as long as there was time; then everything is as it was before."""
    clock = ManualClock()
    async with Application(*CONTEXTS, store=store_url, clock=clock) as app:
        for command in (*opening(funds=59), SUBMIT):
            await app.execute(command)
        await at_rest(app)
        assert await left(app) == ("reserved", "", 3, 1, Decimal(59))
        for _ in range(PAYMENT_WITHIN // PAYMENT_RETRY_AFTER):
            clock.advance(PAYMENT_RETRY_AFTER)
            await at_rest(app)
        assert await left(app) == ("reserved", "", 3, 1, Decimal(59))
        clock.advance(PAYMENT_WITHIN % PAYMENT_RETRY_AFTER)
        await at_rest(app)
        assert await left(app) == ("cancelled", OVERDUE, 3, 3, Decimal(59))
        history = await happened(app)
        assert history.count("ordering.PaymentRetryDue") == PAYMENT_WITHIN // PAYMENT_RETRY_AFTER == 3
        assert history[-3:] == ["ordering.PaymentOverdue", "ordering.OrderCancelled", "stock.GoodsReleased"]
        clock.advance(PAYMENT_WITHIN + timedelta(days=1))
        await at_rest(app)
        assert await happened(app) == history


@pytest.mark.anyio
async def test_a_rejected_payment_releases_the_goods_and_cancels_the_order(store_url: str) -> None:
    """At once where asking again would not help; the customer is told why."""
    async with Application(*CONTEXTS, store=store_url, clock=ManualClock()) as app:
        for command in opening(funds=100):
            await app.execute(command)
        receipt = await app.execute(replace(SUBMIT, account_id=SAFE))
        await at_rest(app)
        assert await left(app) == ("cancelled", "no-such-account", 3, 3, Decimal(100))
        assert await happened(app, after=receipt.position) == [
            "stock.GoodsReserved",
            "ordering.Fulfilment.PayOrderRejected",
            "ordering.OrderCancelled",
            "stock.GoodsReleased",
        ]
        assert await app.processes.list() == []
