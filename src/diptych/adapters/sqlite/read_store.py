"""The read store on SQLite: one file for all read models, one writer, many read-only snapshots.

A power cut may take the last transactions, which are folded again, but nothing that was changed by hand: that goes
through a second connection, which syncs. Neither a crash nor a power cut parts rows from their checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.adapters.reader_pool import SnapshotTurn
from diptych.adapters.sqlite import read_writes
from diptych.adapters.sqlite.connection import CommitFailed, Failures, Writer, data_version, open_reader
from diptych.adapters.sqlite.event_schema import OWN_TABLES
from diptych.adapters.sqlite.read_leases import LeaseLocks
from diptych.adapters.sqlite.read_snapshot import Reader, Snapshots, SqliteReadSnapshot
from diptych.adapters.sqlite.read_tables import prepare_file, read_generations, stored_discards
from diptych.errors import ConfigurationError, StoreClosed, StoreUnavailable
from diptych.event_store.position import Position
from diptych.event_store.timestamp import moment
from diptych.read_side.change_count import ChangeCount
from diptych.read_side.read_store import (
    Discard,
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
    import sqlite3

    from diptych.event_store.position import Place

__all__ = ["SqliteReadStore", "connect"]

FOREIGN_CHANGES_EVERY_S = 0.1
"""How often other processes' writes are looked for while someone waits for a change."""

T = TypeVar("T")


def connect(url: str) -> SqliteReadStore:
    """The store for `sqlite:<path>`, not opened yet; the path is relative or absolute, and may be that of the events.

    Raises:
        ConfigurationError: there is no path.
    """
    path = url.partition(":")[2].removesuffix(OWN_TABLES)
    if not path or path == ":memory:":
        raise ConfigurationError(
            f"the URL {url!r} names no file: write sqlite:shop.read.db, or memory: for read models without a file"
        )
    return SqliteReadStore(path)


