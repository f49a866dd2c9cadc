"""A connection of SQLite, lent to a handler: what it may do with it, and for how long (rule 25).

SQLite itself refuses what is not the handler's: its authoriser is asked about every statement that is prepared. So the
transaction cannot be ended, nor the store's tables be written, by whatever way a statement comes in. Used by the event
stores that lend such connections.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress

from diptych.errors import Overloaded, TransactionMisused
from diptych.event_store.transactions import Change, Work

__all__ = ["LentConnection", "worked"]

TRANSACTION_S_MAX = 2
"""Seconds that a handler may work in the transaction; nobody else writes meanwhile."""
STEPS_BETWEEN_CHECKS = 1_000
"""Steps of SQLite's machine between two looks at the clock."""
CAUSES_MAX = 10
"""Exceptions looked at from one to its cause."""

_SAVEPOINT = "diptych_own_tables"
"""Where the handler's own writes begin."""
_TELLING_PRAGMAS = frozenset(
    {
        "database_list", "defer_foreign_keys", "foreign_key_check", "foreign_key_list", "index_info", "index_list",
        "index_xinfo", "table_info", "table_list", "table_xinfo",
    }
)  # fmt: skip
"""Those that change nothing beyond the transaction."""
_WRITES = frozenset(
    {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_DROP_TABLE}
)  # the table is the first thing that they name
_WRITES_BESIDE = frozenset(
    {
        sqlite3.SQLITE_ALTER_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_DROP_INDEX, sqlite3.SQLITE_DROP_TRIGGER, sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_INDEX,
    }
)  # fmt: skip
"""The table is the second."""


class LentConnection(sqlite3.Connection):
    """A connection that can be lent to a handler; it cannot be closed meanwhile.

    Attributes:
        lent: whether it is.
    """

    lent = False

    def close(self) -> None:
        """Let go of the database.

        Raises:
            TransactionMisused: it is lent.
        """
        if self.lent:
            raise TransactionMisused("the handler closes the connection that was lent to it, which others need")
        super().close()


def worked(
    connection: LentConnection, work: Work, kept_tables: Collection[str], hidden_tables: Collection[str] = ()
) -> Change:
    """Do work inside a transaction that has begun, and take back what it wrote where it says so.

    Args:
        connection: in the transaction; it is the work's meanwhile, as far as it may be.
        work: is given the connection.
        kept_tables: names of the store's own, in lower case, which the work may read only.
        hidden_tables: of read models, which it may not read either (G13).

    Raises:
        TransactionMisused: the work did what it may not, and did not go on without; or the transaction is not there any
            more: `INSERT OR ROLLBACK`, and the like, end it.
        Overloaded: it took too long.
    """
    connection.execute(f"SAVEPOINT {_SAVEPOINT}")
    with _lent(connection, kept_tables, hidden_tables):
        change = work(connection)
    assert isinstance(change, Change)
    try:
        connection.execute(f"{'ROLLBACK TO' if change.take_back else 'RELEASE'} {_SAVEPOINT}")
    except sqlite3.OperationalError as error:
        raise TransactionMisused(
            "a statement of the handler rolled its transaction back (OR ROLLBACK, RAISE(ROLLBACK)) and it went on: "
            "what it wrote after that may be committed, without its events; use OR ABORT"
        ) from error
    return change


@contextmanager
def _lent(connection: LentConnection, kept_tables: Collection[str], hidden_tables: Collection[str]) -> Generator[None]:
    guard = _Guard(kept_tables, hidden_tables)
    connection.lent = True
    connection.set_authorizer(guard.authorise)
    connection.set_progress_handler(guard.is_over, STEPS_BETWEEN_CHECKS)
    try:
        yield
        guard.check_in_time()
        if connection.isolation_level is not None:
            raise TransactionMisused("the handler sets the isolation_level of the connection that was lent to it")
        if sys.version_info >= (3, 12) and connection.autocommit != sqlite3.LEGACY_TRANSACTION_CONTROL:
            raise TransactionMisused("the handler sets the autocommit of the connection that was lent to it")
    except Exception as error:
        guard.check_in_time(error)
        if guard.refused and _is_refusal(error):
            raise TransactionMisused(f"{guard.refused}; nothing was done") from error
        raise
    finally:
        _give_back(connection)


def _give_back(connection: LentConnection) -> None:
    """Set it back to how others need it."""
    if connection.isolation_level is not None:
        with suppress(sqlite3.DatabaseError):  # the driver would commit with it, which the authoriser still refuses
            connection.isolation_level = None
    if sys.version_info >= (3, 12):
        connection.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL  # ends nothing, unlike its other values
    connection.set_authorizer(None)
    connection.set_progress_handler(None, 0)
    connection.row_factory = None
    connection.text_factory = str
    connection.lent = False


class _Guard:
    """What one handler may do, and until when."""

    def __init__(self, kept_tables: Collection[str], hidden_tables: Collection[str]) -> None:
        self.refused = ""
        self._kept_tables = frozenset((*kept_tables, *hidden_tables))
        self._hidden_tables = hidden_tables
        self._deadline = time.monotonic() + TRANSACTION_S_MAX

    def is_over(self) -> bool:
        """Whether the time is over: SQLite then interrupts the statement that is running."""
        return time.monotonic() >= self._deadline

    def check_in_time(self, cause: BaseException | None = None) -> None:
        """Make sure that the handler did not take too long.

        Raises:
            Overloaded: it did.
        """
        if self.is_over():
            raise Overloaded("TRANSACTION_S_MAX", TRANSACTION_S_MAX) from cause

    def authorise(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """SQLite's question whether a statement may do something."""
        reason = self._objection(action, first or "", second or "")
        if reason:
            self.refused = reason
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _objection(self, action: int, first: str, second: str) -> str:
        if action == sqlite3.SQLITE_TRANSACTION:
            return f"the handler says {first}, but its transaction ends with the append: use savepoints inside it"
        if action == sqlite3.SQLITE_SAVEPOINT and second == _SAVEPOINT:
            return f"the handler names the savepoint {_SAVEPOINT}, which is Diptych's"
        if action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}:
            return "the handler attaches another file: what it writes there would not be committed together"
        if action == sqlite3.SQLITE_PRAGMA and first.lower() not in _TELLING_PRAGMAS and second:
            return f"the handler sets PRAGMA {first} of a connection that others use"
        if action == sqlite3.SQLITE_READ and first.lower() in self._hidden_tables:
            return f"the handler reads {first}, of read models: decide on decision models and own tables"
        table = first if action in _WRITES else second if action in _WRITES_BESIDE else ""
        if table.lower() in self._kept_tables:
            return f"the handler changes the table {table}, which is Diptych's"
        return ""


def _is_refusal(error: BaseException) -> bool:
    """Whether SQLite's no is what went wrong, perhaps as a library passes it on."""
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_AUTH:
            return True
        if cause is None:
            break
        cause = cause.__cause__
    return isinstance(error, sqlite3.Error) and "not authorized" in str(error)
