"""The shop on three months of a real retailer: exactly the figures that were computed independently.

The invoices are from the UCI Machine Learning Repository, "Online Retail" (Chen, 2015), and lie outside the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych import Application, Query, Rejected
from shop import shop
from shop.demo import DemoResult, demonstrate, run_demo
from shop.importer import import_invoices
from shop.invoice import command_of
from shop.invoice_file import InvoiceFile
from shop.read_side.country_sales import SalesByCountry
from shop.read_side.customer_sales import TopCustomers
from shop.read_side.import_totals import ImportSummary
from shop.read_side.month_sales import SalesByMonth
from shop.read_side.product_sales import TopProducts
from shop.write_side.returns import MORE_THAN_BOUGHT
from tests import valkey_server
from tests.postgres_server import in_thread, new_read_store

DATA = Path(__file__).parents[2].parent / "shared" / "data"
INVOICES = DATA / "online_retail_2010-12_2011-02.csv.gz"
EXPECTED = DATA / "online_retail_2010-12_2011-02.expected.json"
FIGURES = (
    "orders",
    "returns_accepted",
    "returns_rejected",
    "customers",
    "products",
    "skipped_lines",
    "sales_by_country",
    "sales_by_month",
    "top_products",
    "top_customers",
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not INVOICES.exists(), reason=f"the real invoices are not there: {INVOICES}"),
]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))
    assert found["orders"] > 0
    return found


def check(result: DemoResult, expected: dict[str, Any]) -> None:
    found = json.loads(msgspec.json.encode(result))
    assert {name: found[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert list(found["sales_by_country"]) == sorted(expected["sales_by_country"])
    assert result.verified


async def test_the_figures_are_exact_and_refusals_last(expected: dict[str, Any]) -> None:
    """Every figure as expected; and each return that was refused still is, when it is sent again at the end (G4)."""
    invoices = InvoiceFile(INVOICES)
    refused = set(expected["rejected"])
    async with Application(shop, store="memory:") as app:
        check(await demonstrate(app, invoices), expected)
        for invoice in [invoice for invoice in invoices if invoice.number in refused]:
            refused.remove(invoice.number)
            with pytest.raises(Rejected, match=MORE_THAN_BOUGHT):
                await app.execute(command_of(invoice), command_id=invoice.number)
    assert len(invoices) == expected["invoices"]
    assert not refused


async def test_projections_may_stand_still_for_half_of_it(tmp_path: Path, expected: dict[str, Any]) -> None:
    """What was not projected when it happened is projected later, to the same figures."""
    store = f"sqlite:{tmp_path}/events.db"
    invoices = InvoiceFile(INVOICES)
    half = len(invoices) // 2
    async with Application(shop, store=store, projecting=False) as app:
        assert await import_invoices(app, islice(invoices, half), lambda done: None) == half
        status = await app.status()
    assert status.head == half
    assert {projection.checkpoint for projection in status.projections} == {0}
    check(await run_demo(store=store, input=INVOICES), expected)


async def test_four_stores_are_fed_at_once_and_say_the_same(tmp_path: Path, expected: dict[str, Any]) -> None:
    """Every read model in SQLite, PostgreSQL, DuckDB and Valkey, by one import; then each of them answers alone.

    Nine tenths of it are there when they begin, and the last one comes while they follow.
    """
    store, invoices = f"sqlite:{tmp_path}/events.db", InvoiceFile(INVOICES)
    read_stores = [
        f"sqlite:{tmp_path}/rows.db",
        in_thread(new_read_store()),
        f"duckdb:{tmp_path}/rows.duckdb",
        valkey_server.new_read_store(),
    ]
    async with Application(shop, store=store, projecting=False) as app:
        names = [projection.name for projection in (await app.status()).projections]
        await import_invoices(app, islice(invoices, len(invoices) * 9 // 10), lambda done: None)
    asked: list[Query[Any]] = [
        ImportSummary(),
        SalesByCountry(),
        SalesByMonth(),
        TopProducts(limit=20),
        TopCustomers(limit=20),
    ]
    async with Application(shop, store=store, read_stores=dict.fromkeys(names, read_stores)) as app:
        check(await demonstrate(app, invoices), expected)
        await app.projected()
        told = await app.query_many(asked)
    for read_store in read_stores:
        async with Application(shop, store=store, read_store=read_store, projecting=False) as app:
            assert {found.lag_events for found in (await app.status()).projections} == {0}
            assert await app.query_many(asked) == told


IMPORT_AND_TELL = """
import asyncio, sys
from shop.demo import run_demo

def tell(done: int, total: int) -> None:
    print(done, flush=True)
    if done == int(sys.argv[3]):
        sys.stdin.read()  # so that it cannot be through before it is killed

asyncio.run(run_demo(store=sys.argv[1], input=sys.argv[2], on_progress=tell))
"""


async def test_an_import_killed_in_the_middle_is_run_again(tmp_path: Path, expected: dict[str, Any]) -> None:
    """`kill -9` loses no command that had its outcome, and the second run does none of them twice (G4, G11)."""
    store, half = f"sqlite:{tmp_path}/events.db", expected["invoices"] // 2
    with subprocess.Popen(
        [sys.executable, "-c", IMPORT_AND_TELL, store, str(INVOICES), f"{half + 1_000}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as process:
        assert process.stdout is not None
        told = [int(line) for line in islice(process.stdout, half)]
        process.kill()
    assert told == list(range(1, half + 1))
    async with Application(shop, store=store, projecting=False) as app:
        head = (await app.status()).head
    assert half <= head < expected["invoices"]
    check(await run_demo(store=store, input=INVOICES), expected)
