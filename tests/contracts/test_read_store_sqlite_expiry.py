"""What SQLite's read store says of expired rows beyond the contract: SQL, views, indexes, older files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from diptych.adapters.sqlite import read_store as sqlite
from diptych.adapters.sqlite import read_tables
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.read_side.read_store import Comparison, Filter, Order
from diptych.testing.contracts.read_store_cases import NAME, SEATS, build, create, rows_of, stored_generation, write
from tests.contracts.read_store_sql import CHANGES_SINCE_VERSION_4, FUTURE, NOON, PAST, SESSION_ROWS, SESSIONS, opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHANGES_SINCE_VERSION_1 = (
    "DROP INDEX diptych_live",
    "ALTER TABLE diptych_generations RENAME TO newer",
    """CREATE TABLE diptych_generations (name TEXT NOT NULL, number INTEGER NOT NULL, fingerprint TEXT NOT NULL,
        table_name TEXT COLLATE NOCASE, form TEXT, live INTEGER NOT NULL, history_id BLOB NOT NULL,
        position INTEGER NOT NULL, event_id BLOB NOT NULL, epoch INTEGER NOT NULL, stopped TEXT NOT NULL,
        PRIMARY KEY (name, number)) STRICT, WITHOUT ROWID""",
    """INSERT INTO diptych_generations SELECT name, number, fingerprint, table_name, form, live, history_id, position,
        event_id, epoch, stopped FROM newer""",
    "DROP TABLE newer",
    "CREATE UNIQUE INDEX diptych_live ON diptych_generations (name) WHERE live = 1",
    *CHANGES_SINCE_VERSION_4,
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteReadStore, None]:
    async with opened(sqlite.connect(f"sqlite:{tmp_path / 'read.db'}")) as store:
        yield store


async def test_other_programs_see_what_has_not_expired_by_the_machines_time(
    store: SqliteReadStore, tmp_path: Path
) -> None:
    """The view leaves out what has; it needs no function that only Diptych knows, and follows a switch."""
    await build(store, SESSIONS, [("gone", PAST, "FR"), ("here", FUTURE, "FR"), ("ever", None, "FR")])

    def seen() -> list[str]:
        with closing(sqlite3.connect(tmp_path / "read.db")) as connection:
            return [name for (name,) in connection.execute("SELECT id FROM web_sessions ORDER BY id")]

    assert seen() == ["ever", "here"]
    second = await write(store, await create(store, SESSIONS, live=False), upserts=[("x", PAST, ""), ("y", FUTURE, "")])
    await store.switch(NAME, second.number)
    assert seen() == ["y"]


async def test_what_has_expired_is_found_by_an_index_that_others_do_not_use(store: SqliteReadStore) -> None:
    """It is searched and gives the order; a read that leaves expired rows out goes by its own index."""
    await build(store, SESSIONS, [(str(n), NOON, str(n)) for n in range(100)])
    async with store.snapshot() as snapshot:
        seen: list[str] = []
        snapshot.connection.set_trace_callback(seen.append)
        await snapshot.expired(NAME, NOON, 5)
        filters = [Filter("place", Comparison.EQUAL, "5"), Filter("until", Comparison.MORE_THAN_OR_NONE, NOON)]
        await snapshot.find(NAME, filters, (Order("id"),), 10)
        snapshot.connection.set_trace_callback(None)
        by_time, by_place = [
            " ".join(row[3] for row in snapshot.connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
            for statement in seen
            if "web_sessions" in statement and "diptych_" not in statement
        ]
    assert "__expiry" in by_time
    assert "SEARCH" in by_time
    assert "TEMP B-TREE" not in by_time
    assert "__index_place" in by_place
    assert "__expiry" not in by_place


async def test_a_table_that_does_not_expire_has_no_such_index(store: SqliteReadStore, tmp_path: Path) -> None:
    """Nor has its index entries for rows that never do."""
    await build(store, SEATS, [("a", 1)])
    await build(store, SESSIONS, SESSION_ROWS, "sessions")
    with closing(sqlite3.connect(tmp_path / "read.db")) as connection:
        found = connection.execute("SELECT tbl_name, sql FROM sqlite_schema WHERE name LIKE '%__expiry'").fetchall()
    assert [name for name, _ in found] == ["web_sessions__g1"]
    assert found[0][1].endswith('WHERE "until" IS NOT NULL')


async def test_a_file_of_version_1_is_brought_up_to_date(store: SqliteReadStore, tmp_path: Path) -> None:
    """Its rows and checkpoints stay, and what expires can be written to it."""
    generation = await build(store, SEATS, [("a", 1)])
    await store.close()
    with closing(sqlite3.connect(tmp_path / "read.db")) as connection:
        for statement in CHANGES_SINCE_VERSION_1:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    await store.open()
    assert await rows_of(store) == [("a", 1)]
    assert await stored_generation(store) == generation
    later = await write(store, await build(store, SESSIONS, SESSION_ROWS, "sessions"), recorded_at=NOON)
    assert await stored_generation(store, "sessions") == later
    assert later.recorded_at == NOON
    with closing(sqlite3.connect(tmp_path / "read.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (read_tables.SCHEMA_VERSION,)
