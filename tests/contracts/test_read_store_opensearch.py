"""What OpenSearch's read store says beyond the contract: URLs, what it removes, leases without a clock, long texts."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import httpx2
import pytest

from diptych import Application, BoundedContext
from diptych.adapters.connect import connect_event_store, connect_read_store, without_password
from diptych.adapters.opensearch import removal, row_queries
from diptych.adapters.opensearch.cluster import Cluster, read_address
from diptych.adapters.opensearch.read_snapshot import SNAPSHOT_S_MAX
from diptych.adapters.opensearch.read_store import OpenSearchReadStore
from diptych.adapters.opensearch.removal import REMOVED_AFTER_S
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, InvalidMessage, NewerStore, StoreClosed, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
    Failed,
    Fenced,
    Filter,
    Generation,
    Leased,
    Order,
    SliceWrite,
    Table,
)
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    write,
)
from tests.faults.counting import Count, CounterId, CountOf, Increment, counting
from tests.opensearch_line import Fault, Line
from tests.opensearch_server import new_read_store

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 10.0
OPENING = 3
"""Requests with which a store is opened."""


class Time:
    """A process's own clock, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Requests(httpx2.AsyncBaseTransport):
    """A way to the server that notes what takes it."""

    def __init__(self) -> None:
        self._way = httpx2.AsyncHTTPTransport(verify=False)
        self.made: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.made.append(f"{request.method} {request.url.path.rpartition('/')[2]}")
        return await self._way.handle_async_request(request)

    async def aclose(self) -> None:
        await self._way.aclose()


@pytest.fixture
def url() -> str:
    return new_read_store()


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def store(url: str, stack: AsyncExitStack, time: Time) -> OpenSearchReadStore:
    return await opened(url, stack, time)


async def opened(
    url: str, stack: AsyncExitStack, time: Time, way: Requests | Line | None = None
) -> OpenSearchReadStore:
    store = OpenSearchReadStore(read_address(url), way, time)
    await store.open()
    stack.push_async_callback(store.close)
    return store


@pytest.fixture
async def cluster(url: str, stack: AsyncExitStack) -> Cluster:
    """The server, without a store between."""
    cluster = Cluster(read_address(url))
    cluster.open()
    stack.push_async_callback(cluster.close)
    return cluster


async def documents(cluster: Cluster) -> int:
    """Of rows of `NAME`, those included that do not show."""
    return await cluster.count(f"{cluster.address.prefix}-school-seats-*", {"match_all": {}})


# ── URLs ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("opensearch:", "opensearch://user:password@host:9200"),
        ("opensearch://h:9200/shop", "and nothing else"),
        ("opensearch://h:9200?schema=shop", "and nothing else"),
        ("opensearch://u:geheim@h:x", "cannot be read"),
        ("opensearch://h?prefix=Shop", "the prefix 'Shop' cannot begin the name of an index"),
        ("opensearch://h?prefix=_shop", "the prefix '_shop'"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url: str, told: str) -> None:
    """With what it has to be, and without the password."""
    with pytest.raises(ConfigurationError, match=told) as refused:
        connect_read_store(url)
    assert "geheim" not in str(refused.value)


def test_a_url_is_shown_without_its_password() -> None:
    """The rest is there, also what was left out."""
    assert without_password("opensearch://ann:geheim@search") == "opensearch://ann@search:9200?prefix=diptych"
    address = read_address("opensearch+http://ann:ge%40heim@[::1]:9201?prefix=shop")
    assert (address.base, address.login) == ("http://[::1]:9201", ("ann", "ge@heim"))


