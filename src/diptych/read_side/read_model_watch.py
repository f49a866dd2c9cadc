"""The watch on one read model of one history, for all live queries that rest on its rows.

checkpoint moves ──▶ which events lie in between? ──▶ the projection's plan: whose rows? ──▶ who rests on those is woken

There is one for a read model, however many live queries there are, and none while there are none. It waits as queries
wait for freshness, so it notices what any process folds. A row may change without an event (a key is tried again or
left out by hand, a projection stops or goes on, a rebuild is switched to, the history forks): then all are woken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from diptych.clock import pause
from diptych.errors import StoreClosed, StoreUnavailable, Unavailable
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.read_side.batch import DecodedEvent, plan_steps
from diptych.read_side.decoding import decoded
from diptych.read_side.projection import Projection
from diptych.read_side.query_bus import ReadPanel
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import Generation
from diptych.read_side.slice import POISON

__all__ = ["ReadModelWatch", "RestingOn", "Restless", "Watches", "is_as_new"]

TOUCHED_EVENTS_MAX = 500
"""Events between two looks of which it is told whose rows they touch; where there are more, all may be."""
TOUCHED_KEYS_MAX = 10_000
"""Keys that they may touch; where there are more, all may be."""
WATCH_WAIT_S = 30.0
"""Seconds after which a watch looks again without having been woken."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.05, 5.0
"""Seconds between looks while a store is unavailable: doubled each time, up to the second."""

_log = logging.getLogger("diptych.live_queries")


class RestingOn(NamedTuple):
    """What of a read model the last answer of a live query rests on.

    Attributes:
        slices: all of the generation, as the answer's snapshot showed them.
        keys: of the rows that were asked for, as JSON arrays; None where any row may be among those shown.
        expires_at: when the first of them expires; None where none does.
    """

    slices: Sequence[Generation]
    keys: frozenset[str] | None
    expires_at: datetime | None = None


class Restless(Protocol):
    """A live query, to be woken."""

    def wake(self, *, verify: bool = False) -> None:
        """The answer may be another one now; with `verify`, what it last showed may be of no history any more."""
        ...

    def fail(self, error: Exception) -> None:
        """Nobody can tell any more when it would be."""
        ...


class ReadModelWatch:
    """Watches one read model while anyone rests on it. Belongs to one event loop.

    Nothing is awaited between a change being told and being known, so that who begins to rest on a row either is told
    of a change, or finds that what is known is newer than what it has seen.

    Attributes:
        panel: where it is asked for.
    """

    def __init__(self, panel: ReadPanel, projection: Projection, history: History) -> None:
        self.projection = projection
        self.panel = panel
        self._history = history
        self._fingerprint = panel.projections[projection.form.cls][1]
        self._resting: dict[Restless, RestingOn] = {}
        self._on_any: set[Restless] = set()
        self._on_key: dict[str, set[Restless]] = {}
        self._known: Sequence[Generation] = ()
        self._forks = 0
        self._task: asyncio.Task[None] | None = None

    # ── who rests on it ──────────────────────────────────────────────────────

    def rest(self, who: Restless, on: RestingOn) -> None:
        """Wake them from now on when that may have changed; at once where it may have changed already."""
        before = self._resting.get(who)
        if not self._resting:
            self._known, self._forks = on.slices, self.panel.store.forks
        if before is None or before.keys != on.keys:
            self._forget(who)
            self._remember(who, on)
            if _is_newer(self._known, on.slices):
                who.wake()
        self._resting[who] = on
        if _has_expired(on, self._known):
            who.wake()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._follow(), name=f"diptych watch {self.projection.name}"
            )

    async def leave(self, who: Restless) -> None:
        """Wake them no more. With the last one the watch ends."""
        self._forget(who)
        if not self._resting and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait((task,))

    def _remember(self, who: Restless, on: RestingOn) -> None:
        if on.keys is None:
            self._on_any.add(who)
        for key in on.keys or ():
            self._on_key.setdefault(key, set()).add(who)

    def _forget(self, who: Restless) -> None:
        before = self._resting.pop(who, None)
        self._on_any.discard(who)
        for key in (before.keys if before is not None else None) or ():
            others = self._on_key[key]
            others.discard(who)
            if not others:
                del self._on_key[key]

    def shows(self, slice: Generation) -> bool:
        """Whether a slice shows at least what is known here: no answer is asked for from before what it is woken by."""
        return not self._resting or is_as_new(slice, self._known)

    # ── watching ─────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        backoff = BACKOFF_FIRST_S
        while True:
            try:
                await self._tell(await self._moved())
                backoff = BACKOFF_FIRST_S
            except Unavailable as error:
                _log.warning("live queries of %s wait %.2f s: %s", self.projection.name, backoff, error)
                await pause(backoff)
                backoff = min(backoff * 2, BACKOFF_MAX_S)
            except StoreClosed:
                return  # whoever closes it ends the live queries
            except Exception as error:  # noqa: BLE001 — every one of them raises it
                for who in tuple(self._resting):
                    who.fail(error)
                return

    async def _moved(self) -> Sequence[Generation]:
        """All slices of the live generation, once they are not as they are known."""
        name = self.projection.name
        while True:
            asking = self.panel.source.asking(strict=False)
            while True:
                try:
                    async with asking.snapshot() as snapshot:
                        shown = await snapshot.slices(name)
                except StoreUnavailable as error:
                    if not asking.refused(error):
                        raise
                    continue
                if self._differs(shown, is_replica=bool(asking.replica)):
                    return shown
                if not asking.lacks(name, shown):
                    break
            await asking.wait(name, shown, WATCH_WAIT_S)

    def _differs(self, shown: Sequence[Generation], *, is_replica: bool) -> bool:
        """Whether there is news in this. The read store itself goes back only with a failover; a replica is behind."""
        if self._forks != self.panel.store.forks:
            return True
        return _is_newer(shown, self._known) or (not is_replica and bool(shown) and _is_newer(self._known, shown))

    async def _tell(self, shown: Sequence[Generation]) -> None:
        store = self.panel.store
        whole = self._is_by_event_alone(shown)
        keys = await self._touched(shown) if whole else None
        went_back = not _is_newer(shown, self._known) and _is_newer(self._known, shown)
        verify = went_back or self._forks != store.forks
        self._known, self._forks = shown, store.forks
        if keys is None or verify:
            woken = set(self._resting)
        else:
            woken = {who for key in keys for who in self._on_key.get(key, ())}
            woken |= self._on_any if keys else set()
            woken |= {who for who, on in self._resting.items() if _has_expired(on, shown)}
        for who in woken:
            who.wake(verify=verify)

    def _is_by_event_alone(self, shown: Sequence[Generation]) -> bool:
        """Whether rows have changed by events and nothing else, which the fold of this process can tell of."""
        if len(shown) != len(self._known) or shown[0].fingerprint != self._fingerprint:
            return False
        return all(
            (now.number, now.epoch, now.stopped) == (then.number, then.epoch, then.stopped)
            for now, then in zip(shown, self._known, strict=True)
        )

    async def _touched(self, shown: Sequence[Generation]) -> frozenset[str] | None:
        """The keys that the events touch by which the slices have moved on; None where any may be.

        Where only somebody rests on any row, whether there is such an event is enough.
        """
        after = min(slice.checkpoint.position for slice in self._known)
        until = max(slice.checkpoint.position for slice in shown)
        limit = TOUCHED_EVENTS_MAX if self._on_key else 1
        found = await self.panel.store.read(self.projection.query, after, limit, until=Position(until))
        if not self._on_key:
            return None if found.events else frozenset()
        if found.more:
            return None
        try:
            events = decoded(self._history, found.events, in_context=self.projection.takes_context)
            return _keys(self.projection, events)
        except POISON:  # the fold meets the same, and says so: the key is blocked, or the projection stops
            return None


