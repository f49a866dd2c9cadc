"""What SQL over a read store shows and refuses, in SQLite, PostgreSQL and DuckDB; what one alone does is elsewhere."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from diptych.adapters.duckdb import read_store as duckdb
from diptych.adapters.duckdb.read_store import DuckdbReadStore
from diptych.adapters.postgres import read_snapshot as postgres_snapshot
from diptych.adapters.postgres import read_store as postgres
from diptych.adapters.sqlite import read_snapshot as sqlite_snapshot
from diptych.adapters.sqlite import read_store as sqlite
from diptych.errors import ConfigurationError, Overloaded
from diptych.read_side.read_store import Column, ColumnKind, Comparison, Filter, Order, ReadStore, Table
from diptych.testing.contracts.read_store_cases import BY_COURSE, NAME, SEATS, SORTED, build, create, rows_of, write
from tests.contracts.read_store_sql import COUNTED, FUTURE, NOON, SESSION_ROWS, SESSIONS, opened, select
from tests.postgres_server import new_read_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio

DECIMAL = ColumnKind.DECIMAL
DUCKDB_DECIMALS = [value for value in SORTED[DECIMAL] if abs(value.adjusted()) < 26]
"""Those that DuckDB's SQL has room for: it says so of the others, see `test_read_store_duckdb.py`."""
COUNT_ALL = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"
COUNT_TO = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i AS c FROM n"


