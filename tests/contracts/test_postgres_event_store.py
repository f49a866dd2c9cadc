"""The event store in PostgreSQL keeps the contract, and agrees with the one in memory on random batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.postgres.event_store import connect
from diptych.clock import Clock, SystemClock
from diptych.errors import NotGranted
from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import (
    Appended,
    AppendResult,
    Commit,
    Conflicting,
    Duplicate,
    EventStore,
    StoredType,
)
from diptych.event_store.position import START, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.tagging import UNTOUCHED
from diptych.testing.contracts.event_store import EventStoreContract
from diptych.testing.contracts.event_store_case import SettableClock, append_one, event, history_of, opened
from diptych.testing.contracts.event_store_copies import CopyContract, original
from diptych.testing.contracts.event_store_pruning import PruningContract
from diptych.testing.contracts.event_store_taggings import TaggingContract
from tests.postgres_pooler import pooled
from tests.postgres_server import as_role, new_granted_store, new_store

pytestmark = pytest.mark.anyio


class TestPostgresEventStore(EventStoreContract):
    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        url = await new_store()
        yield lambda: connect(url, clock)


class TestPostgresEventStoreBehindAPooler(EventStoreContract):
    """With `pgbouncer=true` no statement is prepared for later, nothing is set, and nobody listens."""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        url = pooled(await new_store())
        yield lambda: connect(url, clock)


class TestPostgresEventStoreAsWriter(EventStoreContract):
    """A user in the writer's role does all that an application asks of a store; copying and pruning is the owner's."""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        url = as_role(await new_granted_store(), "writer")
        yield lambda: connect(url, clock)


OWNERS = (CopyContract, PruningContract, TaggingContract)
for name in [name for owned in OWNERS for name in vars(owned) if name.startswith("test_")]:
    setattr(TestPostgresEventStoreAsWriter, name, None)


@pytest.mark.anyio
async def test_a_writer_neither_restores_nor_prunes_a_history() -> None:
    """Whoever may write a history as it was elsewhere could write any, and who prunes it loses data: the owner's."""
    store = connect(as_role(await new_granted_store(), "writer"), SystemClock())
    await store.open()
    try:
        with pytest.raises(NotGranted, match="this is the owner's to do"):
            await store.restore(original())
        with pytest.raises(NotGranted, match="this is the owner's to do"):
            await store.prune("A", START, START, 1)
    finally:
        await store.close()


@pytest.mark.anyio
async def test_a_writer_cannot_tag_events_anew() -> None:
    """What is stored is changed by its owner alone: not begun, not done, and not ended by anybody else."""
    store = connect(as_role(await new_granted_store(), "writer"), SystemClock())
    async with opened(store):
        await append_one(store, event("A", "x:1"))
        (found,) = await history_of(store)
        for step in (
            lambda: store.begin_retag([("A", 1)], UNTOUCHED),
            lambda: store.write_tags(UNTOUCHED, [(found, ("y:1",))]),
            lambda: store.end_retag(UNTOUCHED, [StoredType("A", 1, ("y",))], []),
        ):
            with pytest.raises(NotGranted, match="this is the owner's to do"):
                await step()
        assert await history_of(store) == [found]
        assert await store.tagging() == UNTOUCHED


# ── the same answers as in memory ────────────────────────────────────────────

BATCHES = 60
"""Random batches of one history."""
COMMAND_IDS = 200
TAGS = ("a", "b", "c", "d")
TYPES = ("X", "Y", "Z")


