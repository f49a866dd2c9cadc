"""No account pays what it does not hold; a transfer is decided on both of its accounts at once."""

from __future__ import annotations

from decimal import Decimal

from diptych import DecisionModel, Rejected, replace
from shop.accounts.context import accounts
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
from shop.messages.order_line import is_price

__all__ = [
    "INSUFFICIENT_FUNDS",
    "Account",
    "check_amount",
    "check_open",
    "check_pays",
    "deposit_money",
    "open_account",
    "transfer_money",
]

INSUFFICIENT_FUNDS = "insufficient-funds"
"""The code of a refusal that may be none tomorrow."""


class Account(DecisionModel[AccountId]):
    """What one account holds."""

    account_id: AccountId
    is_open: bool = False
    balance: Decimal = Decimal(0)

    def evolve(
        self, event: AccountOpened | MoneyDeposited | MoneyTransferred | PaymentTaken | PaymentRefunded
    ) -> Account:
        """Money comes and goes. Of a transfer, the account is one end or the other."""
        match event:
            case AccountOpened():
                return replace(self, is_open=True)
            case MoneyDeposited() | PaymentRefunded():
                return replace(self, balance=self.balance + event.amount)
            case PaymentTaken():
                return replace(self, balance=self.balance - event.amount)
            case MoneyTransferred():
                sign = 1 if event.target == self.account_id else -1
                return replace(self, balance=self.balance + sign * event.amount)


@accounts.command_handler
def open_account(command: OpenAccount, account: Account) -> AccountOpened:
    """Open it once."""
    if account.is_open:
        raise Rejected("account-exists", account_id=command.account_id)
    return AccountOpened(account_id=command.account_id, customer_id=command.customer_id)


@accounts.command_handler
def deposit_money(command: DepositMoney, account: Account) -> MoneyDeposited:
    """Take the money, into an account that there is."""
    check_amount(command.amount)
    check_open(account)
    return MoneyDeposited(account_id=command.account_id, amount=command.amount)


@accounts.command_handler
def transfer_money(command: TransferMoney, source: Account, target: Account) -> MoneyTransferred:
    """Move the money if the source holds it. Two models of one type: each is found by its parameter's name."""
    if command.source == command.target:
        raise Rejected("same-account", account_id=command.source)
    check_amount(command.amount)
    check_open(target)
    check_pays(source, command.amount)
    return MoneyTransferred(source=command.source, target=command.target, amount=command.amount)


def check_amount(amount: Decimal) -> None:
    """Refuse what is no amount of money, or none at all.

    Raises:
        Rejected: "no-amount".
    """
    if not (is_price(amount) and amount > 0):
        raise Rejected("no-amount", amount=str(amount))


def check_open(account: Account) -> None:
    """Refuse what is no account.

    Raises:
        Rejected: "no-such-account".
    """
    if not account.is_open:
        raise Rejected("no-such-account", account_id=account.account_id)


def check_pays(account: Account, amount: Decimal) -> None:
    """Refuse to take what an account does not hold.

    Raises:
        Rejected: "no-such-account" or "insufficient-funds".
    """
    check_open(account)
    if account.balance < amount:
        raise Rejected(INSUFFICIENT_FUNDS, account_id=account.account_id, missing=amount - account.balance)
