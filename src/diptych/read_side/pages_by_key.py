"""All rows of a build of a read model, from one snapshot, in the order of their keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from diptych.read_side.read_store import Filter, Generation, Key, Order, ReadSnapshot, Row
from diptych.read_side.row_filters import key_getter

__all__ = ["pages_by_key"]


async def pages_by_key(
    snapshot: ReadSnapshot, build: Generation, filters: Sequence[Filter], rows_max: int
) -> AsyncGenerator[list[Row]]:
    """The rows that every filter matches, so many at once; the last page may be empty.

    Args:
        snapshot: of which moment.
        build: any slice of the generation; it has a table.
        filters: on its columns.
        rows_max: of one page.
    """
    table = build.table
    assert table is not None, "a subscriber has no rows"
    order, key_of = [Order(column) for column in table.key], key_getter(table)
    after: Key | None = None
    while True:
        found = await snapshot.find(build.name, filters, order, rows_max, after, number=build.number)
        yield found
        if len(found) < rows_max:
            return
        after = key_of(found[-1])
