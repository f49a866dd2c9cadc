"""Invoice numbers without gaps: a model that no identity scopes (dcb.events/examples)."""

from __future__ import annotations

from collections.abc import Mapping

from diptych import BoundedContext, Command, DecisionModel, Event, Identity

invoices = BoundedContext("invoices")


class InvoiceId(Identity): ...


class CreateInvoice(Command):
    invoice_data: Mapping[str, str]


class InvoiceCreated(Event):
    invoice: InvoiceId
    invoice_number: int
    invoice_data: Mapping[str, str]


class InvoiceNumbers(DecisionModel):
    last: int = 0

    def evolve(self, event: InvoiceCreated) -> InvoiceNumbers:
        return InvoiceNumbers(last=event.invoice_number)


@invoices.command_handler
def create(command: CreateInvoice, numbers: InvoiceNumbers) -> InvoiceCreated:
    number = numbers.last + 1
    return InvoiceCreated(invoice=InvoiceId(str(number)), invoice_number=number, invoice_data=command.invoice_data)
