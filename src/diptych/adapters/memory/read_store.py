"""The read store in memory, written to be read: the smallest code that keeps the port's contract.

Rows are in one dict per generation, changed in place. What a snapshot needs of the past is kept by the snapshot: a
write first hands each open snapshot the rows as they were (its undo), so that a write costs what it changes, however
large the table, and nothing is kept once the snapshot is over. Copying a dict per write would be shorter but linear
in the table; persistent trees would not depend on the number of open snapshots, which is small and limited.

What expires is in a heap beside the rows, by time. An entry is not removed when its row changes: it is dropped when it
comes up, and all are when they outnumber the rows.

A generation knows who holds the lease of each slice, or held it last; a worker is known until its time is over.

An index of an `indexed` column is made when the first `find` asks for values of it, and kept from then on.

Reads by key, by values of indexed columns and of what has expired, and writes, cost the same whatever the size; other
`find`s, `count` and `search` look at every row, some at a time: between those, others have their turn.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import itertools
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, StoreClosed, StoreUnavailable
from diptych.read_side.change_count import ChangeCount
from diptych.read_side.key_index import KeyIndex
from diptych.read_side.lease_shares import deal
from diptych.read_side.partitions import found_again, kept, reaches, split, taken_up, whole
from diptych.read_side.read_store import (
    SQL_ROWS_MAX,
    BlockedKey,
    ColumnKind,
    Comparison,
    Discard,
    Failed,
    Fenced,
    Filter,
    Generation,
    Key,
    Leased,
    LeaseKey,
    Order,
    Retry,
    Row,
    RowsAsked,
    SliceWrite,
    Table,
    WriteResult,
    Written,
)
from diptych.read_side.row_filters import as_read, best_first, in_order, key_getter, matcher, words_of
from diptych.read_side.row_refusal import row_refusal
from diptych.read_side.snapshot_turns import SnapshotTurns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from diptych.event_store.position import Place

__all__ = ["MemoryReadStore", "connect"]

TURN_ROWS = 1_000
"""Rows that a read looks at before others have their turn, of whom one may be its caller, who has gone."""
STALE_EXPIRIES_MAX = 1_000
"""Entries of the heap of expiries beyond twice the rows; past it, it is made anew."""

_URL = "memory:"


def connect(url: str) -> MemoryReadStore:
    """A new, empty store for `memory:`.

    Raises:
        ConfigurationError: something follows the colon.
    """
    if url != _URL:
        raise ConfigurationError(f"the URL {url!r} names something in memory, but each such store is new: use memory:")
    return MemoryReadStore()


_VALUES: Mapping[Comparison, Callable[[Any], Sequence[Any]]] = {
    Comparison.EQUAL: lambda value: (value,),
    Comparison.ONE_OF: tuple,
}
"""The values that the column holds in rows that a filter matches, where it tells them."""
_Expiry: TypeAlias = tuple[dt.datetime, Key]
"""When a row expires, or did before it was changed."""


class _Build(msgspec.Struct, frozen=True):
    """A generation with what it holds. Replaced when it changes, but for rows, expiries and indexes: all share them."""

    slices: tuple[Generation, ...]
    rows: dict[Key, Row]
    expiries: list[_Expiry]
    indexes: dict[int, KeyIndex]
    blocked: Mapping[str, BlockedKey] = MappingProxyType({})
    last_holders: tuple[str | None, ...] = (None,)

    @property
    def generation(self) -> Generation:
        """The first slice, which tells what all have in common."""
        return self.slices[0]

    def slice(self, number: int) -> Generation | None:
        """One slice; None where there are not as many."""
        return self.slices[number] if number < len(self.slices) else None

    def with_slice(self, changed: Generation, holder: str | None) -> _Build:
        """This build with one slice changed, and who holds it, or held it last."""
        slices, holders = list(self.slices), list(self.last_holders)
        slices[changed.slice], holders[changed.slice] = changed, holder
        return replace(self, slices=tuple(slices), last_holders=tuple(holders))


class _Worker(NamedTuple):
    """Somebody who asks for leases: for which, and until when it is alive."""

    wanted: frozenset[LeaseKey]
    until: float


class MemoryReadStore:
    """A read store that lasts as long as its object; it may be closed and opened again.

    Args:
        monotonic: the store's clock, in seconds, for leases.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._open = False
        self._monotonic = monotonic
        self._workers: dict[str, _Worker] = {}
        self._builds: dict[tuple[str, int], _Build] = {}
        self._last_numbers: dict[str, int] = {}
        self._discards: dict[tuple[str, int, str], Discard] = {}
        self._retries: list[Retry] = []
        self._snapshots: set[_Snapshot] = set()
        self._turns = SnapshotTurns()
        self._changes = ChangeCount(_URL)

    @property
    def durable(self) -> bool:
        """False: the rows end with the process."""
        return False

    async def open(self) -> None:
        """Begin. See the port."""
        self._turns, self._changes = SnapshotTurns(), ChangeCount(_URL)
        self._open = True

    async def close(self) -> None:
        """Refuse everything from now on; those who wait hear of it."""
        self._open = False
        self._changes.close()

    # ── generations ──────────────────────────────────────────────────────────

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        self._check_open()
        return [slice for _, build in sorted(self._builds.items()) for slice in build.slices]

    async def create_generation(
        self,
        name: str,
        fingerprint: str,
        table: Table | None,
        checkpoint: Place,
        *,
        live: bool,
        anew: bool = False,
        slices: int = 1,
    ) -> list[Generation]:
        """Make a generation, or return the one that a racer made. See the port."""
        self._check_open()
        found = found_again({build.generation.number: build.slices for build in self._builds_of(name)}, fingerprint)
        if found and not anew:
            if found[0].kept_until is not None:
                found = self._set_slices(taken_up(found))
            return list(found)
        current = _live(self._builds, name)
        if live and current is not None:
            self._set_slices([replace(slice, live=False) for slice in current.slices])
        number = self._last_numbers[name] = self._last_numbers.get(name, 0) + 1
        first = Generation(name, number, fingerprint, table, live, checkpoint)
        made = whole(first, slices)
        self._builds[name, number] = _Build(tuple(made), {}, [], {}, last_holders=(None,) * slices)
        self._changes.note()
        return made

    async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        """Let a generation answer, keep the one that did, and drop the others. See the port."""
        self._check_open()
        chosen, current = self._builds.get((name, number)), _live(self._builds, name)
        if chosen is None or chosen.generation.live:
            return chosen is not None
        if current and not reaches(chosen.slices, current.slices):
            return False
        keeping = current is not None and keep_s > 0
        for build in self._builds_of(name):
            if build is not chosen and not (keeping and build is current):
                del self._builds[name, build.generation.number]
        if current is not None and keeping:
            self._set_slices(kept(current.slices, SystemClock().now() + dt.timedelta(seconds=keep_s)))
        self._set_slices([replace(slice, live=True, kept_until=None) for slice in chosen.slices])
        self._changes.note()
        return True

    async def drop_overdue(self) -> None:
        """Remove what was kept until now. See the port."""
        self._check_open()
        now, ends = SystemClock().now(), {at: build.generation.kept_until for at, build in self._builds.items()}
        overdue = [at for at, until in ends.items() if until is not None and until <= now]
        for at in overdue:
            del self._builds[at]
        if overdue:
            self._changes.note()

    async def split(self, name: str, number: int, slices: int | None = None) -> bool:
        """Split a generation into another number of slices, if all are at one place. See the port."""
        self._check_open()
        build = self._builds.get((name, number))
        if build is None:
            return True
        changed = tuple(split(build.slices, slices))
        if changed != build.slices:
            holders = build.last_holders if len(changed) == len(build.slices) else (None,) * len(changed)
            self._builds[name, number] = replace(build, slices=changed, last_holders=holders)
            self._changes.note()
        return changed[0].barrier is None

    async def drop_generation(self, name: str, number: int) -> None:
        """Remove a generation, if it is there."""
        self._check_open()
        self._builds.pop((name, number), None)
        self._changes.note()

    # ── writes ───────────────────────────────────────────────────────────────

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        """Apply each write all or nothing. See the port."""
        self._check_open()
        results = [self._write(write) for write in writes]
        self._changes.note()
        return results

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key."""
        self._check_open()
        return [discard for (of, _, _), discard in sorted(self._discards.items()) if of == name]

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key, the latest first."""
        self._check_open()
        found = (retry for retry in reversed(self._retries) if (retry.name, retry.key) == (name, key))
        return list(itertools.islice(found, limit))

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace of a blocked key."""
        self._check_open()
        build = self._builds.get((name, number))
        blocked = None if build is None else build.blocked.get(key)
        return "" if blocked is None else blocked.trace

    def _write(self, write: SliceWrite) -> WriteResult:
        expected = write.generation
        build = self._builds.get((expected.name, expected.number))
        stored = None if build is None else build.slice(expected.slice)
        if build is None or stored is None or _fence(stored) != _fence(expected):
            return Fenced()
        for row in write.upserts:
            reason = "it has no table" if stored.table is None else row_refusal(stored.table, row)
            if reason is not None:
                return Failed(f"{stored.name}: {reason}")
        if stored.table is not None:
            self._change_rows(build, stored.table, write)
        for discard in write.discard:
            self._discards.setdefault((discard.name, discard.position, discard.key), discard)
        self._retries += write.retried
        changed = replace(
            stored,
            checkpoint=write.checkpoint,
            stopped=write.stopped,
            epoch=stored.epoch + write.by_hand,
            recorded_at=write.recorded_at or stored.recorded_at,
        )
        blocked = {key: found for key, found in build.blocked.items() if key not in write.unblock}
        blocked |= {found.key: found for found in write.block}
        moved = build.with_slice(changed, build.last_holders[changed.slice])
        self._builds[stored.name, stored.number] = replace(moved, blocked=blocked)
        return Written(changed)

    def _change_rows(self, build: _Build, table: Table, write: SliceWrite) -> None:
        key_of = key_getter(table)
        changes: dict[Key, Row | None] = {tuple(key): None for key in write.deletes}
        for given in write.upserts:
            row = as_read(table, given)
            changes[key_of(row)] = row
        rows = build.rows
        for snapshot in self._snapshots:
            snapshot.keep({key: rows.get(key) for key in changes}, (build.generation.name, build.generation.number))
        for key, changed in changes.items():
            rows.pop(key, None)
            if changed is not None:
                rows[key] = changed
        for place, index in build.indexes.items():
            _note_indexed(index, place, changes)
        if table.expires is not None:
            _note_expiries(build, table, [(key, row) for key, row in changes.items() if row is not None])

    def _set_slices(self, slices: Sequence[Generation]) -> Sequence[Generation]:
        place = slices[0].name, slices[0].number
        self._builds[place] = replace(self._builds[place], slices=tuple(slices))
        return slices

    def _builds_of(self, name: str) -> list[_Build]:
        return [build for (of, _), build in self._builds.items() if of == name]

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Ask for the lease of generations, and renew what is held. See the port."""
        self._check_open()
        now = self._monotonic()
        alive = {name: found for name, found in self._workers.items() if found.until > now}
        self._workers = {**alive, worker: _Worker(frozenset(wanted), now + ttl_s)}
        dealt = deal(
            worker,
            {name: found.wanted for name, found in self._workers.items()},
            holders := self._last_holders(),
        )
        self._give_up(dealt.given_up)
        for key in dealt.taken:
            self._change_holder(key, worker, overtaken=holders[key] not in (None, worker))
        epochs = {key: self._builds[key[:2]].slices[key[2]].epoch for key in dealt.kept | dealt.taken}
        return Leased(epochs, dealt.surplus, frozenset(wanted).difference(holders))

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Give up leases at once. See the port."""
        self._check_open()
        if keys is None:
            self._workers.pop(worker, None)
        mine = [key for key, holder in self._last_holders().items() if holder == worker]
        self._give_up([key for key in mine if keys is None or key in keys])

    def _last_holders(self) -> dict[LeaseKey, str | None]:
        return {
            slice.lease_key: holder
            for build in self._builds.values()
            for slice, holder in zip(build.slices, build.last_holders, strict=True)
        }

    def _give_up(self, keys: Collection[LeaseKey]) -> None:
        for key in keys:
            self._change_holder(key, None, overtaken=True)
        if keys:
            self._changes.note()

    def _change_holder(self, key: LeaseKey, worker: str | None, *, overtaken: bool) -> None:
        build = self._builds[key[:2]]
        slice = build.slices[key[2]]
        self._builds[key[:2]] = build.with_slice(replace(slice, epoch=slice.epoch + overtaken), worker)

    # ── reads ────────────────────────────────────────────────────────────────

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from. See the port."""
        async with self.snapshot() as snapshot:
            return [await snapshot.get_many(of.name, keys, of.number) for of, keys in asked]

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[_Snapshot, None]:
        """A view of this moment. See the port."""
        self._check_open()
        await self._turns.take()
        try:
            self._check_open()
            snapshot = _Snapshot(dict(self._builds), takes_turns=True)
            self._snapshots.add(snapshot)
            try:
                yield snapshot
            finally:
                self._snapshots.remove(snapshot)
        finally:
            self._turns.give_back()

    @property
    def is_open(self) -> bool:
        """Whether it takes calls."""
        return self._open

    def view(self) -> _Snapshot:
        """A view of this moment, for those who let nothing else happen while they look."""
        return _Snapshot(dict(self._builds), takes_turns=False)

    @property
    def changes(self) -> int:
        """How many changes there were."""
        self._check_open()
        return self._changes.count

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`. See the port."""
        self._check_open()
        return await self._changes.wait(seen, timeout_s)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosed(f"the read store {_URL} is not open")


class _Snapshot:
    """One moment: the generations as they were, and the rows that have changed since as they were."""

    def __init__(self, builds: dict[tuple[str, int], _Build], *, takes_turns: bool) -> None:
        self._builds = builds
        self._takes_turns = takes_turns
        self._looked_at = 0
        self._undo: dict[tuple[str, int], dict[Key, Row | None]] = {}

    def keep(self, rows: Mapping[Key, Row | None], build: tuple[str, int]) -> None:
        """Note rows that are about to change; what was noted first is what this moment shows."""
        self._undo[build] = {**rows, **self._undo[build]} if build in self._undo else dict(rows)

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one. See the port."""
        del expecting  # rows are at hand
        build = _live(self._builds, name) if number is None else self._builds.get((name, number))
        return () if build is None else build.slices

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept. See the port."""
        builds = (build.slices for (of, _), build in sorted(self._builds.items()) if of == name)
        found = [each for each in builds if each[0].kept_until is not None and each[0].fingerprint == fingerprint]
        return found[-1] if found else ()

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, by position."""
        build = _live(self._builds, name) if number is None else self._builds.get((name, number))
        found = sorted(build.blocked.values(), key=lambda key: (key.position, key.key)) if build else []
        return [replace(blocked, trace="") for blocked in found]

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out."""
        build, _ = self._build(name, number)
        await self._give_turn(len(keys))
        undo = self._undo.get((name, build.generation.number), {})
        found = ((key, undo[key] if key in undo else build.rows.get(key)) for key in map(tuple, keys))
        return {key: row for key, row in found if row is not None}

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in order. See the port."""
        build, table = self._build(name, number)
        matches = matcher(filters, table)
        keys = self._indexed_keys(build, table, filters)
        found = await self._taken_in_turns(build, keys, lambda rows: filter(matches, rows))
        return in_order(found, table, order, after)[:limit]

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches."""
        build, table = self._build(name, number)
        matches = matcher(filters, table)
        return len(await self._taken_in_turns(build, self._keys(build), lambda rows: filter(matches, rows)))

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word. See the port."""
        build, table = self._build(name, number)
        wanted, matches = words_of(text), matcher(filters, table)
        keys = self._keys(build) if wanted else []
        found = await self._taken_in_turns(build, keys, lambda rows: best_first(filter(matches, rows), table, wanted))
        return best_first(found, table, wanted)[:limit]

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, in that order. See the port."""
        build, table = self._build(name, number)
        if table.expires is None:
            return []
        place = _place(table, table.expires)
        undo = self._undo.get((name, build.generation.number), {})
        were = [(row[place], key) for key, row in undo.items() if row is not None and row[place] is not None]
        found = [entry for entry in were if entry[0] <= moment]
        taken = list(_taken(build, place, moment, limit, undo))
        for entry in taken:
            heapq.heappush(build.expiries, entry)
        found += [entry for entry in taken if entry[1] not in undo]
        return [key for _, key in sorted(found)[:limit]]

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = MappingProxyType({}),
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Refused: there is no SQL here."""
        del statement, parameters, columns, moments, limit
        raise ConfigurationError("the read store memory: has no SQL; give the application read_store='sqlite:<path>'")

    def _build(self, name: str, number: int | None) -> tuple[_Build, Table]:
        build = _live(self._builds, name) if number is None else self._builds.get((name, number))
        if build is None or build.generation.table is None:
            which = "live generation" if number is None else f"generation {number}"
            raise StoreUnavailable(f"{name} has no {which} with a table here; is its first build still under way?")
        return build, build.generation.table

    async def _taken_in_turns(
        self, build: _Build, keys: Sequence[Key], take: Callable[[Iterable[Row]], Iterable[Row]]
    ) -> list[Row]:
        """What is taken of the rows of these keys, with a turn for others in between, who may stop it, or write.

        What they change is in the undo by then, so that this shows the moment that it began in.
        """
        place, found = (build.generation.name, build.generation.number), list[Row]()
        for first in range(0, len(keys), TURN_ROWS):
            undo, rows, page = self._undo.get(place, {}), build.rows, keys[first : first + TURN_ROWS]
            each = (undo[key] if key in undo else rows.get(key) for key in page)
            found += take(row for row in each if row is not None)
            await self._give_turn(len(page))
        return found

    async def _give_turn(self, rows: int) -> None:
        """Let others have a turn, after every so many rows that were looked at, by however many reads."""
        self._looked_at += max(rows, 1)
        if self._takes_turns and self._looked_at >= TURN_ROWS:
            self._looked_at = 0
            await asyncio.sleep(0)  # noqa: TID251 - a turn for the others, not a wait

    def _indexed_keys(self, build: _Build, table: Table, filters: Sequence[Filter]) -> Sequence[Key]:
        """The keys of rows among which are all that the filters match: those that an index tells, if one does."""
        for wanted in filters:
            place = _place(table, wanted.column)
            told = _VALUES.get(wanted.comparison)
            if told is None or not (table.columns[place].indexed or wanted.column == table.key[0]):
                continue
            index = build.indexes.get(place)
            if index is None:
                index = build.indexes[place] = KeyIndex()
                _note_indexed(index, place, build.rows)
            undo = self._undo.get((build.generation.name, build.generation.number), {})
            keys = [key for value in dict.fromkeys(told(wanted.value)) for key in index.keys(value) if key not in undo]
            return [*keys, *undo]
        return self._keys(build)

    def _keys(self, build: _Build) -> Sequence[Key]:
        """The keys of all rows, and perhaps some of which there is no row."""
        undo = self._undo.get((build.generation.name, build.generation.number), {})
        return [*build.rows, *(key for key in undo if key not in build.rows)]


def _live(builds: Mapping[tuple[str, int], _Build], name: str) -> _Build | None:
    return next((build for (of, _), build in builds.items() if of == name and build.generation.live), None)


def _fence(generation: Generation) -> tuple[Place, int]:
    return generation.checkpoint, generation.epoch


def _place(table: Table, column: str) -> int:
    return [found.name for found in table.columns].index(column)


def _note_indexed(index: KeyIndex, place: int, rows: Mapping[Key, Row | None]) -> None:
    """Enter rows as they are now; None: there is none any more."""
    for key, row in rows.items():
        if row is None:
            index.remove(key)
        else:
            index.put(key, row[place])


def _note_expiries(build: _Build, table: Table, written: Sequence[tuple[Key, Row]]) -> None:
    """Enter when these rows expire; where most entries are of rows that changed, leave those out."""
    assert table.expires is not None
    place = _place(table, table.expires)
    for key, row in written:
        if row[place] is not None:
            heapq.heappush(build.expiries, (row[place], key))
    if len(build.expiries) > 2 * len(build.rows) + STALE_EXPIRIES_MAX:
        build.expiries[:] = [(row[place], key) for key, row in build.rows.items() if row[place] is not None]
        heapq.heapify(build.expiries)


def _taken(build: _Build, place: int, moment: dt.datetime, limit: int, uncounted: Container[Key]) -> Iterator[_Expiry]:
    """Take entries up to a moment out of the heap, in order; those of rows as they are now are given, each once."""
    last = None
    while limit and build.expiries and build.expiries[0][0] <= moment:
        entry = heapq.heappop(build.expiries)
        row = build.rows.get(entry[1])
        if row is not None and row[place] == entry[0] and entry != last:
            last = entry
            limit -= entry[1] not in uncounted
            yield entry
