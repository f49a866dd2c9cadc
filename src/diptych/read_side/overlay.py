"""Overlay: what rows lack of the history is folded onto them for one answer, which waits for no projection (rule 36).

    snapshot ──▶ rows as they are stored ─┐
                                          ├──▶ rows as they will be ──▶ the reader
    history ──▶ the events behind them ───┘

It is the fold of the projector, over the same rows, with nothing written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from diptych.errors import CannotOverlay
from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.batch import discarded, fold_steps, keys_to_load, plan_steps
from diptych.read_side.decoding import decoded
from diptych.read_side.freshness import Checks
from diptych.read_side.projection import Projection, told
from diptych.read_side.read_store import (
    SQL_ROWS_MAX,
    BlockedKey,
    ColumnKind,
    Filter,
    Generation,
    Key,
    Order,
    ReadSnapshot,
    ReadStore,
    Row,
)
from diptych.read_side.refused_row import stored_row
from diptych.read_side.row_filters import as_read, in_order, key_getter, matcher
from diptych.read_side.slice import POISON, Slice

__all__ = ["OverlaidSnapshot", "Overlay"]

TAIL_EVENTS_MAX = 1_000
"""Events that are folded onto the rows of one read model for one answer; past it, `CannotOverlay`."""
KEYS_BY_TAG_MAX = 100
"""Keys whose events are looked up by their tags; of more, all events that the read model folds are read."""

_NO_MOMENTS: Mapping[str, datetime] = MappingProxyType({})


class Overlay:
    """What it takes to fold the events that rows of one history lack."""

    def __init__(
        self, log: EventLog, history: History, read_store: ReadStore, projections: Sequence[Projection]
    ) -> None:
        """Remember where events and discards are, and the folds."""
        self.log = log
        self.history = history
        self.read_store = read_store
        self.projections = {projection.name: projection for projection in projections}

    def over(self, snapshot: ReadSnapshot, until: Place, checks: Checks) -> OverlaidSnapshot:
        """The snapshot, whose rows show the history up to a place."""
        return OverlaidSnapshot(self, snapshot, until, checks)


class _Lacking:
    """What the rows of one read model lack, as far as it is known.

    Attributes:
        slices: those that do not show the place.
        number: of their generation, where that is not the live one.
        rows: of the keys that the events change, as they are then; None where there is none any more.
        keys: whose events are folded; None: all are.
    """

    def __init__(self, projection: Projection, slices: Sequence[Slice], number: int | None) -> None:
        self.projection = projection
        self.slices = slices
        self.number = number
        self.rows: dict[Key, Row | None] = {}
        self.keys: set[Key] | None = set() if slices else None


class OverlaidSnapshot:
    """A snapshot as it will be once its rows show the history up to a place; see `ReadSnapshot`.

    What a read touches is folded when it is touched: of keys that are tagged identities the events with those tags,
    else all that the read model folds. A slice that has stopped is left as it is.
    """

    def __init__(self, overlay: Overlay, snapshot: ReadSnapshot, until: Place, checks: Checks) -> None:
        self._overlay = overlay
        self._snapshot = snapshot
        self._until = until
        self._checks = checks
        self._lacking: dict[str, _Lacking] = {}
        self._turn = asyncio.Lock()  # a handler may ask for several things at once; they are folded one by one

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """The slices, at the place that their rows are shown at. See the port."""
        return await self._shown(name, await self._snapshot.slices(name, number, expecting=expecting), number)

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """The slices of what is kept, at the place that their rows are shown at. See the port."""
        found = await self._snapshot.kept(name, fingerprint)
        return await self._shown(name, found, found[0].number) if found else ()

    async def _shown(self, name: str, found: Sequence[Generation], number: int | None) -> Sequence[Generation]:
        projection = self._overlay.projections[name]
        behind = [each for each in found if each.checkpoint.position < self._until.position and not each.stopped]
        for each in behind:
            self._checks.rest_on(each)
        blocked = await self._snapshot.blocked(name, number) if behind else []
        slices = [_slice(projection, each, blocked) for each in behind]
        self._lacking[name] = _Lacking(projection, slices, number)
        recorded_at = await self._recorded_at() if behind and projection.form.expiry is not None else None
        return [
            replace(each, checkpoint=self._until, recorded_at=recorded_at) if each in behind else each for each in found
        ]

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys. See the port."""
        return await self._snapshot.blocked(name, number)

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys. See the port."""
        changed = await self._changed(name, keys)
        found = await self._snapshot.get_many(name, [key for key in keys if key not in changed], number)
        return found | {key: row for key in keys if (row := changed.get(key)) is not None}

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in that order. See the port."""
        changed = await self._changed(name)
        rows = await self._snapshot.find(name, filters, order, limit + len(changed), after, number)
        if not changed:
            return rows
        table = self._overlay.projections[name].form.table
        key_of, matches = key_getter(table), matcher(filters, table)
        rows = [row for row in rows if key_of(row) not in changed]
        rows += in_order((row for row in changed.values() if row is not None and matches(row)), table, order, after)
        return in_order(rows, table, order, None)[:limit]

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches. See the port."""
        changed = await self._changed(name)
        count = await self._snapshot.count(name, filters, number)
        if changed:
            matches = matcher(filters, self._overlay.projections[name].form.table)
            before = await self._snapshot.get_many(name, list(changed), number)
            count -= sum(map(matches, before.values()))
            count += sum(row is not None and matches(row) for row in changed.values())
        return count

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows by their words, which the store alone can find: where none of the read model are changed.

        Raises:
            CannotOverlay: some are.
        """
        if await self._changed(name):
            raise _cannot(self._overlay.projections[name], "the store searches rows as they are stored")
        return await self._snapshot.search(name, text, limit, filters, number)

    async def expired(self, name: str, moment: datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that are stored, and expire by then. See the port."""
        return await self._snapshot.expired(name, moment, limit, number)

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, datetime] = _NO_MOMENTS,
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Rows of SQL, which the store alone can run: where none of the read models that were touched are changed.

        Raises:
            CannotOverlay: some are.
        """
        for name, lacking in tuple(self._lacking.items()):
            if await self._changed(name):
                raise _cannot(lacking.projection, "SQL reads rows as they are stored")
        return await self._snapshot.sql(statement, parameters, columns, moments, limit=limit)

    # ── what is lacking ──────────────────────────────────────────────────────

    async def _recorded_at(self) -> datetime | None:
        """When the event at the place was recorded; None where a fork has taken it, which is judged later."""
        before = Position(self._until.position - 1)
        found = await self._overlay.log.read(ALL_EVENTS, before, 1, until=self._until.position)
        return found.events[0].recorded_at if found.events else None

    async def _changed(self, name: str, keys: Sequence[Key] | None = None) -> Mapping[Key, Row | None]:
        """The rows, of these keys and perhaps of others, that are not in the store yet as they will be; of all keys."""
        lacking = self._lacking[name]
        async with self._turn:
            if lacking.keys is None or (keys is not None and lacking.keys.issuperset(keys)):
                return lacking.rows
            tagged = None if keys is None or len(keys) > KEYS_BY_TAG_MAX else lacking.projection.query_of(keys)
            if keys is None or tagged is None:
                lacking.rows, lacking.keys = await self._folded(lacking, lacking.projection.query), None
            else:
                lacking.rows |= await self._folded(lacking, tagged, frozenset(keys))
                lacking.keys.update(keys)
            return lacking.rows

    async def _folded(
        self, lacking: _Lacking, query: EventQuery, keys: Collection[Key] | None = None
    ) -> dict[Key, Row | None]:
        """The rows after the events of a query that they lack; None for those that there are none of any more.

        With `keys` those of them alone: of other rows not all events may be here.

        Raises:
            CannotOverlay: there are too many, or one of them cannot be folded.
        """
        projection, after = lacking.projection, min(slice.position for slice in lacking.slices)
        found = await self._overlay.log.read(query, after, TAIL_EVENTS_MAX, until=self._until.position)
        if found.more:
            raise _cannot(projection, f"it lacks more than TAIL_EVENTS_MAX={TAIL_EVENTS_MAX} events")
        rows: dict[Key, Row | None] = {}
        if not found.events:
            return rows
        discards = discarded(await self._overlay.read_store.discards(projection.name))
        for slice in lacking.slices:
            slice.discards = discards
            try:
                rows |= await self._fold(slice, found.events, lacking.number, keys)
            except POISON as error:
                raise _cannot(projection, told(error)) from error
        return rows

    async def _fold(
        self, slice: Slice, events: Sequence[RecordedEvent], number: int | None, keys: Collection[Key] | None
    ) -> dict[Key, Row | None]:
        projection, form = slice.projection, slice.projection.form
        lacked = [event for event in events if event.position > slice.position]
        planned = plan_steps(projection, decoded(self._overlay.history, lacked, in_context=projection.takes_context))
        if planned.stopped:
            raise _cannot(projection, planned.stopped)
        steps = slice.owned(planned.steps)
        if any(step.values is not None for step in steps):
            raise _cannot(projection, "it lacks an event that finds its rows by where=")
        if keys is not None:
            steps = [step for step in steps if step.key in keys]
        stored = keys_to_load(steps, slice.blocked)
        loaded = await self._snapshot.get_many(projection.name, stored, number) if stored else {}
        owns = None if slice.generation.slices == 1 else slice.owns
        folded = fold_steps(projection, steps, loaded, slice.blocked, slice.discards, owns)
        if folded.block:
            raise _cannot(projection, folded.block[0].error)
        return {
            key: None if row is None else as_read(form.table, stored_row(projection.functions, form, row))
            for key, row in folded.rows.items()
        }


def _slice(projection: Projection, generation: Generation, blocked: Collection[BlockedKey]) -> Slice:
    found = Slice(projection, generation)
    found.blocked = {each.key: each for each in blocked if found.owns_text(each.key)}
    return found


def _cannot(projection: Projection, reason: str) -> CannotOverlay:
    return CannotOverlay(projection.form.name, reason)
