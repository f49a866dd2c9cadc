"""Which index a question is answered along, and between which bounds.

An index is ordered by a column and then by key; that of the keys by key alone. Where the order that is asked for begins
like an index's, its rows come in that order, and whoever goes along it may stop early. Otherwise all rows between the
bounds are read, and sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from diptych.adapters.valkey.rows import TableRows, index_name
from diptych.adapters.valkey.values import sortable, sortable_all
from diptych.read_side.read_store import Column, Comparison, Filter, Order, Row

__all__ = ["FEW_ROWS", "Bounds", "Scan", "chosen", "scans_for"]

FEW_ROWS = 1_000
"""Rows that are rather read and sorted than looked for along an index that has their order."""

Bounds: TypeAlias = tuple[bytes, bytes]
"""From the first, before the second."""

_LAST = b"\xff"
"""Behind everything: members begin with the byte 0 or 1, or a letter."""
_EVERYTHING: Bounds = (b"", _LAST)


class Scan(NamedTuple):
    """A way along an index.

    Attributes:
        along: its name; that of the keys is empty.
        bounds: between which members, in their order.
        down: whether from the last to the first.
        order: the columns that the rows are ordered by on the way, of those asked for.
        covers: whether every row on the way matches every filter.
    """

    along: bytes
    bounds: Sequence[Bounds]
    down: bool = False
    order: Sequence[str] = ()
    covers: bool = False

    def is_behind(self, table: TableRows, row: Row, other: Row) -> bool:
        """Whether a row that is met comes behind another one, that was met before, and not only along the index."""
        return bool(self.order) and any(table.value(row, name) != table.value(other, name) for name in self.order)


def scans_for(
    table: TableRows, filters: Sequence[Filter], order: Sequence[Order], after: Sequence[Any] | None
) -> list[Scan]:
    """The ways there are, at least one: along every index that a filter or the order speaks of, or all keys."""
    found = [_by_key(table, filters, order, after)]
    found += [_by_column(table, column, filters, order, after) for column in table.indexed]
    useful = [scan for scan in found if scan.order or list(scan.bounds) != [_EVERYTHING]]
    return useful or found[:1]


def chosen(scans: Sequence[Scan], counts: Sequence[int]) -> Scan:
    """The way to go, of several that lead along so many rows."""
    fewest = min(range(len(scans)), key=lambda n: counts[n])
    ordered = [scan for scan in scans if scan.order]
    return (
        scans[fewest] if counts[fewest] <= FEW_ROWS or not ordered else max(ordered, key=lambda scan: len(scan.order))
    )


def _by_key(table: TableRows, filters: Sequence[Filter], order: Sequence[Order], after: Sequence[Any] | None) -> Scan:
    equal = {each.column: each.value for each in filters if each.comparison is Comparison.EQUAL}
    prefix, depth = b"", 0
    for column in table.key:
        if equal.get(column.name) is None:
            break
        prefix += sortable(column, equal[column.name])
        depth += 1
    first = table.key[0]
    whole = [_beginning(prefix)] if depth else [_EVERYTHING]
    bounds = _within(first, [each for each in filters if each.column == first.name], whole)
    fixed = [column.name for column in table.key[:depth]]
    covers = all(
        each.column == first.name
        or (each.column in fixed and each.comparison is Comparison.EQUAL and each.value == equal[each.column])
        for each in filters
    )
    return _ordered(Scan(b"", bounds, covers=covers), table.key, order, after)


def _by_column(
    table: TableRows, column: Column, filters: Sequence[Filter], order: Sequence[Order], after: Sequence[Any] | None
) -> Scan:
    own = [each for each in filters if each.column == column.name]
    bounds = _within(column, own, [_EVERYTHING])
    scan = Scan(index_name(column.name), bounds, covers=len(own) == len(filters))
    return _ordered(scan, [column, *table.key], order, after)


def _ordered(scan: Scan, columns: Sequence[Column], order: Sequence[Order], after: Sequence[Any] | None) -> Scan:
    """The way with the order that the rows have on it, which begins behind a place."""
    depth = 0
    for by, column in zip(order, columns, strict=False):
        if by.column != column.name or by.descending != order[0].descending:
            break
        depth += 1
    if not depth:
        return scan
    bounds, down = scan.bounds, order[0].descending
    if after is not None:
        place = sortable_all(columns[:depth], after[:depth])
        bounds = _both(bounds, [(b"", place + _LAST) if down else (place, _LAST)])
    return scan._replace(bounds=bounds, down=down, order=tuple(by.column for by in order[:depth]))


# ── bounds ───────────────────────────────────────────────────────────────────


def _beginning(begin: bytes) -> Bounds:
    return begin, begin + _LAST


def _within(column: Column, filters: Sequence[Filter], bounds: Sequence[Bounds]) -> list[Bounds]:
    found = list(bounds)
    for each in filters:
        found = _both(found, _bounds_of(column, each))
    return found


def _both(some: Sequence[Bounds], others: Sequence[Bounds]) -> list[Bounds]:
    """What is within the one and the other, in order."""
    found = [(max(a[0], b[0]), min(a[1], b[1])) for a in some for b in others]
    return sorted(bounds for bounds in found if bounds[0] < bounds[1])


def _bounds_of(column: Column, wanted: Filter) -> list[Bounds]:
    value, comparison = wanted.value, wanted.comparison
    if comparison is Comparison.ONE_OF:
        return [_beginning(begin) for begin in sorted({sortable(column, each) for each in value})]
    if comparison is Comparison.EQUAL:
        return [_beginning(sortable(column, value))]
    if comparison is Comparison.MORE_THAN_OR_NONE and value is None:
        return [_beginning(b"\0")]
    if value is None:
        return []
    begin = sortable(column, value)
    if comparison is Comparison.STARTS_WITH:
        return [_beginning(begin[:-1])]  # without the end of the text
    return {
        Comparison.AT_LEAST: [(begin, _LAST)],
        Comparison.MORE_THAN: [(begin + _LAST, _LAST)],
        Comparison.AT_MOST: [(b"\1", begin + _LAST)],
        Comparison.LESS_THAN: [(b"\1", begin)],
        Comparison.MORE_THAN_OR_NONE: [_beginning(b"\0"), (begin + _LAST, _LAST)],
    }[comparison]