async def test_events_are_not_kept_in_it() -> None:
    """The error says where it is to stand."""
    with pytest.raises(ConfigurationError, match="keeps read models, no events: give it as read_store="):
        connect_event_store("opensearch://search:9200", SystemClock())
    with pytest.raises(ConfigurationError, match="keeps read models"):
        await Application(BoundedContext("school"), store="opensearch://search:9200").__aenter__()


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    """With the URL, and without the password."""
    store = connect_read_store("opensearch+http://ann:geheim@127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="ann@127.0.0.1:1") as refused:
        await store.open()
    assert "geheim" not in str(refused.value)


async def test_what_is_under_way_is_answered_before_it_is_closed(store: OpenSearchReadStore) -> None:
    """A write of several requests is told that it is closed, or holds; nobody meets a cut connection."""
    generation = await create(store, SEATS)
    writing = [asyncio.create_task(store.write([SliceWrite(generation, place(1), [("a", 1)])])) for _ in range(3)]
    reading = [asyncio.create_task(store.generations()) for _ in range(3)]
    await asyncio.wait([*writing, *reading], timeout=0)
    await store.close()
    for result in await asyncio.gather(*writing, *reading, return_exceptions=True):
        assert isinstance(result, list | StoreClosed), result


async def test_certificates_that_are_not_there_are_told() -> None:
    """When it is opened."""
    with pytest.raises(ConfigurationError, match=r"the certificates in no\.pem cannot be read"):
        await connect_read_store("opensearch://search?ca=no.pem").open()


async def test_what_a_newer_diptych_wrote_is_refused(store: OpenSearchReadStore, cluster: Cluster, url: str) -> None:
    """And left as it is."""
    path = f"/{cluster.address.prefix}-catalog/_doc/catalog"
    newer = {"body": "?", "format": 2, "changes": 0}
    await cluster.request("PUT", path, newer)
    with pytest.raises(NewerStore):
        await connect_read_store(url).open()
    assert (await cluster.request("GET", path))[1]["_source"] == newer


async def test_sql_is_refused(store: OpenSearchReadStore) -> None:
    """With what to do instead."""
    async with store.snapshot() as snapshot:
        with pytest.raises(ConfigurationError, match="has no SQL .* use find, count and search"):
            await snapshot.sql("SELECT 1", (), {})


# ── writes ───────────────────────────────────────────────────────────────────


async def test_a_checkpoint_is_published_after_the_refresh(url: str, stack: AsyncExitStack) -> None:
    """The number first, then the rows, then the refresh, then the catalog; without rows the catalog alone."""
    way = Requests()
    store = await opened(url, stack, Time(), way)
    generation = await write(store, await create(store, SEATS), upserts=[("a", 1)])
    way.made.clear()
    generation = await write(store, generation, upserts=[("a", 2)])
    assert way.made == ["GET catalog", "PUT catalog", "POST _search", "POST _bulk", "POST _refresh", "PUT catalog"]
    way.made.clear()
    await write(store, generation)
    assert way.made == ["GET catalog", "PUT catalog"]


async def test_who_was_overtaken_between_number_and_publication_publishes_nothing(
    store: OpenSearchReadStore, url: str, stack: AsyncExitStack
) -> None:
    """Not even where checkpoint and epoch are still those that it knows: the other one has begun, and goes on."""
    generation = await build(store, SEATS, [("a", 1)])
    others = [await opened(url, stack, Time()) for _ in range(4)]
    writes = [SliceWrite(generation, place(2), [("a", n), (f"b{n}", n)]) for n in range(5)]
    results = await asyncio.gather(*(each.write([one]) for each, one in zip([store, *others], writes, strict=True)))
    held = [n for n, (result,) in enumerate(results) if result != Fenced()]
    assert len(held) <= 1
    assert await rows_of(store) == ([("a", held[0]), (f"b{held[0]}", held[0])] if held else [("a", 1)])


async def test_replaced_rows_are_removed_when_no_snapshot_shows_them(
    store: OpenSearchReadStore, cluster: Cluster, time: Time
) -> None:
    """Not before; a snapshot that is older says so, and gives no answer."""
    generation = await build(store, SEATS, [("a", 1), ("b", 1)])
    async with store.snapshot() as snapshot:
        generation = await write(store, generation, upserts=[("a", 2)], deletes=[("b",)])
        time.now = SNAPSHOT_S_MAX
        generation = await write(store, generation, upserts=[("c", 3)])
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1), ("b", 1)]
        time.now = REMOVED_AFTER_S + 1
        generation = await write(store, generation, upserts=[("a", 4)])
        assert await documents(cluster) == 5, "nothing had ended before the first write"
        for read in (lambda: snapshot.find(NAME, (), BY_COURSE, 10), lambda: snapshot.count(NAME, ())):
            with pytest.raises(StoreUnavailable, match="can be read for 60 seconds"):
                await read()
    time.now += REMOVED_AFTER_S + 1
    generation = await write(store, generation)
    await cluster.refresh([f"{cluster.address.prefix}-school-seats-*"])
    assert await documents(cluster) == 3, "what was replaced since the last look is there still"
    time.now += REMOVED_AFTER_S + 1
    await write(store, generation)
    await cluster.refresh([f"{cluster.address.prefix}-school-seats-*"])
    assert await documents(cluster) == 2
    assert await rows_of(store) == [("a", 4), ("c", 3)]


