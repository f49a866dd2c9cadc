"""SQL written by hand over PostgreSQL's read store: what it may say, what it shows, and that it cannot write (G13)."""

from __future__ import annotations

import asyncio
import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING

import asyncpg
import pytest

from diptych.adapters.postgres.read_store import PostgresReadStore, connect
from diptych.errors import ConfigurationError
from diptych.read_side.read_store import Column, ColumnKind, Table
from diptych.testing.contracts.read_store_cases import (
    LINES,
    NAME,
    SEATS,
    SORTED,
    build,
    create,
    place,
    rows_of,
    write,
)
from tests.contracts.read_store_sql import COUNTED, FUTURE, PAST, SESSIONS, opened, select
from tests.postgres_server import by_hand, new_read_store, run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10


@pytest.fixture
async def url() -> str:
    return await new_read_store()


@pytest.fixture
async def store(url: str) -> AsyncGenerator[PostgresReadStore]:
    async with opened(connect(url)) as store:
        yield store


@pytest.fixture(params=["", "&pgbouncer=true"], ids=["", "pooled"])
async def guarded(request: pytest.FixtureRequest, url: str) -> AsyncGenerator[PostgresReadStore]:
    """A store whose connections are read-only by the session's default, and one that says it in each transaction."""
    async with opened(connect(url + request.param)) as store:
        yield store


# ── what it shows ────────────────────────────────────────────────────────────


async def test_g8_sql_shows_the_moment_of_its_snapshot(store: PostgresReadStore) -> None:
    """A switch to other rows and columns meanwhile changes nothing, though the view of that name is replaced."""
    await build(store, SEATS, [("a", 1)])
    other = Table(SEATS.name, (Column("course", ColumnKind.TEXT), Column("note", ColumnKind.TEXT)), SEATS.key)
    async with store.snapshot() as snapshot:
        assert len(await snapshot.slices(NAME)) == 1
        second = await create(store, other, live=False)
        await store.switch(NAME, (await write(store, second, upserts=[("b", "new")])).number)
        columns = {"course": (ColumnKind.TEXT, False), "taken": (ColumnKind.INTEGER, False)}
        assert await snapshot.sql("SELECT * FROM school_seats", (), columns) == [{"course": "a", "taken": 1}]
    assert await select(store, "SELECT note FROM school_seats", note=ColumnKind.TEXT) == [{"note": "new"}]


async def test_other_programs_see_what_has_not_expired_by_the_servers_time(url: str, store: PostgresReadStore) -> None:
    """So does SQL over a read model that it does not say it touches."""
    await build(store, SESSIONS, [("gone", PAST, "FR"), ("here", FUTURE, "FR"), ("ever", None, "FR")])
    text = "SELECT id FROM web_sessions ORDER BY id"
    async with by_hand(url) as link:
        rows = await link.fetch(text.replace("web", f"{url.rpartition('schema=')[2]}.web"))
    assert [name for (name,) in rows] == ["ever", "here"]
    assert [row["id"] for row in await select(store, text, id=ColumnKind.TEXT)] == ["ever", "here"]


# ── parameters and results ───────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [kind for kind in SORTED if kind is not ColumnKind.DOCUMENT], ids=lambda k: k.value)
async def test_every_kind_goes_in_by_number(store: PostgresReadStore, kind: ColumnKind) -> None:
    """A parameter is of the type that keeps it, whichever way its placeholder is written."""
    for value in SORTED[kind]:
        assert await select(store, "SELECT $1 AS v", value, v=kind) == [{"v": value}]


