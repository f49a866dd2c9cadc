"""The identities of the shop. An event field that holds one tags the event with it, `order:536365`."""

from __future__ import annotations

from diptych import Identity

__all__ = ["CustomerId", "OrderId", "ReturnId", "Sku"]


class CustomerId(Identity):
    """Who buys."""


class OrderId(Identity):
    """One order: the number of its invoice."""


class ReturnId(Identity):
    """One return of goods: the number of its credit note."""


class Sku(Identity):
    """One product, as the stock keeps it."""
