"""What the read stores say beyond their contract: SQL, limits, files, and that readers cannot write (G13)."""

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
from diptych.errors import ConfigurationError, NewerStore, Overloaded, StoreUnavailable
from diptych.read_side.read_store import Column, ColumnKind, Comparison, Filter, Order, SliceWrite, Table
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    LINES,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    write,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10
DAY = dt.date(2026, 3, 1)
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"
COUNTED = {"c": (ColumnKind.INTEGER, False)}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteReadStore, None]:
    store = sqlite.connect(f"sqlite:{tmp_path / 'read.db'}")
    await store.open()
    yield store
    await store.close()


async def select(store: SqliteReadStore, statement: str, *parameters: Any, **columns: ColumnKind) -> list[Any]:
    async with store.snapshot() as snapshot:
        return await snapshot.sql(statement, parameters, {name: (kind, False) for name, kind in columns.items()})


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


def changed_file(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
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
    other = sqlite.connect(f"sqlite:{tmp_path / 'read.db'}")
    await other.open()
    seen = await store.wait_for_change(0, 0)
    waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
    await asyncio.wait([waiting], timeout=0)
    await write(other, generation, upserts=[("a", 1)])
    assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen
    await other.close()


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


async def test_names_that_sql_knows_are_names_like_others(store: SqliteReadStore) -> None:
    """Columns and tables may be called as SQL's words, its hidden columns and the search index's own columns."""
    names = ["order", "select", "rowid", "rank", "words", "oid", "_rowid_", "key", "value", "name"]
    columns = [Column(name, ColumnKind.TEXT, indexed=True, searchable=True) for name in names]
    table = Table("table", (Column("group", ColumnKind.TEXT), *columns), key=("group",))
    rows = [(f"g{n}", *(f"{name} {n}" for name in names)) for n in range(3)]
    await build(store, table, rows)
    by = tuple(Order(name) for name in [*names, "group"])
    assert await rows_of(store, order=by) == rows
    async with store.snapshot() as snapshot:
        assert await snapshot.search(NAME, "rank 1", 10) == [rows[1]]
        assert await snapshot.find(NAME, (), by, 10, [*rows[0][1:], "g0"]) == rows[1:]


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
    store = memory.connect("memory:")
    await store.open()
    async with store.snapshot() as snapshot:
        with pytest.raises(ConfigurationError, match="sqlite:"):
            await snapshot.sql("SELECT 1", (), {})
    await store.close()


async def test_sql_reads_the_live_generation_by_the_name_of_its_table(store: SqliteReadStore) -> None:
    """The view follows a switch."""
    await build(store, SEATS, [("a", 1)])
    text = "SELECT course, sum(taken) AS total FROM school_seats GROUP BY course"
    assert await select(store, text, total=ColumnKind.INTEGER) == [{"total": 1}]
    second = await write(store, await create(store, SEATS, live=False), upserts=[("b", 2)])
    assert await select(store, text, course=ColumnKind.TEXT) == [{"course": "a"}]
    await store.switch(NAME, second.number)
    assert await select(store, text, course=ColumnKind.TEXT, total=ColumnKind.INTEGER) == [{"course": "b", "total": 2}]


async def test_sql_speaks_the_values_of_python(store: SqliteReadStore) -> None:
    """Parameters are encoded by their type, results decoded by their kind, both exact."""
    await build(store, LINES, [(Decimal("40.0"), 1, DAY, "a"), (Decimal("9.50"), 2, DAY, "a"), (None, 3, DAY, "b")])
    price = {"price": ColumnKind.DECIMAL}
    text = "SELECT price, price__exponent, day FROM shop_lines WHERE price > ? AND day = ?"
    (row,) = await select(store, text, Decimal(10), DAY, **price, day=ColumnKind.DATE)
    assert (str(row["price"]), row["day"]) == ("40.0", DAY)
    (row,) = await select(store, "SELECT max(price) AS price FROM shop_lines", **price)
    assert str(row["price"]) == "40"
    instant = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    for kind, value in (
        (ColumnKind.TEXT, "é"),
        (ColumnKind.INTEGER, 2**62),
        (ColumnKind.REAL, 0.1),
        (ColumnKind.BOOLEAN, True),
        (ColumnKind.DATETIME, instant),
        (ColumnKind.DURATION, dt.timedelta(days=-1)),
        (ColumnKind.BYTES, b"\0"),
    ):
        assert await select(store, "SELECT ? AS v", value, v=kind) == [{"v": value}]
    async with store.snapshot() as snapshot:
        assert await snapshot.sql("SELECT NULL AS v", (), {"v": (ColumnKind.DATE, True)}) == [{"v": None}]
        assert await snapshot.sql("SELECT 1 AS v WHERE ? IS NULL", [None], {"v": (ColumnKind.REAL, False)}) == [
            {"v": 1}
        ]


@pytest.mark.parametrize(
    ("statement", "parameters", "reason"),
    [
        ("SELECT missing FROM school_seats", (), "no such column: missing"),
        ("SELEC 1", (), "syntax error"),
        ("SELECT 1 AS c; SELECT 2 AS c", (), "one statement at a time"),
        ("SELECT ? AS c", (), "bindings"),
        ("SELECT 1 AS other", (), "selects other, but not c"),
        ("", (), "not c"),
        ("SELECT 'text' AS c", (), "column c: 'text' is not of the kind integer"),
        ("SELECT NULL AS c", (), "column c: None"),
        ("SELECT ? AS c", (object(),), "cannot be <object"),
        ("SELECT ? AS c", (dt.datetime(2026, 1, 1),), "cannot be datetime"),  # noqa: DTZ001
        ("SELECT load_extension('x') AS c", (), "not authorized"),
        ("ROLLBACK", (), "not authorized"),
        ("COMMIT", (), "not authorized"),
        ("SAVEPOINT s", (), "not authorized"),
        ("PRAGMA query_only = OFF", (), "not authorized"),
        ("INSERT INTO school_seats__g1 VALUES ('x', 1) RETURNING 1 AS c", (), "not authorized"),
        ("WITH x AS (SELECT 1) DELETE FROM school_seats__g1", (), "not authorized"),
    ],
)
async def test_sql_that_is_wrong_says_what(
    store: SqliteReadStore, statement: str, parameters: tuple[Any, ...], reason: str
) -> None:
    """The reason is SQLite's or ours; nothing is changed, and the snapshot goes on."""
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        with pytest.raises(ConfigurationError, match=reason):
            await snapshot.sql(statement, parameters, COUNTED)
        assert snapshot.connection.in_transaction
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
    assert await rows_of(store) == [("a", 1)]


async def test_sql_that_runs_too_long_is_stopped(store: SqliteReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit it ends with the limit's name, and its connection is fit for others."""
    monkeypatch.setattr(read_snapshot, "READ_S_MAX", 0.05)
    with pytest.raises(Overloaded, match="READ_S_MAX"):
        await select(store, ENDLESS, c=ColumnKind.INTEGER)
    assert await select(store, "SELECT 1 AS c", c=ColumnKind.INTEGER) == [{"c": 1}]


async def test_sql_with_too_many_rows_is_refused(store: SqliteReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat: what is past the limit is not fetched."""
    monkeypatch.setattr(read_snapshot, "SQL_ROWS_MAX", 2)
    text = "SELECT value AS c FROM json_each(?)"
    assert len(await select(store, text, "[1, 2]", c=ColumnKind.INTEGER)) == 2
    with pytest.raises(Overloaded, match="SQL_ROWS_MAX=2"):
        await select(store, text, "[1, 2, 3]", c=ColumnKind.INTEGER)


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


# ── limits of snapshots ──────────────────────────────────────────────────────


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
