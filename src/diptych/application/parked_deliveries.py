"""Parked deliveries: events that a subscriber keeps failing to take. Nothing behind them is delivered to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from diptych.application.parked_events import behind_event, left_out
from diptych.clock import Clock
from diptych.errors import ConfigurationError, Unavailable
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import Position
from diptych.read_side.read_store import BlockedKey, Discard, ReadStore, SliceWrite, Written
from diptych.read_side.subscriber import BACKOFF_MAX_S, NO_KEY

__all__ = ["ParkedDeliveries"]

DISCARD_ATTEMPTS_MAX = 20
"""How often a discard starts over since the subscriber has failed once more meanwhile."""


class ParkedDeliveries:
    """The subscribers of a log that keep failing, each with the event that it fails at. See `ParkedSource`.

    Args:
        names: of the subscribers.
        read_store: where their progress is kept.
        log: has the events.
        clock: tells the time.
    """

    kinds: Collection[str] = ("delivery",)

    def __init__(self, names: Sequence[str], read_store: ReadStore, log: EventLog, clock: Clock) -> None:
        self._names = sorted(names)
        self._read_store = read_store
        self._log = log
        self._clock = clock

    async def page(self, kinds: Collection[str], after: Cursor, limit: int) -> Sequence[tuple[Cursor, ParkedItem]]:
        """The next ones, by subscriber."""
        del kinds
        found = [each for each in await self._all() if not after or (each.name,) > after]
        return [((each.name,), at_hand(await self._details(each))) for each in found[:limit]]

    async def find(self, which: str) -> Sequence[ParkedDetails]:
        """The subscribers that fail at the event at the position in the id."""
        position = position_in(which)
        return [await self._details(found) for found in await self._all() if found.position == position]

    async def retries(self, item: ParkedDetails, limit: int) -> Sequence[ByHand]:
        """None: it is tried again by itself."""
        del item, limit
        return ()

    async def retry(self, item: ParkedDetails, edited: Mapping[str, Any] | None, by: Decision) -> Dealt:
        """Refused: it is tried again by itself."""
        del edited, by
        raise ConfigurationError(
            f"{item.id} is delivered to {item.name} again and again by itself, at least every {BACKOFF_MAX_S:.0f} s: "
            "mend what fails, and start the application anew where that is its code; or discard it"
        )

    async def discard(self, item: ParkedDetails, by: Decision) -> Dealt:
        """Go on behind the event; whoever delivers looks before it tries again."""
        discard = Discard(item.name, NO_KEY, Position(item.position), by.actor, by.reason, self._clock.now())
        for _ in range(DISCARD_ATTEMPTS_MAX):
            async with self._read_store.snapshot() as snapshot:
                blocked = [each for each in await snapshot.blocked(item.name) if each.position == item.position]
                slices = await snapshot.slices(item.name)
            place = await self._log.place_at(Position(item.position))
            if not blocked or place is None:
                raise ConfigurationError(f"{item.id} is not parked any more")
            write = SliceWrite(slices[0], place, unblock=(NO_KEY,), discard=[discard], by_hand=True)
            (result,) = await self._read_store.write([write])
            if isinstance(result, Written):
                return Dealt(id=item.id)
        raise Unavailable(f"{item.name} was moved on by others {DISCARD_ATTEMPTS_MAX} times meanwhile; try again")

    async def discarded(self, after: Cursor, limit: int) -> Sequence[tuple[Cursor, Discarded]]:
        """What subscribers have left out, by subscriber and position."""
        found: list[tuple[Cursor, Discarded]] = []
        for name in self._names:
            for discard in await self._read_store.discards(name):
                place = (name, f"{discard.position:019}")
                if (not after or place > after) and len(found) < limit:
                    found.append((place, await left_out("delivery", discard, self._log)))
        return found

    async def _all(self) -> list[BlockedKey]:
        async with self._read_store.snapshot() as snapshot:
            return [found for name in self._names for found in await snapshot.blocked(name)]

    async def _details(self, found: BlockedKey) -> ParkedDetails:
        async with self._read_store.snapshot() as snapshot:
            slices = await snapshot.slices(found.name)
        trace = await self._read_store.trace(found.name, slices[0].number, found.key) if slices else ""
        item_id = parked_id("delivery", found.position, found.name)
        return await behind_event("delivery", item_id, found, self._log, trace)
