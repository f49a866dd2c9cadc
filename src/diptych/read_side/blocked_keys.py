"""Blocked keys, dealt with by hand (G9): replay after the fold was mended, or discard the event.

The events of a blocked key wait in the log. A replay folds them from the one that failed up to the checkpoint, and
writes the row, the end of the blockade and a new epoch in one transaction, so that no projector anywhere can miss it.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import ConfigurationError, Unavailable
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import Position
from diptych.read_side.batch import FoldedBatch, Reached, fold_steps, plan_steps, slice_write
from diptych.read_side.projection import Step
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import BlockedKey, Discard, Fenced, ReadStore, SliceWrite, Written
from diptych.read_side.slice import Slice

__all__ = ["BlockedKeys"]

REPLAY_PAGE_EVENTS = 1_000
"""Events read at once by a replay."""
REPLAY_ATTEMPTS_MAX = 20
"""How often a replay starts over since a projector in another process went on meanwhile."""


class BlockedKeys:
    """Lists, replays and discards what is blocked."""

    def __init__(self, projector: Projector, store: EventLog, read_store: ReadStore) -> None:
        self._projector = projector
        self._store = store
        self._read_store = read_store

    async def all(self) -> list[BlockedKey]:
        """Every blocked key of the application's projections, by projection and position."""
        found: list[BlockedKey] = []
        async with self._read_store.snapshot() as snapshot:
            for slice in self._projector.slices:
                if slice.generation.slice == 0:
                    found += await snapshot.blocked(slice.projection.name, slice.generation.number)
        return found

    async def replay(self, name: str, key: str) -> BlockedKey | None:
        """Fold the waiting events of a key. None when it goes on; else what blocks it now.

        Args:
            name: the projection's name, "school.Seats".
            key: the key as a JSON array, as listed.

        Raises:
            ConfigurationError: no such projection, or the key is not blocked.
            Unavailable: other processes wrote meanwhile, more often than a named limit.
        """
        return await self._retried(name, key, discard=False)

    async def discard(self, name: str, key: str) -> BlockedKey | None:
        """Leave the event that blocks a key out of the key's row, for good (rebuilds do so too), and fold the rest.

        Raises as `replay` does.
        """
        return await self._retried(name, key, discard=True)

    async def _retried(self, name: str, key: str, *, discard: bool) -> BlockedKey | None:
        if not self._projector.slices_of(name):
            known = ", ".join(dict.fromkeys(slice.projection.name for slice in self._projector.slices))
            raise ConfigurationError(f"no projection is named {name!r}; there are {known}")
        for _ in range(REPLAY_ATTEMPTS_MAX):
            async with self._projector.lock:
                having = [slice for slice in await self._projector.reloaded(name) if key in slice.blocked]
                if not having:
                    raise ConfigurationError(f"{name} has no blocked key {key}; see `diptych parked list`")
                slice, blocked = having[0], having[0].blocked[key]
                steps, unreadable = await self._steps(slice, blocked)
                if unreadable:
                    return BlockedKey(name, key, blocked.position, unreadable)
                write = await self._folded(slice, blocked, steps, discard=discard)
                (result,) = await self._read_store.write([write])
                if isinstance(result, Fenced):
                    continue
                if not isinstance(result, Written):
                    return BlockedKey(name, key, blocked.position, result.reason)
                await self._projector.loaded(slice)
                return slice.blocked.get(key)
        raise Unavailable(f"{name} was written by others {REPLAY_ATTEMPTS_MAX} times meanwhile; try again")

    async def _folded(self, slice: Slice, blocked: BlockedKey, steps: Sequence[Step], *, discard: bool) -> SliceWrite:
        """What replaying a key writes: its row, and either the end of the blockade or the new one."""
        name, number = slice.projection.name, slice.generation.number
        discards = [Discard(name, blocked.key, blocked.position)] if discard else []
        keys = list(dict.fromkeys(step.key for step in steps if step.key is not None))
        async with self._read_store.snapshot() as snapshot:
            loaded = await snapshot.get_many(name, keys, number) if keys else {}
        left_out = slice.discards | {(found.key, int(found.position)) for found in discards}
        folded = fold_steps(slice.projection, steps, loaded, (), left_out)
        mine = _only(folded, blocked.key)
        end = Reached(slice.generation.checkpoint, slice.generation.recorded_at)
        write = slice_write(slice.projection, slice.generation, mine, loaded.keys(), end)
        return SliceWrite(
            generation=slice.generation,
            checkpoint=slice.generation.checkpoint,
            upserts=write.upserts,
            deletes=write.deletes,
            block=write.block,
            unblock=() if write.block else (blocked.key,),
            discard=discards,
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


def _only(folded: FoldedBatch, key: str) -> FoldedBatch:
    """Without rows of other keys: a fold that creates rows tells their keys only afterwards."""
    rows = {found: row for found, row in folded.rows.items() if key_text(found) == key}
    return FoldedBatch(rows, [blocked for blocked in folded.block if blocked.key == key])
