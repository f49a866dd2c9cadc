"""One DuckDB file: the process that owns it, the thread that writes, and what a failure means.

DuckDB locks the file for one process. Within it, any number of connections see consistent snapshots, and one writes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import duckdb

from diptych.errors import Overloaded, StoreClosed, StoreUnavailable
from diptych.messages.unique_id import unique_id

__all__ = ["Database", "Work", "failures"]

WAITING_WRITES_MAX = 10_000
"""Callers that wait to write; more get `Overloaded`."""

T = TypeVar("T")
Work: TypeAlias = Callable[["duckdb.DuckDBPyConnection"], T]
"""What is done with a connection, inside a transaction. It neither awaits nor begins or ends transactions."""

_HOLDER = re.compile(r"PID (\d+)")
_ASK_THE_OWNER = "DuckDB lets one process open a file: ask that one, or read a copy that it publishes"


class Database:
    """The file, open in this process. Not for several event loops at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0

    @property
    def copies(self) -> Path:
        """The folder in which copies are made, beside the file: DuckDB is let into no other."""
        return Path(f"{self.path}.copying")

    def open(self) -> None:
        """Connect. It may take long to read the log that a crash has left: call it off the event loop.

        Raises:
            StoreUnavailable: the file cannot be opened, or another process owns it.
        """
        if self._connection is not None:
            return
        with failures(self.path):
            # Of its own, so that nobody in this process shares the database unknowingly: DuckDB refuses to open one
            # file with two configurations.
            own: dict[str, str | bool | int | float | list[str]] = {"custom_user_agent": f"diptych-{unique_id()}"}
            connection = duckdb.connect(self.path, config=own)
            try:
                folder = str(self.copies.absolute()).replace("'", "''")
                connection.execute(f"SET allowed_directories = ['{folder}/']")
                connection.execute("SET enable_external_access = false")
                connection.execute("SET GLOBAL TimeZone = 'UTC'")
                connection.execute("SET lock_configuration = true")
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="diptych-duckdb-writer")

    async def close(self) -> None:
        """Wait for the write under way, then let go of the file. May be called twice."""
        connection, thread = self._connection, self._thread
        self._connection = self._thread = None
        if connection is not None and thread is not None:
            with failures(self.path):
                await asyncio.get_running_loop().run_in_executor(thread, connection.close)
            thread.shutdown(wait=True)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Another connection to the same database, with transactions of its own."""
        with failures(self.path):
            return self._opened().cursor()

    async def run(self, work: Work[T], after_commit: Callable[[T], object] | None = None) -> T:
        """Do the work in a write transaction, durable when this returns; an exception of the work rolls it back.

        Cancelling the caller never cancels the work.

        Args:
            work: what to do with the connection.
            after_commit: called on the event loop with the result, also where the caller is gone.

        Raises:
            StoreClosed: it is not open.
            StoreUnavailable: disk full and the like.
            Overloaded: too many callers wait.
        """
        return await self._submit(lambda connection: self._in_transaction(connection, work), after_commit)

    async def run_apart(self, work: Work[T]) -> T:
        """Likewise, outside a transaction: nobody else writes meanwhile."""
        return await self._submit(lambda connection: self._apart(connection, work), None)

    async def _submit(self, work: Work[T], after: Callable[[T], object] | None) -> T:
        connection, thread = self._opened(), self._thread
        assert thread is not None, "it is open"
        if self._waiting >= WAITING_WRITES_MAX:
            raise Overloaded("WAITING_WRITES_MAX", WAITING_WRITES_MAX)
        submitted = asyncio.wrap_future(thread.submit(work, connection))
        self._waiting += 1

        def done(future: asyncio.Future[T]) -> None:
            self._waiting -= 1
            if after is not None and not future.cancelled() and future.exception() is None:
                after(future.result())

        submitted.add_done_callback(done)
        return await asyncio.shield(submitted)

    def _in_transaction(self, connection: duckdb.DuckDBPyConnection, work: Work[T]) -> T:
        with failures(self.path):
            connection.begin()
            try:
                result = work(connection)
                connection.commit()
            except BaseException:
                with suppress(duckdb.Error):  # what failed may have ended it already
                    connection.rollback()
                raise
            return result

    def _apart(self, connection: duckdb.DuckDBPyConnection, work: Work[T]) -> T:
        with failures(self.path):
            return work(connection)

    def _opened(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            raise StoreClosed(f"the read store {self.path} is not open")
        return self._connection


@contextmanager
def failures(path: str) -> Generator[None]:
    """Say what a failure of DuckDB means.

    Raises:
        StoreUnavailable: instead of it, with what to do.
    """
    try:
        yield
    except duckdb.Error as error:
        raise StoreUnavailable(_meaning(path, error)) from error


def _meaning(path: str, error: duckdb.Error) -> str:
    text = str(error).partition("\n")[0]
    if isinstance(error, duckdb.ConnectionException) and "different configuration" in text:
        return f"{path} is open in this process already: use that store, or close it first"
    if "Conflicting lock" in text or "Could not set lock" in text:
        holder = _HOLDER.search(text)
        who = f"the process {holder[1]}" if holder else "another process"
        return f"{path} belongs to {who}: {_ASK_THE_OWNER}"
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"{path}: {text}; give the process more memory, or fold smaller batches"
    if isinstance(error, duckdb.FatalException | duckdb.InternalException):
        return f"{path}: {text}; close it and open it again: what was committed is kept"
    return f"{path}: {text}"