def _keys(projection: Projection, events: Sequence[DecodedEvent]) -> frozenset[str] | None:
    planned = plan_steps(projection, events)
    keys = {step.key for step in planned.steps}
    if planned.stopped or None in keys or len(keys) > TOUCHED_KEYS_MAX:
        return None
    return frozenset(key_text(key) for key in keys if key is not None)


def _has_expired(on: RestingOn, known: Sequence[Generation]) -> bool:
    """Whether a row has expired by the time of the log, which may be ahead of this process's clock."""
    if on.expires_at is None:
        return False
    return any(slice.recorded_at is not None and slice.recorded_at >= on.expires_at for slice in known)


def _is_newer(shown: Sequence[Generation], known: Sequence[Generation]) -> bool:
    """Whether slices are of a later moment than those known; what has stopped, or goes on again, counts as well."""
    if not shown or not known:
        return bool(shown)
    if shown[0].number != known[0].number or len(shown) != len(known):
        return (shown[0].number, _epoch(shown)) > (known[0].number, _epoch(known))
    pairs = list(zip(shown, known, strict=True))
    if any(_rank(now) != _rank(then) for now, then in pairs):
        return all(is_as_new(now, known) for now in shown)
    return any(now.stopped != then.stopped for now, then in pairs)


def is_as_new(slice: Generation, known: Sequence[Generation]) -> bool:
    """Whether a slice is of the moment of the known ones, or of a later one."""
    if not known or slice.number != known[0].number:
        return not known or slice.number > known[0].number
    if slice.slices != len(known):
        return slice.epoch > _epoch(known)
    then = known[slice.slice]
    return slice.checkpoint.position >= then.checkpoint.position and slice.epoch >= then.epoch


def _rank(slice: Generation) -> tuple[int, int]:
    return slice.checkpoint.position, slice.epoch


def _epoch(slices: Sequence[Generation]) -> int:
    return max(slice.epoch for slice in slices)


class Watches:
    """The watches on the read models of one history, each where it is answered from. Made by the application."""

    def __init__(self, panels: Sequence[ReadPanel], history: History) -> None:
        self._panels = {model: panel for panel in panels for model in panel.projections}
        self._history = history
        self._watches: dict[str, ReadModelWatch] = {}

    def named(self, name: str) -> ReadModelWatch | None:
        """The watch on the read model of a projection of that name; None where nobody rested on it yet."""
        return self._watches.get(name)

    def of(self, projection: Projection) -> ReadModelWatch:
        """The watch on a projection's read model."""
        found = self._watches.get(projection.name)
        if found is None:
            found = self._watches[projection.name] = ReadModelWatch(
                self._panels[projection.form.cls], projection, self._history
            )
        return found
