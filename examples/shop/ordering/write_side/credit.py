"""What customers may owe."""

from __future__ import annotations

from decimal import Decimal

from diptych import DecisionModel, Rejected, replace
from shop.accounts.write_side import check_amount
from shop.messages.identities import CustomerId
from shop.ordering.context import ordering
from shop.ordering.messages.commands import GrantCredit, SettleCredit
from shop.ordering.messages.events import BoughtOnCredit, CreditGranted, CreditSettled, OrderCancelled

__all__ = ["CREDIT_EXCEEDED", "Credit", "check_credit", "grant_credit", "settle_credit"]

CREDIT_EXCEEDED = "credit-exceeded"
"""The code of a refusal to let a customer owe more."""


class Credit(DecisionModel[CustomerId]):
    """What one customer may owe, and does."""

    limit: Decimal = Decimal(0)
    owed: Decimal = Decimal(0)

    def evolve(self, event: CreditGranted | BoughtOnCredit | CreditSettled | OrderCancelled) -> Credit:
        """More with what is bought; less with what is paid, or cancelled."""
        match event:
            case CreditGranted():
                return replace(self, limit=event.limit)
            case BoughtOnCredit():
                return replace(self, owed=self.owed + event.total)
            case CreditSettled():
                return replace(self, owed=self.owed - event.amount)
            case OrderCancelled():
                return replace(self, owed=self.owed - event.credit)


@ordering.command_handler
def grant_credit(command: GrantCredit) -> CreditGranted:
    """A lower limit than what is owed only means that nothing more is bought."""
    check_amount(command.limit)
    return CreditGranted(customer_id=command.customer_id, limit=command.limit)


@ordering.command_handler
def settle_credit(command: SettleCredit, credit: Credit) -> CreditSettled:
    """Nobody pays more than they owe."""
    check_amount(command.amount)
    if command.amount > credit.owed:
        raise Rejected("more-than-owed", owed=credit.owed)
    return CreditSettled(customer_id=command.customer_id, amount=command.amount)


def check_credit(credit: Credit, total: Decimal) -> None:
    """Refuse to let a customer owe more than they may.

    Raises:
        Rejected: "credit-exceeded".
    """
    if credit.owed + total > credit.limit:
        raise Rejected(CREDIT_EXCEEDED, limit=credit.limit, owed=credit.owed, total=total)
