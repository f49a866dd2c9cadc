"""Filters, order and words over rows in Python: what an index would find, found by looking at every row."""

from __future__ import annotations

import datetime as dt
import operator
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diptych.errors import InvalidMessage
from diptych.read_side.read_store import Column, ColumnKind, Comparison, Filter, Key, Order, Row, Table
from diptych.read_side.row_refusal import value_refusal

__all__ = ["as_read", "best_first", "comes_after", "in_order", "key_getter", "matcher", "rank", "unexpired", "words_of"]

_COMPARE: Mapping[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQUAL: operator.eq,
    Comparison.AT_LEAST: operator.ge,
    Comparison.AT_MOST: operator.le,
    Comparison.MORE_THAN: operator.gt,
    Comparison.LESS_THAN: operator.lt,
    Comparison.ONE_OF: lambda value, values: value in values,
    Comparison.STARTS_WITH: str.startswith,
    Comparison.MORE_THAN_OR_NONE: lambda value, bound: value is None or (bound is not None and value > bound),
}
_MATCHES_NONE = frozenset({Comparison.EQUAL, Comparison.ONE_OF, Comparison.MORE_THAN_OR_NONE})


def matcher(filters: Sequence[Filter], table: Table) -> Callable[[Row], bool]:
    """Tells whether every filter matches a row.

    Raises:
        InvalidMessage: a filter's value is none that its column can hold.
    """
    index = {column.name: place for place, column in enumerate(table.columns)}
    for wanted in filters:
        for value in wanted.value if wanted.comparison is Comparison.ONE_OF else (wanted.value,):
            reason = None if value is None else value_refusal(table.columns[index[wanted.column]], value)
            if reason is not None:
                raise InvalidMessage(f"a filter of {table.name}", [(wanted.column, reason)])
    looked_up = [(index[wanted.column], _looked_up(wanted)) for wanted in filters]
    return lambda row: all(_matches(row[place], wanted) for place, wanted in looked_up)


def _looked_up(wanted: Filter) -> Filter:
    """The filter with its values, if they are several, in a form in which one is found at once."""
    if wanted.comparison is not Comparison.ONE_OF:
        return wanted
    return Filter(wanted.column, wanted.comparison, frozenset(wanted.value))


def unexpired(table: Table, moment: dt.datetime | None) -> Sequence[Filter]:
    """The filter that leaves out what has expired at a moment; none where rows do not expire, or without one."""
    if table.expires is None or moment is None:
        return ()
    return (Filter(table.expires, Comparison.MORE_THAN_OR_NONE, moment),)


def _matches(value: Any, wanted: Filter) -> bool:
    if (value is None or wanted.value is None) and wanted.comparison not in _MATCHES_NONE:
        return False
    return _COMPARE[wanted.comparison](value, wanted.value)


def rank(value: Any) -> tuple[bool, Any]:
    """What sorts values as every store does: None first."""
    return value is not None, value


def in_order(rows: Iterable[Row], table: Table, order: Sequence[Order], after: Sequence[Any] | None) -> list[Row]:
    """The rows in that order; behind a place, one value for each column of the order, if one is given."""
    index = {column.name: place for place, column in enumerate(table.columns)}
    places = [(index[by.column], by.descending) for by in order]
    found = [row for row in rows if after is None or comes_after(row, places, after)]
    for place, descending in reversed(places):  # each sort is stable: the last one, by the first column, rules
        found.sort(key=lambda row: rank(row[place]), reverse=descending)
    return found


def comes_after(row: Row, places: Sequence[tuple[int, bool]], after: Sequence[Any]) -> bool:
    """Whether a row comes behind a place, by columns (each with whether it is descending) and their values."""
    for (place, descending), bound in zip(places, after, strict=True):
        if row[place] != bound:
            return (rank(row[place]) > rank(bound)) != descending
    return False


def words_of(text: str) -> list[str]:
    """The runs of letters and digits, without case and accents."""
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if letter.isalnum() else " " for letter in bare.casefold()).split()


def best_first(rows: Iterable[Row], table: Table, begins: Sequence[str]) -> list[Row]:
    """The rows in whose searchable columns each of these begins a word: the best first, ties by key."""
    key_of = key_getter(table)
    places = [place for place, column in enumerate(table.columns) if column.searchable]
    found: list[tuple[float, Key, Row]] = []
    for row in rows:
        words = [word for place in places if row[place] is not None for word in words_of(row[place])]
        hits = [sum(word.startswith(begin) for word in words) for begin in begins]
        if all(hits):
            found.append((-sum(hits) / len(words), key_of(row), row))
    return [row for _, _, row in sorted(found)]


def key_getter(table: Table) -> Callable[[Row], Key]:
    """A row to its key."""
    names = [column.name for column in table.columns]
    places = [names.index(name) for name in table.key]
    return lambda row: tuple(row[place] for place in places)


def as_read(table: Table, row: Row) -> Row:
    """The row as any store reads it back: datetimes in UTC, floats where ints stood for them."""
    return tuple(_value_as_read(column, value) for column, value in zip(table.columns, row, strict=True))


def _value_as_read(column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.kind is ColumnKind.DATETIME:
        return value.astimezone(dt.UTC)
    return float(value) if column.kind is ColumnKind.REAL else value
