"""Whatever is appended in whatever batches: the stores judge as the query language says, and answer alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import Appended, AppendResult, Commit, Conflicting, Duplicate, EventStore
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.testing.contracts.event_store_case import SettableClock, opened

READ_MAX = 10_000

types = st.sampled_from(["A", "B", "C"])
tags = st.lists(st.sampled_from(["a:1", "a:2", "b:1", "b:2"]), unique=True, max_size=3)
events = st.builds(
    lambda number, type, tags: NewEvent(number.to_bytes(16, "big"), type, 1, b"{}", tuple(tags)),
    st.integers(0, 400),
    types,
    tags,
)
items = st.builds(QueryItem, st.frozensets(types, max_size=2), st.frozensets(st.sampled_from(["a:1", "a:2", "b:1"])))
queries = st.builds(EventQuery, st.lists(items, max_size=4).map(tuple))


@dataclass(frozen=True)
class Batch:
    """One call of append.

    Attributes:
        offsets: for each condition of each commit, how far from the head its `after` lies.
        base_offset: how far from the head `base` lies; None appends without.
        instance: which of the instances appends.
    """

    commits: Sequence[tuple[Commit, Sequence[tuple[QueryItem, int]]]]
    base_offset: int | None
    instance: int


commits = st.builds(
    lambda events, command_id, rejection, keep: Commit(tuple(events), (), command_id, b"hash", rejection, keep),
    st.lists(events, max_size=3),
    st.none() | st.integers(0, 12).map("command-{}".format),
    st.none() | st.just(b"{}"),
    st.booleans(),
)
conditions = st.lists(st.tuples(items, st.integers(-4, 3)), max_size=2)
batches = st.builds(
    Batch,
    st.lists(st.tuples(commits, conditions), max_size=6),
    st.none() | st.sampled_from([0, 0, 0, -1, 1]),
    st.integers(0, 1),
)


def at(batch: Batch, head: int) -> tuple[list[Commit], Position | None]:
    """The batch as it is meant at this head."""
    made = [
        msgspec.structs.replace(
            commit, conditions=tuple(AppendCondition(item, Position(max(head + offset, 0))) for item, offset in offsets)
        )
        for commit, offsets in batch.commits
    ]
    return made, None if batch.base_offset is None else Position(max(head + batch.base_offset, 0))


def without_history(place: Place) -> Place:
    return msgspec.structs.replace(place, history_id=b"")


def comparable(result: AppendResult) -> AppendResult:
    """What two histories of the same course have to agree in."""
    match result:
        case Appended():
            return msgspec.structs.replace(result, place=without_history(result.place))
        case Duplicate(outcome):
            return Duplicate(msgspec.structs.replace(outcome, place=without_history(outcome.place)))
        case Conflicting():
            # Which of several later events is named is free.
            return msgspec.structs.replace(result, position=Position(0))
        case _:
            return result


async def shown(store: EventStore, query: EventQuery, limit: int) -> list[object]:
    """What the store tells of a query, in every way of reading it."""
    head = (await store.head()).position
    return [
        await store.read(query, Position(0), READ_MAX),
        await store.read(query, Position(head // 3), limit, until=Position(head * 2 // 3)),
        await store.read_backward(query, limit),
        await store.read_backward(query, READ_MAX, before=Position(head // 2)),
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(batches, max_size=8), st.lists(queries, max_size=3), st.integers(1, 5))
def test_the_stores_answer_alike(course: list[Batch], asked: list[EventQuery], limit: int) -> None:
    """Any course of batches gets the same answers from the store in memory and from two instances over one file."""

    async def run() -> None:
        clock = SettableClock()
        memory = MemoryEventStore(clock)
        with TemporaryDirectory() as folder:
            path = str(Path(folder, "events.db"))
            shared = [SqliteEventStore(path, clock, synchronous="NORMAL") for _ in range(2)]
            async with opened(memory), opened(shared[0]), opened(shared[1]):
                await follow(memory, shared, clock)

    async def follow(memory: MemoryEventStore, shared: Sequence[SqliteEventStore], clock: SettableClock) -> None:
        for batch in course:
            clock.move(1)
            made, base = at(batch, (await memory.head()).position)
            expected = [comparable(result) for result in await memory.append(made, base)]
            assert [comparable(result) for result in await shared[batch.instance].append(made, base)] == expected
        for query in asked:
            expected_reads = await shown(memory, query, limit)
            for store in shared:
                assert await shown(store, query, limit) == expected_reads
        assert await shared[0].stored_types() == await memory.stored_types()

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(events, min_size=1, max_size=4), max_size=6), items, st.integers(0, 12))
def test_a_condition_is_judged_as_the_item_matches(course: list[list[NewEvent]], item: QueryItem, after: int) -> None:
    """A condition conflicts exactly if `QueryItem.matches` holds for an event behind `after`, in the batch too."""

    async def run() -> None:
        with TemporaryDirectory() as folder:
            file = SqliteEventStore(str(Path(folder, "events.db")), SettableClock(), synchronous="NORMAL")
            for store in (MemoryEventStore(SettableClock()), file):
                async with opened(store):
                    await judge(store)

    async def judge(store: EventStore) -> None:
        probe = Commit(conditions=(AppendCondition(item, Position(after)),), keep=False)
        history: list[NewEvent] = []
        for batch in course:
            committed = len(history)
            made = [Commit((event,)) for event in batch]
            *results, probed = await store.append([*made, probe])
            history += [event for event, result in zip(batch, results, strict=True) if isinstance(result, Appended)]
            if after <= committed:  # beyond the head a condition without base is a broken chain
                later = history[after:]
                broken = any(item.matches(event.type, event.tags) for event in later)
                assert isinstance(probed, Conflicting if broken else Appended)

    asyncio.run(run())
