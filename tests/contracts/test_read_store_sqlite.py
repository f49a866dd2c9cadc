"""What SQLite's read store says beyond the contract, and memory's: files, tables, reads, no writes by readers (G13)."""

from __future__ import annotations

import asyncio
import datetime as dt
import sqlite3
from contextlib import AsyncExitStack, closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from diptych.adapters.memory import read_store as memory
from diptych.adapters.sqlite import read_snapshot, read_tables, read_writes
from diptych.adapters.sqlite import read_store as sqlite
from diptych.adapters.sqlite.read_snapshot import SqliteReadSnapshot
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.errors import ConfigurationError, NewerStore, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
    Discard,
    Filter,
    Order,
    SliceWrite,
    Table,
)
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from diptych.testing.contracts.read_store import MOMENT
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    LINES,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    write,
)
from tests.contracts.read_store_sql import CHANGES_SINCE_VERSION_4, CHANGES_SINCE_VERSION_5, opened, select

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10
DAY = dt.date(2026, 3, 1)
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteReadStore, None]:
    async with opened(sqlite.connect(f"sqlite:{tmp_path / 'read.db'}")) as store:
        yield store


# ── URLs and files ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["sqlite:", "sqlite::memory:"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ConfigurationError, match="memory:"):
        sqlite.connect(url)


def test_a_name_in_memory_is_refused() -> None:
    """Nobody could find it again."""
    with pytest.raises(ConfigurationError, match="use memory:"):
        memory.connect("memory:shop")


def changed_file(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


async def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path, store: SqliteReadStore) -> None:
    """The error has both versions."""
    await build(store, SEATS, [("a", 1)])
    await store.close()
    changed_file(tmp_path / "read.db", f"PRAGMA user_version = {read_tables.SCHEMA_VERSION + 1}")
    with pytest.raises(NewerStore) as refusal:
        await store.open()
    assert (refusal.value.found, refusal.value.known) == (read_tables.SCHEMA_VERSION + 1, read_tables.SCHEMA_VERSION)
    changed_file(tmp_path / "read.db", f"PRAGMA user_version = {read_tables.SCHEMA_VERSION}")
    await store.open()
    assert await rows_of(store) == [("a", 1)]


async def test_a_file_of_version_4_is_brought_up_to_date(store: SqliteReadStore, tmp_path: Path) -> None:
    """What is blocked and left out stays, and who decides from now on is kept."""
    blocked, left_out = BlockedKey(NAME, '["a"]', Position(3), "boom"), Discard(NAME, '["b"]', Position(2))
    generation = await build(store, SEATS, [("a", 1)])
    generation = await write(store, generation, block=[blocked], discard=[left_out], by_hand=True)
    await store.close()
    changed_file(
        tmp_path / "read.db",
        *CHANGES_SINCE_VERSION_5,
        *CHANGES_SINCE_VERSION_4,
        "PRAGMA user_version = 4",
    )
    await store.open()
    async with store.snapshot() as snapshot:
        assert await snapshot.blocked(NAME) == [blocked]
    assert await store.trace(NAME, generation.number, '["a"]') == ""
    later = Discard(NAME, '["a"]', Position(3), "ann", "by phone", MOMENT)
    await write(store, generation, unblock=['["a"]'], discard=[later], by_hand=True)
    assert await store.discards(NAME) == [left_out, later]
    assert await store.retries(NAME, '["a"]', 1) == []


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE theirs (a)", "PRAGMA application_id = 77", "PRAGMA user_version = 3"]
)
async def test_another_kind_of_database_is_refused(tmp_path: Path, statement: str) -> None:
    """A file that something else made is not made a read store."""
    changed_file(tmp_path / "other.db", statement)
    store = sqlite.connect(f"sqlite:{tmp_path / 'other.db'}")
    with pytest.raises(StoreUnavailable, match="no read store of Diptych"):
        await store.open()
    await store.close()


async def test_what_is_no_database_or_has_no_folder_is_unavailable(tmp_path: Path) -> None:
    """The errors of opening come out as the port says."""
    (tmp_path / "text.db").write_text("no database at all " * 100)
    for path in (tmp_path / "text.db", tmp_path / "missing" / "read.db"):
        with pytest.raises(StoreUnavailable):
            await sqlite.connect(f"sqlite:{path}").open()


