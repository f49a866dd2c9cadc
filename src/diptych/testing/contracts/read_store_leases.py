"""The part of the contract of read stores that is about leases: one holder at a time, fair shares, and fences."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from diptych.read_side.read_store import Fenced, Generation, Leased, LeaseKey, ReadStore, SliceWrite
from diptych.testing.contracts.read_store_cases import NAME, SEATS, create, place, write

__all__ = ["LeasesContract"]

LONG_S = 3_600.0
"""A lease that does not run out while a test runs."""
OVER_S = 0.0
"""A lease that has run out as soon as it was given."""
WAIT_S_MAX = 10.0
"""No wait of a test that is to succeed takes longer."""
ROUNDS = 4
"""Renewals of every worker, after which nothing changes hands any more."""


async def some(store: ReadStore, count: int) -> list[Generation]:
    """So many generations, each of a projection of its own."""
    return [await create(store, SEATS if n == 0 else None, NAME if n == 0 else f"school.n{n}") for n in range(count)]


def keys_of(generations: Collection[Generation]) -> list[LeaseKey]:
    """As what they are leased."""
    return [generation.lease_key for generation in generations]


async def stored(store: ReadStore) -> dict[LeaseKey, Generation]:
    """Every generation as it is stored now."""
    return {found.lease_key: found for found in await store.generations()}


@pytest.mark.anyio
class LeasesContract:
    """Leases; `ReadStoreContract` says how to connect."""

    leases_are_locks = False
    """Whether leases are locks of the operating system: the first to come holds what it wants until it lets go or ends,
    so that there are neither fair shares nor a time after which a stalled holder is taken over."""

    async def test_what_is_free_is_leased_to_who_asks(self, store: ReadStore) -> None:
        """Only what was asked for; nothing was taken from anybody, so no epoch changes."""
        first, second, _ = await some(store, 3)
        leased = await store.lease("a", keys_of([first, second]), LONG_S)
        assert leased == Leased(dict.fromkeys(keys_of([first, second]), 0))
        assert (await stored(store))[NAME, 1, 0] == first
        assert await store.lease("b", [], LONG_S) == Leased({})

    async def test_a_renewal_changes_nothing(self, store: ReadStore) -> None:
        """What is held stays held under its epoch, and its writer goes on."""
        (generation,) = await some(store, 1)
        first = await store.lease("a", keys_of([generation]), LONG_S)
        assert await store.lease("a", keys_of([generation]), LONG_S) == first
        assert (await write(store, generation, upserts=[("a", 1)])).epoch == first.epochs[NAME, 1, 0]

    async def test_one_holds_what_another_does_not(self, store: ReadStore) -> None:
        """However often anybody asks, and all at once: each generation has one holder."""
        keys = keys_of(await some(store, 5))
        for _ in range(ROUNDS):
            leased = await asyncio.gather(*(store.lease(worker, keys, LONG_S) for worker in "abc"))
            held = [key for each in leased for key in each.epochs]
            assert sorted(held) == sorted(keys)

    async def test_a_release_gives_up_everything_at_once(self, store: ReadStore) -> None:
        """The next to ask holds it; what the last one still writes is fenced, also before anybody has asked."""
        generations = await some(store, 2)
        keys = keys_of(generations)
        await store.lease("a", keys, LONG_S)
        await store.release("a")
        assert await store.write([SliceWrite(generations[0], place(1), [("a", 1)])]) == [Fenced()]
        leased = await store.lease("b", keys, LONG_S)
        assert leased.epochs == {key: found.epoch for key, found in (await stored(store)).items()}
        assert min(leased.epochs.values()) > 0
        assert await store.write([SliceWrite(generations[0], place(1), [("a", 1)])]) == [Fenced()]
        assert (await write(store, (await stored(store))[NAME, 1, 0], upserts=[("b", 2)])).checkpoint == place(1)

    async def test_part_can_be_released(self, store: ReadStore) -> None:
        """The rest stays held under its epoch; what one does not hold it cannot release."""
        keys = keys_of(await some(store, 3))
        await store.lease("a", keys[:2], LONG_S)
        await store.lease("b", keys[2:], LONG_S)
        await store.release("nobody")
        await store.release("a", keys[1:])
        assert {key: found.epoch for key, found in (await stored(store)).items()} == {
            keys[0]: 0,
            keys[1]: 1,
            keys[2]: 0,
        }
        assert (await store.lease("a", keys[:1], LONG_S)).epochs == {keys[0]: 0}
        assert (await store.lease("b", keys[1:], LONG_S)).epochs == {keys[1]: 1, keys[2]: 0}

    async def test_what_is_not_wanted_any_more_is_given_up(self, store: ReadStore) -> None:
        """A renewal that leaves it out is enough; its epoch goes up."""
        keys = keys_of(await some(store, 2))
        await store.lease("a", keys, LONG_S)
        assert (await store.lease("a", keys[1:], LONG_S)).epochs == {keys[1]: 0}
        assert (await stored(store))[keys[0]].epoch == 1
        assert (await store.lease("b", keys[:1], LONG_S)).epochs == {keys[0]: 1}

    async def test_what_is_gone_is_told(self, store: ReadStore) -> None:
        """A generation that was replaced, or never was, is not held; its successor can be."""
        old, new = await create(store, SEATS), await create(store, SEATS, live=False)
        await store.lease("a", keys_of([old, new]), LONG_S)
        await store.switch(NAME, new.number)
        leased = await store.lease("a", [*keys_of([old, new]), ("school.None", 1, 0)], LONG_S)
        assert leased == Leased(
            {(NAME, new.number, 0): 0}, gone=frozenset({(NAME, old.number, 0), ("school.None", 1, 0)})
        )

    async def test_a_change_by_hand_is_told_with_the_lease(self, store: ReadStore) -> None:
        """It needs no lease; who holds it sees the new epoch when it renews, and holds it still."""
        (generation,) = await some(store, 1)
        await store.lease("a", keys_of([generation]), LONG_S)
        changed = await write(store, generation, by_hand=True)
        assert (await store.lease("a", keys_of([generation]), LONG_S)).epochs == {(NAME, 1, 0): changed.epoch}

    async def test_what_has_run_out_is_taken_over(self, store: ReadStore) -> None:
        """Whoever stalled is fenced by a new epoch, and holds nothing; where leases are locks it keeps them."""
        (zombie,) = await some(store, 1)
        keys = keys_of([zombie])
        assert (await store.lease("a", keys, OVER_S)).epochs == {(NAME, 1, 0): 0}
        leased = await store.lease("b", keys, LONG_S)
        if self.leases_are_locks:
            assert leased == Leased({})
            return
        assert leased.epochs == {(NAME, 1, 0): 1}
        assert await store.write([SliceWrite(zombie, place(1), [("a", 1)])]) == [Fenced()]
        assert (await store.lease("a", keys, LONG_S)).epochs == {}
        await write(store, (await stored(store))[NAME, 1, 0], upserts=[("b", 2)])

    async def test_what_has_run_out_unnoticed_is_renewed(self, store: ReadStore) -> None:
        """Nobody else has had it meanwhile, so its holder goes on under the old epoch."""
        (generation,) = await some(store, 1)
        for _ in range(2):
            assert (await store.lease("a", keys_of([generation]), OVER_S)).epochs == {(NAME, 1, 0): 0}
        await write(store, generation, upserts=[("a", 1)])

    async def test_workers_get_fair_shares(self, store: ReadStore) -> None:
        """A second one gets half as soon as the first has released its surplus, and nothing moves from then on.

        Where leases are locks, the first keeps all.
        """
        keys = keys_of(await some(store, 5))
        assert len((await store.lease("a", keys, LONG_S)).epochs) == 5
        asked = await store.lease("b", keys, LONG_S)
        assert asked == Leased({}), "nothing is taken from a worker that is alive"
        told = await store.lease("a", keys, LONG_S)
        assert (len(told.epochs), len(told.surplus)) == (5, 0 if self.leases_are_locks else 2)
        await store.release("a", told.surplus)
        settled = await self._settled(store, keys, "ab")
        assert [len(settled[worker]) for worker in "ab"] == ([5, 0] if self.leases_are_locks else [3, 2])
        assert await self._settled(store, keys, "ba") == settled

    async def test_the_share_of_one_that_is_gone_goes_to_the_others(self, store: ReadStore) -> None:
        """Whether it released, or its time is over; where leases are locks, to the first to come."""
        keys = keys_of(await some(store, 8))
        settled = await self._settled(store, keys, "abcd")
        assert [len(held) for held in settled.values()] == ([8, 0, 0, 0] if self.leases_are_locks else [2] * 4)
        await store.release("a")
        await store.lease("d", [] if self.leases_are_locks else keys, OVER_S)
        settled = await self._settled(store, keys, "bc")
        assert [len(held) for held in settled.values()] == ([8, 0] if self.leases_are_locks else [4, 4])

    async def _settled(self, store: ReadStore, keys: list[LeaseKey], workers: str) -> Mapping[str, set[LeaseKey]]:
        """What each holds after some rounds in which all behave."""
        held: dict[str, set[LeaseKey]] = {}
        for _ in range(ROUNDS):
            for worker in workers:
                leased = await store.lease(worker, keys, LONG_S)
                await store.release(worker, leased.surplus)
                held[worker] = set(leased.epochs.keys() - leased.surplus)
        assert sorted(key for each in held.values() for key in each) == sorted(keys)
        return held

    async def test_a_release_wakes_who_waits_for_a_change(self, store: ReadStore) -> None:
        """So that others ask at once."""
        keys = keys_of(await some(store, 1))
        await store.lease("a", keys, LONG_S)
        seen = await store.wait_for_change(0, 0)
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await asyncio.wait([waiting], timeout=0)
        await store.release("a")
        assert await asyncio.wait_for(waiting, WAIT_S_MAX * 2) != seen
