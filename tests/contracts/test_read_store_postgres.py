"""What PostgreSQL's read store says beyond the contract: schemas, tables, views, indexes, and limits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from diptych.adapters.connect import connect_read_store, default_read_store
from diptych.adapters.postgres import read_catalog, read_changes, read_writes
from diptych.adapters.postgres.deployment import migrate, migration_sql
from diptych.adapters.postgres.read_schema import READ_STORE_MIGRATIONS
from diptych.adapters.postgres.read_store import PostgresReadStore, connect
from diptych.errors import ConfigurationError, InvalidMessage, NewerStore, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
    Discard,
    Failed,
    Fenced,
    Filter,
    Order,
    SliceWrite,
    Table,
)
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from diptych.testing.contracts.read_store import MOMENT
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    shown_generation,
    write,
)
from tests.contracts.read_store_sql import CHANGES_SINCE_VERSION_4, CHANGES_SINCE_VERSION_5, opened, select
from tests.postgres_server import (
    by_hand,
    left_in_transaction,
    new_database,
    new_read_store,
    run,
    statements_of,
    with_parameter,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from diptych.adapters.postgres.read_snapshot import PostgresReadSnapshot

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10
SEARCHED = Table("notes", (Column("id", ColumnKind.TEXT), Column("text", ColumnKind.TEXT, searchable=True)), ("id",))


@pytest.fixture
async def url() -> str:
    return await new_read_store()


@pytest.fixture
async def store(url: str) -> AsyncGenerator[PostgresReadStore]:
    async with opened(connect(url)) as store:
        yield store


def schema(url: str) -> str:
    return url.rpartition("schema=")[2]


# ── schemas ──────────────────────────────────────────────────────────────────


async def test_a_schema_that_was_not_migrated_is_refused() -> None:
    """The error says what to run; nothing is made."""
    url = with_parameter(await new_database(), "schema", "empty")
    store = connect(url)
    with pytest.raises(ConfigurationError, match="holds no read store yet: run diptych migrate"):
        await store.open()
    await store.close()
    async with by_hand(url) as link:
        assert await link.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 'empty'") == 0


async def test_an_older_schema_is_migrated(url: str) -> None:
    """What is blocked and left out stays, and who decides from now on is kept."""
    blocked, left_out = BlockedKey(NAME, '["a"]', Position(3), "boom"), Discard(NAME, '["b"]', Position(2))
    async with opened(connect(url)) as store:
        generation = await build(store, SEATS, [("a", 1)])
        generation = await write(store, generation, block=[blocked], discard=[left_out], by_hand=True)
    undone = [f"SET search_path = {schema(url)}", *CHANGES_SINCE_VERSION_5, *CHANGES_SINCE_VERSION_4]
    await run(url, *undone, "DELETE FROM migrations WHERE store = 'read store' AND number > 2")
    with pytest.raises(ConfigurationError, match="is at migration 2 of 4: run diptych migrate"):
        await connect(url).open()
    assert len(await migrate(url, "read_store")) == 2
    async with opened(connect(url)) as store:
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [blocked]
        later = Discard(NAME, '["a"]', Position(3), "ann", "by phone", MOMENT)
        await write(store, generation, unblock=['["a"]'], discard=[later], by_hand=True)
        assert await store.discards(NAME) == [left_out, later]
        assert await store.retries(NAME, '["a"]', 1) == []


async def test_migrating_twice_and_at_once_is_done_once() -> None:
    """Whoever comes second finds nothing to do; an event store may be in the same schema."""
    url = with_parameter(await new_database(), "schema", "both")
    done = await asyncio.gather(*(migrate(url, "read_store") for _ in range(4)))
    assert sorted(len(steps) for steps in done) == [0, 0, 0, READ_STORE_MIGRATIONS.newest]
    async with opened(connect(url)) as store:
        await build(store, SEATS, [("a", 1)])
        assert await rows_of(store) == [("a", 1)]
    assert await migrate(url, "read_store") == []
    assert 'CREATE TABLE "both".diptych_generations' in migration_sql(url, "read_store")


async def test_a_newer_schema_is_refused_and_left_alone(url: str, store: PostgresReadStore) -> None:
    """The error has both numbers."""
    await build(store, SEATS, [("a", 1)])
    await store.close()
    await run(url, f"INSERT INTO {schema(url)}.migrations VALUES ('read store', 99, 'of tomorrow')")
    with pytest.raises(NewerStore) as refusal:
        await store.open()
    assert (refusal.value.found, refusal.value.known) == (99, READ_STORE_MIGRATIONS.newest)
    await run(url, f"DELETE FROM {schema(url)}.migrations WHERE number = 99")
    await store.open()
    assert await rows_of(store) == [("a", 1)]


@pytest.mark.parametrize(
    ("store", "beside"),
    [
        ("postgresql://u:p@h:5/d", "postgresql://u:p@h:5/d?schema=diptych_read"),
        ("postgres://h/d?schema=shop", "postgres://h/d?schema=shop_read"),
        (
            "postgresql:///d?host=/run/pg&pgbouncer=true",
            "postgresql:///d?host=%2Frun%2Fpg&pgbouncer=true&schema=diptych_read",
        ),
    ],
)
async def test_read_models_are_beside_the_events_in_a_schema_of_their_own(store: str, beside: str) -> None:
    """Where nothing is said; all else of the URL stays."""
    assert default_read_store(store) == beside
    assert isinstance(connect_read_store(beside), PostgresReadStore)


async def test_a_database_that_cannot_keep_all_text_is_refused(url: str) -> None:
    """Text is to read back as it was written, so that the database has to keep it as UTF-8."""
    latin = url.partition("?")[0] + "_latin?" + url.partition("?")[2]
    name = latin.partition("?")[0].rpartition("/")[2]
    await run(url, f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    await migrate(latin, "read_store")
    store = connect(latin)
    with pytest.raises(ConfigurationError, match="LATIN1"):
        await store.open()
    await store.close()


async def test_the_order_of_text_is_not_left_to_the_database(url: str, store: PostgresReadStore) -> None:
    """Every column of text that is ordered or compared has the order of code points, in tables and in the catalog."""
    await build(store, ARTICLES, [("1", 1, "one", None)])
    async with by_hand(url) as link:
        rows = await link.fetch(
            "SELECT c.relname, a.attname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid "
            "JOIN pg_collation AS o ON o.oid = a.attcollation "
            "WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' AND o.collname <> 'C' ORDER BY 1, 2",
            schema(url),
        )
    shown_alone = {
        "diptych_blocked_keys": ("error", "trace"),
        "diptych_discards": ("actor", "reason"),
        "diptych_generations": ("fingerprint", "stopped"),
        "diptych_retries": ("actor", "reason"),
    }
    only_shown = {(table, column) for table, columns in shown_alone.items() for column in columns}
    assert {(table, column) for table, column in rows if table != "migrations"} == only_shown


# ── waiting for changes ──────────────────────────────────────────────────────


async def test_writes_of_others_wake_by_notification(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits does not wait for the next look at the catalog."""
    monkeypatch.setattr(read_changes, "CHANGES_POLL_S", 1_000)
    monkeypatch.setattr(read_changes, "CHANGES_POLL_DEAF_S", 1_000)
    generation = await create(store, SEATS)
    async with opened(connect(url)) as other:
        seen = await other.wait_for_change(0, 0.05)
        while not other._changes._wake_ups.is_listening:  # each wait sees to it that somebody listens
            seen = await other.wait_for_change(seen, 0.05)
        waiting = asyncio.create_task(other.wait_for_change(seen, WAIT_S_MAX * 2))
        await asyncio.wait([waiting], timeout=0)
        await write(store, generation, upserts=[("a", 1)])
        assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen


