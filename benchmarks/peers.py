"""The same command with the library `eventsourcing` on its SQLite store, where that is installed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from eventsourcing.application import Application  # type: ignore[import-not-found]
from eventsourcing.domain import Aggregate, event  # type: ignore[import-not-found]

from benchmarks.bank import EARLIER_EVENTS
from benchmarks.measure import Side, Turn


class Account(Aggregate):  # type: ignore[misc]
    """What the command changes."""

    @event("Opened")  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        self.balance = 0

    @event("Credited")  # type: ignore[untyped-decorator]
    def credit(self, amount: int) -> None:
        """Add to the balance."""
        self.balance += amount


def eventsourcing_side(folder: Path, callers: int, *, cached: bool) -> Side:
    """Each caller on a thread of its own: load the aggregate, credit it, save it; with the library's cache or without.

    Callers move on to a new account after as many commands as those of Diptych.
    """
    database = folder / f"eventsourcing-{cached}.db"
    settings = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(database)}
    if cached:
        settings["AGGREGATE_CACHE_MAXSIZE"] = "10000"
    application: Application[UUID] = Application(env=settings)

    def caller(until: float) -> int:
        account: Any = None
        count = 0
        while time.perf_counter() < until:
            if count % (2 * EARLIER_EVENTS) == 0:
                account = Account()
            else:
                account = application.repository.get(account.id)
                account.credit(1)
            application.save(account)
            count += 1
        return count

    def side(seconds: float) -> Turn:
        started = time.perf_counter()
        with ThreadPoolExecutor(callers) as threads:
            counts = list(threads.map(caller, [started + seconds] * callers))
        return Turn(sum(counts), time.perf_counter() - started)

    return side
