"""Blocked keys, dealt with by hand (G9): tried again after the cause was mended, or without the event.

The events of a blocked key wait in the log. A retry folds them from the one that failed up to the checkpoint, and
writes the row, the end of the blockade, who had it done and why, and a new epoch in one transaction, so that no
projector anywhere can miss it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from diptych.clock import Clock
from diptych.errors import ConfigurationError, Unavailable
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import Position
from diptych.read_side.batch import Reached, fold_steps, plan_steps, slice_write
from diptych.read_side.projection import Step
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import (
    BlockedKey,
    Discard,
    Fenced,
    Generation,
    ReadStore,
    Retry,
    SliceWrite,
    Written,
)
from diptych.read_side.slice import Slice

__all__ = ["BlockedKeys"]

REPLAY_PAGE_EVENTS = 1_000
"""Events read at once by a retry."""
REPLAY_ATTEMPTS_MAX = 20
"""How often a retry starts over since a projector in another process went on meanwhile."""


class _Decision(NamedTuple):
    """What somebody has done with a blocked key."""

    position: int
    actor: str
    reason: str
    discard: bool


class BlockedKeys:
    """Lists what is blocked, and tries it again or discards it by hand."""

    def __init__(self, projector: Projector, store: EventLog, read_store: ReadStore, clock: Clock) -> None:
        self._projector = projector
        self._store = store
        self._read_store = read_store
        self._clock = clock

    async def all(self) -> list[BlockedKey]:
        """Every blocked key of the application's projections, by projection and position; without stack traces."""
        found: list[BlockedKey] = []
        async with self._read_store.snapshot() as snapshot:
            for slice in self._projector.slices:
                if slice.generation.slice == 0:
                    found += await snapshot.blocked(slice.projection.name, slice.generation.number)
        return found

    async def trace(self, blocked: BlockedKey) -> str:
        """The stack trace that is kept with a blocked key; empty where there is none."""
        of_name = self._projector.slices_of(blocked.name)
        number = of_name[0].generation.number if of_name else 0
        return await self._read_store.trace(blocked.name, number, blocked.key)

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """Who had a key tried again and why, the latest first."""
        return await self._read_store.retries(name, key, limit)

    async def discards(self) -> list[Discard]:
        """What the application's projections leave out, by projection, position and key."""
        names = sorted({slice.projection.name for slice in self._projector.slices})
        return [found for name in names for found in await self._read_store.discards(name)]

    async def retry(self, name: str, key: str, *, position: int, actor: str, reason: str) -> BlockedKey | None:
        """Fold the waiting events of a key. None when it goes on; else what blocks it now.

        Args:
            name: the projection's name, "school.Seats".
            key: the key as a JSON array, as listed.
            position: of the event that blocks it, as listed: what blocks it since is another decision.
            actor: who has it done; kept, whatever comes of it.
            reason: why; kept likewise.

        Raises:
            ConfigurationError: no such projection, or the key is not blocked by that event.
            Unavailable: other processes wrote meanwhile, more often than a named limit.
        """
        return await self._dealt_with(name, key, _Decision(position, actor, reason, discard=False))

    async def discard(self, name: str, key: str, *, position: int, actor: str, reason: str) -> BlockedKey | None:
        """Leave the event that blocks a key out of the key's row, for good (rebuilds do so too), and fold the rest.

        Raises as `retry` does.
        """
        return await self._dealt_with(name, key, _Decision(position, actor, reason, discard=True))

    async def _dealt_with(self, name: str, key: str, decision: _Decision) -> BlockedKey | None:
        if not self._projector.slices_of(name):
            known = ", ".join(dict.fromkeys(slice.projection.name for slice in self._projector.slices))
            raise ConfigurationError(f"no projection is named {name!r}; there are {known}")
        for _ in range(REPLAY_ATTEMPTS_MAX):
            async with self._projector.lock:
                with self._projector.leaving_alone(name):
                    slice = await self._changed(name, key, decision)
                if slice is not None:
                    await self._projector.loaded(slice)
                    return slice.blocked.get(key)
        raise Unavailable(f"{name} was written by others {REPLAY_ATTEMPTS_MAX} times meanwhile; try again")

    async def _changed(self, name: str, key: str, decision: _Decision) -> Slice | None:
        """The slice that was written; None where somebody else was first."""
        having = [slice for slice in await self._projector.reloaded(name) if key in slice.blocked]
        if not having:
            raise ConfigurationError(f"{name} has no blocked key {key}; see `diptych parked list`")
        slice, blocked = having[0], having[0].blocked[key]
        if blocked.position != decision.position:
            raise ConfigurationError(
                f"{name} {key} waits behind position {blocked.position} by now, and not behind "
                f"{decision.position}; see `diptych parked list`"
            )
        steps, unreadable = await self._steps(slice, blocked)
        write = (
            self._in_vain(slice, blocked, unreadable, decision)
            if unreadable
            else await self._folded(slice, blocked, steps, decision)
        )
        unaware = await self._unaware(slice.generation, blocked.position) if write.discard else []
        result, *others = await self._read_store.write([write, *unaware])
        if not isinstance(result, Fenced | Written):
            refused = self._in_vain(slice, blocked, result.reason, decision)
            (result,) = await self._read_store.write([refused])
        if isinstance(result, Fenced):
            return None
        if write.discard:
            await self._drop_kept(name)
            if not all(isinstance(each, Written) for each in others):
                await self._have_all_look(slice.generation, blocked.position)
        return slice

    async def _unaware(self, mine: Generation, position: Position) -> list[SliceWrite]:
        """What fences whoever folds other rows of the read model and has not come to a discard: they load it then."""
        return [
            SliceWrite(found, found.checkpoint, stopped=found.stopped, by_hand=True)
            for found in await self._read_store.generations()
            if found.name == mine.name and found.number != mine.number and found.checkpoint.position < position
        ]

    async def _have_all_look(self, mine: Generation, position: Position) -> None:
        """Fence those too that went on while the discard was written.

        Raises:
            Unavailable: they do so more often than a named limit.
        """
        for _ in range(REPLAY_ATTEMPTS_MAX):
            results = await self._read_store.write(await self._unaware(mine, position))
            if all(isinstance(result, Written) for result in results):
                return
        raise Unavailable(
            f"{mine.name} leaves out the event at position {position}, but what is being built of it was written "
            f"{REPLAY_ATTEMPTS_MAX} times meanwhile, and may have it: rebuild it"
        )

    async def _drop_kept(self, name: str) -> None:
        """Rows that are kept to go back to may have the event in them that is left out from now on."""
        for found in await self._read_store.generations():
            if found.name == name and found.kept_until is not None and found.slice == 0:
                await self._read_store.drop_generation(name, found.number)

    def _in_vain(self, slice: Slice, blocked: BlockedKey, error: str, decision: _Decision) -> SliceWrite:
        """What is written where nothing could be done: that it was tried, and why the key is blocked now."""
        return SliceWrite(
            generation=slice.generation,
            checkpoint=slice.generation.checkpoint,
            block=[msgspec.structs.replace(blocked, error=error, attempts=blocked.attempts + 1)],
            retried=[self._retried(blocked, decision)],
            stopped=slice.generation.stopped,
            by_hand=True,
        )

    def _retried(self, blocked: BlockedKey, by: _Decision) -> Retry:
        return Retry(blocked.name, blocked.key, blocked.position, by.actor, by.reason, self._clock.now())

    def _discarded(self, blocked: BlockedKey, by: _Decision) -> Discard:
        return Discard(blocked.name, blocked.key, blocked.position, by.actor, by.reason, self._clock.now())

    async def _folded(
        self, slice: Slice, blocked: BlockedKey, steps: Sequence[Step], decision: _Decision
    ) -> SliceWrite:
        """What trying a key again writes: its row, and either the end of the blockade or the new one."""
        name, number = slice.projection.name, slice.generation.number
        discards = [self._discarded(blocked, decision)] if decision.discard else []
        keys = list(dict.fromkeys(step.key for step in steps if step.key is not None))
        if slice.projection.finds_rows:  # perhaps no event tells the key: they find the row
            keys = [slice.projection.form.key_of_text(blocked.key)]
        async with self._read_store.snapshot() as snapshot:
            loaded = await snapshot.get_many(name, keys, number) if keys else {}
        left_out = slice.discards | {(found.key, int(found.position)) for found in discards}
        mine = fold_steps(slice.projection, steps, loaded, (), left_out, lambda key: key_text(key) == blocked.key)
        end = Reached(slice.generation.checkpoint, slice.generation.recorded_at)
        write = slice_write(slice.projection, slice.generation, mine, loaded.keys(), end)
        return SliceWrite(
            generation=slice.generation,
            checkpoint=slice.generation.checkpoint,
            upserts=write.upserts,
            deletes=write.deletes,
            block=[_counted(found, blocked) for found in write.block],
            unblock=() if write.block else (blocked.key,),
            discard=discards,
            retried=[] if decision.discard else [self._retried(blocked, decision)],
            by_hand=True,
        )

    async def _steps(self, slice: Slice, blocked: BlockedKey) -> tuple[list[Step], str]:
        """The steps of one key, from the event that failed to the checkpoint; and why they are not all, if so.

        An event that cannot be read may concern the key: to go on behind it would be to skip it.
        """
        steps: list[Step] = []
        after, more = Position(blocked.position - 1), True
        while more:
            found = await self._store.read(
                slice.projection.query, after, REPLAY_PAGE_EVENTS, until=slice.generation.checkpoint.position
            )
            planned = plan_steps(slice.projection, self._projector.decoded(found.events, [slice]))
            steps += [step for step in planned.steps if step.key is None or key_text(step.key) == blocked.key]
            if planned.stopped:
                return steps, planned.stopped
            after, more = found.through, found.more
        return steps, ""


def _counted(found: BlockedKey, before: BlockedKey) -> BlockedKey:
    """A key that is blocked again, at the same event with the attempts of before."""
    if found.position != before.position:
        return found
    return msgspec.structs.replace(found, attempts=before.attempts + found.attempts)
