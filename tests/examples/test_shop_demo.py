"""The demo: figures against an independent count of the same invoices, from empty stores and from full ones."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych import Application, BoundedContext
from diptych.messages.codec import encode
from shop import shop
from shop.demo import TOP, DemoResult, run_demo
from shop.invoice import RETURN_PREFIX, Invoice
from shop.invoice_file import InvoiceFileError
from shop.read_side.country_sales import CountrySales
from shop.workload import Workload

ORDERS, SEED = 120, 7


class Count:
    """The figures as plain loops count them: what `diptych demo` has to find."""

    def __init__(self, invoices: Workload) -> None:
        self.accepted = self.rejected = self.orders = 0
        self.kept: Counter[tuple[str, str]] = Counter()
        self.units: Counter[str] = Counter()
        self.revenue: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.by_country: defaultdict[str, list[Any]] = defaultdict(lambda: [0, 0, Decimal(0), 0, Decimal(0)])
        self.by_month: defaultdict[str, list[Any]] = defaultdict(lambda: [0, 0, Decimal(0), 0, Decimal(0)])
        for invoice in invoices:
            if invoice.number.startswith(RETURN_PREFIX):
                self._returned(invoice)
            else:
                self._sold(invoice)

    def _sold(self, invoice: Invoice) -> None:
        self.orders += 1
        for line in invoice.lines:
            self.kept[invoice.customer_id, line.sku] += line.quantity
            self.units[line.sku] += line.quantity
            self.revenue[invoice.customer_id] += line.quantity * line.unit_price
        self._add(invoice, 0)

    def _returned(self, invoice: Invoice) -> None:
        (line,) = invoice.lines
        if line.quantity > self.kept[invoice.customer_id, line.sku]:
            self.rejected += 1
            return
        self.accepted += 1
        self.kept[invoice.customer_id, line.sku] -= line.quantity
        self._add(invoice, 3)

    def _add(self, invoice: Invoice, at: int) -> None:
        for row in self.by_country[invoice.country], self.by_month[f"{invoice.issued_at:%Y-%m}"]:
            row[0] += at == 0
            row[at + (at == 0)] += sum(line.quantity for line in invoice.lines)
            row[at + 1 + (at == 0)] += sum(line.quantity * line.unit_price for line in invoice.lines)


def figures(result: DemoResult) -> dict[str, Any]:
    """What the demo found, as JSON, without what differs from run to run."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(result))
    assert found.pop("commands_per_s") > 0
    assert found.pop("events_per_s") >= 0
    return found