async def test_writes_of_others_are_noticed_without_notifications(url: str, store: PostgresReadStore) -> None:
    """Behind a pooler nobody can listen; the catalog is looked at instead."""
    generation = await create(store, SEATS)
    async with opened(connect(with_parameter(url, "pgbouncer", "true"))) as other:
        waiting = asyncio.create_task(other.wait_for_change(0, WAIT_S_MAX * 2))
        await asyncio.wait([waiting], timeout=0)
        await write(store, generation, upserts=[("a", 1)])
        assert await asyncio.wait_for(waiting, WAIT_S_MAX) != 0


async def test_own_writes_wake_at_once_and_only_once(store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the notification of the own write nor a look at the catalog counts as another change."""
    generation = await create(store, SEATS)
    seen = await store.wait_for_change(0, 0)
    write_planned, changes = store._write_planned, store._changes

    async def look_before_it_is_noted(plans: Any) -> Any:
        result = await write_planned(plans)
        changes.look_soon()
        assert changes._looking is not None
        await changes._looking
        return result

    monkeypatch.setattr(store, "_write_planned", look_before_it_is_noted)
    for position in range(3):
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await asyncio.wait([waiting], timeout=0)
        generation = await write(store, generation, upserts=[("a", position)])
        assert await asyncio.wait_for(waiting, WAIT_S_MAX) == seen + 1
        seen += 1
    assert await store.wait_for_change(seen, 0.1) == seen


async def test_a_change_by_others_during_an_own_write_is_counted(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the own write is fenced by it, and so notes nothing."""
    generation = await create(store, SEATS)
    seen = await store.wait_for_change(0, 0)
    write_planned, changes = store._write_planned, store._changes

    async def come_late(plans: Any) -> Any:
        async with opened(connect(url)) as other:
            await write(other, generation, upserts=[("a", 1)])
        changes.look_soon()
        return await write_planned(plans)

    monkeypatch.setattr(store, "_write_planned", come_late)
    waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX * 2))
    await asyncio.wait([waiting], timeout=0)
    assert await store.write([SliceWrite(generation, place(1), [("a", 2)])]) == [Fenced()]
    assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen


