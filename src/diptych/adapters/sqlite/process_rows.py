"""The tables of processes in the file of the events, and their rows. SQLite; see `process_store`.

They are apart from the tables of the events: made when an application with processes is opened, with a version of
their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from diptych.errors import NewerStore
from diptych.event_store.position import Place, Position
from diptych.process_managers.process_store import Instance, Outgoing, StoredProcess

if TYPE_CHECKING:
    import sqlite3

__all__ = ["instance_of", "instance_row", "outgoing_of", "outgoing_row", "prepare", "process_of"]

VERSION = 3
"""Of these tables."""

_OUTGOING = """
    CREATE TABLE process_outgoing (
        id TEXT NOT NULL,
        process TEXT NOT NULL,
        instance TEXT NOT NULL,
        kind TEXT NOT NULL,            -- command or timeout
        position INTEGER NOT NULL,     -- of the event that it is a reaction to
        ordinal INTEGER NOT NULL,
        due INTEGER NOT NULL,          -- microseconds since 1970 UTC
        type TEXT NOT NULL,
        version INTEGER NOT NULL,
        data BLOB NOT NULL,            -- JSON
        tags BLOB NOT NULL,            -- JSON array of text
        metadata BLOB NOT NULL,        -- JSON
        attempts INTEGER NOT NULL,
        failure TEXT NOT NULL,
        dead INTEGER NOT NULL,
        priority INTEGER NOT NULL DEFAULT 0,
        expires INTEGER NOT NULL DEFAULT 0,  -- microseconds since 1970 UTC; 0: never
        begun INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (process, id)
    ) WITHOUT ROWID
    """
_OUTGOING_INDEXES = (
    "CREATE INDEX process_outgoing_of ON process_outgoing (process, instance, kind, position, ordinal, dead)",
    "CREATE INDEX process_outgoing_due ON process_outgoing (process, priority, due, position, ordinal) WHERE dead = 0",
    "CREATE INDEX process_outgoing_dead ON process_outgoing (process, instance, id) WHERE dead = 1",
)
_TRACES = (
    "ALTER TABLE process_instances ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE process_instances ADD COLUMN trace TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE process_outgoing ADD COLUMN trace TEXT NOT NULL DEFAULT ''",
)
_SCHEMA = (
    "CREATE TABLE processes_format (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL)",
    f"INSERT INTO processes_format (one, version) VALUES (1, {VERSION})",
    """
    CREATE TABLE processes (
        name TEXT PRIMARY KEY,
        history_id BLOB NOT NULL,      -- this and the next two: the checkpoint
        position INTEGER NOT NULL,
        event_id BLOB NOT NULL,
        fingerprint TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        last_holder TEXT               -- the worker that has, or had, the lease; null: it was released
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE process_instances (
        process TEXT NOT NULL,
        id TEXT NOT NULL,
        state BLOB NOT NULL,           -- JSON
        started INTEGER NOT NULL,      -- a position
        started_at INTEGER NOT NULL,   -- microseconds since 1970 UTC
        last INTEGER NOT NULL,
        last_at INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        blocked INTEGER NOT NULL,      -- a position; 0: it is not
        failure TEXT NOT NULL,
        PRIMARY KEY (process, id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX process_instances_running ON process_instances (process, id) WHERE ended = 0",
    "CREATE INDEX process_instances_blocked ON process_instances (process, id) WHERE blocked > 0",
    _OUTGOING,
    *_OUTGOING_INDEXES,
    *_TRACES,
)
_OF_1 = (
    "id, process, instance, kind, position, ordinal, due, type, version, data, tags, metadata, attempts, failure, dead"
)
_UPGRADES = {
    1: (  # ids are of a process, and there are priorities
        "ALTER TABLE process_outgoing RENAME TO process_outgoing_1",
        _OUTGOING,
        f"INSERT INTO process_outgoing ({_OF_1}) SELECT {_OF_1} FROM process_outgoing_1",
        "DROP TABLE process_outgoing_1",
        *_OUTGOING_INDEXES,
    ),
    2: (  # failures are kept with their stack traces
        *_TRACES,
        "UPDATE process_instances SET attempts = 1 WHERE blocked > 0",
    ),
}
"""By version, what makes the next one of it."""
_tags = msgspec.json.Decoder(tuple[str, ...])


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables, inside a write transaction, where they are missing; those of an older version are upgraded.

    Raises:
        NewerStore: a newer Diptych made them.
    """
    there = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'processes_format'").fetchone()
    if there is None:
        for statement in _SCHEMA:
            connection.execute(statement)
        return
    (found,) = connection.execute("SELECT version FROM processes_format").fetchone()
    if found > VERSION:
        raise NewerStore(f"the processes in {path}", found, VERSION)
    for older in range(found, VERSION):
        for statement in _UPGRADES[older]:
            connection.execute(statement)
        connection.execute("UPDATE processes_format SET version = ?", (older + 1,))


def process_of(name: str, history_id: bytes, position: int, event_id: bytes, fingerprint: str, epoch: int) -> Any:
    """A process of a row of `processes`."""
    return StoredProcess(name, Place(history_id, Position(position), event_id), fingerprint, epoch)


def instance_of(row: tuple[Any, ...]) -> Instance:
    """An instance of a row of `process_instances`, but for its process."""
    found, state, started, started_at, last, last_at, ended, blocked, failure, attempts, trace = row
    return Instance(
        id=found,
        state=state,
        started=started,
        started_at_us=started_at,
        last=last,
        last_at_us=last_at,
        ended=bool(ended),
        blocked=blocked,
        failure=failure,
        attempts=attempts,
        trace=trace,
    )


def instance_row(process: str, instance: Instance) -> tuple[Any, ...]:
    """A row of `process_instances`."""
    times = (instance.started, instance.started_at_us, instance.last, instance.last_at_us)
    blocked = (instance.blocked, instance.failure, instance.attempts, instance.trace)
    return (process, instance.id, instance.state, *times, instance.ended, *blocked)


def outgoing_of(row: tuple[Any, ...]) -> Outgoing:
    """What goes out, of a row of `process_outgoing`, but for its process."""
    found, instance, kind, position, ordinal, due, type, version, data, tags, metadata, *tried = row
    attempts, failure, dead, priority, expires, begun, trace = tried
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
        tags=_tags.decode(tags),
        metadata=metadata,
        attempts=attempts,
        failure=failure,
        dead=bool(dead),
        priority=priority,
        expires_us=expires,
        begun=bool(begun),
        trace=trace,
    )


def outgoing_row(process: str, item: Outgoing) -> tuple[Any, ...]:
    """A row of `process_outgoing`."""
    what = (item.type, item.version, item.data, msgspec.json.encode(item.tags), item.metadata)
    made_by = (item.instance, item.kind, item.position, item.ordinal, item.due_us)
    tried = (item.attempts, item.failure, item.dead, item.priority, item.expires_us, item.begun, item.trace)
    return (item.id, process, *made_by, *what, *tried)