class SqliteReadStore:
    """One file of read models, which may be that of the events. See the port.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._failures = Failures(path)
        self._writer = Writer(path, synchronous="NORMAL")
        self._durable_writer = Writer(path, synchronous="FULL")
        self._snapshots: Snapshots | None = None
        self._changes: _Changes | None = None
        self._locks = LeaseLocks(path)

    @property
    def durable(self) -> bool:
        """True."""
        return True

    async def open(self) -> None:
        """Connect, and make the catalog in a new file. See the port."""
        if self._snapshots is not None:
            return
        try:
            await asyncio.to_thread(self._writer.open)
            await self._change(lambda connection: prepare_file(connection, self.path))
            await asyncio.to_thread(self._durable_writer.open)
            self._changes = _Changes(self.path)
        except BaseException:
            await self.close()
            raise
        self._snapshots = Snapshots(self.path)

    async def close(self) -> None:
        """Finish what is under way and let go of the file."""
        snapshots, self._snapshots = self._snapshots, None
        changes, self._changes = self._changes, None
        if changes is not None:
            changes.close()
        if snapshots is not None:
            await snapshots.close()
        self._locks.close()
        await self._durable_writer.close()
        await self._writer.close()

    # ── generations ──────────────────────────────────────────────────────────

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        async with self.snapshot() as snapshot:
            with self._failures:
                return read_generations(snapshot.connection)

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
            ConfigurationError: another read model has a table of this name, or SQLite cannot have such a table.
        """
        return await self._change(
            lambda connection: read_writes.create_generation(
                connection, name, fingerprint, table, checkpoint, live=live, anew=anew, slices=slices
            )
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
        """Apply each write all or nothing, all in one transaction. See the port."""
        tables = self._opened().builds.of
        by_hand = any(write.by_hand for write in writes)
        return await self._change(
            lambda connection: [read_writes.apply(connection, write, tables) for write in writes], durably=by_hand
        )

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key."""
        async with self.snapshot() as snapshot:
            with self._failures:
                return stored_discards(snapshot.connection, name)

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key, the latest first."""
        rows = await self._rows(
            "SELECT position, actor, reason, decided_at FROM diptych_retries WHERE name = ? AND key = ? "
            "ORDER BY number DESC LIMIT ?",
            (name, key, limit),
        )
        return [Retry(name, key, Position(position), actor, reason, moment(at)) for position, actor, reason, at in rows]

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace of a blocked key."""
        rows = await self._rows(
            "SELECT trace FROM diptych_blocked_keys WHERE name = ? AND number = ? AND key = ?", (name, number, key)
        )
        return next((trace for (trace,) in rows), "")

    async def _rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        async with self.snapshot() as snapshot:
            with self._failures:
                return snapshot.connection.execute(statement, parameters).fetchall()

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Lock what is wanted and free. See the port; a lock does not run out, so that the time does not matter."""
        del ttl_s
        there = {found.lease_key: found.epoch for found in await self.generations()}
        epochs = {key: there[key] for key in wanted if key in there}
        gone = frozenset(wanted).difference(epochs)
        if not self._locks.exclude:
            return Leased(epochs, gone=gone)
        await self._let_go(worker, self._locks.held(worker) - epochs.keys())
        taken = self._locks.take(worker, sorted(epochs.keys() - self._locks.held(worker)))
        if taken:
            try:
                noted = await self._change(lambda connection: read_writes.note_holder(connection, worker, taken))
            except BaseException:
                self._locks.let_go(worker, taken)
                raise
            self._locks.let_go(worker, set(taken) - noted.keys())
            epochs |= noted
        return Leased({key: epochs[key] for key in self._locks.held(worker)}, gone=gone)

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Unlock, and fence what the worker still writes. See the port."""
        self._opened()
        held = self._locks.held(worker)
        await self._let_go(worker, held if keys is None else held.intersection(keys))

    async def _let_go(self, worker: str, keys: Collection[LeaseKey]) -> None:
        """First the lock, then the commit: it wakes others, which are to find the lock free."""
        self._locks.let_go(worker, keys)
        if keys:
            await self._change(lambda connection: read_writes.note_release(connection, worker, keys))

    async def _change(self, work: Callable[[sqlite3.Connection], T], *, durably: bool = False) -> T:
        writer = self._durable_writer if durably else self._writer
        try:
            return await writer.run(work, self._tell)
        except CommitFailed as error:
            raise StoreUnavailable(
                f"{error}; whether the last write holds shows when its generation is loaded anew"
            ) from error

    def _tell(self, _: object) -> None:
        self.look()

    def look(self) -> None:
        """Wake those who wait for a change, if there was one: somebody in this process has committed."""
        if self._changes is not None:
            self._changes.look()

    # ── reads ────────────────────────────────────────────────────────────────

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from. See the port."""
        async with self.snapshot() as snapshot:
            return [await snapshot.get_many(of.name, keys, of.number) for of, keys in asked]

    def snapshot(self) -> SnapshotTurn[Reader, SqliteReadSnapshot]:
        """A view of this moment. See the port."""
        return self._opened().snapshot()

    @property
    def changes(self) -> int:
        """How many changes anyone noticed."""
        return self._noticed().count

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`. See the port."""
        return await self._noticed().wait(seen, timeout_s)

    def _noticed(self) -> _Changes:
        if self._changes is None:
            raise StoreClosed(f"the read store {self.path} is not open")
        return self._changes

    def _opened(self) -> Snapshots:
        if self._snapshots is None:
            raise StoreClosed(f"the read store {self.path} is not open")
        return self._snapshots


class _Changes:
    """Looks whether anything was committed to the file, by whomever.

    A connection of its own tells: its data version changes with each commit of any other, so that own writes only
    have to say when to look. The writes of other processes are looked for while someone waits.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection = open_reader(path)
        self._version = data_version(self._connection)
        self._noticed = ChangeCount(path)
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def count(self) -> int:
        """How many changes anyone noticed."""
        return self._noticed.count

    async def wait(self, seen: int, timeout_s: float) -> int:
        """The count, once it is another than `seen` or the time is over."""
        self.look()
        if self._timer is None:
            self._look_later()
        return await self._noticed.wait(seen, timeout_s)

    def look(self) -> None:
        """Count a change, if there was one, and wake who waits for it."""
        if self._closed:
            return
        with Failures(self._path):
            version = data_version(self._connection)
        if version != self._version:
            self._version = version
            self._noticed.note()

    def close(self) -> None:
        """Wake everyone, to hear that it is over."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._connection.close()
        self._noticed.close()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(FOREIGN_CHANGES_EVERY_S, self._look_on_time)

    def _look_on_time(self) -> None:
        """Look, and once more later as long as somebody waits."""
        self._timer = None
        try:
            self.look()
        except StoreUnavailable:
            self._noticed.wake()  # their own looks at the file say what is wrong
        if self._noticed.waiting and not self._closed:
            self._look_later()
