"""The merged log: several histories in one order, which all processes share, and which stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from diptych.adapters.connect import connect_event_store
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.clock import SystemClock
from diptych.errors import HistoryDiverged, StoreClosed
from diptych.event_store import merged_log
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.event_store import AppendResult, Commit, EventStore, ReadResult
from diptych.event_store.merged_log import MergedLog
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.testing.contracts.event_store_case import append_one, commit, event, let_others_run, opened

pytestmark = pytest.mark.anyio

READ_MAX = 1_000
HANG_S = 20
"""Seconds after which a wait that nobody ends is a failure."""


@pytest.fixture
async def histories() -> AsyncIterator[list[EventStore]]:
    """Two histories in memory, open."""
    async with opened(MemoryEventStore(SystemClock())) as one, opened(MemoryEventStore(SystemClock())) as two:
        yield [one, two]


@pytest.fixture
def _short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extents are forgotten at once, and pages are small, so that everything is looked for in the order."""
    monkeypatch.setattr(merged_log, "EXTENTS_KEPT_MAX", 2)
    monkeypatch.setattr(merged_log, "EXTENTS_PAGE_MAX", 2)
    monkeypatch.setattr(merged_log, "PART_EVENTS", 2)


async def shown(log: MergedLog, after: int = 0, limit: int = READ_MAX) -> list[tuple[int, str]]:
    """Positions and types."""
    found = await log.read(ALL_EVENTS, Position(after), limit)
    return [(recorded.position, recorded.type) for recorded in found.events]


async def test_events_come_in_the_order_in_which_they_were_taken_in(histories: list[EventStore]) -> None:
    """Those that were there together come one history after the other; later ones behind; positions have no gaps."""
    one, two = histories
    log = MergedLog(MemoryEventStore(SystemClock()), histories)
    await log.open()
    assert await log.head() == Place(log.history_id, START, NOWHERE)
    await append_one(two, event("two-1"), event("two-2"))
    await append_one(one, event("one-1"))
    assert await shown(log) == [(1, "one-1"), (2, "two-1"), (3, "two-2")]
    await append_one(two, event("two-3"))
    await log.head()
    last = event("one-2")
    await append_one(one, last)
    assert await shown(log, 2) == [(3, "two-2"), (4, "two-3")]
    assert await log.head() == Place(log.history_id, Position(5), last.event_id)
    assert [position for position, _ in await shown(log)] == [1, 2, 3, 4, 5]
    await log.close()
    with pytest.raises(StoreClosed):
        await log.head()


@pytest.mark.usefixtures("_short_memory")
async def test_the_order_stays_whoever_reads_it_and_from_where(histories: list[EventStore]) -> None:
    """Two instances, one of which has seen none of it come, read the same from every place, in every page size."""
    order = MemoryEventStore(SystemClock())
    log = MergedLog(order, histories)
    await log.open()
    for number in range(9):
        await append_one(histories[number % 2 if number < 5 else 0], event(f"e-{number}"))
        if number % 3:
            await log.head()
    head = await log.head()
    everything = await shown(log)
    assert sorted(kind for _, kind in everything) == [f"e-{number}" for number in range(9)]
    again = MergedLog(order, list(reversed(histories)))
    await again.open()
    assert await again.head() == head
    for after in range(10):
        for limit in (1, 2, 5, 9):
            assert await shown(again, after, limit) == everything[after : after + limit]
            bounded = await again.read(ALL_EVENTS, Position(after), READ_MAX, until=Position(after + limit))
            assert [recorded.type for recorded in bounded.events] == [kind for _, kind in everything[after:][:limit]]
        place = await again.place_at(Position(after))
        assert place is not None
        assert place == await log.place_at(Position(after))
    assert await again.place_at(Position(10)) is None


