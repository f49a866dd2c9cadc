"""The process store in PostgreSQL: in the schema of the events, for workers on many machines. See the port.

A change is one transaction. It moves the checkpoint first, which locks the row of the process: whoever else would
commit queues there, and then finds another checkpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.adapters.postgres.attempts import UnderWay, changed, read
from diptych.adapters.postgres.connection import (
    DRIVER_ERRORS,
    Connections,
    Link,
    PostgresUrl,
    is_lost,
    parse_url,
    roll_back,
    was_not_sent,
)
from diptych.adapters.postgres.process_schema import PROCESS_MIGRATIONS
from diptych.errors import StoreClosed, StoreUnavailable
from diptych.event_store.position import Place, Position
from diptych.process_managers.process_store import (
    PRIORITY_MAX,
    PRIORITY_MIN,
    Instance,
    InstanceCount,
    Outgoing,
    ProcessChange,
    StoredProcess,
)

if TYPE_CHECKING:
    import asyncpg

__all__ = ["PostgresProcessStore", "connect"]

CONNECTIONS_MAX = 2
"""Connections of one process that work on its processes."""
TRANSACTION_IDLE_S_MAX = 5.0
"""How long a change may be left in the middle, by a worker that was stopped there: others wait for its lock."""
LOCK_WAIT_S = 5.0
"""How long a change waits for another one's before it gives up with `StoreUnavailable`."""

T = TypeVar("T")

_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on; "
    f"SET LOCAL lock_timeout = {round(LOCK_WAIT_S * 1_000)}; "
    f"SET LOCAL idle_in_transaction_session_timeout = {round(TRANSACTION_IDLE_S_MAX * 1_000)}"
)
_PROCESS = "name, history_id, position, event_id, fingerprint, epoch"
_AGAIN = "dead = false, attempts = 0, failure = '', trace = '', begun = false"
_INSTANCE = "id, state, started, started_at, last, last_at, ended, blocked, failure, attempts, trace"
_OUTGOING = (
    "id, instance, kind, position, ordinal, due, type, version, data, tags, metadata, attempts, failure, dead, "
    "priority, expires, begun, trace"
)


