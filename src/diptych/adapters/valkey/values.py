"""How values are kept: as text that reads well in a row, and as bytes that sort as Python does in an index (rule 32).

A sorted set whose scores are all 0 is ordered by its members, byte by byte. A member is the value of a column and then
the key of its row, each so that it says where it ends: of two that begin alike, the shorter sorts first. None is the
byte 0, anything else begins with 1, so that None is first.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from diptych.read_side.read_store import Column, ColumnKind

__all__ = ["as_text", "from_text", "sortable", "sortable_all"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_SIGN = 1 << 63
_COMPLEMENT = bytes(range(255, -1, -1))


def as_text(column: Column, value: Any) -> bytes:
    """What the field of a row's hash holds; a value that is None has no field."""
    return _TO_TEXT[column.kind](value)


def from_text(column: Column, text: bytes) -> Any:
    """The value of a field."""
    return _FROM_TEXT[column.kind](text)


def sortable(column: Column, value: Any) -> bytes:
    """The value as it sorts."""
    return b"\0" if value is None else b"\1" + _SORTABLE[column.kind](value)


def sortable_all(columns: Sequence[Column], values: Sequence[Any]) -> bytes:
    """Several values as they sort, the first of them first; of a key it is what tells its row from others."""
    return b"".join(map(sortable, columns, values))


# ── text ─────────────────────────────────────────────────────────────────────


def _moment_from(text: bytes) -> dt.datetime:
    return dt.datetime.fromisoformat(text.decode())


def _moment_text(value: dt.datetime) -> bytes:
    return value.astimezone(dt.UTC).isoformat().encode()


_TO_TEXT: Mapping[ColumnKind, Callable[[Any], bytes]] = {
    ColumnKind.TEXT: str.encode,
    ColumnKind.INTEGER: lambda value: b"%d" % value,
    ColumnKind.REAL: lambda value: repr(float(value)).encode(),
    ColumnKind.BOOLEAN: lambda value: b"true" if value else b"false",
    ColumnKind.DECIMAL: lambda value: str(value).encode(),
    ColumnKind.DATETIME: _moment_text,
    ColumnKind.DATE: lambda value: value.isoformat().encode(),
    ColumnKind.DURATION: lambda value: b"%d" % (value // _MICROSECOND),
    ColumnKind.BYTES: bytes,
    ColumnKind.DOCUMENT: str.encode,
}
_FROM_TEXT: Mapping[ColumnKind, Callable[[bytes], Any]] = {
    ColumnKind.TEXT: bytes.decode,
    ColumnKind.INTEGER: int,
    ColumnKind.REAL: float,
    ColumnKind.BOOLEAN: lambda text: text == b"true",
    ColumnKind.DECIMAL: lambda text: Decimal(text.decode()),
    ColumnKind.DATETIME: _moment_from,
    ColumnKind.DATE: lambda text: dt.date.fromisoformat(text.decode()),
    ColumnKind.DURATION: lambda text: dt.timedelta(microseconds=int(text)),
    ColumnKind.BYTES: bytes,
    ColumnKind.DOCUMENT: bytes.decode,
}


# ── order ────────────────────────────────────────────────────────────────────


def _integer(value: int) -> bytes:
    return (value + _SIGN).to_bytes(8, "big")


def _real(value: float) -> bytes:
    """Of a number that is not negative the bits sort as they are, but for the sign; of others the other way round."""
    bits = int.from_bytes(struct.pack(">d", float(value) + 0.0), "big")  # + 0.0: -0.0 is 0.0
    return (bits ^ (2 * _SIGN - 1) if bits & _SIGN else bits | _SIGN).to_bytes(8, "big")


def _decimal(value: Decimal) -> bytes:
    """Its sign, the exponent of the leading digit, the digits; of a negative one complemented, the shorter the larger.

    Equal values have one form, whatever their exponent.
    """
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    significant = bytes(digits).lstrip(b"\0")
    if not significant:
        return b"\1"
    body = _integer(exponent + len(significant) - 1) + bytes(digit + 1 for digit in significant.rstrip(b"\0")) + b"\0"
    return b"\0" + body.translate(_COMPLEMENT) if sign else b"\2" + body


_SORTABLE: Mapping[ColumnKind, Callable[[Any], bytes]] = {
    ColumnKind.TEXT: lambda value: value.encode() + b"\0",  # which holds no NUL
    ColumnKind.INTEGER: _integer,
    ColumnKind.REAL: _real,
    ColumnKind.BOOLEAN: lambda value: b"\1" if value else b"\0",
    ColumnKind.DECIMAL: _decimal,
    ColumnKind.DATETIME: lambda value: _integer((value - _EPOCH) // _MICROSECOND),
    ColumnKind.DATE: lambda value: _integer(value.toordinal()),
    ColumnKind.DURATION: lambda value: _integer(value // _MICROSECOND),
    ColumnKind.BYTES: lambda value: value.replace(b"\0", b"\0\xff") + b"\0\0",
}
