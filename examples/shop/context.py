"""The shop as a bounded context; run it with `diptych run shop:shop`."""

from __future__ import annotations

from diptych import BoundedContext

__all__ = ["shop"]

shop = BoundedContext(
    "shop",
    modules=[
        "shop.write_side.orders",
        "shop.write_side.returns",
        "shop.read_side.country_sales",
        "shop.read_side.customer_orders",
        "shop.read_side.customer_sales",
        "shop.read_side.import_totals",
        "shop.read_side.month_sales",
        "shop.read_side.placed_orders",
        "shop.read_side.product_sales",
        "shop.read_side.products",
    ],
)
