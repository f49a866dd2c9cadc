"""The contract of `diptych.event_store.event_store`: what every event store does, as tests for any adapter.

    @pytest.mark.anyio
    class TestMyEventStore(EventStoreContract):
        @asynccontextmanager
        async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
            with TemporaryDirectory() as folder:
                yield lambda: MyEventStore(folder, clock)

The tests are coroutines without parameters, for whichever plugin runs those. A failed guarantee is an AssertionError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from diptych.errors import StoreClosed
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore, StoredType
from diptych.event_store.position import NOWHERE, Position
from diptych.event_store.tagging import UNTOUCHED
from diptych.testing.contracts.event_store_appends import AppendContract
from diptych.testing.contracts.event_store_case import (
    SettableClock,
    append_one,
    commit,
    event,
    history_of,
    let_others_run,
    opened,
)
from diptych.testing.contracts.event_store_chains import ChainContract
from diptych.testing.contracts.event_store_copies import CopyContract, original
from diptych.testing.contracts.event_store_models import ModelsContract
from diptych.testing.contracts.event_store_pruning import PruningContract
from diptych.testing.contracts.event_store_queries import QueryContract
from diptych.testing.contracts.event_store_states import StateContract
from diptych.testing.contracts.event_store_taggings import FactsContract, TaggingContract

__all__ = ["EventStoreContract"]

WAIT_S = 20.0
"""How long a test waits for what has to happen."""


class EventStoreContract(
    QueryContract,
    AppendContract,
    ChainContract,
    StateContract,
    PruningContract,
    CopyContract,
    FactsContract,
    TaggingContract,
    ModelsContract,
):
    """Everything that an event store guarantees. Derive from it, and give it histories."""

    async def test_the_head_is_the_place_of_the_last_event(self) -> None:
        """From position 0 on, the head names history, position and event."""
        async with self.store() as store:
            head = await store.head()
            assert (head.history_id, head.position, head.event_id) == (store.history_id, 0, NOWHERE)
            last = event()
            appended = await append_one(store, event(), last)
            head = await store.head()
            assert (head.history_id, head.position, head.event_id) == (store.history_id, 2, last.event_id)
            assert appended.place == head

    async def test_every_position_has_its_place(self) -> None:
        """Places up to the head name the events there; past it there is none."""
        async with self.store() as store:
            given = [event(), event()]
            await append_one(store, *given)
            places = [await store.place_at(Position(position)) for position in range(4)]
            ids = [None if place is None else place.event_id for place in places]
            assert ids == [NOWHERE, given[0].event_id, given[1].event_id, None]

    async def test_the_history_keeps_its_id_and_its_events(self) -> None:
        """Closed and opened again, by this instance or another, a history is the same; another one has another id."""
        async with self.history(SettableClock()) as connect:
            store = connect()
            async with opened(store):
                first_id = store.history_id
                await store.append([commit(event("A", "a"), command_id="c-1")])
                await store.register_types([StoredType("A", 1, ("a",))])
            assert len(first_id) == 16
            for again in (store, connect()):
                async with opened(again):
                    assert again.history_id == first_id
                    assert [recorded.type for recorded in await history_of(again)] == ["A"]
                    assert await again.outcome("c-1") is not None
                    assert await again.stored_types() == [StoredType("A", 1, ("a",))]
        async with self.store() as another:
            assert another.history_id != first_id

    async def test_a_closed_store_says_so(self) -> None:
        """Before it is opened and after it was closed, every method raises StoreClosed; closing twice is no error."""
        async with self.history(SettableClock()) as connect:
            store = connect()
            await check_closed(store)
            await store.open()
            await store.open()
            await append_one(store, event())
            await store.close()
            await store.close()
            await check_closed(store)

    # ── waiting ──────────────────────────────────────────────────────────────

    async def test_waiting_for_what_is_there_returns_at_once(self) -> None:
        """Where the head is past the position already, there is nothing to wait for."""
        async with self.store() as store:
            await append_one(store, event())
            assert await store.wait_for_events(Position(0), 0.0)

    async def test_waiting_ends_with_the_time(self) -> None:
        """Where nothing comes, the answer is False."""
        async with self.store() as store:
            await append_one(store, event())
            assert not await store.wait_for_events(Position(1), 0.0)
            assert not await store.wait_for_events(Position(1), 0.01)

    async def test_an_append_wakes_those_who_wait(self) -> None:
        """Waiters of this instance and of others are woken once the head is past their position, and not before."""
        async with self.two_stores() as (writing, other):
            near = [asyncio.create_task(store.wait_for_events(Position(0), WAIT_S)) for store in (writing, other)]
            far = asyncio.create_task(writing.wait_for_events(Position(1), WAIT_S))
            gone = asyncio.create_task(writing.wait_for_events(Position(0), WAIT_S))
            await let_others_run()
            gone.cancel()
            await append_one(writing, event())
            assert await asyncio.gather(*near) == [True, True]
            await let_others_run()
            assert not far.done()
            await append_one(other, event())
            assert await far

    async def test_closing_ends_the_waits(self) -> None:
        """Who waits when the store is closed gets StoreClosed."""
        async with self.store() as store:
            waiting = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
            await let_others_run()
            await store.close()
            await expect_closed(lambda: waiting)

    # ── types ────────────────────────────────────────────────────────────────

    async def test_only_types_of_stored_events_are_listed(self) -> None:
        """Each type and version that events are stored of, once, with the tag names that it was registered with."""
        async with self.store() as store:
            assert await store.stored_types() == []
            await store.register_types(
                [StoredType("B", 1, ("b",)), StoredType("A", 2, ("a", "c")), StoredType("Unused", 1, ("u",))]
            )
            assert await store.stored_types() == []
            await append_one(store, event("B"), event("A", version=2), event("B"), event("A", version=1))
            expected = [StoredType("A", 1, ()), StoredType("A", 2, ("a", "c")), StoredType("B", 1, ("b",))]
            assert sorted(await store.stored_types(), key=lambda type: (type.name, type.version)) == expected

    async def test_tag_names_are_facts_once_an_event_is_stored(self) -> None:
        """Registering a type again replaces its tag names while no event is stored of it, and never after."""
        async with self.store() as store:
            await store.register_types([StoredType("A", 1, ("old",))])
            await store.register_types([StoredType("A", 1, ("new",))])
            await append_one(store, event("A"), event("Unregistered"))
            await store.register_types([StoredType("A", 1, ("later",)), StoredType("A", 2, ("two",))])
            await store.register_types([StoredType("Unregistered", 1, ("first",))])
            await store.register_types([StoredType("Unregistered", 1, ("second",))])
            expected = [StoredType("A", 1, ("new",)), StoredType("Unregistered", 1, ("first",))]
            assert sorted(await store.stored_types(), key=lambda type: type.name) == expected


async def check_closed(store: EventStore) -> None:
    """Try every method of a store that is not open."""
    nowhere = Position(0)
    await expect_closed(lambda: store.append([]))
    await expect_closed(lambda: store.append([commit(event())]))
    await expect_closed(lambda: store.read(ALL_EVENTS, nowhere, 1))
    await expect_closed(lambda: store.read_backward(ALL_EVENTS, 1))
    await expect_closed(store.head)
    await expect_closed(lambda: store.place_at(nowhere))
    await expect_closed(lambda: store.outcome("c-1"))
    await expect_closed(lambda: store.outcomes("", 1))
    await expect_closed(lambda: store.model_state("", ""))
    await expect_closed(lambda: store.model_states(("", ""), 1))
    await expect_closed(lambda: store.keep_states([], original().after))
    await expect_closed(lambda: store.prune("A", nowhere, nowhere, 1))
    await expect_closed(store.horizons)
    await expect_closed(lambda: store.restore(original()))
    await expect_closed(lambda: store.wait_for_events(nowhere, 0.0))
    await expect_closed(store.stored_types)
    await expect_closed(lambda: store.register_types([]))
    await expect_closed(lambda: store.keep_facts([], []))
    await expect_closed(store.stored_models)
    await expect_closed(lambda: store.keep_models([], b""))
    await expect_closed(store.tagging)
    await expect_closed(lambda: store.begin_retag([("A", 1)], UNTOUCHED))
    await expect_closed(lambda: store.write_tags(UNTOUCHED, []))
    await expect_closed(lambda: store.end_retag(UNTOUCHED, [], []))


async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
    """The call has to raise StoreClosed."""
    try:
        result = await call()
    except StoreClosed:
        return
    raise AssertionError(f"a closed store answered {result!r}")
