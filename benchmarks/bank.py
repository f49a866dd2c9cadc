"""The domain that is measured: accounts that are credited, two read models, one query.

Read models are folded together (`bank`), or one of them alone, whole or in slices that two processes can share.
"""

from __future__ import annotations

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Key, Query, ReadModel, Rejected, replace

bank = BoundedContext("bank")
write_side_only = BoundedContext("bank")

EARLIER_EVENTS = 10
"""Events of an account before the command that is measured: callers go to a new account after as many."""


class AccountId(Identity): ...


class Credit(Command):
    account: AccountId
    amount: int


class Credited(Event):
    account: AccountId
    amount: int


class Account(DecisionModel[AccountId]):
    balance: int = 0
    entries: int = 0

    def evolve(self, event: Credited) -> Account:
        return Account(balance=self.balance + event.amount, entries=self.entries + 1)


@bank.command_handler
@write_side_only.command_handler
def credit(command: Credit, account: Account) -> Credited:
    if account.balance < 0:
        raise Rejected("closed")
    return Credited(account=command.account, amount=command.amount)


class Balance(ReadModel):
    account: Key[AccountId]
    balance: int = 0


class Activity(ReadModel):
    account: Key[AccountId]
    entries: int = 0
    largest: int = 0


def balance(row: Balance, event: Credited) -> Balance:
    return replace(row, balance=row.balance + event.amount)


def activity(row: Activity, event: Credited) -> Activity:
    return replace(row, entries=row.entries + 1, largest=max(row.largest, event.amount))


bank.projection(balance)
bank.projection(activity)

one_read_model = BoundedContext("bank")
one_read_model.projection(balance)

in_two_slices = BoundedContext("bank")
in_two_slices.projection(partitions=2)(balance)


class BalanceOf(Query[Balance | None]):
    account: AccountId
