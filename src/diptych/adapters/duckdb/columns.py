"""How the values of read models are kept in DuckDB's columns: exact, and in Python's order (rule 32).

DuckDB's own decimals end at 38 digits. A decimal is therefore kept as text that sorts by value (`sorting_decimals`),
with its exponent, and once more as DECIMAL(38,12), which SQL can add up; where that has no room for it, views raise
an error rather than leave it out of a sum.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from diptych.adapters.sorting_decimals import DecodeError, decode_decimal, encode_decimal
from diptych.errors import ConfigurationError
from diptych.read_side.read_store import Column, ColumnKind, Key, Row, Table
from diptych.read_side.row_filters import words_of
from diptych.read_side.row_refusal import value_refusal

__all__ = [
    "DECIMAL_TYPE",
    "ExportCodec",
    "RowCodec",
    "Unstorable",
    "compared_column",
    "decode_moment",
    "decode_result",
    "encode_moment",
    "encode_parameter",
    "encode_value",
    "exponent_column",
    "quoted",
    "sorted_column",
    "stored_type",
]

SQL_DECIMAL_DIGITS = 38
"""Of a decimal as SQL sees it; DuckDB has no more."""
SQL_DECIMAL_SCALE = 12
"""Of them behind the point; a decimal with more, or with more than the rest before it, is an error in SQL."""

DECIMAL_TYPE = f"DECIMAL({SQL_DECIMAL_DIGITS},{SQL_DECIMAL_SCALE})"

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_STORED_TYPES: Mapping[ColumnKind, str] = {
    ColumnKind.TEXT: "VARCHAR",
    ColumnKind.INTEGER: "BIGINT",
    ColumnKind.REAL: "DOUBLE",
    ColumnKind.BOOLEAN: "BOOLEAN",
    ColumnKind.DECIMAL: "VARCHAR",  # of the column that is compared
    ColumnKind.DATETIME: "TIMESTAMPTZ",
    ColumnKind.DATE: "DATE",
    ColumnKind.DURATION: "BIGINT",  # microseconds: an INTERVAL can be neither a key nor summed
    ColumnKind.BYTES: "BLOB",
    ColumnKind.DOCUMENT: "JSON",
}
_RESULT_TYPES: Mapping[ColumnKind, tuple[type, ...]] = {
    ColumnKind.TEXT: (str,),
    ColumnKind.INTEGER: (int,),
    ColumnKind.REAL: (float, int, Decimal),
    ColumnKind.BOOLEAN: (bool,),
    ColumnKind.DECIMAL: (Decimal, int),
    ColumnKind.DATETIME: (dt.datetime,),
    ColumnKind.DATE: (dt.date,),
    ColumnKind.DURATION: (int, dt.timedelta),
    ColumnKind.BYTES: (bytes,),
    ColumnKind.DOCUMENT: (str,),
}
_PARAMETER_KINDS = tuple(kind for kind in ColumnKind if kind is not ColumnKind.DOCUMENT)


class Unstorable(Exception):
    """A value that no column can keep; the text names column and value."""


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def exponent_column(name: str) -> str:
    """The column that keeps the exponents of a decimal one."""
    return f"{name}__exponent"


def sorted_column(name: str) -> str:
    """The column that keeps the text of a decimal one, which sorts."""
    return f"{name}__sorted"


def compared_column(column: Column) -> str:
    """The column that tells values apart and sorts them."""
    return sorted_column(column.name) if column.kind is ColumnKind.DECIMAL else column.name


def stored_type(kind: ColumnKind) -> str:
    """The type of the column that is compared."""
    return _STORED_TYPES[kind]


# ── values ───────────────────────────────────────────────────────────────────


def encode_moment(value: dt.datetime | None) -> int | None:
    """A moment of the catalog as it is stored: microseconds since 1970."""
    return None if value is None else (value - _EPOCH) // _MICROSECOND


def decode_moment(microseconds: int | None) -> dt.datetime | None:
    """A moment from what is stored of it."""
    return None if microseconds is None else _EPOCH + dt.timedelta(microseconds=microseconds)


def encode_value(column: Column, value: Any) -> Any:
    """One value of a column as it is compared; of a decimal, the text.

    Raises:
        Unstorable: the column cannot hold it.
    """
    reason = None if value is None else value_refusal(column, value)
    if reason is not None:
        raise Unstorable(reason)
    return _encode(column.kind, value)


def _encode(kind: ColumnKind, value: Any) -> Any:
    if value is None:
        return None
    if kind is ColumnKind.DECIMAL:
        return encode_decimal(value)[0]
    if kind is ColumnKind.DURATION:
        return value // _MICROSECOND
    return float(value) if kind is ColumnKind.REAL else value


def _sql_decimal(value: Decimal | None) -> Decimal | None:
    """What SQL adds up; None where it has no room for it."""
    if value is None or not value:
        return value if value is None else Decimal(0)
    if value.adjusted() >= SQL_DECIMAL_DIGITS - SQL_DECIMAL_SCALE:
        return None
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int), "it is finite"
    surplus = -exponent - SQL_DECIMAL_SCALE
    return None if surplus > 0 and any(digits[-surplus:]) else value


def encode_parameter(value: Any) -> Any:
    """A parameter of the user's SQL as views show values of its type.

    Raises:
        ConfigurationError: no column keeps such values, or SQL has no room for it.
    """
    kinds = [kind for kind in _PARAMETER_KINDS if value_refusal(Column("parameter", kind), value) is None]
    if value is not None and not kinds:
        raise ConfigurationError(f"an SQL parameter cannot be {value!r}: read models keep no such values")
    if kinds == [ColumnKind.DECIMAL] and _sql_decimal(value) is None:
        raise ConfigurationError(f"an SQL parameter cannot be {value!r}: it does not fit {DECIMAL_TYPE}")
    return _encode(ColumnKind.DURATION, value) if kinds == [ColumnKind.DURATION] else value


def decode_result(kind: ColumnKind, value: Any, exponent: Any) -> Any:
    """A value of the user's SQL as the kind asked for; `exponent` is that of a decimal, where it was selected.

    Raises:
        DecodeError: it is of another kind.
    """
    found: Any = value
    mixed_up = (isinstance(value, bool) and kind is not ColumnKind.BOOLEAN) or (
        isinstance(value, dt.datetime) and kind is ColumnKind.DATE
    )
    if mixed_up or not isinstance(value, _RESULT_TYPES[kind]):
        raise DecodeError(f"{value!r} is not of the kind {kind.value}")
    if kind is ColumnKind.DATETIME:
        if found.tzinfo is None:
            raise DecodeError(f"{found!r} has no time zone: cast it to TIMESTAMPTZ")
        return found.astimezone(dt.UTC)
    if kind is ColumnKind.DECIMAL:
        return _decode_decimal(Decimal(found), exponent)
    if kind is ColumnKind.DURATION:
        return _as_duration(found)
    return float(found) if kind is ColumnKind.REAL else found


def _decode_decimal(value: Decimal, exponent: Any) -> Decimal:
    """With the exponent that it was written with, or with as few zeros as it can."""
    return decode_decimal(encode_decimal(value)[0], exponent if isinstance(exponent, int) else None)


def _as_duration(value: int | dt.timedelta) -> dt.timedelta:
    try:
        return value if isinstance(value, dt.timedelta) else dt.timedelta(microseconds=value)
    except OverflowError as error:
        raise DecodeError(f"{value!r} microseconds are too many for a duration") from error


# ── rows ─────────────────────────────────────────────────────────────────────


class RowCodec:
    """The rows of one table as DuckDB keeps them: its columns in order, then text and exponent of each decimal.

    The words of searchable columns come last, each after a blank: " warm drinks".
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._columns = {column.name: column for column in table.columns}
        self._decimals = [n for n, column in enumerate(table.columns) if column.kind is ColumnKind.DECIMAL]
        self._durations = [n for n, column in enumerate(table.columns) if column.kind is ColumnKind.DURATION]
        self._datetimes = [n for n, column in enumerate(table.columns) if column.kind is ColumnKind.DATETIME]
        self._reals = [n for n, column in enumerate(table.columns) if column.kind is ColumnKind.REAL]
        self._searchable = [n for n, column in enumerate(table.columns) if column.searchable]
        names = [column.name for column in table.columns]
        self._key_places = [names.index(name) for name in table.key]
        self.key_columns = [self._columns[name] for name in table.key]

    @property
    def is_searchable(self) -> bool:
        """Whether there are words to be found."""
        return bool(self._searchable)

    @property
    def selected(self) -> str:
        """What is selected of a row, for `decode`."""
        exponents = [exponent_column(self.table.columns[n].name) for n in self._decimals]
        return ", ".join([*map(_selected, self.table.columns), *map(quoted, exponents)])

    @property
    def selected_key(self) -> str:
        """What is selected of a row, for `decode_key`."""
        exponents = [exponent_column(column.name) for column in self.key_columns if column.kind is ColumnKind.DECIMAL]
        return ", ".join([*map(_selected, self.key_columns), *map(quoted, exponents)])

    def column(self, name: str) -> Column:
        """The column of that name."""
        return self._columns[name]

    def encode(self, rows: Sequence[Row]) -> list[list[Any]]:
        """Rows that nothing is wrong with, as they are stored; of those with one key, the last."""
        by_key = {self.encode_key(self.key_of(row)): row for row in rows}
        return [self._encode_row(row) for row in by_key.values()]

    def _encode_row(self, row: Row) -> list[Any]:
        stored = list(row)
        for place in (*self._durations, *self._reals):
            stored[place] = _encode(self.table.columns[place].kind, stored[place])
        for place in self._decimals:
            value = row[place]
            stored[place] = _sql_decimal(value)
            stored += (None, None) if value is None else encode_decimal(value)
        if self._searchable:
            texts = [row[place] for place in self._searchable if row[place] is not None]
            stored.append("".join(f" {word}" for text in texts for word in words_of(text)))
        return stored

    def key_of(self, row: Row) -> Key:
        """The key of a row."""
        return tuple([row[place] for place in self._key_places])

    def encode_key(self, key: Key) -> Key:
        """A key as it is compared."""
        return tuple([_encode(column.kind, value) for column, value in zip(self.key_columns, key, strict=True)])

    def may_have_row(self, key: Key) -> bool:
        """Whether a row of this key could have been stored."""
        return all(value_refusal(column, value) is None for column, value in zip(self.key_columns, key, strict=True))

    def decode(self, stored: tuple[Any, ...]) -> Row:
        """A row from what was `selected` of it."""
        if not self._decimals and not self._durations and not self._datetimes:
            return stored
        values = list(stored[: len(self.table.columns)])
        for place in self._datetimes:
            values[place] = decode_moment(values[place])
        for place in self._durations:
            if values[place] is not None:
                values[place] = dt.timedelta(microseconds=values[place])
        for extra, place in enumerate(self._decimals, len(values)):
            if values[place] is not None:
                values[place] = decode_decimal(values[place], stored[extra])
        return tuple(values)

    def decode_key(self, stored: tuple[Any, ...]) -> Key:
        """A key from what was `selected_key` of a row."""
        exponents = iter(stored[len(self.key_columns) :])
        decoded: list[Any] = []
        for column, value in zip(self.key_columns, stored, strict=False):
            if column.kind is ColumnKind.DECIMAL:
                decoded.append(decode_decimal(value, next(exponents)))
            elif column.kind is ColumnKind.DATETIME:
                decoded.append(decode_moment(value))
            else:
                duration = column.kind is ColumnKind.DURATION
                decoded.append(dt.timedelta(microseconds=value) if duration else value)
        return tuple(decoded)


