"""Ordering as a bounded context. It decides on stock and accounts too, so the three are run together."""

from __future__ import annotations

from diptych import BoundedContext

__all__ = ["ordering"]

ordering = BoundedContext(
    "ordering",
    modules=[
        "shop.ordering.write_side.checkout",
        "shop.ordering.write_side.coupons",
        "shop.ordering.write_side.credit",
        "shop.ordering.write_side.orders",
        "shop.ordering.write_side.payments",
        "shop.ordering.read_side.coupon_status",
        "shop.ordering.read_side.order_status",
        "shop.ordering.process_managers.fulfilment",
    ],
)