async def test_two_instances_make_one_file(tmp_path: Path) -> None:
    """Racing to open a new file and to create a generation, as two processes do, makes one of each."""
    stores = [sqlite.connect(f"sqlite:{tmp_path / 'read.db'}") for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    made = [store.create_generation(NAME, "1", SEATS, place(0), live=True) for store in stores]
    assert len({generation for (generation,) in await asyncio.gather(*made)}) == 1
    for store in stores:
        await store.close()


async def test_writes_of_other_instances_wake_who_waits(tmp_path: Path, store: SqliteReadStore) -> None:
    """A change by another connection, as by another process, is noticed without a write of one's own."""
    generation = await create(store, SEATS)
    async with opened(sqlite.connect(f"sqlite:{tmp_path / 'read.db'}")) as other:
        seen = await store.wait_for_change(0, 0)
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await asyncio.wait([waiting], timeout=0)
        await write(other, generation, upserts=[("a", 1)])
        assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen


async def test_own_writes_wake_without_polling(store: SqliteReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits in this process does not wait for the next look at other processes' writes."""
    monkeypatch.setattr(sqlite, "FOREIGN_CHANGES_EVERY_S", 1_000)
    generation = await create(store, SEATS)
    seen = await store.wait_for_change(0, 0)
    waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX * 2))
    await asyncio.wait([waiting], timeout=0)
    await write(store, generation, upserts=[("a", 1)])
    assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen


