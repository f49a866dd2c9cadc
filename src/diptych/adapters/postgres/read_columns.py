"""How the values of read models are kept in PostgreSQL's columns: exact, and in Python's order (rule 32).

Each kind has the column type that SQL written by hand expects, so that `sum(price)` and `day + 7` work. A decimal is a
`numeric`, which keeps value and scale; only an exponent above zero (4E+1 is not written 40) is beyond it, and kept in a
second column. Documents are `json`, not `jsonb`: they read back character by character.

The driver's own codecs of dates and datetimes read the ends of Python's calendar as infinity, and back without a time
zone: `teach` replaces them.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from diptych.errors import ConfigurationError
from diptych.read_side.read_store import Column, ColumnKind, Key, Row, Table
from diptych.read_side.row_refusal import value_refusal

if TYPE_CHECKING:
    from asyncpg import Record

    from diptych.adapters.postgres.connection import Link

__all__ = [
    "TYPES",
    "DecodeError",
    "RowCodec",
    "Unstorable",
    "cast_of",
    "decode_decimal",
    "decode_result",
    "refusal",
    "teach",
]

NUMERIC_DIGITS_MAX = 131_072
"""Digits of a `numeric` before the point."""
NUMERIC_SCALE_MAX = 16_383
"""Digits of a `numeric` behind the point."""
KEY_SHOWN_CHARACTERS_MAX = 200
"""Of a key in the text of an error."""

TYPES: Mapping[ColumnKind, str] = {
    ColumnKind.TEXT: "text",
    ColumnKind.INTEGER: "bigint",
    ColumnKind.REAL: "double precision",
    ColumnKind.BOOLEAN: "boolean",
    ColumnKind.DECIMAL: "numeric",
    ColumnKind.DATETIME: "timestamptz",
    ColumnKind.DATE: "date",
    ColumnKind.DURATION: "interval",
    ColumnKind.BYTES: "bytea",
    ColumnKind.DOCUMENT: "json",
}
_PYTHON_TYPES: Mapping[ColumnKind, type] = {
    ColumnKind.TEXT: str,
    ColumnKind.INTEGER: int,
    ColumnKind.REAL: float,
    ColumnKind.BOOLEAN: bool,
    ColumnKind.DECIMAL: Decimal,
    ColumnKind.DATETIME: dt.datetime,
    ColumnKind.DATE: dt.date,
    ColumnKind.DURATION: dt.timedelta,
    ColumnKind.BYTES: bytes,
    ColumnKind.DOCUMENT: str,
}
_INTEGERS = range(-(2**63), 2**63)
_SHORTEST, _LONGEST = (dt.timedelta(microseconds=n) for n in (_INTEGERS[0], _INTEGERS[-1]))
_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_EPOCH_ORDINAL = dt.date(2000, 1, 1).toordinal()
_MICROSECOND = dt.timedelta(microseconds=1)


class Unstorable(Exception):
    """A row that no column can keep; the text names column and value."""


class DecodeError(ValueError):
    """What a column of a result holds is not of the kind asked for."""


# ── the driver ───────────────────────────────────────────────────────────────


async def teach(link: Link) -> None:
    """Let a new connection read and write every date and datetime of Python's as what it is."""
    for name, encode, decode in (
        ("timestamptz", _encode_datetime, _decode_datetime),
        ("date", _encode_date, _decode_date),
    ):
        await link.set_type_codec(name, schema="pg_catalog", encoder=encode, decoder=decode, format="tuple")


