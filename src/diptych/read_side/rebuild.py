"""Rebuilds: a read model built anew from the history, beside the one that answers queries; and the way back.

    built beside ──▶ caught up ──▶ switched to, in one transaction ──▶ the replaced one is kept for a time ──▶ dropped
                                                ◀── gone back to ──────┘

What is kept is folded on by the processes that run its code, as long as there are any. Where it is of the same code as
what answers, nobody does: it catches up when it is gone back to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from diptych.clock import pause
from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.comparison import Comparison, compared
from diptych.read_side.projection import Projection
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import Generation, ReadStore
from diptych.read_side.rebuild_policy import RebuildPolicy, Throttle
from diptych.read_side.slice import LOOK_AGAIN_S, Slice, furthest_behind

__all__ = ["Approve", "Progress", "Rebuilds"]

CATCH_UP_ATTEMPTS_MAX = 10_000
"""How often a build is brought to the place of the live one, which another process moves on meanwhile."""
BACK_WAIT_S = 5.0
"""Seconds for which going back waits until those that fold the kept rows of other code have caught up with the live."""

Progress = Callable[[int, int], None]
"""Told the position reached, and the position to reach."""
Approve = Callable[[Comparison], bool]
"""Told how a fresh build differs from the one that answers; whether to switch to it."""
NEVER = Position(1 << 62)
"""The target of a slice that is not to switch by itself."""


class Rebuilds:
    """Builds read models anew; to switch to, or to compare with. And goes back to those that were replaced."""

    def __init__(self, projector: Projector, read_store: ReadStore, policy: RebuildPolicy | None = None) -> None:
        self._projector = projector
        self._read_store = read_store
        self._policy = policy or RebuildPolicy()
        self._turn = asyncio.Lock()  # one at a time: each drops what builds others have left behind

    async def rebuild(
        self, name: str, progress: Progress | None = None, *, approve: Approve | None = None
    ) -> Position | None:
        """Build a read model anew beside the live one, and switch when it has caught up; the old one is kept then.

        What was built of it by this code when an earlier rebuild was killed, or cancelled, is gone on with. What this
        process builds of it already, since its code has changed, is waited for: it switches by itself.

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
            if await self._built_by_itself(projection, progress) and approve is None:
                return furthest_behind(self._projector.slices_of(projection.name))
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
            projection = self._projection(name)
            await self._built_by_itself(projection, progress)
            comparison, fresh = await self._compared(projection, progress, on_trial=True)
            await self._drop(fresh)
            return comparison

    async def back(self, name: str, progress: Progress | None = None) -> Position:
        """Go back to the rows that answered before the last switch, while they are kept; those of now are kept instead.

        Rows of this code catch up with the history first. Those of other code only the processes that run it can fold
        on: where they are behind those of now, and nobody runs it any more, start it; it goes on with them by itself.

        Args:
            name: the read model's.
            progress: told how far they are.

        Returns:
            The position from which they answer.

        Raises:
            ConfigurationError: no read model has that name, or nothing of it is kept.
            StoreUnavailable: they are behind those of now, and stay so; nothing has changed.
        """
        async with self._turn:
            projection = self._projection(name)
            slices = await self._kept(projection)
            if slices[0].generation.fingerprint != self._projector.generations.fingerprint(projection):
                return await self._back_to_other_code(projection, slices)
            until = await self._answering(projection)
            await self._fold_up_to(slices, until, progress)
            return await self._switch(projection, slices)

    async def keeps(self, name: str) -> bool:
        """Whether there are rows of a read model to go back to.

        Raises:
            ConfigurationError: no read model has that name.
        """
        return bool(await self._kept_of(self._projection(name)))

    async def _kept_of(self, projection: Projection) -> list[Generation]:
        known = await self._read_store.generations()
        return [each for each in known if each.name == projection.name and each.kept_until is not None]

    async def _kept(self, projection: Projection) -> list[Slice]:
        found = [Slice(projection, each, target=NEVER) for each in await self._kept_of(projection)]
        if not found:
            raise ConfigurationError(
                f"no rows of {projection.name} are kept to go back to: none were replaced, or their time is over. The "
                "code that folded them builds them anew"
            )
        for slice in found:
            await self._projector.loaded(slice)
        return found

    async def _back_to_other_code(self, projection: Projection, kept: Sequence[Slice]) -> Position:
        name, number = projection.name, kept[0].generation.number
        give_up_at = asyncio.get_running_loop().time() + BACK_WAIT_S
        while True:
            seen = self._read_store.changes
            async with self._projector.lock:  # what is folded here waits for the others
                if await self._read_store.switch(name, number, keep_s=self._policy.keep_s):
                    await self._projector.reloaded(name)
                    return min(each.checkpoint.position for each in await self._live(name))
                left_s = give_up_at - asyncio.get_running_loop().time()
                if left_s > 0:
                    await self._read_store.wait_for_change(seen, left_s)
                    continue
            reached = furthest_behind([Slice(projection, each) for each in await self._numbered(name, number)] or kept)
            raise StoreUnavailable(
                f"{name} stays as it is: the kept rows are at position {reached}, those that answer at "
                f"{await self._answering(projection)}, and this is not the code that folds them on. Start that code "
                "again with this store: it goes on from there, and its rows answer as soon as they have caught up"
            )

    async def _switch(self, projection: Projection, fresh: Sequence[Slice]) -> Position:
        for _ in range(CATCH_UP_ATTEMPTS_MAX):
            async with self._projector.lock:
                number = fresh[0].generation.number
                if await self._read_store.switch(projection.name, number, keep_s=self._policy.keep_s):
                    self._projector.follow_instead(fresh)
                    return furthest_behind(await self._projector.reloaded(projection.name))
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

    async def _numbered(self, name: str, number: int) -> Sequence[Generation]:
        async with self._read_store.snapshot() as snapshot:
            return await snapshot.slices(name, number)

    async def _drop(self, fresh: Sequence[Slice]) -> None:
        generation = fresh[0].generation
        if generation.kept_until is not None:
            return  # it was there before, and is kept as it was
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

    async def _built_by_itself(self, projection: Projection, progress: Progress | None) -> bool:
        """Wait for what the projector of this process is building, if anything; whether it answers now.

        Nothing is built beside it: whichever of the two switches drops the other.
        """
        name, waited = projection.name, False
        while self._projector.is_running and not self._projector.failure:
            seen = self._read_store.changes
            async with self._projector.lock:  # another process may build it, too, and have switched
                mine = await self._projector.reloaded(name)
            if not all(slice.goes_on for slice in mine) or not any(slice.generation.under_way for slice in mine):
                return waited and all(slice.generation.live for slice in mine)
            waited = True
            if progress is not None:
                progress(furthest_behind(mine), max(slice.target for slice in mine))
            await self._read_store.wait_for_change(seen, LOOK_AGAIN_S)
        return False

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
        made = () if on_trial else await self._left_behind(projection, slices, until)
        if not made:
            made = await self._projector.generations.create(
                projection, live=False, anew=True, slices=slices, on_trial=on_trial
            )
        fresh = [Slice(projection, generation, target=NEVER) for generation in made]
        for slice in fresh:
            await self._projector.loaded(slice)
        await self._fold_up_to(fresh, until, progress)
        return fresh

    async def _fold_up_to(self, fresh: Sequence[Slice], until: Position, progress: Progress | None) -> None:
        throttle = Throttle(self._policy.events_per_s)
        while (before := furthest_behind(fresh)) < until:
            async with self._projector.lock:
                await self._fold(fresh, until)
            throttle.note(furthest_behind(fresh) - before)
            if progress is not None:
                progress(furthest_behind(fresh), until)
            await pause(throttle.due_in_s)

    async def _left_behind(self, projection: Projection, slices: int, until: Position) -> Sequence[Generation]:
        """What an earlier rebuild has left when it was killed: to go on with if it is of this very fold, else dropped.

        It may be somebody's who is at work on it: two that fold one build waste work, not rows. One that has passed an
        event which was discarded may have folded it before it was, and is dropped.
        """
        mine = self._projector.slices_of(projection.name) if self._projector.is_running else ()
        followed = {slice.generation.number for slice in mine}  # built here, and switched to without being asked
        found: dict[int, list[Generation]] = {}
        for each in await self._read_store.generations():
            if each.name == projection.name and each.under_way and each.number not in followed:
                found.setdefault(each.number, []).append(each)
        fingerprint = self._projector.generations.fingerprint(projection)
        left_out = min((found.position for found in await self._read_store.discards(projection.name)), default=NEVER)
        usable = [
            build
            for build in found.values()
            if (build[0].fingerprint, len(build)) == (fingerprint, slices)
            and all(each.checkpoint.position <= until and each.checkpoint.position < left_out for each in build)
            and not any(each.stopped or each.barrier is not None for each in build)
            and all([await self._projector.generations.fits(each) for each in build])
        ]
        chosen = max(usable, key=lambda build: build[0].checkpoint.position, default=())
        for number in found:
            if not chosen or number != chosen[0].number:
                await self._read_store.drop_generation(projection.name, number)
        return chosen

    async def _advance(self, fresh: Sequence[Slice], until: Position) -> None:
        """Fold up to a position at one go; the caller holds the projector's lock."""
        await self._drop_if_stopped(fresh)
        while furthest_behind(fresh) < until:
            await self._fold(fresh, until)

    async def _fold(self, fresh: Sequence[Slice], until: Position) -> None:
        folded = await self._projector.advance(fresh, until)
        await self._drop_if_stopped(fresh)
        if not folded:
            held_up = "another process splits it anew, or the history has become shorter; try again"
            raise await self._given_up(fresh, f"it gets no further than position {furthest_behind(fresh)}: {held_up}")

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
