"""The SQL of reads: filters, orders, the place a page begins after, and words to search for."""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from diptych.adapters.sqlite.columns import Unstorable, encode_value
from diptych.adapters.sqlite.read_tables import StoredTable, quoted
from diptych.errors import InvalidMessage
from diptych.read_side.read_store import Column, ColumnKind, Comparison, Filter, Order

__all__ = [
    "Condition",
    "after_place",
    "filtered",
    "match_expression",
    "order_by",
    "rows_of_keys",
    "where",
    "with_unexpired",
]

LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)

_AS_JSON = frozenset(ColumnKind) - {ColumnKind.REAL, ColumnKind.BYTES}
"""Kinds whose stored form a JSON array carries to SQLite unchanged."""


class Condition(msgspec.Struct, frozen=True):
    """A part of a WHERE clause with its parameters."""

    text: str
    parameters: tuple[Any, ...] = ()


_NEVER = Condition("FALSE")
_MATCHES_NONE = frozenset({Comparison.EQUAL, Comparison.MORE_THAN_OR_NONE})


def where(conditions: Iterable[Condition]) -> Condition:
    """All of them, with the word WHERE; nothing where there are none."""
    every = list(conditions)
    if not every:
        return Condition("")
    text = " AND ".join(f"({condition.text})" for condition in every)
    return Condition(f" WHERE {text}", tuple(value for condition in every for value in condition.parameters))


def filtered(table: StoredTable, wanted: Filter) -> Condition:
    """One filter.

    Raises:
        InvalidMessage: its value is none that the column can hold.
    """
    column = table.codec.column(wanted.column)
    name = quoted(column.name)
    if wanted.comparison is Comparison.ONE_OF:
        return _one_of(table, column, wanted.value)
    if wanted.value is None:
        return Condition(f"{name} IS NULL") if wanted.comparison in _MATCHES_NONE else _NEVER
    value = _encoded(table, column, wanted.value)
    if wanted.comparison is Comparison.STARTS_WITH:
        return _starts_with(name, value)
    if wanted.comparison is Comparison.MORE_THAN_OR_NONE:
        return more_than_or_none(name, value)
    return Condition(f"{name} {wanted.comparison.value} ?", (value,))


def more_than_or_none(name: str, value: object) -> Condition:
    """Nearly every row is, so that an index would be the long way: `+` keeps SQLite from using one for this."""
    return Condition(f"+{name} > ? OR {name} IS NULL", (value,))


def _encoded(table: StoredTable, column: Column, value: Any) -> Any:
    try:
        return encode_value(column, value)
    except Unstorable as error:
        raise InvalidMessage(f"a filter of {table.form.name}", [(column.name, str(error))]) from error


def _one_of(table: StoredTable, column: Column, values: Sequence[Any]) -> Condition:
    name = quoted(column.name)
    given = [_encoded(table, column, value) for value in values if value is not None]
    if column.kind in _AS_JSON:
        found = Condition(f"{name} IN (SELECT value FROM json_each(?))", (_json(given),))
    else:
        found = Condition(f"{name} IN ({', '.join('?' * len(given))})", tuple(given))
    return Condition(f"{found.text} OR {name} IS NULL", found.parameters) if None in values else found


def _starts_with(name: str, prefix: str) -> Condition:
    """A range of the index: from the prefix up to the first text that is past everything it begins."""
    end = prefix.rstrip(chr(LAST_CODE_POINT))
    if not end:
        return Condition(f"{name} >= ?", (prefix,))
    return Condition(f"{name} >= ? AND {name} < ?", (prefix, end[:-1] + _next_letter(end[-1])))


def _next_letter(letter: str) -> str:
    following = ord(letter) + 1
    return chr(_SURROGATES.stop if following in _SURROGATES else following)


def order_by(order: Sequence[Order]) -> str:
    """SQLite puts NULL first, and last when descending, as the port wants None."""
    return ", ".join(f"{quoted(by.column)} DESC" if by.descending else quoted(by.column) for by in order)


# ── pages ────────────────────────────────────────────────────────────────────


