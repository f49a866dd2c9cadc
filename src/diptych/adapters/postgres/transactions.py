"""A transaction lent to a handler: begun, worked in, appended to as the last thing, and committed (rule 25).

Until the append it is a transaction like any other: it holds the rows that the handler has locked, and nothing of the
append section, which is entered by the last statement. From there to the commit is one round trip, for which others
wait; a client that dies or hangs in between is cut off by the server, and its positions are given to the next one.

The server cannot refuse a `COMMIT` in the middle. It is found out: a savepoint that was set at the beginning has to be
there at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from diptych.adapters.postgres.connection import (
    DRIVER_ERRORS,
    ROLL_BACK_S_MAX,
    STATEMENT_S_MAX,
    Connections,
    Link,
    PostgresUrl,
    failure,
    is_lost,
    state_of,
    was_not_sent,
)
from diptych.errors import (
    DiptychError,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
    TransactionAborted,
    TransactionMisused,
)
from diptych.event_store.event_store import Appended, AppendResult, Commit
from diptych.event_store.transactions import Change, Work

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction as DriverTransaction

__all__ = ["APPEND_PAUSE_S_MAX", "Lanes"]

TRANSACTION_CONNECTIONS_MAX = 4
"""Connections of one process that are lent to handlers with tables of their own, of each lane."""

TRANSACTION_S_MAX = 30
"""Seconds that a handler may work in the transaction; the server's own limit, for a client that hangs, is longer."""
APPEND_PAUSE_S_MAX = 5
"""Seconds for which the server waits for a client between its append and its commit: others wait behind it."""
CAUSES_MAX = 10
"""Exceptions looked at from one to its cause."""

_SAVEPOINT = "diptych_own_tables"
"""Where the handler's own writes begin."""
_NO_SAVEPOINT = "3B001"
_NO_TRANSACTION = "25P01"
_ABORTED = "25P02"
"""A statement failed before, and the transaction with it."""
_IN_THE_WAY = "40"
"""Deadlocks, and what could not be put in an order."""


Append: TypeAlias = Callable[[Link, Commit], Awaitable[AppendResult]]
"""Calls the append section on a connection, and gives its answer."""


class Lanes:
    """Connections that are lent, apart from those that append: handlers may leave their mark on them."""

    def __init__(self, url: PostgresUrl, verify: Callable[[Link], Awaitable[None]]) -> None:
        """Remember where to connect, and what looks at every new connection; none is made before it is needed."""
        self._url = url
        self._verify = verify
        self._lanes: dict[str, Connections] = {}

    async def close(self) -> None:
        """Let go of all. May be called twice."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        self._lanes.clear()

    def cut_idle(self) -> None:
        """Let go of what nobody uses."""
        for lane in self._lanes.values():
            lane.cut_idle()

    def has(self, backend: int) -> bool:
        """Whether the server's backend of this number is at the other end of one of them."""
        return any(lane.has(backend) for lane in self._lanes.values())

    async def run(self, lane: str, work: Work, append: Append) -> AppendResult:
        """Do work in a transaction of its own, and append what it comes to; see `Transactional.transact`."""
        try:
            async with self._lane(lane).connection() as link:
                outcome = await _LentTransaction(link, self._url.shown).run(work, append)
                await self._set_back(link)
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error) or error) from error
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def _set_back(self, link: Link) -> None:
        """Undo what the handler has set for the session; whatever comes of it, the outcome stands."""
        if not self._url.pooled:
            try:
                await link.reset(timeout=STATEMENT_S_MAX)
            except DRIVER_ERRORS:
                link.terminate()

    def _lane(self, name: str) -> Connections:
        found = self._lanes.get(name)
        if found is None:  # with the server's own planner settings, as the handler's statements need them
            found = self._lanes[name] = Connections(
                self._url, TRANSACTION_CONNECTIONS_MAX, read_only=False, verify=self._verify, planning={}
            )
            found.open()
        return found


