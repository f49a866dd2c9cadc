"""The values of columns as OpenSearch keeps them: exact, and as text that sorts in Python's order (rule 32).

A row is kept twice: as JSON, from which it reads back equal, and column by column as a *term*, which filters and order
are about. A term is `0` for None, and otherwise `1` and a text whose bytes sort as the values do. So there is one kind
of field for all kinds of columns, nothing depends on how a server rounds numbers, and None has its place.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from diptych.read_side.read_store import Column, ColumnKind, Key, Row, Table
from diptych.read_side.row_filters import key_getter, words_of
from diptych.read_side.row_refusal import row_refusal, value_refusal

__all__ = ["NONE", "SOME", "TERM_BYTES_MAX", "WORD_LETTERS_MAX", "RowCodec", "term"]

TERM_BYTES_MAX = 32_000
"""Bytes of a value by which OpenSearch filters and orders; it takes 32,766."""
WORD_LETTERS_MAX = 8_000
"""Letters of a word that OpenSearch finds; the rest of it is another word."""

NONE, SOME = "0", "1"
_CUT_LETTERS = 1_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_DIGITS = str.maketrans("0123456789", "9876543210")
_INTEGER_SHIFT = 1 << 63
_EXPONENT_SHIFT = 10**19


def term(kind: ColumnKind, value: Any) -> str:
    """What stands for a value that its column can hold, or for None."""
    return NONE if value is None else SOME + _TERMS[kind](value)


def _integer_term(value: int) -> str:
    return f"{value + _INTEGER_SHIFT:020d}"


def _real_term(value: float) -> str:
    (bits,) = struct.unpack(">Q", struct.pack(">d", float(value) + 0.0))  # -0.0 and 0.0 are one value
    return f"{bits ^ (2**64 - 1) if bits >> 63 else bits | 1 << 63:016x}"


def _decimal_term(value: Decimal) -> str:
    """Sign, exponent of the leading digit, digits without zeros at the end; of a negative one, the complement."""
    sign, digits, _ = value.as_tuple()
    if not any(digits):
        return "1"
    text = f"{value.adjusted() + _EXPONENT_SHIFT:020d}{''.join(map(str, digits)).rstrip('0')}"
    return f"0{text.translate(_DIGITS)}~" if sign else f"2{text}"


def _datetime_term(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def _duration_term(value: dt.timedelta) -> str:
    return _integer_term(value // _MICROSECOND)


_TERMS: Mapping[ColumnKind, Callable[[Any], str]] = {
    ColumnKind.TEXT: str,
    ColumnKind.INTEGER: _integer_term,
    ColumnKind.REAL: _real_term,
    ColumnKind.BOOLEAN: lambda value: "1" if value else "0",
    ColumnKind.DECIMAL: _decimal_term,
    ColumnKind.DATETIME: _datetime_term,
    ColumnKind.DATE: dt.date.isoformat,
    ColumnKind.DURATION: _duration_term,
    ColumnKind.BYTES: bytes.hex,
}
_TO_JSON: Mapping[ColumnKind, Callable[[Any], Any]] = {
    ColumnKind.REAL: lambda value: repr(float(value)),
    ColumnKind.DECIMAL: str,
    ColumnKind.DATETIME: lambda value: (value - _EPOCH) // _MICROSECOND,
    ColumnKind.DATE: dt.date.isoformat,
    ColumnKind.DURATION: lambda value: value // _MICROSECOND,
    ColumnKind.BYTES: lambda value: base64.b64encode(value).decode(),
}
_FROM_JSON: Mapping[ColumnKind, Callable[[Any], Any]] = {
    ColumnKind.REAL: float,
    ColumnKind.DECIMAL: Decimal,
    ColumnKind.DATETIME: lambda value: _EPOCH + dt.timedelta(microseconds=value),
    ColumnKind.DATE: dt.date.fromisoformat,
    ColumnKind.DURATION: lambda value: dt.timedelta(microseconds=value),
    ColumnKind.BYTES: base64.b64decode,
}


class RowCodec:
    """The rows of one table as documents."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key_of = key_getter(table)
        self._columns = {column.name: (n, column) for n, column in enumerate(table.columns)}
        self._key_columns = [self._columns[name][1] for name in table.key]
        self._exact = {*table.key, table.expires, *(column.name for column in table.columns if column.indexed)}

    def column(self, name: str) -> Column:
        """The column of that name."""
        return self._columns[name][1]

    def field(self, name: str) -> str:
        """The field of a document that has a column's term. Not its name: that may be any text."""
        return f"c{self._columns[name][0]}"

    def refusal(self, row: Row) -> str | None:
        """Why a row cannot be stored; None where it can."""
        reason = row_refusal(self.table, row)
        if reason is not None:
            return reason
        for column, value in zip(self.table.columns, row, strict=True):
            if column.name in self._exact and _is_long(column, value):
                return f"column {column.name} is a key or indexed: OpenSearch takes {TERM_BYTES_MAX:,} bytes there"
        return None

    def long_columns(self, rows: Sequence[Row]) -> set[str]:
        """The columns in which a value is too long to filter and order by."""
        return {
            column.name
            for row in rows
            for column, value in zip(self.table.columns, row, strict=True)
            if _is_long(column, value)
        }

    def document(self, row: Row) -> dict[str, Any]:
        """What is stored of a row that is not refused."""
        columns = self.table.columns
        values = [
            value if value is None or column.kind not in _TO_JSON else _TO_JSON[column.kind](value)
            for column, value in zip(columns, row, strict=True)
        ]
        words = [
            word
            for column, value in zip(columns, row, strict=True)
            if column.searchable and value is not None
            for word in words_of(value)
        ]
        terms = {
            f"c{n}": term(column.kind, value[:_CUT_LETTERS] if _is_long(column, value) else value)
            for n, (column, value) in enumerate(zip(columns, row, strict=True))
            if column.kind is not ColumnKind.DOCUMENT
        }
        found = {"k": self.key_id(self.key_of(row)), "row": json.dumps(values, ensure_ascii=False), **terms}
        return {**found, "words": " ".join(words)} if words else found

    def row(self, stored: str) -> Row:
        """A row from its JSON."""
        return tuple(
            value if value is None or column.kind not in _FROM_JSON else _FROM_JSON[column.kind](value)
            for column, value in zip(self.table.columns, json.loads(stored), strict=True)
        )

    def may_have_row(self, key: Key) -> bool:
        """Whether a row of this key could have been stored."""
        return all(
            value is not None and value_refusal(column, value) is None
            for column, value in zip(self._key_columns, key, strict=True)
        )

    def key_id(self, key: Key) -> str:
        """What stands for a key: equal where the keys are, and of one length."""
        terms = [term(column.kind, value) for column, value in zip(self._key_columns, key, strict=True)]
        return hashlib.sha256(json.dumps(terms).encode()).hexdigest()


def _is_long(column: Column, value: Any) -> bool:
    if column.kind is ColumnKind.TEXT:
        return value is not None and len(value) * 4 > TERM_BYTES_MAX and len(value.encode()) > TERM_BYTES_MAX
    if column.kind is ColumnKind.BYTES:
        return value is not None and len(value) * 2 > TERM_BYTES_MAX
    return False