async def test_parameters_find_what_columns_hold(store: PostgresReadStore) -> None:
    """Several at once, in the order of the marks or by number, None among them."""
    day = dt.date(2026, 3, 1)
    await build(store, LINES, [(Decimal("9.50"), 1, day, "a"), (None, 2, day, "b"), (Decimal("4E+1"), 3, day, "c")])
    one = {"order": (ColumnKind.TEXT, False)}
    async with store.snapshot() as snapshot:
        for text in (
            'SELECT "order" FROM shop_lines WHERE price <= ? AND day = ? AND "order" = ?',
            'SELECT "order" FROM shop_lines WHERE "order" = $3 AND price <= $1 AND day = $2',
        ):
            assert await snapshot.sql(text, (Decimal(10), day, "a"), one) == [{"order": "a"}]
        text = 'SELECT "order" FROM shop_lines WHERE ? IS NULL AND price IS NOT DISTINCT FROM ?'
        assert await snapshot.sql(text, (None, None), one) == [{"order": "b"}]
        columns = {"price": (ColumnKind.DECIMAL, True), "total": (ColumnKind.DECIMAL, False)}
        text = "SELECT sum(price) AS total, max(price) AS price FROM shop_lines"
        assert [str(v) for v in (await snapshot.sql(text, (), columns))[0].values()] == ["40", "49.50"]
        text = "SELECT price, price__exponent, 40000 * line AS total FROM shop_lines WHERE line = 3"
        assert [str(v) for v in (await snapshot.sql(text, (), columns))[0].values()] == ["4E+1", "120000"]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ('SELECT \'?\', "?", ? AS c FROM (SELECT 1 AS "?") AS q', 7),
        ("SELECT /* ? /* ? */ ? */ ? AS c -- ?", 7),
        ("SELECT $$ ? $$, $a$ ? $$ ? $a$, E'\\'?', ? AS c", 7),
        ("SELECT a$1 + ? AS c FROM (SELECT 0 AS a$1) AS q", 7),
        ("SELECT CASE WHEN '{\"a\": 1}'::jsonb ? 'a' THEN $1 END AS c", 7),
        ("SELECT ?::text::integer + 0 AS c", 7),
    ],
)
async def test_placeholders_are_found_where_sql_has_them(store: PostgresReadStore, statement: str, found: int) -> None:
    """Not in text, names, comments or words; `?` is an operator where placeholders have numbers."""
    assert await select(store, statement, 7, c=ColumnKind.INTEGER) == [{"c": found}]


async def test_results_of_another_kind_are_refused(store: PostgresReadStore) -> None:
    """Never bent to what was asked for."""
    for kind, text in (
        (ColumnKind.INTEGER, "1.5"),
        (ColumnKind.INTEGER, "true"),
        (ColumnKind.INTEGER, "'1'"),
        (ColumnKind.TEXT, "1"),
        (ColumnKind.BOOLEAN, "1"),
        (ColumnKind.DATETIME, "localtimestamp"),
        (ColumnKind.DATETIME, "'infinity'::timestamptz"),
        (ColumnKind.DATE, "now()"),
        (ColumnKind.DATE, "date '10000-01-01'"),
        (ColumnKind.BYTES, "'a'"),
        (ColumnKind.TEXT, "NULL"),
    ):
        with pytest.raises(ConfigurationError, match=r"column v: .* is not of the kind"):
            await select(store, f"SELECT {text} AS v", v=kind)


# ── readers cannot write (G13) ───────────────────────────────────────────────

WRITES = [
    "INSERT INTO {schema}.school_seats__g1 VALUES ('x', 1) RETURNING 1 AS c",
    "INSERT INTO {schema}.school_seats VALUES ('x', 1) RETURNING 1 AS c",
    "UPDATE {schema}.school_seats__g1 SET taken = 2 RETURNING 1 AS c",
    "UPDATE {schema}.diptych_generations SET position = 99 RETURNING 1 AS c",
    "DELETE FROM {schema}.school_seats__g1 RETURNING 1 AS c",
    "WITH x AS (DELETE FROM {schema}.school_seats__g1 RETURNING 1 AS c) SELECT c FROM x",
    "SELECT 1 AS c FROM {schema}.school_seats__g1 FOR UPDATE",
    "SELECT 1 AS c FROM {schema}.school_seats__g1 FOR KEY SHARE",
    "SELECT 1 AS c INTO {schema}.copied",
    "SELECT nextval('{schema}.counter') AS c",
    "SELECT setval('{schema}.counter', 9) AS c",
    "SELECT set_config('transaction_read_only', 'off', true) AS c",
    "TRUNCATE {schema}.school_seats__g1",
    "DROP TABLE {schema}.school_seats__g1",
    "ALTER TABLE {schema}.school_seats__g1 ADD COLUMN b int",
    "CREATE TABLE {schema}.t (a int)",
    "CREATE TEMP TABLE t (a int)",
    "CREATE SCHEMA s",
    "GRANT ALL ON {schema}.school_seats TO public",
    "DO $$ BEGIN DELETE FROM {schema}.school_seats__g1; END $$",
    "COPY {schema}.school_seats__g1 FROM STDIN",
    "COPY {schema}.school_seats__g1 TO STDOUT",
    "REFRESH MATERIALIZED VIEW {schema}.m",
    "SET TRANSACTION READ WRITE",
    "SET LOCAL transaction_read_only = off",
    "EXPLAIN ANALYZE DELETE FROM {schema}.school_seats__g1",
    "NOTIFY c",
    "LOCK TABLE {schema}.school_seats__g1 IN EXCLUSIVE MODE",
    "VACUUM",
]
"""The last ones are no statements behind WITH; on the connection itself, some do no harm in a read-only transaction."""
HARMLESS = (
    "COPY {schema}.school_seats__g1 TO STDOUT",
    "NOTIFY c",
    "LOCK TABLE {schema}.school_seats__g1 IN EXCLUSIVE MODE",
)


