"""The same command with the library `eventsourcing` on its SQLite store, where that is installed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.bank import EARLIER_EVENTS
from benchmarks.measure import Side, Turn


def eventsourcing_side(folder: Path) -> Side:
    """One caller: load the aggregate, credit it, save it."""
    from eventsourcing.application import Application  # type: ignore[import-not-found]
    from eventsourcing.domain import Aggregate, event  # type: ignore[import-not-found]

    class Account(Aggregate):  # type: ignore[misc]
        @event("Opened")  # type: ignore[untyped-decorator]
        def __init__(self) -> None:
            self.balance = 0

        @event("Credited")  # type: ignore[untyped-decorator]
        def credit(self, amount: int) -> None:
            self.balance += amount

    application: Application[UUID] = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "eventsourcing.db")}
    )
    state: dict[str, Any] = {"number": 0, "id": None}

    def one() -> None:
        if state["number"] % (2 * EARLIER_EVENTS) == 0:
            account = Account()
            application.save(account)
            state["id"] = account.id
        else:
            account = application.repository.get(state["id"])
            account.credit(1)
            application.save(account)
        state["number"] += 1

    def side(seconds: float) -> Turn:
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            one()
            count += 1
        return Turn(count, time.perf_counter() - started)

    return side
