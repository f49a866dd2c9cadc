"""How SQLite keeps the values of read models: exact and in order, for any value (rule 32)."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diptych.adapters.sqlite.columns import (
    RowCodec,
    Unstorable,
    decode_decimal,
    decode_result,
    encode_decimal,
    encode_parameter,
)
from diptych.adapters.sqlite.read_tables import StoredTable, create_table
from diptych.read_side.read_store import Column, ColumnKind, Table
from diptych.read_side.row_refusal import row_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXPONENT_MAX = 999_999_999_999_999_000
DIGITS = st.text("0123456789", min_size=1, max_size=40)
DECIMALS = st.builds(
    lambda sign, digits, exponent: Decimal(f"{sign}{digits}E{exponent}"),
    st.sampled_from(["", "-"]),
    DIGITS,
    st.one_of(st.integers(-30, 30), st.integers(-EXPONENT_MAX, EXPONENT_MAX)),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ZONES = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
VALUES: Mapping[ColumnKind, st.SearchStrategy[Any]] = {
    ColumnKind.TEXT: TEXTS,
    ColumnKind.INTEGER: st.integers(-(2**63), 2**63 - 1),
    ColumnKind.REAL: st.floats(allow_nan=False),
    ColumnKind.BOOLEAN: st.booleans(),
    ColumnKind.DECIMAL: DECIMALS,
    ColumnKind.DATETIME: st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29), timezones=ZONES),  # noqa: DTZ001
    ColumnKind.DATE: st.dates(),
    ColumnKind.DURATION: st.integers(-(2**63), 2**63 - 1).map(lambda n: dt.timedelta(microseconds=n)),
    ColumnKind.BYTES: st.binary(),
    ColumnKind.DOCUMENT: TEXTS,
}
KINDS = list(VALUES)
EVERY_KIND = Table(
    "every_kind",
    (
        Column("id", ColumnKind.INTEGER),
        *(Column(kind.value, kind, nullable=True) for kind in KINDS),
    ),
    key=("id",),
)
ROWS = st.lists(st.tuples(*(st.none() | VALUES[kind] for kind in KINDS)), min_size=1, max_size=8)


@given(DECIMALS)
@example(Decimal("0E+5"))
@example(Decimal("-1E-1999999999999999997"))
@example(Decimal("9.99E+999999999999999999"))
def test_a_decimal_reads_back_digit_for_digit(value: Decimal) -> None:
    """Value and exponent are exact; only zero loses its sign, which is no part of its value."""
    text, exponent = encode_decimal(value)
    read = decode_decimal(text, exponent)
    assert read == value
    assert read.as_tuple().exponent == value.as_tuple().exponent
    assert str(read) == str(value or abs_zero(value))
    assert -(2**63) <= exponent < 2**63


def abs_zero(value: Decimal) -> Decimal:
    return value.copy_abs()


@given(DECIMALS)
def test_a_decimal_without_its_exponent_keeps_its_value(value: Decimal) -> None:
    """What SQL computes (a maximum, say) has no exponent column; its value is exact all the same."""
    assert decode_decimal(encode_decimal(value)[0], None) == value


@given(DECIMALS, DECIMALS)
@example(Decimal("1.2"), Decimal("1.20"))
@example(Decimal("-1.2"), Decimal("-1.21"))
@example(Decimal("9E+9"), Decimal("1E+10"))
@example(Decimal("1E-10"), Decimal("9E-9"))
@example(Decimal("-0.0"), Decimal(0))
def test_the_texts_of_decimals_sort_as_their_values(one: Decimal, other: Decimal) -> None:
    """Less, equal, more: the texts compare as the numbers do, in characters as in UTF-8."""
    left, right = encode_decimal(one)[0], encode_decimal(other)[0]
    assert (left < right, left == right) == (one < other, one == other)
    assert left.isascii()


@given(st.integers(-(10**6), 10**6), st.integers(-12, 12), st.integers(-(10**6), 10**6), st.integers(-12, 12))
def test_the_texts_of_close_decimals_sort_as_their_values(a: int, m: int, b: int, n: int) -> None:
    """The same among numbers of like size, where mistakes would hide."""
    one, other = Decimal(f"{a}E{m}"), Decimal(f"{b}E{n}")
    left, right = encode_decimal(one)[0], encode_decimal(other)[0]
    assert (left < right, left == right) == (one < other, one == other)


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_what_is_no_finite_decimal_is_refused(text: str) -> None:
    """There is no text for it."""
    with pytest.raises(ValueError, match="literal"):
        encode_decimal(Decimal(text))


@given(ROWS)
def test_rows_of_every_kind_read_back_equal_and_in_order(values: Sequence[tuple[Any, ...]]) -> None:
    """Through a real table: equal, of the same type, and sorted by each column as Python sorts, None first."""
    rows = [(number, *row) for number, row in enumerate(values)]
    with closing(sqlite3.connect(":memory:")) as connection:
        table = StoredTable(EVERY_KIND, "every", 1)
        create_table(connection, table)
        connection.executemany(table.upsert, table.codec.encode(rows))
        read = [table.codec.decode(row) for row in connection.execute(f"{table.select} ORDER BY id")]
        assert read == rows
        assert [list(map(type, row)) for row in read] == [list(map(type, row)) for row in rows]
        for place, kind in enumerate(KINDS, 1):
            if kind is not ColumnKind.DOCUMENT:
                ordered = connection.execute(f"{table.select} ORDER BY {kind.value}, id").fetchall()
                expected = sorted(rows, key=lambda row: (row[place] is not None, row[place], row[0]))
                assert [table.codec.decode(row) for row in ordered] == expected


ANYTHING = st.one_of(
    st.none(),
    st.text(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.datetimes(timezones=st.none() | ZONES),
    st.dates(),
    st.timedeltas(),
    st.binary(),
    st.booleans(),
)


@given(st.sampled_from(KINDS), st.lists(ANYTHING, min_size=1, max_size=3), st.booleans())
def test_what_is_refused_is_refused_for_a_reason(kind: ColumnKind, values: list[Any], nullable: bool) -> None:
    """A table takes exactly what the port says that every store takes; the rest raises, naming the column."""
    form = Table("one", (Column("id", ColumnKind.INTEGER), Column("value", kind, nullable=nullable)), key=("id",))
    table = StoredTable(form, "one", 1)
    rows = list(enumerate(values))
    refusals = [reason for row in rows if (reason := row_refusal(form, row))]
    with closing(sqlite3.connect(":memory:")) as connection:
        create_table(connection, table)
        try:
            connection.executemany(table.upsert, RowCodec(form).encode(rows))
            stored = True
        except (Unstorable, OverflowError, UnicodeEncodeError, sqlite3.IntegrityError):
            stored = False
        assert stored == (not refusals)
        if stored:
            assert [table.codec.decode(row) for row in connection.execute(f"{table.select} ORDER BY id")] == rows


@given(st.sampled_from([kind for kind in KINDS if kind is not ColumnKind.DOCUMENT]), st.data())
def test_a_parameter_is_kept_as_a_column_of_its_type(kind: ColumnKind, data: st.DataObject) -> None:
    """A parameter of SQL equals the column that the same value was written to."""
    value = data.draw(VALUES[kind])
    assert decode_result(kind, encode_parameter(value), None) == value
