"""What follows all partitions at once: rows that are folded across them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from diptych.application.follower import Follower
from diptych.event_store.merged_log import MergedLog
from diptych.event_store.position import START, Place, Position, Token
from diptych.read_side.freshness import HowFresh, Requirement

__all__ = ["Across"]


@dataclass(frozen=True, kw_only=True)
class Across(Follower):
    """Follows the histories of all partitions, merged; they are open. Nothing is decided here."""

    log: MergedLog

    async def open(self) -> None:
        """Open the order of what is merged, and follow it."""
        await self.log.open()
        await super().open()

    async def close(self) -> None:
        """Stop, and let go of the order."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.log.close)
            closing.push_async_callback(super().close)

    async def requirement(self, after: Sequence[Token] | None, asked: HowFresh, within_s: float | None) -> Requirement:
        """As of one partition; a token of any of them asks for what it tells, wherever that is in the merged log."""
        if after is None:
            return await super().requirement(after, asked, within_s)
        mine = [token for token in after if token.high.history_id == self.log.history_id]
        others = [token.high for token in after if token not in mine and token.high.position > START]
        found = await super().requirement(mine, asked, within_s)
        found.verify = partial(self._cover, found, found.wanted, others)
        await self._cover(found, found.wanted, others)
        return found

    async def _cover(self, found: Requirement, wanted: Position, others: Sequence[Place]) -> None:
        """Ask for these places as well, wherever they are in the merged log by now.

        Raises:
            HistoryDiverged: one of them is not in its history any more.
        """
        found.wanted = max([wanted, *[await self.log.covering(place) for place in others]])

    async def _lag_s(self, checkpoint: Position) -> float:
        missing = await self.log.missing(checkpoint)  # one of each history: their times do not grow along the log
        oldest = min((found.recorded_at for found in missing), default=None)
        return 0.0 if oldest is None else max(0.0, (self.clock.now() - oldest).total_seconds())
