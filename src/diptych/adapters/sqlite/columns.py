"""How the values of read models are kept in SQLite's columns: exact, and in Python's order (rule 32).

Most kinds have a form of their own. A decimal is kept as text that sorts by value, and its exponent in a second
column (`adapters/sorting_decimals.py`).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from diptych.adapters.sorting_decimals import DecodeError, decode_decimal, encode_decimal
from diptych.errors import ConfigurationError
from diptych.read_side.read_store import Column, ColumnKind, Row, Table
from diptych.read_side.row_refusal import row_refusal, value_refusal

__all__ = [
    "DecodeError",
    "RowCodec",
    "Unstorable",
    "decode_decimal",
    "decode_moment",
    "decode_result",
    "encode_decimal",
    "encode_moment",
    "encode_parameter",
    "encode_value",
    "exponent_column",
]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
Encoder: TypeAlias = Callable[[Any], Any]


class Unstorable(Exception):
    """A row that no column can keep; the text names column and value."""


# ── the other kinds ──────────────────────────────────────────────────────────


def _encode_datetime(value: dt.datetime) -> int:
    return (value - _EPOCH) // _MICROSECOND


def _decode_datetime(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)


def encode_moment(value: dt.datetime | None) -> int | None:
    """A moment of the catalog as it is stored: microseconds since 1970."""
    return None if value is None else _encode_datetime(value)


def decode_moment(microseconds: int | None) -> dt.datetime | None:
    """A moment of the catalog from what is stored of it."""
    return None if microseconds is None else _decode_datetime(microseconds)


def _encode_duration(value: dt.timedelta) -> int:
    return value // _MICROSECOND


def _decode_duration(microseconds: int) -> dt.timedelta:
    return dt.timedelta(microseconds=microseconds)


def _encode_decimal_text(value: Decimal) -> str:
    return encode_decimal(value)[0]


_TYPES: Mapping[ColumnKind, type] = {
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
_ENCODERS: Mapping[ColumnKind, Encoder] = {
    ColumnKind.BOOLEAN: int,
    ColumnKind.DECIMAL: _encode_decimal_text,
    ColumnKind.DATETIME: _encode_datetime,
    ColumnKind.DATE: dt.date.toordinal,
    ColumnKind.DURATION: _encode_duration,
}
_DECODERS: Mapping[ColumnKind, Callable[[Any], Any]] = {
    ColumnKind.BOOLEAN: bool,
    ColumnKind.DATETIME: _decode_datetime,
    ColumnKind.DATE: dt.date.fromordinal,
    ColumnKind.DURATION: _decode_duration,
}


def encode_value(column: Column, value: Any) -> Any:
    """One value of a column as SQLite compares it; of a decimal, the text.

    Raises:
        Unstorable: the column cannot hold it.
    """
    if value is None:
        return None
    reason = value_refusal(column, value)
    if reason is not None:
        raise Unstorable(reason)
    encoder = _ENCODERS.get(column.kind)
    return value if encoder is None else encoder(value)


def encode_parameter(value: Any) -> Any:
    """A parameter of the user's SQL as the columns of its Python type keep it.

    Raises:
        ConfigurationError: no column keeps values of its type.
    """
    for kind in _PARAMETER_KINDS if value is not None else ():
        column = Column("parameter", kind)
        if value_refusal(column, value) is None:
            return encode_value(column, value)
    if value is None:
        return None
    raise ConfigurationError(f"an SQL parameter cannot be {value!r}: read models keep no such values")


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


_STORED_TYPES: Mapping[ColumnKind, tuple[type, ...]] = {
    ColumnKind.TEXT: (str,),
    ColumnKind.REAL: (float, int),
    ColumnKind.DECIMAL: (str, int),
    ColumnKind.BYTES: (bytes,),
    ColumnKind.DOCUMENT: (str,),
}


def decode_result(kind: ColumnKind, value: Any, exponent: int | None) -> Any:
    """A value of the user's SQL as the kind asked for; `exponent` is that of a decimal, where it was selected.

    Raises:
        DecodeError: it is of another kind.
    """
    stored: Any = value
    if not isinstance(value, _STORED_TYPES.get(kind, (int,))):
        raise DecodeError(f"{value!r} is not of the kind {kind.value}")
    if kind is ColumnKind.DECIMAL:
        return Decimal(stored) if isinstance(value, int) else decode_decimal(stored, exponent)
    try:
        return float(stored) if kind is ColumnKind.REAL else _DECODERS.get(kind, _as_it_is)(stored)
    except (OverflowError, ValueError) as error:
        raise DecodeError(f"{value!r} is not of the kind {kind.value}") from error


def _as_it_is(value: Any) -> Any:
    return value


# ── rows ─────────────────────────────────────────────────────────────────────


def exponent_column(name: str) -> str:
    """The column that keeps the exponents of a decimal one."""
    return f"{name}__exponent"


class RowCodec:
    """The rows of one table as SQLite keeps them: its columns in order, then the exponents of the decimals.

    Encodes column by column: what needs no change costs a look at its type and, for text, a search for NUL.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._columns = {column.name: column for column in table.columns}
        self._decimals = [n for n, column in enumerate(table.columns) if column.kind is ColumnKind.DECIMAL]
        self._decoders = [
            (n, _DECODERS[column.kind]) for n, column in enumerate(table.columns) if column.kind in _DECODERS
        ]
        self._width = len(table.columns)
        self._key_columns = [self._columns[name] for name in table.key]
        self._key_encoders = [_ENCODERS.get(column.kind) for column in self._key_columns]
        self._key_is_plain = not any(self._key_encoders)
        names = [column.name for column in table.columns]
        self._key_places = [names.index(name) for name in table.key]

    @property
    def stored(self) -> list[str]:
        """The names of the stored columns, in order."""
        names = [column.name for column in self.table.columns]
        return names + [exponent_column(names[n]) for n in self._decimals]

    @property
    def stored_key(self) -> list[str]:
        """The names of the stored columns of a key, in order."""
        decimals = [column.name for column in self._key_columns if column.kind is ColumnKind.DECIMAL]
        return [*self.table.key, *map(exponent_column, decimals)]

    def column(self, name: str) -> Column:
        """The column of that name."""
        return self._columns[name]

    def encode(self, rows: Sequence[Row]) -> Iterable[tuple[Any, ...]]:
        """The rows as they are stored.

        Raises:
            Unstorable: a row cannot be; the text names column and value.
        """
        try:
            return self._encode(rows)
        except (TypeError, ValueError, ArithmeticError) as error:
            self.explain(rows)
            raise Unstorable(f"a row cannot be encoded: {error}") from error

    def explain(self, rows: Sequence[Row]) -> None:
        """Look for the row that was refused.

        Raises:
            Unstorable: this is the one, and why.
        """
        for row in rows:
            reason = row_refusal(self.table, row)
            if reason is not None:
                raise Unstorable(reason)

    def _encode(self, rows: Sequence[Row]) -> Iterable[tuple[Any, ...]]:
        stored: list[Sequence[Any]] = []
        exponents: list[Sequence[Any]] = []
        for column, values in zip(self.table.columns, zip(*rows, strict=True), strict=True):
            nullable = column.nullable and column.name not in self.table.key
            if not _are_plain(column.kind, values, nullable=nullable):
                _check_each(column, values, nullable=nullable)
            if column.kind is ColumnKind.DECIMAL:
                pairs = [(None, None) if value is None else encode_decimal(value) for value in values]
                texts, powers = zip(*pairs, strict=True)
                stored.append(texts)
                exponents.append(powers)
            else:
                encode = _ENCODERS.get(column.kind)
                stored.append(values if encode is None else [v if v is None else encode(v) for v in values])
        return zip(*stored, *exponents, strict=True)

    def encode_key(self, key: Sequence[Any]) -> Sequence[Any]:
        """A key as it is stored, unchecked.

        Raises:
            TypeError, ValueError, ArithmeticError: it cannot be encoded, and so has no row.
        """
        if self._key_is_plain:
            return key
        return [v if encode is None else encode(v) for encode, v in zip(self._key_encoders, key, strict=True)]

    def may_have_row(self, key: Sequence[Any]) -> bool:
        """Whether a row of this key could have been stored."""
        return all(value_refusal(column, value) is None for column, value in zip(self._key_columns, key, strict=True))

    def key_of(self, row: Row) -> tuple[Any, ...]:
        """The key of a decoded row."""
        return tuple([row[place] for place in self._key_places])

    def decode_key(self, stored: Sequence[Any]) -> tuple[Any, ...]:
        """A key from what is stored of its columns, then of the exponents of the decimals among them."""
        exponents = iter(stored[len(self._key_columns) :])
        return tuple(
            decode_decimal(value, next(exponents))
            if column.kind is ColumnKind.DECIMAL
            else _DECODERS.get(column.kind, _as_it_is)(value)
            for column, value in zip(self._key_columns, stored, strict=False)
        )

    def decode(self, stored: tuple[Any, ...]) -> Row:
        """A row from what is stored of it."""
        if not self._decoders and not self._decimals:
            return stored
        values = list(stored[: self._width])
        for place, decode in self._decoders:
            if values[place] is not None:
                values[place] = decode(values[place])
        for extra, place in enumerate(self._decimals, self._width):
            if values[place] is not None:
                values[place] = decode_decimal(values[place], stored[extra])
        return tuple(values)


def _are_plain(kind: ColumnKind, values: Sequence[Any], *, nullable: bool) -> bool:
    """Whether the values are sure to fit: large integers and lone surrogates aside, which `sqlite3` refuses itself."""
    types = set(map(type, values))
    if nullable:
        types.discard(type(None))
    if not types <= {_TYPES[kind]}:
        return False
    if kind is ColumnKind.TEXT or kind is ColumnKind.DOCUMENT:
        return "\0" not in "".join([value for value in values if value is not None] if nullable else values)
    if kind is ColumnKind.REAL:
        return not any(value is not None and math.isnan(value) for value in values)
    if kind is ColumnKind.DATETIME:
        return all(value is None or value.tzinfo is dt.UTC for value in values)
    return True


def _check_each(column: Column, values: Sequence[Any], *, nullable: bool) -> None:
    for value in values:
        if value is None and not nullable:
            raise Unstorable(f"column {column.name} cannot be None")
        reason = value_refusal(column, value)
        if reason is not None:
            raise Unstorable(reason)
