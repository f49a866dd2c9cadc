"""How many statements PostgreSQL's read store sends for what is done all the time, and what becomes of fewer."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from diptych.adapters.postgres import read_changes, read_loads, read_snapshot, read_together
from diptych.adapters.postgres.read_store import PostgresReadStore, connect
from diptych.errors import StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.read_store import (
    BlockedKey,
    ColumnKind,
    ReadSnapshot,
    RowsAsked,
    SliceWrite,
    WriteResult,
    Written,
)
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    NAME,
    SEATS,
    build,
    create,
    one_column,
    place,
    write,
)
from tests.postgres_server import by_hand, in_thread, left_in_transaction, new_read_store, run, statements_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10
LOOP_STANDS_STILL_S = 0.25


@pytest.fixture
async def url() -> str:
    return await new_read_store()


@pytest.fixture
async def store(url: str) -> AsyncGenerator[PostgresReadStore]:
    store = connect(url)
    await store.open()
    yield store
    await store.close()


async def test_own_writes_are_not_looked_for(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notification of an own write, which is known, leads to no look at the catalog; that of another one does."""
    monkeypatch.setattr(read_changes, "CHANGES_POLL_S", 1_000)
    monkeypatch.setattr(read_changes, "CHANGES_POLL_DEAF_S", 1_000)
    generation = await create(store, SEATS)
    heard, changes = asyncio.Queue[int](), store._changes
    is_own, look_at_catalog, looks = changes._wake_ups._is_own, changes._look_at_catalog, list[str]()

    def hear(backend: int) -> bool:
        heard.put_nowait(backend)
        return is_own(backend)

    async def look() -> Any:
        looks.append("looked")
        return await look_at_catalog()

    monkeypatch.setattr(changes._wake_ups, "_is_own", hear)
    waiting = asyncio.create_task(store.wait_for_change(store.changes, WAIT_S_MAX))
    while not changes._wake_ups.is_listening or changes._looking is not None:
        await checkpoint()
    monkeypatch.setattr(changes, "_look_at_catalog", look)
    generation = await write(store, generation, upserts=[("a", 1)])
    await asyncio.wait_for(waiting, WAIT_S_MAX)
    own = await asyncio.wait_for(heard.get(), WAIT_S_MAX)
    assert (is_own(own), looks, changes._looking) == (True, [], None)
    await run(url, f'NOTIFY "{store.url.schema}_rows"')
    assert not is_own(await asyncio.wait_for(heard.get(), WAIT_S_MAX))
    while not looks:
        await checkpoint()