def after_place(table: StoredTable, order: Sequence[Order], place: Sequence[Any]) -> Condition:
    """Rows past this place in this order.

    They are past it in the first column, or level with it there and past it in the second, and so on. Where the first
    column's order allows, its bound is said once more on its own, since SQLite finds no index in an OR.
    """
    columns = [table.codec.column(by.column) for by in order]
    values = [
        None if value is None else _encoded(table, column, value) for column, value in zip(columns, place, strict=True)
    ]
    ways: list[Condition] = []
    level: list[Condition] = []
    for by, value in zip(order, values, strict=True):
        ways.append(_all((*level, _past(by, value))))
        level.append(Condition(f"{quoted(by.column)} IS ?", (value,)))
    any_way = Condition(
        " OR ".join(f"({way.text})" for way in ways), tuple(value for way in ways for value in way.parameters)
    )
    bound = _bound(order[0], columns[0], values[0])
    return any_way if bound is None else _all((bound, any_way))


def _past(by: Order, value: Any) -> Condition:
    name = quoted(by.column)
    if by.descending:
        return _NEVER if value is None else Condition(f"{name} < ? OR {name} IS NULL", (value,))
    return Condition(f"{name} IS NOT NULL") if value is None else Condition(f"{name} > ?", (value,))


def _bound(by: Order, column: Column, value: Any) -> Condition | None:
    if value is None or (by.descending and column.nullable):
        return None
    return Condition(f"{quoted(by.column)} {'<=' if by.descending else '>='} ?", (value,))


def _all(conditions: Sequence[Condition]) -> Condition:
    return Condition(
        " AND ".join(f"({condition.text})" for condition in conditions),
        tuple(value for condition in conditions for value in condition.parameters),
    )


# ── keys ─────────────────────────────────────────────────────────────────────


def rows_of_keys(
    connection: sqlite3.Connection, table: StoredTable, keys: Sequence[Sequence[Any]]
) -> list[tuple[Any, ...]]:
    """The stored rows of these encoded keys, in one statement (in a few where keys of numbers or bytes are many)."""
    kinds = {table.codec.column(name).kind for name in table.form.key}
    if kinds <= _AS_JSON:
        width = len(table.form.key)
        values = "value" if width == 1 else ", ".join(f"json_extract(value, '$[{n}]')" for n in range(width))
        text = f"{table.select} WHERE ({table.key}) IN (SELECT {values} FROM json_each(?))"
        return connection.execute(text, (_json([key[0] for key in keys] if width == 1 else keys),)).fetchall()
    at_once = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(table.form.key)
    found: list[tuple[Any, ...]] = []
    for begin in range(0, len(keys), at_once):
        some = keys[begin : begin + at_once]
        marks = f"({', '.join('?' * len(table.form.key))})"
        text = f"{table.select} WHERE ({table.key}) IN (VALUES {', '.join([marks] * len(some))})"
        found += connection.execute(text, [value for key in some for value in key]).fetchall()
    return found


def _json(values: Sequence[Any]) -> str:
    return msgspec.json.encode(values).decode()


# ── the user's SQL ───────────────────────────────────────────────────────────

_BEGINNING = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*(WITH(?:\s+RECURSIVE)?\b)?", re.IGNORECASE | re.DOTALL)
"""Space and comments, and the word that begins the statement's own names."""


def with_unexpired(statement: str, table: StoredTable, moment: int | None) -> str:
    """The statement, in which the table's name stands for its rows that have not expired at a moment."""
    shown = f"{quoted(table.form.name)} AS NOT MATERIALIZED ({table.select_unexpired(str(moment))})"
    beginning = _BEGINNING.match(statement)
    if beginning is None or beginning[1] is None:
        return f"WITH {shown} {statement}"
    return f"WITH RECURSIVE {shown}, {statement[beginning.end() :]}"


# ── words ────────────────────────────────────────────────────────────────────


def match_expression(text: str) -> str:
    """The text as a query of FTS5: every word as the beginning of one; empty where it has no word.

    Only letters, digits and the accents on them are left, each word in quotes: nothing in it can mean more to FTS5.
    """
    composed = unicodedata.normalize("NFC", text)
    spaced = "".join(letter if letter.isalnum() or unicodedata.combining(letter) else " " for letter in composed)
    return " ".join(f'"{word}" *' for word in dict.fromkeys(spaced.split()) if any(map(str.isalnum, word)))
