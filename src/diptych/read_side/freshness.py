"""How fresh an answer has to be, and the wait for it (G7).

What an answer rests on (the token that was given, the checkpoints of its rows) has to be of the history as it is when
the answer goes out, also where that forked while it was waited for. It is looked up beside the rows, and judged once
they are there, so that no attempt waits for one after the other.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from diptych.clock import Clock
from diptych.errors import Blocked, InvalidMessage, NotFresh
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import START, Place, Position, Token
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.projection import Projection
from diptych.read_side.query_source import Asking
from diptych.read_side.read_store import Generation, Key

if TYPE_CHECKING:
    from diptych.read_side.read_store import ReadSnapshot

__all__ = [
    "EVENTUAL",
    "WAIT_S",
    "WAIT_S_MAX",
    "Behind",
    "Checks",
    "Freshness",
    "HowFresh",
    "Requirement",
    "Touching",
    "Verify",
    "check_wait",
]

WAIT_S = 5.0
"""Seconds that an answer is waited for, unless the caller says otherwise."""
WAIT_S_MAX = 60.0
"""Seconds that a caller may ask to wait."""

HowFresh: TypeAlias = Literal["eventual", "latest", "overlay"]
"""Whatever is there; everything that is in the history, once it is projected; the same, folded for the answer."""
_Slice: TypeAlias = tuple[str, int]
"""A projection's name, and the number of one of its slices."""
_Verified: TypeAlias = tuple[int, Place]
"""How many forks there had been when a place was found in the history."""
Missing = Callable[[Position], Awaitable[Sequence[RecordedEvent]]]
"""What is missing from rows that are folded up to a position."""
Verify = Callable[[], Awaitable[None]]
"""Raises `HistoryDiverged` where something is not in the history any more."""


class Touching(Protocol):
    """Hears what one answer of a live query touches of a history."""

    def is_shown(self, generation: Generation) -> bool:
        """Whether a slice shows at least what the answer before it did, and what has woken it."""
        ...

    async def touches(
        self,
        snapshot: ReadSnapshot,
        projection: Projection,
        live: Sequence[Generation],
        keys: Sequence[Key] | None,
        moment: datetime | None,
    ) -> None:
        """Note that the rows of these keys are asked for, or any rows where there are none.

        Args:
            snapshot: where they are read.
            projection: that feeds them.
            live: all slices of their generation, one object in each snapshot.
            keys: as they are stored.
            moment: as of when they are shown; None where they do not expire.
        """
        ...


class Requirement:
    """What the read models that an answer touches have to show.

    Attributes:
        wanted: every event up to here.
        place: the place of that, where a token has told it and the history may fork: to be checked at every attempt.
        verify: makes sure of what tokens of other histories have told, after every wait, and where a fork was found
            meanwhile; None where none have.
        recorded_before: every event that was recorded before this time; None asks for no time.
        strict: whether blocked keys are an error; an eventual answer only says that it is incomplete.
        overlay: up to where what is missing is folded onto the rows for this answer; None: it is waited for.
        touching: hears what is touched, and asks for no less than it has seen; None unless the query is a live one.
    """

    __slots__ = ("overlay", "place", "recorded_before", "strict", "touching", "verify", "wanted")

    def __init__(
        self,
        wanted: Position = START,
        *,
        place: Place | None = None,
        recorded_before: datetime | None = None,
        strict: bool = True,
        overlay: Place | None = None,
    ) -> None:
        self.overlay = overlay
        self.wanted = wanted
        self.place = place
        self.verify: Verify | None = None
        self.recorded_before = recorded_before
        self.strict = strict
        self.touching: Touching | None = None


EVENTUAL = Requirement(strict=False)
"""Whatever is there."""


