"""Inline read models: folded in the transaction that appends, so that they never lag behind the history.

An inline projection is one like any other, with the same tables, generations, checkpoint, fold and fences; only who
moves it on differs. Each append does, where it finds its checkpoint at the head or near it. Whatever it cannot deal
with (another code's generation, one that is split or far behind, an event that cannot be read, a row that cannot be
stored) it leaves as it is: the projector catches up as ever, and the appends go on from there. So nothing that is
wrong with a read model keeps a command from being executed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.history import History
from diptych.event_store.position import Place
from diptych.read_side.batch import (
    DecodedEvent,
    Reached,
    discarded,
    fold_steps,
    keys_to_load,
    plan_steps,
    slice_write,
)
from diptych.read_side.decoding import decoded
from diptych.read_side.inline_rows import Appending, InlineRows
from diptych.read_side.projection import Projection, told
from diptych.read_side.read_store import BlockedKey, Generation, LeaseKey, RowsAsked, SliceWrite, Written
from diptych.read_side.slice import POISON, Slice

__all__ = ["Inline"]

CATCH_UP_EVENTS_MAX = 1_000
"""Events that an inline read model may lack before an append, which then folds them as well; of more, the projector
brings it nearer first."""

_log = logging.getLogger("diptych.inline")


class _Known(NamedTuple):
    """A slice as it was left here, with what is kept beside it: it is so for as long as nobody else has written it."""

    generation: Generation
    blocked: Mapping[str, BlockedKey]
    discards: set[tuple[str, int]]


class Inline:
    """Folds inline projections with each append of one event store.

    Attributes:
        names: of the projections.
    """

    def __init__(self, history: History, projections: Mapping[Projection, str]) -> None:
        """Remember the folds, each with the fingerprint of the generations that are its own."""
        self._history = history
        self._projections = {(each.name, fingerprint): each for each, fingerprint in projections.items()}
        self.names = frozenset(projection.name for projection in projections)
        self._left_alone = Counter[str]()
        self._known: dict[LeaseKey, _Known] = {}
        self._failure = ""

    @contextmanager
    def leaving_alone(self, name: str) -> Generator[None]:
        """While somebody changes a read model by hand: appends of this process do not come in between."""
        self._left_alone[name] += 1
        try:
            yield
        finally:
            self._left_alone[name] -= 1

    async def fold(self, rows: InlineRows, appending: Appending) -> None:
        """Fold what is appended. See `InlineFold`."""
        names = [name for name in self.names if not self._left_alone[name]]
        known = await rows.generations(names) if names else ()
        answering = {(found.name, found.fingerprint) for found in known if found.live}
        slices = [
            await self._slice(rows, found)
            for found in known
            if found.kept_until is None or (found.name, found.fingerprint) not in answering
            if await self._is_near(rows, found, appending.before)
        ]
        if slices:
            events = await self._events(rows, slices, appending)
            end = Reached(appending.head, appending.events[-1].recorded_at)
            writes = [await self._write_of(rows, slice, events, end) for slice in slices]
            await self._write(rows, slices, [write for write in writes if write is not None])
        self._failure = ""

    def failed(self, error: Exception) -> None:
        """Tell operators, once, why nothing was folded. See `InlineFold`."""
        self._known.clear()  # what was to be written was not
        reason = told(error)
        if reason != self._failure:
            self._failure = reason
            _log.error("inline read models are left to the projector: %s", reason)

    # ── which ────────────────────────────────────────────────────────────────

    async def _is_near(self, rows: InlineRows, found: Generation, before: Place) -> bool:
        """Whether it is of this code, can go on, and lacks few events of this history."""
        at = found.checkpoint
        if (found.name, found.fingerprint) not in self._projections or found.stopped:
            return False
        if found.slices != 1 or found.barrier is not None or found.table is None:
            return False
        if at == before:
            return True
        if at.history_id != before.history_id or not 0 < before.position - at.position <= CATCH_UP_EVENTS_MAX:
            return False
        return at.position == 0 or await rows.event_id(at.position) == at.event_id

    async def _slice(self, rows: InlineRows, found: Generation) -> Slice:
        slice = Slice(self._projections[(found.name, found.fingerprint)], found)
        known = self._known.get(found.lease_key)
        if known is None or known.generation != found:
            blocked = {each.key: each for each in await rows.blocked(found)}
            known = _Known(found, blocked, discarded(await rows.discards(found.name)))
        slice.blocked.update(known.blocked)
        slice.discards = known.discards
        return slice

    # ── folding ──────────────────────────────────────────────────────────────

    async def _events(self, rows: InlineRows, slices: Collection[Slice], appending: Appending) -> list[DecodedEvent]:
        """What any of them lacks, up to the head after the append, decoded once for all."""
        types = frozenset[str]().union(*(slice.projection.types for slice in slices))
        after, before = min(slice.position for slice in slices), appending.before.position
        earlier = await rows.events(EventQuery((QueryItem(types),)), after, before) if after < before else ()
        lacking = [*earlier, *(event for event in appending.events if event.type in types)]
        return decoded(self._history, lacking, in_context=any(slice.projection.takes_context for slice in slices))

    async def _write_of(
        self, rows: InlineRows, slice: Slice, events: Sequence[DecodedEvent], end: Reached
    ) -> SliceWrite | None:
        """What it comes to; None where that is for the projector to find out."""
        projection, generation = slice.projection, slice.generation
        try:
            planned = plan_steps(projection, [event for event in events if event.position > slice.position])
            if planned.stopped:
                return None
            keys = keys_to_load(planned.steps, slice.blocked)
            loaded = await rows.load(RowsAsked(generation, keys)) if keys else {}
            folded = fold_steps(projection, planned.steps, loaded, slice.blocked, slice.discards)
            if slice.too_many_blocked(folded.block):
                return None
            expired = await slice.expired(rows, end, folded.block)
            return slice_write(projection, generation, folded, loaded.keys(), end, expired=expired)
        except POISON:
            return None

    async def _write(self, rows: InlineRows, slices: Sequence[Slice], writes: Sequence[SliceWrite]) -> None:
        by_key = {slice.lease_key: slice for slice in slices}
        self._known = {key: known for key, known in self._known.items() if key in by_key}
        for write, result in zip(writes, await rows.write(writes) if writes else (), strict=True):
            if isinstance(result, Written):
                slice = by_key[write.generation.lease_key]
                blocked = {**slice.blocked, **{each.key: each for each in write.block}}
                self._known[slice.lease_key] = _Known(result.generation, blocked, slice.discards)
                for each in write.block:
                    _log.error("%s blocks %s at position %d: %s", each.name, each.key, each.position, each.error)
