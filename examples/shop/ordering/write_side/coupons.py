"""Coupons, limited in number across all customers: the limit is a model, and so it holds however many orders race."""

from __future__ import annotations

from decimal import Decimal

from diptych import DecisionModel, Rejected, replace
from shop.accounts.write_side import check_amount
from shop.ordering.context import ordering
from shop.ordering.messages.commands import IssueCoupon
from shop.ordering.messages.events import CouponIssued, OrderCancelled, OrderSubmitted
from shop.ordering.messages.identities import CouponId

__all__ = ["Coupon", "discount", "issue_coupon"]


class Coupon(DecisionModel[CouponId]):
    """One coupon: what it is worth, and how many orders may still use it."""

    coupon_id: CouponId
    is_issued: bool = False
    worth: Decimal = Decimal(0)
    left: int = 0

    def evolve(self, event: CouponIssued | OrderSubmitted | OrderCancelled) -> Coupon:
        """An order uses one; its cancellation gives it back."""
        match event:
            case CouponIssued():
                return replace(self, is_issued=True, worth=event.worth, left=event.uses)
            case OrderSubmitted():
                return replace(self, left=self.left - 1)
            case OrderCancelled():
                return replace(self, left=self.left + 1)


@ordering.command_handler
def issue_coupon(command: IssueCoupon, coupon: Coupon) -> CouponIssued:
    """Issue it once."""
    check_amount(command.worth)
    if coupon.is_issued:
        raise Rejected("coupon-exists", coupon_id=command.coupon_id)
    return CouponIssued(coupon_id=command.coupon_id, worth=command.worth, uses=command.uses)


def discount(coupon: Coupon) -> Decimal:
    """What a coupon takes off an order.

    Raises:
        Rejected: "no-such-coupon" or "coupon-used-up".
    """
    if not coupon.is_issued:
        raise Rejected("no-such-coupon", coupon_id=coupon.coupon_id)
    if coupon.left == 0:
        raise Rejected("coupon-used-up", coupon_id=coupon.coupon_id)
    return coupon.worth
