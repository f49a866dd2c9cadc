"""The read store on DuckDB: columnar tables for analytics, in one file that one process owns (rule 39).

Each transaction is on disk when it is acknowledged. A crash of the process or of the machine parts no rows from their
checkpoint, and loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

from diptych.adapters.duckdb import read_writes
from diptych.adapters.duckdb.columns import decode_moment
from diptych.adapters.duckdb.connection import Database
from diptych.adapters.duckdb.publishing import COPY_EVERY_S, Publishing
from diptych.adapters.duckdb.read_snapshot import DuckdbReadSnapshot, Snapshots
from diptych.adapters.duckdb.read_tables import SELECT_GENERATIONS, decode_table, generation_of, prepare_file
from diptych.adapters.duckdb.read_writes import Changed, RefusedByDatabase
from diptych.adapters.reader_pool import SnapshotTurn
from diptych.errors import ConfigurationError, StoreClosed
from diptych.event_store.position import Position
from diptych.event_store.timestamp import moment
from diptych.read_side.change_count import ChangeCount
from diptych.read_side.read_store import (
    Discard,
    Failed,
    Generation,
    Key,
    Leased,
    LeaseKey,
    Retry,
    Row,
    RowsAsked,
    SliceWrite,
    Table,
    WriteResult,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from diptych.event_store.position import Place

__all__ = ["DuckdbReadStore", "connect"]

T = TypeVar("T")


def connect(url: str) -> DuckdbReadStore:
    """The store for `duckdb:<path>`, not opened yet; the path is relative or absolute.

    `duckdb:<path>?copy=<file>&copy_every_s=<seconds>` keeps a copy that other processes may read; see `Publishing`.

    Raises:
        ConfigurationError: there is no path, or what follows it is none of this.
    """
    path, _, query = url.partition(":")[2].partition("?")
    if not path or path.startswith(":"):
        raise ConfigurationError(
            f"the URL {url!r} names no file: write duckdb:shop.duckdb, or memory: for read models without a file"
        )
    return DuckdbReadStore(path, copy=_copy(url, path, query))


def _copy(url: str, path: str, query: str) -> tuple[Path, float] | None:
    """Where to keep a copy, and how often to make it."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    file, every_s = given.pop("copy", ""), given.pop("copy_every_s", str(COPY_EVERY_S))
    if not query:
        return None
    try:
        seconds = float(every_s)
    except ValueError:
        seconds = 0.0
    if given or not file or not 0 < seconds < math.inf or Path(file).absolute() == Path(path).absolute():
        raise ConfigurationError(
            f"the URL {url!r} cannot be read: what may follow the path is ?copy=<another file>, and "
            "&copy_every_s=<seconds>, a number above 0"
        )
    return Path(file), seconds


