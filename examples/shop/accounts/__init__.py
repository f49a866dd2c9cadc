"""Accounts: what customers have paid in, and what became of it."""

from shop.accounts.context import accounts

__all__ = ["accounts"]