async def prepare(url: str, store: PostgresReadStore) -> str:
    await build(store, SEATS, [("a", 1)])
    schema = url.rpartition("schema=")[2]
    await run(url, f"CREATE SEQUENCE {schema}.counter", f"CREATE MATERIALIZED VIEW {schema}.m AS SELECT 1")
    return schema


@pytest.mark.parametrize("statement", WRITES)
async def test_g13_sql_cannot_write(url: str, guarded: PostgresReadStore, statement: str) -> None:
    """Whatever it is, it is refused, the snapshot goes on, and nothing is changed."""
    schema = await prepare(url, guarded)
    async with guarded.snapshot() as snapshot:
        with pytest.raises(ConfigurationError, match="cannot be run"):
            await snapshot.sql(statement.format(schema=schema), (), COUNTED)
        assert await snapshot.sql("SELECT taken AS c FROM school_seats", (), COUNTED) == [{"c": 1}]
    assert await rows_of(guarded) == [("a", 1)]


@pytest.mark.parametrize("statement", [text for text in WRITES if text not in HARMLESS])
async def test_g13_a_snapshots_own_connection_refuses_to_write(
    url: str, guarded: PostgresReadStore, statement: str
) -> None:
    """Tried on the raw connection, once it has read; and what settings it takes are gone with the transaction."""
    schema = await prepare(url, guarded)
    async with guarded.snapshot() as snapshot:
        assert len(await snapshot.slices(NAME)) == 1  # as before all SQL of the user's
        with pytest.raises((asyncpg.PostgresError, asyncpg.InternalClientError)):
            await snapshot.connection.fetch(statement.format(schema=schema))
    assert await rows_of(guarded) == [("a", 1)]


async def test_g13_a_connection_that_escapes_its_transaction_is_read_only_still(
    url: str, store: PostgresReadStore
) -> None:
    """The session's own default says so; a pooler, which may have another, is why each transaction says it too."""
    schema = await prepare(url, store)
    async with store.snapshot() as snapshot:
        await snapshot.connection.execute("SET default_transaction_read_only = off")  # until the transaction ends
        await snapshot.connection.execute("ROLLBACK")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await snapshot.connection.execute(f"DELETE FROM {schema}.school_seats__g1")
    assert await rows_of(store) == [("a", 1)]


async def test_g13_what_is_not_refused_is_undone(url: str, store: PostgresReadStore) -> None:
    """Before PostgreSQL 16, large objects are made in a read-only transaction too; it is rolled back."""
    try:
        await select(store, "SELECT lo_create(0)::bigint AS c", c=ColumnKind.INTEGER)
    except ConfigurationError as error:
        assert "read-only" in str(error)  # noqa: PT017
    async with by_hand(url) as link:
        assert await link.fetchval("SELECT count(*) FROM pg_largeobject_metadata") == 0


async def test_what_sql_sets_or_locks_ends_with_it(url: str, store: PostgresReadStore) -> None:
    """Settings are as before for the next statement of the snapshot, advisory locks are let go with the snapshot."""
    async with store.snapshot() as snapshot:
        for setting in ("statement_timeout", "search_path"):
            before = await snapshot.connection.fetchval(f"SHOW {setting}")
            text = f"SELECT length(set_config('{setting}', '0', false)) AS c"
            assert await snapshot.sql(text, (), COUNTED) == [{"c": 1}]
            after = await snapshot.connection.fetchval(f"SHOW {setting}")
            assert after == (before if setting == "statement_timeout" else url.rpartition("schema=")[2])
        await snapshot.sql("SELECT 1 AS c FROM (SELECT pg_advisory_lock(77)) AS locked", (), COUNTED)
    async with by_hand(url) as link:
        assert await asyncio.wait_for(link.fetchval("SELECT pg_try_advisory_lock(77)"), WAIT_S_MAX)


async def test_a_write_is_not_hidden_behind_a_placeholder(url: str, store: PostgresReadStore) -> None:
    """What is given as a parameter is a value, whatever it says."""
    await build(store, SEATS, [("a", 1)])
    evil = "'; DELETE FROM school_seats__g1; --"
    assert await select(store, "SELECT ? AS v", evil, v=ColumnKind.TEXT) == [{"v": evil}]
    assert await rows_of(store) == [("a", 1)]
    assert (await store.generations())[0].checkpoint == place(1)
    del url
