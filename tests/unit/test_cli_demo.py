"""`diptych demo`, in this process."""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from diptych.entrypoints.cli import shop_location
from diptych.errors import ConfigurationError
from tests.cli_project import Project, project_in

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
INVOICES = f"""{HEADER}536365,85123A,WHITE HANGING HEART,6,2010-12-01 08:26:00,2.55,17850,United Kingdom
536365,71053,WHITE METAL LANTERN,6,2010-12-01 08:26:00,3.39,17850,United Kingdom
536366,22633,HAND WARMER,0,2010-12-01 08:28:00,1.85,17850,United Kingdom
C536379,85123A,WHITE HANGING HEART,-1,2010-12-01 09:41:00,2.55,17850,United Kingdom
C536380,22633,HAND WARMER,-1,2010-12-01 09:49:00,1.85,17850,United Kingdom
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def test_the_json_has_the_figures_of_the_tables(project: Project) -> None:
    """One object on stdout and nothing else; a second run on the same data changes none of its figures."""
    options = ("demo", "--orders", "30", "--data", "shop data")
    shown = project.run(*options)
    printed = project.run(*options, "--json")
    assert (shown.code, shown.err) == (printed.code, printed.err) == (0, "")
    result = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert set(result) == {
        "orders", "returns_accepted", "returns_rejected", "customers", "products", "skipped_lines", "sales_by_country",
        "sales_by_month", "top_products", "top_customers", "commands_per_s", "events_per_s", "verified",
    }  # fmt: skip
    assert result["orders"] == 30
    assert result["verified"] is True
    lines = [re.sub(r"[,\s]+", " ", line).split() for line in shown.out.splitlines()]
    assert ["orders", "30"] in lines
    accepted, rejected = str(result["returns_accepted"]), str(result["returns_rejected"])
    assert ["returns", accepted, "accepted", rejected, "rejected"] in lines
    assert len(result["sales_by_country"]) > 1
    for country, sales in result["sales_by_country"].items():
        money = [f"{float(sales[name]):.2f}" for name in ("revenue", "refunds")]
        counts = [str(sales[name]) for name in ("orders", "units", "returned_units")]
        assert [*country.split(), counts[0], counts[1], money[0], counts[2], money[1]] in [
            [part.replace(",", "") for part in line.split()] for line in shown.out.splitlines()
        ]
    assert "every read model equals a fresh fold of the history" in shown.out


def test_a_second_run_on_the_same_data_adds_nothing(project: Project) -> None:
    """Every command has its outcome already, the rejected ones too (G4)."""
    options = ("demo", "--orders", "30", "--data", "shop", "--json")
    first = json.loads(project.run(*options).out)
    store = ("--store", "sqlite:shop/shop.db")
    events = project.run("events", *store, "--json").out
    second = json.loads(project.run(*options).out)
    assert first["events_per_s"] > 0
    assert second["events_per_s"] == 0
    assert project.run("events", *store, "--json").out == events
    assert {**second, "commands_per_s": 0, "events_per_s": 0} == {**first, "commands_per_s": 0, "events_per_s": 0}
    told = project.run("demo", "--orders", "30", "--data", "shop").out
    assert "no new event: each command had its outcome already" in told


def test_a_file_of_invoices_is_imported(project: Project) -> None:
    """One order, one return of what was bought, one of what was not, and one line that does not count."""
    (project.folder / "invoices.csv").write_text(INVOICES)
    result = json.loads(project.run("demo", "--input", "invoices.csv", "--json").out)
    counts = ("orders", "returns_accepted", "returns_rejected", "customers", "products", "skipped_lines")
    assert [result[name] for name in counts] == [1, 1, 1, 1, 2, 1]
    assert result["sales_by_month"]["2010-12"]["revenue"] == "35.64"


def test_without_data_nothing_is_left_behind(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stores are in a temporary folder that is removed."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = sorted(project.folder.iterdir())
    out = project.run("demo", "--orders", "3").out
    assert "removed; --data DIR keeps it" in out
    assert list(temporary.iterdir()) == []
    assert sorted(project.folder.iterdir()) == before


def test_a_read_model_that_differs_from_the_history_is_told(project: Project) -> None:
    """The exit code is 1, and the difference is logged."""
    options = ("demo", "--orders", "20", "--data", "shop")
    assert project.run(*options).code == 0
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%\"country\"%\"revenue\"%'"
    with closing(sqlite3.connect(project.folder / "shop" / "shop.read.db")) as connection:
        (name,) = connection.execute(tables).fetchone()
        changed = connection.execute(f"UPDATE \"{name}\" SET units = units + 1 WHERE country = 'France'")
        assert changed.rowcount == 1
        connection.commit()
    code, out, err = project.run(*options)
    assert code == 1
    assert "NOT verified" in out
    assert "shop.CountrySales differs from a fresh fold" in err
    assert json.loads(project.run(*options, "--json").out)["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--input", "missing.csv"), "missing.csv cannot be read: No such file or directory"),
        (("--input", "wrong.csv"), "wrong.csv"),
        (("--data", "wrong.csv"), "--data wrong.csv cannot be made: File exists"),
    ],
)
def test_what_cannot_be_read_or_made_is_told(project: Project, arguments: tuple[str, ...], told: str) -> None:
    """One message, no traceback, exit code 1."""
    (project.folder / "wrong.csv").write_text("a,b\n1,2\n")
    code, out, err = project.run("demo", *arguments)
    assert (code, out) == (1, "")
    assert told in err
    assert "Traceback" not in err


def test_an_installation_without_the_shop_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the package, and among the examples of a checkout."""
    package = tmp_path / "src" / "diptych"
    monkeypatch.setattr("diptych.entrypoints.__path__", [str(package / "entrypoints")])
    with pytest.raises(ConfigurationError) as refused:
        shop_location.make_shop_importable()
    assert str(package / "_examples" / "shop") in str(refused.value)
    assert str(tmp_path / "examples" / "shop") in str(refused.value)


def test_a_wheels_shop_goes_before_a_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before anything else on the import path that is called shop."""
    package = tmp_path / "src" / "diptych"
    for place in (package / "_examples", tmp_path / "examples"):
        (place / "shop").mkdir(parents=True)
        (place / "shop" / "demo.py").touch()
    monkeypatch.setattr("diptych.entrypoints.__path__", [str(package / "entrypoints")])
    monkeypatch.setattr("sys.path", ["elsewhere"])
    assert shop_location.make_shop_importable() == package / "_examples"
    assert shop_location.make_shop_importable() == package / "_examples"
    import sys

    assert sys.path == [str(package / "_examples"), "elsewhere"]
