"""The example shop: orders and returns on the write side, what was sold on the read side. README.md is the guide."""

from shop.context import shop

__all__ = ["shop"]
