"""Rows as they stood at one position: folded from the log for one answer, in a read store of their own.

    the events up to there ──▶ the projector's own fold ──▶ rows in memory

A whole read model, or where tags tell their events a few rows of it alone. It is the projector that folds, so that
batches, blocked keys, discards and expiry are what they are live (G6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diptych.clock import pause
from diptych.errors import Blocked, PastTooLong, StoreUnavailable
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.batch import DecodedEvent
from diptych.read_side.projection import Projection, Step
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import Generation, Key, ReadStore
from diptych.read_side.slice import Slice

__all__ = ["PastFold"]

PAST_EVENTS_MAX = 100_000
"""Events that are folded for one answer as of a past moment; past it, `PastTooLong`."""
PAST_ROWS_MAX = 100_000
"""Rows of one read model that are folded for one answer as of a past moment, looked at now and then."""

_NEVER = Position(1 << 62)
"""It answers to nobody but whoever folds it: it never takes the place of another."""


class PastFold(Projector):
    """Folds read models up to one position, for one answer. Not for concurrent use.

    Args:
        store: the log.
        history: reads it.
        rows: where the rows are folded to; open, and nobody else's.
        until: up to here.
    """

    def __init__(self, store: EventLog, history: History, rows: ReadStore, until: Position) -> None:
        super().__init__(store, history, rows, ())
        self._forks = store.forks
        self._rows = rows
        self._until = until
        self._events = 0
        self._asked = EventQuery(())
        self._name = ""

    async def whole(self, projection: Projection, discards: set[tuple[str, int]]) -> Slice:
        """A read model, as the generation that is live where the rows are.

        Raises:
            PastTooLong: that is more than a limit.
            UnreadableEvent: an event cannot be read; `HistoryPruned` where its data were dropped.
            Blocked: the fold stops for another reason.
        """
        (generation,) = await self.generations.create(projection, live=True, anew=True, slices=1)
        slice = Slice(projection, generation, _NEVER)
        slice.discards = discards
        return await self._folded(slice, projection.query)

    async def some(
        self, projection: Projection, keys: Iterable[Key], query: EventQuery, discards: set[tuple[str, int]]
    ) -> Slice:
        """The rows of some keys, from events among which are all that change them; in a generation that is not live.

        Raises as `whole` does.
        """
        (generation,) = await self.generations.create(projection, live=False, anew=True, slices=1)
        slice = _SomeKeys(projection, generation, keys)
        slice.discards = discards
        return await self._folded(slice, query)

    async def _folded(self, slice: Slice, query: EventQuery) -> Slice:
        self._asked, self._name = query, slice.projection.name
        counted, rows = self._events, 0
        while slice.goes_on and slice.position < self._until:
            if not await self.advance([slice], self._until):
                raise StoreUnavailable(f"the history ends before position {self._until} by now")
            if self._events - counted > rows:  # no more often than rows may have doubled: counting looks at each
                counted, rows = self._events, await self._row_count(slice)
            if rows > PAST_ROWS_MAX:
                raise PastTooLong("PAST_ROWS_MAX", PAST_ROWS_MAX, self._name, slice.position, self._until)
            await pause()
        if slice.stopped:
            await self._raise_what_stopped(slice)
        return slice

    async def _row_count(self, slice: Slice) -> int:
        if not slice.generation.live:
            return 0
        async with self._rows.snapshot() as snapshot:
            return await snapshot.count(self._name, ())

    async def _raise_what_stopped(self, slice: Slice) -> None:
        found = await self._store.read(self._asked, slice.position, 1, until=self._until)
        for recorded in found.events:
            self._history.parts(recorded)  # it tells by itself why it cannot be read
        raise Blocked(slice.projection.form.name, (), slice.stopped)

    # ── as the projector, but for ────────────────────────────────────────────

    def decoded(self, events: Sequence[RecordedEvent], group: Sequence[Slice]) -> list[DecodedEvent]:
        """See `Projector.decoded`; no more than the limit allows.

        Raises:
            PastTooLong: it does not.
        """
        self._events += len(events)
        if self._events > PAST_EVENTS_MAX:
            raise PastTooLong("PAST_EVENTS_MAX", PAST_EVENTS_MAX, self._name, events[-1].position, self._until)
        return super().decoded(events, group)

    def _events_of(self, group: Sequence[Slice]) -> EventQuery:
        del group
        return self._asked

    def _tell(self, text: str, *arguments: object) -> None:
        """Nobody: whoever asks is told, and for operators nothing is new."""


class _SomeKeys(Slice):
    """A slice that owns these keys alone."""

    def __init__(self, projection: Projection, generation: Generation, keys: Iterable[Key]) -> None:
        super().__init__(projection, generation, _NEVER)
        self._keys = frozenset(keys)
        self._texts = frozenset(map(key_text, self._keys))

    def owns_text(self, key: str) -> bool:
        """Whether it is one of them."""
        return key in self._texts

    def owned(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Those steps that are of one of them: of others not all events may be here."""
        return [step for step in steps if step.key in self._keys]
