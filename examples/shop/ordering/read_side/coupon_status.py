"""How often a coupon can still be used."""

from __future__ import annotations

from decimal import Decimal

from diptych import Key, Query, ReadModel, replace
from shop.ordering.context import ordering
from shop.ordering.messages.events import CouponIssued, OrderCancelled, OrderSubmitted
from shop.ordering.messages.identities import CouponId

__all__ = ["CouponStatus", "StatusOfCoupon", "coupon_issued", "coupon_used"]


class CouponStatus(ReadModel):
    """One coupon: what it is worth, and how many orders may still use it."""

    coupon_id: Key[CouponId]
    worth: Decimal
    left: int


class StatusOfCoupon(Query[CouponStatus | None]):
    """One coupon; null where there is none."""

    coupon_id: CouponId


@ordering.projection
def coupon_issued(event: CouponIssued) -> CouponStatus:
    """Every coupon is a row."""
    return CouponStatus(coupon_id=event.coupon_id, worth=event.worth, left=event.uses)


def coupon(event: OrderSubmitted | OrderCancelled) -> tuple[CouponId, ...]:
    """The row of the coupon, where the order has one."""
    return () if event.coupon_id is None else (event.coupon_id,)


@ordering.projection(keys=coupon)
def coupon_used(row: CouponStatus, event: OrderSubmitted | OrderCancelled) -> CouponStatus:
    """One less with an order, one more with its cancellation."""
    return replace(row, left=row.left + (1 if isinstance(event, OrderCancelled) else -1))
