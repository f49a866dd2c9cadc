"""A copy of a read store's file that other processes may read, replaced as a whole every now and then (rule 39).

It is of one moment: its rows, and in `diptych.generations` the checkpoints that they belong to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from diptych.adapters.duckdb.columns import quoted
from diptych.adapters.duckdb.connection import Database, failures
from diptych.adapters.duckdb.whole_files import put_in_place
from diptych.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

__all__ = ["COPY_EVERY_S", "Publishing"]

COPY_EVERY_S = 60.0
"""Seconds from one copy to the next, where something has changed and the URL names no other number."""

_log = logging.getLogger("diptych.duckdb")


class Publishing:
    """Copies one database, while it is open, to one file.

    Args:
        database: which.
        target: the file, on the file system of the database's own.
        every_s: seconds from one copy to the next.
        changes: how many changes there were, so that nothing is copied where there was none.
    """

    def __init__(self, database: Database, target: Path, every_s: float, changes: Callable[[], int]) -> None:
        self._database = database
        self._target = target
        self._every_s = every_s
        self._changes = changes
        self._copied: int | None = None
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Make a copy now, and one after each period in which something has changed.

        Raises:
            ConfigurationError: there is no such folder.
        """
        if not self._target.parent.is_dir():
            raise ConfigurationError(f"copy={self._target}: there is no folder {self._target.parent}")
        self._task = asyncio.create_task(self._go_on())

    async def stop(self) -> None:
        """Make a last copy, if something has changed."""
        self._ending.set()
        if self._task is not None:
            await self._task

    async def _go_on(self) -> None:
        while not self._ending.is_set():
            await self._try()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._every_s)
        await self._try()

    async def _try(self) -> None:
        """Whoever reads the copy sees by its checkpoints how old it is; that none was made is told in the log."""
        changes = self._changes()
        if changes == self._copied:
            return
        try:
            await asyncio.to_thread(self._copy)
        except StoreUnavailable as error:
            _log.error("no copy was made for others to read: %s; it is tried again in %s s", error, self._every_s)
        else:
            self._copied = changes

    def _copy(self) -> None:
        folder = self._database.copies
        unfinished = folder / "copy.duckdb"
        try:
            folder.mkdir(exist_ok=True)
            for left in folder.glob("copy.duckdb*"):
                left.unlink()
        except OSError as error:
            raise StoreUnavailable(f"{folder} cannot be used: {error.strerror}") from error
        with failures(self._database.path):
            connection = self._database.cursor()
            try:
                self._copy_to(connection, unfinished.absolute())
            finally:
                connection.close()
        put_in_place(unfinished, self._target)
        with suppress(OSError):
            folder.rmdir()

    def _copy_to(self, connection: duckdb.DuckDBPyConnection, file: Path) -> None:
        """In a transaction of its own: others write meanwhile."""
        (own,) = connection.execute("SELECT current_database()").fetchall()[0]
        name = str(file).replace("'", "''")
        connection.execute(f"ATTACH '{name}' AS diptych_copy")
        try:
            connection.execute(f"COPY FROM DATABASE {quoted(own)} TO diptych_copy")
        finally:
            connection.execute("DETACH diptych_copy")
