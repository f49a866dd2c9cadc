"""The generations of projections in one read store: which is of this code, and whether it is of this history."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diptych.errors import HistoryDiverged, NotGranted
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import NOWHERE, START, Place
from diptych.read_side.projection import Projection
from diptych.read_side.read_store import Generation, ReadStore

__all__ = ["Generations"]

ON_TRIAL = " on trial"
"""What the fingerprint of a build ends with that is only compared."""

_log = logging.getLogger("diptych.projector")


class Generations:
    """Finds what projections are folded into, and makes it."""

    def __init__(self, log: EventLog, read_store: ReadStore) -> None:
        self._log = log
        self._read_store = read_store

    async def of_code(
        self, projection: Projection, known: Sequence[Generation], head: Place, *, making: bool
    ) -> Sequence[Generation]:
        """The live generation of this very fold, or the newest one of it that is not, or a new one; else number 0.

        Args:
            projection: the fold.
            known: all generations that there are.
            head: of the history.
            making: whether to make one where there is none, also where something has happened already.
        """
        mine = self.fingerprint(projection)
        same = [found for found in known if found.name == projection.name and found.fingerprint == mine]
        newest = max(same, key=lambda found: (found.live, found.number), default=None)
        if newest is not None and (newest.live or newest.under_way or not making):
            return [found for found in same if found.number == newest.number]
        try:
            if making or not head.position:  # where it was kept, it is taken up
                return await self.create(projection, live=head.position == 0)
        except NotGranted:
            if making:  # a process that does not project may have a role that only reads
                raise
        start = Place(self._log.history_id, START, NOWHERE)
        return [Generation(projection.name, 0, mine, projection.form.table, live=False, checkpoint=start)]

    async def split(self, found: Sequence[Generation], slices: int) -> Sequence[Generation]:
        """Split a generation into as many slices as the code says now, or begin to; what there is of it then."""
        name, number = found[0].name, found[0].number
        if not await self._read_store.split(name, number, slices):
            _log.info("%s is split into %d slices as soon as all are at one place", name, slices)
        async with self._read_store.snapshot() as snapshot:
            return await snapshot.slices(name, number) or found

    def fingerprint(self, projection: Projection) -> str:
        """The fold's fingerprint; in a store that does not outlive the process there is nothing to tell apart."""
        return projection.fingerprint() if self._read_store.durable else ""

    async def create(
        self,
        projection: Projection,
        *,
        live: bool,
        anew: bool = False,
        slices: int | None = None,
        on_trial: bool = False,
    ) -> list[Generation]:
        """The slices of a new generation, before the first event; by default as many as the code says.

        One `on_trial` is of no code that a process could run, so that none goes on with it.
        """
        start = Place(self._log.history_id, START, NOWHERE)
        fingerprint, table = self.fingerprint(projection), projection.form.table
        if on_trial:
            fingerprint += ON_TRIAL
        return await self._read_store.create_generation(
            projection.name, fingerprint, table, start, live=live, anew=anew, slices=slices or projection.partitions
        )

    async def fits(self, generation: Generation) -> bool:
        """Whether what is folded into a generation is in the history."""
        try:
            await self.check(generation)
        except HistoryDiverged:
            return False
        return True

    async def check(self, generation: Generation) -> None:
        """Make sure that what is folded into a generation is in the history.

        Raises:
            HistoryDiverged: it is not.
        """
        there = await self._log.place_at(generation.checkpoint.position)
        try:
            generation.checkpoint.check(
                self._log.history_id, None if there is None else there.event_id, f"the read model {generation.name}"
            )
        except HistoryDiverged as error:
            raise HistoryDiverged(
                error.what,
                f"{error.reason} Remove the read store, unless events are in its file, or point --read-store elsewhere;"
                " it is built anew from the history",
            ) from error

    async def are_lost(self, name: str) -> bool:
        """Whether the read store knows nothing of a projection any more: it was emptied, or is another one."""
        lost = all(found.name != name for found in await self._read_store.generations())
        if lost:
            _log.error("the read store has lost all rows of %s: they are built anew from the history", name)
        return lost
