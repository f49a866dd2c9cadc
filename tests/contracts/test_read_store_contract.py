"""The contract suite of read stores, proven: each store that is broken on purpose fails the test that is to notice."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import tempfile
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import msgspec
import pytest

from diptych.adapters.memory import read_store as memory
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.errors import StoreUnavailable
from diptych.read_side import row_filters, snapshot_turns
from diptych.read_side.read_store import Comparison, Failed, Generation, SliceWrite
from diptych.read_side.snapshot_turns import SnapshotTurns
from diptych.testing.contracts import read_store as contract
from diptych.testing.contracts import read_store_leases, read_store_slices
from diptych.testing.contracts.read_store import ReadStoreContract
from diptych.testing.contracts.read_store_cases import SEATS, place
from tests.contracts.lease_breakages import LEASE_BREAKAGES
from tests.contracts.slice_breakages import SLICE_BREAKAGES

if TYPE_CHECKING:
    from diptych.read_side.read_store import ReadStore

_Snapshot = memory._Snapshot
Patch = Callable[[pytest.MonkeyPatch], None]
BREAKAGES: list[Any] = []


class MemoryContract(ReadStoreContract):
    def connect(self, folder: Path) -> ReadStore:
        return memory.connect("memory:")


def noticed_by(*tests: str) -> Callable[[Patch], Patch]:
    """Register a way to break the memory store, with the tests that must fail for it."""

    def register(patch: Patch) -> Patch:
        BREAKAGES.append(pytest.param(patch, tests, id=patch.__name__))
        return patch

    return register


def run(test: str) -> str:
    """Run one test of the contract; its failure as text, empty where it passes."""

    async def alone(folder: Path) -> None:
        suite = MemoryContract()
        store = suite.connect(folder)
        await store.open()
        function = getattr(suite, test)
        given = {"store": store, "tmp_path": folder}
        try:
            await function(**{name: given[name] for name in inspect.signature(function).parameters})
        finally:
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(alone(Path(folder)))
        except pytest.skip.Exception:
            return ""
        except (Exception, pytest.fail.Exception) as failure:  # noqa: BLE001 - any is a failure of the test
            return f"{type(failure).__name__}: {failure}"
    return ""


TESTS = [name for name in dir(ReadStoreContract) if name.startswith("test_")]


def test_a_sound_store_passes() -> None:
    """Unbroken, the memory store passes every test the way they are run here."""
    assert len(TESTS) > 40
    assert {test: failure for test in TESTS if (failure := run(test))} == {}


# ── writes ───────────────────────────────────────────────────────────────────


@noticed_by("test_rows_and_checkpoint_change_together")
def checkpoint_without_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryReadStore, "_change_rows", lambda *_: None)


@noticed_by("test_rows_and_checkpoint_change_together")
def rows_without_checkpoint(patch: pytest.MonkeyPatch) -> None:
    real = memory._Build.with_slice

    def with_slice(self: Any, changed: Generation, holder: str | None) -> Any:
        return real(self, msgspec.structs.replace(changed, checkpoint=self.slices[changed.slice].checkpoint), holder)

    patch.setattr(memory._Build, "with_slice", with_slice)


@noticed_by("test_a_stale_checkpoint_is_fenced", "test_a_change_by_hand_fences_those_who_do_not_know_of_it")
def fence_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "_fence", lambda _: 0)


@noticed_by("test_a_stale_checkpoint_is_fenced")
def only_the_position_is_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "_fence", lambda generation: (generation.checkpoint.position, generation.epoch))


@noticed_by("test_a_stale_checkpoint_is_fenced")
def only_writers_behind_are_fenced(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write

    def write(self: Any, wanted: SliceWrite) -> Any:
        stored = self._builds[wanted.generation.name, wanted.generation.number].generation
        ahead = wanted.generation.checkpoint.position > stored.checkpoint.position
        return real(self, msgspec.structs.replace(wanted, generation=stored) if ahead else wanted)

    patch.setattr(MemoryReadStore, "_write", write)


@noticed_by("test_a_change_by_hand_fences_those_who_do_not_know_of_it")
def epoch_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "_fence", lambda generation: generation.checkpoint)


@noticed_by("test_a_stale_checkpoint_is_fenced")
def fenced_writes_discard_all_the_same(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write

    def write(self: Any, wanted: SliceWrite) -> Any:
        self._discards.update({(found.name, found.position, found.key): found for found in wanted.discard})
        return real(self, wanted)

    patch.setattr(MemoryReadStore, "_write", write)


@noticed_by("test_a_failed_slice_does_not_hurt_its_sibling")
def one_failure_fails_all(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.write

    async def write(self: Any, writes: Sequence[SliceWrite]) -> Any:
        broken = any(n >= 2**63 for wanted in writes for row in wanted.upserts for n in row if isinstance(n, int))
        return [Failed("all")] * len(writes) if broken else await real(self, writes)

    patch.setattr(MemoryReadStore, "write", write)


@noticed_by("test_refused_values_fail_their_write_with_a_reason", "test_a_failed_slice_does_not_hurt_its_sibling")
def a_failed_write_is_half_done(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write

    def write(self: Any, wanted: SliceWrite) -> Any:
        result = real(self, wanted)
        build = self._builds[wanted.generation.name, wanted.generation.number]
        if isinstance(result, Failed):
            build.rows[wanted.upserts[0][:1]] = wanted.upserts[0]
        return result

    patch.setattr(MemoryReadStore, "_write", write)


@noticed_by("test_refused_values_fail_their_write_with_a_reason", "test_other_refusals_have_a_reason_too")
def nothing_is_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "row_refusal", lambda *_: None)


@noticed_by("test_upserts_replace_and_deletes_remove", "test_keys_of_several_columns")
def deletes_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._change_rows
    patch.setattr(
        MemoryReadStore,
        "_change_rows",
        lambda self, build, table, write: real(self, build, table, msgspec.structs.replace(write, deletes=())),
    )


# ── values and order ─────────────────────────────────────────────────────────


@noticed_by("test_every_kind_reads_back_equal", "test_decimals_keep_their_exponent_and_datetimes_come_in_utc")
def decimals_are_floats(patch: pytest.MonkeyPatch) -> None:
    change_values(patch, Decimal, lambda value: Decimal(float(value)))


@noticed_by("test_decimals_keep_their_exponent_and_datetimes_come_in_utc")
def decimals_are_normalised(patch: pytest.MonkeyPatch) -> None:
    change_values(patch, Decimal, lambda value: value.normalize())


@noticed_by("test_every_kind_reads_back_equal")
def datetimes_lose_microseconds(patch: pytest.MonkeyPatch) -> None:
    change_values(patch, dt.datetime, lambda value: value.replace(microsecond=0))


def change_values(patch: pytest.MonkeyPatch, kind: type, change: Callable[[Any], Any]) -> None:
    real = row_filters.as_read
    patch.setattr(
        memory,
        "as_read",
        lambda table, row: tuple(change(v) if isinstance(v, kind) else v for v in real(table, row)),
    )


@noticed_by("test_every_kind_orders_as_python_does", "test_equal_decimals_tie_whatever_their_exponent")
def decimals_order_by_text(patch: pytest.MonkeyPatch) -> None:
    rank_by(patch, lambda value: str(value) if isinstance(value, Decimal) else value)


@noticed_by("test_every_kind_orders_as_python_does")
def text_orders_without_case(patch: pytest.MonkeyPatch) -> None:
    rank_by(patch, lambda value: value.casefold() if isinstance(value, str) else value)


@noticed_by("test_every_kind_orders_as_python_does")
def text_orders_by_utf_16(patch: pytest.MonkeyPatch) -> None:
    rank_by(patch, lambda value: value.encode("utf-16-be") if isinstance(value, str) else value)


def rank_by(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    patch.setattr(row_filters, "rank", lambda value: (value is not None, change(value)))


@noticed_by("test_every_kind_orders_as_python_does")
def none_comes_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(row_filters, "rank", lambda value: (value is None, value))


# ── filters and pages ────────────────────────────────────────────────────────


@noticed_by("test_pages_cover_everything_once")
def pages_skip_ties(patch: pytest.MonkeyPatch) -> None:
    real = row_filters.comes_after
    patch.setattr(row_filters, "comes_after", lambda row, places, after: real(row, places[:1], after[:1]))


@noticed_by("test_pages_cover_everything_once")
def pages_repeat_their_last_row(patch: pytest.MonkeyPatch) -> None:
    real = row_filters.comes_after
    patch.setattr(
        row_filters,
        "comes_after",
        lambda row, places, after: real(row, places, after) or all(row[p] == v for (p, _), v in zip(places, after)),  # noqa: B905
    )


@noticed_by("test_pages_cover_everything_once")
def pages_ignore_directions(patch: pytest.MonkeyPatch) -> None:
    real = row_filters.comes_after
    patch.setattr(
        row_filters, "comes_after", lambda row, places, after: real(row, [(place, False) for place, _ in places], after)
    )


@noticed_by("test_pages_cover_everything_once")
def pages_lose_none(patch: pytest.MonkeyPatch) -> None:
    real = row_filters.comes_after

    def comes_after(row: Any, places: Any, after: Any) -> bool:
        return real(row, places, after) and None not in (*row, *after)

    patch.setattr(row_filters, "comes_after", comes_after)


@noticed_by("test_none_in_filters")
def none_equals_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(row_filters, "_MATCHES_NONE", frozenset())


@noticed_by("test_one_of_every_kind")
def one_of_nothing_matches_all(patch: pytest.MonkeyPatch) -> None:
    change_comparison(patch, Comparison.ONE_OF, lambda value, values: not values or value in values)
    patch.setattr(memory, "_VALUES", {})


@noticed_by("test_values_are_found_as_rows_change")
def values_are_found_as_rows_were_first(patch: pytest.MonkeyPatch) -> None:
    real = memory._note_indexed

    def once(index: Any, place: int, rows: Any) -> None:
        if not index._values:
            real(index, place, rows)

    patch.setattr(memory, "_note_indexed", once)


@noticed_by("test_values_are_found_as_rows_change")
def values_are_found_as_rows_are_now(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot._indexed_keys

    def indexed_keys(self: Any, *asked: Any) -> Any:
        patch.setattr(self, "_undo", {})
        return real(self, *asked)

    patch.setattr(_Snapshot, "_indexed_keys", indexed_keys)


@noticed_by("test_a_read_shows_its_moment_though_rows_change_while_it_runs")
def reads_see_what_is_written_while_they_run(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot._indexed_keys

    def indexed_keys(self: Any, *asked: Any) -> Any:
        patch.setattr(self, "keep", lambda *_: None)
        return real(self, *asked)

    patch.setattr(_Snapshot, "_indexed_keys", indexed_keys)


@noticed_by("test_a_read_whose_caller_is_gone_is_stopped")
def reads_cannot_be_stopped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "TURN_ROWS", 1_000_000)


@noticed_by("test_a_read_whose_caller_is_gone_is_stopped")
def a_read_that_was_stopped_keeps_its_turn(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.find

    async def find(self: Any, *asked: Any, **named: Any) -> Any:
        try:
            return await real(self, *asked, **named)
        except asyncio.CancelledError:
            patch.setattr(SnapshotTurns, "give_back", lambda _: None)
            raise

    patch.setattr(_Snapshot, "find", find)
    patch.setattr(snapshot_turns, "SNAPSHOT_WAIT_S_MAX", 0)


@noticed_by("test_starts_with_minds_case_and_the_last_code_points")
def prefixes_ignore_case(patch: pytest.MonkeyPatch) -> None:
    change_comparison(patch, Comparison.STARTS_WITH, lambda value, start: value.lower().startswith(start.lower()))


@noticed_by("test_starts_with_minds_case_and_the_last_code_points")
def prefixes_are_patterns(patch: pytest.MonkeyPatch) -> None:
    change_comparison(
        patch, Comparison.STARTS_WITH, lambda value, start: value.startswith(start.replace("_", "").replace("%", ""))
    )


@noticed_by("test_each_comparison_is_pythons")
def more_than_is_at_least(patch: pytest.MonkeyPatch) -> None:
    change_comparison(patch, Comparison.MORE_THAN, lambda value, bound: value >= bound)


def change_comparison(patch: pytest.MonkeyPatch, comparison: Comparison, matches: Callable[[Any, Any], bool]) -> None:
    patch.setattr(row_filters, "_COMPARE", {**row_filters._COMPARE, comparison: matches})


@noticed_by("test_every_filter_has_to_match")
def any_filter_matches(patch: pytest.MonkeyPatch) -> None:
    real = row_filters.matcher

    def matcher(filters: Any, table: Any) -> Any:
        each = [real([wanted], table) for wanted in filters]
        return lambda row: not each or any(matches(row) for matches in each)

    patch.setattr(memory, "matcher", matcher)


@noticed_by("test_a_filter_value_that_no_row_can_have_is_an_invalid_message")
def any_filter_value_goes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(row_filters, "value_refusal", lambda *_: None)


# ── snapshots and keys ───────────────────────────────────────────────────────


@noticed_by("test_a_snapshot_shows_one_moment", "test_snapshots_are_consistent_while_writes_go_on")
def snapshots_show_new_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Snapshot, "keep", lambda *_: None)


@noticed_by("test_a_snapshot_shows_one_moment")
def snapshots_keep_only_the_last_change(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Any, rows: Any, build: Any) -> None:
        self._undo[build] = {**self._undo.get(build, {}), **rows}

    patch.setattr(_Snapshot, "keep", keep)


@noticed_by("test_a_snapshot_shows_one_moment", "test_snapshots_are_consistent_while_writes_go_on")
def snapshots_show_new_checkpoints(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "dict", lambda builds: builds, raising=False)


@noticed_by("test_a_snapshot_is_asked_for_several_things_at_once")
def snapshots_refuse_while_they_read(patch: pytest.MonkeyPatch) -> None:
    real, busy = _Snapshot.find, set[int]()

    async def find(self: Any, *given: Any) -> Any:
        if id(self) in busy:
            raise StoreUnavailable("busy with another read")
        busy.add(id(self))
        await anyio.lowlevel.checkpoint()
        busy.remove(id(self))
        return await real(self, *given)

    patch.setattr(_Snapshot, "find", find)


@noticed_by("test_what_a_snapshot_was_asked_and_nobody_waits_for_hurts_nobody")
def snapshots_see_what_was_left_behind(patch: pytest.MonkeyPatch) -> None:
    real, left_behind = _Snapshot.find, asyncio.Event()

    async def search(self: Any, *_: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        left_behind.set()
        return []

    async def find(self: Any, *given: Any) -> Any:
        return [] if left_behind.is_set() else await real(self, *given)

    patch.setattr(_Snapshot, "search", search)
    patch.setattr(_Snapshot, "find", find)


@noticed_by("test_thousands_of_keys_at_once")
def a_thousand_keys_at_most(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.get_many

    async def get_many(self: Any, name: str, keys: Any, number: int | None = None) -> Any:
        return await real(self, name, keys[:999], number)

    patch.setattr(_Snapshot, "get_many", get_many)


@noticed_by("test_keys_of_several_columns")
def keys_in_the_order_of_the_columns(patch: pytest.MonkeyPatch) -> None:
    def key_getter(table: Any) -> Any:
        places = [place for place, column in enumerate(table.columns) if column.name in table.key]
        return lambda row: tuple(row[place] for place in places)

    patch.setattr(memory, "key_getter", key_getter)


@noticed_by("test_generations_have_rows_of_their_own")
def numbers_are_ignored(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot._build
    patch.setattr(_Snapshot, "_build", lambda self, name, _: real(self, name, None))


# ── generations, blocked keys, discards ──────────────────────────────────────


@noticed_by("test_racing_to_create_makes_one")
def every_racer_creates(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.create_generation

    async def create(self: Any, name: str, fingerprint: str, *rest: Any, live: bool) -> list[Generation]:
        made = await real(self, name, f"{fingerprint} {len(self._builds)}", *rest, live=live)
        return [msgspec.structs.replace(each, fingerprint=fingerprint) for each in made]

    patch.setattr(MemoryReadStore, "create_generation", create)


@noticed_by("test_numbers_are_never_reused")
def numbers_are_reused(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.drop_generation

    async def drop(self: Any, name: str, number: int) -> None:
        await real(self, name, number)
        self._last_numbers[name] = max((n for of, n in self._builds if of == name), default=0)

    patch.setattr(MemoryReadStore, "drop_generation", drop)


@noticed_by("test_a_switch_is_refused_while_behind")
def a_switch_goes_back(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.switch

    async def switch(self: Any, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        for build in self._builds_of(name):
            self._builds[name, build.generation.number] = build.with_slice(
                msgspec.structs.replace(build.generation, checkpoint=place(0)), None
            )
        return await real(self, name, number, keep_s=keep_s)

    patch.setattr(MemoryReadStore, "switch", switch)


@noticed_by("test_a_switch_shows_the_new_one_and_drops_the_others")
def a_switch_keeps_the_others(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.switch

    async def switch(self: Any, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        others = {build.generation.number: build for build in self._builds_of(name)}
        done = await real(self, name, number, keep_s=keep_s)
        for other, build in others.items() if done else ():
            if other != number:
                self._builds[name, other] = build
                self._set_slices([msgspec.structs.replace(slice, live=False) for slice in build.slices])
        return done

    patch.setattr(MemoryReadStore, "switch", switch)


@noticed_by("test_a_switch_keeps_the_replaced_one_for_a_time", "test_a_kept_one_is_gone_back_to")
def a_switch_keeps_nothing(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.switch

    async def switch(self: Any, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        del keep_s
        return await real(self, name, number)

    patch.setattr(MemoryReadStore, "switch", switch)


@noticed_by("test_a_switch_keeps_the_replaced_one_for_a_time")
def what_is_kept_is_not_fenced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        memory, "kept", lambda slices, until: [msgspec.structs.replace(s, live=False, kept_until=until) for s in slices]
    )


@noticed_by("test_a_kept_one_is_searched_by_its_number")
def search_finds_what_answers_alone(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.search

    async def search(
        self: Any, name: str, text: str, limit: int, filters: Sequence[Any] = (), number: int | None = None
    ) -> Any:
        del number
        return await real(self, name, text, limit, filters)

    patch.setattr(_Snapshot, "search", search)


@noticed_by("test_a_kept_one_is_taken_up_by_its_code")
def what_is_taken_up_is_kept_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "taken_up", lambda slices: slices)


@noticed_by("test_a_kept_one_is_dropped_when_its_time_is_over")
def what_is_overdue_stays(patch: pytest.MonkeyPatch) -> None:
    async def drop_overdue(self: Any) -> None:
        del self

    patch.setattr(MemoryReadStore, "drop_overdue", drop_overdue)


@noticed_by("test_discards_outlive_generations")
def discards_go_with_their_generation(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.drop_generation

    async def drop(self: Any, name: str, number: int) -> None:
        await real(self, name, number)
        self._discards = {place: found for place, found in self._discards.items() if place[0] != name}

    patch.setattr(MemoryReadStore, "drop_generation", drop)


@noticed_by("test_a_discard_says_who_decided_it_first")
def the_last_decision_counts(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write

    def write(self: Any, wanted: SliceWrite) -> Any:
        for found in wanted.discard:
            self._discards.pop((found.name, found.position, found.key), None)
        return real(self, wanted)

    patch.setattr(MemoryReadStore, "_write", write)


@noticed_by("test_retries_are_kept_for_good")
def retries_go_with_their_generation(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore.drop_generation

    async def drop(self: Any, name: str, number: int) -> None:
        await real(self, name, number)
        self._retries.clear()

    patch.setattr(MemoryReadStore, "drop_generation", drop)


@noticed_by("test_a_stale_checkpoint_is_fenced")
def fenced_writes_note_retries_all_the_same(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write

    def write(self: Any, wanted: SliceWrite) -> Any:
        self._retries += wanted.retried
        return real(self, wanted)

    patch.setattr(MemoryReadStore, "_write", write)


@noticed_by("test_a_blocked_key_has_its_attempts_and_its_stack_trace")
def the_trace_of_any_generation(patch: pytest.MonkeyPatch) -> None:
    async def trace(self: Any, name: str, number: int, key: str) -> str:
        del number
        found = [build.blocked[key].trace for build in self._builds.values() if key in build.blocked]
        return next(iter(found), "")

    patch.setattr(MemoryReadStore, "trace", trace)


@noticed_by("test_keys_are_blocked_and_unblocked")
def unblocking_does_nothing(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write
    patch.setattr(MemoryReadStore, "_write", lambda self, write: real(self, msgspec.structs.replace(write, unblock=())))


@noticed_by("test_blocked_keys_belong_to_their_generation")
def blocked_keys_of_the_live_generation_only(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.blocked

    async def blocked(self: Any, name: str, number: int | None = None) -> Any:
        return await real(self, name)

    patch.setattr(_Snapshot, "blocked", blocked)


# ── expiry ───────────────────────────────────────────────────────────────────


@noticed_by("test_expired_rows_are_found_by_time", "test_keys_of_every_kind_expire")
def rows_expire_after_their_time(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.expired

    async def expired(self: Any, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> Any:
        return await real(self, name, moment - dt.timedelta(microseconds=1), limit, number)

    patch.setattr(_Snapshot, "expired", expired)


@noticed_by("test_expired_rows_are_found_by_time")
def what_was_found_is_not_found_again(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.expired

    async def expired(self: Any, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> Any:
        found = await real(self, name, moment, limit, number)
        expiries = self._build(name, number)[0].expiries
        expiries[:] = [entry for entry in expiries if entry[1] not in found]
        return found

    patch.setattr(_Snapshot, "expired", expired)


@noticed_by("test_what_expires_follows_the_rows")
def the_first_expiry_stays(patch: pytest.MonkeyPatch) -> None:
    real = memory._note_expiries

    def note(build: Any, table: Any, written: Sequence[Any]) -> None:
        known = {key for _, key in build.expiries}
        real(build, table, [(key, row) for key, row in written if key not in known])

    patch.setattr(memory, "_note_expiries", note)


@noticed_by("test_a_snapshot_shows_what_had_expired")
def snapshots_show_what_expires_now(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.expired

    async def expired(self: Any, *arguments: Any) -> Any:
        undo, self._undo = self._undo, {}
        try:
            return await real(self, *arguments)
        finally:
            self._undo = undo

    patch.setattr(_Snapshot, "expired", expired)


@noticed_by("test_where_nothing_expires_nothing_has")
def everything_expires(patch: pytest.MonkeyPatch) -> None:
    async def expired(self: Any, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> Any:
        return list(self._build(name, number)[0].rows)[:limit]

    patch.setattr(_Snapshot, "expired", expired)


@noticed_by("test_generations_expire_on_their_own")
def only_the_live_generation_expires(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.expired

    async def expired(self: Any, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> Any:
        return await real(self, name, moment, limit)

    patch.setattr(_Snapshot, "expired", expired)


@noticed_by("test_expired_rows_are_shown_unless_they_are_filtered")
def never_is_expired(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(row_filters, "_MATCHES_NONE", row_filters._MATCHES_NONE - {Comparison.MORE_THAN_OR_NONE})


@noticed_by("test_expired_rows_are_shown_unless_they_are_filtered")
def search_ignores_filters(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.search

    async def search(self: Any, name: str, text: str, limit: int, filters: Sequence[Any] = ()) -> Any:
        return await real(self, name, text, limit)

    patch.setattr(_Snapshot, "search", search)


@noticed_by("test_the_time_of_the_checkpoint_is_kept")
def the_time_of_the_checkpoint_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._write
    patch.setattr(
        MemoryReadStore, "_write", lambda self, write: real(self, msgspec.structs.replace(write, recorded_at=None))
    )


# ── search, waiting, closing ─────────────────────────────────────────────────


@noticed_by("test_search_finds_beginnings_of_words")
def search_minds_accents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "words_of", lambda text: [word for word in text.casefold().split() if word.isalnum()])


@noticed_by("test_search_text_is_never_a_query_language")
def search_splits_at_spaces_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "words_of", lambda text: text.casefold().split())


@noticed_by("test_search_has_the_best_first_and_ties_by_key")
def search_comes_by_key(patch: pytest.MonkeyPatch) -> None:
    real = _Snapshot.search

    async def search(self: Any, name: str, text: str, limit: int, filters: Sequence[Any] = ()) -> Any:
        return sorted(await real(self, name, text, 1_000, filters))[:limit]

    patch.setattr(_Snapshot, "search", search)


@noticed_by("test_search_keeps_step_with_the_rows")
def search_finds_what_was_first(patch: pytest.MonkeyPatch) -> None:
    real = MemoryReadStore._change_rows

    def change(self: Any, build: Any, table: Any, write: SliceWrite) -> None:
        new = [row for row in write.upserts if row[:1] not in build.rows or row[1]]
        real(self, build, table, msgspec.structs.replace(write, upserts=new))

    patch.setattr(MemoryReadStore, "_change_rows", change)


@noticed_by("test_a_write_wakes_who_waits_for_a_change", "test_a_closed_store_says_so")
def nobody_is_woken(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Any, seen: int, timeout_s: float) -> int:
        self._check_open()
        if timeout_s:
            await asyncio.Event().wait()
        return int(self._changes.count)

    patch.setattr(MemoryReadStore, "wait_for_change", wait)


@noticed_by("test_what_was_written_since_changes_was_read_is_waited_for_no_more")
def changes_are_counted_before_they_are_made(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryReadStore, "changes", property(lambda self: self._check_open() or self._changes.count + 1))


@noticed_by("test_without_a_write_the_wait_ends_unchanged")
def everyone_is_woken_for_nothing(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Any, seen: int, timeout_s: float) -> int:
        self._check_open()
        return seen + 1

    patch.setattr(MemoryReadStore, "wait_for_change", wait)


@noticed_by("test_a_closed_store_says_so", "test_a_store_that_was_not_opened_says_so")
def closed_is_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryReadStore, "_check_open", lambda _: None)


@noticed_by("test_what_a_durable_store_keeps_survives_reopening")
def durable_in_name_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryReadStore, "durable", True)


@noticed_by(
    "test_rows_to_fold_from_are_loaded_for_many_at_once",
    "test_rows_are_found_by_key_whatever_their_columns_are_called",
)
def all_are_given_what_the_last_one_loads(patch: pytest.MonkeyPatch) -> None:
    load = MemoryReadStore.load

    async def load_one(self: Any, asked: Any) -> Any:
        return (await load(self, asked))[-1:] * len(asked)

    patch.setattr(MemoryReadStore, "load", load_one)


@noticed_by("test_without_a_generation_there_are_no_answers")
def no_generation_reads_as_no_rows(patch: pytest.MonkeyPatch) -> None:
    empty = memory._Build((Generation("", 1, "", SEATS, live=True, checkpoint=place(0)),), {}, [], {})
    patch.setattr(_Snapshot, "_build", lambda *_: (empty, SEATS))


@pytest.mark.parametrize(("breakage", "tests"), BREAKAGES + LEASE_BREAKAGES + SLICE_BREAKAGES)
def test_a_broken_store_is_noticed(breakage: Patch, tests: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests named for this breakage fail with it, each by itself."""
    monkeypatch.setattr(contract, "WAIT_S_MAX", 0.2)
    monkeypatch.setattr(read_store_leases, "WAIT_S_MAX", 0.2)
    monkeypatch.setattr(read_store_slices, "WAIT_S_MAX", 0.2)
    breakage(monkeypatch)
    assert tests
    assert [test for test in tests if not run(test)] == []


def test_every_test_is_proven() -> None:
    """Each test of the contract is known to fail for some breakage, but for those listed here, which add examples."""
    proven = {test for parameter in BREAKAGES + LEASE_BREAKAGES + SLICE_BREAKAGES for test in parameter.values[1]}
    assert set(TESTS) - proven == {
        "test_a_generation_is_listed_as_it_was_made",
        "test_a_generation_that_is_gone_is_fenced",
        "test_a_slice_that_is_not_there_is_fenced",
        "test_an_older_fingerprint_is_found_again",
        "test_keys_of_every_kind",
        "test_keys_that_no_row_can_have",
        "test_pages_keep_the_filters",
    }
