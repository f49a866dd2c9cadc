"""A bank with read models that can be inline, for tests; its balances choke on amounts that a test names."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from diptych import BoundedContext, Command, Event, EventContext, ExpiresAt, Identity, Key, Query, ReadModel, replace

__all__ = ["CHOKES", "AccountId", "Balance", "BalanceOf", "Late", "LateOf", "Paid", "Pay", "PayAll", "Recent", "bank"]

CHOKES = set[int]()
"""Amounts that the balances cannot take."""


class AccountId(Identity): ...


class Pay(Command):
    account: AccountId
    cents: int


class PayAll(Command):
    account: AccountId
    times: int


class Paid(Event):
    account: AccountId
    cents: int


class Balance(ReadModel):
    account: Key[AccountId]
    cents: int = 0
    payments: int = 0


class Late(ReadModel):
    account: Key[AccountId]
    payments: int = 0


class Recent(ReadModel):
    account: Key[AccountId]
    until: ExpiresAt[datetime]


class BalanceOf(Query[Balance | None]):
    account: AccountId


class LateOf(Query[Late | None]):
    account: AccountId


def check(cents: int) -> int:
    if cents in CHOKES:
        raise ValueError("unlucky")
    return cents


def bank(*, version: int = 1, partitions: int = 1) -> BoundedContext:
    """The bank, fresh for each test; whoever gives another version has changed the fold of the balances."""
    context = BoundedContext("bank")

    @context.command_handler
    def pay(command: Pay) -> Paid:
        return Paid(account=command.account, cents=command.cents)

    @context.command_handler
    def pay_all(command: PayAll) -> Iterable[Paid]:
        return [Paid(account=command.account, cents=1) for _ in range(command.times)]

    @context.projection(version=version, partitions=partitions)
    def balance(row: Balance, event: Paid) -> Balance:
        return replace(row, cents=row.cents + check(event.cents), payments=row.payments + 1)

    @context.projection
    def late(row: Late, event: Paid) -> Late:
        return replace(row, payments=row.payments + 1)

    @context.projection
    def recent(event: Paid, context: EventContext) -> Recent:
        return Recent(account=event.account, until=context.recorded_at)

    return context