class Dice:
    """Random commits, of which many conflict, repeat each other, or build on pending positions."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.events: list[NewEvent] = []

    def batch(self, head: int) -> tuple[list[Commit], Position | None]:
        base = self.random.choice([None, head, head, head, max(0, head - 1), head + 1])
        pending = head
        commits: list[Commit] = []
        for _ in range(self.random.choice([1, 1, 2, 5, 12])):
            commits.append(self.commit(pending))
            pending += len(commits[-1].events)
        return commits, None if base is None else Position(base)

    def commit(self, pending: int) -> Commit:
        random = self.random
        conditions = tuple(
            AppendCondition(self.item(), Position(max(0, pending - random.choice([0, 0, 0, 1, 2, 9]))))
            for _ in range(random.choice([0, 1, 1, 2]))
        )
        return Commit(
            events=tuple(self.event() for _ in range(random.choice([0, 1, 1, 1, 3]))),
            conditions=conditions,
            command_id=random.choice([None, *(f"c-{random.randrange(COMMAND_IDS)}" for _ in range(2))]),
            payload_hash=random.randbytes(4),
            rejection=random.choice([None, None, b"{}"]),
            keep=random.random() < 0.8,
        )

    def event(self) -> NewEvent:
        random = self.random
        if self.events and random.random() < 0.03:
            return random.choice(self.events)
        tags = tuple(random.sample(TAGS, random.choice([0, 1, 1, 2, 3])))
        type = random.choice(TYPES) if random.random() < 0.98 else "X\0"
        self.events.append(NewEvent(random.randbytes(16), type, random.choice([1, 2]), b"{}", tags))
        return self.events[-1]

    def item(self) -> QueryItem:
        random = self.random
        types = random.sample((*TYPES, "Unheard", "No\0"), random.choice([0, 0, 1, 2]))
        tags = random.sample((*TAGS, "no\ud800") if random.random() < 0.1 else TAGS, random.choice([0, 1, 1, 2, 2]))
        return QueryItem(frozenset(types), frozenset(tags))


@pytest.mark.parametrize("seed", range(8))
async def test_random_batches_are_judged_as_in_memory(seed: int) -> None:
    """Whatever the batches, both stores give the same answers, and end with the same events, outcomes and types."""
    clock = SettableClock()
    url = await new_store()
    async with (
        opened(MemoryEventStore(clock)) as memory,
        opened(connect(url, clock)) as one,
        opened(connect(url, clock)) as other,
    ):
        dice = Dice(seed)
        for _ in range(BATCHES):
            clock.move(1)
            commits, base = dice.batch((await memory.head()).position)
            expected = await memory.append(commits, base)
            got = await dice.random.choice((one, other)).append(commits, base)
            assert list(map(told, got)) == list(map(told, expected)), f"seed {seed}"
        assert await history_of(one) == await history_of(memory)
        assert await kept_by(one) == await kept_by(memory) != []
        assert await one.stored_types() == await memory.stored_types()
        for _ in range(30):
            query = EventQuery(tuple(dice.item() for _ in range(dice.random.choice([1, 2, 3]))))
            last, limit = Position(dice.random.randrange(1, 99)), dice.random.randrange(1, 9)
            forward = [await store.read(query, Position(0), limit, until=last) for store in (one, memory)]
            assert forward[0] == forward[1], f"seed {seed}: {query}"
            backward = [await store.read_backward(query, limit, before=last) for store in (one, memory)]
            assert backward[0] == backward[1], f"seed {seed}: {query}"


async def kept_by(store: EventStore) -> list[tuple[object, ...]]:
    """What is kept under the ids that the dice give."""
    outcomes = [await store.outcome(f"c-{number}") for number in range(COMMAND_IDS)]
    return [told(Duplicate(outcome)) for outcome in outcomes if outcome is not None]


def told(result: AppendResult) -> tuple[object, ...]:
    """What a result says, but for the history's id, the wording of refusals, and which of several breakers is named."""
    match result:
        case Appended(place, recorded_at_us):
            return Appended, place.position, place.event_id, recorded_at_us
        case Duplicate(outcome):
            kept = (outcome.payload_hash, outcome.event_count, outcome.rejection)
            return Duplicate, outcome.place.position, outcome.place.event_id, *kept
        case Conflicting(item):
            return Conflicting, item
        case _:
            return (type(result),)
