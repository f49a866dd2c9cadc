"""Invoices: what an import reads, and the command that each becomes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from diptych import Value
from shop.messages.commands import PlaceOrder, ReturnGoods
from shop.messages.identities import CustomerId, OrderId, ReturnId
from shop.messages.order_line import OrderLine

__all__ = ["RETURN_PREFIX", "Invoice", "Invoices", "command_of"]

RETURN_PREFIX = "C"
"""The number of a credit note begins with it: goods came back."""


class Invoice(Value):
    """One invoice, or credit note. The quantities of its lines count from 1, also where goods came back."""

    number: str
    customer_id: CustomerId
    country: str
    issued_at: datetime
    lines: tuple[OrderLine, ...]


class Invoices(Protocol):
    """Where invoices come from; may be gone through again, and then gives the same ones."""

    @property
    def skipped_lines(self) -> int:
        """Lines that belong to no invoice, or cannot be counted."""
        ...

    def __len__(self) -> int:
        """How many invoices there are."""
        ...

    def __iter__(self) -> Iterator[Invoice]:
        """The invoices, in the order of their first appearance."""
        ...


def command_of(invoice: Invoice) -> PlaceOrder | ReturnGoods:
    """A sale is an order, a credit note a return."""
    if invoice.number.startswith(RETURN_PREFIX):
        return ReturnGoods(
            return_id=ReturnId(invoice.number),
            customer_id=invoice.customer_id,
            country=invoice.country,
            returned_at=invoice.issued_at,
            lines=invoice.lines,
        )
    return PlaceOrder(
        order_id=OrderId(invoice.number),
        customer_id=invoice.customer_id,
        country=invoice.country,
        placed_at=invoice.issued_at,
        lines=invoice.lines,
    )
