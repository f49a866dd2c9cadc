"""The demo: an import from end to end, the shop's answers to it, and the check that they are what the history says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, TypeAlias

from diptych import Application, Value
from shop.context import shop
from shop.importer import import_invoices
from shop.invoice import Invoices
from shop.invoice_file import InvoiceFile
from shop.messages.identities import CustomerId, Sku
from shop.read_side.country_sales import CountrySales, SalesByCountry
from shop.read_side.customer_sales import CustomerSales, TopCustomers
from shop.read_side.import_totals import ImportSummary
from shop.read_side.month_sales import MonthSales, SalesByMonth
from shop.read_side.product_sales import ProductSales, TopProducts
from shop.workload import ORDERS_DEFAULT, SEED_DEFAULT, Workload

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DemoResult", "Progress", "Sales", "TopCustomer", "TopProduct", "demonstrate", "invoices_from", "run_demo"]

TOP = 20
"""How many products and customers the result shows."""

Progress: TypeAlias = Callable[[int, int | None], None]
"""Told how many commands have their outcome, and of how many; None where that is not known."""

_log = logging.getLogger("shop")


class Sales(Value):
    """What was sold in one country or month, and what came back."""

    orders: int
    units: int
    revenue: Decimal
    returned_units: int
    refunds: Decimal


class TopProduct(Value):
    """A product that sells."""

    sku: Sku
    units: int
    revenue: Decimal
    returned_units: int


class TopCustomer(Value):
    """A customer who buys."""

    customer_id: CustomerId
    orders: int
    revenue: Decimal
    returns: int
    refunds: Decimal


class DemoResult(Value):
    """What the demo found; as JSON, money is a string.

    Attributes:
        customers: who has bought something.
        products: what was bought at least once.
        skipped_lines: rows of the input that do not count.
        sales_by_country: ordered by name.
        sales_by_month: by "2011-02", in order.
        top_products: by units sold, 20 at most.
        top_customers: by revenue, 20 at most.
        commands_per_s: commands with their outcome, per second of the import; those that were done before count too.
        events_per_s: events made, per second until every read model showed them; 0 where all was done before.
        verified: whether every read model equals a fresh fold of the history, row by row.
    """

    orders: int
    returns_accepted: int
    returns_rejected: int
    customers: int
    products: int
    skipped_lines: int
    sales_by_country: dict[str, Sales]
    sales_by_month: dict[str, Sales]
    top_products: list[TopProduct]
    top_customers: list[TopCustomer]
    commands_per_s: float
    events_per_s: float
    verified: bool


async def run_demo(
    *,
    store: str,
    read_store: str | None = None,
    input: str | Path | None = None,  # noqa: A002  # what the command line calls it
    orders: int = ORDERS_DEFAULT,
    seed: int = SEED_DEFAULT,
    on_progress: Progress | None = None,
) -> DemoResult:
    """Open the shop on these stores, import, and show what came of it.

    Args:
        store: the event store's URL.
        read_store: the read models' URL; by default beside the event store.
        input: a CSV file, plain or gzipped; without, a workload is made up.
        orders: how many orders the made-up workload has.
        seed: which made-up workload.
        on_progress: told of every command.

    Raises:
        InvoiceFileError: the file cannot be read; nothing was imported.
    """
    invoices = await invoices_from(input, orders=orders, seed=seed)
    async with Application(shop, store=store, read_store=read_store) as app:
        return await demonstrate(app, invoices, on_progress)


async def invoices_from(path: str | Path | None, *, orders: int = ORDERS_DEFAULT, seed: int = SEED_DEFAULT) -> Invoices:
    """The invoices of a file; without one, of the made-up workload.

    Raises:
        InvoiceFileError: the file cannot be read.
    """
    return Workload(orders, seed) if path is None else await asyncio.to_thread(InvoiceFile, path)


async def demonstrate(app: Application, invoices: Invoices, on_progress: Progress | None = None) -> DemoResult:
    """Import into an open application, ask it all there is to ask, and check the answers against the history."""
    head_before, began = (await app.status()).head, time.perf_counter()
    done = await import_invoices(app, invoices, _counted(on_progress, len(invoices)))
    imported = time.perf_counter()
    await app.projected()
    projected = time.perf_counter()
    events = (await app.status()).head - head_before
    summary = await app.query(ImportSummary(), freshness="latest")
    return DemoResult(
        orders=summary.orders,
        returns_accepted=summary.returns_accepted,
        returns_rejected=summary.returns_rejected,
        customers=summary.customers,
        products=summary.products,
        skipped_lines=invoices.skipped_lines,
        sales_by_country={row.country: _sales(row) for row in await app.query(SalesByCountry())},
        sales_by_month={row.month: _sales(row) for row in await app.query(SalesByMonth())},
        top_products=[_top_product(row) for row in await app.query(TopProducts(limit=TOP))],
        top_customers=[_top_customer(row) for row in await app.query(TopCustomers(limit=TOP))],
        commands_per_s=round(done / (imported - began), 1),
        events_per_s=round(events / (projected - began), 1),
        verified=await _verify(app),
    )


def _counted(on_progress: Progress | None, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(done, total) if on_progress is not None else None


async def _verify(app: Application) -> bool:
    """Whether every read model shows all of the history, and equals a fresh fold of it."""
    verified = True
    for projection in (await app.status()).projections:
        if projection.lag_events or projection.blocked or projection.stopped:
            _log.error("%s does not show all of the history: see `diptych status`", projection.name)
            verified = False
        elif not (found := await app.rebuilds.compare(projection.name)).same:
            _log.error("%s differs from a fresh fold: %s", projection.name, found.samples)
            verified = False
    return verified


def _sales(row: CountrySales | MonthSales) -> Sales:
    return Sales(
        orders=row.orders,
        units=row.units,
        revenue=row.revenue,
        returned_units=row.returned_units,
        refunds=row.refunds,
    )


def _top_product(row: ProductSales) -> TopProduct:
    return TopProduct(sku=row.sku, units=row.units, revenue=row.revenue, returned_units=row.returned_units)


def _top_customer(row: CustomerSales) -> TopCustomer:
    return TopCustomer(
        customer_id=row.customer_id,
        orders=row.orders,
        revenue=row.revenue,
        returns=row.returns,
        refunds=row.refunds,
    )
