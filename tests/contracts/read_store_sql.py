"""What tests of read stores share beyond the contract: an open store, the rows of a statement, and rows that expire."""

from __future__ import annotations

import datetime as dt
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.read_side.read_store import Column, ColumnKind, ReadStore, Table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = [
    "CHANGES_SINCE_VERSION_4",
    "CHANGES_SINCE_VERSION_5",
    "COUNTED",
    "FUTURE",
    "NOON",
    "PAST",
    "SESSIONS",
    "SESSION_ROWS",
    "opened",
    "select",
]

CHANGES_SINCE_VERSION_4 = (
    "ALTER TABLE diptych_blocked_keys DROP COLUMN attempts",
    "ALTER TABLE diptych_blocked_keys DROP COLUMN trace",
    "ALTER TABLE diptych_discards DROP COLUMN actor",
    "ALTER TABLE diptych_discards DROP COLUMN reason",
    "ALTER TABLE diptych_discards DROP COLUMN decided_at",
    "DROP TABLE diptych_retries",
)
"""What takes away what was added to a catalog since version 4 of SQLite's, or migration 2 of PostgreSQL's."""
CHANGES_SINCE_VERSION_5 = ("ALTER TABLE diptych_generations DROP COLUMN kept_until",)
"""The same since version 5, or migration 3."""
COUNTED = {"c": (ColumnKind.INTEGER, False)}
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
PAST, FUTURE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
SESSIONS = Table(
    "web_sessions",
    (
        Column("id", ColumnKind.TEXT),
        Column("until", ColumnKind.DATETIME, nullable=True),
        Column("place", ColumnKind.TEXT, indexed=True),
    ),
    key=("id",),
    expires="until",
)
SESSION_ROWS = [("a", NOON, "FR"), ("b", NOON + dt.timedelta(hours=1), "DE"), ("c", None, "FR")]

S = TypeVar("S", bound=ReadStore)


@asynccontextmanager
async def opened(store: S) -> AsyncGenerator[S]:
    """The store, open in the block."""
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def select(store: ReadStore, statement: str, *parameters: Any, **columns: ColumnKind) -> list[Any]:
    """The rows of a statement in a snapshot of its own, whose columns are never None."""
    async with store.snapshot() as snapshot:
        return await snapshot.sql(statement, parameters, {name: (kind, False) for name, kind in columns.items()})
