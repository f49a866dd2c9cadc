"""The projector: keeps the rows of every read model in step with the history.

    event store ──▶ read and decode once ──▶ each projection: plan → load rows → fold ──▶ one write: rows + checkpoint

Projections at the same checkpoint go together. A batch grows with the backlog and shrinks to one event when live.
A projection may be split by row key into slices, each followed on its own; here as many as this process holds. Only
what this process has on lease is folded; and each write is fenced by the checkpoint and epoch it was folded from,
so two projectors of one generation, whichever way that came about, waste work, not rows.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

from diptych.clock import pause
from diptych.errors import HistoryDiverged, Unavailable
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import START, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.batch import (
    DecodedEvent,
    FoldedBatch,
    Planned,
    Reached,
    discarded,
    fold_steps,
    keys_to_load,
    plan_steps,
    slice_write,
)
from diptych.read_side.decoding import decoded
from diptych.read_side.generations import Generations
from diptych.read_side.inline import Inline
from diptych.read_side.leases import Leases
from diptych.read_side.projection import Projection, Step, told
from diptych.read_side.read_store import (
    BlockedKey,
    Failed,
    Fenced,
    Generation,
    Key,
    LeaseKey,
    ReadStore,
    Row,
    RowsAsked,
    SliceWrite,
    Written,
)
from diptych.read_side.rebuild_policy import RebuildPolicy, Throttle
from diptych.read_side.slice import LOOK_AGAIN_S, POISON, Slice, apart, furthest_behind

__all__ = ["Projector"]

BATCH_EVENTS_MAX = 1_000
"""Events folded in one write."""
BATCH_EVENTS_MIN = 16
"""Events that a batch may always have, however slow the folds are."""
BATCH_TARGET_S = 0.25
"""Seconds that folding and writing a batch should take: the batch shrinks when it takes longer."""
BATCH_LOOP_TARGET_S = 0.05
"""Of these, seconds in which the event loop may be at work, so that nobody else waits for long; likewise."""
IDLE_WAIT_S = 5.0
"""Seconds after which an idle projector looks again without having been woken."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.05, 5.0
"""Seconds between tries while a store is unavailable: doubled each time, up to the second."""
LOOK_FOR_OVERDUE_S = 60.0
"""Seconds between looks for builds that were kept, and whose time is over."""

_log = logging.getLogger("diptych.projector")


class _Share(NamedTuple):
    """What a batch does to one slice.

    Attributes:
        keys: of the rows that its steps start from.
    """

    slice: Slice
    planned: Planned
    steps: Sequence[Step]
    keys: Sequence[Key]


