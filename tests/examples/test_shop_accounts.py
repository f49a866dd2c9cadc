"""The shop's accounts: money moves between two of one type, and none is made or lost."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from diptych import Application, Rejected
from diptych.testing import scenario
from shop.accounts import accounts
from shop.accounts.messages import (
    AccountId,
    AccountOpened,
    DepositMoney,
    MoneyDeposited,
    MoneyTransferred,
    OpenAccount,
    PaymentRefunded,
    PaymentTaken,
    TransferMoney,
)
from shop.accounts.read_side import AccountBalance, BalanceOf
from shop.accounts.write_side import INSUFFICIENT_FUNDS
from tests.shop_orders import ADA, ORDER, PURSE, SAFE, at_rest, funded

BOTH = scenario(accounts).given(*funded(100), *funded(5, SAFE))


def transfer(amount: str, source: AccountId = PURSE, target: AccountId = SAFE) -> TransferMoney:
    return TransferMoney(source=source, target=target, amount=Decimal(amount))


def test_an_account_is_opened_once() -> None:
    """And then takes money."""
    opened = AccountOpened(account_id=PURSE, customer_id=ADA)
    scenario(accounts).when(OpenAccount(account_id=PURSE, customer_id=ADA)).then(opened)
    begun = scenario(accounts).given(opened)
    begun.when(OpenAccount(account_id=PURSE, customer_id=ADA)).then_rejected("account-exists")
    deposit = DepositMoney(account_id=PURSE, amount=Decimal(7))
    begun.when(deposit).then(MoneyDeposited(account_id=PURSE, amount=Decimal(7)))
    scenario(accounts).when(deposit).then_rejected("no-such-account", account_id=PURSE)


@pytest.mark.parametrize("amount", ["0", "-1", "1E+30", "0.0000001"])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    """Neither paid in nor moved."""
    BOTH.when(DepositMoney(account_id=PURSE, amount=Decimal(amount))).then_rejected("no-amount")
    BOTH.when(transfer(amount)).then_rejected("no-amount")


def test_money_is_moved_if_it_is_there() -> None:
    """All that the source holds, and no more; what the target holds does not matter."""
    BOTH.when(transfer("100")).then(MoneyTransferred(source=PURSE, target=SAFE, amount=Decimal(100)))
    BOTH.when(transfer("100.01")).then_rejected(INSUFFICIENT_FUNDS, account_id=PURSE, missing=Decimal("0.01"))
    BOTH.when(transfer("6", SAFE, PURSE)).then_rejected(INSUFFICIENT_FUNDS, account_id=SAFE)


def test_what_was_moved_is_in_the_other_account() -> None:
    """One event is folded by both."""
    moved = BOTH.given(MoneyTransferred(source=PURSE, target=SAFE, amount=Decimal(60)))
    moved.when(transfer("41")).then_rejected(INSUFFICIENT_FUNDS, missing=Decimal(1))
    moved.when(transfer("65", SAFE, PURSE)).then(MoneyTransferred(source=SAFE, target=PURSE, amount=Decimal(65)))
    moved.then_row(AccountBalance(account_id=PURSE, customer_id=ADA, balance=Decimal(40)))
    moved.then_row(AccountBalance(account_id=SAFE, customer_id=ADA, balance=Decimal(65)))


def test_both_ends_of_a_transfer_are_accounts() -> None:
    """And not the same one."""
    BOTH.when(transfer("1", PURSE, PURSE)).then_rejected("same-account")
    BOTH.when(transfer("1", PURSE, AccountId("none"))).then_rejected("no-such-account", account_id="none")
    BOTH.when(transfer("1", AccountId("none"), SAFE)).then_rejected("no-such-account", account_id="none")


def test_payments_are_facts_about_an_account() -> None:
    """Whoever decided them."""
    paid = BOTH.given(PaymentTaken(account_id=PURSE, order_id=ORDER, amount=Decimal(90)))
    paid.when(transfer("11")).then_rejected(INSUFFICIENT_FUNDS)
    paid.then_row(AccountBalance(account_id=PURSE, customer_id=ADA, balance=Decimal(10)))
    refunded = paid.given(PaymentRefunded(account_id=PURSE, order_id=ORDER, amount=Decimal(90)))
    refunded.when(transfer("100")).then(MoneyTransferred(source=PURSE, target=SAFE, amount=Decimal(100)))
    refunded.then_row(AccountBalance(account_id=PURSE, customer_id=ADA, balance=Decimal(100)))


@pytest.mark.anyio
async def test_racing_transfers_move_no_more_than_there_is(store_url: str) -> None:
    """In both directions at once: nothing is made or lost, and no account is overdrawn."""
    async with Application(accounts, store=store_url) as app:
        for account in (PURSE, SAFE):
            await app.execute(OpenAccount(account_id=account, customer_id=ADA))
            await app.execute(DepositMoney(account_id=account, amount=Decimal(10)))
        there, back = transfer("4"), transfer("7", SAFE, PURSE)
        outcomes = await asyncio.gather(*(app.execute(each) for each in [there, back] * 5), return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(refused) < len(outcomes)
        assert {refusal.code for refusal in refused if isinstance(refusal, Rejected)} == {INSUFFICIENT_FUNDS}
        await at_rest(app)
        found = [await app.query(BalanceOf(account_id=account)) for account in (PURSE, SAFE)]
        balances = [row.balance for row in found if row is not None]
        assert sum(balances) == Decimal(20)
        assert min(balances) >= 0
        assert await app.query(BalanceOf(account_id=AccountId("none"))) is None
