"""Stock as a bounded context."""

from __future__ import annotations

from diptych import BoundedContext

__all__ = ["stock"]

stock = BoundedContext("stock", modules=["shop.stock.write_side", "shop.stock.read_side"])
