"""Generations that are split by row key: the part of the read store's contract about slices."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from diptych.read_side.partitions import split
from diptych.read_side.read_store import Fenced, Generation, Leased, SliceWrite, Written
from diptych.testing.contracts.read_store_cases import NAME, SEATS, place, rows_of, write

if TYPE_CHECKING:
    from diptych.read_side.read_store import ReadStore

__all__ = ["SlicesContract"]

WAIT_S_MAX = 10.0
"""Seconds for everything that takes no time at all."""


async def sliced(store: ReadStore, slices: int, *, fingerprint: str = "1", live: bool = True) -> list[Generation]:
    """A new generation of so many slices, at the beginning of the history."""
    return await store.create_generation(NAME, fingerprint, SEATS, place(0), live=live, anew=not live, slices=slices)


async def shown(store: ReadStore, number: int | None = None) -> list[Generation]:
    """The slices of the live generation, or of the numbered one, as a snapshot shows them."""
    async with store.snapshot() as snapshot:
        return list(await snapshot.slices(NAME, number))


@pytest.mark.anyio
class SlicesContract:
    """Slices; `ReadStoreContract` says how to connect."""

    leases_are_locks = False

    async def test_a_generation_is_made_with_its_slices(self, store: ReadStore) -> None:
        """All begin at the same place, are listed in order, and shown by snapshots; racers get the same ones."""
        made = await sliced(store, 3)
        assert made == [
            Generation(NAME, 1, "1", SEATS, live=True, checkpoint=place(0), slice=n, slices=3) for n in range(3)
        ]
        assert await store.generations() == made == await shown(store) == await shown(store, 1)
        assert await sliced(store, 5) == made
        assert await shown(store, 2) == []

    async def test_each_slice_moves_by_itself(self, store: ReadStore) -> None:
        """A write moves its slice and no other; each is fenced by its own checkpoint and epoch; rows are all there."""
        first, second, third = await sliced(store, 3)
        moved = await write(store, second, checkpoint=place(4), upserts=[("b", 2)])
        assert await store.generations() == [first, moved, third]
        results = await store.write(
            [
                SliceWrite(first, place(7), upserts=[("a", 1)]),
                SliceWrite(second, place(9), upserts=[("b", 9)]),
                SliceWrite(third, place(2), by_hand=True),
            ]
        )
        assert results[1] == Fenced()
        assert [result.generation for result in results if isinstance(result, Written)] == (await shown(store))[::2]
        assert [(each.checkpoint, each.epoch) for each in await shown(store)] == [
            (place(7), 0),
            (place(4), 0),
            (place(2), 1),
        ]
        assert await rows_of(store) == [("a", 1), ("b", 2)]

    async def test_a_slice_that_is_not_there_is_fenced(self, store: ReadStore) -> None:
        """As a writer is that has not heard that there are fewer."""
        *_, last = await sliced(store, 3)
        assert await store.split(NAME, 1, 2)
        assert await store.write([SliceWrite(last, place(1), upserts=[("a", 1)])]) == [Fenced()]
        assert await rows_of(store) == []

    async def test_slices_are_leased_one_by_one(self, store: ReadStore) -> None:
        """Two workers hold different slices of one generation, and what one lets go of fences that slice alone."""
        keys = [slice.lease_key for slice in await sliced(store, 2)]
        assert await store.lease("a", keys[:1], WAIT_S_MAX) == Leased({keys[0]: 0})
        assert await store.lease("b", keys[1:], WAIT_S_MAX) == Leased({keys[1]: 0})
        await store.release("a")
        assert [slice.epoch for slice in await shown(store)] == [1, 0]
        assert (await store.lease("b", keys, WAIT_S_MAX)).epochs == {keys[0]: 1, keys[1]: 0}

    async def test_a_split_of_slices_at_one_place_is_done_at_once(self, store: ReadStore) -> None:
        """Rows stay; the new slices begin where the old ones were, above all their epochs, and writers are fenced."""
        first, second = await sliced(store, 2)
        first = await write(store, first, checkpoint=place(5), upserts=[("a", 1)], by_hand=True)
        second = await write(store, second, checkpoint=place(5), upserts=[("b", 2)], stopped="no key")
        assert await store.split(NAME, 1, 3)
        found = await shown(store)
        assert found == split([first, second], 3)
        assert [(each.slice, each.slices, each.checkpoint, each.epoch, each.stopped) for each in found] == [
            (n, 3, place(5), 2, "") for n in range(3)
        ]
        assert await store.write([SliceWrite(first, place(6)), SliceWrite(second, place(6))]) == [Fenced(), Fenced()]
        assert await rows_of(store) == [("a", 1), ("b", 2)]
        assert (await write(store, found[2], checkpoint=place(6), upserts=[("c", 3)])).slice == 2

    async def test_what_was_split_is_free(self, store: ReadStore) -> None:
        """Nobody holds the new slices, and who held the old ones hears that they are gone."""
        keys = [slice.lease_key for slice in await sliced(store, 2)]
        await store.lease("a", keys, WAIT_S_MAX)
        await store.split(NAME, 1, 1)
        await store.release("a")  # where leases are locks, it holds the first one still
        leased = await store.lease("b", keys, WAIT_S_MAX)
        assert (set(leased.epochs), leased.gone) == ({keys[0]}, frozenset(keys[1:]))
        assert leased.epochs[keys[0]] == (2 if self.leases_are_locks else 1)

    async def test_a_split_waits_until_all_are_at_one_place(self, store: ReadStore) -> None:
        """The furthest place becomes the barrier; whoever writes hears of it; then it is done. Asking again is none."""
        slow, fast = await sliced(store, 2)
        fast = await write(store, fast, checkpoint=place(8))
        assert not await store.split(NAME, 1, 4)
        assert await store.write([SliceWrite(slow, place(3)), SliceWrite(fast, place(9))]) == [Fenced(), Fenced()]
        held_up = await shown(store)
        assert [(each.checkpoint, each.barrier, each.slices_next) for each in held_up] == [
            (place(0), 8, 4),
            (place(8), 8, 4),
        ]
        assert not await store.split(NAME, 1, 4)
        assert not await store.split(NAME, 1)
        assert await shown(store) == held_up
        await write(store, held_up[0], checkpoint=place(8))
        assert await store.split(NAME, 1)
        assert [(each.checkpoint, each.barrier, each.slices_next) for each in await shown(store)] == [
            (place(8), None, 0)
        ] * 4

    async def test_a_split_can_be_taken_back(self, store: ReadStore) -> None:
        """Asked for the number that there is, a barrier goes; what is gone needs no split."""
        _, fast = await sliced(store, 2)
        await write(store, fast, checkpoint=place(8))
        assert not await store.split(NAME, 1, 3)
        assert await store.split(NAME, 1, 2)
        assert [(each.checkpoint, each.barrier) for each in await shown(store)] == [(place(0), None), (place(8), None)]
        assert await store.split(NAME, 1)
        assert len(await shown(store)) == 2
        assert await store.split(NAME, 7, 2)

    async def test_a_slice_that_has_stopped_is_no_reason_to_wait(self, store: ReadStore) -> None:
        """It would hold up all the others: there is no barrier, or none any more, until it goes on."""
        slow, fast = await sliced(store, 2)
        await write(store, fast, checkpoint=place(8))
        assert not await store.split(NAME, 1, 3)
        slow, _ = await shown(store)
        slow = await write(store, slow, checkpoint=place(2), stopped="no key")
        assert await store.split(NAME, 1)
        assert [(each.checkpoint, each.barrier) for each in await shown(store)] == [(place(2), None), (place(8), None)]
        assert await store.split(NAME, 1, 3)
        await write(store, (await shown(store))[0], checkpoint=place(8))
        assert await store.split(NAME, 1, 3)
        assert len(await shown(store)) == 3

    async def test_a_switch_minds_every_slice(self, store: ReadStore) -> None:
        """No key may show less than before: where one slice is behind its live counterpart, the switch is refused."""
        live = [await write(store, slice, checkpoint=place(4)) for slice in await sliced(store, 2)]
        fresh = await sliced(store, 3, fingerprint="2", live=False)
        fresh = [await write(store, slice, checkpoint=place(at)) for slice, at in zip(fresh, (4, 6, 3), strict=True)]
        assert not await store.switch(NAME, 2)
        assert await shown(store) == live
        await write(store, fresh[2], checkpoint=place(4))
        assert await store.switch(NAME, 2)
        assert [(each.number, each.slice, each.live) for each in await store.generations()] == [
            (2, n, True) for n in range(3)
        ]

    async def test_what_is_kept_is_split_as_well(self, store: ReadStore) -> None:
        """It is still kept, with its rows, and gone back to as it is split then; what answers stays as it was."""
        (first,) = [await write(store, slice, checkpoint=place(4)) for slice in await sliced(store, 1)]
        (second,) = [
            await write(store, slice, checkpoint=place(4), upserts=[("b", 2)])
            for slice in await sliced(store, 1, fingerprint="2", live=False)
        ]
        assert await store.switch(NAME, second.number, keep_s=60)
        (kept, live) = await store.generations()
        kept = await write(store, kept, checkpoint=place(5), upserts=[("a", 1)])
        assert await store.split(NAME, first.number, 2)
        *halves, same = await store.generations()
        assert same == live
        assert halves == split([kept], 2)
        assert {each.kept_until for each in halves} == {kept.kept_until}
        async with store.snapshot() as snapshot:
            assert list(await snapshot.kept(NAME, first.fingerprint)) == halves
        assert await rows_of(store) == [("b", 2)]
        assert await store.switch(NAME, first.number, keep_s=60)
        assert await rows_of(store) == [("a", 1)]

    async def test_a_split_wakes_who_waits_for_a_change(self, store: ReadStore) -> None:
        """So that those who fold elsewhere look again."""
        await sliced(store, 2)
        seen = store.changes
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await store.split(NAME, 1, 3)
        assert await waiting == store.changes != seen

    async def test_a_split_that_changes_nothing_wakes_nobody(self, store: ReadStore) -> None:
        """Whoever asks again and again, since a slice has not come to the barrier yet, does not rouse the others."""
        _, fast = await sliced(store, 2)
        await write(store, fast, checkpoint=place(8))
        seen = store.changes
        assert await store.split(NAME, 1, 2)
        assert await store.split(NAME, 7, 3)
        assert store.changes == seen
        assert not await store.split(NAME, 1, 3)
        seen = store.changes
        assert not await store.split(NAME, 1)
        assert store.changes == seen
