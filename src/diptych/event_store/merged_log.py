"""Several histories as one log: in the order in which they were taken in, which is kept.

    histories ──▶ taken in, as far as they are ──▶ the order: a history of extents ──▶ one log, to be followed

An *extent* says that so many events of one history come next. Extents are appended to an event store of their own,
under the condition that nobody has appended others meanwhile, so that all processes have one order, and keep it. What
follows the log needs to know nothing of it: positions are contiguous and stay what they are, and a rebuild reads what
was read before.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Sequence
from operator import attrgetter

import msgspec
from msgspec.structs import replace

from diptych.errors import (
    HistoryDiverged,
    InvalidMessage,
    OutcomeUnknown,
    Overloaded,
    StoreClosed,
    StoreUnavailable,
)
from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.event_store import Appended, Commit, EventStore, ReadResult
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.messages.codec import decode, encode
from diptych.messages.unique_id import unique_bytes

__all__ = ["MergedLog"]

TAKE_IN_ATTEMPTS_MAX = 100
"""How often a process tries to take in events while others take in others."""
LEARN_ATTEMPTS_MAX = 100
"""How often the order is looked at anew because, meanwhile, it or a history turned out to be another one."""
EXTENTS_KEPT_MAX = 4_096
"""Of the last extents, how many are kept in memory; older ones are read from the order."""
EXTENTS_PAGE_MAX = 500
"""Extents read at once."""
PART_EVENTS = 1_000
"""Events of one history read at once, to be merged."""
WINDOW_POSITIONS_MAX = 10_000
"""Merged positions that are looked at at once for events that match."""
EXTENT = "diptych.Extent"
"""The type of the events in the order."""


class _Extent(msgspec.Struct, frozen=True, gc=False):
    """So many events of one history, in the order: those after one position, through another.

    Attributes:
        history: whose, in hexadecimal digits.
        after: the position in it before the first.
        through: the position in it of the last.
        event_id: of the last, in hexadecimal digits.
        before: the merged position before the first.
    """

    history: str
    after: int
    through: int
    event_id: str
    before: int

    @property
    def end(self) -> int:
        """The merged position of the last."""
        return self.before + self.through - self.after

    @property
    def place(self) -> Place:
        """The place of the last in its history."""
        return Place(bytes.fromhex(self.history), Position(self.through), bytes.fromhex(self.event_id))

    def merged(self, position: int) -> Position:
        """The merged position of one of its events."""
        return Position(self.before + position - self.after)

    def own(self, merged: int) -> Position:
        """The position in its history of one of its events."""
        return Position(self.after + merged - self.before)


class _Numbered(msgspec.Struct, frozen=True, gc=False):
    """An extent, and its position in the order."""

    number: Position
    extent: _Extent


class MergedLog:
    """Implements `EventLog` over several event stores, which their owners open and close.

    Args:
        order: keeps the extents, and nothing else; opened and closed with this.
        histories: what is merged; at least one.

    `recorded_at` is that of each history, and so need not grow along the positions.
    """

    def __init__(self, order: EventStore, histories: Sequence[EventStore]) -> None:
        self._order = order
        self._histories = histories
        self._recent: deque[_Numbered] = deque(maxlen=EXTENTS_KEPT_MAX)
        self._taken: dict[bytes, Place] = {}
        self._last = START
        self._end = START
        self._forks = -1
        self._turn = asyncio.Lock()
        self._opened = False

    @property
    def history_id(self) -> bytes:
        """Of the order."""
        return self._order.history_id

    @property
    def durable(self) -> bool:
        """Whether all of it outlives the process."""
        return all(store.durable for store in self._stores)

    @property
    def may_fork(self) -> bool:
        """Whether the order, or one of the histories, may turn out to be another one."""
        return any(store.may_fork for store in self._stores)

    @property
    def forks(self) -> int:
        """How often one of them did."""
        return sum(store.forks for store in self._stores)

    @property
    def _stores(self) -> Sequence[EventStore]:
        return (self._order, *self._histories)

    async def open(self) -> None:
        """Open the order, and find out how far it is. The histories are open.

        Raises:
            HistoryDiverged: a history is not the one any more that was taken in.
        """
        await self._order.open()
        self._opened = True
        async with self._turn:
            await self._learn()

    async def close(self) -> None:
        """Close the order. May be called twice."""
        self._opened = False
        await self._order.close()

    # ── EventLog ─────────────────────────────────────────────────────────────

    async def head(self) -> Place:
        """The place of the last event of all, after taking in those that are there."""
        await self._take_in()
        found = await self.place_at(self._end)
        if found is None:
            raise HistoryDiverged("what is merged", "a history ends before what was taken in of it")
        return found

    async def place_at(self, position: Position) -> Place | None:
        """The place at a merged position: the event id is that of the event there; None past what is taken in."""
        self._check_open()
        await (self._take_in() if position > self._end else self._reach(position))
        if position > self._end or position < START:
            return None
        if position == START:
            return Place(self.history_id, START, NOWHERE)
        extent = (await self._at(position)).extent
        there = await self._history(extent.history).place_at(extent.own(position))
        return None if there is None else Place(self.history_id, position, there.event_id)

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        """Matching events after a merged position, in the order kept; see `EventLog.read`."""
        self._check_open()
        await (self._take_in() if after >= self._end else self._reach(after))
        end = self._end if until is None else min(self._end, until)
        if after >= end:
            return ReadResult([], end, more=False)
        events: list[RecordedEvent] = []
        position, window = after, limit
        while position < end and len(events) < limit:  # as many positions as events asked for; more where few match
            upto = Position(min(end, position + window))
            events += await self._window(query, position, upto)
            position, window = upto, min(window * 2, WINDOW_POSITIONS_MAX)
        del events[limit:]
        if len(events) == limit and events[-1].position < end:
            return ReadResult(events, events[-1].position, more=True)
        return ReadResult(events, end, more=False)

    async def _window(self, query: EventQuery, after: Position, through: Position) -> list[RecordedEvent]:
        """The matching events between two merged positions: of each history its own part, put into the order."""
        extents: list[_Extent] = []
        ends: dict[str, tuple[Position, Position]] = {}
        async for extent in self._from(after):
            extents.append(extent)
            first = extent.own(max(after, extent.before))
            ends[extent.history] = ends.get(extent.history, (first,))[0], extent.own(min(through, extent.end))
            if extent.end >= through:
                break
        parts = {history: deque(await self._part(history, query, *span)) for history, span in ends.items()}
        events: list[RecordedEvent] = []
        for extent in extents:
            part = parts[extent.history]
            while part and part[0].position <= extent.through:
                recorded = part.popleft()
                events.append(replace(recorded, position=extent.merged(recorded.position)))
        return events

    async def _part(self, history: str, query: EventQuery, after: Position, through: Position) -> list[RecordedEvent]:
        """The matching events of one history between two of its positions."""
        store, events, more = self._history(history), list[RecordedEvent](), True
        while more:
            found = await store.read(query, after, PART_EVENTS, until=through)
            events += found.events
            after, more = found.through, found.more
        if after < through:
            raise HistoryDiverged("what is merged", "a history ends before what was taken in of it")
        return events

    async def wait_for_events(self, after: Position, timeout_s: float) -> bool:
        """Wait until the log is past a merged position; whatever wakes those who wait for one of the histories does."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            await self._take_in()
            remaining = deadline - asyncio.get_running_loop().time()
            if self._end > after:
                return True
            if remaining <= 0:
                return False
            waiting = [asyncio.ensure_future(self._order.wait_for_events(self._last, remaining))]
            for store in self._histories:
                taken = self._taken_of(store).position
                waiting.append(asyncio.ensure_future(store.wait_for_events(taken, remaining)))
            try:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
            finally:
                for one in waiting:
                    one.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    # ── what is of which history ─────────────────────────────────────────────

    async def covering(self, place: Place) -> Position:
        """The merged position up to which everything is that one history has up to a place.

        Raises:
            HistoryDiverged: that place is not in it.
        """
        store = next((store for store in self._histories if store.history_id == place.history_id), None)
        if store is None:
            raise HistoryDiverged("the consistency token", "it is of no history that is merged here")
        there = await store.place_at(place.position)
        place.check(store.history_id, None if there is None else there.event_id, "the consistency token")
        await (self._take_in() if self._taken_of(store).position < place.position else self._reach(START))
        for known in reversed(self._recent):
            extent = known.extent
            if extent.history == place.history_id.hex() and extent.after < place.position <= extent.through:
                return extent.merged(place.position)
        return START if place.position == START else self._end  # it is long ago: more is asked for, never less

    async def shown(self, position: Position) -> list[Place]:
        """Up to where the log, up to a merged position, holds each history that it holds anything of.

        Raises:
            HistoryDiverged: there is no such position in it, or a history is not the one any more that was taken in.
        """
        self._check_open()
        if position == START:
            return []
        await self._reach(position)
        if position > self._end:
            raise HistoryDiverged("what is merged", f"the order ends before position {position}; was it replaced?")
        last = await self._at(position)
        held = await self._held_before(last)
        if position == last.extent.end:
            place = last.extent.place
        else:
            there = await self._history(last.extent.history).place_at(last.extent.own(position))
            if there is None:
                raise HistoryDiverged("what is merged", "a history ends before what was taken in of it")
            place = there
        held[place.history_id] = place
        return [place for place in held.values() if place.position > START]

    async def missing(self, after: Position) -> list[RecordedEvent]:
        """The first event of each history that the log does not hold up to a merged position, taken in or not."""
        held = {place.history_id: place.position for place in await self.shown(after)}
        found: list[RecordedEvent] = []
        for store in self._histories:
            found += (await store.read(ALL_EVENTS, held.get(store.history_id, START), 1)).events
        return found

    async def _held_before(self, last: _Numbered) -> dict[bytes, Place]:
        """Up to where the extents before one hold each history; as they tell it, without a look at the histories."""
        if last.number == self._last:
            return dict(self._taken)  # but for its own history, which the caller knows better
        held: dict[bytes, Place] = {}
        first = min(last.number, self._recent[0].number if self._recent else last.number)
        for known in reversed(self._recent):
            if known.number < last.number and len(held) < len(self._histories):
                held.setdefault(known.extent.place.history_id, known.extent.place)
        for store in self._histories:
            if store.history_id not in held:
                held[store.history_id] = await self._taken_before(store, first)
        return held

    # ── taking in ────────────────────────────────────────────────────────────

    async def _take_in(self) -> None:
        """Put everything that the histories have, and the order has not, into the order.

        Raises:
            HistoryDiverged: a history is not the one any more that was taken in.
            Overloaded: others were faster, again and again.
        """
        self._check_open()
        forks, heads = await self._heads()
        async with self._turn:
            for _ in range(TAKE_IN_ATTEMPTS_MAX):
                await self._learn()
                if forks != self.forks:  # a head may be of what was lost: in the order it would be for good
                    forks, heads = await self._heads()
                    continue
                fresh = [head for head in heads if head.position > self._place_taken(head.history_id).position]
                if not fresh or await self._append(fresh):
                    return
        raise Overloaded("TAKE_IN_ATTEMPTS_MAX", TAKE_IN_ATTEMPTS_MAX)

    async def _heads(self) -> tuple[int, list[Place]]:
        """How far every history is, and how many forks were known before the first was asked."""
        forks = self.forks
        return forks, [await store.head() for store in self._histories]

    async def _append(self, heads: Sequence[Place]) -> bool:
        """Append an extent up to each of these places; False where others have appended."""
        extents: list[_Extent] = []
        end = int(self._end)
        for head in heads:
            after = self._place_taken(head.history_id).position
            extents.append(_Extent(head.history_id.hex(), after, head.position, head.event_id.hex(), end))
            end = extents[-1].end
        events = tuple(
            NewEvent(unique_bytes(), EXTENT, 1, encode(extent), (f"history:{extent.history}",)) for extent in extents
        )
        nothing_else = AppendCondition(QueryItem(), self._last)
        try:
            (result,) = await self._order.append([Commit(events=events, conditions=(nothing_else,))])
        except OutcomeUnknown as error:  # no command of anybody's: whoever takes in next finds what became of it
            raise StoreUnavailable(f"the order of what is merged: {error.cause}") from error
        if not isinstance(result, Appended):
            return False
        first = result.place.position - len(extents) + 1
        for number, extent in enumerate(extents, first):
            self._note(_Numbered(Position(number), extent))
        return True

    async def _begin(self) -> None:
        """Learn where the order ends, and make sure that it is of the histories that are there."""
        forks = self.forks
        last = await self._order.read_backward(ALL_EVENTS, EXTENTS_PAGE_MAX)
        recent = [_read(recorded) for recorded in reversed(last.events)]
        known = {found.extent.place.history_id: found.extent.place for found in recent}
        first = recent[0].number if recent else START
        taken: dict[bytes, Place] = {}
        for store in self._histories:
            place = known.get(store.history_id) or await self._taken_before(store, first)
            there = await store.place_at(place.position)
            place.check(
                store.history_id, None if there is None else there.event_id, "the order of what is merged from it"
            )
            taken[store.history_id] = place
        end = recent[-1].extent.end if recent else START
        if sum(place.position for place in taken.values()) != end:
            raise HistoryDiverged("the order of merged histories", "it has events of a history which is not here")
        self._recent.clear()
        self._taken, self._last, self._end = taken, START, START
        for found in recent:
            self._note(found)
        self._forks = forks  # only now: until all of it is verified, whoever asks next begins again

    async def _taken_before(self, store: EventStore, number: Position) -> Place:
        """Up to where a history was taken in by the extents before one."""
        found = await self._order.read_backward(_of_history(store.history_id.hex()), 1, before=number)
        return _read(found.events[0]).extent.place if found.events else Place(store.history_id, START, NOWHERE)

    async def _reach(self, position: Position) -> None:
        """Know the order up to a position that another process may have put into it, as far as it is there.

        Raises:
            HistoryDiverged: a history is not the one any more that was taken in.
        """
        if position > self._end or self._forks != self.forks:
            async with self._turn:
                await self._learn()

    async def _learn(self) -> None:
        """Know the order as it is now: what is new in it, or all of it anew after a fork. The caller has the turn.

        Raises:
            HistoryDiverged: a history is not the one any more that was taken in.
        """
        for left in reversed(range(LEARN_ATTEMPTS_MAX)):
            forks = self.forks
            try:
                if self._forks != forks:
                    await self._begin()
                await self._catch_up()
            except HistoryDiverged:
                if not left or forks == self.forks:
                    raise  # else one of them turned out to be another one in the middle, and the others will
            else:
                return

    async def _catch_up(self) -> None:
        """Learn what other processes have put into the order."""
        more = True
        while more:
            found = await self._order.read(ALL_EVENTS, self._last, EXTENTS_PAGE_MAX)
            for recorded in found.events:
                self._note(_read(recorded))
            more = found.more

    def _note(self, found: _Numbered) -> None:
        self._recent.append(found)
        self._last, self._end = found.number, Position(found.extent.end)
        self._taken[found.extent.place.history_id] = found.extent.place

    def _taken_of(self, store: EventStore) -> Place:
        return self._place_taken(store.history_id)

    def _place_taken(self, history_id: bytes) -> Place:
        return self._taken.get(history_id) or Place(history_id, START, NOWHERE)

    def _history(self, history: str) -> EventStore:
        for store in self._histories:
            if store.history_id.hex() == history:
                return store
        raise HistoryDiverged(
            "the order of merged histories", f"it has events of the history {history}, which is not here"
        )

    def _check_open(self) -> None:
        if not self._opened:
            raise StoreClosed("this log is not open")

    # ── finding extents ──────────────────────────────────────────────────────

    async def _at(self, position: Position) -> _Numbered:
        """The extent that a merged position is in, from 1 to the end."""
        if self._recent and position > self._recent[0].extent.before:
            place = bisect_right(self._recent, position - 1, key=_before)
            return self._recent[place - 1]
        low, high = 1, int(self._recent[0].number) - 1 if self._recent else int(self._last)
        while True:  # halved each time
            middle = (low + high) // 2
            found = await self._order.read(ALL_EVENTS, Position(middle - 1), 1)
            known = _read(found.events[0])
            if position <= known.extent.before:
                high = middle - 1
            elif position > known.extent.end:
                low = middle + 1
            else:
                return known

    async def _from(self, after: Position) -> AsyncIterator[_Extent]:
        """The extents with the events behind a merged position, which there are, in order."""
        first = await self._at(Position(after + 1))
        yield first.extent
        number = first.number
        while number < self._last:
            if self._recent and number >= self._recent[0].number - 1:
                known = self._recent[number - self._recent[0].number + 1]
                number = known.number
                yield known.extent
                continue
            found = await self._order.read(ALL_EVENTS, number, EXTENTS_PAGE_MAX)
            for recorded in found.events:
                yield _read(recorded).extent
            number = found.events[-1].position


_before = attrgetter("extent.before")


def _of_history(history: str) -> EventQuery:
    return EventQuery((QueryItem(tags=frozenset((f"history:{history}",))),))


def _read(recorded: RecordedEvent) -> _Numbered:
    """An extent as it is kept.

    Raises:
        HistoryDiverged: it is none: this store keeps something else.
    """
    try:
        if recorded.type == EXTENT:
            return _Numbered(recorded.position, decode(recorded.data, _Extent))
        reason = f"it has events of the type {recorded.type}"
    except InvalidMessage as error:
        reason = str(error)
    raise HistoryDiverged("the order of merged histories", f"the store keeps something else: {reason}")
