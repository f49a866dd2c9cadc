"""A shop that began on one file moves to a server: the same code finds the same history there, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diptych import Query, Receipt, Rejected, SyncApplication
from shop import shop
from shop.invoice import Invoice, command_of
from shop.messages.commands import PlaceOrder
from shop.read_side.country_sales import SalesByCountry
from shop.read_side.customer_sales import TopCustomers
from shop.read_side.import_totals import ImportSummary
from shop.read_side.month_sales import SalesByMonth
from shop.read_side.product_sales import TopProducts
from shop.workload import Workload
from tests.cli_project import Project, project_in
from tests.postgres_server import in_thread, new_stores

ORDERS, SEED = 60, 7
FILE = "sqlite:kept/shop.db"
ROWS = "sqlite:kept/shop.read.db"
QUESTIONS: tuple[Query[Any], ...] = (SalesByCountry(), SalesByMonth(), TopProducts(), TopCustomers(), ImportSummary())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A folder with the demo's stores in it."""
    with project_in(tmp_path, monkeypatch) as made:
        code, _, err = made.run("demo", "--data", "kept", "--orders", str(ORDERS), "--seed", str(SEED))
        assert code == 0, err
        yield made


def moved(project: Project) -> str:
    """The URL of a server that has the shop's history now."""
    server = in_thread(new_stores())
    code, out, err = project.run("copy", "--from", FILE, "--to", server, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["copied_events"] == report["position"] > ORDERS
    assert report["source_digest"] == report["target_digest"]
    return server


def answers(app: SyncApplication, **freshness: Any) -> list[object]:
    return [app.query(question, **freshness) for question in QUESTIONS]


def outcome(app: SyncApplication, invoice: Invoice) -> Receipt | tuple[str, object]:
    """What the import of an invoice is told."""
    try:
        return app.execute(command_of(invoice), command_id=invoice.number)
    except Rejected as rejected:
        return rejected.code, rejected.facts


def test_the_shop_answers_on_the_server_as_on_the_file(project: Project) -> None:
    """Read models are built from the copied history, and say the same."""
    with SyncApplication(shop, store=FILE) as app:
        expected = answers(app, freshness="latest")
    with SyncApplication(shop, store=moved(project)) as app:
        assert answers(app, freshness="latest", wait_s=60) == expected
    assert all(expected)


def test_every_outcome_is_the_first_one(project: Project) -> None:
    """A retried import changes nothing: receipts and refusals, word for word, and no event more."""
    invoices = list(Workload(orders=ORDERS, seed=SEED))
    with SyncApplication(shop, store=FILE) as app:
        expected = [outcome(app, invoice) for invoice in invoices]
        head = app.status().head
    with SyncApplication(shop, store=moved(project)) as app:
        assert [outcome(app, invoice) for invoice in invoices] == expected
        assert app.status().head == head
    assert {type(told) for told in expected} == {Receipt, tuple}


def test_tokens_and_read_models_from_before_still_fit(project: Project) -> None:
    """What clients hold is accepted; the rows beside the file go on with the events of the server."""
    invoices = list(Workload(orders=ORDERS, seed=SEED))
    with SyncApplication(shop, store=FILE) as app:
        token = app.answer(ImportSummary(), freshness="latest").token
        receipt = app.execute(command_of(invoices[0]), command_id=invoices[0].number)
        expected = answers(app, freshness="latest")
        checkpoints = {each.name: each.checkpoint for each in app.status().projections}
    server = moved(project)
    with SyncApplication(shop, store=server, read_store=ROWS) as app:
        assert {each.name: each.checkpoint for each in app.status().projections} == checkpoints
        assert answers(app, after=token) == expected
        assert answers(app, after=receipt) == expected
        command = command_of(invoices[0])
        assert isinstance(command, PlaceOrder)
        before = app.status().head
        later = app.execute(PlaceOrder(**{**_fields(command), "order_id": "new"}), command_id="new")
        assert later.place.position == before + 1
        assert app.query(ImportSummary(), after=later).orders == ORDERS + 1


def _fields(command: PlaceOrder) -> dict[str, Any]:
    return {name: getattr(command, name) for name in command.__struct_fields__}
