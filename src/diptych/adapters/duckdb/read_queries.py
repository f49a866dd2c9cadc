"""The SQL of reads: filters, orders, the place a page begins after, and words to search for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from diptych.adapters.duckdb.columns import Unstorable, compared_column, encode_value, quoted, stored_type
from diptych.adapters.duckdb.read_tables import StoredTable
from diptych.errors import InvalidMessage
from diptych.read_side.read_store import Comparison, Filter, Order

__all__ = ["Condition", "after_place", "filtered", "order_by", "search", "where", "with_unexpired"]


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
    return Condition(f" WHERE {' AND '.join(f'({each.text})' for each in every)}", _parameters(every))


def _parameters(conditions: Iterable[Condition]) -> tuple[Any, ...]:
    return tuple(value for condition in conditions for value in condition.parameters)


def filtered(table: StoredTable, wanted: Filter) -> Condition:
    """One filter.

    Raises:
        InvalidMessage: its value is none that the column can hold.
    """
    column = table.codec.column(wanted.column)
    name = quoted(compared_column(column))
    if wanted.comparison is Comparison.ONE_OF:
        values = [_encoded(table, wanted.column, value) for value in wanted.value if value is not None]
        found = f"{name} IN (SELECT unnest(CAST(? AS {stored_type(column.kind)}[])))"
        return Condition(f"{found} OR {name} IS NULL" if None in wanted.value else found, (values,))
    if wanted.value is None:
        return Condition(f"{name} IS NULL") if wanted.comparison in _MATCHES_NONE else _NEVER
    value = _encoded(table, wanted.column, wanted.value)
    if wanted.comparison is Comparison.STARTS_WITH:
        return Condition(f"starts_with({name}, ?)", (value,))
    if wanted.comparison is Comparison.MORE_THAN_OR_NONE:
        return Condition(f"{name} > ? OR {name} IS NULL", (value,))
    return Condition(f"{name} {wanted.comparison.value} ?", (value,))


def _encoded(table: StoredTable, name: str, value: Any) -> Any:
    try:
        return encode_value(table.codec.column(name), value)
    except Unstorable as error:
        raise InvalidMessage(f"a filter of {table.form.name}", [(name, str(error))]) from error


def order_by(table: StoredTable, order: Sequence[Order]) -> str:
    """None comes first, and last when descending."""
    return ", ".join(
        f"{quoted(compared_column(table.codec.column(by.column)))} "
        f"{'DESC NULLS LAST' if by.descending else 'ASC NULLS FIRST'}"
        for by in order
    )


def after_place(table: StoredTable, order: Sequence[Order], place: Sequence[Any]) -> Condition:
    """Rows past this place: past it in the first column, or level with it there and past it in the second, or so on."""
    ways: list[Condition] = []
    level: list[Condition] = []
    for by, bound in zip(order, place, strict=True):
        name = quoted(compared_column(table.codec.column(by.column)))
        value = _encoded(table, by.column, bound)
        steps = [*level, _past(name, value, descending=by.descending)]
        ways.append(Condition(" AND ".join(f"({step.text})" for step in steps), _parameters(steps)))
        level.append(Condition(f"{name} IS NULL") if value is None else Condition(f"{name} = ?", (value,)))
    return Condition(" OR ".join(f"({way.text})" for way in ways), _parameters(ways))


def _past(name: str, value: Any, *, descending: bool) -> Condition:
    if descending:
        return _NEVER if value is None else Condition(f"{name} < ? OR {name} IS NULL", (value,))
    return Condition(f"{name} IS NOT NULL") if value is None else Condition(f"{name} > ?", (value,))


# ── words ────────────────────────────────────────────────────────────────────


def search(table: StoredTable, words: Sequence[str], condition: Condition, limit: int) -> Condition:
    """The statement that finds rows in which each of these begins a word: who names them more often comes first.

    Among rows that do so as often, who has fewer words; then by key. It looks at every row that the condition matches.
    """
    beginnings = [f" {word}" for word in dict.fromkeys(words)]
    begun = 'list_sum(list_transform(CAST(? AS VARCHAR[]), lambda b: (length("__words") - '
    begun += "length(replace(\"__words\", b, ''))) / length(b)))"
    of_all = "(length(\"__words\") - length(replace(\"__words\", ' ', '')))"
    has_all = 'list_bool_and(list_transform(CAST(? AS VARCHAR[]), lambda b: contains("__words", b)))'
    matching = f"{condition.text} AND {has_all}" if condition.text else f" WHERE {has_all}"
    text = f"{table.select}{matching} ORDER BY {begun} / {of_all} DESC, {table.key} LIMIT ?"
    return Condition(text, (*condition.parameters, beginnings, beginnings, limit))


# ── the user's SQL ───────────────────────────────────────────────────────────

_BEGINNING = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*(WITH(?:\s+RECURSIVE)?\b)?", re.IGNORECASE | re.DOTALL)
"""Space and comments, and the word that begins the statement's own names."""


def with_unexpired(statement: str, table: StoredTable, microseconds: int) -> str:
    """The statement, in which the table's name stands for its rows that have not expired at a moment (since 1970)."""
    shown = f"{quoted(table.form.name)} AS ({table.shown(f'make_timestamptz({microseconds})')})"
    beginning = _BEGINNING.match(statement)
    if beginning is None or beginning[1] is None:
        return f"WITH {shown} {statement}"
    return f"WITH RECURSIVE {shown}, {statement[beginning.end() :]}"
