"""What every store on PostgreSQL does around its statements: try again where that is right, and see changes through."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.adapters.postgres.connection import (
    DRIVER_ERRORS,
    STATEMENT_S_MAX,
    Connections,
    Link,
    failure,
    is_lost,
    state_of,
    was_not_sent,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import asyncpg

__all__ = ["CHANGE_S_MAX", "UnderWay", "changed", "read"]

READ_ATTEMPTS_MAX = 2
"""How often a read is tried where the connection is lost under it: a server that was restarted cuts all of them."""
CHANGE_ATTEMPTS_MAX = 5
"""How often a change is tried where the server had to end it for another one's sake, or ended its connection before."""
CHANGE_S_MAX = 60.0
"""How long a change may take before its connection is given up."""

T = TypeVar("T")

_ENDED_FOR_OTHERS = frozenset({"40001", "40P01"})
"""States that say nothing was done, and the same again may well be: a deadlock, a failed serialization."""


async def read(
    connections: Connections, statement: str, *arguments: object, timeout_s: float = STATEMENT_S_MAX
) -> list[asyncpg.Record]:
    """Rows of one statement, which changes nothing and may be sent again.

    Raises:
        StoreUnavailable: the connection was lost each time, or the server refuses for now.
    """
    for attempt in range(1, READ_ATTEMPTS_MAX + 1):
        try:
            return await connections.rows(statement, *arguments, timeout_s=timeout_s)
        except DRIVER_ERRORS as error:
            if attempt == READ_ATTEMPTS_MAX or not is_lost(error):
                raise (failure(connections.url, error) or error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


async def changed(connections: Connections, change: Callable[[Link], Awaitable[T]]) -> T:
    """A change, which is one transaction; where nothing was done, though not for its own sake, once more.

    Raises:
        asyncpg.PostgresError: the server refuses what is written.
        StoreUnavailable: nothing was done, or whether it was is not known.
    """
    for attempt in range(1, CHANGE_ATTEMPTS_MAX + 1):
        try:
            async with connections.connection() as link, asyncio.timeout(CHANGE_S_MAX):
                return await change(link)
        except DRIVER_ERRORS as error:
            undone = state_of(error) in _ENDED_FOR_OTHERS or was_not_sent(error)
            if undone and attempt < CHANGE_ATTEMPTS_MAX:
                continue
            raise (failure(connections.url, error) or error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


class UnderWay:
    """Work that goes on where its caller is cancelled, and that closing waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work."""
        task = asyncio.get_running_loop().create_task(work)
        self._keep(task)
        return await asyncio.shield(task)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have work done that nobody waits for but closing."""
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._note_done)

    async def end(self) -> None:
        """Wait until all of it is done, or has failed."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _note_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # heard, though its caller may have gone
