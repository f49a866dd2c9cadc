"""Rebuilds: a read model built anew from the history, beside the one that answers queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.projection import Projection
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import Order, ReadSnapshot, ReadStore
from diptych.read_side.slice import Slice

__all__ = ["Difference", "Progress", "Rebuilds"]

COMPARE_PAGE_ROWS = 1_000
"""Rows compared at once."""
CATCH_UP_ATTEMPTS_MAX = 10_000
"""How often a build is brought to the place of the live one, which another process moves on meanwhile."""

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
            StoreUnavailable: the fold stops at an event that it cannot get past, or the live one moves on faster than
                it can be caught up with; the live one stays.
        """
        async with self._turn:
            return await self._rebuild(self._projection(name), progress)

    async def _rebuild(self, projection: Projection, progress: Progress | None) -> Position:
        fresh = await self._built(projection, projection.partitions, await self._answering(projection), progress)
        for _ in range(CATCH_UP_ATTEMPTS_MAX):
            async with self._projector.lock:
                if await self._read_store.switch(projection.name, fresh[0].generation.number):
                    self._projector.follow_instead(fresh)
                    return _position(await self._projector.reloaded(projection.name))
                for slice in fresh:
                    await self._projector.loaded(slice)  # it may be gone, and then never switches
                await self._projector.reloaded(projection.name)
                await self._advance(fresh, await self._answering(projection))
        raise await self._given_up(fresh, _not_caught_up())

    async def verify(self, name: str, progress: Progress | None = None) -> Difference | None:
        """Compare a read model, row by row, with a fresh fold of the history at the same position.

        Raises as `rebuild` does, and ConfigurationError where there are no rows of this code.
        """
        async with self._turn:
            return await self._verify(self._projection(name), progress)

    async def _verify(self, projection: Projection, progress: Progress | None) -> Difference | None:
        name = projection.name
        async with self._projector.lock:
            live = await self._projector.reloaded(name)
        number = live[0].generation.number
        if number == 0:
            raise ConfigurationError(f"{name} has no rows of this code to compare: run the application, or rebuild it")
        fresh = await self._built(projection, len(live), _position(live), progress)
        try:
            for _ in range(CATCH_UP_ATTEMPTS_MAX):
                async with self._projector.lock:
                    live = await self._projector.reloaded(name)
                    if [slice.lease_key for slice in live] != [(name, number, n) for n in range(len(fresh))]:
                        raise StoreUnavailable(f"{name} was replaced or split anew meanwhile; compare it again")
                    for mine, theirs in zip(fresh, live, strict=True):
                        await self._advance([mine], theirs.position)
                    async with self._read_store.snapshot() as snapshot:
                        now = [slice.checkpoint for slice in await snapshot.slices(name, number)]
                        if now == [slice.generation.checkpoint for slice in fresh]:
                            return await _compare(snapshot, live, fresh[0].generation.number)
            raise StoreUnavailable(f"{name} cannot be compared: {_not_caught_up()}")
        finally:
            await self._read_store.drop_generation(name, fresh[0].generation.number)

    def _projection(self, name: str) -> Projection:
        known = {slice.projection.name: slice.projection for slice in self._projector.slices}
        short = [projection for projection in known.values() if projection.form.name == name]
        if name not in known and len(short) != 1:
            raise ConfigurationError(f"no read model is named {name!r}; there are {', '.join(known)}")
        return known[name] if name in known else short[0]

    async def _answering(self, projection: Projection) -> Position:
        """How far what answers queries is, and what is followed here, which may be another one that is being built."""
        followed = [slice.position for slice in self._projector.slices_of(projection.name)]
        known = await self._read_store.generations()
        answering = [found.checkpoint.position for found in known if found.live and found.name == projection.name]
        return max([*followed, *answering])

    async def _built(
        self, projection: Projection, slices: int, until: Position, progress: Progress | None
    ) -> list[Slice]:
        """A new generation, folded up to a position; the live one has its turn between batches."""
        await self._clear(projection)
        made = await self._projector.create(projection, live=False, anew=True, slices=slices)
        fresh = [Slice(projection, generation, target=Position(1 << 62)) for generation in made]
        for slice in fresh:
            await self._projector.loaded(slice)
        while _position(fresh) < until:
            async with self._projector.lock:
                await self._fold(fresh, until)
            if progress is not None:
                progress(_position(fresh), until)
        return fresh

    async def _clear(self, projection: Projection) -> None:
        """Drop what an earlier rebuild left behind when it was killed."""
        mine = {slice.generation.number for slice in self._projector.slices_of(projection.name)}
        for found in await self._read_store.generations():
            if found.name == projection.name and found.number not in mine and not found.live and found.slice == 0:
                await self._read_store.drop_generation(found.name, found.number)

    async def _advance(self, fresh: Sequence[Slice], until: Position) -> None:
        """Fold up to a position at one go; the caller holds the projector's lock."""
        await self._drop_if_stopped(fresh)
        while _position(fresh) < until:
            await self._fold(fresh, until)

    async def _fold(self, fresh: Sequence[Slice], until: Position) -> None:
        folded = await self._projector.advance(fresh, until)
        await self._drop_if_stopped(fresh)
        if not folded:
            held_up = "another process splits it anew, or the history has become shorter; try again"
            raise await self._given_up(fresh, f"it gets no further than position {_position(fresh)}: {held_up}")

    async def _drop_if_stopped(self, fresh: Sequence[Slice]) -> None:
        """Remove what cannot be built to its end.

        Raises:
            StoreUnavailable: it was removed.
        """
        stopped = [slice.stopped for slice in fresh if slice.stopped]
        if stopped:
            raise await self._given_up(fresh, stopped[0])

    async def _given_up(self, fresh: Sequence[Slice], reason: str) -> StoreUnavailable:
        """Remove a build, and say why."""
        generation = fresh[0].generation
        await self._read_store.drop_generation(generation.name, generation.number)
        return StoreUnavailable(f"{generation.name} cannot be rebuilt: {reason}")


def _not_caught_up() -> str:
    return (
        "the live one, which another process moves on, was not caught up with in "
        f"CATCH_UP_ATTEMPTS_MAX={CATCH_UP_ATTEMPTS_MAX} attempts; try again when less is written"
    )


def _position(slices: Sequence[Slice]) -> Position:
    return min(slice.position for slice in slices)


async def _compare(snapshot: ReadSnapshot, live: Sequence[Slice], fresh: int) -> Difference | None:
    name, form, number = live[0].projection.name, live[0].projection.form, live[0].generation.number
    moments = [slice.generation.recorded_at for slice in live if slice.generation.recorded_at is not None]
    order, shown = [Order(column) for column in form.table.key], form.unexpired(max(moments, default=None))
    indexes = [[column.name for column in form.table.columns].index(name) for name in form.table.key]
    after = None
    while True:
        mine = await snapshot.find(name, shown, order, COMPARE_PAGE_ROWS, after, number=number)
        theirs = await snapshot.find(name, shown, order, COMPARE_PAGE_ROWS, after, number=fresh)
        if mine != theirs:
            row, other = next(pair for pair in zip_longest(mine, theirs) if pair[0] != pair[1])
            return Difference(name, row and form.model(row), other and form.model(other))
        if len(mine) < COMPARE_PAGE_ROWS:
            return None
        after = [mine[-1][index] for index in indexes]
