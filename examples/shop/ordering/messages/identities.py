"""The identities of ordering, beside those that it shares with the other contexts."""

from __future__ import annotations

from diptych import Identity

__all__ = ["CouponId"]


class CouponId(Identity):
    """One kind of coupon: what a customer types in."""
