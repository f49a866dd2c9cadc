"""Ordering: from an order to its goods on their way, or to everything as it was before."""

from shop.ordering.context import ordering

__all__ = ["ordering"]
