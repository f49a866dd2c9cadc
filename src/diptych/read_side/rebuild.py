"""Rebuilds: a read model built anew from the history, beside the one that answers queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.projector import Projector, Slice
from diptych.read_side.read_store import Order, ReadSnapshot, ReadStore

__all__ = ["Difference", "Progress", "Rebuilds"]

COMPARE_PAGE_ROWS = 1_000
"""Rows compared at once."""

Progress = Callable[[int, int], None]
"""Told the position reached, and the position to reach."""


class Difference(NamedTuple):
    """The first place at which a read model differs from a fresh fold of the history.

    Attributes:
        read_model: the projection's name.
        live: the row that answers queries; None where there is none.
        fresh: the row as folded anew; None where there is none.
    """

    read_model: str
    live: object
    fresh: object


class Rebuilds:
    """Builds read models anew; to switch to, or to compare with."""

    def __init__(self, projector: Projector, read_store: ReadStore) -> None:
        self._projector = projector
        self._read_store = read_store
        self._turn = asyncio.Lock()  # one at a time: each drops what builds others have left behind

    async def rebuild(self, name: str, progress: Progress | None = None) -> Position:
        """Build a read model anew beside the live one, and switch when it has caught up; the old one is dropped.

        Returns:
            The position from which the new rows answer.

        Raises:
            ConfigurationError: no read model has that name.
            StoreUnavailable: the fold stops at an event that it cannot get past; the live one stays.
        """
        async with self._turn:
            return await self._rebuild(self._slice(name), progress)

    async def _rebuild(self, live: Slice, progress: Progress | None) -> Position:
        fresh = await self._built(live, await self._answering(live), progress)
        while True:
            async with self._projector.lock:
                if await self._projector.switch(fresh):
                    index = self._projector.slices.index(live)
                    self._projector.slices[index] = fresh
                    return fresh.position
                await self._projector.loaded(live)
                await self._projector.loaded(fresh)  # it may be gone, and then never switches
                await self._advance(fresh, await self._answering(live))

    async def verify(self, name: str, progress: Progress | None = None) -> Difference | None:
        """Compare a read model, row by row, with a fresh fold of the history at the same position.

        Raises as `rebuild` does, and ConfigurationError where there are no rows of this code.
        """
        async with self._turn:
            return await self._verify(self._slice(name), progress)

    async def _verify(self, live: Slice, progress: Progress | None) -> Difference | None:
        name = live.projection.name
        await self._projector.loaded(live)
        if live.generation.number == 0:
            raise ConfigurationError(f"{name} has no rows of this code to compare: run the application, or rebuild it")
        fresh = await self._built(live, live.position, progress)
        try:
            while True:
                async with self._projector.lock:
                    await self._projector.loaded(live)
                    await self._projector.loaded(fresh)
                    await self._advance(fresh, max(live.position, fresh.position))
                    while fresh.position < live.position:
                        await self._advance(fresh, live.position)
                    async with self._read_store.snapshot() as snapshot:
                        now = await snapshot.generation(name, live.generation.number)
                        if now is not None and now.checkpoint == fresh.generation.checkpoint:
                            return await _compare(snapshot, live, fresh)
        finally:
            await self._read_store.drop_generation(name, fresh.generation.number)

    def _slice(self, name: str) -> Slice:
        found = [slice for slice in self._projector.slices if slice.projection.name == name]
        short = [slice for slice in self._projector.slices if slice.projection.form.name == name]
        candidates = found or short
        if len(candidates) != 1:
            known = ", ".join(slice.projection.name for slice in self._projector.slices)
            raise ConfigurationError(f"no read model is named {name!r}; there are {known}")
        return candidates[0]

    async def _answering(self, live: Slice) -> Position:
        """Where the generation is that answers queries: another one than the slice's, while that is being built."""
        known = await self._read_store.generations()
        answering = [found for found in known if found.live and found.name == live.projection.name]
        return max([live.position, *(found.checkpoint.position for found in answering)])

    async def _built(self, live: Slice, until: Position, progress: Progress | None) -> Slice:
        """A new generation, folded up to a position."""
        await self._clear(live)
        generation = await self._projector.create(live.projection, live=False, anew=True)
        fresh = await self._projector.loaded(Slice(live.projection, generation, target=Position(1 << 62)))
        while fresh.position < until:
            async with self._projector.lock:
                await self._advance(fresh, until)
            if progress is not None:
                progress(fresh.position, until)
        return fresh

    async def _clear(self, live: Slice) -> None:
        """Drop what an earlier rebuild left behind when it was killed."""
        for found in await self._read_store.generations():
            mine = live.generation
            if found.name == mine.name and found.number != mine.number and not found.live:
                await self._read_store.drop_generation(found.name, found.number)

    async def _advance(self, fresh: Slice, until: Position) -> None:
        await self._projector.advance([fresh], until)
        if fresh.stopped:
            await self._read_store.drop_generation(fresh.projection.name, fresh.generation.number)
            raise StoreUnavailable(f"{fresh.projection.name} cannot be rebuilt: {fresh.stopped}")


async def _compare(snapshot: ReadSnapshot, live: Slice, fresh: Slice) -> Difference | None:
    name, form = live.projection.name, live.projection.form
    order, shown = [Order(column) for column in form.table.key], form.unexpired(live.generation.recorded_at)
    indexes = [[column.name for column in form.table.columns].index(name) for name in form.table.key]
    after = None
    while True:
        mine = await snapshot.find(name, shown, order, COMPARE_PAGE_ROWS, after, number=live.generation.number)
        theirs = await snapshot.find(name, shown, order, COMPARE_PAGE_ROWS, after, number=fresh.generation.number)
        if mine != theirs:
            row, other = next(pair for pair in zip_longest(mine, theirs) if pair[0] != pair[1])
            return Difference(name, row and form.model(row), other and form.model(other))
        if len(mine) < COMPARE_PAGE_ROWS:
            return None
        after = [mine[-1][index] for index in indexes]
