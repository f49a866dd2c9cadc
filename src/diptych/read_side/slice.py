"""A slice of a projection being folded: where it is, and which keys are its own.

A projection that is not split has one, which owns every key.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from diptych.event_store.position import START, Position
from diptych.read_side.batch import DecodedEvent, Reached, keys_to_load, plan_steps
from diptych.read_side.matching_rows import too_many_found
from diptych.read_side.partitions import slice_of
from diptych.read_side.projection import KEYS_PER_EVENT_MAX, KeyNotFound, Projection, Step
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import (
    BlockedKey,
    Comparison,
    Filter,
    Generation,
    Key,
    LeaseKey,
    Order,
    ReadSnapshot,
    ReadStore,
    Row,
)
from diptych.read_side.row_filters import key_getter
from diptych.read_side.rows_where import Values

__all__ = ["LOOK_AGAIN_S", "POISON", "Slice", "apart", "furthest_behind"]

LOOK_AGAIN_S = 0.25
"""Seconds between looks whether all slices of a generation, wherever they are held, have come to where it waits."""

BLOCKED_KEYS_MAX = 1_000
"""Blocked keys of one projection, or of one slice of it; it stops rather than block more."""
EXPIRED_ROWS_MAX = 1_000
"""Expired rows of one read model that are removed with one batch; the others are with later ones."""

EXPIRED_LOOKED_AT_MAX = 100_000
"""Expired rows, those of other slices included, among which a slice looks for its own with one batch."""

WHERE_VALUES_MAX = 500
"""Values of `where=` whose rows are read at once; those of more are read one part after the other."""

POISON = (KeyNotFound, ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RecursionError)
"""What reading, folding and encoding an event may raise; whatever a store raises is none of it."""


class Expiring(Protocol):
    """Rows, some of which expire."""

    async def expired(self, name: str, moment: datetime, limit: int, number: int) -> list[Key]:
        """The keys of rows that expire by then. See `ReadSnapshot.expired`."""
        ...


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
    def may_expire(self) -> bool:
        """Whether its rows expire."""
        return self.projection.form.expiry is not None

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

    async def blockable(self, read_store: ReadStore, events: Sequence[DecodedEvent]) -> list[str]:
        """The keys of its own that one event concerns, as JSON arrays; none where they cannot be told."""
        try:
            steps = self.owned(plan_steps(self.projection, events).steps)
            keys = [*keys_to_load(steps, ()), *await self.matching(read_store, steps)]
        except POISON:
            return []
        return list(dict.fromkeys(map(key_text, keys)))

    async def matching(self, read_store: ReadStore, steps: Sequence[Step]) -> dict[Key, Row]:
        """The stored rows of its own that the steps may find by `where=`, but for blocked ones; by key.

        Raises:
            KeyNotFound: there are more than the limit.
        """
        wanted: dict[tuple[str, ...], dict[Values, None]] = {}
        finding = [step for step in steps if step.values is not None] if self.projection.finds_rows else []
        for step in finding:
            assert step.fold.where is not None
            assert step.values is not None
            wanted.setdefault(step.fold.where.columns, {})[step.values] = None
        found: dict[Key, Row] = {}
        if not wanted:
            return found
        context = finding[0].context  # times never run backwards: what has expired by then is none to the others too
        unexpired = self.projection.form.unexpired(None if context is None else context.recorded_at)
        async with read_store.snapshot() as snapshot:
            for columns, every in wanted.items():
                for values in _chunks(list(every)):
                    filters = [*_holding(columns, values), *unexpired]
                    found |= await self._matching(snapshot, columns, frozenset(values), filters)
                    if len(found) > KEYS_PER_EVENT_MAX:
                        raise KeyNotFound(too_many_found(finding))
        return found

    async def _matching(
        self, snapshot: ReadSnapshot, columns: Sequence[str], wanted: Collection[Values], filters: Sequence[Filter]
    ) -> dict[Key, Row]:
        """Rows of its own that hold one of the wanted values; no more than are too many."""
        table, generation = self.projection.form.table, self.generation
        key_of, places = key_getter(table), {column.name: place for place, column in enumerate(table.columns)}
        order, limit = [Order(name) for name in table.key], KEYS_PER_EVENT_MAX + 1
        found: dict[Key, Row] = {}
        after: Key | None = None
        while len(found) < limit:  # those of other slices are among them, and of other combinations of values
            rows = await snapshot.find(generation.name, filters, order, limit, after, generation.number)
            for row in rows:
                if tuple(row[places[name]] for name in columns) in wanted and self._folds(key := key_of(row)):
                    found[key] = row
            if len(rows) < limit:
                break
            after = key_of(rows[-1])
        return found

    def _folds(self, key: Key) -> bool:
        """Whether the row of a key is its own, and not blocked."""
        if self.generation.slices == 1 and not self.blocked:
            return True
        text = key_text(key)
        return self.owns_text(text) and text not in self.blocked

    def too_many_blocked(self, block: Sequence[BlockedKey]) -> str:
        """Why it cannot go on with these keys blocked as well; empty where it can."""
        count = len(self.blocked) + len(block)
        if not block or count <= BLOCKED_KEYS_MAX:
            return ""
        return f"{count} keys are blocked; {BLOCKED_KEYS_MAX} is the limit"

    async def expired(self, rows: Expiring, end: Reached, block: Sequence[BlockedKey]) -> Collection[Key]:
        """The keys of the next rows to remove: no event after this batch sees them any more, and no query.

        The replay of a blocked key folds events of before, so its row stays.
        """
        if not self.may_expire or end.recorded_at is None:
            return ()
        kept = self.blocked.keys() | {found.key for found in block}
        generation, limit = self.generation, EXPIRED_ROWS_MAX + len(kept)
        while True:  # rows of a slice that stands still may come first, and are not its own
            keys = await rows.expired(generation.name, end.recorded_at, limit, generation.number)
            texts = ((key, key_text(key)) for key in keys)
            mine = [key for key, text in texts if self.owns_text(text) and text not in kept]
            if len(mine) >= EXPIRED_ROWS_MAX or len(keys) < limit or limit >= EXPIRED_LOOKED_AT_MAX:
                return mine[:EXPIRED_ROWS_MAX]
            limit *= 2


def _chunks(values: Sequence[Values]) -> list[Sequence[Values]]:
    return [values[begin : begin + WHERE_VALUES_MAX] for begin in range(0, len(values), WHERE_VALUES_MAX)]


def _holding(columns: Sequence[str], values: Sequence[Values]) -> list[Filter]:
    """Each column holds a value of one of them: with several columns, more rows than hold one of them altogether."""
    each = zip(columns, zip(*values, strict=True), strict=True)
    return [Filter(column, Comparison.ONE_OF, tuple(dict.fromkeys(found))) for column, found in each]


def apart(slices: Sequence[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Those that are followed, and those that are being built."""
    building = [slice for slice in slices if slice.generation.under_way]
    return [slice for slice in slices if slice not in building], building


def furthest_behind(slices: Sequence[Slice]) -> Position:
    """The position up to which all of them are folded; there is one at least."""
    return min(slice.position for slice in slices)