@pytest.mark.usefixtures("_short_memory")
async def test_a_read_tells_how_far_it_tells(histories: list[EventStore]) -> None:
    """What does not match is passed over; a limit cuts short and says so; reading on from there misses nothing."""
    one, two = histories
    for number in range(6):
        await append_one(one if number % 3 else two, event("A" if number % 2 else "B", "odd" if number % 2 else "even"))
    log = MergedLog(MemoryEventStore(SystemClock()), histories)
    await log.open()
    for query in (
        EventQuery((QueryItem(frozenset(("A",))),)),
        EventQuery((QueryItem(tags=frozenset(("even",))),)),
        EventQuery((QueryItem(frozenset(("C",))),)),
        EventQuery(()),
    ):
        whole = await log.read(query, START, READ_MAX)
        assert (whole.through, whole.more) == (6, False)
        position, paged, more = START, [], True
        while more:
            page = await log.read(query, position, 2)
            paged += page.events
            position, more = page.through, page.more
        assert paged == whole.events
        assert position == 6


class Slow(MemoryEventStore):
    """Lets others run before it appends, as a store does that others share."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        await let_others_run()
        return await super().append(commits, base)


async def test_processes_that_take_in_at_once_agree(histories: list[EventStore]) -> None:
    """Every event comes once, in one order, whoever of them puts it there."""
    order = Slow(SystemClock())
    logs = [MergedLog(order, histories) for _ in range(4)]
    for log in logs:
        await log.open()

    async def write(store: EventStore) -> None:
        for _ in range(30):
            await append_one(store, event())
            await asyncio.sleep(0)  # noqa: TID251 — so that the others have their turn

    async def follow(log: MergedLog) -> list[bytes]:
        seen: list[bytes] = []
        while len(seen) < 60:
            found = await log.read(ALL_EVENTS, Position(len(seen)), 7)
            seen += [recorded.event_id for recorded in found.events]
            await asyncio.sleep(0)  # noqa: TID251
        return seen

    writing = [asyncio.ensure_future(write(store)) for store in histories]
    first, *others = await asyncio.gather(*map(follow, logs))
    await asyncio.gather(*writing)
    assert others == [first] * 3
    assert len(set(first)) == 60
    for store in histories:
        own = [recorded.event_id for recorded in (await store.read(ALL_EVENTS, START, READ_MAX)).events]
        assert [event_id for event_id in first if event_id in own] == own


class Counted(MemoryEventStore):
    """Counts the events that are read."""

    given = 0

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        found = await super().read(query, after, limit, until=until)
        self.given += len(found.events)
        return found


async def test_no_event_is_read_twice_for_a_log_that_is_read_once() -> None:
    """However many histories there are, and however small the pages: each page reads its own part of each."""
    async with AsyncExitStack() as stack:
        stores = [Counted(SystemClock()) for _ in range(6)]
        for store in stores:
            await stack.enter_async_context(opened(store))
        log = MergedLog(MemoryEventStore(SystemClock()), stores)
        await log.open()
        for number in range(120):
            await append_one(stores[number % 6], event("A" if number % 10 else "B"))
            await log.head()
        for after in range(0, 120, 10):
            assert len(await shown(log, after, 10)) == 10
        assert sum(store.given for store in stores) == 120
        rare = await log.read(EventQuery((QueryItem(frozenset(("B",))),)), START, 12)
        assert (len(rare.events), rare.through, rare.more) == (12, 111, True)


async def test_an_append_to_any_history_wakes_those_who_wait(histories: list[EventStore]) -> None:
    """Without a look in between; past the time it is False."""
    log = MergedLog(MemoryEventStore(SystemClock()), histories)
    await log.open()
    assert not await log.wait_for_events(START, 0.0)
    for position, store in enumerate([*histories, histories[0]]):
        waiting = asyncio.ensure_future(log.wait_for_events(Position(position), 3_600))
        await let_others_run()
        await append_one(store, event())
        async with asyncio.timeout(HANG_S):
            assert await waiting
    assert await log.wait_for_events(START, 0.0)


@pytest.mark.usefixtures("_short_memory")
async def test_a_place_of_one_history_is_found_in_the_merged_one(histories: list[EventStore]) -> None:
    """Up to what covers a place, the log holds that place; a place of no history of these, or of none, is refused."""
    log = MergedLog(MemoryEventStore(SystemClock()), histories)
    await log.open()
    for number in range(7):
        await append_one(histories[number % 2], event(), event(), event())
        await log.head()
    for store in histories:
        head = await store.head()
        for position in range(head.position + 1):
            place = await store.place_at(Position(position))
            assert place is not None
            held = {each.history_id: each for each in await log.shown(await log.covering(place))}
            assert position == 0 or held[store.history_id].position >= position
        await append_one(store, event())
        fresh = await store.head()
        held = {each.history_id: each for each in await log.shown(await log.covering(fresh))}
        assert held[store.history_id] == fresh
    with pytest.raises(HistoryDiverged, match="no history that is merged here"):
        await log.covering(Place(b"x" * 16, START, NOWHERE))
    with pytest.raises(HistoryDiverged):
        await log.covering(Place(histories[0].history_id, Position(1), b"x" * 16))


@pytest.mark.usefixtures("_short_memory")
async def test_what_is_shown_of_each_history_is_what_was_read(histories: list[EventStore]) -> None:
    """At every merged position: the last event of each history among those up to there."""
    log = MergedLog(MemoryEventStore(SystemClock()), histories)
    await log.open()
    for number in range(8):
        await append_one(histories[number % 3 % 2], event(), event())
        if number % 2:
            await log.head()
    ids = [recorded.event_id for recorded in (await log.read(ALL_EVENTS, START, READ_MAX)).events]
    for position in range(len(ids) + 1):
        for place in await log.shown(Position(position)):
            store = next(store for store in histories if store.history_id == place.history_id)
            own = [recorded.event_id for recorded in (await store.read(ALL_EVENTS, START, READ_MAX)).events]
            assert place.event_id == [each for each in ids[:position] if each in own][-1]
            assert place.position == own.index(place.event_id) + 1


async def test_a_history_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    """Where another event is at the place that was taken in, or another history is there, nothing is merged."""
    async with AsyncExitStack() as stack:
        order = MemoryEventStore(SystemClock())
        store = connect_event_store(f"sqlite:{tmp_path}/one.db", SystemClock())
        await stack.enter_async_context(opened(store))
        await append_one(store, event(), event())
        log = MergedLog(order, [store])
        await log.open()
        assert (await log.head()).position == 2
        other = await stack.enter_async_context(opened(MemoryEventStore(SystemClock())))
        await append_one(other, event(), event())
        stranger = MergedLog(order, [other])
        with pytest.raises(HistoryDiverged, match="which is not here"):
            await stranger.open()


class Forking(MemoryEventStore):
    """Loses its last event, as a failover to a standby that lacked it does."""

    lost = 0

    @property
    def forks(self) -> int:
        """How often it did."""
        return self.lost

    def lose(self) -> None:
        """Be another history from now on."""
        self._events.pop()
        self.lost += 1


async def test_a_fork_stops_what_is_merged_for_good() -> None:
    """What was taken in of the lost end is in the order: every read says so, not only the first; others see it too."""
    order, store = MemoryEventStore(SystemClock()), Forking(SystemClock())
    async with opened(store):
        log = MergedLog(order, [store])
        await log.open()
        await append_one(store, event(), event())
        assert (await log.head()).position == 2
        store.lose()
        assert log.forks == 1
        for _ in range(2):
            with pytest.raises(HistoryDiverged, match="the order of what is merged"):
                await log.head()
        await append_one(store, event())
        with pytest.raises(HistoryDiverged, match="the order of what is merged"):
            await MergedLog(order, [store]).open()


async def test_an_end_that_nobody_had_taken_in_may_be_lost() -> None:
    """It never was in the merged log."""
    store = Forking(SystemClock())
    async with opened(store):
        log = MergedLog(MemoryEventStore(SystemClock()), [store])
        await log.open()
        await append_one(store, event())
        assert (await log.head()).position == 1
        await append_one(store, event())
        store.lose()
        await append_one(store, event("after"))
        assert await shown(log, 1) == [(2, "after")]


async def test_a_store_that_keeps_something_else_is_refused(histories: list[EventStore]) -> None:
    """The order has a store of its own."""
    order = MemoryEventStore(SystemClock())
    async with opened(order):
        await order.append([commit(event("sales.Placed"))])
        with pytest.raises(HistoryDiverged, match=r"the store keeps something else: .*sales\.Placed"):
            await MergedLog(order, histories).open()
