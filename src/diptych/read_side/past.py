"""Any past moment: read models as they would have stood then, folded from the log for one answer.

    as_of ──▶ a position ──▶ a panel whose source folds what is touched, when it is touched ──▶ the query bus, as ever

The code that folds is today's.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeAlias

from diptych.clock import Clock
from diptych.errors import CannotShowPast, HistoryDiverged, InvalidMessage, Overloaded
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import NOWHERE, START, Place, Position, Token
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.freshness import Freshness, Requirement
from diptych.read_side.past_fold import PastFold
from diptych.read_side.past_rows import Moment, PastSnapshot, PastSource
from diptych.read_side.query_bus import ReadPanel
from diptych.read_side.read_store import ReadStore

__all__ = ["AsOf", "Past", "PastTurns"]

AsOf: TypeAlias = Sequence[Token] | dt.datetime
"""A past moment: the tokens of what was shown or done then, or a time."""

PAST_ANSWERS_MAX = 2
"""Answers as of a past moment that an application folds at once; more wait for their turn."""
PAST_WAITING_MAX = 100
"""Answers as of a past moment that wait for their turn; more get `Overloaded`."""
PAST_WAIT_S_MAX = 10
"""Seconds that an answer as of a past moment waits for its turn before it gets `Overloaded`."""
PAST_PROBES_MAX = 64
"""Events that are looked at to find the position of a time: each halves what is left, and no history is longer."""


class Past:
    """Finds past moments of one history, and shows its read models as of them. Made by the application.

    Args:
        log: the history.
        history: reads it.
        read_store: keeps what was discarded.
        clock: tells the time.
        rows: makes a read store in memory, which is to be opened.
        why_not: why there are no past moments here; empty where there are.
    """

    def __init__(
        self,
        log: EventLog,
        history: History,
        read_store: ReadStore,
        clock: Clock,
        rows: Callable[[], ReadStore],
        why_not: str = "",
    ) -> None:
        self._log = log
        self._history = history
        self._read_store = read_store
        self._clock = clock
        self._rows = rows
        self.why_not = why_not

    async def moment(self, as_of: AsOf) -> Moment:
        """The moment that is meant, in this history.

        Raises:
            CannotShowPast: the token is of more than one moment, or tells nothing of this history.
            HistoryDiverged: the token's position is past the head, or another event is there.
            InvalidMessage: the time is naive, or has not come yet.
        """
        if self.why_not:
            raise CannotShowPast(self.why_not)
        return await (self._at_time(as_of) if isinstance(as_of, dt.datetime) else self._at_token(as_of))

    def tells_of(self, as_of: AsOf) -> bool:
        """Whether it means a moment of this history."""
        if self.why_not:
            return False
        return isinstance(as_of, dt.datetime) or any(token.high.history_id == self._log.history_id for token in as_of)

    def panel(self, panel: ReadPanel, moment: Moment) -> ReadPanel:
        """The panel of the same read models as they stood then, for one answer."""
        return panel._replace(
            source=PastSource(lambda rows: self._snapshot(panel, moment, rows), self._rows),
            freshness=Freshness(self._log, _StoodStill(moment.shown_at)),
        )

    def requirement(self, moment: Moment) -> Requirement:
        """What an answer from that panel has to show: all of it, and nothing is left out silently."""
        return Requirement(moment.place.position, place=moment.place if self._log.may_fork else None)

    def _snapshot(self, panel: ReadPanel, moment: Moment, rows: ReadStore) -> PastSnapshot:
        fold = PastFold(self._log, self._history, rows, moment.place.position)
        known = {projection.name: (projection, print_) for projection, print_ in panel.projections.values()}
        return PastSnapshot(known, moment, fold, rows, self._read_store)

    # ── where it is ──────────────────────────────────────────────────────────

    async def _at_token(self, tokens: Sequence[Token]) -> Moment:
        own = [token for token in tokens if token.high.history_id == self._log.history_id]
        if tokens and not own:
            raise HistoryDiverged("the moment asked for", "its token is of another history")
        if len({token.high for token in own}) != 1:
            raise CannotShowPast("name one moment, with one token")
        place, low = own[0].high, min(token.low for token in own)
        if low != place.position:
            raise CannotShowPast(
                f"the token is of an answer from rows at different positions, {low} to {place.position}, "
                "which is no one moment; take that of a receipt, of an answer from one read model, or a time"
            )
        there = await self._log.place_at(place.position)
        place.check(self._log.history_id, None if there is None else there.event_id, "the moment asked for")
        if place.position == START:
            return Moment(place, None, self._clock.now())
        recorded_at = (await self._event_at(place.position)).recorded_at
        return Moment(place, recorded_at, recorded_at)

    async def _at_time(self, time: dt.datetime) -> Moment:
        """The last event that was recorded at that time or before: times never run back along positions (rule 14)."""
        if time.tzinfo is None:
            raise InvalidMessage(
                "as_of", [("$.as_of", f"{time.isoformat()} has no time zone, so that it is no moment")]
            )
        head = (await self._log.head()).position
        last = None if head == START else await self._event_at(head)
        if time > self._clock.now() and (last is None or time > last.recorded_at):
            raise InvalidMessage("as_of", [("$.as_of", f"{time.isoformat()} has not come yet; leave it out for now")])
        if last is not None and last.recorded_at <= time:
            return self._moment(last, time)
        return self._moment(await self._last_at(time, head), time)

    async def _last_at(self, time: dt.datetime, after_it: Position) -> RecordedEvent | None:
        """The last event that was recorded by then, if any, where the one at a position was recorded later."""
        low, high, found = START, after_it, None
        for _ in range(PAST_PROBES_MAX):
            if high - low <= 1:
                break
            middle = await self._event_at(Position((low + high) // 2))
            if middle.recorded_at <= time:
                low, found = middle.position, middle
            else:
                high = middle.position
        return found

    def _moment(self, last: RecordedEvent | None, time: dt.datetime) -> Moment:
        history_id = self._log.history_id
        if last is None:
            return Moment(Place(history_id, START, NOWHERE), None, time)
        return Moment(Place(history_id, last.position, last.event_id), last.recorded_at, time)

    async def _event_at(self, position: Position) -> RecordedEvent:
        found = (await self._log.read(ALL_EVENTS, Position(position - 1), 1, until=position)).events
        if not found:
            raise HistoryDiverged("the moment asked for", f"the history ends before position {position} by now")
        return found[0]


class _StoodStill:
    """A clock that tells one time."""

    def __init__(self, time: dt.datetime) -> None:
        self._time = time

    def now(self) -> dt.datetime:
        """That time."""
        return self._time


class PastTurns:
    """Turns at folding answers: there are few, since each of them holds rows of its own."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(PAST_ANSWERS_MAX)
        self._waiting = 0

    async def __aenter__(self) -> None:
        """Wait for a turn.

        Raises:
            Overloaded: too many wait, or this one has waited too long.
        """
        if self._free.locked() and self._waiting >= PAST_WAITING_MAX:
            raise Overloaded("PAST_WAITING_MAX", PAST_WAITING_MAX)
        self._waiting += 1
        try:
            async with asyncio.timeout(PAST_WAIT_S_MAX):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded("PAST_WAIT_S_MAX", PAST_WAIT_S_MAX) from None
        finally:
            self._waiting -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.release()
