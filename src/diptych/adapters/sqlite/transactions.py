"""The writer's transaction, lent to a handler, to whose end the append is joined (rule 25)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING

from diptych.adapters.lent_sqlite import LentConnection, worked
from diptych.adapters.sqlite.event_schema import EVENT_STORE_FORMAT
from diptych.adapters.sqlite.read_tables import table_names
from diptych.event_store.event_store import Appended, AppendResult, Commit
from diptych.event_store.transactions import Work

if TYPE_CHECKING:
    import sqlite3

    from diptych.adapters.sqlite.connection import Work as WriterWork

__all__ = ["TakenBack", "work_apart"]

_OURS = EVENT_STORE_FORMAT.tables


class TakenBack(Exception):
    """Something stands against the commit: the transaction is rolled back.

    Attributes:
        result: what.
    """

    def __init__(self, result: AppendResult) -> None:
        self.result = result
        super().__init__(repr(result))


def work_apart(work: Work, append: Callable[[sqlite3.Connection, Commit], AppendResult]) -> WriterWork[AppendResult]:
    """The whole of a transaction: the work with the connection, then the append.

    The work is done in the context of whoever asks for it, on the thread that writes.

    Raises:
        TakenBack: it was not appended.
    """
    context = copy_context()

    def run(connection: sqlite3.Connection) -> AppendResult:
        assert isinstance(connection, LentConnection)
        change = context.run(worked, connection, work, _OURS, table_names(connection))
        result = append(connection, change.commit)
        if not isinstance(result, Appended):
            raise TakenBack(result)
        return result

    return run
