"""Two builds of a read model compared row by row, at one place: what a rebuild would change, before it does."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from diptych.event_store.position import Position
from diptych.read_side.pages_by_key import pages_by_key
from diptych.read_side.read_store import ColumnKind, Generation, Key, ReadSnapshot
from diptych.read_side.row_filters import key_getter, unexpired

__all__ = ["Comparison", "RowDifference", "compared"]

COMPARE_PAGE_ROWS = 1_000
"""Rows read at once."""
SAMPLES_MAX = 5
"""Rows shown of those that were added, removed and changed, each; the others are counted."""


class RowDifference(msgspec.Struct, frozen=True):
    """A row that is another in the two builds.

    Attributes:
        before: by column as it is stored, in the live build; None: there is none.
        after: the same in the fresh build.
    """

    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Comparison(msgspec.Struct, frozen=True):
    """How a fresh build of a read model differs from the one that answers.

    Attributes:
        read_model: the projection's name.
        position: up to which both are folded; of the slice that is furthest behind.
        rows: of the fresh build.
        added: rows that only the fresh build has.
        removed: rows that only the live build has.
        changed: rows that both have, and that differ.
        samples: the first of each, by key.
        blocked: keys that are blocked in the fresh build.
    """

    read_model: str
    position: Position
    rows: int
    added: int
    removed: int
    changed: int
    samples: tuple[RowDifference, ...]
    blocked: int

    @property
    def same(self) -> bool:
        """Whether no row differs."""
        return not (self.added or self.removed or self.changed)


async def compared(snapshot: ReadSnapshot, live: Sequence[Generation], fresh: Sequence[Generation]) -> Comparison:
    """Compare the rows of two builds whose slices are at the same places, in one snapshot.

    Rows that have expired at the last event are left out of both. Where the key has other columns now, every row is
    another one.
    """
    name = fresh[0].name
    expires = [each.recorded_at for each in (*live, *fresh) if each.recorded_at is not None]
    moment = max(expires, default=None)
    mine, theirs = _rows(snapshot, live, moment), _rows(snapshot, fresh, moment)
    alike = _key_columns(live) == _key_columns(fresh)
    counts, samples, rows = {"added": 0, "removed": 0, "changed": 0}, list[RowDifference](), 0
    before, after = await anext(mine, None), await anext(theirs, None)
    while before is not None or after is not None:
        comes_first = _first(before, after, alike=alike)
        there, here = before if comes_first <= 0 else None, after if comes_first >= 0 else None
        difference = _difference(there, here)
        if difference is not None:
            kind = "added" if there is None else "removed" if here is None else "changed"
            counts[kind] += 1
            if counts[kind] <= SAMPLES_MAX:
                samples.append(difference)
        rows += here is not None
        before = await anext(mine, None) if there is not None else before
        after = await anext(theirs, None) if here is not None else after
    return Comparison(
        read_model=name,
        position=min(each.checkpoint.position for each in fresh),
        rows=rows,
        **counts,
        samples=tuple(samples),
        blocked=len(await snapshot.blocked(name, fresh[0].number)),
    )


class _Found(msgspec.Struct, frozen=True):
    key: Key
    columns: dict[str, Any]


def _first(before: _Found | None, after: _Found | None, *, alike: bool) -> int:
    """Negative: the live row comes first by key; positive: the fresh one does; 0: they have one key."""
    if before is None or after is None:
        return 1 if before is None else -1
    if not alike:
        return -1
    return (before.key > after.key) - (before.key < after.key)


def _difference(before: _Found | None, after: _Found | None) -> RowDifference | None:
    if before is not None and after is not None and before.columns == after.columns:
        return None
    return RowDifference(None if before is None else before.columns, None if after is None else after.columns)


def _key_columns(build: Sequence[Generation]) -> list[tuple[str, ColumnKind]]:
    table = build[0].table if build else None
    return [] if table is None else [(found.name, found.kind) for found in table.columns if found.name in table.key]


async def _rows(
    snapshot: ReadSnapshot, build: Sequence[Generation], moment: dt.datetime | None
) -> AsyncGenerator[_Found]:
    """The rows of a build, by key; none where there is no build."""
    table = build[0].table if build else None
    if table is None:
        return
    names, key_of = [column.name for column in table.columns], key_getter(table)
    async for page in pages_by_key(snapshot, build[0], unexpired(table, moment), COMPARE_PAGE_ROWS):
        for row in page:
            yield _Found(key_of(row), dict(zip(names, row, strict=True)))
