"""Invoices from a CSV file with the columns of the UCI data set "Online Retail" (Chen, 2015), plain or gzipped.

The rows of an invoice may stand apart, so the file is read twice. The first time checks every row, so that a faulty
file changes nothing, and counts how many rows each invoice has. The second time gives an invoice as soon as its last
row is read and all before it are given. What is in memory is the numbers of all invoices, and the rows of those that
stand between the first and the last row of one that is not complete: in a file with adjacent rows, of one.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from operator import itemgetter
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from shop.invoice import RETURN_PREFIX, Invoice
from shop.messages.identities import CustomerId, Sku
from shop.messages.order_line import LINES_MAX, QUANTITY_MAX, OrderLine, is_price
from shop.write_side.plausible import is_moment

__all__ = ["COLUMNS", "InvoiceFile", "InvoiceFileError"]

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
"""The columns that are read, wherever they stand in the file."""
ADJUSTMENT_PREFIX = "A"
"""The number of a bookkeeper's adjustment begins with it: neither sale nor return."""
GZIP_MAGIC = b"\x1f\x8b"
"""How a gzipped file begins, whatever its name."""

T = TypeVar("T")


class InvoiceFileError(Exception):
    """The file cannot be read as invoices; the text says where, and what would do."""


class _Row(NamedTuple):
    """A row that counts."""

    customer_id: CustomerId
    country: str
    issued_at: datetime
    line: OrderLine


class InvoiceFile:
    """The invoices of a CSV file. Making one reads it once, and checks every row.

    Attributes:
        skipped_lines: rows that do not count, see `_row`.

    Raises:
        InvoiceFileError: there is no such file, a column is missing, or a row cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._rows_of: Counter[str] = Counter()
        self.skipped_lines = 0
        for number, row in self._rows():
            if row is None:
                self.skipped_lines += 1
            else:
                self._rows_of[number] += 1
        number, rows = max(self._rows_of.items(), key=itemgetter(1), default=("", 0))
        if rows > LINES_MAX:
            raise InvoiceFileError(f"{self._path}: invoice {number} has {rows} lines; {LINES_MAX} is the limit")

    def __len__(self) -> int:
        """How many invoices have a row that counts."""
        return len(self._rows_of)

    def __iter__(self) -> Iterator[Invoice]:
        """The invoices, in the order in which their numbers first appear."""
        missing = self._rows_of.copy()
        open_: dict[str, list[_Row]] = {}
        for number, row in self._rows():
            if number in missing:
                rows = open_.setdefault(number, [])
                if row is not None:
                    rows.append(row)
                    missing[number] -= 1
                while open_ and missing[first := next(iter(open_))] == 0:
                    del missing[first]
                    yield _invoice(first, open_.pop(first))
        if missing:
            raise InvoiceFileError(f"{self._path} was changed while it was read: import it again")

    def _rows(self) -> Iterator[tuple[str, _Row | None]]:
        """Each row's invoice number, and the row where it counts."""
        line = 1
        try:
            with _open(self._path) as file:
                reader = csv.reader(file, strict=True)
                columns = self._columns(next(reader, []))
                pick, width = itemgetter(*columns), max(columns) + 1
                for cells in reader:
                    line = reader.line_num
                    if len(cells) < width:
                        if not cells:
                            continue
                        raise _WrongCell("the row", f"ends after {len(cells)} cells: one of the columns is missing")
                    if "\0" in "".join(cells):
                        raise _WrongCell("the row", "holds the character NUL, which is no text")
                    yield cells[columns[0]], _row(pick(cells))
        except _WrongCell as wrong:
            raise InvoiceFileError(f"{self._path}, line {line}: {wrong}") from None
        except UnicodeDecodeError as error:
            raise InvoiceFileError(f"{self._path}, after line {line}: not UTF-8; convert the file to it") from error
        except (csv.Error, zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise InvoiceFileError(f"{self._path}, after line {line}: {error}") from error
        except OSError as error:
            raise InvoiceFileError(f"{self._path} cannot be read: {error.strerror or error}") from error

    def _columns(self, header: Sequence[str]) -> list[int]:
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise InvoiceFileError(
                f"{self._path}: the first line has no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}"
            )
        return [header.index(name) for name in COLUMNS]


class _WrongCell(Exception):
    """A cell that cannot be read."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"{column} {problem}")


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    opened = gzip.open if is_gzip else open
    return opened(path, "rt", encoding="utf-8-sig", newline="")


def _row(cells: Sequence[str]) -> _Row | None:
    """A row, or None where it does not count.

    Not counted are adjustments, and rows without customer, without quantity, with a negative price, or whose quantity
    has not the sign of its invoice: plus for a sale, minus for a return. Gifts, at price 0, count.
    """
    number, sku, description, quantity_text, date_text, price_text, customer_id, country = cells
    if not customer_id.strip() or number.startswith(ADJUSTMENT_PREFIX):
        return None
    quantity = _read("Quantity", int, quantity_text, "a whole number")
    price = _read("UnitPrice", _amount, price_text, "a number")
    is_return = number.startswith(RETURN_PREFIX)
    if quantity == 0 or price < 0 or (quantity < 0) != is_return:
        return None
    issued_at = _read("InvoiceDate", _moment, date_text, 'a date and time such as "2010-12-01 08:26:00"')
    line = OrderLine(sku=Sku(sku), description=description.strip(), quantity=abs(quantity), unit_price=price)
    _check("InvoiceNo", number, fits=number != "" and number.isprintable())
    _check("StockCode", sku, fits=sku != "")
    _check("Quantity", quantity_text, fits=line.quantity <= QUANTITY_MAX)
    _check("InvoiceDate", date_text, fits=is_moment(issued_at))
    _check("UnitPrice", price_text, fits=is_price(price))
    return _Row(CustomerId(customer_id), country, issued_at, line)


def _read(column: str, read: Callable[[str], T], text: str, wanted: str) -> T:
    try:
        return read(text)
    except (ValueError, InvalidOperation):
        raise _WrongCell(column, f"is {text!r}, not {wanted}") from None


def _check(column: str, text: str, *, fits: bool) -> None:
    if not fits:
        raise _WrongCell(column, f"is {text!r}, which the shop does not take")


def _amount(text: str) -> Decimal:
    amount = Decimal(text)
    if not amount.is_finite():
        raise ValueError(text)
    return amount


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _invoice(number: str, rows: Sequence[_Row]) -> Invoice:
    """Time, country and customer of an invoice are those of its first row that counts."""
    first = rows[0]
    return Invoice(
        number=number,
        customer_id=first.customer_id,
        country=first.country,
        issued_at=first.issued_at,
        lines=tuple(row.line for row in rows),
    )
