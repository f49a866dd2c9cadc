"""The SQL of reads in PostgreSQL: filters, orders, the place a page begins after, and words to search for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, TypeAlias

from diptych.adapters.postgres.read_columns import TYPES, refusal
from diptych.adapters.postgres.read_tables import StoredTable, quoted
from diptych.errors import InvalidMessage
from diptych.read_side.read_store import Column, Comparison, Filter, Order
from diptych.read_side.row_filters import words_of

__all__ = ["Condition", "after_place", "filtered", "order_by", "search_vector", "searched_words", "where"]

LAST_CODE_POINT = 0x10FFFF
WORD_BYTES_MAX = 2_000
"""Bytes of a word that are searched; PostgreSQL keeps no longer ones."""
SEARCHED_WORDS_MAX = 1_000
"""Different words of one search."""

_SURROGATES = range(0xD800, 0xE000)
_MATCHES_NONE = frozenset({Comparison.EQUAL, Comparison.MORE_THAN_OR_NONE})

Condition: TypeAlias = tuple[str, tuple[Any, ...]]
"""A part of a WHERE clause, with `{}` for each of its parameters."""

_NEVER: Condition = ("FALSE", ())


def where(conditions: Iterable[Condition], first: int = 1) -> tuple[str, list[Any]]:
    """All of them with the word WHERE, and their parameters, numbered from `first`; nothing where there are none."""
    every = list(conditions)
    if not every:
        return "", []
    numbers = count(first)
    texts = [text.format(*(f"${next(numbers)}" for _ in parameters)) for text, parameters in every]
    clause = " AND ".join(f"({text})" for text in texts)
    return f" WHERE {clause}", [value for _, parameters in every for value in parameters]


def filtered(table: StoredTable, wanted: Filter) -> Condition:
    """One filter.

    Raises:
        InvalidMessage: its value is none that the column can hold.
    """
    column = table.codec.column(wanted.column)
    name = _named(column.name)
    if wanted.comparison is Comparison.ONE_OF:
        return _one_of(table, column, wanted.value)
    if wanted.value is None:
        return (f"{name} IS NULL", ()) if wanted.comparison in _MATCHES_NONE else _NEVER
    value = _checked(table, column, wanted.value)
    if wanted.comparison is Comparison.STARTS_WITH:
        return _starts_with(name, value)
    if wanted.comparison is Comparison.MORE_THAN_OR_NONE:
        return f"{name} > {{}} OR {name} IS NULL", (value,)
    return f"{name} {wanted.comparison.value} {{}}", (value,)


def _named(name: str) -> str:
    return f"t.{quoted(name)}".replace("{", "{{").replace("}", "}}")


def _checked(table: StoredTable, column: Column, value: Any) -> Any:
    reason = refusal(column, value)
    if reason is not None:
        raise InvalidMessage(f"a filter of {table.form.name}", [(column.name, reason)])
    return value


def _one_of(table: StoredTable, column: Column, values: Sequence[Any]) -> Condition:
    name = _named(column.name)
    given = [_checked(table, column, value) for value in values if value is not None]
    text = f"{name} = ANY({{}}::{TYPES[column.kind]}[])"
    return (f"{text} OR {name} IS NULL" if None in values else text), (given,)


def _starts_with(name: str, prefix: str) -> Condition:
    """A range of the index: from the prefix up to the first text that is past everything it begins."""
    end = prefix.rstrip(chr(LAST_CODE_POINT))
    if not end:
        return f"{name} >= {{}}", (prefix,)
    return f"{name} >= {{}} AND {name} < {{}}", (prefix, end[:-1] + _next_letter(end[-1]))


def _next_letter(letter: str) -> str:
    following = ord(letter) + 1
    return chr(_SURROGATES.stop if following in _SURROGATES else following)


def order_by(table: StoredTable, order: Sequence[Order]) -> str:
    """The order, with None first, or last when descending; said only where there can be None, or no index would fit."""
    return ", ".join(_ordered(table, by) for by in order)


def _ordered(table: StoredTable, by: Order) -> str:
    direction = " DESC" if by.descending else ""
    nulls = "" if not _may_be_none(table, by.column) else " NULLS LAST" if by.descending else " NULLS FIRST"
    return f"t.{quoted(by.column)}{direction}{nulls}"


def _may_be_none(table: StoredTable, name: str) -> bool:
    return table.codec.column(name).nullable and name not in table.form.key


# ── pages ────────────────────────────────────────────────────────────────────


def after_place(table: StoredTable, order: Sequence[Order], place: Sequence[Any]) -> Condition:
    """Rows past this place in this order.

    Where all columns go one way, and none may be None, that is one comparison of rows, which an index answers. Else
    they are past it in the first column, or level with it there and past it in the second, and so on; the bound of the
    first column is then said once more on its own, since no index is found in an OR.
    """
    columns = [table.codec.column(by.column) for by in order]
    values = [
        None if value is None else _checked(table, column, value) for column, value in zip(columns, place, strict=True)
    ]
    descending = {by.descending for by in order}
    if len(descending) == 1 and not any(_may_be_none(table, by.column) for by in order):
        names, marks = ", ".join(_named(by.column) for by in order), ", ".join("{}" for _ in order)
        return f"({names}) {'<' if descending == {True} else '>'} ({marks})", tuple(values)
    ways: list[Condition] = []
    level: list[Condition] = []
    for by, value in zip(order, values, strict=True):
        ways.append(_all((*level, _past(table, by, value))))
        level.append(_level(by, value))
    any_way = " OR ".join(f"({text})" for text, _ in ways), tuple(v for _, values in ways for v in values)
    bound = _bound(table, order[0], values[0])
    return any_way if bound is None else _all((bound, any_way))


def _level(by: Order, value: Any) -> Condition:
    name = _named(by.column)
    return (f"{name} IS NULL", ()) if value is None else (f"{name} = {{}}", (value,))


def _past(table: StoredTable, by: Order, value: Any) -> Condition:
    name = _named(by.column)
    if by.descending:
        if value is None:
            return _NEVER
        return f"{name} < {{}}{f' OR {name} IS NULL' if _may_be_none(table, by.column) else ''}", (value,)
    return (f"{name} IS NOT NULL", ()) if value is None else (f"{name} > {{}}", (value,))


def _bound(table: StoredTable, by: Order, value: Any) -> Condition | None:
    if value is None or (by.descending and _may_be_none(table, by.column)):
        return None
    return f"{_named(by.column)} {'<=' if by.descending else '>='} {{}}", (value,)


def _all(conditions: Sequence[Condition]) -> Condition:
    return " AND ".join(f"({text})" for text, _ in conditions), tuple(v for _, values in conditions for v in values)


# ── words ────────────────────────────────────────────────────────────────────


def words(text: str) -> list[str]:
    """The words of a text, cut where PostgreSQL would refuse them."""
    return [word if len(word) * 4 <= WORD_BYTES_MAX else _cut(word) for word in words_of(text)]


def _cut(word: str) -> str:
    return word.encode()[:WORD_BYTES_MAX].decode("utf-8", "ignore")


def search_vector(texts: Sequence[str]) -> str:
    """The words of a row as a `tsvector` is written; they hold nothing that would have to be escaped."""
    return " ".join(f"'{word}':{place}" for place, word in enumerate((w for text in texts for w in words(text)), 1))


def searched_words(text: str) -> str:
    """The text as a `tsquery`: every word as the beginning of one; empty where it has no word.

    Raises:
        InvalidMessage: it has more different words than the limit.
    """
    found = dict.fromkeys(words(text))
    if len(found) > SEARCHED_WORDS_MAX:
        reason = f"a search has at most SEARCHED_WORDS_MAX={SEARCHED_WORDS_MAX} different words, not {len(found)}"
        raise InvalidMessage("search", [("$", reason)])
    return " & ".join(f"'{word}':*" for word in found)
