"""The language of the accounts. Payments are decided by `ordering`, and are facts about an account all the same."""

from __future__ import annotations

from decimal import Decimal

from diptych import Command, Event, Identity
from shop.messages.identities import CustomerId, OrderId

__all__ = [
    "AccountId",
    "AccountOpened",
    "DepositMoney",
    "MoneyDeposited",
    "MoneyTransferred",
    "OpenAccount",
    "PaymentRefunded",
    "PaymentTaken",
    "TransferMoney",
]


class AccountId(Identity):
    """One account."""


class OpenAccount(Command):
    """Open an account for a customer; they may have several."""

    account_id: AccountId
    customer_id: CustomerId


class DepositMoney(Command):
    """Pay money in."""

    account_id: AccountId
    amount: Decimal


class TransferMoney(Command):
    """Move money from one account to another."""

    source: AccountId
    target: AccountId
    amount: Decimal


class AccountOpened(Event):
    """There is an account, with nothing in it."""

    account_id: AccountId
    customer_id: CustomerId


class MoneyDeposited(Event):
    """Money was paid in."""

    account_id: AccountId
    amount: Decimal


class MoneyTransferred(Event):
    """Money went from one account to another: one fact about both."""

    source: AccountId
    target: AccountId
    amount: Decimal


class PaymentTaken(Event, stored_as="accounts.PaymentTaken"):
    """An order was paid from an account."""

    account_id: AccountId
    order_id: OrderId
    amount: Decimal


class PaymentRefunded(Event, stored_as="accounts.PaymentRefunded"):
    """What an order was paid with is back in the account."""

    account_id: AccountId
    order_id: OrderId
    amount: Decimal