def connect(url: str) -> PostgresProcessStore:
    """The process store beside the events in `postgresql://user@host/database?schema=diptych`; not opened yet.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return PostgresProcessStore(parse_url(url))


class PostgresProcessStore:
    """Keeps the processes of one schema."""

    def __init__(self, url: PostgresUrl) -> None:
        """Remember where it is: a database and a schema, which `migrate` has made."""
        self._url = url
        self._sql = _Statements(url.quoted_schema)
        self._connections = Connections(url, CONNECTIONS_MAX, read_only=False, verify=self._verify)
        self._under_way = UnderWay()
        self._is_open = False

    async def _verify(self, link: Link) -> None:
        await PROCESS_MIGRATIONS.check(link, self._url)

    async def open(self) -> None:
        """Connect, and make sure that the schema is as this code needs it.

        Raises:
            NewerStore: a newer Diptych migrated it.
            ConfigurationError: it was not migrated.
            StoreUnavailable: the server cannot be reached; with the reason.
        """
        if self._is_open:
            return
        self._connections.open()
        self._is_open = True
        try:
            await self.processes()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what is under way and let go of the connections. May be called twice."""
        self._is_open = False
        await self._under_way.end()
        await self._connections.close()

    async def create(self, process: str, checkpoint: Place, fingerprint: str) -> StoredProcess:
        """Make a process, or give the one that is there."""
        known = await self._rows(self._sql.process, process)
        if not known:
            made = (process, checkpoint.history_id, checkpoint.position, checkpoint.event_id, fingerprint)
            await self._change(lambda link: link.execute(self._sql.create, *made))
            known = await self._rows(self._sql.process, process)
        return _process_of(known[0])

    async def processes(self) -> list[StoredProcess]:
        """Every process, by name."""
        return [_process_of(row) for row in await self._rows(self._sql.processes)]

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, processes: Collection[str], ttl_s: float) -> Mapping[str, int]:
        """Take what is free, and renew what is held."""
        wanted = sorted(processes)
        rows = await self._change(lambda link: link.fetch(self._sql.lease, worker, wanted, float(ttl_s)))
        return {row["name"]: row["epoch"] for row in rows}

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        """Give up these at once; everything where none are named."""
        names = None if processes is None else sorted(processes)
        await self._change(lambda link: link.execute(self._sql.release, worker, names))

    # ── change ───────────────────────────────────────────────────────────────

    async def commit(self, change: ProcessChange) -> bool:
        """Make a change true, if the process is where its writer thinks."""
        return await self._change(lambda link: self._commit(link, change))

    async def _commit(self, link: Link, change: ProcessChange) -> bool:
        after, checkpoint = change.after, change.checkpoint
        moved = await link.fetchval(
            self._sql.move,
            *(change.process, change.epoch, after.history_id, after.position, after.event_id),
            *(checkpoint.history_id, checkpoint.position, checkpoint.event_id, change.fingerprint),
        )
        if moved is None:
            return False
        for statement, arguments in self._sql.steps(change):
            await link.execute(statement, *arguments)
        return True

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Put in what is to go out; what is there stays."""
        columns, ids = _columns([_outgoing_row(item) for item in items]), [item.id for item in items]

        async def work(link: Link) -> list[asyncpg.Record]:
            await link.execute(self._sql.add_new, process, *columns)
            return await link.fetch(self._sql.find, process, ids)

        there = {item.id: item for item in map(_outgoing_of, await self._change(work))} if items else {}
        return [there.get(item.id, item) for item in items]  # what has gone out in between was there, and is done

    async def drop(self, process: str, ids: Collection[str]) -> None:
        """Take out what is not to go out any more."""
        await self._change(lambda link: link.execute(self._sql.drop, process, list(ids)))

    async def revive(self, process: str, ids: Collection[str], due_us: int) -> None:
        """Have what is dead of these due again."""
        await self._change(lambda link: link.execute(self._sql.revive, process, list(ids), due_us))

    # ── read ─────────────────────────────────────────────────────────────────

    async def find(self, process: str, ids: Collection[str]) -> list[Outgoing]:
        """What is there under these ids."""
        return [_outgoing_of(row) for row in await self._rows(self._sql.find, process, list(ids))]

    async def waiting(self, process: str, after: str | None, limit: int) -> list[Outgoing]:
        """The first commands and timeouts behind an id."""
        statement = self._sql.waiting(first=after is None)
        arguments = (process, limit) if after is None else (process, limit, after)
        return [_outgoing_of(row) for row in await self._rows(statement, *arguments)]

    async def instances(self, process: str, ids: Collection[str]) -> list[Instance]:
        """Those of these instances that are there."""
        return [_instance_of(row) for row in await self._rows(self._sql.instances, process, list(ids))]

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
        statement = self._sql.page(ended=ended, stuck=stuck, blocked=blocked, first=after is None)
        arguments = (process, limit) if after is None else (process, limit, after)
        return [_instance_of(row) for row in await self._rows(statement, *arguments)]

    async def dead(self, process: str, after: tuple[str, str] | None, limit: int) -> list[Outgoing]:
        """The first dead commands and timeouts behind one."""
        statement = self._sql.dead(first=after is None)
        return [_outgoing_of(row) for row in await self._rows(statement, process, limit, *(after or ()))]

    async def count(self, process: str) -> InstanceCount:
        """How many instances there are."""
        ((running, blocked, waiting, dead),) = await self._rows(self._sql.count, process)
        return InstanceCount(running=running, blocked=blocked, waiting=waiting, dead=dead)

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        """What is to go out now."""
        return [_outgoing_of(row) for row in await self._rows(self._sql.due, process, now_us, limit)]

    async def next_due_us(self, process: str, after_us: int) -> int | None:
        """When the next thing is due."""
        ((found,),) = await self._rows(self._sql.next_due, process, after_us)
        return None if found is None else int(found)

    async def outgoing(self, process: str, instance: str) -> list[Outgoing]:
        """All that waits or is dead of an instance."""
        return [_outgoing_of(row) for row in await self._rows(self._sql.outgoing, process, instance)]

    # ── transactions ─────────────────────────────────────────────────────────

    async def _rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        self._check_open()
        return await read(self._connections, statement, *arguments)

    async def _change(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """The work in a transaction, which goes on where its caller is cancelled."""
        self._check_open()
        change = changed(self._connections, lambda link: self._transaction(link, work))
        return await self._under_way.see_through(change)

    async def _transaction(self, link: Link, work: Callable[[Link], Awaitable[T]]) -> T:
        await link.execute(_BEGIN)
        try:
            result = await work(link)
        except Exception as error:
            await roll_back(link, error)
            raise
        try:
            await link.execute("COMMIT")
        except DRIVER_ERRORS as error:
            if was_not_sent(error) or not is_lost(error):
                raise
            raise StoreUnavailable(
                f"{self._url.shown}: {error}; whether it was done shows when it is looked at again"
            ) from error
        return result

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreClosed(f"the process store {self._url.shown} is not open")


class _Statements:
    """The statements for one schema."""

    def __init__(self, schema: str) -> None:
        processes, self._instances, out = (
            f"{schema}.{table}" for table in ("processes", "process_instances", "process_outgoing")
        )
        self._out = out
        self.processes = f"SELECT {_PROCESS} FROM {processes} ORDER BY name"
        self.process = f"SELECT {_PROCESS} FROM {processes} WHERE name = $1"
        self.create = (
            f"INSERT INTO {processes} ({_PROCESS}) VALUES ($1, $2, $3, $4, $5, 0) ON CONFLICT (name) DO NOTHING"
        )
        self.lease = (
            f"UPDATE {processes} SET epoch = epoch + (last_holder IS NOT NULL AND last_holder <> $1)::integer, "
            "last_holder = $1, held_until = clock_timestamp() + $3 * interval '1 second' "
            "WHERE name = ANY($2::text[]) "
            "AND (last_holder IS NULL OR last_holder = $1 OR held_until <= clock_timestamp()) RETURNING name, epoch"
        )
        self.release = (
            f"UPDATE {processes} SET epoch = epoch + 1, last_holder = NULL, held_until = NULL WHERE last_holder = $1 "
            "AND ($2::text[] IS NULL OR name = ANY($2::text[]))"
        )
        self.move = (
            f"UPDATE {processes} SET history_id = $6, position = $7, event_id = $8, fingerprint = $9 "
            "WHERE name = $1 AND epoch = $2 AND history_id = $3 AND position = $4 AND event_id = $5 RETURNING epoch"
        )
        self.instances = f"SELECT {_INSTANCE} FROM {self._instances} WHERE process = $1 AND id = ANY($2::text[])"
        self.count = (
            f"SELECT (SELECT count(*) FROM {self._instances} WHERE process = $1 AND NOT ended), "
            f"(SELECT count(*) FROM {self._instances} WHERE process = $1 AND blocked > 0 AND NOT ended), "
            f"(SELECT count(*) FROM {out} WHERE process = $1 AND NOT dead), "
            f"(SELECT count(*) FROM {out} WHERE process = $1 AND dead)"
        )
        levels = f"generate_series({PRIORITY_MAX}, {PRIORITY_MIN}, -1) AS level (priority)"  # each a look at the index
        at_level = f"FROM {out} AS o WHERE process = $1 AND o.priority = level.priority AND NOT dead"
        self.due = (
            f"SELECT {_OUTGOING.replace('priority', 'found.priority')} FROM {levels} CROSS JOIN LATERAL "
            f"(SELECT {_OUTGOING.replace('priority', 'o.priority')} {at_level} AND due <= $2 "
            f"AND (kind = 'timeout' OR NOT EXISTS ({_held_back(out)})) ORDER BY due, position, ordinal LIMIT $3) "
            "AS found ORDER BY found.priority DESC, due, position, ordinal LIMIT $3"
        )
        self.next_due = (
            f"SELECT min(found.due) FROM {levels} CROSS JOIN LATERAL "
            f"(SELECT due {at_level} AND due > $2 ORDER BY due LIMIT 1) AS found"
        )
        self.find = f"SELECT {_OUTGOING} FROM {out} WHERE process = $1 AND id = ANY($2::text[])"
        self.drop = f"DELETE FROM {out} WHERE process = $1 AND id = ANY($2::text[])"
        self.revive = f"{_revived(out)} AND id = ANY($2::text[])"
        self.add_new = f"{self._add} ON CONFLICT (process, id) DO NOTHING"
        self.outgoing = (
            f"SELECT {_OUTGOING} FROM {out} WHERE process = $1 AND instance = $2 ORDER BY position, kind, ordinal"
        )

    def waiting(self, *, first: bool) -> str:
        """Commands and timeouts behind one."""
        behind = "" if first else "AND id > $3 "
        return f"SELECT {_OUTGOING} FROM {self._out} WHERE process = $1 {behind}ORDER BY id LIMIT $2"

    def dead(self, *, first: bool) -> str:
        """The dead behind one."""
        behind = "" if first else "AND (instance, id) > ($3, $4) "
        return f"SELECT {_OUTGOING} FROM {self._out} WHERE process = $1 AND dead {behind}ORDER BY instance, id LIMIT $2"

    def page(self, *, ended: bool, stuck: bool, blocked: bool, first: bool) -> str:
        """Instances behind one."""
        those = (
            f"SELECT b.id FROM {self._instances} AS b WHERE b.process = $1 AND b.blocked > 0 "
            f"UNION SELECT d.instance FROM {self._out} AS d WHERE d.process = $1 AND d.dead"
        )
        which = "blocked > 0" if blocked else f"id IN ({those})" if stuck else "true" if ended else "NOT ended"
        behind = "" if first else "AND id > $3 "
        return (
            f"SELECT {_INSTANCE} FROM {self._instances} WHERE process = $1 {behind}AND ({which}) ORDER BY id LIMIT $2"
        )

    def steps(self, change: ProcessChange) -> list[tuple[str, Sequence[Any]]]:
        """What goes, before what comes; only what there is to do."""
        process, out = change.process, self._out
        delete = f"DELETE FROM {out} WHERE process = $1 AND "
        revive = f"{_revived(out)} AND instance = ANY($2::text[])"
        begin = f"UPDATE {out} SET begun = true WHERE process = $1 AND id = ANY($2::text[])"
        resend = (
            f"UPDATE {out} AS o SET {_AGAIN}, due = $6, id = r.as_id, data = coalesce(r.data, o.data), "
            "metadata = coalesce(r.metadata, o.metadata) "
            "FROM unnest($2::text[], $3::text[], $4::bytea[], $5::bytea[]) AS r (id, as_id, data, metadata) "
            "WHERE o.process = $1 AND o.id = r.id AND o.dead"
        )
        resent = [(each.id, each.as_id, each.data, each.metadata) for each in change.resent]
        fail = (
            f"UPDATE {out} AS o SET attempts = f.attempts, failure = f.failure, dead = f.dead, due = f.due, "
            "begun = f.begun, trace = f.trace FROM unnest($2::text[], $3::integer[], $4::text[], $5::boolean[], "
            "$6::bigint[], $7::boolean[], $8::text[]) AS f (id, attempts, failure, dead, due, begun, trace) "
            "WHERE o.process = $1 AND o.id = f.id"
        )
        failed = [
            (item.id, item.attempts, item.failure, item.dead, item.due_us, item.begun, item.trace)
            for item in change.failed
        ]
        found: list[tuple[Collection[Any], str, Sequence[Any]]] = [
            (change.emptied, delete + "instance = ANY($2::text[])", [list(change.emptied)]),
            (
                change.dropped_timeouts,
                delete + "instance = ANY($2::text[]) AND kind = 'timeout'",
                [list(change.dropped_timeouts)],
            ),
            (change.discarded, delete + "id = ANY($2::text[]) AND dead", [list(change.discarded)]),
            (resent, resend, [*_columns(resent), change.revived_due_us]),
            (change.revived, revive, [list(change.revived), change.revived_due_us]),
            (change.removed, delete + "id = ANY($2::text[])", [list(change.removed)]),
            (change.begun, begin, [list(change.begun)]),
            (failed, fail, _columns(failed)),
            (change.instances, self._upsert, _columns([_instance_row(each) for each in change.instances])),
            (change.added, self._add, _columns([_outgoing_row(item) for item in change.added])),
        ]
        return [(statement, (process, *arguments)) for rows, statement, arguments in found if rows]

    @property
    def _upsert(self) -> str:
        given = (
            "unnest($2::text[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[], "
            f"$9::bigint[], $10::text[], $11::integer[], $12::text[]) AS u ({_INSTANCE})"
        )
        changed = ", ".join(f"{name} = excluded.{name}" for name in _INSTANCE.split(", ")[1:])
        return (
            f"INSERT INTO {self._instances} (process, {_INSTANCE}) SELECT $1, {_INSTANCE} FROM {given} "
            f"ON CONFLICT (process, id) DO UPDATE SET {changed}"
        )

    @property
    def _add(self) -> str:
        given = (
            "unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::integer[], $7::bigint[], $8::text[], "
            "$9::integer[], $10::bytea[], $11::text[], $12::bytea[], $13::integer[], $14::text[], $15::boolean[], "
            "$16::integer[], $17::bigint[], $18::boolean[], $19::text[]) "
            f"AS u ({_OUTGOING})"
        )
        # arrays of arrays are matrices to the server: tags come as the text of an array each
        columns = _OUTGOING.replace("tags", "tags::text[]")
        return f"INSERT INTO {self._out} (process, {_OUTGOING}) SELECT $1, {columns} FROM {given}"


def _revived(out: str) -> str:
    return f"UPDATE {out} SET {_AGAIN}, due = $3 WHERE process = $1 AND dead"


def _held_back(out: str) -> str:
    return (
        f"SELECT FROM {out} AS e WHERE e.process = o.process AND e.instance = o.instance AND e.kind = 'command' "
        "AND (e.position, e.ordinal) < (o.position, o.ordinal) "
        f"AND CASE WHEN e.dead THEN e.position = o.position ELSE NOT EXISTS (SELECT FROM {out} AS d "
        "WHERE d.process = e.process AND d.instance = e.instance AND d.kind = 'command' "
        "AND d.position = e.position AND d.ordinal < e.ordinal AND d.dead) END"
    )


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _process_of(row: asyncpg.Record) -> StoredProcess:
    name, history_id, position, event_id, fingerprint, epoch = row
    return StoredProcess(name, Place(history_id, Position(position), event_id), fingerprint, epoch)


def _instance_of(row: asyncpg.Record) -> Instance:
    found, state, started, started_at, last, last_at, ended, blocked, told, attempts, trace = row
    return Instance(
        id=found,
        state=state,
        started=started,
        started_at_us=started_at,
        last=last,
        last_at_us=last_at,
        ended=ended,
        blocked=blocked,
        failure=told,
        attempts=attempts,
        trace=trace,
    )


def _instance_row(instance: Instance) -> tuple[Any, ...]:
    times = (instance.started, instance.started_at_us, instance.last, instance.last_at_us)
    blocked = (instance.blocked, instance.failure, instance.attempts, instance.trace)
    return (instance.id, instance.state, *times, instance.ended, *blocked)


def _outgoing_of(row: asyncpg.Record) -> Outgoing:
    found, instance, kind, position, ordinal, due, type, version, data, tags, metadata, *tried = row
    attempts, told, dead, priority, expires, begun, trace = tried
    return Outgoing(
        id=found,
        instance=instance,
        kind=kind,
        position=position,
        ordinal=ordinal,
        due_us=due,
        type=type,
        version=version,
        data=data,
        tags=tuple(tags),
        metadata=metadata,
        attempts=attempts,
        failure=told,
        dead=dead,
        priority=priority,
        expires_us=expires,
        begun=begun,
        trace=trace,
    )


def _outgoing_row(item: Outgoing) -> tuple[Any, ...]:
    made_by = (item.id, item.instance, item.kind, item.position, item.ordinal, item.due_us)
    what = (item.type, item.version, item.data, _array_text(item.tags), item.metadata)
    tried = (item.attempts, item.failure, item.dead, item.priority, item.expires_us, item.begun, item.trace)
    return (*made_by, *what, *tried)


def _array_text(texts: Sequence[str]) -> str:
    """Texts as the server writes an array of them."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"