class Projector:
    """Follows the history with those projections of an application that its process has on lease."""

    def __init__(
        self,
        store: EventLog,
        history: History,
        read_store: ReadStore,
        projections: Sequence[Projection],
        policy: RebuildPolicy | None = None,
    ) -> None:
        self.lock = asyncio.Lock()
        """Held for every batch: who changes slices by hand takes it, and no batch is under way."""
        self.slices: list[Slice] = []
        self.failure = ""
        """Why nothing is folded at all; empty while all is well."""
        self.inline: Inline | None = None
        """Moves some projections on with each append; what it leaves is folded here."""
        self.generations = Generations(store, read_store)
        """Finds what is folded into, and makes it."""
        self.is_running = False
        """Whether it follows the history."""
        self._store = store
        self._history = history
        self._read_store = read_store
        self._projections = projections
        self._policy = policy or RebuildPolicy()
        self._throttle = Throttle(self._policy.events_per_s)
        self._look_for_overdue_at = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._forks = 0
        self._batch_max = BATCH_EVENTS_MAX

    # ── life ─────────────────────────────────────────────────────────────────

    async def open(self, *, making: bool = True) -> None:
        """Find the generation of every projection; where there is none, make it if `making` or nothing happened yet.

        Raises:
            HistoryDiverged: a read model was built from another history than the event store's.
        """
        self._forks = self._store.forks
        head = await self._store.head()
        known = await self._read_store.generations()
        for projection in self._projections:
            found = await self.generations.of_code(projection, known, head, making=making)
            for slice in found:
                await self.generations.check(slice)
            if making and (found[0].slices_next or found[0].slices) != projection.partitions:
                found = await self.generations.split(found, projection.partitions)
            target = START if found[0].live else head.position
            mine = [Slice(projection, slice, target) for slice in found]
            self.slices += mine
            await self.reloaded(projection.name)
            if making and found[0].under_way and all(slice.position >= target for slice in mine):
                await self.switch(mine)  # whoever has it on lease may have nothing more to write

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of this code, by the projection's name."""
        return {each.name: self.generations.fingerprint(each) for each in self._projections}

    def wanted(self) -> list[LeaseKey]:
        """What to ask leases for: all but what cannot go on here, which another process with other code may."""
        return [] if self.failure else [slice.lease_key for slice in self.slices if slice.goes_on]

    async def start(self, leases: Leases) -> None:
        """Follow the history from now on, in a task of its own, with what is held at any time.

        What an earlier process stopped at is tried again: its code may be mended, and answers wait for that.
        """
        async with self.lock:
            for slice in await self._held(leases):
                await self._retry_stopped(slice)
        if self.slices:
            self._task = asyncio.get_running_loop().create_task(self._follow(leases), name="diptych projector")
            self.is_running = True

    async def close(self) -> None:
        """Finish the batch under way and stop."""
        if self._task is not None:
            try:
                async with self.lock:
                    self._task.cancel()
            finally:
                self._task.cancel()  # also where the caller is cancelled meanwhile
            await asyncio.wait([self._task])
            self._task = None

    async def _verify(self) -> None:
        """Where the history turned out to be another one, let go on what that one holds, and stop the others."""
        forks = self._store.forks
        if forks == self._forks:
            return
        for name in {slice.projection.name for slice in self.slices}:
            for slice in await self.reloaded(name):
                await self._stop_if_diverged(slice)
        self._forks = forks

    async def _stop_if_diverged(self, slice: Slice) -> None:
        forks = self._store.forks
        try:
            await self.generations.check(slice.generation)
        except HistoryDiverged as error:
            if forks != self._store.forks:
                raise  # what it was looked up in turned out to be another one meanwhile: it is looked up again
            self._stop(slice, str(error))

    async def loaded(self, slice: Slice) -> None:
        """Read a slice's stored state anew: its generation, blocked keys and discards.

        Where it was split anew meanwhile, those that it was split into take its place in `slices`.
        """
        name, mine = slice.projection.name, slice.generation
        async with self._read_store.snapshot() as snapshot:
            found = await snapshot.slices(name, mine.number)
            if not found or found[0].kept_until is not None:  # rebuilt by another process
                live = await snapshot.slices(name)
                if slice in self.slices and live and live[0].fingerprint == mine.fingerprint:
                    found = live  # the new one is followed, if it is of the same fold
            if (
                not found
                and mine.number
                and slice.goes_on
                and slice in self.slices
                and await self.generations.are_lost(name)
            ):
                found, slice.target = await self.generations.create(slice.projection, live=False), await self.head()
            blocked = await snapshot.blocked(name, found[0].number if found else mine.number)
        discards = discarded(await self._read_store.discards(name))
        if found and len(found) == mine.slices:
            following = [slice]
            slice.generation = found[mine.slice]
        elif slice in self.slices and found:
            following = [Slice(slice.projection, each, slice.target) for each in found]
            self.follow_instead(following)
        else:
            following = [slice]
            if mine.number and slice.goes_on:
                self._stop(slice, "its generation was replaced by another process; open the application again")
        for each in following:
            each.blocked = {blocking.key: blocking for blocking in blocked if each.owns_text(blocking.key)}
            each.discards = discards

    async def head(self) -> Position:
        """How far the history is."""
        return (await self._store.head()).position

    def follow_instead(self, following: Sequence[Slice]) -> None:
        """Follow these slices of a projection, and retire those that were followed."""
        were = self.slices_of(following[0].projection.name)
        place = self.slices.index(were[0])
        self.slices = [each for each in self.slices if each not in were]
        self.slices[place:place] = following
        for each in were:
            each.retired = True

    def slices_of(self, name: str) -> list[Slice]:
        """The slices of a projection, in order; empty where there is no such projection."""
        return [slice for slice in self.slices if slice.projection.name == name]

    async def reloaded(self, name: str) -> list[Slice]:
        """The slices of a projection, each with its stored state read anew."""
        for slice in self.slices_of(name):
            if slice in self.slices:
                await self.loaded(slice)
        return self.slices_of(name)

    # ── following ────────────────────────────────────────────────────────────

    async def _follow(self, leases: Leases) -> None:
        backoff, stale = BACKOFF_FIRST_S, False
        try:
            while True:
                version = leases.version
                try:
                    async with self.lock:
                        await self._verify()
                        held = await self._held(leases, anew=stale)
                        await self._note_appended(held)
                        stale = False
                        with leases.using(slice.lease_key for slice in held):
                            if not await self._advanced(held):
                                await self._switch_late(held)
                            await self._split_late(held)
                            await self._drop_overdue()
                    backoff = BACKOFF_FIRST_S
                    await pause()  # first those who waited for these rows
                    await leases.wait(version, partial(self._idle, held))
                    await pause()  # first the receipts of those who have appended
                except HistoryDiverged:
                    if self._forks == self._store.forks:
                        raise  # else all of it is verified before anything else is done
                except Unavailable as error:
                    _log.warning("projections wait %.2f s: %s", backoff, error)
                    await pause(backoff)
                    stale = True
                    backoff = min(backoff * 2, BACKOFF_MAX_S)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = told(error)  # whatever it is, health and status tell of it
            _log.exception("projections have stopped; queries go on with what is there. Restart the application")
            if not isinstance(error, Exception):
                raise

    async def _held(self, leases: Leases, *, anew: bool = False) -> list[Slice]:
        """The slices to work on now, each as it was left by whoever held it before; with `anew`, in any case."""
        for slice in list(self.slices):
            if not slice.goes_on:
                continue
            epoch = leases.epoch(slice.lease_key)
            overtaken = epoch is not None and epoch > slice.generation.epoch
            if overtaken or slice.lease_key in leases.gone or (anew and epoch is not None):
                await self.loaded(slice)  # where it is gone, its successor is wanted
            if overtaken:
                await self._stop_if_diverged(slice)  # whoever had it may have seen a fork that was none here
                await self._retry_stopped(slice)
        given_up = {slice.lease_key for slice in self.slices if slice.stopped}
        if not leases.asked.issuperset(self.wanted()) or not leases.asked.isdisjoint(given_up):
            leases.ask()
        return [slice for slice in self.slices if slice.goes_on and leases.epoch(slice.lease_key) is not None]

    async def _note_appended(self, held: Sequence[Slice]) -> None:
        """Go on where appends have left inline projections: nothing is folded twice."""
        names = frozenset[str]() if self.inline is None else self.inline.names
        inline = [slice for slice in held if slice.projection.name in names]
        if not inline:
            return
        changed: list[Slice] = []
        async with self._read_store.snapshot() as snapshot:
            for slice in inline:
                mine = slice.generation
                found = await snapshot.slices(mine.name, mine.number)
                if len(found) != 1 or found[0].epoch != mine.epoch:
                    changed.append(slice)
                elif found[0] != mine:
                    slice.generation = found[0]
                    slice.blocked = {each.key: each for each in await snapshot.blocked(mine.name, mine.number)}
        for slice in changed:
            await self.loaded(slice)

    def leaving_alone(self, name: str) -> AbstractContextManager[None]:
        """While somebody works on a read model by hand, the appends of this process leave it as it is."""
        return nullcontext() if self.inline is None else self.inline.leaving_alone(name)

    async def _retry_stopped(self, slice: Slice) -> None:
        found = slice.generation
        if found.stopped:
            (result,) = await self._read_store.write([SliceWrite(found, found.checkpoint)])
            if isinstance(result, Written):
                slice.generation = result.generation

    async def _advanced(self, held: Sequence[Slice]) -> bool:
        """Fold one batch of what is followed, and one of what is being built, where its rate allows.

        Each in its turn, for a build is far behind: what answers would wait for it, and so would whoever asks.
        """
        following, building = apart(held)
        folded = await self.advance(following)
        if building and not self._throttle.due_in_s:
            before = furthest_behind(building)
            if await self.advance(building):
                self._throttle.note(furthest_behind(building) - before)
                folded = True
        return folded

    async def _drop_overdue(self) -> None:
        """Now and then, drop what was kept after a switch for as long as it was to be."""
        now = time.monotonic()
        if now >= self._look_for_overdue_at:
            self._look_for_overdue_at = now + LOOK_FOR_OVERDUE_S
            await self._read_store.drop_overdue()

    async def _idle(self, held: Sequence[Slice]) -> None:
        """Wait for an event past the slowest projection, if it is not there already; or until a build may go on."""
        if not all(slice.goes_on for slice in held):
            return  # its lease is given up first
        following, building = apart(held)
        throttled_s = self._throttle.due_in_s if building else 0.0
        considered = following if throttled_s else held
        following_at = [slice.position for slice in considered if not slice.at_barrier]
        limit = min(IDLE_WAIT_S if len(following_at) == len(considered) else LOOK_AGAIN_S, throttled_s or IDLE_WAIT_S)
        if following_at:
            await self._store.wait_for_events(min(following_at), limit)
        else:
            await pause(limit)

    async def advance(self, slices: Sequence[Slice], until: Position | None = None) -> bool:
        """Fold one batch: of the slices furthest behind, those at the same place together.

        False where they are at the head, at `until`, or at their barriers. The caller holds the lock.
        """
        active = [slice for slice in slices if slice.goes_on and not slice.at_barrier]
        if not active:
            return False
        position = furthest_behind(active)
        group = [slice for slice in active if slice.position == position]
        ends = [slice.position for slice in active if slice.position > position]
        ends += [slice.generation.barrier for slice in group if slice.generation.barrier is not None]
        until = min(ends, default=until)
        started, worked = time.monotonic(), time.thread_time()
        found = await self._store.read(self._events_of(group), position, self._batch_max, until=until)
        if found.through == position:
            return False
        events = self.decoded(found.events, group)
        await self._fold(group, events, await self._end(group, events, found.through))
        self._fit_batch(len(events), time.monotonic() - started, time.thread_time() - worked)
        return True

    def _events_of(self, group: Sequence[Slice]) -> EventQuery:
        return EventQuery((QueryItem(frozenset[str]().union(*(slice.projection.types for slice in group))),))

    def _fit_batch(self, events: int, took_s: float, loop_s: float) -> None:
        """A store that is slow to begin with is given more at once; what keeps the loop from others is not."""
        too_long = max(took_s / BATCH_TARGET_S, loop_s / BATCH_LOOP_TARGET_S)
        if too_long > 1:
            self._batch_max = max(BATCH_EVENTS_MIN, int(events / too_long))
        elif events == self._batch_max:
            self._batch_max = min(BATCH_EVENTS_MAX, self._batch_max * 2)

    async def _end(self, group: Sequence[Slice], events: Sequence[DecodedEvent], position: Position) -> Reached:
        """Where a batch ends: at its last event, or at a later one that concerns nobody."""
        if events and events[-1].position == position:
            return self._reached(events[-1])
        if any(slice.projection.form.expiry is not None for slice in group):
            last = await self._store.read(ALL_EVENTS, Position(position - 1), 1, until=position)
            self._check_forks()
            (there,) = last.events
            return Reached(Place(self._store.history_id, position, there.event_id), there.recorded_at)
        place = await self._store.place_at(position)
        self._check_forks()
        assert place is not None, "the store said that this position was read"
        return Reached(place)

    def _check_forks(self) -> None:
        """Make sure that what was read for a batch is all of the history that was verified."""
        if self._forks != self._store.forks:
            raise HistoryDiverged("what was just read", "the history turned out to be another one meanwhile")

    def _reached(self, decoded: DecodedEvent) -> Reached:
        place = Place(self._store.history_id, decoded.position, decoded.event_id)
        return Reached(place, None if decoded.context is None else decoded.context.recorded_at)

    def decoded(self, events: Sequence[RecordedEvent], group: Sequence[Slice]) -> list[DecodedEvent]:
        """Recorded events with their classes, and with their contexts where a slice of the group asks."""
        return decoded(self._history, events, in_context=any(slice.projection.takes_context for slice in group))

    # ── folding ──────────────────────────────────────────────────────────────

    async def _fold(self, group: Sequence[Slice], events: Sequence[DecodedEvent], end: Reached) -> None:
        """Fold a batch into every slice of the group with one write; a slice that fails goes on by itself."""
        failed: list[tuple[Slice, str]] = []
        writes: list[tuple[Slice, SliceWrite]] = []
        for share, rows in await self._loaded(await self._shares(group, events, failed), failed):
            if writes or failed:
                await pause()  # between the folds of two slices, queries and commands go on
            try:
                writes.append((share.slice, await self._write_of(share, rows, end)))
            except POISON as error:
                failed.append((share.slice, told(error)))
        results = await self._read_store.write([write for _, write in writes])
        for (slice, write), result in zip(writes, results, strict=True):
            match result:
                case Written(generation=generation):
                    await self._written(slice, write, generation)
                case Fenced():
                    await self.loaded(slice)
                case Failed(reason=reason):
                    failed.append((slice, reason))
        for slice, reason in failed:
            await self._bisect(slice, events, end, reason)

    async def _shares(
        self, group: Sequence[Slice], events: Sequence[DecodedEvent], failed: list[tuple[Slice, str]]
    ) -> list[_Share]:
        """What a batch does to each slice; those of which it cannot be told are among those that failed."""
        shares: list[_Share] = []
        plans: dict[str, Planned] = {}
        for slice in group:
            try:
                planned = plans.get(slice.projection.name)
                if planned is None:
                    if plans:
                        await pause()  # as between the folds
                    planned = plans[slice.projection.name] = plan_steps(slice.projection, events)
                steps = slice.owned(planned.steps)
                shares.append(_Share(slice, planned, steps, keys_to_load(steps, slice.blocked)))
            except POISON as error:
                failed.append((slice, told(error)))
        return shares

    async def _loaded(
        self, shares: Sequence[_Share], failed: list[tuple[Slice, str]]
    ) -> list[tuple[_Share, Mapping[Key, Row]]]:
        """Each share with the rows that it starts from. The write is fenced: they need not be of one moment."""
        asked = [RowsAsked(share.slice.generation, share.keys) for share in shares if share.keys]
        try:
            found = iter(await self._read_store.load(asked) if asked else ())
        except POISON as error:
            if len(shares) > 1:
                return [one for share in shares for one in await self._loaded([share], failed)]
            failed.append((shares[0].slice, told(error)))
            return []
        loaded: list[tuple[_Share, Mapping[Key, Row]]] = []
        for share in shares:
            rows = next(found) if share.keys else {}
            try:
                loaded.append((share, rows | await share.slice.matching(self._read_store, share.steps)))
            except POISON as error:
                failed.append((share.slice, told(error)))
        return loaded

    async def _write_of(self, share: _Share, loaded: Mapping[Key, Row], end: Reached) -> SliceWrite:
        slice, planned = share.slice, share.planned
        generation = slice.generation
        if planned.stopped:
            start = Reached(generation.checkpoint, generation.recorded_at)
            end = start if planned.last is None else self._reached(planned.last)
        owns = None if generation.slices == 1 else slice.owns
        folded = fold_steps(slice.projection, share.steps, loaded, slice.blocked, slice.discards, owns)
        stopped = planned.stopped or slice.too_many_blocked(folded.block)
        expired: Collection[Key] = ()
        if slice.may_expire:
            async with self._read_store.snapshot() as snapshot:
                expired = await slice.expired(snapshot, end, folded.block)
        return slice_write(slice.projection, generation, folded, loaded.keys(), end, stopped, expired)

    async def _written(self, slice: Slice, write: SliceWrite, generation: Generation) -> None:
        slice.generation = generation
        for blocked in write.block:
            slice.blocked[blocked.key] = blocked
            self._tell("%s blocks %s at position %d: %s", blocked.name, blocked.key, blocked.position, blocked.error)
        if write.stopped:
            self._stop(slice, write.stopped)
        if generation.under_way and slice.position >= slice.target and slice.is_due():
            await self.switch([slice])

    async def switch(self, slices: Sequence[Slice]) -> bool:
        """Let the generation of these slices answer the queries, if all of it has caught up."""
        first = slices[0].generation
        switched = await self._read_store.switch(first.name, first.number, keep_s=self._policy.keep_s)
        if switched:
            for slice in slices:
                await self.loaded(slice)
        return switched

    async def _switch_late(self, slices: Sequence[Slice]) -> None:
        """Switch to what has caught up: whoever wrote its last batch may have died, or failed, before it switched."""
        for slice in slices:
            if slice.goes_on and slice.generation.under_way and slice.position >= slice.target:
                await self.switch([slice])

    async def _split_late(self, slices: Sequence[Slice]) -> None:
        """Split anew what is to be, if all its slices have come to the barrier, wherever they are held."""
        waiting = {slice.projection.name: slice for slice in slices if slice.at_barrier and slice.goes_on}
        for name, slice in waiting.items():
            if slice.is_due() and await self._read_store.split(name, slice.generation.number):
                await self.reloaded(name)

    def _tell(self, text: str, *arguments: object) -> None:
        """Tell operators of what is blocked, or has stopped."""
        _log.error(text, *arguments)

    def _stop(self, slice: Slice, reason: str) -> None:
        slice.stopped = reason
        self._tell("projection %s stops after position %d: %s", slice.projection.name, slice.position, reason)

    async def _bisect(self, slice: Slice, events: Sequence[DecodedEvent], end: Reached, reason: str) -> None:
        """Find the event that cannot be folded or written, and let the others through."""
        if len(events) > 1:
            middle = len(events) // 2
            first, rest = events[:middle], events[middle:]
            await self._fold([slice], first, self._reached(first[-1]))
            if slice.goes_on and slice.position == first[-1].position:  # elsewhere, if it was overtaken meanwhile
                await self._fold([slice], rest, end)
            return
        keys = await slice.blockable(self._read_store, events)
        name, position = slice.projection.name, events[0].position
        block = [BlockedKey(name, key, position, reason) for key in keys if key not in slice.blocked]
        if not keys:
            end = Reached(slice.generation.checkpoint, slice.generation.recorded_at)
        stopped = slice.too_many_blocked(block) if keys else reason
        write = slice_write(slice.projection, slice.generation, FoldedBatch({}, block), (), end, stopped)
        (result,) = await self._read_store.write([write])
        if isinstance(result, Written):
            await self._written(slice, write, result.generation)
        elif isinstance(result, Failed):
            self._stop(slice, result.reason)
        else:
            await self.loaded(slice)
