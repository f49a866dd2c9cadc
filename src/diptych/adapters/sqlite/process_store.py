"""The process store in SQLite: in the file of the events, on connections of its own. See the port.

Leases are locks of the operating system, as those of the read store are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.adapters.sqlite.connection import LOCK_WAIT_S, CommitFailed, Failures, Writer, open_reader
from diptych.adapters.sqlite.event_schema import OWN_TABLES
from diptych.adapters.sqlite.process_rows import (
    instance_of,
    instance_row,
    outgoing_of,
    outgoing_row,
    prepare,
    process_of,
)
from diptych.adapters.sqlite.read_leases import LeaseLocks
from diptych.errors import ConfigurationError, StoreClosed, StoreUnavailable
from diptych.event_store.position import Place
from diptych.process_managers.process_store import (
    PRIORITY_MAX,
    Instance,
    InstanceCount,
    Outgoing,
    ProcessChange,
    StoredProcess,
)

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SqliteProcessStore", "connect"]

T = TypeVar("T")

_PROCESS = "name, history_id, position, event_id, fingerprint, epoch"
_INSTANCE = "id, state, started, started_at, last, last_at, ended, blocked, failure, attempts, trace"
_OUTGOING = (
    "id, instance, kind, position, ordinal, due, type, version, data, tags, metadata, attempts, failure, dead, "
    "priority, expires, begun, trace"
)
_UPSERT = f"INSERT OR REPLACE INTO process_instances (process, {_INSTANCE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD = (
    "INSERT INTO process_outgoing (id, process, instance, kind, position, ordinal, due, type, version, data, tags, "
    "metadata, attempts, failure, dead, priority, expires, begun, trace) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_AGAIN = "dead = 0, attempts = 0, failure = '', trace = '', begun = 0"
_REVIVE = f"UPDATE process_outgoing SET {_AGAIN}, due = ? WHERE process = ? "
_HELD_BACK = (
    "SELECT 1 FROM process_outgoing AS e WHERE e.process = o.process AND e.instance = o.instance "
    "AND e.kind = 'command' AND (e.position, e.ordinal) < (o.position, o.ordinal) "
    "AND CASE WHEN e.dead THEN e.position = o.position ELSE NOT EXISTS ("
    "SELECT 1 FROM process_outgoing AS d WHERE d.process = e.process AND d.instance = e.instance "
    "AND d.kind = 'command' AND d.position = e.position AND d.ordinal < e.ordinal AND d.dead) END"
)
_LOWER_PRIORITY = "SELECT max(priority) FROM process_outgoing WHERE process = ? AND priority < ? AND dead = 0"
_DUE = (
    f"SELECT {_OUTGOING} FROM process_outgoing AS o WHERE process = ? AND priority = ? AND due <= ? AND dead = 0 "
    f"AND (kind = 'timeout' OR NOT EXISTS ({_HELD_BACK})) ORDER BY due, position, ordinal LIMIT ?"
)
_NEXT_DUE = "SELECT min(due) FROM process_outgoing WHERE process = ? AND priority = ? AND due > ? AND dead = 0"
_FIND = f"SELECT {_OUTGOING} FROM process_outgoing WHERE process = ? AND id IN (SELECT value FROM json_each(?))"
_STUCK = (
    "id IN (SELECT b.id FROM process_instances AS b WHERE b.process = :process AND b.blocked > 0 "
    "UNION SELECT d.instance FROM process_outgoing AS d WHERE d.process = :process AND d.dead = 1)"
)
_COUNT = (
    "SELECT (SELECT count(*) FROM process_instances WHERE process = :process AND ended = 0), "
    "(SELECT count(*) FROM process_instances WHERE process = :process AND blocked > 0 AND ended = 0), "
    "(SELECT count(*) FROM process_outgoing WHERE process = :process AND dead = 0), "
    "(SELECT count(*) FROM process_outgoing WHERE process = :process AND dead = 1)"
)


def connect(url: str) -> SqliteProcessStore:
    """The process store beside the events in `sqlite:<path>`; nothing is opened yet.

    Raises:
        ConfigurationError: there is no path, or it names no file.
    """
    path = url.partition(":")[2].removesuffix(OWN_TABLES)
    if not path or path == ":memory:":
        raise ConfigurationError(f"{url!r} names no file: write sqlite:shop.db, or memory: to keep nothing")
    return SqliteProcessStore(path)


class SqliteProcessStore:
    """Keeps the processes of one file."""

    def __init__(self, path: str, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._path = path
        self._failures = Failures(path)
        self._writer = Writer(path, lock_wait_s=lock_wait_s)
        self._locks = LeaseLocks(f"{path}-process")
        self._reader: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Connect; make the tables where they are missing.

        Raises:
            NewerStore: a newer Diptych made them.
            StoreUnavailable: the file cannot be opened; with the reason.
        """
        if self._reader is not None:
            return
        await asyncio.to_thread(self._writer.open)
        try:
            await self._writer.run(lambda connection: prepare(connection, self._path))
            self._reader = open_reader(self._path)
        except BaseException:
            await self._writer.close()
            raise

    async def close(self) -> None:
        """Finish what is under way and let go of the file. May be called twice."""
        reader, self._reader = self._reader, None
        self._locks.close()
        if reader is not None:
            reader.close()
        await self._writer.close()

    async def create(self, process: str, checkpoint: Place, fingerprint: str) -> StoredProcess:
        """Make a process, or give the one that is there."""

        def work(connection: sqlite3.Connection) -> StoredProcess:
            connection.execute(
                f"INSERT OR IGNORE INTO processes ({_PROCESS}) VALUES (?, ?, ?, ?, ?, 0)",
                (process, checkpoint.history_id, checkpoint.position, checkpoint.event_id, fingerprint),
            )
            return _process(connection, process)

        known = [found for found in await self.processes() if found.name == process]
        return known[0] if known else await self._run(work)

    async def processes(self) -> list[StoredProcess]:
        """Every process, by name."""
        return [process_of(*row) for row in self._rows(f"SELECT {_PROCESS} FROM processes ORDER BY name")]

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, processes: Collection[str], ttl_s: float) -> Mapping[str, int]:
        """Take what is free, and keep what is held: a lock needs no renewing."""
        del ttl_s
        known = {found.name: found.epoch for found in await self.processes()}
        wanted = {name: (name, 0, 0) for name in processes if name in known}
        if not self._locks.exclude:
            await self._note_holder(worker, wanted)
            return {found.name: found.epoch for found in await self.processes() if found.name in wanted}
        held = self._locks.held(worker)
        taken = self._locks.take(worker, [key for key in wanted.values() if key not in held])
        if taken:
            await self._note_holder(worker, [name for name, _, _ in taken])
            known = {found.name: found.epoch for found in await self.processes()}
        return {name: known[name] for name, key in wanted.items() if key in held or key in taken}

    async def _note_holder(self, worker: str, processes: Iterable[str]) -> None:
        statement = (
            "UPDATE processes SET epoch = epoch + (last_holder IS NOT NULL AND last_holder <> :worker), "
            "last_holder = :worker WHERE name = :name AND last_holder IS NOT :worker"
        )
        rows = [{"worker": worker, "name": name} for name in processes]
        await self._run(lambda connection: connection.executemany(statement, rows).close())

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        """Give up these at once; everything where none are named."""
        statement = "UPDATE processes SET epoch = epoch + 1, last_holder = NULL WHERE last_holder = ? AND name = ?"
        names = [found.name for found in await self.processes() if processes is None or found.name in processes]
        rows = [(worker, name) for name in names]
        try:
            await self._run(lambda connection: connection.executemany(statement, rows).close())
        finally:  # whoever takes one fences it as well
            self._locks.let_go(worker, [(name, 0, 0) for name in names])

    # ── change ───────────────────────────────────────────────────────────────

    async def commit(self, change: ProcessChange) -> bool:
        """Make a change true, if the process is where its writer thinks."""
        return await self._run(lambda connection: _commit(connection, change))

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Put in what is to go out; what is there stays."""

        def work(connection: sqlite3.Connection) -> list[Outgoing]:
            connection.executemany(f"{_ADD} ON CONFLICT DO NOTHING", [outgoing_row(process, item) for item in items])
            ids = json.dumps([item.id for item in items])
            return [outgoing_of(row) for row in connection.execute(_FIND, (process, ids))]

        there = {item.id: item for item in await self._run(work)}
        return [there[item.id] for item in items]

    async def drop(self, process: str, ids: Collection[str]) -> None:
        """Take out what is not to go out any more."""
        rows = [(process, dropped) for dropped in ids]
        statement = "DELETE FROM process_outgoing WHERE process = ? AND id = ?"
        await self._run(lambda connection: connection.executemany(statement, rows).close())

    async def revive(self, process: str, ids: Collection[str], due_us: int) -> None:
        """Have what is dead of these due again."""
        rows = [(due_us, process, revived) for revived in ids]
        statement = f"{_REVIVE} AND id = ? AND dead = 1"
        await self._run(lambda connection: connection.executemany(statement, rows).close())

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._open_reader()
        try:
            return await self._writer.run(work)
        except CommitFailed as error:
            raise StoreUnavailable(f"{error}; whether it was done shows when it is looked at again") from error

    # ── read ─────────────────────────────────────────────────────────────────

    async def find(self, process: str, ids: Collection[str]) -> list[Outgoing]:
        """What is there under these ids."""
        return [outgoing_of(row) for row in self._rows(_FIND, (process, json.dumps(list(ids))))]

    async def waiting(self, process: str, after: str | None, limit: int) -> list[Outgoing]:
        """The first commands and timeouts behind an id."""
        behind = "" if after is None else "AND id > :after "
        statement = (
            f"SELECT {_OUTGOING} FROM process_outgoing WHERE process = :process {behind}ORDER BY id LIMIT :limit"
        )
        found = self._rows(statement, {"process": process, "after": after, "limit": limit})
        return [outgoing_of(row) for row in found]

    async def instances(self, process: str, ids: Collection[str]) -> list[Instance]:
        """Those of these instances that are there."""
        statement = (
            f"SELECT {_INSTANCE} FROM process_instances WHERE process = ? AND id IN (SELECT value FROM json_each(?))"
        )
        return [instance_of(row) for row in self._rows(statement, (process, json.dumps(list(ids))))]

    async def page(
        self,
        process: str,
        after: str | None,
        limit: int,
        *,
        ended: bool = False,
        stuck: bool = False,
        blocked: bool = False,
    ) -> list[Instance]:
        """The first instances behind an id."""
        which = "blocked > 0" if blocked else _STUCK if stuck else "1" if ended else "ended = 0"
        behind = "" if after is None else "AND id > :after "
        statement = (
            f"SELECT {_INSTANCE} FROM process_instances "
            f"WHERE process = :process {behind}AND ({which}) ORDER BY id LIMIT :limit"
        )
        return [instance_of(row) for row in self._rows(statement, {"process": process, "after": after, "limit": limit})]

    async def dead(self, process: str, after: tuple[str, str] | None, limit: int) -> list[Outgoing]:
        """The first dead commands and timeouts behind one."""
        behind = "" if after is None else "AND (instance, id) > (?, ?) "
        statement = (
            f"SELECT {_OUTGOING} FROM process_outgoing WHERE process = ? AND dead = 1 {behind}"
            "ORDER BY instance, id LIMIT ?"
        )
        return [outgoing_of(row) for row in self._rows(statement, (process, *(after or ()), limit))]

    async def count(self, process: str) -> InstanceCount:
        """How many instances there are."""
        ((running, blocked, waiting, dead),) = self._rows(_COUNT, {"process": process})
        return InstanceCount(running=running, blocked=blocked, waiting=waiting, dead=dead)

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        """What is to go out now."""
        found: list[Outgoing] = []
        for priority in self._priorities(process):
            if limit > len(found):
                rows = self._rows(_DUE, (process, priority, now_us, limit - len(found)))
                found += [outgoing_of(row) for row in rows]
        return found

    def _priorities(self, process: str) -> Iterator[int]:
        """Those that anything waits with, from the highest: a look at the index each."""
        below = PRIORITY_MAX + 1
        while True:  # at most once for each priority that there is
            ((priority,),) = self._rows(_LOWER_PRIORITY, (process, below))
            if priority is None:
                return
            yield priority
            below = priority

    async def next_due_us(self, process: str, after_us: int) -> int | None:
        """When the next thing is due."""
        found = [self._rows(_NEXT_DUE, (process, priority, after_us))[0][0] for priority in self._priorities(process)]
        return min((due for due in found if due is not None), default=None)

    async def outgoing(self, process: str, instance: str) -> list[Outgoing]:
        """All that waits or is dead of an instance."""
        statement = (
            f"SELECT {_OUTGOING} FROM process_outgoing WHERE process = ? AND instance = ? "
            "ORDER BY position, kind, ordinal"
        )
        return [outgoing_of(row) for row in self._rows(statement, (process, instance))]

    def _rows(self, statement: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        with self._failures:
            return self._open_reader().execute(statement, parameters).fetchall()

    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            raise StoreClosed(f"the process store in {self._path} is not open")
        return self._reader


def _process(connection: sqlite3.Connection, name: str) -> StoredProcess:
    row = connection.execute(f"SELECT {_PROCESS} FROM processes WHERE name = ?", (name,)).fetchone()
    found: StoredProcess = process_of(*row)
    return found


def _commit(connection: sqlite3.Connection, change: ProcessChange) -> bool:
    after, checkpoint, process = change.after, change.checkpoint, change.process
    moved = connection.execute(
        "UPDATE processes SET history_id = ?, position = ?, event_id = ?, fingerprint = ? "
        "WHERE name = ? AND epoch = ? AND history_id = ? AND position = ? AND event_id = ?",
        (
            *(checkpoint.history_id, checkpoint.position, checkpoint.event_id, change.fingerprint),
            *(process, change.epoch, after.history_id, after.position, after.event_id),
        ),
    )
    if not moved.rowcount:
        return False
    for what, rows in _statements(change):
        if rows:
            connection.executemany(what, rows)
    return True


def _statements(change: ProcessChange) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """What goes, before what comes."""
    process = change.process
    delete = "DELETE FROM process_outgoing WHERE process = ? AND "
    revive = f"{_REVIVE} AND instance = ? AND dead = 1"
    begin = "UPDATE process_outgoing SET begun = 1 WHERE process = ? AND id = ?"
    resend = (
        f"UPDATE process_outgoing SET {_AGAIN}, due = ?, id = ?, data = coalesce(?, data), "
        "metadata = coalesce(?, metadata) WHERE process = ? AND id = ? AND dead = 1"
    )
    due_us = change.revived_due_us
    fail = (
        "UPDATE process_outgoing SET attempts = ?, failure = ?, dead = ?, due = ?, begun = ?, trace = ? "
        "WHERE process = ? AND id = ?"
    )
    failed = [
        (item.attempts, item.failure, item.dead, item.due_us, item.begun, item.trace, process, item.id)
        for item in change.failed
    ]
    return [
        (delete + "instance = ?", [(process, instance) for instance in change.emptied]),
        (delete + "instance = ? AND kind = 'timeout'", [(process, each) for each in change.dropped_timeouts]),
        (delete + "id = ? AND dead = 1", [(process, discarded) for discarded in change.discarded]),
        (resend, [(due_us, each.as_id, each.data, each.metadata, process, each.id) for each in change.resent]),
        (revive, [(due_us, process, instance) for instance in change.revived]),
        (delete + "id = ?", [(process, removed) for removed in change.removed]),
        (begin, [(process, begun) for begun in change.begun]),
        (fail, failed),
        (_UPSERT, [instance_row(process, instance) for instance in change.instances]),
        (_ADD, [outgoing_row(process, item) for item in change.added]),
    ]
