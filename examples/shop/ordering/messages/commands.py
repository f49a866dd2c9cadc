"""What can be asked. `PayOrder`, `ShipOrder`, `RefundOrder` and `CancelOrder` are mostly asked by the process."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from msgspec import Meta

from diptych import Command
from shop.accounts.messages import AccountId
from shop.messages.identities import CustomerId, OrderId
from shop.ordering.messages.identities import CouponId
from shop.stock.messages import Items

__all__ = [
    "COUPONS_MAX",
    "CancelOrder",
    "Checkout",
    "GrantCredit",
    "IssueCoupon",
    "PayOrder",
    "RefundOrder",
    "SettleCredit",
    "ShipOrder",
    "SubmitOrder",
]

COUPONS_MAX = 1_000_000
"""How often one coupon can be used, by all customers together."""


class SubmitOrder(Command):
    """Order goods, to be paid from an account before they are shipped."""

    order_id: OrderId
    customer_id: CustomerId
    account_id: AccountId
    items: Items
    coupon_id: CouponId | None = None


class Checkout(Command):
    """Buy goods on credit: they are reserved and charged at once, or not at all."""

    order_id: OrderId
    customer_id: CustomerId
    items: Items


class PayOrder(Command):
    """Pay an order from an account: by the process, or sooner, by the customer, from any account."""

    order_id: OrderId
    account_id: AccountId


class ShipOrder(Command):
    """Send the goods of an order."""

    order_id: OrderId


class RefundOrder(Command):
    """Give back what an order was paid with."""

    order_id: OrderId


class CancelOrder(Command):
    """Give up an order that is not paid."""

    order_id: OrderId
    because: str


class IssueCoupon(Command):
    """Give out a coupon that may be used so often, by all customers together."""

    coupon_id: CouponId
    worth: Decimal
    uses: Annotated[int, Meta(ge=1, le=COUPONS_MAX)]


class GrantCredit(Command):
    """Let a customer owe as much as this."""

    customer_id: CustomerId
    limit: Decimal


class SettleCredit(Command):
    """Note what a customer has paid of what they owe."""

    customer_id: CustomerId
    amount: Decimal