class _LentTransaction:
    """One transaction on one connection."""

    def __init__(self, link: Link, shown: str) -> None:
        """Remember the connection. `shown` is the store's URL, for messages."""
        self._link = link
        self._shown = shown
        self._transaction: DriverTransaction = link.transaction(isolation="read_committed")
        self._begun = False

    async def run(self, work: Work, append: Append) -> AppendResult | BaseException:
        """Do all of it; what went wrong where that leaves the connection as good as before.

        Raises:
            StoreUnavailable: the connection was lost before the commit; nothing was done.
            OutcomeUnknown: it was lost in it.
        """
        try:
            return await self._whole(work, append)
        except Exception as error:  # noqa: BLE001  # the handler's own, too, are no reason to connect anew
            told = self._told(error)
            if told is not error:
                told.__cause__ = error
            await self._roll_back()
            if self._link.is_closed():
                raise told  # noqa: B904  # it has its cause
            return told

    async def _whole(self, work: Work, append: Append) -> AppendResult:
        await self._transaction.start()
        self._begun = True
        await self._link.execute(_begin())
        change = await self._worked(work)
        await self._end_work(change)
        result = await append(self._link, change.commit)
        if isinstance(result, Appended):
            await self._commit(change.commit)
        else:
            await self._roll_back()
        return result

    async def _worked(self, work: Work) -> Change:
        limit = asyncio.timeout(TRANSACTION_S_MAX)
        try:
            async with limit:
                change = work(self._link)
                assert not isinstance(change, Change), "handlers await here"
                return await change
        except TimeoutError as error:
            if limit.expired():
                raise Overloaded("TRANSACTION_S_MAX", TRANSACTION_S_MAX) from error
            raise

    async def _end_work(self, change: Change) -> None:
        try:
            await self._link.execute(_end(take_back=change.take_back))
        except asyncpg.PostgresError as error:
            if state_of(error) in {_NO_SAVEPOINT, _NO_TRANSACTION}:
                raise _ended() from error
            if state_of(error) == _ABORTED:
                raise TransactionMisused(
                    "a statement of the handler failed and it went on; nothing was done. Where it may fail, put it in "
                    "a savepoint, `async with connection.transaction()`"
                ) from error
            raise

    async def _commit(self, commit: Commit) -> None:
        self._begun = False  # whatever comes of it, there is nothing to roll back
        try:
            await self._transaction.commit()
        except DRIVER_ERRORS as error:
            if is_lost(error) and not was_not_sent(error):
                raise OutcomeUnknown(commit.command_id or "(none given)", str(error) or type(error).__name__) from error
            raise

    async def _roll_back(self) -> None:
        if self._begun and not self._link.is_closed():
            self._begun = False
            try:
                async with asyncio.timeout(ROLL_BACK_S_MAX):
                    await self._transaction.rollback()
            except DRIVER_ERRORS:
                self._link.terminate()  # the server rolls back what nobody holds on to

    def _told(self, error: BaseException) -> BaseException:
        """What callers get for it: their own errors as they are."""
        if isinstance(error, DiptychError):
            return error
        cause = _driver_error(error)
        if cause is None:
            return error
        if state_of(cause).startswith(_IN_THE_WAY):
            return TransactionAborted(str(cause))
        if state_of(cause) == _NO_TRANSACTION:
            return _ended()
        if self._link.is_closed():
            said = str(cause) or type(cause).__name__
            return StoreUnavailable(
                f"{self._shown}: {said} (the connection was lost, or closed by the handler, before the commit: nothing "
                "was done)"
            )
        return error


def _ended() -> TransactionMisused:
    return TransactionMisused(
        "the handler ended the transaction that was lent to it (COMMIT or ROLLBACK): what it wrote before that may be "
        "committed, without its events; use savepoints, `async with connection.transaction()`"
    )


def _begin() -> str:
    return (
        f"SAVEPOINT {_SAVEPOINT}; SET LOCAL statement_timeout = '{STATEMENT_S_MAX}s'; "
        f"SET LOCAL idle_in_transaction_session_timeout = '{STATEMENT_S_MAX}s'"
    )


def _end(*, take_back: bool) -> str:
    """What was deferred is checked before the append section is entered, not in it."""
    kept = f"SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT {_SAVEPOINT}"
    ended = f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}" if take_back else kept
    return f"{ended}; SET LOCAL idle_in_transaction_session_timeout = '{APPEND_PAUSE_S_MAX}s'"


def _driver_error(error: BaseException) -> BaseException | None:
    """What the driver raised, perhaps as a library passes it on."""
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None or isinstance(cause, DRIVER_ERRORS):
            return cause
        cause = cause.__cause__
    return None