class ExportCodec:
    """Rows as they are exported: in the columns that SQL sees, each value as its type there.

    Args:
        columns: of the rows, in order.
        decimals_as_text: whether decimals are text, exactly as they are; else they have to fit `DECIMAL_TYPE`.
    """

    def __init__(self, columns: Sequence[Column], *, decimals_as_text: bool) -> None:
        decimal = "VARCHAR" if decimals_as_text else DECIMAL_TYPE
        types = (decimal if column.kind is ColumnKind.DECIMAL else stored_type(column.kind) for column in columns)
        self.columns = tuple(zip(columns, types, strict=True))
        """Each with its type."""
        self._as_text = decimals_as_text
        kinds = (ColumnKind.DECIMAL, ColumnKind.DURATION, ColumnKind.REAL)
        self._changed = [(place, column) for place, column in enumerate(columns) if column.kind in kinds]

    def encode(self, name: str, row: Row) -> Sequence[Any]:
        """A row of what has this name.

        Raises:
            ConfigurationError: a decimal does not fit.
        """
        if not self._changed:
            return row
        stored = list(row)
        for place, column in self._changed:
            value = stored[place]
            if value is None:
                continue
            decimal = column.kind is ColumnKind.DECIMAL
            stored[place] = self._decimal(name, column, value) if decimal else _encode(column.kind, value)
        return stored

    def _decimal(self, name: str, column: Column, value: Decimal) -> Decimal | str:
        if self._as_text:
            return str(value)
        fitting = _sql_decimal(value)
        if fitting is None:
            raise ConfigurationError(
                f"{name}.{column.name} is {value!r} in a row, which does not fit {DECIMAL_TYPE}: have decimals "
                "exported as text (--decimals text, or decimals='text')"
            )
        return fitting


def _selected(column: Column) -> str:
    name = quoted(compared_column(column))
    return f"epoch_us({name})" if column.kind is ColumnKind.DATETIME else name
