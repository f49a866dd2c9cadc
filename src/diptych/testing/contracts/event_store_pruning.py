"""The part of the event store's contract that drops the data of events (rule 19)."""

from __future__ import annotations

import msgspec

from diptych.event_store.event_store import Conflicting, Duplicate, Pruned
from diptych.event_store.position import START, Position
from diptych.testing.contracts.event_store_case import (
    EventStoreCase,
    append_one,
    commit,
    condition,
    event,
    expect,
    history_of,
    item,
    matching,
)

__all__ = ["PruningContract"]


class PruningContract(EventStoreCase):
    """Data go, and nothing else."""

    async def test_pruned_events_keep_everything_but_their_data(self) -> None:
        """Those of one type up to a position; queries, places, conditions and outcomes know no difference."""
        async with self.two_stores() as (store, other):
            await store.append([commit(event("A", "a"), event("B", "a"), command_id="c-1")])
            await append_one(store, event("A", "b"), event("A", "a"))
            before = await history_of(store)
            assert await store.prune("A", START, Position(3), 10) == Pruned(Position(3), 2)
            expected = [msgspec.structs.replace(one, data=b"") if one.position in {1, 3} else one for one in before]
            for each in (store, other):
                assert await history_of(each) == expected
                assert await matching(each, item(["A"], {"a"})) == [1, 4]
            (result, again) = await store.append(
                [
                    commit(event("A"), conditions=[condition(0, ["A"], {"b"})]),
                    commit(event("A"), command_id="c-1"),
                ]
            )
            assert expect(Conflicting, result).position == 3
            assert expect(Duplicate, again).outcome.event_count == 2

    async def test_it_is_done_in_pages_and_done_again_changes_nothing(self) -> None:
        """Each call says how far it came, and how many had data; the last one comes to the end."""
        async with self.store() as store:
            await append_one(store, *(event("A" if number % 2 else "B") for number in range(1, 8)))
            assert await store.prune("A", START, Position(6), 2) == Pruned(Position(3), 2)
            assert await store.prune("A", Position(3), Position(6), 2) == Pruned(Position(6), 1)
            assert await store.prune("A", START, Position(7), 10) == Pruned(Position(7), 1)
            assert await store.prune("A", START, Position(7), 10) == Pruned(Position(7), 0)
            assert await store.prune("C", START, Position(7), 10) == Pruned(Position(7), 0)
            empty = [one.position for one in await history_of(store) if not one.data]
            assert empty == [1, 3, 5, 7]

    async def test_the_horizon_is_known_before_the_last_page_and_never_goes_back(self) -> None:
        """Of each type on its own; a type that was never pruned has none."""
        async with self.two_stores() as (store, other):
            await append_one(store, *(event("A") for _ in range(4)), event("B"))
            assert await store.horizons() == {}
            await store.prune("A", START, Position(3), 1)
            assert await other.horizons() == {"A": Position(3)}
            await store.prune("A", START, Position(2), 10)
            await store.prune("B", START, Position(5), 10)
            assert await other.horizons() == {"A": Position(3), "B": Position(5)}