class DuckdbReadStore:
    """One file of read models, owned by this process while it is open. See the port.

    Args:
        path: of the file, made where it is missing (its folder is not).
        copy: a file that is kept as a copy, and seconds from one copy to the next; None keeps none.
        monotonic: the store's clock, in seconds, for leases: whoever holds one is in this process.
    """

    def __init__(
        self, path: str, *, copy: tuple[Path, float] | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = Database(path)
        self._copy = copy
        self._publishing: Publishing | None = None
        self._monotonic = monotonic
        self._snapshots: Snapshots | None = None
        self._changes = ChangeCount(path)
        self._workers: dict[str, tuple[frozenset[LeaseKey], float]] = {}

    @property
    def durable(self) -> bool:
        """True."""
        return True

    async def open(self) -> None:
        """Take the file for this process, and make the catalog in a new one. See the port."""
        if self._snapshots is not None:
            return
        path = self._database.path
        changes = ChangeCount(path)
        try:
            await asyncio.to_thread(self._database.open)
            await self._database.run(lambda connection: prepare_file(connection, path))
            if self._copy is not None:
                self._publishing = Publishing(self._database, *self._copy, lambda: changes.count)
                self._publishing.start()
        except BaseException:
            self._publishing = None
            await self._database.close()
            raise
        self._changes = changes
        self._snapshots = Snapshots(self._database)

    async def close(self) -> None:
        """Finish what is under way and let go of the file."""
        snapshots, self._snapshots = self._snapshots, None
        self._changes.close()
        if snapshots is not None:
            await snapshots.close()
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            await publishing.stop()
        await self._database.close()

    # ── generations ──────────────────────────────────────────────────────────

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        async with self.snapshot() as snapshot:
            rows = await snapshot.rows(f"{SELECT_GENERATIONS} ORDER BY name, number, slice")
        return [generation_of(row, decode_table(row[3])) for row in rows]

    async def create_generation(
        self,
        name: str,
        fingerprint: str,
        table: Table | None,
        checkpoint: Place,
        *,
        live: bool,
        anew: bool = False,
        slices: int = 1,
    ) -> list[Generation]:
        """Make a generation, or return the one that a racer made. See the port.

        Raises:
            ConfigurationError: another read model has a table of this name, or DuckDB cannot have such a table.
        """
        wanted = Generation(name, 0, fingerprint, table, live, checkpoint)
        return await self._change_for(
            lambda connection: read_writes.create_generation(connection, wanted, anew=anew, slices=slices)
        )

    async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        """Let a generation answer, keep the one that did, and drop the others. See the port."""
        return await self._change(lambda connection: read_writes.switch(connection, name, number, keep_s))

    async def drop_overdue(self) -> None:
        """Remove what was kept until now. See the port."""
        await self._change(read_writes.drop_overdue)

    async def split(self, name: str, number: int, slices: int | None = None) -> bool:
        """Split a generation into another number of slices, if all are at one place. See the port."""
        return await self._change(lambda connection: read_writes.split_generation(connection, name, number, slices))

    async def drop_generation(self, name: str, number: int) -> None:
        """Remove a generation, if it is there."""
        await self._change(lambda connection: read_writes.drop_generation(connection, name, number))

    # ── writes ───────────────────────────────────────────────────────────────

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        """Apply each write all or nothing, all in one transaction; or each in one, where DuckDB refuses a row."""
        try:
            return await self._write(writes)
        except RefusedByDatabase as error:
            if len(writes) == 1:
                return [Failed(str(error))]
        return [result for write in writes for result in await self.write([write])]

    async def _write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        tables = self._opened().builds.of

        def apply(connection: DuckDBPyConnection) -> tuple[list[WriteResult], Changed]:
            results = [read_writes.apply(connection, write, tables) for write in writes]
            return results, Changed(done=True, noted=True)

        return await self._change_for(apply)

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key."""
        async with self.snapshot() as snapshot:
            rows = await snapshot.rows(
                """SELECT key, position, actor, reason, decided_at FROM diptych.discards WHERE name = ?
                ORDER BY position, key""",
                (name,),
            )
        return [
            Discard(name, key, Position(position), actor, reason, decode_moment(at))
            for key, position, actor, reason, at in rows
        ]

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key, the latest first."""
        async with self.snapshot() as snapshot:
            rows = await snapshot.rows(
                """SELECT position, actor, reason, decided_at FROM diptych.retries WHERE name = ? AND key = ?
                ORDER BY number DESC LIMIT ?""",
                (name, key, limit),
            )
        return [Retry(name, key, Position(position), actor, reason, moment(at)) for position, actor, reason, at in rows]

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace of a blocked key."""
        async with self.snapshot() as snapshot:
            rows = await snapshot.rows(
                "SELECT trace FROM diptych.blocked_keys WHERE name = ? AND number = ? AND key = ?", (name, number, key)
            )
        return str(rows[0][0]) if rows else ""

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Ask for the lease of generations, and renew what is held. See the port."""
        self._opened()
        now = self._monotonic()
        alive = {name: found for name, found in self._workers.items() if found[1] > now}
        self._workers = {**alive, worker: (frozenset(wanted), now + ttl_s)}
        wants = {name: of for name, (of, _) in self._workers.items()}
        return await self._change_for(lambda connection: read_writes.lease(connection, worker, wants))

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Give up leases at once. See the port."""
        self._opened()
        if keys is None:
            self._workers.pop(worker, None)
        await self._change(lambda connection: read_writes.release(connection, worker, keys))

    async def _change(self, work: Callable[[DuckDBPyConnection], Changed]) -> bool:
        """Do it, and wake who waits for a change, if there was one."""
        changed = await self._database.run(work, self._note)
        return changed.done

    async def _change_for(self, work: Callable[[DuckDBPyConnection], tuple[T, Changed]]) -> T:
        result, _ = await self._database.run(work, lambda made: self._note(made[1]))
        return result

    def _note(self, changed: Changed) -> None:
        if changed.noted:
            self._changes.note()

    # ── reads ────────────────────────────────────────────────────────────────

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from. See the port."""
        async with self.snapshot() as snapshot:
            return [await snapshot.get_many(of.name, keys, of.number) for of, keys in asked]

    def snapshot(self) -> SnapshotTurn[DuckDBPyConnection, DuckdbReadSnapshot]:
        """A view of this moment. See the port."""
        return self._opened().snapshot()

    @property
    def changes(self) -> int:
        """How many changes there were."""
        self._opened()
        return self._changes.count

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`. See the port."""
        self._opened()
        return await self._changes.wait(seen, timeout_s)

    def _opened(self) -> Snapshots:
        if self._snapshots is None:
            raise StoreClosed(f"the read store {self._database.path} is not open")
        return self._snapshots
