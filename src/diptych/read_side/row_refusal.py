"""What no read store takes: the values that every adapter refuses alike, whatever its database could hold."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from diptych.read_side.read_store import Column, ColumnKind, Row, Table

__all__ = ["row_refusal", "value_refusal"]

_SHOWN_CHARACTERS_MAX = 80
"""Of a value in an error's text."""
_EARLIEST = dt.datetime.min.replace(tzinfo=dt.UTC)
_LATEST = dt.datetime.max.replace(tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_EXACT_FLOAT_MAX = 2**53


def row_refusal(table: Table, row: Row) -> str | None:
    """Why no store takes this row, naming column and value; None where every store takes it."""
    if len(row) != len(table.columns):
        return f"{table.name} has {len(table.columns)} columns, the row has {len(row)} values"
    for column, value in zip(table.columns, row, strict=True):
        if value is None and column.name in table.key:
            return f"column {column.name} is part of the key and cannot be None"
        reason = value_refusal(column, value)
        if reason is not None:
            return reason
    return None


def value_refusal(column: Column, value: Any) -> str | None:
    """Why no store takes this value in this column, naming both; None where every store takes it."""
    if value is None:
        return None if column.nullable else f"column {column.name} cannot be None"
    reason = _REFUSALS[column.kind](value)
    return None if reason is None else f"column {column.name} cannot hold {_shown(value)}: {reason}"


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"


def _refuse_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return "it is no str"
    if "\0" in value:
        return "it contains NUL"
    return None if value.isascii() or value.encode("utf-8", "ignore").decode() == value else "it has a lone surrogate"


def _refuse_integer(value: Any) -> str | None:
    if not isinstance(value, int):
        return "it is no int"
    return None if -(2**63) <= value < 2**63 else "it needs more than 64 bits"


def _refuse_real(value: Any) -> str | None:
    if isinstance(value, float):
        return "it is not a number" if math.isnan(value) else None
    if isinstance(value, int) and abs(value) <= _EXACT_FLOAT_MAX:
        return None
    return "it is no float"


def _refuse_boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "it is no bool"


def _refuse_decimal(value: Any) -> str | None:
    if not isinstance(value, Decimal):
        return "it is no Decimal"
    return None if value.is_finite() else "it is not finite"


def _refuse_datetime(value: Any) -> str | None:
    if not isinstance(value, dt.datetime):
        return "it is no datetime"
    if value.utcoffset() is None:
        return "it has no time zone"
    return None if _EARLIEST <= value <= _LATEST else "in UTC it is outside the years 1 to 9999"


def _refuse_date(value: Any) -> str | None:
    dated = isinstance(value, dt.date) and not isinstance(value, dt.datetime)
    return None if dated else "it is no date"


def _refuse_duration(value: Any) -> str | None:
    if not isinstance(value, dt.timedelta):
        return "it is no timedelta"
    return None if _refuse_integer(value // _MICROSECOND) is None else "its microseconds need more than 64 bits"


def _refuse_bytes(value: Any) -> str | None:
    return None if isinstance(value, bytes) else "it is no bytes"


_REFUSALS: Mapping[ColumnKind, Callable[[Any], str | None]] = {
    ColumnKind.TEXT: _refuse_text,
    ColumnKind.INTEGER: _refuse_integer,
    ColumnKind.REAL: _refuse_real,
    ColumnKind.BOOLEAN: _refuse_boolean,
    ColumnKind.DECIMAL: _refuse_decimal,
    ColumnKind.DATETIME: _refuse_datetime,
    ColumnKind.DATE: _refuse_date,
    ColumnKind.DURATION: _refuse_duration,
    ColumnKind.BYTES: _refuse_bytes,
    ColumnKind.DOCUMENT: _refuse_text,
}
