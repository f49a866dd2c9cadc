"""What this process remembers of the history, so that a hot model is not folded from its first event each time.

Nothing here is trusted: every decision carries conditions, judged at the head. A stale state costs a retry, never a
wrong outcome.

The *tail* is the run of the latest events known here, contiguous up to its end, committed ones and, while a batch is
being decided, pending ones. A cached state that is not older than the tail's start is brought up to date from it. So
commands of one batch decide on each other's pending events, and models follow what other handlers append.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from diptych.event_store.event_query import QueryItem
from diptych.event_store.event_store import Appended
from diptych.event_store.model_unions import OutgrownQuery
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.envelope import Envelope, event_context
from diptych.messages.event import Event
from diptych.write_side.command_handler import ModelKey
from diptych.write_side.decision_model import Folded

__all__ = ["ModelCache", "RecentEvent", "Tail"]

CACHED_MODELS_MAX = 20_000
"""States of decision models kept by one command bus; the least recently used go first."""
TAIL_EVENTS_MAX = 8_192
"""Recent events kept by one command bus; the older half goes when it is full."""
TAIL_BYTES_MAX = 32 << 20
"""Bytes of data of the recent events kept; the older half goes when it is full."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ModelCache:
    """A bounded map from (model, identities) to its state and position, least recently used out first."""

    def __init__(self, limit: int = CACHED_MODELS_MAX) -> None:
        self._limit = limit
        self._states: OrderedDict[ModelKey, Folded] = OrderedDict()

    def get(self, key: ModelKey) -> Folded | None:
        """The state that was put last, if it is still here; it counts as used."""
        found = self._states.get(key)
        if found is not None:
            self._states.move_to_end(key)
        return found

    def peek(self, key: ModelKey) -> Folded | None:
        """The same, for somebody who has just got it."""
        return self._states.get(key)

    def put(self, key: ModelKey, folded: Folded) -> None:
        """Remember a state of committed events; an older one never replaces a newer one."""
        known = self._states.get(key)
        if known is None or known.position <= folded.position:
            self._states[key] = folded
            self._states.move_to_end(key)
            if len(self._states) > self._limit:
                self._states.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: it is of a history that is not there any more."""
        self._states.clear()


class RecentEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as it was appended, or is about to be."""

    event: Event
    type: str
    new: NewEvent
    envelope: Envelope


class Tail:
    """The latest events known here: those at positions `start` + 1 to `end`; those after `committed` are pending."""

    def __init__(self, start: Position) -> None:
        self.restart(start)

    def restart(self, position: Position) -> None:
        """Forget all events: the next one comes after `position`."""
        self.start = self.committed = self.end = position
        self._events: list[RecentEvent] = []
        self._recorded_at: list[datetime] = []
        self._by_tag: dict[str, list[int]] = {}
        self._bytes = 0

    def add_pending(self, events: Iterable[RecentEvent]) -> None:
        """Take events that are about to be appended at the next positions."""
        by_tag = self._by_tag
        for recent in events:
            self.end = position = Position(self.end + 1)
            self._events.append(recent)
            self._bytes += len(recent.new.data)
            for tag in recent.new.tags:
                positions = by_tag.get(tag)
                if positions is None:
                    by_tag[tag] = [position]
                else:
                    positions.append(position)

    def confirm(self, appended: Sequence[tuple[Appended, Sequence[RecentEvent]]]) -> None:
        """Take what became of the pending events: those that were appended, the commits in order, take their places."""
        if sum([len(events) for _, events in appended]) != self.end - self.committed:
            self._drop_pending()
            for _, events in appended:
                self.add_pending(events)
        recorded_at_us, recorded_at = 0, _EPOCH
        for result, events in appended:
            if result.recorded_at_us != recorded_at_us:
                recorded_at_us = result.recorded_at_us
                recorded_at = _EPOCH + timedelta(microseconds=recorded_at_us)
            self._recorded_at += [recorded_at] * len(events)
        self.committed = self.end
        while len(self._events) > TAIL_EVENTS_MAX or self._bytes > TAIL_BYTES_MAX:
            self._shorten()

    def fold(self, key: ModelKey, folded: Folded, *, pending: bool) -> Folded | None:
        """A state brought up to the end of the tail, or of its committed part.

        The state itself where it is older than the tail. None where it needs the context of an event that has none
        yet, since it is pending.

        Raises:
            NewerHistory: newer code's model folds an event that this one's does not.
        """
        until = self.end if pending else self.committed
        if not self.start <= folded.position < until:
            return folded
        fold, item, state, pending_at = key[0], folded.item_now, folded.state, folded.pending
        unsaved, query = folded.unsaved, folded.query
        for position in self._candidates(item, folded.position, until):
            recent = self._events[position - self.start - 1]
            if not item.matches(recent.type, recent.new.tags):
                if isinstance(query, OutgrownQuery):
                    query.check_one(recent.type, recent.new.version, recent.new.tags, Position(position))
                if fold.splits and position > self.committed and query.matches(recent.type, recent.new.tags):
                    pending_at = Position(position)  # its type may have parts that are meant, so conditions look at it
                continue
            unsaved += 1
            if position > self.committed:
                pending_at = Position(position)
            if not fold.takes_context:
                state = fold.evolve(state, recent.event, None)
            elif position > self.committed:
                return None
            else:
                recorded_at = self._recorded_at[position - self.start - 1]
                context = event_context(position, recent.new.event_id, recorded_at, recent.envelope)
                state = fold.evolve(state, recent.event, context)
        return Folded(query, state, until, pending_at, unsaved)

    def judged_after(self, folded: Folded) -> Position:
        """After which no event may match, for a decision on this state to hold.

        A pending position only where the state is made of a pending event: a decision that none concerns does not
        fall with them when another process has appended meanwhile.
        """
        return min(folded.position, max(self.committed, folded.pending))

    def knows_of(self, item: QueryItem) -> bool:
        """Whether any event here matches, a pending one included."""
        return any(
            item.matches(recent.type, recent.new.tags)
            for position in self._candidates(item, self.start, self.end)
            for recent in (self._events[position - self.start - 1],)
        )

    def _candidates(self, item: QueryItem, after: int, until: int) -> Iterable[int]:
        """Positions of events that may match, in order: by the first tag where there is one."""
        for tag in item.tags:
            positions = self._by_tag.get(tag)
            if positions is None or positions[-1] <= after:
                return ()
            return positions[bisect_right(positions, after) : bisect_right(positions, until)]
        return range(after + 1, until + 1)

    def _drop_pending(self) -> None:
        while self.end > self.committed:
            recent = self._events.pop()
            self._bytes -= len(recent.new.data)
            for tag in recent.new.tags:
                positions = self._by_tag[tag]
                positions.pop()
                if not positions:
                    del self._by_tag[tag]
            self.end = Position(self.end - 1)

    def _shorten(self) -> None:
        """Drop the older half. Nothing is pending."""
        dropped = (len(self._events) + 1) // 2
        self._bytes -= sum(len(recent.new.data) for recent in self._events[:dropped])
        del self._events[:dropped]
        del self._recorded_at[:dropped]
        self.start = start = Position(self.start + dropped)
        self._by_tag = {
            tag: positions[bisect_right(positions, start) :]
            for tag, positions in self._by_tag.items()
            if positions[-1] > start
        }