class Checks:
    """One attempt at an answer: what it has to show, and the places that it rests on. Not for concurrent use.

    Whether these are in the history is looked up while the attempt goes on. Leaving the block judges them, whatever
    came of the attempt: neither an answer nor an error gets out that rests on another history.

    Attributes:
        requirement: what the answer has to show.
    """

    __slots__ = ("_checking", "_forks", "_freshness", "_rests_on", "_shown", "requirement")

    def __init__(self, freshness: Freshness, requirement: Requirement) -> None:
        self.requirement = requirement
        self._freshness = freshness
        self._forks = freshness.forks
        self._rests_on: dict[Place, str] = {}
        self._checking: dict[Place, asyncio.Task[None]] = {}
        self._shown: dict[_Slice, _Verified] = {}

    async def __aenter__(self) -> Self:
        """Begin to check what the token told."""
        if self.requirement.place is not None:
            self._rests_on[self.requirement.place] = "the consistency token"
            self._begin(self.requirement.place)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Judge; not at all where the attempt was cancelled.

        Raises:
            HistoryDiverged: something that it rests on is not in the history.
        """
        checking, goes_out = self._checking.values(), isinstance(error, (Exception, NoneType))
        try:
            if checking and goes_out:
                await asyncio.wait(checking)
        finally:
            for check in checking:
                check.cancel()  # those that are done stay as they are
        if goes_out:
            await self._judge()

    async def _judge(self) -> None:
        for check in self._checking.values():
            check.result()
        if self._forks != self._freshness.forks:  # found meanwhile: some were looked up, or known, before it was
            for place, what in self._rests_on.items():
                await self._freshness.check(place, what)
            if self.requirement.verify is not None:
                await self.requirement.verify()
        self._freshness.note(self._shown)

    def now(self) -> datetime:
        """The time by the clock, aware, in UTC."""
        return self._freshness.now()

    async def is_met(self, generation: Generation) -> bool:
        """Whether a slice of a read model shows what it has to, if it is of the history, which is judged later."""
        if self.requirement.strict:
            self.rest_on(generation)
        return await self._freshness.is_met(self.requirement, generation)

    def rest_on(self, generation: Generation) -> None:
        """Note that the answer rests on a slice, whose checkpoint has to be in the history: judged later."""
        self._rests_on.setdefault(generation.checkpoint, f"the read model {generation.name}")
        verified = self._freshness.unverified(generation)
        if verified is not None:
            self._shown[generation.name, generation.slice] = verified
            self._begin(generation.checkpoint)

    def _begin(self, place: Place) -> None:
        if place not in self._checking:
            check = asyncio.get_running_loop().create_task(self._freshness.check(place, self._rests_on[place]))
            check.add_done_callback(_hear)
            self._checking[place] = check


class Behind(Exception):
    """A query touched a read model that does not show what it has to.

    Attributes:
        projection: whose rows it is about.
        slices: those that are behind, of the generation that answers now; empty where there is none.
        same_code: whether that is of this process's code.
        keys: of the rows that were asked for, as they are stored; empty where these are not known.
    """

    def __init__(
        self, projection: Projection, slices: Sequence[Generation], *, same_code: bool, keys: Sequence[Key] = ()
    ) -> None:
        self.projection = projection
        self.slices = slices
        self.same_code = same_code
        self.keys = keys
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
        self._verified: dict[_Slice, _Verified] = {}

    @property
    def forks(self) -> int:
        """How often the history turned out to be another one; see `EventLog.forks`."""
        return self._store.forks

    def now(self) -> datetime:
        """The time by the clock, aware, in UTC."""
        return self._clock.now()

    async def after(self, tokens: Sequence[Token]) -> Requirement:
        """At least what the commands of these tokens have written, or the answers have shown.

        Where the history may fork, the last of them is checked with every attempt at an answer, the first included.

        Raises:
            HistoryDiverged: one is of another history; it is never waited for.
        """
        last = max((token.high for token in tokens), key=_position, default=None)
        if last is None:
            return Requirement()
        later = last if self._store.may_fork else None
        for place in {token.high for token in tokens}:
            if place != last or later is None:
                await self.check(place, "the consistency token")
        return Requirement(last.position, place=later)

    def checks(self, requirement: Requirement) -> Checks:
        """What one attempt at an answer of this history has to show, and rests on: a block around it."""
        return Checks(self, requirement)

    async def check(self, place: Place, what: str) -> None:
        """Make sure that a place is in the history.

        Raises:
            HistoryDiverged: it is not.
        """
        there = await self._store.place_at(place.position)
        place.check(self._store.history_id, None if there is None else there.event_id, what)

    def unverified(self, generation: Generation) -> _Verified | None:
        """What there is to verify of a slice, once for each checkpoint: its rows may outlive what a failover loses."""
        found = (self._store.forks, generation.checkpoint)
        known = not self._store.may_fork or self._verified.get((generation.name, generation.slice)) == found
        return None if known else found

    def note(self, verified: Mapping[_Slice, _Verified]) -> None:
        """Remember that rows are of the history."""
        self._verified.update(verified)

    async def latest(self) -> Requirement:
        """Everything that is in the history now."""
        return Requirement((await self._store.head()).position)

    async def overlay(self) -> Requirement:
        """The same, without a wait: what rows lack is folded onto them for the answer."""
        head = await self._store.head()
        return Requirement(head.position, overlay=head)

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
        """Whether a slice of a read model shows what it has to."""
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
            HistoryDiverged: what a token of another history told is not in that one any more.
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


def _hear(check: asyncio.Task[None]) -> None:
    """Its failure is heard, also where another one's is told, or nobody is there any more."""
    if not check.cancelled():
        check.exception()


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
