"""Ways to break the leases of the memory store, each with the tests of the contract that are to notice."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
import pytest

from diptych.adapters.memory import read_store as memory
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.read_side.change_count import ChangeCount
from diptych.read_side.lease_shares import Deal, deal
from diptych.read_side.read_store import Leased, LeaseKey

Patch = Callable[[pytest.MonkeyPatch], None]
LEASE_BREAKAGES: list[Any] = []


def noticed_by(*tests: str) -> Callable[[Patch], Patch]:
    """Register a way to break the leases, with the tests that must fail for it."""

    def register(patch: Patch) -> Patch:
        LEASE_BREAKAGES.append(pytest.param(patch, tests, id=patch.__name__))
        return patch

    return register


def dealt_otherwise(patch: pytest.MonkeyPatch, change: Callable[[Deal, set[LeaseKey]], Deal]) -> None:
    """Change what is dealt, knowing what is there and wanted."""

    def deal_otherwise(worker: str, wants: Any, last_holders: Any) -> Deal:
        there = set(wants[worker]) & last_holders.keys()
        return change(deal(worker, wants, last_holders), there)

    patch.setattr(memory, "deal", deal_otherwise)


@noticed_by("test_one_holds_what_another_does_not", "test_workers_get_fair_shares")
def a_lease_is_given_to_everybody(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.lease

    async def lease(self: Any, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        leased = await real(self, worker, wanted, ttl_s)
        return msgspec.structs.replace(leased, epochs={**dict.fromkeys(set(wanted) - leased.gone, 0), **leased.epochs})

    patch.setattr(MemoryReadStore, "lease", lease)


@noticed_by("test_workers_get_fair_shares", "test_the_share_of_one_that_is_gone_goes_to_the_others")
def the_surplus_is_not_told(patch: pytest.MonkeyPatch) -> None:
    dealt_otherwise(patch, lambda dealt, there: dealt._replace(surplus=frozenset()))


@noticed_by("test_workers_get_fair_shares")
def shares_are_taken_by_force(patch: pytest.MonkeyPatch) -> None:
    def without_holders(worker: str, wants: Any, last_holders: Any) -> Deal:
        dealt = deal(worker, wants, dict.fromkeys(last_holders))
        return dealt._replace(taken=dealt.taken - dealt.kept)

    patch.setattr(memory, "deal", without_holders)


@noticed_by("test_what_is_free_is_leased_to_who_asks")
def everything_is_taken(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.lease

    async def lease(self: Any, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        return await real(self, worker, self._last_holders(), ttl_s)

    patch.setattr(MemoryReadStore, "lease", lease)


def fence_when(patch: pytest.MonkeyPatch, judge: Callable[[str | None, bool], bool]) -> None:
    real = MemoryReadStore._change_holder

    def change(self: Any, key: LeaseKey, worker: str | None, *, overtaken: bool) -> None:
        real(self, key, worker, overtaken=judge(worker, overtaken))

    patch.setattr(MemoryReadStore, "_change_holder", change)


@noticed_by("test_what_has_run_out_is_taken_over")
def a_takeover_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    fence_when(patch, lambda worker, overtaken: worker is None)


@noticed_by(
    "test_a_release_gives_up_everything_at_once",
    "test_part_can_be_released",
    "test_what_is_not_wanted_any_more_is_given_up",
)
def a_release_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    fence_when(patch, lambda worker, overtaken: overtaken and worker is not None)


@noticed_by("test_what_is_free_is_leased_to_who_asks")
def every_lease_fences(patch: pytest.MonkeyPatch) -> None:
    fence_when(patch, lambda worker, overtaken: True)


@noticed_by("test_a_renewal_changes_nothing", "test_what_has_run_out_unnoticed_is_renewed")
def every_renewal_fences(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.lease

    async def lease(self: Any, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        mine = [key for key, holder in self._last_holders().items() if holder == worker]
        for key in mine:
            self._change_holder(key, worker, overtaken=True)
        return await real(self, worker, wanted, ttl_s)

    patch.setattr(MemoryReadStore, "lease", lease)


@noticed_by("test_a_release_gives_up_everything_at_once", "test_a_release_wakes_who_waits_for_a_change")
def a_release_is_ignored(patch: pytest.MonkeyPatch) -> None:
    async def release(self: Any, worker: str, keys: Any = None) -> None:
        self._check_open()

    patch.setattr(MemoryReadStore, "release", release)


@noticed_by("test_part_can_be_released")
def a_release_gives_up_all(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.release

    async def release(self: Any, worker: str, keys: Any = None) -> None:
        await real(self, worker)

    patch.setattr(MemoryReadStore, "release", release)


@noticed_by("test_a_release_wakes_who_waits_for_a_change")
def a_release_wakes_nobody(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._give_up

    def give_up(self: Any, keys: Any) -> None:
        self._changes, changes = ChangeCount("memory:"), self._changes
        real(self, keys)
        self._changes = changes

    patch.setattr(MemoryReadStore, "_give_up", give_up)


@noticed_by("test_what_has_run_out_is_taken_over", "test_the_share_of_one_that_is_gone_goes_to_the_others")
def nothing_runs_out(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.lease

    async def lease(self: Any, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        return await real(self, worker, wanted, ttl_s + 1e9)

    patch.setattr(MemoryReadStore, "lease", lease)


@noticed_by("test_what_is_not_wanted_any_more_is_given_up")
def what_is_held_stays_held(patch: pytest.MonkeyPatch) -> None:
    dealt_otherwise(patch, lambda dealt, there: dealt._replace(given_up=frozenset()))


@noticed_by("test_what_is_gone_is_told")
def nothing_is_gone(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.lease

    async def lease(self: Any, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        return msgspec.structs.replace(await real(self, worker, wanted, ttl_s), gone=frozenset())

    patch.setattr(MemoryReadStore, "lease", lease)


@noticed_by("test_a_change_by_hand_is_told_with_the_lease")
def the_first_epoch_is_told(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.lease

    async def lease(self: Any, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        leased = await real(self, worker, wanted, ttl_s)
        return msgspec.structs.replace(leased, epochs=dict.fromkeys(leased.epochs, 0))

    patch.setattr(MemoryReadStore, "lease", lease)
