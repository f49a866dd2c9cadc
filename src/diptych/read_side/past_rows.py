"""What queries meet of a past moment: a source whose snapshots fold what is read, when it is read.

To handlers nothing differs: they get the same reader, over rows that are folded up to one position, in a read store
that is gone with the answer.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from diptych.errors import Blocked, CannotShowPast
from diptych.event_store.position import Place
from diptych.read_side.batch import discarded
from diptych.read_side.past_fold import PastFold
from diptych.read_side.projection import Projection
from diptych.read_side.query_source import ReplicaStatus
from diptych.read_side.read_model import key_text
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
from diptych.read_side.slice import Slice

__all__ = ["Moment", "PastSnapshot", "PastSource"]

PAST_KEYS_MAX = 100
"""Rows of one read model that are folded one by one for one answer; for more, all of it is."""


class Moment(NamedTuple):
    """A past moment of one history.

    Attributes:
        place: the last event that is shown; position 0 shows nothing.
        recorded_at: when that was recorded; None at position 0.
        shown_at: as of when rows are shown that expire: the time that was asked for, or that of the last event.
    """

    place: Place
    recorded_at: dt.datetime | None
    shown_at: dt.datetime


class PastSource:
    """Every query is asked in rows that are folded for it. Implements `QuerySource`, and is the way of every query."""

    replica = ""

    def __init__(self, snapshot_of: Callable[[ReadStore], ReadSnapshot], rows: Callable[[], ReadStore]) -> None:
        self._snapshot_of = snapshot_of
        self._rows = rows

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def replicas(self) -> list[ReplicaStatus]:
        """None."""
        return []

    def asking(self, *, strict: bool) -> PastSource:
        """The way of one query."""
        del strict  # it always is
        return self

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[ReadSnapshot]:
        """A view of that moment; what is folded for it is gone with it."""
        rows = self._rows()
        await rows.open()
        try:
            yield self._snapshot_of(rows)
        finally:
            await rows.close()

    def lacks(self, name: str, live: Sequence[Generation]) -> bool:
        """False."""
        del name, live  # there is nowhere else
        return False

    async def wait(self, name: str, live: Sequence[Generation], timeout_s: float) -> None:
        """Never: nothing is behind."""
        raise AssertionError(f"{name} was behind {live} in what is folded up to there; {timeout_s} s would not help")

    def refused(self, error: Exception) -> bool:
        """False."""
        del error  # there is nowhere else
        return False


class PastSnapshot:
    """Implements `ReadSnapshot`: what is read is folded first, unless it has been.

    A read of a blocked key raises `Blocked`, whatever the caller makes of blocked keys: more of them may come to light
    with each row that is folded.
    """

    def __init__(
        self,
        projections: Mapping[str, tuple[Projection, str]],
        moment: Moment,
        fold: PastFold,
        rows: ReadStore,
        read_store: ReadStore,
    ) -> None:
        self._projections = projections
        self._moment = moment
        self._fold = fold
        self._rows = rows
        self._read_store = read_store
        self._turn = asyncio.Lock()  # a handler may ask for several things at once; they are folded one by one
        self._discards: dict[str, set[tuple[str, int]]] = {}
        self._whole: dict[str, Slice] = {}
        self._some: dict[str, dict[Key, Row | None]] = {}
        self._blocked: dict[str, dict[str, BlockedKey]] = {}

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """One, at the moment's place. See the port."""
        del number, expecting
        projection, fingerprint = self._projections[name]
        form = projection.form
        recorded_at = None if form.expiry is None else self._moment.recorded_at
        place = self._moment.place
        table = form.table
        return [Generation(name, 1, fingerprint, table, live=True, checkpoint=place, recorded_at=recorded_at)]

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """None: what answers here is of the code of today. See the port."""
        del name, fingerprint
        return ()

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """None: reads raise by themselves. See the port."""
        del name, number
        return []

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys. See the port."""
        del number
        known, asked = self._some.setdefault(name, {}), list(map(tuple, keys))
        async with self._turn:
            if name not in self._whole:
                await self._fold_some(name, [key for key in dict.fromkeys(asked) if key not in known])
        self._check_blocked(name, asked)
        if name not in self._whole:
            return {key: row for key in asked if (row := known[key]) is not None}
        async with self._rows.snapshot() as snapshot:
            return await snapshot.get_many(name, asked)

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
        del number
        await self._all(name)
        async with self._rows.snapshot() as snapshot:
            return await snapshot.find(name, filters, order, limit, after)

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches. See the port."""
        del number
        await self._all(name)
        async with self._rows.snapshot() as snapshot:
            return await snapshot.count(name, filters)

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word. See the port."""
        del number
        await self._all(name)
        async with self._rows.snapshot() as snapshot:
            return await snapshot.search(name, text, limit, filters)

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it. See the port."""
        del number
        await self._all(name)
        async with self._rows.snapshot() as snapshot:
            return await snapshot.expired(name, moment, limit)

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = MappingProxyType({}),
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Refused.

        Raises:
            CannotShowPast: always.
        """
        del statement, parameters, columns, moments, limit
        raise CannotShowPast(
            "its handler asks with Reader.sql, and rows of then are folded in memory, where there is no SQL; ask with "
            "get, find, page, count or search"
        )

    # ── folding ──────────────────────────────────────────────────────────────

    async def _fold_some(self, name: str, keys: Sequence[Key]) -> None:
        """Fold these rows alone, where tags tell their events; else all of the read model."""
        projection, known = self._projections[name][0], self._some[name]
        query = projection.query_of(keys) if len(known) + len(keys) <= PAST_KEYS_MAX else None
        if query is None:
            await self._fold_whole(name)
            return
        if keys:
            slice = await self._fold.some(projection, keys, query, await self._left_out(name))
            self._blocked.setdefault(name, {}).update(slice.blocked)
            number = slice.generation.number
            async with self._rows.snapshot() as snapshot:
                known |= await snapshot.get_many(name, keys, number)
            await self._rows.drop_generation(name, number)
        for key in keys:
            known.setdefault(key, None)

    async def _all(self, name: str) -> None:
        """Have all of a read model folded."""
        async with self._turn:
            await self._fold_whole(name)
        self._check_blocked(name)

    async def _fold_whole(self, name: str) -> None:
        if name not in self._whole:
            found = await self._fold.whole(self._projections[name][0], await self._left_out(name))
            self._whole[name] = found
            self._blocked[name] = found.blocked

    async def _left_out(self, name: str) -> set[tuple[str, int]]:
        if name not in self._discards:
            self._discards[name] = discarded(await self._read_store.discards(name))
        return self._discards[name]

    def _check_blocked(self, name: str, keys: Iterable[Key] | None = None) -> None:
        found = self._blocked.get(name, {})
        wanted = found if keys is None else [text for text in map(key_text, keys) if text in found]
        if wanted:
            first = next(iter(wanted))
            raise Blocked(self._projections[name][0].form.name, list(wanted), found[first].error)
