"""How fresh an answer has to be, and the wait for it (G7)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from diptych.clock import Clock
from diptych.errors import Blocked, InvalidMessage, NotFresh
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import NOWHERE, START, Place, Position, Token
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.projection import Projection
from diptych.read_side.query_source import Asking
from diptych.read_side.read_store import Generation

__all__ = ["EVENTUAL", "WAIT_S", "WAIT_S_MAX", "Behind", "Freshness", "Requirement", "Verify", "check_wait"]

WAIT_S = 5.0
"""Seconds that an answer is waited for, unless the caller says otherwise."""
WAIT_S_MAX = 60.0
"""Seconds that a caller may ask to wait."""

Missing = Callable[[Position], Awaitable[Sequence[RecordedEvent]]]
"""What is missing from rows that are folded up to a position."""
Verify = Callable[[], Awaitable[None]]
"""Raises `HistoryDiverged` where something is not in the history any more."""


class Requirement:
    """What the read models that an answer touches have to show.

    Attributes:
        wanted: every event up to here.
        verify: makes sure that what tokens have told is still in the history; None where none have.
        recorded_before: every event that was recorded before this time; None asks for no time.
        strict: whether blocked keys are an error; an eventual answer only says that it is incomplete.
    """

    __slots__ = ("recorded_before", "strict", "verify", "wanted")

    def __init__(
        self,
        wanted: Position = START,
        *,
        verify: Verify | None = None,
        recorded_before: datetime | None = None,
        strict: bool = True,
    ) -> None:
        self.wanted = wanted
        self.verify = verify
        self.recorded_before = recorded_before
        self.strict = strict


EVENTUAL = Requirement(strict=False)
"""Whatever is there."""


class Behind(Exception):
    """A query touched a read model that does not show what it has to.

    Attributes:
        projection: whose rows it is about.
        slices: those that are behind, of the generation that answers now; empty where there is none.
        same_code: whether that is of this process's code.
    """

    def __init__(self, projection: Projection, slices: Sequence[Generation], *, same_code: bool) -> None:
        self.projection = projection
        self.slices = slices
        self.same_code = same_code
        super().__init__(projection.name)


class Freshness:
    """Turns what a caller asks for into requirements, and waits until they are met.

    Args:
        store: the history.
        clock: tells the time.
        missing: the oldest events behind a position, one of them the very oldest; by default the next one.
    """

    def __init__(self, store: EventLog, clock: Clock, missing: Missing | None = None) -> None:
        self._store = store
        self._clock = clock
        self._missing = missing or self._next
        self._verified: dict[tuple[str, int], tuple[int, Place]] = {}

    def now(self) -> datetime:
        """The time by the clock, aware, in UTC."""
        return self._clock.now()

    async def after(self, tokens: Sequence[Token]) -> Requirement:
        """At least what the commands of these tokens have written, or the answers have shown.

        Raises:
            HistoryDiverged: one is of another history; it is never waited for.
        """
        last = Place(self._store.history_id, START, NOWHERE)
        for token in tokens:
            await self._check(token.high, "the consistency token")
            last = max(last, token.high, key=_position)
        return Requirement(last.position, verify=partial(self._check, last, "the consistency token"))

    async def _check(self, place: Place, what: str) -> None:
        """Make sure that a place is in the history.

        Raises:
            HistoryDiverged: it is not.
        """
        there = await self._store.place_at(place.position)
        place.check(self._store.history_id, None if there is None else there.event_id, what)

    async def _verify(self, generation: Generation) -> None:
        """Make sure, once for each checkpoint, that rows are of the history: they may outlive what a failover loses."""
        slice, verified = (generation.name, generation.slice), (self._store.forks, generation.checkpoint)
        if self._verified.get(slice) != verified:
            await self._check(generation.checkpoint, f"the read model {generation.name}")
            self._verified[slice] = verified

    async def latest(self) -> Requirement:
        """Everything that is in the history now."""
        return Requirement((await self._store.head()).position)

    def within(self, seconds: float) -> Requirement:
        """Everything that is in the history for that many seconds or longer.

        Raises:
            InvalidMessage: it is negative, or no finite number.
        """
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise InvalidMessage("query", [("$.within_s", f"an age is 0 seconds or more, not {seconds!r}")])
        try:
            return Requirement(recorded_before=self._clock.now() - timedelta(seconds=seconds))
        except OverflowError:  # before the calendar begins: nothing is as old
            return Requirement(recorded_before=datetime.min.replace(tzinfo=UTC))

    async def is_met(self, requirement: Requirement, generation: Generation) -> bool:
        """Whether a slice of a read model shows what it has to.

        Raises:
            HistoryDiverged: there was a fork, and its rows are of what is not in the history any more.
        """
        if requirement.strict and self._store.may_fork:
            await self._verify(generation)
        checkpoint = generation.checkpoint.position
        if checkpoint < requirement.wanted:
            return False
        if requirement.recorded_before is None:
            return True
        return all(found.recorded_at >= requirement.recorded_before for found in await self._missing(checkpoint))

    async def _next(self, after: Position) -> Sequence[RecordedEvent]:
        return (await self._store.read(ALL_EVENTS, after, 1)).events

    async def wait(self, behind: Behind, requirement: Requirement, deadline: float, asking: Asking) -> None:
        """Wait until what was missing may be there; not at all where the query is asked elsewhere next.

        Args:
            behind: what was behind.
            requirement: what it has to show.
            deadline: the event loop's time at which the wait is over.
            asking: where it was found to be behind.

        Raises:
            NotFresh: the deadline is over first.
            HistoryDiverged: what a token told is not in the history any more.
            Blocked: the projection has stopped, so that waiting is in vain.
        """
        name = behind.projection.name
        if asking.lacks(name, behind.slices):
            return
        stopped = [slice.stopped for slice in behind.slices if slice.stopped]
        if behind.same_code and stopped:
            raise Blocked(name, (), stopped[0])
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise await self._not_fresh(behind, requirement, asking.replica)
        await asking.wait(name, behind.slices, remaining)
        if requirement.verify is not None:  # the history may have forked while it was waited for
            await requirement.verify()

    async def _not_fresh(self, behind: Behind, requirement: Requirement, replica: str) -> NotFresh:
        head = (await self._store.head()).position
        reached, reason = 0, "it is not built from the history yet"
        if behind.slices and behind.same_code:
            reached = min(slice.checkpoint.position for slice in behind.slices)
            reason = f"so far on the replica {replica}" if replica else ""
        elif behind.slices:
            reason = "its rows are of other code; those of this code are not built yet, or were replaced"
        return NotFresh(behind.projection.name, requirement.wanted or head, reached, reason)


def _position(place: Place) -> Position:
    return place.position


def check_wait(wait_s: float) -> float:
    """A wait that a caller may ask for, in seconds.

    Raises:
        InvalidMessage: it is negative, or more than `WAIT_S_MAX`.
    """
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise InvalidMessage("wait", [("$", f"a wait is 0 to {WAIT_S_MAX:g} seconds, not {wait_s!r}")])
    return wait_s