async def test_writes_of_the_usual_kind_are_one_statement(
    store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of read models; up to the limits, past which the same is done in several."""
    generations = [await create(store, SEATS), await create(store, ARTICLES, "articles")]
    rows: list[list[tuple[Any, ...]]] = [[("a", 1)], [("1", 1, "one", None)]]
    results: list[WriteResult] = []

    async def write_all() -> None:
        places = [place(seen.checkpoint.position + 1) for seen in generations]
        results[:] = await store.write(list(map(SliceWrite, generations, places, rows)))

    async with store._writing.connection() as link:
        pass
    for limit, statements in ((read_together.TABLES_TOGETHER_MAX, 1), (1, 5)):
        monkeypatch.setattr(read_together, "TABLES_TOGETHER_MAX", limit)
        store._together = read_together.Together(store._catalog)
        sent = [each.query for each in await statements_of(link, write_all)]
        ours = ("BEGIN ISOLATION", "COMMIT", "diptych_generations", "__g1")  # the driver asks about types
        assert len([each for each in sent if any(word in each for word in ours)]) == statements, sent
        generations = [result.generation for result in results if isinstance(result, Written)]
        assert len(generations) == 2


async def test_rows_of_a_live_event_are_loaded_with_one_statement(
    store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of read models, up to the limit; no transaction is begun for it."""
    tables = [replace(SEATS, name=name) for name in ("first", "second", "third")]
    built = [await build(store, table, [("a", number)], table.name) for number, table in enumerate(tables)]
    async with store._writing.connection() as link:
        for limit, statements in ((read_loads.ROWS_TOGETHER_MAX, 1), (2, 2)):
            monkeypatch.setattr(read_loads, "ROWS_TOGETHER_MAX", limit)
            monkeypatch.setattr(store._loads, "_fetch", link.fetch)
            load = partial(store.load, [RowsAsked(generation, [("a",)]) for generation in built])
            assert await load() == [{("a",): ("a", number)} for number in range(3)]
            assert len(await statements_of(link, load)) == statements


async def test_snapshots_that_follow_each_other_share_a_round_trip(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one ends the one before, and shows what was written meanwhile; where none comes it ends by itself."""
    monkeypatch.setattr(read_snapshot, "BEGUN_KEPT_S", 1_000)
    generation = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as first:
        assert await first.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
    await write(store, generation, upserts=[("a", 2)])
    async with by_hand(url) as link:
        assert await left_in_transaction(link) == 1
        monkeypatch.setattr(read_snapshot, "BEGUN_KEPT_S", 0)
        async with store.snapshot() as second:
            assert await second.find(NAME, (), BY_COURSE, 10) == [("a", 2)]
            assert second.connection is first.connection
            assert await left_in_transaction(link) == 1
        async with asyncio.timeout(WAIT_S_MAX):
            while await left_in_transaction(link):
                pass


async def test_a_transaction_that_is_begun_in_advance_holds_nothing_up(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither row versions nor locks: what was read behind it may be cleaned up, changed and dropped."""
    monkeypatch.setattr(read_snapshot, "BEGUN_KEPT_S", 1_000)
    await build(store, SEATS, [("a", 1)])
    held = (
        "SELECT a.backend_xmin IS NOT NULL OR EXISTS "
        "(SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.locktype <> 'virtualxid') "
        "FROM pg_stat_activity AS a WHERE a.pid = $1 AND a.state = 'idle in transaction'"
    )
    async with by_hand(url) as link:
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
            assert await link.fetchval(held, snapshot.connection.get_server_pid()) is True
        await store._snapshots._kept[snapshot.connection].beginning
        assert await link.fetchval(held, snapshot.connection.get_server_pid()) is False


async def test_a_connection_that_was_cut_while_the_loop_stood_still_is_not_read_on(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a transaction was begun in advance, too long ago, nobody takes it for good: a server may have gone."""
    monkeypatch.setattr(read_snapshot, "BEGUN_KEPT_S", LOOP_STANDS_STILL_S)
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as first:
        pass
    kept = store._snapshots._kept[first.connection]
    await kept.beginning
    in_thread(run(url, f"SELECT pg_terminate_backend({first.connection.get_server_pid()})"))
    while asyncio.get_running_loop().time() < kept.timer.when():
        pass
    async with store.snapshot() as second:
        assert await second.find(NAME, (), BY_COURSE, 10) == [("a", 1)]


async def test_a_snapshot_that_is_over_and_was_cut_is_in_nobodys_way(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the next snapshot nor closing notices that the server ended what was left of it."""
    monkeypatch.setattr(read_snapshot, "BEGUN_KEPT_S", 1_000)
    await build(store, SEATS, [("a", 1)])
    async with by_hand(url) as link:
        for _ in range(2):
            async with store.snapshot() as snapshot:
                assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
            connection = snapshot.connection
            await link.execute("SELECT pg_terminate_backend($1, 10000)", connection.get_server_pid())
            while not connection.is_closed():
                await checkpoint()
    await asyncio.wait_for(store.close(), WAIT_S_MAX)


async def test_a_projectors_reads_ask_for_the_generation_only_where_they_find_nothing(store: PostgresReadStore) -> None:
    """Rows that are there say so by themselves; those of a generation that is gone are none, in the same statement."""
    generation = await build(store, SEATS, [("a", 1)])
    number = generation.number
    cases = [[(1, [("a",)]), (1, [("a",), ("b",)])], [(2, [("b",)]), (1, [("a",)])]]
    for reads in cases:
        async with store.snapshot() as snapshot:
            for count, keys in reads:
                read = partial(snapshot.get_many, NAME, keys, number)
                assert len(await statements_of(snapshot.connection, read)) == count
    await store.drop_generation(NAME, number)
    for keys in ([("a",)], [("a",), ("b",)]):
        async with store.snapshot() as snapshot:
            with pytest.raises(StoreUnavailable):
                await snapshot.get_many(NAME, keys, number)


async def test_a_query_by_key_is_one_statement(store: PostgresReadStore) -> None:
    """What tells how fresh the row is comes with it, or that there is none."""
    blocked = BlockedKey(NAME, "[9]", Position(1), "boom")
    row = (1, Decimal("4E+1"))
    built = await build(store, one_column(ColumnKind.DECIMAL), [row])
    built = await write(store, built, block=[blocked])

    async def asked(snapshot: ReadSnapshot, key: int) -> None:
        assert await snapshot.slices(NAME, expecting=[(key,)]) == (built,)
        rows = await snapshot.get_many(NAME, [(key,)])
        assert list(map(str, rows.values())) == ([str(row)] if key == 1 else [])

    for key, statements in ((1, 2), (1, 1), (2, 1), (2**63, 1)):  # at first it is not known which table is live
        async with store.snapshot() as snapshot:
            assert len(await statements_of(snapshot.connection, partial(asked, snapshot, key))) == statements
            assert await snapshot.get_many(NAME, [(1,), (2,)]) == {(1,): row}
            assert await snapshot.blocked(NAME) == [blocked]


@pytest.mark.parametrize("gone", [False, True], ids=["kept", "gone"])
async def test_an_expected_row_is_of_the_generation_that_is_live(
    url: str, store: PostgresReadStore, gone: bool
) -> None:
    """Also where another process has replaced the one that was live when last seen, and where its table is gone."""
    old = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        await snapshot.slices(NAME)
    other = connect(url)
    await other.open()
    await write(other, await create(other, SEATS), upserts=[("a", 2)])
    await other.close()
    if gone:
        await run(url, f'DROP TABLE "{store.url.schema}".school_seats__g{old.number} CASCADE')
    for _ in range(2):
        async with store.snapshot() as snapshot:
            (live,) = await snapshot.slices(NAME, expecting=[("a",)])
            assert live.number == old.number + 1
            assert await snapshot.get_many(NAME, [("a",)]) == {("a",): ("a", 2)}


async def test_no_row_is_expected_where_the_live_table_has_another_key(store: PostgresReadStore) -> None:
    """As while this process's code is built anew, or after it was replaced: its slices are told all the same."""
    built = await build(store, SEATS, [("a", 1)])
    for key in (("a",), ("a", "b"), (1,)):
        async with store.snapshot() as snapshot:
            assert await snapshot.slices(NAME, expecting=[key]) == (built,)


async def test_only_changes_by_hand_wait_for_the_disk(url: str, store: PostgresReadStore) -> None:
    """What can be folded again does not pay for it, be it written in one statement or in several."""
    generation = await create(store, SEATS)
    schema = url.rpartition("schema=")[2]
    noted = f"{schema}.noted"
    await run(
        url,
        f"CREATE TABLE {noted} (position bigint, level text)",
        f"""CREATE FUNCTION {schema}.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO {noted} VALUES (NEW.position, current_setting('synchronous_commit')); RETURN NULL; END $$""",
        f"CREATE TRIGGER note AFTER UPDATE ON {schema}.diptych_generations "
        f"FOR EACH ROW EXECUTE FUNCTION {schema}.note()",
    )
    generation = await write(store, generation, upserts=[("a", 1)])
    generation = await write(store, generation, upserts=[("a", 1)], deletes=[("b",)])
    await write(store, generation, upserts=[("a", 1)], by_hand=True)
    async with by_hand(url) as link:
        levels = [level for (level,) in await link.fetch(f"SELECT level FROM {noted} ORDER BY position")]
    assert levels == ["off", "off", "on"]