async def test_who_asks_for_leases_at_once_is_answered_one_by_one(url: str, store: PostgresReadStore) -> None:
    """Two who find everything free share it, though both were held up in the middle of taking it."""
    made = [await store.create_generation(f"n{n}", "1", None, place(0), live=True) for n in range(4)]
    keys = [generation.lease_key for (generation,) in made]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with opened(connect(url)) as other, by_hand(url) as look:
        async with by_hand(url) as link, link.transaction():
            await link.execute(f"SELECT 1 FROM {schema(url)}.diptych_generations FOR UPDATE")
            asking = [asyncio.create_task(s.lease(name, keys, 3_600)) for s, name in ((store, "a"), (other, "b"))]
            async with asyncio.timeout(WAIT_S_MAX):
                while await look.fetchval(waiting) < len(asking):
                    pass
        held = [key for leased in [await each for each in asking] for key in leased.epochs]
    assert sorted(held) == sorted(keys)


# ── tables and views ─────────────────────────────────────────────────────────


async def test_long_names_fit(store: PostgresReadStore) -> None:
    """PostgreSQL would cut them off silently; two that begin alike stay apart, and what is too long is refused."""
    long = "wholesale_" + "statement_" * 5
    columns = (Column("id", ColumnKind.TEXT), Column("a" * 60, ColumnKind.DECIMAL, indexed=True))
    for letter in "xy":
        table = Table(long + letter, columns, ("id",))
        await build(store, table, [(letter, Decimal("4E+1"))], letter)
    for letter in "xy":
        found = await rows_of(store, order=(Order("a" * 60), Order("id")), name=letter)
        assert [(row[0], str(row[1])) for row in found] == [(letter, "4E+1")]
    for table in (Table(long * 2, SEATS.columns, SEATS.key), Table("t", (Column("a" * 64, ColumnKind.TEXT),), ("id",))):
        with pytest.raises(ConfigurationError, match="more than 63 bytes"):
            await create(store, table, "too long")
    assert len(await store.generations()) == 2


