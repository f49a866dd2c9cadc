"""What was found wrong in PostgreSQL's adapters since statements were put together: each defect, as it showed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from diptych.adapters.postgres import event_store, read_ahead, read_catalog, read_together, read_writes
from diptych.adapters.postgres.deployment import migrate
from diptych.adapters.postgres.read_store import connect
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Commit
from diptych.event_store.position import START, Position
from diptych.read_side.read_store import Fenced, SliceWrite, Written
from diptych.testing.contracts.event_store_case import event
from diptych.testing.contracts.read_store_cases import ARTICLES, NAME, SEATS, create, place, write
from tests.contracts.read_store_sql import opened
from tests.postgres_server import by_hand, new_read_store, new_store, run, statements_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from diptych.adapters.postgres.event_store import PostgresEventStore
    from diptych.adapters.postgres.read_store import PostgresReadStore

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10


@pytest.fixture
async def rows() -> AsyncGenerator[PostgresReadStore]:
    async with opened(connect(await new_read_store())) as store:
        yield store


# ── rows and checkpoints in one statement ────────────────────────────────────


async def test_a_write_to_a_generation_that_is_gone_with_its_table_is_fenced_and_hinders_no_other(
    rows: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stood still for long finds out that it was replaced; its other read models go on."""
    monkeypatch.setattr(read_catalog, "DROPPED_TABLE_KEPT_S", 0)
    replaced = await create(rows, SEATS)
    other = await create(rows, ARTICLES, "articles")
    await rows.drop_generation(NAME, replaced.number)
    async with rows._writing.connection() as link:
        assert await rows._catalog.tidy(link) is None
    results = await rows.write(
        [SliceWrite(replaced, place(1), [("a", 1)]), SliceWrite(other, place(1), [("1", 1, "one", None)])]
    )
    assert (type(results[0]), type(results[1])) == (Fenced, Written)


async def test_statements_of_generations_long_gone_keep_no_place(
    rows: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many sets of read models were written before, the next one is written by one statement as well."""
    monkeypatch.setattr(read_together, "STATEMENTS_TOGETHER_MAX", 2)
    for _ in range(3):
        generation = await write(rows, await create(rows, SEATS), upserts=[("a", 1)])
    async with rows._writing.connection() as link:
        pass

    async def again() -> None:
        await write(rows, generation, upserts=[("a", 2)])

    sent = [each.query for each in await statements_of(link, again)]
    assert [each for each in sent if each.startswith("BEGIN")] == []


async def test_a_store_that_is_opened_on_a_schema_made_anew_writes_to_what_is_there() -> None:
    """A generation of the same name and number may have other columns there."""
    url = await new_read_store()
    async with opened(connect(url)) as rows:
        await write(rows, await create(rows, SEATS), upserts=[("a", 1)])
    await run(url, f"DROP SCHEMA {rows.url.quoted_schema} CASCADE")
    await migrate(url, "read_store")
    async with opened(rows):
        await write(rows, await create(rows, replace(ARTICLES, name=SEATS.name)), upserts=[("1", 1, "one", None)])
        async with rows.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, [("1",)]) == {("1",): ("1", 1, "one", None)}


async def test_one_statement_takes_no_more_text_for_several_read_models_than_for_one(
    rows: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses too long a message by cutting the connection, each time anew."""
    monkeypatch.setattr(read_writes, "UPSERT_BYTES_MAX", 100)
    generations = [await create(rows, SEATS), await create(rows, ARTICLES, "articles")]
    for length, at_once in ((40, True), (60, False)):
        planned = [
            read_writes.plan(SliceWrite(generations[0], place(1), [("a" * length, 1)]), rows._builds),
            read_writes.plan(SliceWrite(generations[1], place(1), [("1", 1, "o" * length, None)]), rows._builds),
        ]
        assert (rows._together.statement(planned) is not None) == at_once


# ── pages in advance ─────────────────────────────────────────────────────────


async def filled(events: int) -> PostgresEventStore:
    store = event_store.connect(await new_store(), SystemClock())
    await store.open()
    await store.append([Commit(events=tuple(event() for _ in range(events)))])
    return store


async def test_closing_does_not_wait_for_a_page_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may take its time, or not answer at all."""
    monkeypatch.setattr(read_ahead, "AHEAD_EVENTS_MIN", 1)
    store = await filled(20)
    await store.read(ALL_EVENTS, START, 5)
    url = store._url
    async with by_hand(url.dsns[0]) as link, link.transaction():
        going, locked = store._ahead._read, asyncio.Event()

        async def held_up(*asked: Any) -> Any:
            if asked[1] == 10 and not locked.is_set():
                locked.set()
                await link.execute(f"LOCK TABLE {url.quoted_schema}.events IN ACCESS EXCLUSIVE MODE")
            return await going(*asked)

        monkeypatch.setattr(store._ahead, "_read", held_up)
        await store.read(ALL_EVENTS, Position(5), 5)
        assert len(store._ahead._under_way) == 1
        reading = asyncio.create_task(store.read(ALL_EVENTS, Position(10), 5))
        async with by_hand(url.dsns[0]) as other:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass"
            while not await other.fetchval(waiting, f"{url.quoted_schema}.events"):
                await checkpoint()
        closing = asyncio.create_task(store.close())
        done, _ = await asyncio.wait([closing], timeout=WAIT_S_MAX)
        assert done, "it waits for the server"
    (found,) = await asyncio.wait_for(asyncio.gather(reading, return_exceptions=True), WAIT_S_MAX)
    assert not isinstance(found, asyncio.CancelledError), "its reader was not cancelled, and goes on"


async def test_a_page_whose_reader_has_gone_is_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be as large as many events are."""
    monkeypatch.setattr(read_ahead, "AHEAD_EVENTS_MIN", 1)
    monkeypatch.setattr(read_ahead, "AHEAD_KEPT_S", 0)
    store = await filled(20)
    for after in (0, 5):
        await store.read(ALL_EVENTS, Position(after), 5)
    async with asyncio.timeout(WAIT_S_MAX):
        while store._ahead._pages:
            await checkpoint()
    assert (await store.read(ALL_EVENTS, Position(10), 5)).through == 15
    await store.close()
