"""Ways to break the slices of the memory store, each with the tests of the contract that are to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from diptych.adapters.memory import read_store as memory
from diptych.adapters.memory.read_store import MemoryReadStore, _Snapshot
from diptych.read_side.change_count import ChangeCount
from diptych.read_side.partitions import split
from diptych.read_side.read_store import Generation, SliceWrite

Patch = Callable[[pytest.MonkeyPatch], None]
SLICE_BREAKAGES: list[Any] = []


def noticed_by(*tests: str) -> Callable[[Patch], Patch]:
    """Register a way to break slices, with the tests that must fail for it."""

    def register(patch: Patch) -> Patch:
        SLICE_BREAKAGES.append(pytest.param(patch, tests, id=patch.__name__))
        return patch

    return register


def split_otherwise(
    patch: pytest.MonkeyPatch, change: Callable[[list[Generation], int | None], list[Generation]]
) -> None:
    """Change what a split gives, knowing into how many it was to be."""

    def split_wrongly(slices: Sequence[Generation], into: int | None) -> list[Generation]:
        return change(split(slices, into), into)

    patch.setattr(memory, "split", split_wrongly)


@noticed_by("test_a_generation_is_made_with_its_slices")
def one_slice_is_shown(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.slices

    async def slices(self: Any, name: str, number: int | None = None) -> Sequence[Generation]:
        return (await real(self, name, number))[:1]

    patch.setattr(_Snapshot, "slices", slices)


@noticed_by("test_each_slice_moves_by_itself")
def a_write_moves_the_first_slice(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write

    def write(self: Any, wanted: SliceWrite) -> Any:
        return real(self, replace(wanted, generation=replace(wanted.generation, slice=0)))

    patch.setattr(MemoryReadStore, "_write", write)


@noticed_by("test_slices_are_leased_one_by_one")
def a_lease_is_of_all_slices(patch: pytest.MonkeyPatch) -> None:
    real = memory._Build.with_slice

    def with_slice(self: Any, changed: Generation, holder: str | None) -> Any:
        return replace(real(self, changed, holder), last_holders=(holder,) * len(self.slices))

    patch.setattr(memory._Build, "with_slice", with_slice)


@noticed_by("test_a_split_of_slices_at_one_place_is_done_at_once")
def a_split_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    split_otherwise(patch, lambda found, into: [replace(each, epoch=0) for each in found])


@noticed_by("test_what_is_kept_is_split_as_well")
def a_split_forgets_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    split_otherwise(patch, lambda found, into: [replace(each, kept_until=None) for each in found])


@noticed_by("test_what_was_split_is_free")
def a_split_keeps_its_holders(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.split

    async def keep(self: Any, name: str, number: int, slices: int | None = None) -> bool:
        before = self._builds.get((name, number))
        done = await real(self, name, number, slices)
        if before is not None:
            after = self._builds[name, number]
            holders = (before.last_holders * (slices or 1))[: len(after.slices)]
            self._builds[name, number] = replace(after, last_holders=holders)
        return done

    patch.setattr(MemoryReadStore, "split", keep)


@noticed_by("test_a_split_waits_until_all_are_at_one_place")
def a_split_waits_for_nobody(patch: pytest.MonkeyPatch) -> None:
    def at_once(slices: Sequence[Generation], into: int | None) -> list[Generation]:
        furthest = max(slices, key=lambda each: each.checkpoint.position)
        return split([replace(each, checkpoint=furthest.checkpoint) for each in slices], into)

    patch.setattr(memory, "split", at_once)


@noticed_by("test_a_split_waits_until_all_are_at_one_place")
def asking_again_fences_again(patch: pytest.MonkeyPatch) -> None:
    split_otherwise(
        patch, lambda found, into: [replace(each, epoch=each.epoch + (each.slices_next == into)) for each in found]
    )


@noticed_by("test_a_split_can_be_taken_back")
def a_barrier_stays(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.split

    async def stay(self: Any, name: str, number: int, slices: int | None = None) -> bool:
        found = self._builds[name, number].slices
        return slices == len(found) or await real(self, name, number, slices)

    patch.setattr(MemoryReadStore, "split", stay)


@noticed_by("test_a_slice_that_has_stopped_is_no_reason_to_wait")
def what_has_stopped_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    def waiting(slices: Sequence[Generation], into: int | None) -> list[Generation]:
        found = split([replace(each, stopped="") for each in slices], into)
        return [replace(each, stopped=was.stopped) for each, was in zip(found, slices, strict=False)] or found

    patch.setattr(memory, "split", waiting)


@noticed_by("test_a_switch_minds_every_slice")
def a_switch_minds_the_first_slice(patch: pytest.MonkeyPatch) -> None:
    def reaches(chosen: Sequence[Generation], live: Sequence[Generation]) -> bool:
        return not live or chosen[0].checkpoint.position >= live[0].checkpoint.position

    patch.setattr(memory, "reaches", reaches)


@noticed_by("test_a_split_wakes_who_waits_for_a_change")
def a_split_is_silent(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.split

    async def silent(self: Any, name: str, number: int, slices: int | None = None) -> bool:
        self._changes, changes = ChangeCount("memory:"), self._changes
        try:
            return await real(self, name, number, slices)
        finally:
            self._changes = changes

    patch.setattr(MemoryReadStore, "split", silent)


@noticed_by("test_a_split_that_changes_nothing_wakes_nobody")
def a_split_always_wakes(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.split

    async def wake(self: Any, name: str, number: int, slices: int | None = None) -> bool:
        done = await real(self, name, number, slices)
        self._changes.note()
        return done

    patch.setattr(MemoryReadStore, "split", wake)
