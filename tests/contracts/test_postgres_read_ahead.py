"""Pages that PostgreSQL's event store fetches in advance are what a read at that moment gives, or are not given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from anyio.lowlevel import checkpoint

from diptych.adapters.postgres import read_ahead
from diptych.adapters.postgres.event_store import PostgresEventStore, connect
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Commit
from diptych.event_store.position import START, Position
from diptych.testing.contracts.event_store_case import event
from tests.postgres_server import new_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from diptych.event_store.recorded_event import RecordedEvent

pytestmark = pytest.mark.anyio

EVENTS = 30


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[PostgresEventStore]:
    """A store of some events, which fetches even the smallest pages in advance."""
    monkeypatch.setattr(read_ahead, "AHEAD_EVENTS_MIN", 1)
    store = connect(await new_store(), SystemClock())
    await store.open()
    await append(store, EVENTS)
    yield store
    await store.close()


async def append(store: PostgresEventStore, count: int) -> None:
    await store.append([Commit(events=tuple(event() for _ in range(count)))])


async def fetched(store: PostgresEventStore) -> None:
    """Wait for what is being fetched in advance, so that no read comes before it."""
    while store._ahead._under_way:
        await checkpoint()


def asked_for(store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """After which position, and how many events, the store is asked for from now on."""
    asked: list[tuple[int, int]] = []
    read = store._ahead._read

    async def noting(query: Any, after: int, until: int | None, limit: int) -> Any:
        asked.append((after, limit))
        return await read(query, after, until, limit)

    monkeypatch.setattr(store._ahead, "_read", noting)
    return asked


async def test_a_reader_who_goes_on_finds_its_next_page_fetched(
    store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third page on, each was asked for while the one before was worked on; the last is read anew."""
    asked = asked_for(store, monkeypatch)
    seen: list[RecordedEvent] = []
    more = True
    while more:
        page = await store.read(ALL_EVENTS, Position(len(seen)), 10)
        seen += page.events
        more = page.more
        assert page.through == len(seen)
        await fetched(store)
    assert [each.position for each in seen] == list(range(1, EVENTS + 1))
    assert asked == [(0, 10), (10, 10), (20, 10), (20, 10)]  # nothing tells that the page fetched is the last one
    assert store._ahead._pages == {}


@pytest.mark.parametrize("limit", [1, 4, 5, 6, 14, 100])
async def test_a_page_may_be_asked_for_with_another_limit(store: PostgresEventStore, limit: int) -> None:
    """The reader's next page is larger or smaller than the one that was fetched: it gets what it asks for."""
    for after in (0, 5):
        assert (await store.read(ALL_EVENTS, Position(after), 5)).more
    await fetched(store)
    assert len(store._ahead._pages) == 1
    page = await store.read(ALL_EVENTS, Position(10), limit)
    end = min(10 + limit, EVENTS)
    assert [each.position for each in page.events] == list(range(11, end + 1))
    assert (page.through, page.more) == (end, end < EVENTS)


async def test_a_page_that_was_not_full_is_read_anew(store: PostgresEventStore) -> None:
    """What was appended since it was fetched is in it."""
    for after in (0, 10):
        await store.read(ALL_EVENTS, Position(after), 10)
    await fetched(store)
    await append(store, 1)
    page = await store.read(ALL_EVENTS, Position(20), 12)
    assert (len(page.events), page.through, page.more) == (11, EVENTS + 1, False)


async def test_a_page_from_before_a_fork_is_not_given(
    store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history may hold other events there now."""
    for after in (0, 5):
        await store.read(ALL_EVENTS, Position(after), 5)
    await fetched(store)
    store._known.forks += 1
    asked = asked_for(store, monkeypatch)
    await store.read(ALL_EVENTS, Position(10), 5)
    assert asked[0] == (10, 5)


async def test_pages_in_advance_are_few(store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many readers at once have no more of them than the limit says; all the same each gets its own."""
    monkeypatch.setattr(read_ahead, "AHEAD_PAGES_MAX", 2)
    monkeypatch.setattr(read_ahead, "READERS_REMEMBERED_MAX", 3)
    for page in range(2):
        for until in range(20, EVENTS):
            found = await store.read(ALL_EVENTS, Position(page * 5), 5, until=Position(until))
            assert [each.position for each in found.events] == list(range(page * 5 + 1, page * 5 + 6))
            assert len(store._ahead._pages) <= 2
            assert len(store._ahead._ends) <= 3
    for _ in range(2):
        await store.read(ALL_EVENTS, START, 5)
    assert len(store._ahead._pages) <= 2


async def test_a_store_is_closed_when_the_page_in_advance_has_come(store: PostgresEventStore) -> None:
    """Closing waits for it, and opening again begins without it."""
    for after in (0, 5):
        await store.read(ALL_EVENTS, Position(after), 5)
    await store.close()
    assert (store._ahead._pages, store._ahead._under_way) == ({}, set())
    await store.open()
    assert (await store.read(ALL_EVENTS, Position(10), 5)).through == 15


async def test_behind_a_great_page_none_is_fetched(store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds one page of great events, not two; the reader is given what there is all the same."""
    monkeypatch.setattr(read_ahead, "AHEAD_BYTES_MAX", 0)
    asked = asked_for(store, monkeypatch)
    position = START
    for _ in range(3):
        position = (await store.read(ALL_EVENTS, position, 10)).through
        await fetched(store)
    assert asked == [(0, 10), (10, 10), (20, 10)]
