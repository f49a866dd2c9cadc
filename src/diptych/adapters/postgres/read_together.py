"""Writes of the usual kind in one statement, which is its own transaction: checkpoints, and the rows that they gate.

The statement moves the checkpoints of all slices of a call, each only from where its batch was folded, and upserts the
rows of those that moved: each upsert asks what the first part has moved, and writes nothing where that is not its own
slice. All of it is one transaction, without a round trip inside, so that a process that stands still holds up nobody.
What is rarer (deletions, blocked keys, what is changed by hand) takes the longer way of `read_writes.apply`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diptych.adapters.postgres.read_writes import MOVED_PARAMETERS, Planned, fences, fit_together, moving, result_of

if TYPE_CHECKING:
    import asyncpg

    from diptych.adapters.postgres.read_catalog import Catalog
    from diptych.adapters.postgres.read_tables import StoredTable
    from diptych.adapters.postgres.read_writes import Versions
    from diptych.read_side.read_store import LeaseKey, WriteResult

__all__ = ["Together", "results"]

TABLES_TOGETHER_MAX = 8
"""Slices whose rows one statement writes; more take the longer way."""
STATEMENTS_TOGETHER_MAX = 64
"""Statements of that kind that are kept, one for each set of tables; the oldest goes."""


class Together:
    """The statements of one store."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._statements: dict[tuple[StoredTable, ...], str] = {}

    def statement(self, plans: Sequence[Planned]) -> tuple[str, list[Any]] | None:
        """What writes all of these, with its arguments; None where they are not all of the usual kind."""
        if not all(map(_is_usual, plans)) or len({planned.place for planned in plans}) < len(plans):
            return None
        if not fit_together(plans):
            return None
        ordered = sorted(plans, key=lambda planned: (not planned.upserts, planned.place))
        tables = [planned.table for planned in ordered if planned.table is not None and planned.upserts]
        statement = self._statement_of(tables)
        if statement is None:
            return None
        rows = [values for planned in ordered for values in planned.upserts]
        return statement, [*fences(ordered), self._catalog.channel, *rows]

    def _statement_of(self, tables: Sequence[StoredTable]) -> str | None:
        key = tuple(tables)
        statement = self._statements.get(key)
        if statement is None and len(key) <= TABLES_TOGETHER_MAX:
            if len(self._statements) >= STATEMENTS_TOGETHER_MAX:
                del self._statements[next(iter(self._statements))]
            statement = self._statements[key] = _statement(self._catalog.schema, tables)
        return statement


def results(plans: Sequence[Planned], moved: Sequence[asyncpg.Record]) -> tuple[list[WriteResult], Versions]:
    """What became of each, and the versions of those that moved."""
    live: dict[LeaseKey, bool] = {(row[0], row[1], row[2]): row[3] for row in moved}
    versions = {(row[0], row[1], row[2]): row[4] for row in moved}
    return [result_of(planned, live.get(planned.place)) for planned in plans], versions


def _is_usual(planned: Planned) -> bool:
    write = planned.write
    by_hand = write.unblock or write.discard or write.retried or write.by_hand
    return not (planned.reason or planned.deletes or write.block or by_hand)


def _statement(schema: str, tables: Sequence[StoredTable]) -> str:
    parts, first = [moving(schema)], MOVED_PARAMETERS + 1
    for number, table in enumerate(tables, 1):
        gate = f"WHERE EXISTS (SELECT FROM moved AS m WHERE m.ord = {number})"
        parts.append(f"written_{number} AS ({table.upsert_from(first, gate)})")
        first += table.upsert_parameters
    return (
        f"{', '.join(parts)} SELECT name, number, slice, live, version, pg_notify(${MOVED_PARAMETERS}, '') FROM moved"
    )
