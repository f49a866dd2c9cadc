"""The next page of a long read, fetched while its reader works on the one before.

Who reads page after page (projections behind a backlog, subscribers, folds of long histories) waits for each of them
else. What was committed never changes, so a page that is full is the same whenever it is read, as long as the history
is: one that was fetched before a fork was found is dropped. One that is not full is dropped as well, and read anew:
where it ends is for the moment to say in which it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from diptych.adapters.postgres.connection import DRIVER_ERRORS
from diptych.adapters.postgres.known_history import KnownHistory
from diptych.errors import DiptychError
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import ReadResult
from diptych.event_store.position import Position

__all__ = ["ReadAhead"]

AHEAD_EVENTS_MIN = 100
"""Events of a page that is worth another one in advance."""
AHEAD_BYTES_MAX = 4 << 20
"""Bytes of events of a page behind which another one is fetched in advance; behind a greater one none is."""
AHEAD_PAGES_MAX = 4
"""Pages held in advance, each for another reader; the oldest goes."""
AHEAD_KEPT_S = 60.0
"""How long a page is held in advance: its reader may have gone."""
READERS_REMEMBERED_MAX = 64
"""Readers of whom it is known where their last page ended, to tell those who go on."""

_Read: TypeAlias = Callable[[EventQuery, int, int | None, int], Awaitable[ReadResult]]
"""A page: of a query, after a position, until another one, at most so many."""
_Place: TypeAlias = tuple[EventQuery, int, int | None]
"""Where a page begins: query, after, until."""


class _Page(NamedTuple):
    """A page that was asked for in advance, when there were so many forks, and what ends its being held."""

    fetched: asyncio.Task[ReadResult]
    forks: int
    timer: asyncio.TimerHandle


class ReadAhead:
    """Reads pages of one store, and those that follow in advance."""

    def __init__(self, read: _Read, known: KnownHistory) -> None:
        """Remember how pages are read, and what tells of forks."""
        self._read = read
        self._known = known
        self._pages: dict[_Place, _Page] = {}
        self._ends: dict[tuple[EventQuery, int | None], int] = {}
        self._under_way: set[asyncio.Task[ReadResult]] = set()

    async def close(self) -> None:
        """End what is being fetched, however long the server takes, and forget it."""
        for place in list(self._pages):
            self._forget(place)
        self._ends.clear()
        under_way = list(self._under_way)
        for reading in under_way:
            reading.cancel()
        if under_way:
            await asyncio.wait(under_way)

    async def page(self, query: EventQuery, after: int, until: int | None, limit: int) -> ReadResult:
        """One page; where its reader goes on page by page, the next one is fetched from now on."""
        found = await self._held(query, after, until, limit) or await self._read(query, after, until, limit)
        reader = query, until
        if not found.more or limit < AHEAD_EVENTS_MIN:
            self._ends.pop(reader, None)
            return found
        goes_on = self._ends.get(reader) == after
        if reader not in self._ends and len(self._ends) >= READERS_REMEMBERED_MAX:
            self._ends.clear()
        self._ends[reader] = found.through
        if goes_on and sum(len(recorded.data) for recorded in found.events) <= AHEAD_BYTES_MAX:
            self._fetch(query, found.through, until, limit)
        return found

    async def _held(self, query: EventQuery, after: int, until: int | None, limit: int) -> ReadResult | None:
        """The page from what was fetched in advance; None where there is none, or it does not tell enough."""
        page = self._forget((query, after, until))
        if page is None:
            return None
        await asyncio.wait((page.fetched,))
        try:
            found = page.fetched.result()
        except (DiptychError, asyncio.CancelledError, *DRIVER_ERRORS):
            return None  # whoever asks now hears from a read of their own what is wrong, or that the store is closed
        events = found.events
        if page.forks != self._known.forks or not (found.more or len(events) > limit):
            return None
        if len(events) >= limit:
            return ReadResult(events[:limit], Position(events[limit - 1].position), more=True)
        rest = await self._read(query, found.through, until, limit - len(events))
        return ReadResult(events + rest.events, rest.through, rest.more) if page.forks == self._known.forks else None

    def _fetch(self, query: EventQuery, after: int, until: int | None, limit: int) -> None:
        place = query, after, until
        if place not in self._pages:
            if len(self._pages) >= AHEAD_PAGES_MAX:
                self._forget(next(iter(self._pages)))
            reading = asyncio.ensure_future(self._read(query, after, until, limit))
            timer = asyncio.get_running_loop().call_later(AHEAD_KEPT_S, self._forget, place)
            self._pages[place] = _Page(reading, self._known.forks, timer)
            self._under_way.add(reading)
            reading.add_done_callback(self._note_done)

    def _forget(self, place: _Place) -> _Page | None:
        """The page, which is held no more."""
        page = self._pages.pop(place, None)
        if page is not None:
            page.timer.cancel()
        return page

    def _note_done(self, reading: asyncio.Task[ReadResult]) -> None:
        self._under_way.discard(reading)
        if not reading.cancelled():
            reading.exception()  # heard by those who ask for the page, if anybody does
