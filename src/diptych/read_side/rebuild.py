"""Rebuilds: a read model built anew from the history, beside the one that answers queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.comparison import Comparison, compared
from diptych.read_side.projection import Projection
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import Generation, ReadStore
from diptych.read_side.slice import Slice

__all__ = ["Approve", "Progress", "Rebuilds"]

CATCH_UP_ATTEMPTS_MAX = 10_000
"""How often a build is brought to the place of the live one, which another process moves on meanwhile."""

Progress = Callable[[int, int], None]
"""Told the position reached, and the position to reach."""
Approve = Callable[[Comparison], bool]
"""Told how a fresh build differs from the one that answers; whether to switch to it."""


class Rebuilds:
    """Builds read models anew; to switch to, or to compare with."""

    def __init__(self, projector: Projector, read_store: ReadStore) -> None:
        self._projector = projector
        self._read_store = read_store
        self._turn = asyncio.Lock()  # one at a time: each drops what builds others have left behind

    async def rebuild(
        self, name: str, progress: Progress | None = None, *, approve: Approve | None = None
    ) -> Position | None:
        """Build a read model anew beside the live one, and switch when it has caught up; the old one is dropped.

        Args:
            name: the read model's.
            progress: told how far it is.
            approve: asked before the switch, with how the rows differ from those that answer, at one position.

        Returns:
            The position from which the new rows answer; None where that was not approved, and nothing has changed.

        Raises:
            ConfigurationError: no read model has that name.
            StoreUnavailable: the fold stops at an event that it cannot get past, or the live one moves on faster than
                it can be caught up with; the live one stays.
        """
        async with self._turn:
            projection = self._projection(name)
            await self._clear(projection)
            if approve is None:
                until = await self._answering(projection)
                fresh: Sequence[Slice] = await self._built(projection, projection.partitions, until, progress)
                return await self._switch(projection, fresh)
            comparison, fresh = await self._compared(projection, progress)
            approved = False
            try:
                approved = approve(comparison)
            finally:
                if not approved:
                    await self._drop(fresh)
            return await self._switch(projection, fresh) if approved else None

    async def compare(self, name: str, progress: Progress | None = None) -> Comparison:
        """Compare the rows that answer, whatever code has folded them, with a fresh fold of this code at one position.

        Raises as `rebuild` does; nothing is changed, and what others are building meanwhile is left alone.
        """
        async with self._turn:
            comparison, fresh = await self._compared(self._projection(name), progress, on_trial=True)
            await self._drop(fresh)
            return comparison

    async def _switch(self, projection: Projection, fresh: Sequence[Slice]) -> Position:
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

    async def _compared(
        self, projection: Projection, progress: Progress | None, *, on_trial: bool = False
    ) -> tuple[Comparison, Sequence[Slice]]:
        """How what answers differs from a fresh build, in one snapshot in which both are at the same places.

        A build `on_trial` is to be dropped again: a process that opens with this code does not take it for its own.
        """
        name, live = projection.name, await self._live(projection.name)
        until = min((each.checkpoint.position for each in live), default=await self._answering(projection))
        slices = len(live) or projection.partitions
        fresh = await self._built(projection, slices, until, progress, on_trial=on_trial)
        try:
            for _ in range(CATCH_UP_ATTEMPTS_MAX):
                async with AsyncExitStack() as looking:
                    async with self._projector.lock:  # the live one goes on once the snapshot is there
                        with self._projector.leaving_alone(name):
                            await self._follow(fresh, live)
                            snapshot = await looking.enter_async_context(self._read_store.snapshot())
                    now, mine = await snapshot.slices(name), [slice.generation for slice in fresh]
                    if not now or [each.checkpoint for each in now] == [each.checkpoint for each in mine]:
                        return await compared(snapshot, now, mine), fresh
            raise StoreUnavailable(f"{name} cannot be compared: {_not_caught_up()}")
        except BaseException:
            await self._drop(fresh)
            raise

    async def _follow(self, fresh: Sequence[Slice], live: Sequence[Generation]) -> None:
        """Bring each slice to where that of the live build is now.

        Raises:
            StoreUnavailable: that is another build, or another number of slices, by now.
        """
        now = await self._live(fresh[0].projection.name)
        if [each.lease_key for each in now] != [each.lease_key for each in live]:
            name = fresh[0].projection.name
            raise StoreUnavailable(f"{name} was replaced or split anew meanwhile; compare it again")
        for slice, each in zip(fresh, now, strict=bool(now)):
            await self._advance([slice], each.checkpoint.position)

    async def _live(self, name: str) -> Sequence[Generation]:
        async with self._read_store.snapshot() as snapshot:
            return await snapshot.slices(name)

    async def _drop(self, fresh: Sequence[Slice]) -> None:
        generation = fresh[0].generation
        answering = {found.number for found in await self._live(generation.name)}
        if generation.number not in answering:  # a process that began with this code meanwhile goes on with it
            await self._read_store.drop_generation(generation.name, generation.number)

    def _projection(self, name: str) -> Projection:
        known = {slice.projection.name: slice.projection for slice in self._projector.slices}
        short = [projection for projection in known.values() if projection.form.name == name]
        if name not in known and len(short) != 1:
            raise ConfigurationError(f"no read model is named {name!r}; there are {', '.join(known)}")
        return known[name] if name in known else short[0]

    async def _answering(self, projection: Projection) -> Position:
        """How far what answers queries is, and what is followed here, which may be another one that is being built.

        Where nothing answers, how far the history is.
        """
        followed = [slice.position for slice in self._projector.slices_of(projection.name)]
        answering = [found.checkpoint.position for found in await self._live(projection.name)]
        return max([*followed, *(answering or [await self._projector.head()])])

    async def _built(
        self,
        projection: Projection,
        slices: int,
        until: Position,
        progress: Progress | None,
        *,
        on_trial: bool = False,
    ) -> list[Slice]:
        """A new generation, folded up to a position; the live one has its turn between batches."""
        made = await self._projector.create(projection, live=False, anew=True, slices=slices, on_trial=on_trial)
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
        await self._drop(fresh)
        return StoreUnavailable(f"{fresh[0].generation.name} cannot be rebuilt: {reason}")


def _not_caught_up() -> str:
    return (
        "the live one, which another process moves on, was not caught up with in "
        f"CATCH_UP_ATTEMPTS_MAX={CATCH_UP_ATTEMPTS_MAX} attempts; try again when less is written"
    )


def _position(slices: Sequence[Slice]) -> Position:
    return min(slice.position for slice in slices)
