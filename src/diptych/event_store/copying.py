"""Moves a history from one store to another as it is, part by part, and compares the two.

The events first, up to the head found, then the outcomes, and what is kept of decision models; again where the source
went on meanwhile. How far a copy is, it says itself: one that was interrupted goes on from its own head.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import msgspec

from diptych.errors import HistoryDiverged
from diptych.event_store.digest import HistoryDigest, Moved, differing_model, differing_state, digest, first_difference
from diptych.event_store.event_store import EventStore, HistoryPart, StoredType
from diptych.event_store.model_unions import unions_to_keep
from diptych.event_store.pages import event_bytes, event_pages, outcome_pages, state_pages
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.tagging import Tagging

__all__ = ["Comparison", "Progress", "compare", "copied_up_to", "copy_history"]

PASSES_MAX = 10
"""How often a copy is brought up to a source that goes on meanwhile."""
BATCH_BYTES_MAX = 16 << 20
"""Bytes of events written in one transaction; one event may have more."""

KEEP_ATTEMPTS_MAX = 10
"""How often models are copied again because an application has kept some in the target meanwhile."""
HORIZON_PAGE_EVENTS = 10_000
"""Events of a pruned type that are gone through in one transaction."""

Progress: TypeAlias = Callable[[str], AbstractContextManager[Moved]]
"""Shows a piece of work, told what it is, while it lasts."""
_log = logging.getLogger("diptych.copy")


class Comparison(msgspec.Struct, frozen=True):
    """What two stores hold up to a position.

    Attributes:
        difference: what differs first, in words; None where the digests are equal, and the target ends there or goes
            on as the source does.
    """

    source: HistoryDigest
    target: HistoryDigest
    difference: str | None


async def copied_up_to(source: EventStore, target: EventStore) -> Place:
    """How far the target is, as a copy of the source; position 0 where it is empty.

    Raises:
        HistoryDiverged: it holds something else; with what.
    """
    head = await target.head()
    if head.history_id != source.history_id:
        if head.position == START and not await target.outcomes("", 1):
            return Place(source.history_id, START, NOWHERE)
        raise _diverged(
            f"it holds the history {head.history_id.hex()} with {head.position:,} events, the source is "
            f"{source.history_id.hex()}. Give an empty store, or the one that an earlier copy of this source began"
        )
    found = await source.place_at(head.position)
    if found is None:
        end = (await source.head()).position
        raise _diverged(
            f"it has come to position {head.position:,}, the source only to {end:,}: commands were run on it. "
            "It is no copy any more but where the history goes on"
        )
    if found != head:
        raise _diverged(
            f"it has another event at position {head.position:,} than the source: commands were run on both, and "
            "neither can follow the other. Decide which one is the history, and begin again with an empty store"
        )
    return head


async def copy_history(source: EventStore, target: EventStore, progress: Progress) -> Place:
    """Bring the target up to the source, or as near as `PASSES_MAX` passes come to one that is being written.

    It may be stopped at any time, and called again: what was copied stays.

    Returns:
        The place up to which the target now holds everything.

    Raises:
        HistoryDiverged: the target holds something else; nothing of that was changed.
    """
    at = await copied_up_to(source, target)
    await source.outcomes("", 1)  # whoever may not read them is told before anything is written
    tagging = await source.tagging()
    _check_tagged(tagging, tagging)
    await target.restore(HistoryPart(at, tagging=tagging.id))
    head, horizons = await source.head(), await source.horizons()
    for _ in range(PASSES_MAX):
        with progress("Copying events") as moved:
            at = await _copy_events(source, target, at, head, tagging, moved)
        with progress("Copying outcomes") as moved:
            await _copy_outcomes(source, target, at, tagging, moved)
        horizons = await source.horizons()  # before the states: what was kept ahead of a horizon is among those
        with progress("Copying states of models") as moved:
            await _copy_states(source, target, at, moved)
        _check_tagged(tagging, await source.tagging())
        found = await source.head()
        if found == head:
            break
        head = found
    await _copy_facts(source, target)
    await _copy_models(source, target)
    await _copy_horizons(horizons, target, at)
    return at


def _check_tagged(before: Tagging, now: Tagging) -> None:
    """Make sure that all that was read is tagged alike."""
    if now.unfinished or now.id != before.id:
        raise HistoryDiverged(
            "the source",
            "its events are being tagged anew (diptych retag), or were while they were copied. Wait until that is "
            "done, and begin again, with an empty store where something was copied",
        )


async def _copy_events(
    source: EventStore, target: EventStore, at: Place, head: Place, tagging: Tagging, moved: Moved
) -> Place:
    begin, types = at.position, _Types(source)
    moved(0, head.position - begin)
    async for page in event_pages(source, at.position, head.position):
        for events in _batches(page):
            part = HistoryPart(at, events, await types.of(events), tagging=tagging.id)
            await target.restore(part)
            at = part.end
            _log.info("copied up to position %s", at.position)
            moved(at.position - begin, head.position - begin)
    return at


def _batches(page: Sequence[RecordedEvent]) -> Iterator[Sequence[RecordedEvent]]:
    """The page in pieces of at most `BATCH_BYTES_MAX`, or of one event."""
    first = size = 0
    for index, event in enumerate(page):
        size += event_bytes(event)
        if size > BATCH_BYTES_MAX and index > first:
            yield page[first:index]
            first, size = index, event_bytes(event)
    yield page[first:]


class _Types:
    """How event types were registered with the source, read again where one is new."""

    def __init__(self, source: EventStore) -> None:
        self._source = source
        self._known: dict[tuple[str, int], StoredType] = {}

    async def of(self, events: Sequence[RecordedEvent]) -> Sequence[StoredType]:
        wanted = {(event.type, event.version) for event in events}
        if not wanted <= self._known.keys():
            self._known = {(type.name, type.version): type for type in await self._source.stored_types()}
        return [self._known[key] for key in sorted(wanted)]


async def _copy_outcomes(source: EventStore, target: EventStore, at: Place, tagging: Tagging, moved: Moved) -> None:
    """All of them: which ones are new, only their command ids would tell."""
    done = 0
    async for page in outcome_pages(source, at.position):
        if page:
            await target.restore(HistoryPart(at, outcomes=page, tagging=tagging.id))
        done += len(page)
        moved(done, None)
    _log.info("copied %s outcomes", done)


async def _copy_states(source: EventStore, target: EventStore, at: Place, moved: Moved) -> None:
    """Those of which the target has come to the place; the others are copied by the next pass."""
    done = 0
    async for page in state_pages(source, at.position):
        if page:
            await target.keep_states(page, at)
        done += len(page)
        moved(done, None)
    _log.info("copied %s states of decision models", done)


async def _copy_facts(source: EventStore, target: EventStore) -> None:
    """Schemas that came to the source after the first events of their types did."""
    ours = {(type.name, type.version): type.facts for type in await source.stored_types()}
    pairs = [(type, ours.get((type.name, type.version))) for type in await target.stored_types()]
    changed = [(type, facts) for type, facts in pairs if facts is not None and facts != type.facts]
    if changed:
        await target.keep_facts([type for type, _ in changed], [facts for _, facts in changed])


async def _copy_models(source: EventStore, target: EventStore) -> None:
    """Which events models fold, joined with what an application may have kept in the target already."""
    models = (await source.stored_models()).models
    for _ in range(KEEP_ATTEMPTS_MAX):
        kept = await target.stored_models()
        new = unions_to_keep(kept, models)
        if not new or await target.keep_models(new, kept.mark):
            return


async def _copy_horizons(horizons: Mapping[str, Position], target: EventStore, at: Place) -> None:
    """The events have come without data; this notes up to where."""
    for type, horizon in horizons.items():
        after, until = START, min(horizon, at.position)
        while after < until:
            after = (await target.prune(type, after, until, HORIZON_PAGE_EVENTS)).through


async def compare(source: EventStore, target: EventStore, at: Place, progress: Progress) -> Comparison:
    """Read everything again, in both stores, up to a place."""
    done = [0, 0]

    def follow(which: int, moved: Moved) -> Moved:
        def follow(read: int, _: int | None) -> None:
            done[which] = read
            moved(min(done), at.position)

        return follow

    with progress("Verifying") as moved:
        ours, theirs = await asyncio.gather(
            digest(source, at.position, follow(0, moved)), digest(target, at.position, follow(1, moved))
        )
    if ours == theirs:
        difference = (
            await _difference_beyond(source, target, at)
            or await differing_state(source, target, at.position)
            or await differing_model(source, target)
        )
    else:
        difference = await first_difference(source, target, at.position) or "one of them changed while it was read"
    return Comparison(ours, theirs, difference)


async def _difference_beyond(source: EventStore, target: EventStore, at: Place) -> str | None:
    """Whether the target goes on, behind what was compared, as the source does not."""
    head = await target.head()
    if head.position <= at.position or await source.place_at(head.position) == head:
        return None
    return f"the target has gone on to position {head.position:,}, where the source is not"


def _diverged(reason: str) -> HistoryDiverged:
    return HistoryDiverged("the target", f"{reason}. Nothing was changed")
