"""Live queries: the answer at once, and a new one after each change that can affect it.

asked ──▶ answer ──▶ the caller, who asks for the next ──▶ woken by a watch, or by the time ──▶ asked again ─┐
             ▲                                                                                               │
             └── only where it differs from the last one ◀───────────────────────────────────────────────────┘

Nothing is computed before the caller asks for the next answer: whatever changes meanwhile is one answer. What an answer
rests on is learnt from the reader that it was made with (docs/decisions/0041).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextvars import Context
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from diptych.clock import Clock
from diptych.errors import Overloaded, Unavailable
from diptych.event_store.position import Token
from diptych.messages.codec import encode
from diptych.messages.query import Query
from diptych.read_side.freshness import EVENTUAL, WAIT_S, Requirement
from diptych.read_side.projection import Projection
from diptych.read_side.query_bus import Answer
from diptych.read_side.read_model import key_text
from diptych.read_side.read_model_watch import ReadModelWatch, RestingOn, Watches, is_as_new
from diptych.read_side.read_store import Comparison, Filter, Generation, Key, Order, ReadSnapshot
from diptych.security import Actor

__all__ = ["SUBSCRIPTIONS_MAX", "LiveQueries", "Touches"]

SUBSCRIPTIONS_MAX = 5_000
"""Live queries of one application in one process; more get `Overloaded`."""
ANSWERS_AT_ONCE_MAX = 8
"""Next answers of live queries from one read store under way at once, and of those that may span several from the same
ones: other queries have their turns at snapshots all the same."""
KEYS_MAX = 1_000
"""Keys of one read model by which a live query is told from others; one that asks for more is woken by any change."""
OUTAGE_S_MAX = 300.0
"""Seconds for which a live query goes on though its next answer cannot be had; past it, its caller hears why."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0
"""Seconds between tries to get the next answer: doubled each time, up to the second."""
EXPIRY_LOOK_S = 0.05
"""Seconds, at least, before a row that expires is looked at again: the clock may say that it has not."""
EXPIRY_WAIT_S_MAX = 60.0
"""Seconds, at most, before the clock is looked at for rows that expire: it may have been set."""

R = TypeVar("R")
Ask = Callable[[Query[Any], Actor, "Touches", Sequence[Token] | None, float], Awaitable[Answer[Any]]]
"""Answers a query of an actor at least as of these tokens, within so many seconds, and tells what it touches."""

_Same = tuple[type, object]
"""A query's class, and what tells it from others of that: its fields, and who asks."""

_Way = tuple[bool, frozenset[int]]
"""Whether it may touch several read stores, and which it did."""

_log = logging.getLogger("diptych.live_queries")


