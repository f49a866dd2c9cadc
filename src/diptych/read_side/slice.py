"""A slice of a projection being folded: where it is, and which keys are its own.

A projection that is not split has one, which owns every key.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from diptych.event_store.position import START, Position
from diptych.read_side.batch import DecodedEvent, Reached, keys_to_load, plan_steps
from diptych.read_side.partitions import slice_of
from diptych.read_side.projection import KeyNotFound, Projection, Step
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import BlockedKey, Generation, Key, LeaseKey, ReadStore

__all__ = ["LOOK_AGAIN_S", "POISON", "Slice"]

LOOK_AGAIN_S = 0.25
"""Seconds between looks whether all slices of a generation, wherever they are held, have come to where it waits."""

BLOCKED_KEYS_MAX = 1_000
"""Blocked keys of one projection, or of one slice of it; it stops rather than block more."""
EXPIRED_ROWS_MAX = 1_000
"""Expired rows of one read model that are removed with one batch; the others are with later ones."""

EXPIRED_LOOKED_AT_MAX = 100_000
"""Expired rows, those of other slices included, among which a slice looks for its own with one batch."""

POISON = (KeyNotFound, ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RecursionError)
"""What reading, folding and encoding an event may raise; whatever a store raises is none of it."""


class Slice:
    """One projection, or the part of it that some keys are, as it is folded into one generation.

    Attributes:
        generation: the slice as it was last written or loaded here.
        target: a generation that is being built answers queries from this position on.
        stopped: why it cannot go on; empty while it can.
        retired: whether others are followed instead of it.
    """

    def __init__(self, projection: Projection, generation: Generation, target: Position = START) -> None:
        self.projection = projection
        self.generation = generation
        self.target = target
        self.stopped = ""
        self.retired = False
        self.blocked: dict[str, BlockedKey] = {}
        self.discards: set[tuple[str, int]] = set()
        self._look_at = 0.0

    @property
    def goes_on(self) -> bool:
        """Whether events are folded into it: it has neither stopped nor retired."""
        return not self.stopped and not self.retired

    @property
    def position(self) -> Position:
        """The position up to which it is folded."""
        return self.generation.checkpoint.position

    @property
    def lease_key(self) -> LeaseKey:
        """As what it is leased."""
        return self.generation.lease_key

    @property
    def at_barrier(self) -> bool:
        """Whether it waits for the other slices, to be split anew where it is."""
        return self.generation.barrier is not None and self.position >= self.generation.barrier

    def is_due(self) -> bool:
        """Whether to look once more if the others have come as far: at once the first time, and then now and then."""
        now = time.monotonic()
        due = now >= self._look_at
        if due:
            self._look_at = now + LOOK_AGAIN_S
        return due

    def owns(self, key: Key) -> bool:
        """Whether the row of a key belongs to it."""
        return self.owns_text(key_text(key))

    def owns_text(self, key: str) -> bool:
        """Whether the row of a key, as a JSON array, belongs to it."""
        return slice_of(key, self.generation.slices) == self.generation.slice

    def owned(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Those steps that it folds; where only the fold tells the key, every slice folds and one keeps the row."""
        if self.generation.slices == 1:
            return steps
        return [step for step in steps if step.key is None or self.owns(step.key)]

    def blockable(self, events: Sequence[DecodedEvent]) -> list[str]:
        """The keys of its own that one event concerns, as JSON arrays; none where they cannot be told."""
        try:
            keys = keys_to_load(plan_steps(self.projection, events).steps, ())
        except POISON:
            return []
        return [text for text in map(key_text, keys) if self.owns_text(text)]

    def too_many_blocked(self, block: Sequence[BlockedKey]) -> str:
        """Why it cannot go on with these keys blocked as well; empty where it can."""
        count = len(self.blocked) + len(block)
        if not block or count <= BLOCKED_KEYS_MAX:
            return ""
        return f"{count} keys are blocked; {BLOCKED_KEYS_MAX} is the limit"

    async def expired(self, read_store: ReadStore, end: Reached, block: Sequence[BlockedKey]) -> Collection[Key]:
        """The keys of the next rows to remove: no event after this batch sees them any more, and no query.

        The replay of a blocked key folds events of before, so its row stays.
        """
        if self.projection.form.expiry is None or end.recorded_at is None:
            return ()
        kept = self.blocked.keys() | {found.key for found in block}
        generation, limit = self.generation, EXPIRED_ROWS_MAX + len(kept)
        async with read_store.snapshot() as snapshot:
            while True:  # rows of a slice that stands still may come first, and are not its own
                keys = await snapshot.expired(generation.name, end.recorded_at, limit, generation.number)
                texts = ((key, key_text(key)) for key in keys)
                mine = [key for key, text in texts if self.owns_text(text) and text not in kept]
                if len(mine) >= EXPIRED_ROWS_MAX or len(keys) < limit or limit >= EXPIRED_LOOKED_AT_MAX:
                    return mine[:EXPIRED_ROWS_MAX]
                limit *= 2