def rows(expected: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    names = ["orders", "units", "revenue", "returned_units", "refunds"]
    return {
        key: {name: str(value) if isinstance(value, Decimal) else value for name, value in zip(names, row, strict=True)}
        for key, row in sorted(expected.items())
    }


@pytest.mark.anyio
async def test_the_demo_finds_what_a_plain_count_finds(store_url: str) -> None:
    """Every figure is exact, money as text, and the read models are what the history says."""
    progress: list[tuple[int, int | None]] = []
    result = figures(
        await run_demo(store=store_url, orders=ORDERS, seed=SEED, on_progress=lambda *told: progress.append(told))
    )
    count, invoices = Count(Workload(ORDERS, SEED)), len(Workload(ORDERS, SEED))
    assert result["verified"] is True
    assert progress == [(done, invoices) for done in range(1, invoices + 1)]
    assert (result["orders"], result["returns_accepted"], result["returns_rejected"], result["skipped_lines"]) == (
        ORDERS, count.accepted, count.rejected, 0
    )  # fmt: skip
    assert (result["customers"], result["products"]) == (len(count.revenue), len(count.units))
    assert result["sales_by_country"] == rows(count.by_country)
    assert result["sales_by_month"] == rows(count.by_month)
    assert list(result["sales_by_country"]) == sorted(count.by_country)
    assert list(result["sales_by_month"]) == sorted(count.by_month)
    top = sorted(count.units.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    assert [(row["sku"], row["units"]) for row in result["top_products"]] == top
    best = sorted(count.revenue.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    assert [(row["customer_id"], row["revenue"]) for row in result["top_customers"]] == [(k, str(v)) for k, v in best]


@pytest.mark.anyio
async def test_a_second_run_on_the_same_files_changes_nothing(tmp_path: Path) -> None:
    """The same invoices are no news; more of them add only what is new (G4)."""
    store = f"sqlite:{tmp_path}/events.db"
    first = await run_demo(store=store, orders=40, seed=SEED)
    again = await run_demo(store=store, orders=40, seed=SEED)
    assert figures(again) == figures(first)
    assert again.events_per_s == 0
    more = await run_demo(store=store, orders=60, seed=SEED)
    assert figures(more) == figures(await run_demo(store="memory:", orders=60, seed=SEED))
    assert more.verified


@pytest.mark.anyio
async def test_a_read_model_that_is_not_the_fold_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`verified` is a comparison with the history, not a wish."""
    import sqlite3
    from contextlib import closing

    store, read_store = f"sqlite:{tmp_path}/events.db", tmp_path / "rows.db"
    await run_demo(store=store, read_store=f"sqlite:{read_store}", orders=10, seed=SEED)
    with closing(sqlite3.connect(read_store)) as rows_db, rows_db:
        names = [name for (name,) in rows_db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = next(name for name in names if "country_sales" in name)
        assert rows_db.execute(f'UPDATE "{table}" SET orders = orders + 1').rowcount > 0
    result = await run_demo(store=store, read_store=f"sqlite:{read_store}", orders=10, seed=SEED)
    assert result.verified is False
    assert "shop.CountrySales differs from a fresh fold" in caplog.text


def test_a_workload_is_the_same_for_the_same_seed() -> None:
    """It is made up once and for all: a longer one begins like a shorter one, another seed gives other numbers."""
    assert list(Workload(50, SEED)) == list(Workload(50, SEED))
    assert list(Workload(50, SEED)) == list(Workload(70, SEED))[: len(Workload(50, SEED))]
    assert len(list(Workload(50, SEED))) == len(Workload(50, SEED)) == 60
    assert list(Workload(0, SEED)) == []
    numbers = [{invoice.number for invoice in Workload(50, seed)} for seed in (1, 2)]
    assert not numbers[0] & numbers[1]


def test_a_workload_has_something_of_everything() -> None:
    """Returns taken and refused, and several countries, months, customers and products."""
    count = Count(Workload(ORDERS, SEED))
    assert min(count.accepted, count.rejected) > 3
    assert min(len(count.by_country), len(count.by_month), len(count.units), len(count.revenue)) > 3


@pytest.mark.anyio
async def test_a_faulty_file_opens_no_store(tmp_path: Path) -> None:
    """A file is checked before anything is made."""
    with pytest.raises(InvoiceFileError, match=r"absent\.csv"):
        await run_demo(store=f"sqlite:{tmp_path}/events.db", input=tmp_path / "absent.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_the_shop_names_all_its_modules() -> None:
    """No handler and no projection is missing because its module was forgotten."""
    assert isinstance(shop, BoundedContext)
    folder = Path(str(shop_folder()))
    found = {
        f"shop.{side}.{path.stem}"
        for side in ("write_side", "read_side")
        for path in (folder / side).glob("*.py")
        if "@shop." in path.read_text(encoding="utf-8")
    }
    assert found == set(shop.modules)
    async with Application(shop, store="memory:") as app:
        assert len((await app.status()).projections) == 8


def shop_folder() -> Path:
    import shop as package

    return Path(package.__file__).parent


def test_money_is_text_in_json() -> None:
    """A number that a reader would round is never written as one."""
    row = CountrySales(country="France", revenue=Decimal("1296507.54"), refunds=Decimal("40.0"))
    assert json.loads(encode(row))["revenue"] == "1296507.54"
    assert json.loads(encode(row))["refunds"] == "40.0"