class LiveQueries:
    """The live queries of an open application. Made by it.

    Args:
        ask: answers a query of an actor at least as of these tokens, within so many seconds, and tells what it touches.
        clock: tells the time.
        in_one_store: where there are several read stores, the queries without a handler: each is asked in one alone.
    """

    def __init__(self, ask: Ask, clock: Clock, in_one_store: Collection[type] | None = None) -> None:
        self.ask = ask
        self.clock = clock
        self.closed = asyncio.Event()
        self._in_one_store = in_one_store
        self._turns: dict[_Way, asyncio.Semaphore] = {}
        self._open: set[_LiveQuery] = set()
        self._waiting: dict[_Same, _Asking] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    async def subscribe(
        self, query: Query[R], actor: Actor, after: Sequence[Token] | None, wait_s: float
    ) -> AsyncGenerator[Answer[R]]:
        """The answers to a query of an actor, the first at least as of these tokens; ends when the application is.

        Raises:
            Overloaded: there are `SUBSCRIPTIONS_MAX` already.
            DiptychError: of the first answer whatever `QueryBus.answer` raises; later whatever is not `Unavailable`,
                or was for longer than `OUTAGE_S_MAX`.
        """
        if self.closed.is_set():
            return
        if len(self._open) >= SUBSCRIPTIONS_MAX:
            raise Overloaded("SUBSCRIPTIONS_MAX", SUBSCRIPTIONS_MAX)
        live = _LiveQuery(self, query, actor)
        self._open.add(live)
        try:
            answer: Answer[R] | None = await live.first(after, wait_s)
            while answer is not None:
                yield answer
                answer = await live.next()
        finally:
            self._open.discard(live)
            await live.leave()

    def asking(self, live: _LiveQuery) -> _Asking:
        """A run that begins later than this: with those that wait for the same one, if there are any."""
        found = self._waiting.get(live.same)
        if found is None or found.is_ending:
            found = self._waiting[live.same] = _Asking(live.query, live.actor)
            found.begin(self._in_turn(found, live.same, self.turns(live)))
        return found

    def turns(self, live: _LiveQuery) -> asyncio.Semaphore:
        """The turns of those that go where it does: what waits for a store that hangs takes none from the others."""
        may_span = self._in_one_store is not None and type(live.query) not in self._in_one_store
        way = may_span, live.asked_in
        return self._turns.setdefault(way, asyncio.Semaphore(ANSWERS_AT_ONCE_MAX))

    async def _in_turn(self, asking: _Asking, same: _Same, turns: asyncio.Semaphore) -> _Found:
        try:
            async with turns:
                self._begun(asking, same)  # who is woken from now on asks again
                return await self.run(asking, None, WAIT_S)
        finally:
            self._begun(asking, same)

    def _begun(self, asking: _Asking, same: _Same) -> None:
        if self._waiting.get(same) is asking:
            del self._waiting[same]

    async def run(self, asking: _Asking, after: Sequence[Token] | None, wait_s: float) -> _Found:
        """Ask once, for all who wait for it."""
        touches = Touches(tuple(asking.lives))
        answer = await self.ask(asking.query, asking.actor, touches, after, wait_s)
        return _Found(answer, _print(answer.value), touches.found)

    async def close(self) -> None:
        """End them all: what is under way is cancelled, nothing is left behind. Idle ones end when they go on."""
        self.closed.set()
        for live in tuple(self._open):
            live.wake()
            await live.leave()


class _Found(NamedTuple):
    """What came of one run.

    Attributes:
        told_by: what tells the value from others.
        rests_on: what was touched, by the watch on each read model.
    """

    answer: Answer[Any]
    told_by: object
    rests_on: Mapping[ReadModelWatch, RestingOn]


class _Asking:
    """One run of a query, for all live queries of its actor that wait for it: they asked the same before it began.

    Attributes:
        lives: who waits.
        is_ending: whether nobody may join any more.
    """

    def __init__(self, query: Query[Any], actor: Actor) -> None:
        self.query = query
        self.actor = actor
        self.lives: set[_LiveQuery] = set()
        self.is_ending = False
        self._task: asyncio.Task[_Found]

    def begin(self, work: Coroutine[Any, Any, _Found]) -> None:
        """Do it, in a task of its own: who waits for it may leave.

        Context variables are nobody's: what one subscriber has set decides about no answer that another one shares.
        """
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(work, name="diptych live query", context=Context())

    async def found(self, live: _LiveQuery) -> _Found | None:
        """What comes of it; None where it was ended. The last one who leaves ends it."""
        self.lives.add(live)
        try:
            await asyncio.wait((self._task,))
        finally:
            self.lives.discard(live)
            if not self.lives and not self._task.done():
                await self.end()
        return None if self._task.cancelled() else self._task.result()

    async def end(self) -> None:
        """End it, whoever waits."""
        self.is_ending = True
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # heard: nobody waits for it


