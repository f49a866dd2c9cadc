"""What happened, kept for good.

A coupon is used by the order that names it, and given back by its cancellation; so is credit. There is no event of its
own for either: one fact is folded by every model that it concerns.
"""

from __future__ import annotations

from decimal import Decimal

from diptych import Event, Timeout
from shop.accounts.messages import AccountId
from shop.messages.identities import CustomerId, OrderId
from shop.ordering.messages.identities import CouponId
from shop.stock.messages import Item

__all__ = [
    "BoughtOnCredit",
    "CouponIssued",
    "CreditGranted",
    "CreditSettled",
    "OrderCancelled",
    "OrderSubmitted",
    "PaymentOverdue",
    "PaymentRetryDue",
]


class OrderSubmitted(Event):
    """A customer wants goods, and will pay this for them."""

    order_id: OrderId
    customer_id: CustomerId
    account_id: AccountId
    coupon_id: CouponId | None
    items: tuple[Item, ...]
    total: Decimal


class BoughtOnCredit(Event):
    """A customer has bought goods, and owes this for them."""

    order_id: OrderId
    customer_id: CustomerId
    items: tuple[Item, ...]
    total: Decimal


class OrderCancelled(Event):
    """Nothing comes of an order. Its coupon can be used again, and its credit too."""

    order_id: OrderId
    customer_id: CustomerId
    coupon_id: CouponId | None
    credit: Decimal
    because: str


class CouponIssued(Event):
    """There is a coupon, worth this much off an order, for so many orders."""

    coupon_id: CouponId
    worth: Decimal
    uses: int


class CreditGranted(Event):
    """A customer may owe as much as this."""

    customer_id: CustomerId
    limit: Decimal


class CreditSettled(Event):
    """A customer owes less by this."""

    customer_id: CustomerId
    amount: Decimal


class PaymentRetryDue(Timeout):
    """It is time to ask the account again."""

    order_id: OrderId


class PaymentOverdue(Timeout):
    """The time for paying is over."""

    order_id: OrderId
