"""Fulfilment: reserve, pay, ship; and what becomes of an order where one of them fails.

Its policies are plain code: how long a customer has for paying, when an account is asked again, what is undone after
which refusal. The process decides nothing that others rely on: whether an order may still be paid or cancelled is for
the handlers of those commands to say, and where it asks too late it is refused and goes on.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from diptych import CommandRejected, ProcessManager, Reaction, replace
from shop.accounts.messages import AccountId, PaymentTaken
from shop.accounts.write_side import INSUFFICIENT_FUNDS
from shop.messages.identities import OrderId
from shop.ordering.context import ordering
from shop.ordering.messages.commands import CancelOrder, PayOrder, RefundOrder, ShipOrder
from shop.ordering.messages.events import (
    BoughtOnCredit,
    OrderCancelled,
    OrderSubmitted,
    PaymentOverdue,
    PaymentRetryDue,
)
from shop.stock.messages import GoodsReserved, GoodsShipped, ReleaseGoods, ReserveGoods

__all__ = ["OVERDUE", "PAYMENT_RETRY_AFTER", "PAYMENT_WITHIN", "Fulfilment"]

PAYMENT_WITHIN = timedelta(days=3)
"""For how long goods are reserved for an order that is not paid."""
PAYMENT_RETRY_AFTER = timedelta(hours=20)
"""How long after an account was found short it is asked again. The deadline bounds how often."""
OVERDUE = "payment-overdue"
"""Why an order is cancelled whose time for paying is over."""

Progress: TypeAlias = OrderSubmitted | BoughtOnCredit | GoodsReserved | PaymentTaken | GoodsShipped | OrderCancelled
"""What happens to an order."""
Due: TypeAlias = PaymentRetryDue | PaymentOverdue
"""What the process has set itself to hear."""
Refusal: TypeAlias = (
    CommandRejected[ReserveGoods]
    | CommandRejected[PayOrder]
    | CommandRejected[ShipOrder]
    | CommandRejected[CancelOrder]
)
"""What it has asked for, and does not get. Releasing and refunding are never refused, so nobody waits for that."""


@ordering.process_manager(starts=[OrderSubmitted, BoughtOnCredit])
class Fulfilment(ProcessManager[OrderId]):
    """One order on its way.

    Attributes:
        account_id: the account that is to pay; None where the order was bought on credit.
        is_settled: whether it is paid, or owed.
    """

    order_id: OrderId
    account_id: AccountId | None = None
    is_settled: bool = False

    def react(self, event: Progress | Due | Refusal) -> Reaction[Fulfilment]:
        """What is to be done next."""
        match event:
            case OrderSubmitted(account_id=account_id, items=items):
                reserve = ReserveGoods(order_id=self.order_id, items=items)
                return Reaction(replace(self, account_id=account_id), [reserve])
            case BoughtOnCredit():
                return Reaction(replace(self, is_settled=True))
            case PaymentTaken():
                return Reaction(replace(self, is_settled=True), [ShipOrder(order_id=self.order_id)])
            case GoodsReserved() if self.is_settled:
                return Reaction(self, [ShipOrder(order_id=self.order_id)])
            case GoodsReserved():
                overdue = PaymentOverdue(order_id=self.order_id)
                return Reaction(self, self._pay(), [(overdue, PAYMENT_WITHIN)])
            case GoodsShipped():
                return Reaction(self, ended=True)
            case OrderCancelled():
                return Reaction(self, [ReleaseGoods(order_id=self.order_id)], ended=True)
            case PaymentRetryDue() | PaymentOverdue():
                return self._due(event)
            case CommandRejected():
                return self._refused(event)

    def _due(self, timeout: Due) -> Reaction[Fulfilment]:
        """Ask again, or give up. A timeout is never called off: the state says whether it still matters."""
        if self.is_settled:
            return Reaction(self)
        return Reaction(self, self._pay() if isinstance(timeout, PaymentRetryDue) else [self._cancel(OVERDUE)])

    def _refused(self, refusal: Refusal) -> Reaction[Fulfilment]:
        """Ask again, undo what was done, or leave it: somebody else was first."""
        match refusal.command:
            case PayOrder() if self.is_settled:
                return Reaction(self)  # the customer has paid meanwhile, by hand
            case PayOrder() if refusal.code == INSUFFICIENT_FUNDS:
                return Reaction(self, (), [(PaymentRetryDue(order_id=self.order_id), PAYMENT_RETRY_AFTER)])
            case ReserveGoods() | PayOrder():
                return Reaction(self, [self._cancel(refusal.code)])
            case ShipOrder():
                return Reaction(self, [RefundOrder(order_id=self.order_id), self._cancel(refusal.code)])
            case CancelOrder():
                return Reaction(self)  # it was paid before the deadline was noticed: it goes on

    def _pay(self) -> list[PayOrder]:
        return [] if self.account_id is None else [PayOrder(order_id=self.order_id, account_id=self.account_id)]

    def _cancel(self, because: str) -> CancelOrder:
        return CancelOrder(order_id=self.order_id, because=because)
