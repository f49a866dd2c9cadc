"""SQLAlchemy's sessions and connections, bound to the very transaction in which a command is committed (rule 25).

An engine is made around one connection of the driver's, and kept as long as that: so the dialect asks the database what
it is once, and statements stay prepared. What the engine takes for a connection of its own is one in the middle of a
transaction. There its `commit` and `rollback` end a savepoint, so that code which commits, as it has always done, runs
unchanged, and nothing is committed before the events are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from diptych.event_store.transactions import Lender, Lending

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["lender"]

LANE = "sqlalchemy"
"""Connections that SQLAlchemy has taught to decode JSON are not lent to others."""
_SAVEPOINT = "diptych_sqlalchemy"

E = TypeVar("E")


def lender(kind: Any) -> Lender | None:
    """Who makes a parameter of this type for a handler; None where it is no session or connection."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, AsyncSession | AsyncConnection):
        return _AsyncLender(kind)
    if issubclass(kind, Session | Connection):
        return _SyncLender(kind)
    return None


class _Engines(Generic[E]):
    """One engine for each of the driver's connections, as long as that is open."""

    def __init__(self, make: Callable[[Any], E], is_closed: Callable[[Any], bool]) -> None:
        self._make = make
        self._is_closed = is_closed
        self._engines: dict[int, tuple[Any, E]] = {}

    def of(self, connection: Any) -> E:
        found = self._engines.get(id(connection))
        if found is None:
            kept = {key: each for key, each in self._engines.items() if not self._is_closed(each[0])}
            found = connection, self._make(connection)
            self._engines = {**kept, id(connection): found}
        return found[1]


# ── asyncpg ──────────────────────────────────────────────────────────────────


class _AsyncLender:
    """Lends an `AsyncSession` (or a class derived from it), or an `AsyncConnection`, over asyncpg."""

    lane = LANE

    def __init__(self, kind: type[AsyncSession | AsyncConnection]) -> None:
        self._kind = kind
        self._engines: _Engines[AsyncEngine] = _Engines(_async_engine, lambda connection: connection.is_closed())

    def objection(self, lending: Lending) -> str:
        """That the store's driver is not asynchronous."""
        return "" if lending.awaits else f"{self._kind.__name__} awaits: take a Session or Connection"

    def lend(self, connection: Any) -> AbstractContextManager[Any]:
        """Not where the driver is synchronous."""
        raise AssertionError(f"refused when the application opened: {connection!r}")

    @asynccontextmanager
    async def lend_async(self, connection: Any) -> AsyncGenerator[AsyncSession | AsyncConnection]:
        """It, in the block; flushed at its end."""
        async with self._engines.of(connection).connect() as bound:
            if issubclass(self._kind, AsyncSession):
                async with self._kind(bind=bound, expire_on_commit=False) as session:
                    yield session
                    await session.commit()
            else:
                yield bound
            await bound.commit()


def _async_engine(connection: Any) -> AsyncEngine:
    lent = _LentLink(connection)

    async def connect(*_: Any, **__: Any) -> Any:
        return lent

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=StaticPool)


class _LentLink:
    """A connection of asyncpg's as SQLAlchemy sees it: not its own to close."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def close(self, **_: Any) -> None:
        """Leave it open."""

    def terminate(self) -> None:
        """Leave it open."""


# ── sqlite3 ──────────────────────────────────────────────────────────────────


class _SyncLender:
    """Lends a `Session` (or a class derived from it), or a `Connection`, over sqlite3."""

    lane = LANE

    def __init__(self, kind: type[Session | Connection]) -> None:
        self._kind = kind
        self._engines: _Engines[_LentFile] = _Engines(_LentFile, _is_closed)

    def objection(self, lending: Lending) -> str:
        """That the store's driver is asynchronous."""
        return (
            f"{self._kind.__name__} does not await: take an AsyncSession or AsyncConnection" if lending.awaits else ""
        )

    @contextmanager
    def lend(self, connection: Any) -> Generator[Session | Connection]:
        """It, in the block; flushed at its end."""
        lent = self._engines.of(connection)
        lent.begin()
        with lent.engine.connect() as bound:
            if issubclass(self._kind, Session):
                with self._kind(bind=bound, expire_on_commit=False) as session:
                    yield session
                    session.commit()
            else:
                yield bound
            bound.commit()

    def lend_async(self, connection: Any) -> AbstractAsyncContextManager[Any]:
        """Not where the driver is asynchronous."""
        raise AssertionError(f"refused when the application opened: {connection!r}")


class _LentFile:
    """A connection of sqlite3's as SQLAlchemy sees it: not its own to close, and a savepoint for a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.engine: Engine = create_engine("sqlite://", creator=lambda: self, poolclass=StaticPool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def begin(self) -> None:
        """Begin what it may commit and roll back."""
        self._connection.execute(f"SAVEPOINT {_SAVEPOINT}")

    def commit(self) -> None:
        """End the savepoint, and begin the next."""
        self._connection.execute(f"RELEASE {_SAVEPOINT}")
        self.begin()

    def rollback(self) -> None:
        """Take back what came since the last one."""
        self._connection.execute(f"ROLLBACK TO {_SAVEPOINT}")

    def close(self) -> None:
        """Leave it open."""


def _is_closed(connection: sqlite3.Connection) -> bool:
    try:
        return connection.total_changes < 0
    except sqlite3.ProgrammingError:
        return True