async def test_dropped_generations_and_old_notes_are_removed(
    store: OpenSearchReadStore, cluster: Cluster, time: Time
) -> None:
    """Indexes and notes that the catalog does not name any more go; those that it names stay."""
    blocked = BlockedKey(NAME, '["a"]', Position(1), "boom", trace="Traceback")
    dropped = await write(store, await create(store, SEATS), upserts=[("a", 1)], block=[blocked])
    kept = await write(store, await create(store, SEATS, "school.Kept"), upserts=[("a", 1)], block=[blocked])
    await store.drop_generation(NAME, dropped.number)
    everything = f"{cluster.address.prefix}-*"
    assert await cluster.count(everything, {"match_all": {}}) == 7  # catalog, twice a row, keys and a trace
    for _ in range(3):
        kept = await write(store, kept)
        time.now += REMOVED_AFTER_S + 1
    await cluster.refresh([everything])
    assert await cluster.count(everything, {"match_all": {}}) == 4
    assert await rows_of(store, name="school.Kept") == [("a", 1)]
    assert await store.trace("school.Kept", 1, '["a"]') == "Traceback"


async def test_void_writes_are_forgotten_once_they_are_many(
    url: str, stack: AsyncExitStack, store: OpenSearchReadStore, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they ended goes on, what they began is gone, and neither has to be remembered."""
    monkeypatch.setattr(removal, "VOID_MAX", 2)
    generation = await build(store, SEATS, [("a", 1), ("b", 1)])
    for _ in range(6):
        await _begin_and_die(url, stack, generation)
    assert len((await store._document.read()).builds[0].void) == 5
    generation = await write(store, generation, upserts=[("c", 1)])
    for _ in range(3):
        time.now += REMOVED_AFTER_S + 1
        generation = await write(store, generation)
    assert 0 < len((await store._document.read()).builds[0].void) <= 3
    assert await rows_of(store) == [("a", 1), ("b", 1), ("c", 1)]
    await write(store, generation, upserts=[("a", 2)], deletes=[("b",)])
    assert await rows_of(store) == [("a", 2), ("c", 1)]


async def _begin_and_die(url: str, stack: AsyncExitStack, generation: Any) -> None:
    """Be a worker that dies when its rows are written, before they are published."""
    line = Line(Fault.LOST, OPENING + 6)
    store = OpenSearchReadStore(read_address(url), line)
    await store.open()
    with pytest.raises(StoreUnavailable, match="the line is cut"):
        await store.write([SliceWrite(generation, place(9), [("a", 9), ("z", 9)], [("b",)])])
    await store.close()


# ── kept generations ─────────────────────────────────────────────────────────


async def test_a_write_that_a_switch_overtakes_never_shows_in_what_is_kept(
    store: OpenSearchReadStore, url: str, stack: AsyncExitStack
) -> None:
    """Its rows are there before it learns that the generation is kept; and whoever folds on need not mind them."""
    first = await build(store, ARTICLES, [("a", 1, "tea", None), ("b", 1, "tea", None)])
    second = await write(store, await create(store, ARTICLES, live=False), upserts=[("a", 1, "jug", None)])
    line = Line(Fault.LATE, OPENING + 6)  # the publication
    stalled = await opened(url, stack, Time(), line)
    rows = [("a", 2, "tea", None), ("c", 2, "tea", None)]
    writing = asyncio.create_task(stalled.write([SliceWrite(first, place(2), rows, [("b",)])]))
    await asyncio.wait_for(line.reached.wait(), WAIT_S_MAX)
    assert await store.switch(NAME, second.number, keep_s=60)
    line.go_on()
    assert await writing == [Fenced()]
    assert not any(found.writing for found in (await store._document.read()).builds)
    async with store.snapshot() as snapshot:
        (kept,) = await snapshot.kept(NAME, first.fingerprint)
        assert (kept.checkpoint, kept.epoch) == (first.checkpoint, first.epoch + 1)
        assert [row[:2] for row in await snapshot.search(NAME, "tea", 9, (), kept.number)] == [("a", 1), ("b", 1)]
        assert not await snapshot.search(NAME, "tea", 9)
    kept = await write(store, kept, upserts=[("b", 3, "tea", None)])
    async with store.snapshot() as snapshot:
        assert [row[:2] for row in await snapshot.search(NAME, "tea", 9, (), kept.number)] == [("a", 1), ("b", 3)]


async def test_until_when_one_is_kept_is_by_the_clock_of_the_cluster(
    store: OpenSearchReadStore, cluster: Cluster
) -> None:
    """In whole milliseconds, as it tells them; no process's own clock has a say."""
    catalog, minute = f"{cluster.address.prefix}-catalog", dt.timedelta(seconds=60)
    before = await cluster.now(catalog)
    kept = await keep(store, 60.0004)
    assert kept.kept_until is not None
    assert before + minute <= kept.kept_until <= await cluster.now(catalog) + minute
    assert kept.kept_until.microsecond % 1_000 == 0


@pytest.mark.parametrize("after", range(2))
async def test_one_that_is_dropped_while_it_is_taken_up_is_made_anew(
    store: OpenSearchReadStore, url: str, stack: AsyncExitStack, after: int
) -> None:
    """Before the catalog is read, or between that and its change."""
    overdue = await keep(store, 0.000_001)
    line = Line(Fault.LATE, OPENING + after)
    late = await opened(url, stack, Time(), line)
    taking = asyncio.create_task(late.create_generation(NAME, overdue.fingerprint, SEATS, place(0), live=False))
    await asyncio.wait_for(line.reached.wait(), WAIT_S_MAX)
    await store.drop_overdue()
    line.go_on()
    (made,) = await taking
    assert (made.number, made.checkpoint, made.under_way) == (3, place(0), True)
    await write(store, made, upserts=[("b", 2)])
    async with store.snapshot() as snapshot:
        assert await snapshot.find(NAME, (), BY_COURSE, 9, None, made.number) == [("b", 2)]


@pytest.mark.parametrize("after", range(4))
async def test_one_that_is_taken_up_while_it_is_overdue_stays(
    store: OpenSearchReadStore, url: str, stack: AsyncExitStack, after: int
) -> None:
    """At whichever request whoever was to drop it is late."""
    overdue = await keep(store, 0.000_001)
    line = Line(Fault.LATE, OPENING + after)
    late = await opened(url, stack, Time(), line)
    dropping = asyncio.create_task(late.drop_overdue())
    await asyncio.wait_for(line.reached.wait(), WAIT_S_MAX)
    (taken,) = await store.create_generation(NAME, overdue.fingerprint, SEATS, place(0), live=False)
    assert (taken.number, taken.epoch, taken.under_way) == (1, overdue.epoch + 1, True)
    line.go_on()
    await dropping
    assert taken in await store.generations()
    await write(store, taken)


async def keep(store: OpenSearchReadStore, keep_s: float) -> Generation:
    """A generation that answered until just now."""
    await build(store, SEATS, [("a", 1)])
    second = await write(store, await create(store, SEATS, live=False), upserts=[("a", 1)])
    assert await store.switch(NAME, second.number, keep_s=keep_s)
    (kept, _) = await store.generations()
    return kept


# ── leases and changes ───────────────────────────────────────────────────────


async def test_a_worker_is_given_up_once_nothing_was_seen_of_it_for_its_time(
    store: OpenSearchReadStore, url: str, stack: AsyncExitStack
) -> None:
    """By the clock of who asks, from when it first saw the last sign; the clocks of two processes are not compared."""
    (key,) = [(await create(store, SEATS)).lease_key]
    theirs = Time()
    theirs.now = 1e6
    other = await opened(url, stack, theirs)
    assert (await store.lease("a", [key], 10)).epochs == {key: 0}
    for _ in range(3):
        assert await other.lease("b", [key], 10) == Leased({})
        theirs.now += 9
        assert (await store.lease("a", [key], 10)).epochs == {key: 0}
    assert await other.lease("b", [key], 10) == Leased({})
    theirs.now += 10
    assert (await other.lease("b", [key], 10)).epochs == {key: 1}


async def test_writes_of_other_processes_are_noticed(
    store: OpenSearchReadStore, url: str, stack: AsyncExitStack
) -> None:
    """Whoever waits is woken; leases that are renewed wake nobody."""
    generation = await create(store, SEATS)
    other = await opened(url, stack, Time())
    seen = other.changes
    waiting = asyncio.create_task(other.wait_for_change(seen, WAIT_S_MAX))
    await store.lease("a", [generation.lease_key], 10)
    await write(store, generation, upserts=[("a", 1)])
    assert await waiting == seen + 1
    assert await rows_of(other) == [("a", 1)]


# ── applications ─────────────────────────────────────────────────────────────


async def test_an_application_reads_its_writes_overlays_rebuilds_and_goes_back(url: str) -> None:
    """As on every other store: nothing of it knows where the rows are."""
    counter = CounterId("a")
    async with Application(counting, store="memory:", read_store=url) as app:
        *_, receipt = [await app.execute(Increment(counter=counter)) for _ in range(3)]
        row = await app.query(CountOf(counter=counter), after=receipt)
        assert row == Count(counter=counter, value=3, events=3)
        await app.execute(Increment(counter=counter))
        overlaid = await app.query(CountOf(counter=counter), freshness="overlay")
        assert overlaid == Count(counter=counter, value=4, events=4)
        await app.rebuilds.rebuild("counting.Count")
        assert (await app.rebuilds.compare("counting.Count")).same
        answer = await app.answer(CountOf(counter=counter), freshness="latest")
        assert answer.value == overlaid
        async with aclosing(app.subscribe(CountOf(counter=counter))) as answers:
            shown = [(await anext(answers)).value]
            await app.execute(Increment(counter=counter))
            shown.append((await anext(answers)).value)
        assert [count.value for count in shown if count is not None] == [4, 5]
        position = await app.rebuilds.back("counting.Count")
        answer = await app.answer(CountOf(counter=counter), freshness="latest")
        assert (position, answer.value) == (5, Count(counter=counter, value=5, events=5))


# ── texts ────────────────────────────────────────────────────────────────────


async def test_a_long_text_is_found_by_its_words_and_neither_filtered_nor_ordered_by(
    store: OpenSearchReadStore,
) -> None:
    """It reads back whole. Where it has to be exact, in a key or an indexed column, it is refused."""
    long = "wort " * 10_000 + "ende"
    generation = await build(store, ARTICLES, [("1", 1, "short", long), ("2", 2, "short", None)])
    async with store.snapshot() as snapshot:
        assert await snapshot.search(NAME, "short end", 10) == [("1", 1, "short", long)]
        with pytest.raises(InvalidMessage, match="too long for OpenSearch.* body"):
            await snapshot.find(NAME, (Filter("body", Comparison.EQUAL, "a"),), (Order("id"),), 1)
        with pytest.raises(InvalidMessage, match="too long for OpenSearch.* body"):
            await snapshot.find(NAME, (), (Order("body"), Order("id")), 1)
        assert len(await snapshot.find(NAME, (Filter("title", Comparison.EQUAL, "short"),), (Order("id"),), 9)) == 2
    (result,) = await store.write([SliceWrite(generation, place(2), [(long, 1, "", None)])])
    assert result == Failed(f"{NAME}: column id is a key or indexed: OpenSearch takes 32,000 bytes there")


async def test_long_words_are_found_whole(store: OpenSearchReadStore) -> None:
    """Beyond the 255 letters at which OpenSearch would split them."""
    await build(store, ARTICLES, [("1", 1, "a" * 300 + "b", None), ("2", 2, "a" * 300, None)])
    async with store.snapshot() as snapshot:
        assert [row[0] for row in await snapshot.search(NAME, "a" * 300 + "b", 10)] == ["1"]
        assert await snapshot.search(NAME, "b", 10) == []


async def test_the_rank_is_the_engines(store: OpenSearchReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rare word counts more than a frequent one; rows with words beyond those that are ranked are found as well."""
    rows = [("often", 0, "tea tea tea jug", None), ("rare", 0, "tea jugular", None)]
    monkeypatch.setattr(row_queries, "RANKED_BEGINNINGS_MAX", 5)
    rows += [(f"x{n}", 0, f"tea t{n}", None) for n in range(20)]
    await build(store, ARTICLES, rows)
    async with store.snapshot() as snapshot:
        assert [row[0] for row in await snapshot.search(NAME, "jug", 10)][:2] == ["rare", "often"]
        assert len(await snapshot.search(NAME, "t", 1_000)) == len(rows)
        with pytest.raises(InvalidMessage, match="101 different words; OpenSearch is asked for 100 at most"):
            await snapshot.search(NAME, " ".join(f"w{n}" for n in range(101)), 10)


async def test_more_rows_than_one_answer_holds(store: OpenSearchReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are asked for page by page, in one order; of a search they are refused, rather than cut short."""
    from diptych.adapters.opensearch import read_snapshot

    monkeypatch.setattr(read_snapshot, "HITS_MAX", 3)
    table = Table("t", (Column("id", ColumnKind.INTEGER), Column("value", ColumnKind.REAL, nullable=True)), ("id",))
    rows = [(n, None if n % 4 == 0 else n % 3 / 2) for n in range(20)]
    await build(store, table, rows)
    async with store.snapshot() as snapshot:
        found = await snapshot.find(NAME, (), (Order("value", descending=True), Order("id")), 17)
    assert found == sorted(rows, key=lambda row: (row[1] is None, -(row[1] or 0), row[0]))[:17]
    await build(store, ARTICLES, [("1", 0, "tea", None)], "articles")
    async with store.snapshot() as snapshot:
        assert len(await snapshot.search("articles", "tea", 3)) == 1
        with pytest.raises(InvalidMessage, match="3 rows of a search at most"):
            await snapshot.search("articles", "tea", 4)