@pytest.fixture(params=["sqlite", "postgres", "duckdb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[ReadStore]:
    if request.param == "postgres":
        store: ReadStore = postgres.connect(await new_read_store())
    elif request.param == "duckdb":
        store = duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}")
    else:
        store = sqlite.connect(f"sqlite:{tmp_path / 'read.db'}")
    async with opened(store):
        yield store


# ── what it shows ────────────────────────────────────────────────────────────


async def test_sql_reads_the_live_generation_by_the_name_of_its_table(store: ReadStore) -> None:
    """From a switch on, the other one."""
    await build(store, SEATS, [("a", 1)])
    text = "SELECT course, sum(taken) AS total FROM school_seats GROUP BY course"
    assert await select(store, text, total=ColumnKind.INTEGER) == [{"total": 1}]
    second = await write(store, await create(store, SEATS, live=False), upserts=[("b", 2)])
    assert await select(store, text, course=ColumnKind.TEXT) == [{"course": "a"}]
    await store.switch(NAME, second.number)
    assert await select(store, text, course=ColumnKind.TEXT, total=ColumnKind.INTEGER) == [{"course": "b", "total": 2}]


SESSIONS_BY_ID = (
    "SELECT id FROM web_sessions ORDER BY id",
    "\n  -- first\n /* then */ SELECT id FROM web_sessions ORDER BY id",
    "-- with no word\nselect s.id FROM web_sessions AS s ORDER BY 1 -- the end",
    "WITH mine AS (SELECT id FROM web_sessions) SELECT id FROM mine ORDER BY id",
    "/* of */with recursive n (i) AS (SELECT 1) SELECT id FROM WEB_SESSIONS, n ORDER BY id",
    'SELECT one.id FROM "web_sessions" AS one JOIN web_sessions AS two USING (id) ORDER BY id',
    "SELECT id FROM (SELECT id FROM web_sessions WHERE id >= ?) AS q ORDER BY id",
)


@pytest.mark.parametrize(
    ("store", "statement"),
    [
        *(("sqlite", text) for text in SESSIONS_BY_ID),
        *(("duckdb", text) for text in SESSIONS_BY_ID),
        *(("postgres", text) for text in (*SESSIONS_BY_ID, "(SELECT id FROM web_sessions) ORDER BY id")),
    ],
    indirect=["store"],
)
async def test_sql_shows_what_has_not_expired_at_its_moment(store: ReadStore, statement: str) -> None:
    """By the table's name, wherever the statement names it; the machine's time does not matter."""
    await build(store, SESSIONS, SESSION_ROWS)
    parameters = ["a"] * statement.count("?")

    async def ids(moment: dt.datetime) -> list[str]:
        async with store.snapshot() as snapshot:
            found = await snapshot.sql(statement, parameters, {"id": (ColumnKind.TEXT, False)}, {NAME: moment})
        return [row["id"] for row in found]

    assert await ids(NOON - dt.timedelta(microseconds=1)) == ["a", "b", "c"]
    assert await ids(NOON) == ["b", "c"]
    assert await ids(FUTURE) == ["c"]


async def test_sql_over_several_expiring_tables(store: ReadStore) -> None:
    """Each by its own moment."""
    other = Table("web_others", SESSIONS.columns, ("id",), "until")
    await build(store, SESSIONS, SESSION_ROWS)
    await build(store, other, SESSION_ROWS, "other")
    text = "SELECT 'one ' || id AS id FROM web_sessions UNION ALL SELECT 'two ' || id FROM web_others ORDER BY 1"
    async with store.snapshot() as snapshot:
        found = await snapshot.sql(text, (), {"id": (ColumnKind.TEXT, False)}, {NAME: NOON, "other": FUTURE})
    assert [row["id"] for row in found] == ["one b", "one c", "two c"]


async def test_names_that_sql_knows_are_names_like_others(store: ReadStore) -> None:
    """Columns and tables may be called as SQL's words and hidden columns, or hold marks of patterns."""
    names = ["order", "select", "rowid", "rank", "words", "oid", "_rowid_", "key", "value", "name", "t", "k", "r"]
    names += ["a{0}", 'q"q']
    columns = [Column(name, ColumnKind.TEXT, indexed=True, searchable=True) for name in names]
    table = Table("table", (Column("group", ColumnKind.TEXT), *columns), key=("group",))
    rows = [(f"g{n}", *(f"{name} {n}" for name in names)) for n in range(3)]
    await build(store, table, rows)
    by = tuple(Order(name) for name in [*names, "group"])
    assert await rows_of(store, order=by) == rows
    assert await rows_of(store, *(Filter(name, Comparison.EQUAL, f"{name} 1") for name in names), order=by) == [rows[1]]
    async with store.snapshot() as snapshot:
        assert await snapshot.search(NAME, "rank 1", 10) == [rows[1]]
        assert await snapshot.find(NAME, (), by, 10, [*rows[0][1:], "g0"]) == rows[1:]
        assert await snapshot.get_many(NAME, [("g0",), ("g2",)]) == {("g0",): rows[0], ("g2",): rows[2]}
    assert len(await select(store, 'SELECT "group" FROM "table"', group=ColumnKind.TEXT)) == 3


# ── parameters and results ───────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [kind for kind in SORTED if kind is not ColumnKind.DOCUMENT], ids=lambda k: k.value)
async def test_every_kind_goes_in_and_comes_out(store: ReadStore, kind: ColumnKind) -> None:
    """A parameter is of the type that keeps it, and a result is the same value."""
    for value in DUCKDB_DECIMALS if isinstance(store, DuckdbReadStore) and kind is DECIMAL else SORTED[kind]:
        assert await select(store, "SELECT ? AS v", value, v=kind) == [{"v": value}]


WRONG: Sequence[tuple[str, tuple[Any, ...], str]] = (
    ("SELEC 1", (), "syntax error"),
    ("SELECT 1 AS other", (), "selects other, but not c"),
    ("SELECT ? AS c", (object(),), "cannot be <object"),
    ("SELECT ? AS c", (dt.datetime(2026, 1, 1),), "cannot be datetime"),  # noqa: DTZ001
)
WRONG_FOR_SQLITE: Sequence[tuple[str, tuple[Any, ...], str]] = (
    ("SELECT missing FROM school_seats", (), "no such column: missing"),
    ("SELECT 1 AS c; SELECT 2 AS c", (), "one statement at a time"),
    ("SELECT ? AS c", (), "bindings"),
    ("", (), "not c"),
    ("SELECT 'text' AS c", (), "column c: 'text' is not of the kind integer"),
    ("SELECT NULL AS c", (), "column c: None"),
    ("SELECT load_extension('x') AS c", (), "not authorized"),
    ("ROLLBACK", (), "not authorized"),
    ("COMMIT", (), "not authorized"),
    ("SAVEPOINT s", (), "not authorized"),
    ("PRAGMA query_only = OFF", (), "not authorized"),
    ("INSERT INTO school_seats__g1 VALUES ('x', 1) RETURNING 1 AS c", (), "not authorized"),
    ("WITH x AS (SELECT 1) DELETE FROM school_seats__g1", (), "not authorized"),
)
WRONG_FOR_POSTGRESQL: Sequence[tuple[str, tuple[Any, ...], str]] = (
    ("SELECT missing FROM school_seats", (), 'column "missing" does not exist'),
    ("SELECT 1 AS c FROM missing", (), 'relation "missing" does not exist'),
    ("", (), "syntax error"),
    ("SELECT 1 AS c; SELECT 2 AS c", (), "multiple commands"),
    ("SELECT 1 AS c;", (7,), "0 placeholders, and 1 parameters"),
    ("SELECT ? + ? AS c", (1,), "2 placeholders, and 1 parameters"),
    ("SELECT $2 AS c", (1,), "2 placeholders, and 1 parameters"),
    ("SELECT ? AS c", (), "syntax error"),
    ("SELECT 1 / 0 AS c", (), "division by zero"),
    ("SELECT ? AS c", (float("nan"),), "cannot be nan"),
    ("SELECT 1 AS c -- \0", (), "NUL"),
    ("SELECT '\ud800' AS c", (), "surrogate"),
)


@pytest.mark.parametrize(
    ("store", "statement", "parameters", "reason"),
    [
        *(("sqlite", *wrong) for wrong in (*WRONG, *WRONG_FOR_SQLITE)),
        *(("postgres", *wrong) for wrong in (*WRONG, *WRONG_FOR_POSTGRESQL)),
    ],
    indirect=["store"],
)
async def test_sql_that_is_wrong_says_what(
    store: ReadStore, statement: str, parameters: tuple[Any, ...], reason: str
) -> None:
    """The reason is the database's or ours; nothing is changed, and the snapshot goes on, of the same moment."""
    generation = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
        with pytest.raises(ConfigurationError, match=reason):
            await snapshot.sql(statement, parameters, COUNTED)
        await write(store, generation, upserts=[("b", 2)])
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
    assert await rows_of(store) == [("a", 1), ("b", 2)]


# ── limits ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
async def test_sql_that_runs_too_long_is_stopped(store: ReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit it ends with the limit's name, and its snapshot and connection are fit for more."""
    for module in (sqlite_snapshot, postgres_snapshot):
        monkeypatch.setattr(module, "READ_S_MAX", 0.05)
    async with store.snapshot():
        pass  # it may have been begun in advance, with the limit of before; the next one is not
    async with store.snapshot() as snapshot:
        with pytest.raises(Overloaded, match="READ_S_MAX"):
            await snapshot.sql(COUNT_ALL, (), COUNTED)
        assert await snapshot.sql("SELECT 1 AS c", (), COUNTED) == [{"c": 1}]


async def test_sql_gives_no_more_rows_than_are_wanted(store: ReadStore) -> None:
    """What is behind them is not fetched, though there would be no end of it."""
    async with store.snapshot() as snapshot:
        assert len(await snapshot.sql(COUNT_TO, (3,), COUNTED, limit=2)) == 2
        assert len(await snapshot.sql(COUNT_TO, (3,), COUNTED)) == 3
