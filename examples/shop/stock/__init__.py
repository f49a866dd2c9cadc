"""Stock: what is on the shelves, what of it is promised to orders, and what it costs."""

from shop.stock.context import stock

__all__ = ["stock"]
