"""Accounts as a bounded context."""

from __future__ import annotations

from diptych import BoundedContext

__all__ = ["accounts"]

accounts = BoundedContext("accounts", modules=["shop.accounts.write_side", "shop.accounts.read_side"])
