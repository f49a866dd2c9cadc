"""The user's own tables: a port for stores whose database holds them as well (rule 25).

Such a store lends its driver's connection, inside a transaction of its own, for some work, and appends what that comes
to as the last statement of the same transaction: what was written to own tables, the events and the outcome become
durable together, or none of it does. The contract is `testing/contracts/transactions.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec
from typing_extensions import TypeVar

from diptych.event_store.event_store import AppendResult, Commit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

__all__ = ["Change", "Lender", "Lending", "Transaction", "TransactionLender", "Transactional", "Work"]

C = TypeVar("C", default=Any)


class Transaction(Generic[C]):
    """The transaction that a command is committed in, for a handler that reads and writes tables of its own.

    `def book(command: Book, transaction: Transaction[sqlite3.Connection]) -> Booked` on SQLite, where such handlers are
    synchronous; `async def book(command: Book, transaction: Transaction[asyncpg.Connection]) -> Booked` on PostgreSQL.
    What it writes, its events and its outcome are committed together, or none of it is. It belongs to the handler until
    that returns.

    Attributes:
        connection: the driver's own, inside the transaction. It is not to be committed, rolled back or closed;
            savepoints are free.
    """

    __slots__ = ("connection",)

    def __init__(self, connection: C) -> None:
        self.connection = connection


class Change(msgspec.Struct, frozen=True):
    """What the work in a transaction comes to.

    Attributes:
        commit: to be appended; its conditions are judged where its positions are given.
        take_back: whether what the work itself has written is taken back first: of a refusal, only the outcome and what
            is recorded with it stay.
    """

    commit: Commit
    take_back: bool = False


Work: TypeAlias = Callable[[Any], "Change | Awaitable[Change]"]
"""Works with the driver's connection; it awaits where the driver does (`Lending.awaits`)."""


class Lending(NamedTuple):
    """What a store lends.

    Attributes:
        database: its name, for messages.
        connection: the class of the driver's connections.
        awaits: whether the driver is asynchronous, and so is all work with it.
    """

    database: str
    connection: type[Any]
    awaits: bool


@runtime_checkable
class Transactional(Protocol):
    """An event store in whose database the user's own tables can be.

    Every implementation guarantees

    - the work's writes and the commit: all of it or none, whatever fails and whenever (G1);
    - positions without gaps, and readers that never see a later one first, also where the transaction is rolled back
      or its process dies (G2);
    - that nobody waits for the work but those who want the same rows (SQLite: who writes), since the append section is
      entered last.
    """

    @property
    def lending(self) -> Lending:
        """What is lent here; known before the store is open."""
        ...

    async def transact(self, work: Work, lane: str = "") -> AppendResult:
        """Do work in a transaction, append what it comes to as the last statement, and commit.

        Any answer but `Appended` has rolled back what the work has written, and so has any exception, that of the work
        included, which comes out here. Cancelling the caller cancels nothing.

        Args:
            work: is given the driver's connection.
            lane: connections that were lent in one lane are not lent in another, for work that leaves its mark on them.

        Raises:
            TransactionAborted: the database ended it, since others were in the way; doing it again may succeed.
            TransactionMisused: the work ended the transaction, or touched what is the store's.
            Overloaded: the work took too long.
            OutcomeUnknown: the connection or disk failed while committing; the same commit sent again tells.
            StoreUnavailable: the connection was lost before that; nothing was done.
            HistoryDiverged: this is not the history any more that was known; nothing was done.
        """
        ...


class Lender(Protocol):
    """Makes what a handler takes from the driver's connection, for as long as the handler runs."""

    @property
    def lane(self) -> str:
        """See `Transactional.transact`."""
        ...

    def objection(self, lending: Lending) -> str:
        """Why it can be made of no connection that is lent there; empty where it can."""
        ...

    def lend(self, connection: Any) -> AbstractContextManager[Any]:
        """What the handler takes, in the block; where the driver is synchronous."""
        ...

    def lend_async(self, connection: Any) -> AbstractAsyncContextManager[Any]:
        """The same where it is asynchronous."""
        ...


class TransactionLender:
    """Lends a plain `Transaction`, of whatever kind of connection or of one."""

    lane = ""

    def __init__(self, connection: type[Any] | None) -> None:
        """Remember the class of connections that the handler names, if it does."""
        self._connection = connection

    def objection(self, lending: Lending) -> str:
        """That the handler names the connections of another driver."""
        named = self._connection
        if named is None or issubclass(lending.connection, named):
            return ""
        ours = lending.connection
        return f"{lending.database} gives a Transaction[{ours.__module__.partition('.')[0]}.{ours.__name__}]"

    @contextmanager
    def lend(self, connection: Any) -> Generator[Transaction[Any]]:
        """The transaction, in the block."""
        yield Transaction(connection)

    @asynccontextmanager
    async def lend_async(self, connection: Any) -> AsyncGenerator[Transaction[Any]]:
        """The transaction, in the block."""
        yield Transaction(connection)