class _LiveQuery:
    """One live query. Implements `Restless`."""

    def __init__(self, others: LiveQueries, query: Query[Any], actor: Actor) -> None:
        self.query = query
        self.actor = actor
        self._others = others
        self._woken = asyncio.Event()
        self._failure: Exception | None = None
        self.same: _Same = (type(query), self)
        self._verify = self._anew = False
        self._resting: Mapping[ReadModelWatch, RestingOn] = {}
        self._asking: _Asking | None = None
        self._shown: dict[bytes, Token] = {}
        self._told_by: object = None
        self._incomplete = False

    @property
    def asked_in(self) -> frozenset[int]:
        """What tells the read stores of its last answer from others."""
        return frozenset(id(watch.panel) for watch in self._resting)

    def wake(self, *, verify: bool = False) -> None:
        """See `Restless.wake`."""
        self._verify = self._verify or verify
        self._woken.set()

    def fail(self, error: Exception) -> None:
        """See `Restless.fail`."""
        self._failure = error
        self._woken.set()

    async def leave(self) -> None:
        """Rest on nothing any more, and ask nothing."""
        if self._asking is not None:
            await self._asking.end()
        watches, self._resting = tuple(self._resting), {}
        for watch in watches:
            await watch.leave(self)

    def was_shown(self, watch: ReadModelWatch, slice: Generation) -> bool:
        """Whether a slice shows at least what it did in the last answer."""
        on = self._resting.get(watch)
        return on is None or self._anew or is_as_new(slice, on.slices)

    # ── answers ──────────────────────────────────────────────────────────────

    async def first(self, after: Sequence[Token] | None, wait_s: float) -> Answer[Any] | None:
        """The first answer; None where it is closed meanwhile."""
        asking = _Asking(self.query, self.actor)
        asking.lives.add(self)
        asking.begin(self._others.run(asking, after, wait_s))
        found = await self._found(asking)
        if found is None:
            return None
        self.same = (type(self.query), (_print(self.query), self.actor))
        self._is_news(found)
        return self._onwards(found.answer)

    async def next(self) -> Answer[Any] | None:
        """The next answer that is another one than the last; None when it is closed."""
        loop = asyncio.get_running_loop()
        backoff, failing_since = BACKOFF_FIRST_S, 0.0
        while await self._is_woken():
            verify, self._verify = self._verify, False
            try:
                found = await (self._verified() if verify else self._found(self._others.asking(self)))
            except Unavailable as error:
                failing_since = failing_since or loop.time()
                if loop.time() - failing_since > OUTAGE_S_MAX:
                    raise
                _log.info("a live query waits %.1f s: %s", backoff, error)
                self.wake(verify=verify)
                await self._pause(backoff)
                backoff = min(backoff * 2, BACKOFF_MAX_S)
                continue
            backoff, failing_since = BACKOFF_FIRST_S, 0.0
            if found is None:
                self.wake()  # to hear that it is closed
            elif self._is_news(found):
                return self._onwards(found.answer)
        return None

    async def _verified(self) -> _Found | None:
        """As of what was last shown, which is looked up in the history: that may be another one."""
        self._anew = True
        try:
            async with self._others.turns(self):
                asking = _Asking(self.query, self.actor)
                asking.lives.add(self)
                asking.begin(self._others.run(asking, tuple(self._shown.values()), WAIT_S))
                return await self._found(asking)
        finally:
            self._anew = False

    async def _found(self, asking: _Asking) -> _Found | None:
        """Wait for a run, and rest on what it has touched; None where it is closed meanwhile."""
        self._asking = asking
        try:
            found = await asking.found(self)
        finally:
            self._asking = None
        if found is not None and not self._others.closed.is_set():
            await self._rest(found.rests_on)
        return found

    async def _rest(self, found: Mapping[ReadModelWatch, RestingOn]) -> None:
        gone = [watch for watch in self._resting if watch not in found]
        self._resting = found
        for watch, on in found.items():
            watch.rest(self, on)
        for watch in gone:
            await watch.leave(self)

    # ── waiting ──────────────────────────────────────────────────────────────

    async def _is_woken(self) -> bool:
        """Wait until the answer may be another one; False when it is closed."""
        while not self._woken.is_set() and not self._has_expired():
            try:
                async with asyncio.timeout(self._expires_in_s()):
                    await self._woken.wait()
            except TimeoutError:
                continue
        self._woken.clear()
        if self._failure is not None:
            raise self._failure
        return not self._others.closed.is_set()

    def _expires_at(self) -> datetime | None:
        return min((on.expires_at for on in self._resting.values() if on.expires_at is not None), default=None)

    def _has_expired(self) -> bool:
        expires_at = self._expires_at()
        return expires_at is not None and expires_at <= self._others.clock.now()

    def _expires_in_s(self) -> float | None:
        """Seconds until the clock is looked at; None where nothing expires."""
        expires_at = self._expires_at()
        if expires_at is None:
            return None
        remaining = (expires_at - self._others.clock.now()).total_seconds()
        return min(max(remaining, EXPIRY_LOOK_S), EXPIRY_WAIT_S_MAX)

    async def _pause(self, seconds: float) -> None:
        """Wait so many seconds, unless it is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._others.closed.wait()
        except TimeoutError:
            pass

    # ── what was shown ───────────────────────────────────────────────────────

    def _is_news(self, found: _Found) -> bool:
        """Whether an answer is another one than the last; which it is from now on."""
        before = self._told_by, self._incomplete
        self._told_by, self._incomplete = found.told_by, found.answer.incomplete
        return before != (self._told_by, self._incomplete)

    def _onwards(self, found: Answer[Any]) -> Answer[Any]:
        """The answer, whose token never goes back, also where it rests on something else than the last one."""
        shows: list[Token] = []
        for token in found.shows:
            before = self._shown.get(token.high.history_id, token)
            high = max(before.high, token.high, key=lambda place: place.position)
            shows.append(Token(token.low, high))
            self._shown[high.history_id] = shows[-1]
        return replace(found, shows=tuple(shows))


def _print(value: object) -> object:
    """What tells a value from others, and is small; of what is no JSON, the value itself."""
    try:
        return blake2b(encode(value), digest_size=16).digest()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return value


class Touches:
    """What one answer of a live query touches, of however many histories.

    Attributes:
        found: by the watch on each read model.
    """

    def __init__(self, lives: Sequence[_LiveQuery]) -> None:
        self.found: dict[ReadModelWatch, RestingOn] = {}
        self._lives = lives

    def of(self, watches: Watches, requirement: Requirement) -> Requirement:
        """The requirement, which tells what is touched of one history. Blocked keys are no error: it goes on."""
        found = Requirement() if requirement is EVENTUAL else requirement
        found.strict = False
        found.touching = _TouchingOne(self, watches, self._lives)
        return found


class _TouchingOne:
    """Implements `Touching`."""

    def __init__(self, touches: Touches, watches: Watches, lives: Sequence[_LiveQuery]) -> None:
        self._touches = touches
        self._watches = watches
        self._lives = lives

    def is_shown(self, generation: Generation) -> bool:
        """See `Touching.is_shown`."""
        watch = self._watches.named(generation.name)
        if watch is None:
            return True
        return watch.shows(generation) and all(live.was_shown(watch, generation) for live in self._lives)

    async def touches(
        self,
        snapshot: ReadSnapshot,
        projection: Projection,
        live: Sequence[Generation],
        keys: Sequence[Key] | None,
        moment: datetime | None,
    ) -> None:
        """See `Touching.touches`."""
        found, watch = self._touches.found, self._watches.of(projection)
        before = found.get(watch)
        if before is not None and before.slices is not live:
            before = None  # of a run before this one, on another snapshot
        if before is not None and before.keys is None:
            return
        known = frozenset[str]() if before is None else before.keys or frozenset[str]()
        texts = None if keys is None else known.union(map(key_text, keys))
        if texts is not None and len(texts) > KEYS_MAX:
            keys = texts = None
        expiries = [before.expires_at] if before is not None and texts is not None else []
        if moment is not None:
            expiries = [*expiries, *await _expiries(snapshot, projection, keys, moment)]
        expires_at = min((at for at in expiries if at is not None), default=None)
        found[watch] = RestingOn(live, texts, expires_at)


async def _expiries(
    snapshot: ReadSnapshot, projection: Projection, keys: Sequence[Key] | None, moment: datetime
) -> list[datetime]:
    """When rows expire that have not at a moment: those of the keys, or the first of all."""
    table = projection.form.table
    assert table.expires is not None
    at = [column.name for column in table.columns].index(table.expires)
    if keys is None:
        order = [Order(name) for name in dict.fromkeys((table.expires, *table.key))]
        later = Filter(table.expires, Comparison.MORE_THAN, moment)
        rows = await snapshot.find(projection.name, [later], order, 1)
    else:
        rows = list((await snapshot.get_many(projection.name, keys)).values())
    return [row[at] for row in rows if row[at] is not None and row[at] > moment]
