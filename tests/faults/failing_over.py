"""Failovers: a primary that is killed, its standby that is promoted, and histories that are other ones afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diptych import Application, Command, Receipt
from diptych.application.partition import Partition
from diptych.errors import Unavailable
from tests.faults.counting import CounterId
from tests.faults.incrementing import COUNTERS, execute, in_schema, whole
from tests.postgres_cluster import Server
from tests.postgres_server import by_hand, in_thread

__all__ = ["GROWN", "KEPT", "LOST", "SHARED", "Branch", "caught_up", "fail_over", "increments", "sent"]

SHARED, LOST = 9, 6
"""Events that the standby has, and events that only the killed primary had."""
GROWN = {"shorter": 0, "short": LOST // 2, "as_long": LOST, "longer": 3 * LOST}
"""Histories, each in a schema of its own, and how many events others write there after the failover."""
KEPT = CounterId("kept")
"""A history that loses nothing."""
ATTEMPTS_MAX = 10


class Branch(NamedTuple):
    """A history that forks: the only one of an application, or one of its partitions.

    Attributes:
        app: decides on it.
        worker: folds it.
        counters: what is in it.
        grown: how long it is once others have written there.
    """

    app: Application
    worker: Application
    counters: Sequence[CounterId]
    grown: int

    @property
    def partition(self) -> Partition:
        """Of those who decide."""
        return self._of(self.app)

    @property
    def folding(self) -> Partition:
        """Of those who fold."""
        return self._of(self.worker)

    def _of(self, app: Application) -> Partition:
        return app.partition(self.counters[0] if len(self.counters) == 1 else "")

    async def increments(self, first: int, last: int) -> dict[int, Receipt]:
        """Concurrent commands of these numbers."""
        return await increments(self.app, first, last, self.counters)


async def increments(
    app: Application, first: int, last: int, counters: Sequence[CounterId] = COUNTERS
) -> dict[int, Receipt]:
    """Concurrent commands of these numbers."""
    receipts = await asyncio.gather(*(execute(app, number, counters) for number in range(first, last + 1)))
    return dict(enumerate(receipts, first))


async def caught_up(primary: Server) -> None:
    """Wait until the standby has all that is written by now."""
    behind = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= $1::text::pg_lsn"
    async with by_hand(primary.url()) as link:
        written = await link.fetchval("SELECT pg_current_wal_lsn()::text")
        while not await link.fetchval(behind, written):
            pass


def fail_over(primary: Server, standby: Server, others: int | Mapping[str, tuple[int, Sequence[CounterId]]]) -> None:
    """Promote the standby and let others write there, while the loop, and with it all that is open, stands still.

    Args:
        primary: is killed.
        standby: is promoted.
        others: how many events they write; or how many, and of which counters, by schema.
    """
    if isinstance(others, int):
        others = {"own": (others, COUNTERS)}

    async def write() -> None:
        for schema, (events, counters) in others.items():
            async with whole(in_schema(standby.url(), schema), projecting=False) as other:
                await increments(other, 1_002, 1_001 + events, counters)

    primary.kill()
    standby.promote()
    in_thread(write())


async def sent(app: Application, command: Command, command_id: str) -> Receipt:
    """Send a command as callers do, again with its id where that is said to be safe."""
    for _ in range(ATTEMPTS_MAX):
        try:
            return await app.execute(command, command_id=command_id)
        except Unavailable:
            pass
    raise AssertionError("never acknowledged")
