"""What the demo did, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from diptych.entrypoints.cli import screen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from rich.table import Table

    from shop.demo import DemoResult, Sales

__all__ = ["show"]

TOP_SHOWN = 10
"""Products and customers in a table; --json has all that the shop answers with."""


def show(result: DemoResult, *, source: str, kept: str | None) -> None:
    """Print it on stdout.

    Args:
        result: what the shop found.
        source: what was imported.
        kept: the event store's URL, where it is kept.
    """
    output = screen.output()
    for table in (
        _sales("Sales by country", "country", result.sales_by_country),
        _sales("Sales by month", "month", result.sales_by_month),
        _products(result),
        _customers(result),
    ):
        output.print(table)
        output.print()
    output.print(_counts(result, source), soft_wrap=True)
    output.print(_speed(result))
    output.print(_verified(result))
    output.print(Text(f"store        {kept or 'removed; --data DIR keeps it'}", style="dim"), soft_wrap=True)


def _sales(title: str, key: str, sales: Mapping[str, Sales]) -> Table:
    table = screen.table(title, key, "orders", "units", "revenue", "returned", "refunds", numbers=5)
    for name, row in sales.items():
        table.add_row(
            name,
            screen.count(row.orders),
            screen.count(row.units),
            _money(row.revenue),
            screen.count(row.returned_units),
            _money(row.refunds),
        )
    return table


def _products(result: DemoResult) -> Table:
    table = screen.table("Top products", "sku", "units", "revenue", "returned", numbers=3)
    for row in result.top_products[:TOP_SHOWN]:
        table.add_row(row.sku, screen.count(row.units), _money(row.revenue), screen.count(row.returned_units))
    return table


def _customers(result: DemoResult) -> Table:
    table = screen.table("Top customers", "customer", "orders", "revenue", "returns", "refunds", numbers=4)
    for row in result.top_customers[:TOP_SHOWN]:
        table.add_row(
            row.customer_id,
            screen.count(row.orders),
            _money(row.revenue),
            screen.count(row.returns),
            _money(row.refunds),
        )
    return table


def _money(amount: Decimal) -> str:
    return f"{amount:,.2f}" if amount == round(amount, 2) else f"{amount:,}"


def _counts(result: DemoResult, source: str) -> Text:
    count = screen.count
    skipped = f", {count(result.skipped_lines)} lines skipped" if result.skipped_lines else ""
    return Text(
        f"input        {source}{skipped}\n"
        f"orders       {count(result.orders)}\n"
        f"returns      {count(result.returns_accepted)} accepted, {count(result.returns_rejected)} rejected\n"
        f"customers    {count(result.customers)}\n"
        f"products     {count(result.products)}"
    )


def _speed(result: DemoResult) -> Text:
    told = f"speed        {result.commands_per_s:,.0f} commands/s"
    if result.events_per_s:
        return Text(f"{told}, {result.events_per_s:,.0f} events/s")
    return Text(f"{told}; no new event: each command had its outcome already")


def _verified(result: DemoResult) -> Text:
    if result.verified:
        return Text("verified     every read model equals a fresh fold of the history", style="green")
    return Text("NOT verified a read model differs from a fresh fold of the history", style="bold red")