async def test_changes_by_hand_are_synced_and_others_are_not(
    store: SqliteReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what cannot be folded again pays for the disk."""
    levels: list[int] = []
    apply = read_writes.apply

    def noting(connection: sqlite3.Connection, *rest: Any) -> Any:
        levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        return apply(connection, *rest)

    monkeypatch.setattr(read_writes, "apply", noting)
    generation = await write(store, await create(store, SEATS), upserts=[("a", 1)])
    await write(store, generation, by_hand=True)
    assert levels == [1, 2]  # NORMAL, FULL


async def test_a_full_disk_changes_nothing(store: SqliteReadStore) -> None:
    """The write is unavailable, rows and checkpoint stay as they were, and with room again it goes on."""
    generation = await build(store, SEATS, [("a", 1)])
    connection = store._writer._open_connection()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    wanted = SliceWrite(generation, place(9), upserts=[(f"c{n}", n) for n in range(10_000)])
    with pytest.raises(StoreUnavailable, match="full"):
        await store.write([wanted])
    assert await rows_of(store) == [("a", 1)]
    assert await store.generations() == [generation]
    connection.execute("PRAGMA max_page_count = 1000000")
    await store.write([wanted])
    assert (await store.generations())[0].checkpoint == place(9)


# ── tables ───────────────────────────────────────────────────────────────────


async def test_two_projections_cannot_share_a_table(store: SqliteReadStore) -> None:
    """Case does not tell tables apart in SQLite; the error names both."""
    await create(store, SEATS)
    shouted = Table(SEATS.name.upper(), SEATS.columns, SEATS.key)
    with pytest.raises(ConfigurationError, match=f"other and {NAME}"):
        await create(store, shouted, "other")
    assert len(await store.generations()) == 1


async def test_a_table_that_sqlite_cannot_have_is_refused(store: SqliteReadStore) -> None:
    """Nothing of it is left."""
    reserved = Table("sqlite_seats", SEATS.columns, SEATS.key)
    with pytest.raises(ConfigurationError, match="sqlite_seats"):
        await create(store, reserved)
    assert await store.generations() == []


async def test_dropping_leaves_nothing_behind(store: SqliteReadStore) -> None:
    """Tables, views, triggers, indexes and search indexes go with their generation."""

    async def objects() -> list[str]:
        async with store.snapshot() as snapshot:
            found = snapshot.connection.execute("SELECT name FROM sqlite_schema ORDER BY name").fetchall()
            return [name for (name,) in found]

    before = await objects()
    for _ in range(2):
        generation = await build(store, ARTICLES, [("1", 1, "one", None)])
        assert len(await objects()) > len(before) + 5
        await store.drop_generation(NAME, generation.number)
    assert await objects() == before


async def test_search_outlives_a_vacuum(tmp_path: Path, store: SqliteReadStore) -> None:
    """Compacting the file does not renumber the rows that the search index points to."""
    generation = await build(store, ARTICLES, [(f"a{n}", n, f"word{n}", None) for n in range(50)])
    await write(store, generation, deletes=[(f"a{n}",) for n in range(0, 50, 2)])
    changed_file(tmp_path / "read.db", "VACUUM")
    async with store.snapshot() as snapshot:
        assert [row[0] for row in await snapshot.search(NAME, "word49", 10)] == ["a49"]


async def statements(snapshot: SqliteReadSnapshot, read: Callable[[], Any]) -> list[str]:
    seen: list[str] = []
    snapshot.connection.set_trace_callback(seen.append)
    await read()
    snapshot.connection.set_trace_callback(None)
    return [statement for statement in seen if not statement.startswith("--")]  # those are FTS5's and triggers' own


async def test_many_keys_are_one_statement(store: SqliteReadStore) -> None:
    """One, thousands, or of several columns: `get_many` asks once."""
    await build(store, SEATS, [(f"c{n}", n) for n in range(3_000)])
    await build(store, LINES, [(Decimal(n), n, DAY, "a") for n in range(3_000)], "lines")
    async with store.snapshot() as snapshot:
        await snapshot.get_many(NAME, [("c0",)])
        await snapshot.get_many("lines", [("a", 0, DAY)])
        courses, lines = [(f"c{n}",) for n in range(3_000)], [("a", n, DAY) for n in range(3_000)]
        for name, keys in ((NAME, courses[:1]), (NAME, courses), ("lines", lines[:1]), ("lines", lines)):
            asked = await statements(snapshot, lambda: snapshot.get_many(name, keys))  # noqa: B023
            assert len(asked) == 1
            assert "SEARCH" in plan(snapshot, asked[0])


async def test_prefixes_pages_and_bounds_use_the_index(store: SqliteReadStore) -> None:
    """They search it and need no sorting, so that their cost does not grow with the table."""
    table = Table("t", (Column("k", ColumnKind.TEXT), Column("v", ColumnKind.TEXT, indexed=True)), key=("k",))
    await build(store, table, [(str(n), str(n)) for n in range(100)])
    by, down = (Order("v"), Order("k")), (Order("v", descending=True), Order("k", descending=True))
    async with store.snapshot() as snapshot:
        await snapshot.get_many(NAME, [("0",)])
        for filters, order, after in (
            ((Filter("v", Comparison.STARTS_WITH, "1"),), by, None),
            ((Filter("v", Comparison.MORE_THAN, "1"),), by, None),
            ((Filter("v", Comparison.EQUAL, "1"),), (Order("k"),), None),
            ((), by, ("5", "5")),
            ((), down, ("5", "5")),
            ((), (Order("k"),), ("5",)),
        ):
            (asked,) = await statements(snapshot, lambda: snapshot.find(NAME, filters, order, 10, after))  # noqa: B023
            assert "SEARCH" in plan(snapshot, asked), asked
            assert "TEMP B-TREE" not in plan(snapshot, asked), asked


def plan(snapshot: SqliteReadSnapshot, statement: str) -> str:
    return " ".join(row[3] for row in snapshot.connection.execute(f"EXPLAIN QUERY PLAN {statement}"))


# ── SQL ──────────────────────────────────────────────────────────────────────


async def test_memory_has_no_sql() -> None:
    """The error says which store has."""
    async with opened(memory.connect("memory:")) as store:
        with pytest.raises(ConfigurationError, match="sqlite:"):
            await select(store, "SELECT 1")


async def test_sql_speaks_the_values_of_python(store: SqliteReadStore) -> None:
    """Parameters are encoded by their type, results decoded by their kind, both exact."""
    await build(store, LINES, [(Decimal("40.0"), 1, DAY, "a"), (Decimal("9.50"), 2, DAY, "a"), (None, 3, DAY, "b")])
    price = {"price": ColumnKind.DECIMAL}
    text = "SELECT price, price__exponent, day FROM shop_lines WHERE price > ? AND day = ?"
    (row,) = await select(store, text, Decimal(10), DAY, **price, day=ColumnKind.DATE)
    assert (str(row["price"]), row["day"]) == ("40.0", DAY)
    (row,) = await select(store, "SELECT max(price) AS price FROM shop_lines", **price)
    assert str(row["price"]) == "40"
    async with store.snapshot() as snapshot:
        assert await snapshot.sql("SELECT NULL AS v", (), {"v": (ColumnKind.DATE, True)}) == [{"v": None}]
        assert await snapshot.sql("SELECT 1 AS v WHERE ? IS NULL", [None], {"v": (ColumnKind.REAL, False)}) == [
            {"v": 1}
        ]


async def test_a_cancelled_read_stops_and_gives_its_connection_back(
    store: SqliteReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection is soon free again, though each was left in the middle of an endless read."""
    monkeypatch.setattr(read_snapshot, "READ_S_MAX", 20)  # longer than anyone waits for a connection
    reads = [asyncio.create_task(select(store, ENDLESS, c=ColumnKind.INTEGER)) for _ in range(SNAPSHOTS_MAX)]
    await asyncio.wait(reads, timeout=0.05)
    for read in reads:
        read.cancel()
    assert {type(result) for result in await asyncio.gather(*reads, return_exceptions=True)} == {asyncio.CancelledError}
    async with AsyncExitStack() as stack:
        for _ in range(SNAPSHOTS_MAX):
            await stack.enter_async_context(store.snapshot())


# ── readers cannot write (G13) ───────────────────────────────────────────────


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO school_seats__g1 (course, taken) VALUES ('x', 1)",
        "INSERT INTO school_seats (course, taken) VALUES ('x', 1)",
        "REPLACE INTO school_seats__g1 (course, taken) VALUES ('a', 2)",
        "UPDATE school_seats__g1 SET taken = 2",
        "UPDATE diptych_generations SET position = 99",
        "UPDATE sqlite_master SET sql = ''",
        "UPDATE sqlite_schema SET sql = ''",
        "DELETE FROM school_seats__g1",
        "DELETE FROM sqlite_master",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE INDEX i ON school_seats__g1 (taken)",
        "CREATE VIRTUAL TABLE t USING fts5(a)",
        "ALTER TABLE school_seats__g1 ADD COLUMN b",
        "DROP TABLE school_seats__g1",
        "DROP VIEW school_seats",
        "REINDEX",
        "ANALYZE",
        "VACUUM",
        "VACUUM INTO 'copy.db'",
        "ATTACH 'other.db' AS other",
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "PRAGMA query_only = OFF",
        "PRAGMA query_only(0)",
        "PRAGMA writable_schema = ON",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version = 7",
        "PRAGMA wal_checkpoint",
        "PRAGMA trusted_schema = ON",
        "SELECT load_extension('x')",
    ],
)
async def test_a_snapshots_own_connection_refuses_to_write(
    tmp_path: Path, store: SqliteReadStore, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """G13: whatever is tried on the raw connection, SQLite refuses it, and the file is byte for byte what it was."""
    monkeypatch.chdir(tmp_path)
    await build(store, SEATS, [("a", 1)])
    files = sorted(path.name for path in tmp_path.iterdir())
    async with store.snapshot() as snapshot:
        with pytest.raises(sqlite3.DatabaseError):
            snapshot.connection.execute(statement)
        assert snapshot.connection.execute("SELECT * FROM school_seats").fetchall() == [("a", 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert await rows_of(store) == [("a", 1)]


async def test_a_reader_without_its_guard_cannot_write_either(store: SqliteReadStore) -> None:
    """G13: with the authorizer gone the connection itself is read-only, and with `query_only` off the file is."""
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        snapshot.connection.set_authorizer(None)
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                snapshot.connection.execute("UPDATE school_seats__g1 SET taken = 2")
            snapshot.connection.execute("PRAGMA query_only = OFF")
        snapshot.connection.close()
    assert await rows_of(store) == [("a", 1)]
