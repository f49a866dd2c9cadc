"""What accounts hold."""

from __future__ import annotations

from decimal import Decimal

from diptych import Key, Query, ReadModel, replace
from shop.accounts.context import accounts
from shop.accounts.messages import (
    AccountId,
    AccountOpened,
    MoneyDeposited,
    MoneyTransferred,
    PaymentRefunded,
    PaymentTaken,
)
from shop.messages.identities import CustomerId

__all__ = ["AccountBalance", "BalanceOf", "account_balance", "opened_account", "transferred"]


class AccountBalance(ReadModel):
    """One account, whose it is, and what it holds."""

    account_id: Key[AccountId]
    customer_id: CustomerId
    balance: Decimal = Decimal(0)


class BalanceOf(Query[AccountBalance | None]):
    """One account; null where there is none."""

    account_id: AccountId


@accounts.projection
def opened_account(event: AccountOpened) -> AccountBalance:
    """Every account is a row, empty at first."""
    return AccountBalance(account_id=event.account_id, customer_id=event.customer_id)


@accounts.projection
def account_balance(row: AccountBalance, event: MoneyDeposited | PaymentTaken | PaymentRefunded) -> AccountBalance:
    """What concerns one account."""
    sign = -1 if isinstance(event, PaymentTaken) else 1
    return replace(row, balance=row.balance + sign * event.amount)


def both_accounts(event: MoneyTransferred) -> tuple[AccountId, AccountId]:
    """The rows that one transfer changes."""
    return event.source, event.target


@accounts.projection(keys=both_accounts)
def transferred(row: AccountBalance, event: MoneyTransferred) -> AccountBalance:
    """Less in the one row, more in the other."""
    sign = 1 if event.target == row.account_id else -1
    return replace(row, balance=row.balance + sign * event.amount)
