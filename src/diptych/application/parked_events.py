"""Parked events: those that a projection cannot fold, each with the key that waits behind it (G9)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from diptych.application.parked import (
    ByHand,
    Cursor,
    Dealt,
    Decision,
    Discarded,
    ParkedDetails,
    ParkedItem,
    at_hand,
    parked_id,
    position_in,
)
from diptych.errors import ConfigurationError
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import POSITION_MAX, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.failures import line_of
from diptych.messages.codec import decode
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.read_store import BlockedKey, Discard

__all__ = ["NEVER_EDITED", "ParkedEvents", "behind_event", "event_at", "fields_of", "left_out"]

NEVER_EDITED = (
    "an event is a fact, and never edited: mend the code, or add an upcaster, and retry it; or discard it, and it is "
    "left out"
)
"""What is said to whoever wants to edit an event."""


class ParkedEvents:
    """The blocked keys of the projections that follow a log. See `ParkedSource`.

    Args:
        blocked_keys: finds them, and helps them on; of each read store. A key that is blocked in several is one item,
            and what is done with it is done in all that are at its event.
        log: has the events.
    """

    kinds: Collection[str] = ("event",)

    def __init__(self, blocked_keys: Sequence[BlockedKeys], log: EventLog) -> None:
        self._stores = blocked_keys
        self._log = log

    async def page(self, kinds: Collection[str], after: Cursor, limit: int) -> Sequence[tuple[Cursor, ParkedItem]]:
        """The next ones, by read model, position and key."""
        del kinds
        found = sorted({_place(blocked): blocked for _, blocked in await self._all()}.items(), key=itemgetter(0))
        behind = [(place, blocked) for place, blocked in found if not after or place > after][:limit]
        return [(place, at_hand(await self._details(blocked))) for place, blocked in behind]

    async def find(self, which: str) -> Sequence[ParkedDetails]:
        """Those that wait behind the event at the position in the id."""
        position = position_in(which)
        found = {_place(blocked): (store, blocked) for store, blocked in await self._all()}
        here = [(store, blocked) for store, blocked in found.values() if blocked.position == position]
        return [await self._details(blocked, trace=await store.trace(blocked)) for store, blocked in here]

    async def retries(self, item: ParkedDetails, limit: int) -> Sequence[ByHand]:
        """The latest retries of a key by hand."""
        found = [await store.retries(item.name, item.key, limit) for store in self._stores]
        most = max(found, key=len)  # each is kept in every store where it was retried
        return [ByHand(actor=retry.actor, reason=retry.reason, at=retry.at) for retry in most]

    async def retry(self, item: ParkedDetails, edited: Mapping[str, Any] | None, by: Decision) -> Dealt:
        """Fold what waits behind the event, and the event."""
        if edited is not None:
            raise ConfigurationError(f"{item.id} is an event of {item.name}: {NEVER_EDITED}")
        return await self._done(
            item,
            lambda store: store.retry(item.name, item.key, position=item.position, actor=by.actor, reason=by.reason),
        )

    async def discard(self, item: ParkedDetails, by: Decision) -> Dealt:
        """Leave the event out of the row for good, and fold the others."""
        return await self._done(
            item,
            lambda store: store.discard(item.name, item.key, position=item.position, actor=by.actor, reason=by.reason),
        )

    async def discarded(self, after: Cursor, limit: int) -> Sequence[tuple[Cursor, Discarded]]:
        """What is left out of rows, by read model, position and key."""
        found = {_place(discard): discard for store in self._stores for discard in await store.discards()}
        behind = sorted(
            ((place, each) for place, each in found.items() if not after or place > after), key=itemgetter(0)
        )
        return [(place, await left_out("event", discard, self._log)) for place, discard in behind[:limit]]

    async def _all(self) -> list[tuple[BlockedKeys, BlockedKey]]:
        return [(store, blocked) for store in self._stores for blocked in await store.all()]

    async def _done(self, item: ParkedDetails, deal: Callable[[BlockedKeys], Awaitable[BlockedKey | None]]) -> Dealt:
        """Deal with it in each store where it waits; one of them that it waits in still tells what it waits for."""
        stores = {
            id(store): store
            for store, blocked in await self._all()
            if (blocked.name, blocked.key, blocked.position) == (item.name, item.key, item.position)
        }
        if not stores:
            raise ConfigurationError(f"{item.id} is not parked any more")
        outcomes = [await deal(store) for store in stores.values()]
        return await self._dealt(item, next((still for still in outcomes if still is not None), None))

    async def _dealt(self, item: ParkedDetails, still: BlockedKey | None) -> Dealt:
        return Dealt(id=item.id, still=None if still is None else at_hand(await self._details(still)))

    async def _details(self, blocked: BlockedKey, *, trace: str = "") -> ParkedDetails:
        item_id = parked_id("event", blocked.position, blocked.name, blocked.key)
        return await behind_event("event", item_id, blocked, self._log, trace)


async def behind_event(kind: str, item_id: str, blocked: BlockedKey, log: EventLog, trace: str) -> ParkedDetails:
    """What waits behind an event: a key of a projection, or a subscriber."""
    recorded = await event_at(log, blocked.position)
    return ParkedDetails(
        id=item_id,
        kind=kind,
        type=recorded.type,
        name=blocked.name,
        key=blocked.key,
        error=line_of(blocked.error),
        attempts=blocked.attempts,
        since=recorded.recorded_at,
        position=blocked.position,
        data=fields_of(recorded),
        trace=trace,
    )


async def left_out(kind: str, discard: Discard, log: EventLog) -> Discarded:
    """An event that was left out of a row, or of what a subscriber is told."""
    return Discarded(
        kind=kind,
        type=(await event_at(log, discard.position)).type,
        name=discard.name,
        key=discard.key,
        position=discard.position,
        by=ByHand(actor=discard.actor, reason=discard.reason, at=discard.at),
    )


async def event_at(log: EventLog, position: int) -> RecordedEvent:
    """The event at a position.

    Raises:
        ConfigurationError: there is none, since the history ends before.
    """
    if 1 <= position <= POSITION_MAX:
        found = await log.read(ALL_EVENTS, Position(position - 1), 1, until=Position(position))
        if found.events:
            return found.events[0]
    raise ConfigurationError(f"there is no event at position {position}")


def fields_of(recorded: RecordedEvent) -> dict[str, Any]:
    """What an event says, as JSON reads it; nothing, where its data were pruned since."""
    return decode(recorded.data, dict[str, Any]) if recorded.data else {}


def _place(found: BlockedKey | Discard) -> Cursor:
    """Where something comes in the order of lists."""
    return (found.name, f"{found.position:019}", found.key)
