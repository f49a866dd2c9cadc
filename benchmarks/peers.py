"""The same command with the library `eventsourcing` on its stores, where that is installed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import UUID

from eventsourcing.application import Application  # type: ignore[import-not-found]
from eventsourcing.domain import Aggregate, event  # type: ignore[import-not-found]

from benchmarks.bank import EARLIER_EVENTS
from benchmarks.measure import Side, Turn

AGGREGATES_CACHED = "10000"
"""Of the library's cache, where it is measured with it."""


class Account(Aggregate):  # type: ignore[misc]
    """What the command changes."""

    @event("Opened")  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        self.balance = 0

    @event("Credited")  # type: ignore[untyped-decorator]
    def credit(self, amount: int) -> None:
        """Add to the balance."""
        self.balance += amount


def sqlite_settings(database: Path) -> dict[str, str]:
    """The library's settings for a file."""
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(database)}


def postgres_settings(url: str, callers: int, *, with_functions: bool) -> dict[str, str]:
    """The library's settings for a server: a connection for each caller; with functions in the database or without."""
    parts = urlsplit(url)
    parameters = dict(parse_qsl(parts.query))
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path.lstrip("/"),
        "POSTGRES_HOST": parts.hostname or parameters.get("host", "localhost"),
        "POSTGRES_PORT": str(parts.port or parameters.get("port", 5432)),
        "POSTGRES_USER": unquote(parts.username or "") or parameters.get("user", ""),
        "POSTGRES_PASSWORD": unquote(parts.password or "") or "none",  # it insists on one
        "POSTGRES_POOL_SIZE": str(callers),
        "POSTGRES_ENABLE_DB_FUNCTIONS": "yes" if with_functions else "no",
    }


@contextmanager
def eventsourcing_side(settings: Mapping[str, str], callers: int, *, cached: bool) -> Iterator[Side]:
    """Each caller on a thread of its own: load the aggregate, credit it, save it; with the library's cache or without.

    Callers move on to a new account after as many commands as those of Diptych.
    """
    cache = {"AGGREGATE_CACHE_MAXSIZE": AGGREGATES_CACHED} if cached else {}
    application: Application[UUID] = Application(env={**settings, **cache})

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

    try:
        yield side
    finally:
        application.close()
