"""The shop reads invoices: which rows count, in which order invoices come, and what is said of a faulty file."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from shop.invoice import Invoice, command_of
from shop.invoice_file import COLUMNS, InvoiceFile, InvoiceFileError
from shop.messages.commands import PlaceOrder, ReturnGoods
from shop.messages.order_line import LINES_MAX

if TYPE_CHECKING:
    from pathlib import Path

HEADER = ",".join(COLUMNS)
SALE = "1,A,TEAPOT,2,2010-12-01 08:26:00,2.55,17850,France"


def written(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def read(path: Path, *rows: str) -> tuple[list[Invoice], int]:
    file = InvoiceFile(written(path, *rows))
    invoices = list(file)
    assert len(file) == len(invoices)
    return invoices, file.skipped_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "invoices.csv"


def test_a_sale_is_an_order(path: Path) -> None:
    """All rows of one number become the lines of one order, exact, in their order."""
    invoices, skipped = read(path, SALE, '1,B,"CLOCK, ""RED"" ",1,2010-12-01 08:26:00,40.0,17850,France')
    command = command_of(invoices[0])
    assert isinstance(command, PlaceOrder)
    assert skipped == 0
    assert (command.order_id, command.customer_id, command.country) == ("1", "17850", "France")
    assert command.placed_at == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)
    found = [(line.sku, line.description, line.quantity, str(line.unit_price)) for line in command.lines]
    assert found == [("A", "TEAPOT", 2, "2.55"), ("B", 'CLOCK, "RED"', 1, "40.0")]


def test_a_credit_note_is_a_return(path: Path) -> None:
    """A number that begins with C brings goods back; the units of a command count from 1."""
    invoices, skipped = read(path, "C7,A,TEAPOT,-2,2010-12-01 08:26:00,2.55,17850,France")
    command = command_of(invoices[0])
    assert isinstance(command, ReturnGoods)
    assert (command.return_id, command.lines[0].quantity, command.lines[0].amount) == ("C7", 2, Decimal("5.10"))
    assert skipped == 0


@pytest.mark.parametrize(
    "row",
    [
        "2,A,TEAPOT,1,2010-12-01 08:26:00,2.55,,France",
        "2,A,TEAPOT,x,never,free, ,France",
        "2,A,TEAPOT,0,2010-12-01 08:26:00,2.55,17850,France",
        "2,A,TEAPOT,1,2010-12-01 08:26:00,-0.01,17850,France",
        "A2,B,Adjust bad debt,1,2010-12-01 08:26:00,11062.06,17850,France",
        "2,A,TEAPOT,-1,2010-12-01 08:26:00,2.55,17850,France",
        "C2,A,TEAPOT,1,2010-12-01 08:26:00,2.55,17850,France",
    ],
    ids=["no customer", "no customer, unreadable", "no quantity", "negative price", "adjustment", "-sale", "+return"],
)
def test_a_row_that_does_not_count_is_skipped_and_counted(path: Path, row: str) -> None:
    """An invoice of which no row is left is none."""
    invoices, skipped = read(path, row, SALE)
    assert [invoice.number for invoice in invoices] == ["1"]
    assert skipped == 1


def test_a_gift_counts(path: Path) -> None:
    """Price 0 is kept."""
    invoices, skipped = read(path, "1,A,TEAPOT,2,2010-12-01 08:26:00,0,17850,France")
    assert (len(invoices[0].lines), skipped) == (1, 0)


def test_time_and_country_are_of_the_first_row_that_counts(path: Path) -> None:
    """Skipped rows say nothing about their invoice, and neither do later ones."""
    invoices, _ = read(
        path,
        "1,A,TEAPOT,0,2010-12-01 08:00:00,2.55,17850,Spain",
        "1,A,TEAPOT,1,2010-12-02 08:00:00,2.55,17850,France",
        "1,A,TEAPOT,1,2010-12-03 08:00:00,2.55,17850,Japan",
    )
    assert (invoices[0].country, invoices[0].issued_at.day, len(invoices[0].lines)) == ("France", 2, 2)


def test_rows_of_an_invoice_may_stand_apart(path: Path) -> None:
    """Invoices come whole, in the order in which their numbers first appear, be it in a row that does not count."""
    rows = [f"{number},A,TEAPOT,{units},2010-12-01 08:26:00,1,17850,France" for number, units in
            [("3", 0), ("1", 1), ("2", 2), ("1", 3), ("9", 0), ("4", 4), ("3", 5), ("2", 6)]]  # fmt: skip
    invoices, skipped = read(path, *rows)
    found = [(invoice.number, [line.quantity for line in invoice.lines]) for invoice in invoices]
    assert found == [("3", [5]), ("1", [1, 3]), ("2", [2, 6]), ("4", [4])]
    assert skipped == 2


def test_columns_are_found_by_name(path: Path) -> None:
    """Their order does not matter, and more of them do not harm; blank lines are no rows."""
    header = "Country,Extra,CustomerID,UnitPrice,InvoiceDate,Quantity,Description,StockCode,InvoiceNo"
    written(path, "France,x,17850,2.55,2010-12-01 08:26:00,2,TEAPOT,A,1", "", header=header)
    written(path.with_name("usual.csv"), SALE)
    assert list(InvoiceFile(path)) == list(InvoiceFile(path.with_name("usual.csv")))


@pytest.mark.parametrize("name", ["invoices.csv.gz", "invoices.csv"])
def test_gzip_and_byte_order_mark_are_seen_through(tmp_path: Path, name: str) -> None:
    """What a file is shows in its first bytes, not in its name."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(f"\ufeff{HEADER}\r\n{SALE}\r\n".encode()))
    assert [invoice.number for invoice in InvoiceFile(path)] == ["1"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("1,A,TEAPOT,two,2010-12-01 08:26:00,2.55,17850,France", "line 3: Quantity is 'two', not a whole number"),
        ("1,A,TEAPOT,2.5,2010-12-01 08:26:00,2.55,17850,France", "line 3: Quantity is '2.5'"),
        ("1,A,TEAPOT,99999999,2010-12-01 08:26:00,2.55,17850,France", "line 3: Quantity is '99999999'"),
        ("1,A,TEAPOT,2,yesterday,2.55,17850,France", "line 3: InvoiceDate is 'yesterday', not a date"),
        ("1,A,TEAPOT,2,0010-12-01 08:26:00,2.55,17850,France", "line 3: InvoiceDate is '0010-12-01 08:26:00'"),
        ("1,A,TEAPOT,2,2010-12-01 08:26:00,free,17850,France", "line 3: UnitPrice is 'free', not a number"),
        ("1,A,TEAPOT,2,2010-12-01 08:26:00,Infinity,17850,France", "line 3: UnitPrice is 'Infinity'"),
        ("1,A,TEAPOT,2,2010-12-01 08:26:00,NaN,17850,France", "line 3: UnitPrice is 'NaN'"),
        ("1,A,TEAPOT,2,2010-12-01 08:26:00,0.00000001,17850,France", "line 3: UnitPrice is '0.00000001'"),
        (",A,TEAPOT,2,2010-12-01 08:26:00,2.55,17850,France", "line 3: InvoiceNo is ''"),
        ("1,,TEAPOT,2,2010-12-01 08:26:00,2.55,17850,France", "line 3: StockCode is ''"),
        ("1,A,TEAPOT,2,2010-12-01 08:26:00", "line 3: the row ends after 5 cells"),
        ("1,A,TEA\0POT,2,2010-12-01 08:26:00,2.55,17850,France", "line 3: the row holds the character NUL"),
        ('1,A,"TEAPOT,2,2010-12-01 08:26:00,2.55,17850,France', "after line 2: unexpected end of data"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(path: Path, row: str, told: str) -> None:
    """The error says line and column, and comes before any invoice."""
    with pytest.raises(InvoiceFileError) as error:
        InvoiceFile(written(path, SALE, row))
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_column_is_named(path: Path) -> None:
    """All that is missing is said at once, with what is needed; an empty file lacks everything."""
    with pytest.raises(InvoiceFileError, match="no column UnitPrice, CustomerID; needed are InvoiceNo, StockCode"):
        InvoiceFile(written(path, header=HEADER.replace("UnitPrice,CustomerID", "Price,Customer")))
    path.write_bytes(b"")
    with pytest.raises(InvoiceFileError, match="no column InvoiceNo, StockCode"):
        InvoiceFile(path)


def test_a_file_without_rows_has_no_invoices(path: Path) -> None:
    """Nothing to import is no error."""
    assert read(path) == ([], 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"{HEADER}\n{SALE}\n".encode().replace(b"TEAPOT", b"CAF\xc9"), "not UTF-8"),
        (gzip.compress(f"{HEADER}\n{SALE}\n".encode())[:-20], "after line 1"),
        (gzip.compress(b"")[:5] + b"\xff" * 30, "after line 1"),
    ],
    ids=["latin-1", "truncated gzip", "broken gzip"],
)
def test_bytes_that_are_no_text_are_told(path: Path, content: bytes, told: str) -> None:
    """A file in another encoding, or half of a file, is no import of less."""
    path.write_bytes(content)
    with pytest.raises(InvoiceFileError, match=told):
        InvoiceFile(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """The error names the path, and what is there instead of a file."""
    with pytest.raises(InvoiceFileError, match=r"absent\.csv cannot be read: No such file"):
        InvoiceFile(tmp_path / "absent.csv")
    with pytest.raises(InvoiceFileError, match="cannot be read: Is a directory"):
        InvoiceFile(tmp_path)


def test_an_invoice_without_end_is_told(path: Path) -> None:
    """More lines than one order may have are refused before anything is imported."""
    with pytest.raises(InvoiceFileError, match=f"invoice 1 has {LINES_MAX + 1} lines; {LINES_MAX} is the limit"):
        InvoiceFile(written(path, *[SALE] * (LINES_MAX + 1)))


def test_a_file_that_changes_meanwhile_is_told(path: Path) -> None:
    """What was checked is what is imported, or the import ends in an error."""
    file = InvoiceFile(written(path, SALE, SALE))
    written(path, SALE)
    with pytest.raises(InvoiceFileError, match="changed while it was read"):
        list(file)
