"""Tables of the user's own beside events in memory: a database of SQLite in memory, lent to one handler at a time.

Everybody in the process who connects to `file:/<name>?vfs=memdb` has the same one, as long as anybody does: whoever
makes its tables, and looks into them, and the store. It is locked as a whole: while a handler writes nobody reads.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TypeAlias

from diptych.adapters.lent_sqlite import LentConnection, worked
from diptych.errors import ConfigurationError, StoreClosed, StoreUnavailable
from diptych.event_store.event_store import AppendResult, Commit
from diptych.event_store.transactions import Change, Lending, Work

__all__ = ["OwnTables", "own_tables_in"]

TABLES_WAIT_S = 5.0
"""How long a handler waits for whoever else has the tables locked."""
SHARING_SQLITE_MIN = (3, 36, 0)
"""The first version whose databases in memory can be shared by name."""

_URL = re.compile(r"memory:(?:\?own_tables=([A-Za-z0-9_-]+))?")
_Append: TypeAlias = Callable[[Commit, Callable[[], object]], AppendResult]
"""Appends a commit, and calls the second, which commits the tables, once nothing stands against it."""


def own_tables_in(url: str) -> str | None:
    """The name of the database in memory that a store's URL names; None for `memory:` alone.

    Raises:
        ConfigurationError: something else follows the colon.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigurationError(
            f"{url!r}: a store in memory has no name, write memory:, or memory:?own_tables=<name> where handlers take "
            "the transaction (a name has letters, digits, _ and -)"
        )
    return found[1]


class OwnTables:
    """One such database. It may be closed, and opened again."""

    lending = Lending("SQLite in memory", sqlite3.Connection, awaits=False)

    def __init__(self, name: str) -> None:
        """Remember its name; nothing is opened yet."""
        self._place = f"file:/{name}?vfs=memdb"
        self._connection: LentConnection | None = None
        self._turn = asyncio.Lock()

    def open(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: this Python's SQLite shares no database in memory.
        """
        if sqlite3.sqlite_version_info < SHARING_SQLITE_MIN:
            wanted = ".".join(map(str, SHARING_SQLITE_MIN))
            raise StoreUnavailable(
                f"this Python has SQLite {sqlite3.sqlite_version}; own tables in memory need {wanted}"
            )
        if self._connection is None:
            self._turn = asyncio.Lock()
            self._connection = sqlite3.connect(
                self._place,
                uri=True,
                timeout=TABLES_WAIT_S,
                isolation_level=None,
                check_same_thread=False,
                factory=LentConnection,
            )
            self._connection.execute("PRAGMA foreign_keys = ON")

    async def close(self) -> None:
        """Wait for the work under way, then let go of the database."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    async def transact(self, work: Work, append: _Append) -> AppendResult:
        """Do work in a transaction, append what it comes to, and commit; what is not appended is rolled back.

        Cancelling the caller cancels nothing.
        """
        return await asyncio.shield(self._transact(work, append))

    async def _transact(self, work: Work, append: _Append) -> AppendResult:
        async with self._turn:
            connection = self._connection
            if connection is None:
                raise StoreClosed("the event store in memory is not open")
            context = copy_context()
            working = asyncio.get_running_loop().run_in_executor(
                None, lambda: context.run(self._worked, connection, work)
            )
            try:
                with suppress(asyncio.CancelledError):  # a loop that ends cancels all that runs on it
                    await asyncio.wait([working])
                change = await working
                # On the loop again, where others append: nothing comes between judging, this commit and the append.
                return append(change.commit, lambda: connection.execute("COMMIT"))
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _worked(self, connection: LentConnection, work: Work) -> Change:
        try:
            connection.execute("BEGIN EXCLUSIVE")  # so that nobody is in the way of the commit
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(
                f"own tables at {self._place}: {error}; another connection to them stayed in the middle of a "
                f"transaction or of a result for {TABLES_WAIT_S} s (TABLES_WAIT_S): end it"
            ) from error
        return worked(connection, work, ())
