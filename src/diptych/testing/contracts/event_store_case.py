"""What the parts of the event store's contract share: how they come by stores, events and answers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar, TypeVar

from diptych.clock import Clock
from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.event_store import Appended, AppendResult, Commit, EventStore, ModelState
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.messages.unique_id import unique_bytes

__all__ = [
    "EventStoreCase",
    "SettableClock",
    "append_one",
    "commit",
    "condition",
    "event",
    "expect",
    "history_of",
    "item",
    "let_others_run",
    "matching",
    "opened",
    "positions",
]

READ_MAX = 1_000_000
"""More events than any test appends."""
T = TypeVar("T")


class SettableClock:
    """Stands still until it is set, backwards too."""

    def __init__(self) -> None:
        self.time = datetime(2024, 2, 29, 12, tzinfo=UTC)

    def now(self) -> datetime:
        """The time it was set to."""
        return self.time

    def move(self, seconds: float) -> None:
        """Go so many seconds on, or back where negative."""
        self.time += timedelta(seconds=seconds)


class EventStoreCase(ABC):
    """How one adapter gives the contract its stores."""

    shares_history: ClassVar[bool] = True
    """Whether two instances can be open on one history at a time. If not, the tests use one instance in both places."""

    @abstractmethod
    def history(self, clock: Clock) -> AbstractAsyncContextManager[Callable[[], EventStore]]:
        """A new, empty history, for the length of the block.

        What is yielded connects one more instance to that history each time it is called (or gives the same one again
        where histories are not shared). None is opened yet; the contract opens and closes them.
        """

    @asynccontextmanager
    async def store(self, clock: Clock | None = None) -> AsyncGenerator[EventStore]:
        """One open store on a new history."""
        async with self.history(clock or SettableClock()) as connect, opened(connect()) as store:
            yield store

    @asynccontextmanager
    async def two_stores(self) -> AsyncGenerator[tuple[EventStore, EventStore]]:
        """Two open stores on one new history."""
        async with self.history(SettableClock()) as connect, opened(connect()) as one:
            if not self.shares_history:
                yield one, one
                return
            async with opened(connect()) as other:
                yield one, other


@asynccontextmanager
async def opened(store: EventStore) -> AsyncGenerator[EventStore]:
    """The store, open in the block."""
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def event(type: str = "Happened", *tags: str, data: bytes = b"{}", version: int = 1) -> NewEvent:
    """A new event with a new id."""
    return NewEvent(unique_bytes(), type, version, data, tags)


def item(types: Iterable[str] = (), tags: Iterable[str] = ()) -> QueryItem:
    """A query item, written short."""
    return QueryItem(frozenset(types), frozenset(tags))


def condition(after: int, types: Iterable[str] = (), tags: Iterable[str] = ()) -> AppendCondition:
    """An append condition, written short."""
    return AppendCondition(item(types, tags), Position(after))


def commit(
    *events: NewEvent,
    conditions: Sequence[AppendCondition] = (),
    command_id: str | None = None,
    payload_hash: bytes = b"",
    rejection: bytes | None = None,
    keep: bool = True,
    states: Sequence[ModelState] = (),
) -> Commit:
    """A commit, written short."""
    return Commit(events, tuple(conditions), command_id, payload_hash, rejection, keep, tuple(states))


def expect(kind: type[T], result: AppendResult) -> T:
    """The result, which has to be of that kind."""
    assert isinstance(result, kind), f"expected {kind.__name__}, got {result!r}"
    return result


async def append_one(store: EventStore, *events: NewEvent) -> Appended:
    """Append events as one commit without conditions, which has to work."""
    (result,) = await store.append([commit(*events)])
    return expect(Appended, result)


async def history_of(store: EventStore) -> list[RecordedEvent]:
    """Every event, whose positions have to be contiguous from 1."""
    result = await store.read(ALL_EVENTS, Position(0), READ_MAX)
    assert positions(result.events) == list(range(1, len(result.events) + 1)), "positions are not 1, 2, 3 …"
    assert not result.more
    assert result.through == len(result.events), "the read tells of a head that its events do not reach"
    return result.events


async def matching(store: EventStore, *items: QueryItem) -> list[int]:
    """Positions of the events that any of the items matches."""
    return positions((await store.read(EventQuery(items), Position(0), READ_MAX)).events)


async def let_others_run() -> None:
    """Give every task that is ready its turn."""
    for _ in range(3):
        await asyncio.sleep(0)  # noqa: TID251 - a turn for the others, not a wait


def positions(events: Iterable[RecordedEvent]) -> list[int]:
    """Their positions."""
    return [event.position for event in events]