async def test_tables_that_cannot_be_are_refused(url: str, store: PostgresReadStore) -> None:
    """With the reason, and nothing of them is left: names that are taken or kept, and columns that cannot be."""
    await create(store, SEATS)
    await run(url, f"CREATE TABLE {schema(url)}.theirs (a int)")
    shouted = Table(SEATS.name.upper(), SEATS.columns, SEATS.key)
    system = Table("t", (Column("xmin", ColumnKind.TEXT),), ("xmin",))
    for table, reason in (
        (shouted, f"other and {NAME}"),
        (Table("theirs", SEATS.columns, SEATS.key), "something else of that name"),
        (Table("pg_seats", SEATS.columns, SEATS.key), "keeps pg_ for itself"),
        (system, "conflicts with a system column"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            await create(store, table, "other")
    assert len(await store.generations()) == 1
    assert (await create(store, ARTICLES, "other")).number == 1


async def relations(url: str) -> list[str]:
    async with by_hand(url) as link:
        rows = await link.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace ORDER BY relname", schema(url)
        )
        return [name for (name,) in rows]


async def test_dropping_leaves_nothing_behind(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, views and indexes go with their generation; the tables not before snapshots of before must be over."""
    before = await relations(url)
    for _ in range(2):
        generation = await build(store, ARTICLES, [("1", 1, "one", None)])
        assert {"press_articles", f"press_articles__g{generation.number}"} <= set(await relations(url))
        await store.drop_generation(NAME, generation.number)
    left = set(await relations(url)) - set(before)
    assert {"press_articles__g1", "press_articles__g2"} <= left
    assert "press_articles" not in left
    monkeypatch.setattr(read_catalog, "DROPPED_TABLE_KEPT_S", 0)
    await store._tidy()
    assert await relations(url) == before


async def test_a_snapshot_keeps_the_tables_that_it_has_read(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a switch nor the removal of what is dropped waits for it, nor takes its rows away."""
    monkeypatch.setattr(read_catalog, "DROPPED_TABLE_KEPT_S", 0)
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
        second = await write(store, await create(store, SEATS, live=False), upserts=[("b", 2)])
        assert await asyncio.wait_for(store.switch(NAME, second.number), WAIT_S_MAX)
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
        assert "school_seats__g1" in await relations(url)
    await store._tidy()
    assert "school_seats__g1" not in await relations(url)


async def test_a_generation_that_is_gone_has_no_rows_though_its_table_is_there(store: PostgresReadStore) -> None:
    """To the snapshots that come after, by its number too."""
    generation = await build(store, SEATS, [("a", 1)])
    await store.drop_generation(NAME, generation.number)
    async with store.snapshot() as snapshot:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="has no generation 1"):
                await snapshot.get_many(NAME, [("a",)], generation.number)


async def test_a_snapshot_that_comes_too_late_to_a_table_is_told_to_ask_again(
    store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a snapshot is older than a dropped table is kept, its read is unavailable rather than wrong."""
    monkeypatch.setattr(read_catalog, "DROPPED_TABLE_KEPT_S", 0)
    generation = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        assert len(await snapshot.slices(NAME)) == 1
        await store.drop_generation(NAME, generation.number)
        with pytest.raises(StoreUnavailable, match="ask again"):
            await snapshot.find(NAME, (), BY_COURSE, 10)


async def seen_by_others(url: str, columns: str = "*") -> list[tuple[Any, ...]]:
    async with by_hand(url) as link:
        rows = await link.fetch(f"SELECT {columns} FROM {schema(url)}.school_seats ORDER BY 1")
        return [tuple(row) for row in rows]


async def test_other_programs_find_the_live_rows_by_the_name_of_the_read_model(
    url: str, store: PostgresReadStore
) -> None:
    """The view follows a switch, to other columns too, and keeps what was built on it where those stay."""
    await build(store, SEATS, [("a", 1)])
    await run(url, f"CREATE VIEW {schema(url)}.theirs AS SELECT course FROM {schema(url)}.school_seats")
    second = await write(store, await create(store, SEATS, live=False), upserts=[("b", 2)])
    await store.switch(NAME, second.number)
    assert await seen_by_others(url) == [("b", 2)]
    await run(url, f"DROP VIEW {schema(url)}.theirs")
    other = Table(SEATS.name, (Column("price", ColumnKind.DECIMAL), *SEATS.columns), SEATS.key)
    (third,) = await store.create_generation(NAME, "3", other, place(0), live=False)
    third = await write(store, third, checkpoint=place(1), upserts=[(Decimal("9.50"), "c", 3)])
    await store.switch(NAME, third.number)
    assert await seen_by_others(url, "price, course, taken") == [(Decimal("9.50"), "c", 3)]


async def test_nobody_who_reads_a_view_holds_up_a_switch(url: str, store: PostgresReadStore) -> None:
    """It is done at once for all that Diptych answers; the view follows when it is free."""
    await build(store, SEATS, [("a", 1)])
    other = Table(SEATS.name, (*SEATS.columns, Column("note", ColumnKind.TEXT)), SEATS.key)
    second = await write(store, await create(store, other, live=False), upserts=[("b", 2, "new")])
    async with by_hand(url) as link, link.transaction():
        await link.fetch(f"SELECT * FROM {schema(url)}.school_seats")
        await asyncio.wait_for(store.switch(NAME, second.number), WAIT_S_MAX)
        assert await rows_of(store) == [("b", 2, "new")]
        assert [tuple(row) for row in await link.fetch(f"SELECT * FROM {schema(url)}.school_seats")] == [("a", 1)]
    await store._tidy()
    assert await seen_by_others(url) == [("b", 2, "new")]


# ── what PostgreSQL does for a read ──────────────────────────────────────────


async def statements(snapshot: PostgresReadSnapshot, read: Callable[[], Awaitable[Any]]) -> list[Any]:
    return [query for query in await statements_of(snapshot.connection, read) if "__g1" in query.query]


async def plan(snapshot: PostgresReadSnapshot, query: Any) -> str:
    rows = await snapshot.connection.fetch(f"EXPLAIN {query.query}", *query.args)
    return "\n".join(row[0] for row in rows)


async def test_many_keys_are_one_statement(store: PostgresReadStore) -> None:
    """One, thousands, or of several columns: `get_many` asks once, and finds each by the index."""
    await build(store, SEATS, [(f"c{n}", n) for n in range(3_000)])
    numbers = Table("pairs", (Column("a", ColumnKind.TEXT), Column("b", ColumnKind.INTEGER)), key=("a", "b"))
    await build(store, numbers, [("a", n) for n in range(3_000)], "pairs")
    async with store.snapshot() as snapshot:
        await shown_generation(snapshot, NAME)
        await shown_generation(snapshot, "pairs")
        courses, pairs = [(f"c{n}",) for n in range(1_000)], [("a", n) for n in range(1_000)]
        for name, keys in ((NAME, courses[:1]), (NAME, courses), ("pairs", pairs[:1]), ("pairs", pairs)):
            asked = await statements(snapshot, lambda: snapshot.get_many(name, keys))  # noqa: B023
            assert len(asked) == 1
            told = await plan(snapshot, asked[0])
            assert "Index" in told
            assert "Seq Scan" not in told


async def test_prefixes_pages_and_bounds_use_the_index(url: str, store: PostgresReadStore) -> None:
    """They search it and need no sorting, so that their cost does not grow with the table."""
    columns = (Column("k", ColumnKind.TEXT), Column("v", ColumnKind.TEXT, indexed=True))
    nullable = (*columns, Column("w", ColumnKind.TEXT, nullable=True, indexed=True))
    table = Table("t", nullable, key=("k",))
    await build(store, table, [(f"{n:05}", f"{n:05}", f"{n:05}") for n in range(5_000)])
    await run(url, f"ANALYZE {schema(url)}.t__g1")
    by, down = (Order("v"), Order("k")), (Order("v", descending=True), Order("k", descending=True))
    nulls = (Order("w", descending=True), Order("k", descending=True))
    async with store.snapshot() as snapshot:
        for filters, order, after in (
            ((Filter("v", Comparison.STARTS_WITH, "012"),), by, None),
            ((Filter("v", Comparison.MORE_THAN, "04990"),), by, None),
            ((Filter("v", Comparison.EQUAL, "00001"),), by, None),
            ((), by, ("04000", "04000")),
            ((), down, ("00500", "00500")),
            ((), (Order("w"), Order("k")), ("04000", "04000")),
            ((), nulls, None),
            ((), (Order("k"),), ("00005",)),
        ):
            (asked,) = await statements(snapshot, lambda: snapshot.find(NAME, filters, order, 10, after))  # noqa: B023
            told = await plan(snapshot, asked)
            assert "Index" in told, told
            assert "Sort" not in told, told


async def test_words_are_found_by_an_index(url: str, store: PostgresReadStore) -> None:
    """A search for rare words does not read every row."""
    await build(store, SEARCHED, [(str(n), f"word{n} common {'-' * 1_000}") for n in range(5_000)])
    await run(url, f"ANALYZE {schema(url)}.notes__g1")
    async with store.snapshot() as snapshot:
        (asked,) = await statements(snapshot, lambda: snapshot.search(NAME, "word4999", 10))
        assert "notes__g1___words_idx" in await plan(snapshot, asked)


# ── values ───────────────────────────────────────────────────────────────────

LETTERS = "".join(chr(0x4E00 + n * 7 % 20_000) for n in range(3_000))
"""Text that does not get small by compression."""


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (Column("v", ColumnKind.TEXT), "a\0b", "NUL"),
        (Column("v", ColumnKind.TEXT), "\ud800", "lone surrogate"),
        (Column("v", ColumnKind.INTEGER), 2**63, "64 bits"),
        (Column("v", ColumnKind.DECIMAL), Decimal("1E+131072"), "131072 digits"),
        (Column("v", ColumnKind.DECIMAL), Decimal("1E-16384"), "16383 behind"),
        (Column("v", ColumnKind.TEXT, indexed=True), LETTERS, "9000 bytes"),
        (Column("v", ColumnKind.TEXT, searchable=True), " ".join(f"word{n}" for n in range(100_000)), "too long"),
        (Column("v", ColumnKind.DOCUMENT), "{no json", "type json"),
    ],
    ids=["nul", "surrogate", "integer", "large", "small", "index", "words", "document"],
)
async def test_what_cannot_be_stored_is_told_with_model_key_and_column(
    store: PostgresReadStore, column: Column, value: Any, reason: str
) -> None:
    """It fails its own slice alone, be it Python that notices or the server, and changes nothing."""
    table = Table("odd", (Column("id", ColumnKind.INTEGER), column), key=("id",))
    odd, other = await create(store, table, "shop.Odd"), await create(store, SEATS)
    bad = SliceWrite(odd, place(1), upserts=[(7, value)])
    failed, written = await store.write([bad, SliceWrite(other, place(1), upserts=[("a", 1)])])
    assert isinstance(failed, Failed)
    for told in (reason, "shop.Odd", "column v", "key (7,)"):
        assert told in failed.reason
    assert await rows_of(store) == [("a", 1)]
    assert (await store.generations())[1] == odd
    assert not isinstance(written, Failed)


async def test_of_rows_with_one_key_the_last_is_kept(store: PostgresReadStore) -> None:
    """Though one statement writes them all, and could change no row twice; numbers are one key whatever their zeros."""
    await build(store, SEATS, [("a", 1), ("b", 2), ("a", 3)])
    assert await rows_of(store) == [("a", 3), ("b", 2)]
    prices = Table("prices", (Column("price", ColumnKind.DECIMAL), Column("n", ColumnKind.INTEGER)), ("price",))
    await build(store, prices, [(Decimal("1.0"), 1), (Decimal("1.00"), 2)], "prices")
    assert [str(value) for row in await rows_of(store, order=(Order("price"),), name="prices") for value in row] == [
        "1.00",
        "2",
    ]


@pytest.mark.parametrize("limit", ["UPSERT_ROWS_MAX", "UPSERT_BYTES_MAX"])
async def test_many_or_large_rows_are_sent_in_portions(
    store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """All of them arrive, whatever the size of a portion, and a row that is larger than one too."""
    rows = [(f"course {n}", n) for n in range(25)]
    generation = await create(store, SEATS)
    for size in (1, 7, 24, 25, 10_000):
        monkeypatch.setattr(read_writes, limit, size)
        generation = await write(store, generation, deletes=[(course,) for course, _ in rows])
        generation = await write(store, generation, upserts=rows)
        assert sorted(await rows_of(store)) == sorted(rows)


async def test_a_search_of_too_many_words_is_refused(store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the limit; the same word twice is one."""
    monkeypatch.setattr("diptych.adapters.postgres.read_queries.SEARCHED_WORDS_MAX", 2)
    await build(store, SEARCHED, [("1", "one two three")])
    async with store.snapshot() as snapshot:
        assert await snapshot.search(NAME, "one two one", 10) == [("1", "one two three")]
        with pytest.raises(InvalidMessage, match="SEARCHED_WORDS_MAX=2"):
            await snapshot.search(NAME, "one two three", 10)


async def test_a_word_beyond_what_postgresql_keeps_is_found_by_its_beginning(store: PostgresReadStore) -> None:
    """It is cut, in the row as in the search."""
    await build(store, SEARCHED, [("1", "é" * 3_000 + " end")])
    async with store.snapshot() as snapshot:
        for text in ("é" * 10, "é" * 3_000, "end"):
            assert len(await snapshot.search(NAME, text, 10)) == 1


# ── limits ───────────────────────────────────────────────────────────────────


async def test_a_cancelled_read_stops_and_gives_its_connection_back(url: str, store: PostgresReadStore) -> None:
    """Every connection is soon free again, and none is left in a transaction."""
    endless = "SELECT count(*) AS c FROM pg_sleep(100)"
    reads = [asyncio.create_task(select(store, endless, c=ColumnKind.INTEGER)) for _ in range(SNAPSHOTS_MAX)]
    async with by_hand(url) as link:
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'WITH%pg_sleep(100)%' AND state = 'active'"
        async with asyncio.timeout(WAIT_S_MAX):
            while await link.fetchval(sleeping) < len(reads):
                pass
        for read in reads:
            read.cancel()
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        async with AsyncExitStack() as stack:
            for _ in range(SNAPSHOTS_MAX):
                await stack.enter_async_context(store.snapshot())
        assert await link.fetchval(sleeping) == 0
        async with asyncio.timeout(WAIT_S_MAX):
            while await left_in_transaction(link):
                pass
