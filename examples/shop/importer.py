"""Imports invoices: each becomes a command under its own number, so that an import can be killed and run again.

A number that was imported before is not decided again; it has the outcome that it had (G4). So a return that was
refused stays refused, though the customer may have bought more since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeAlias

from diptych import Application, Rejected
from shop.invoice import Invoice, command_of
from shop.messages.identities import CustomerId
from shop.write_side.returns import MORE_THAN_BOUGHT

__all__ = ["INVOICES_AT_ONCE_MAX", "Imported", "import_invoices"]

INVOICES_AT_ONCE_MAX = 256
"""Invoices under way at once: those of one customer one after the other, those of different customers side by side."""

Imported: TypeAlias = Callable[[int], None]
"""Told how many invoices have their outcome, after each."""


async def import_invoices(app: Application, invoices: Iterable[Invoice], imported: Imported) -> int:
    """Send every invoice to the shop; for one customer, in the order given.

    Returns:
        How many there were, the refused ones included.

    Raises:
        Unavailable: the store cannot be reached; run it again, what was done is not done twice.
        Rejected: an order of the same number was placed otherwise than by an import.
        CommandIdReused: another invoice was imported under the same number before.
    """
    run = _Import(app, imported)
    try:
        async with asyncio.TaskGroup() as tasks:
            for invoice in invoices:
                await run.start(invoice, tasks)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # the others failed for the same reason, or were cancelled for it
    return run.done


class _Import:
    """One import under way."""

    def __init__(self, app: Application, imported: Imported) -> None:
        self.done = 0
        self._app = app
        self._imported = imported
        self._slots = asyncio.Semaphore(INVOICES_AT_ONCE_MAX)
        self._last: dict[CustomerId, asyncio.Task[None]] = {}

    async def start(self, invoice: Invoice, tasks: asyncio.TaskGroup) -> None:
        """Let the invoice follow its customer's last one, once there is a slot."""
        await self._slots.acquire()
        before = self._last.get(invoice.customer_id)
        self._last[invoice.customer_id] = tasks.create_task(self._send(invoice, before))

    async def _send(self, invoice: Invoice, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        try:
            await self._app.execute(command_of(invoice), command_id=invoice.number)
        except Rejected as no:
            if no.code != MORE_THAN_BOUGHT:  # which is an outcome as good as another: the shop counts it itself
                raise
        self._slots.release()
        if self._last[invoice.customer_id] is asyncio.current_task():
            del self._last[invoice.customer_id]
        self.done += 1
        self._imported(self.done)