def _encode_datetime(value: dt.datetime) -> tuple[int]:
    return ((value - _EPOCH) // _MICROSECOND,)


def _decode_datetime(stored: tuple[int]) -> dt.datetime | int:
    """The instant; past Python's calendar the number, which is of no kind that anybody asks for."""
    try:
        return _EPOCH + dt.timedelta(microseconds=stored[0])
    except OverflowError:
        return stored[0]


def _encode_date(value: dt.date) -> tuple[int]:
    return (value.toordinal() - _EPOCH_ORDINAL,)


def _decode_date(stored: tuple[int]) -> dt.date | int:
    try:
        return dt.date.fromordinal(stored[0] + _EPOCH_ORDINAL)
    except (OverflowError, ValueError):
        return stored[0]


# ── what PostgreSQL refuses ──────────────────────────────────────────────────


def refusal(column: Column, value: Any) -> str | None:
    """Why no column of this kind takes this value, naming both; None where it does."""
    reason = value_refusal(column, value)
    if reason is None and column.kind is ColumnKind.DECIMAL and value is not None and not _is_numeric(value):
        return (
            f"column {column.name} cannot hold {value.adjusted():+d} as the exponent of a number: PostgreSQL keeps "
            f"{NUMERIC_DIGITS_MAX} digits before the point and {NUMERIC_SCALE_MAX} behind it"
        )
    return reason


def _is_numeric(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "only finite numbers come here"
    return exponent >= -NUMERIC_SCALE_MAX and value.adjusted() < NUMERIC_DIGITS_MAX


# ── SQL written by hand ──────────────────────────────────────────────────────

_PARAMETER_KINDS = (
    ColumnKind.TEXT,
    ColumnKind.BOOLEAN,
    ColumnKind.INTEGER,
    ColumnKind.REAL,
    ColumnKind.DECIMAL,
    ColumnKind.DATETIME,
    ColumnKind.DATE,
    ColumnKind.DURATION,
    ColumnKind.BYTES,
)


def cast_of(value: Any) -> str:
    """The column type that keeps values like this parameter of the user's SQL.

    Raises:
        ConfigurationError: no column keeps such values.
    """
    for kind in _PARAMETER_KINDS:
        if refusal(Column("parameter", kind), value) is None:
            return TYPES[kind]
    raise ConfigurationError(f"an SQL parameter cannot be {value!r}: read models keep no such values")


def _fits_integer(value: Any) -> bool:
    """Also a whole `numeric`: PostgreSQL gives sums of integers as such."""
    if isinstance(value, Decimal):
        return value.is_finite() and value == int(value)
    return type(value) is int


_FITS: Mapping[ColumnKind, Callable[[Any], bool]] = {
    ColumnKind.TEXT: lambda value: isinstance(value, str),
    ColumnKind.INTEGER: _fits_integer,
    ColumnKind.REAL: lambda value: type(value) in {float, int, Decimal},
    ColumnKind.BOOLEAN: lambda value: isinstance(value, bool),
    ColumnKind.DECIMAL: lambda value: type(value) in {Decimal, int},
    ColumnKind.DATETIME: lambda value: isinstance(value, dt.datetime) and value.tzinfo is not None,
    ColumnKind.DATE: lambda value: type(value) is dt.date,
    ColumnKind.DURATION: lambda value: isinstance(value, dt.timedelta),
    ColumnKind.BYTES: lambda value: isinstance(value, bytes),
    ColumnKind.DOCUMENT: lambda value: isinstance(value, str),
}


def decode_result(kind: ColumnKind, value: Any, exponent: int | None) -> Any:
    """A value of the user's SQL as the kind asked for; `exponent` is that of a decimal, where it was selected.

    Raises:
        DecodeError: it is of another kind.
    """
    if not _FITS[kind](value):
        raise DecodeError(f"{value!r} is not of the kind {kind.value}")
    if kind is ColumnKind.DECIMAL:
        return decode_decimal(format(Decimal(value), "f"), exponent)  # the driver may give 40000 as 4E+4
    return _PYTHON_TYPES[kind](value) if kind in {ColumnKind.INTEGER, ColumnKind.REAL} else value


# ── rows ─────────────────────────────────────────────────────────────────────


def decode_decimal(text: str, exponent: int | None) -> Decimal:
    """A number from its digits, and from its exponent where that is above zero."""
    return Decimal(text) if exponent is None else Decimal(f"{text[:-exponent].rstrip('-') or '0'}E{exponent}")


def _is_plainly_written(value: Decimal) -> bool:
    """Whether a finite number is written without exponent, and is short: a quick look that settles nearly all."""
    text = str(value)
    return "E" not in text and len(text) < NUMERIC_SCALE_MAX


def _exponent_above_zero(value: Decimal | None) -> int | None:
    if value is None or _is_plainly_written(value):
        return None
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "only finite numbers come here"
    return exponent if exponent > 0 else None


class RowCodec:
    """The rows of one table as PostgreSQL keeps them: its columns in order, then the exponents of the decimals."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._columns = {column.name: column for column in table.columns}
        names = list(self._columns)
        self._decimals = [n for n, column in enumerate(table.columns) if column.kind is ColumnKind.DECIMAL]
        self._width = len(names)
        self.key_columns = [self._columns[name] for name in table.key]
        self._key_places = [names.index(name) for name in table.key]
        self._searchable = [n for n, column in enumerate(table.columns) if column.searchable]

    def column(self, name: str) -> Column:
        """The column of that name."""
        return self._columns[name]

    def by_key(self, stored: Sequence[Record | Row]) -> dict[Key, Row]:
        """Rows, from what is stored of them, by key."""
        rows = [self.decode(each) for each in stored] if self._decimals else list(map(tuple, stored))
        if len(self._key_places) == 1:
            (place,) = self._key_places
            return {(row[place],): row for row in rows}
        return dict(zip(map(itemgetter(*self._key_places), rows), rows, strict=True))

    def key_of(self, row: Row) -> tuple[Any, ...]:
        """The key of a row."""
        return tuple([row[place] for place in self._key_places])

    # ── writing ──────────────────────────────────────────────────────────────

    def distinct(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows, of those with equal keys the last: one statement cannot change a row twice.

        Raises:
            Unstorable: a row has not the right length.
        """
        for row in rows:
            if len(row) != self._width:
                raise Unstorable(f"{self.table.name} has {self._width} columns, the row has {len(row)} values")
        places = self._key_places
        keys = map(itemgetter(*places), rows)
        try:
            return list(dict(zip(keys, rows, strict=True)).values())
        except TypeError:  # a value that cannot be hashed is of no kind that a key may have: told below
            return rows

    def arrays(self, rows: Sequence[Row]) -> list[Sequence[Any]]:
        """The columns of the rows, then the exponents of the decimals.

        Raises:
            Unstorable: a value cannot be stored; the text names column and value.
        """
        arrays: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for column, values in zip(self.table.columns, arrays, strict=True):
            self._check(column, values, rows)
        return arrays + [[_exponent_above_zero(value) for value in arrays[n]] for n in self._decimals]

    def searched(self, row: Row) -> list[str]:
        """The texts of a row that are searched."""
        return [row[n] for n in self._searchable if row[n] is not None]

    def _check(self, column: Column, values: Sequence[Any], rows: Sequence[Row]) -> None:
        nullable = column.nullable and column.name not in self.table.key
        if _are_plain(column.kind, values, nullable=nullable):
            return
        for value, row in zip(values, rows, strict=True):
            reason = refusal(column, value)
            if value is None and not nullable:
                reason = f"column {column.name} cannot be None"
            if reason is not None:
                raise Unstorable(f"{reason} ({self.named(row)})")

    def named(self, row: Row) -> str:
        """A row, for messages."""
        key = ascii(self.key_of(row))
        shown = key if len(key) <= KEY_SHOWN_CHARACTERS_MAX else f"{key[:KEY_SHOWN_CHARACTERS_MAX]}…"
        return f"in the row with the key {shown}"

    def key_arrays(self, keys: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        """The columns of the keys, without those that no row can have."""
        arrays = list(zip(*keys, strict=True)) or [()] * len(self.key_columns)
        columns = zip(self.key_columns, arrays, strict=True)
        if all(_are_plain(column.kind, values, nullable=False) for column, values in columns):
            return arrays
        keys = [key for key in keys if self._may_have_row(key)]
        return [[key[n] for key in keys] for n in range(len(self.key_columns))]

    def _may_have_row(self, key: Sequence[Any]) -> bool:
        return all(
            value is not None and refusal(column, value) is None
            for column, value in zip(self.key_columns, key, strict=True)
        )

    # ── reading ──────────────────────────────────────────────────────────────

    def decode(self, stored: Record | Row) -> Row:
        """A row from what is stored of it, with decimals as text."""
        if not self._decimals:
            return tuple(stored)
        values: list[Any] = list(stored[: self._width])
        for extra, place in enumerate(self._decimals, self._width):
            if values[place] is not None:
                values[place] = decode_decimal(values[place], stored[extra])
        return tuple(values)

    def decode_key(self, stored: Record) -> tuple[Any, ...]:
        """A key from what is stored of its columns, then of the exponents of the decimals among them."""
        exponents = iter(stored[len(self.key_columns) :])
        return tuple(
            decode_decimal(value, next(exponents)) if column.kind is ColumnKind.DECIMAL else value
            for column, value in zip(self.key_columns, stored, strict=False)
        )


def _are_plain(kind: ColumnKind, values: Sequence[Any], *, nullable: bool) -> bool:
    """Whether the values are sure to fit, by a look at all of them together."""
    types = set(map(type, values))
    if nullable:
        types.discard(type(None))
    if not types <= {_PYTHON_TYPES[kind]}:
        return False
    held = [value for value in values if value is not None] if nullable else values
    match kind:
        case ColumnKind.TEXT | ColumnKind.DOCUMENT:
            text = "".join(held)
            return "\0" not in text and (text.isascii() or text.encode("utf-8", "ignore").decode() == text)
        case ColumnKind.INTEGER:
            return not held or (min(held) in _INTEGERS and max(held) in _INTEGERS)
        case ColumnKind.REAL:
            return not any(map(math.isnan, held))
        case ColumnKind.DATETIME:
            return all(value.tzinfo is dt.UTC for value in held)
        case ColumnKind.DECIMAL:
            return all(value.is_finite() and _is_plainly_written(value) for value in held)
        case ColumnKind.DURATION:
            return not held or (min(held) >= _SHORTEST and max(held) <= _LONGEST)
        case _:
            return True
