"""The tables of processes in PostgreSQL: in the schema of the events, with migrations of their own."""

from __future__ import annotations

from diptych.adapters.postgres.grants import Grants
from diptych.adapters.postgres.migrations import Migration, Migrations

__all__ = ["PROCESS_GRANTS", "PROCESS_MIGRATIONS"]

_TABLES = """
CREATE TABLE {schema}.processes (
    name text COLLATE "C" PRIMARY KEY,
    history_id bytea NOT NULL,           -- this and the next two: the checkpoint
    position bigint NOT NULL,
    event_id bytea NOT NULL,
    fingerprint text NOT NULL,
    epoch bigint NOT NULL,
    last_holder text COLLATE "C",        -- the worker that has, or had, the lease; null: it was released
    held_until timestamptz               -- by the server's clock
) WITH (fillfactor = 50);
CREATE TABLE {schema}.process_instances (
    process text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    state bytea NOT NULL,                -- JSON
    started bigint NOT NULL,             -- a position
    started_at bigint NOT NULL,          -- microseconds since 1970 UTC
    last bigint NOT NULL,
    last_at bigint NOT NULL,
    ended boolean NOT NULL,
    blocked bigint NOT NULL,             -- a position; 0: it is not
    failure text NOT NULL,
    PRIMARY KEY (process, id)
) WITH (fillfactor = 80);
CREATE INDEX process_instances_running ON {schema}.process_instances (process, id) WHERE NOT ended;
CREATE INDEX process_instances_blocked ON {schema}.process_instances (process, id) WHERE blocked > 0;
CREATE TABLE {schema}.process_outgoing (
    id text COLLATE "C" PRIMARY KEY,
    process text COLLATE "C" NOT NULL,
    instance text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,      -- command or timeout
    position bigint NOT NULL,            -- of the event that it is a reaction to
    ordinal integer NOT NULL,
    due bigint NOT NULL,                 -- microseconds since 1970 UTC
    type text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    data bytea NOT NULL,                 -- JSON
    tags text[] NOT NULL,
    metadata bytea NOT NULL,             -- JSON
    attempts integer NOT NULL,
    failure text NOT NULL,
    dead boolean NOT NULL
);
CREATE INDEX process_outgoing_of ON {schema}.process_outgoing (process, instance, kind, position, ordinal);
CREATE INDEX process_outgoing_due ON {schema}.process_outgoing (process, due, position, ordinal) WHERE NOT dead;
CREATE INDEX process_outgoing_dead ON {schema}.process_outgoing (process, instance) WHERE dead;
"""

_COMMANDS_IN_TIME = """
ALTER TABLE {schema}.process_outgoing
    ADD COLUMN priority integer NOT NULL DEFAULT 0,
    ADD COLUMN expires bigint NOT NULL DEFAULT 0,  -- microseconds since 1970 UTC; 0: never
    ADD COLUMN begun boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT process_outgoing_pkey,
    ADD PRIMARY KEY (process, id);
DROP INDEX {schema}.process_outgoing_due;
CREATE INDEX process_outgoing_due ON {schema}.process_outgoing (process, priority, due, position, ordinal)
    WHERE NOT dead;
DROP INDEX {schema}.process_outgoing_dead;
CREATE INDEX process_outgoing_dead ON {schema}.process_outgoing (process, instance, id) WHERE dead;
"""

_TRACES = """
ALTER TABLE {schema}.process_instances
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN trace text NOT NULL DEFAULT '';
ALTER TABLE {schema}.process_outgoing ADD COLUMN trace text NOT NULL DEFAULT '';
UPDATE {schema}.process_instances SET attempts = 1 WHERE blocked > 0;
"""

PROCESS_MIGRATIONS = Migrations(
    store="processes",
    steps=(
        Migration(1, "tables of processes", _TABLES),
        Migration(7, "commands in time", _COMMANDS_IN_TIME),
        Migration(8, "attempts and stack traces of processes", _TRACES),
    ),
)

_SEEN, _CHANGED = "SELECT", "SELECT, INSERT, UPDATE, DELETE"

PROCESS_GRANTS = Grants(
    store="processes",
    tables={
        "processes": {"writer": _SEEN, "reader": _SEEN, "projector": "SELECT, INSERT, UPDATE"},
        "process_instances": {"writer": _SEEN, "reader": _SEEN, "projector": "SELECT, INSERT, UPDATE"},
        # whoever executes commands schedules and cancels them as well
        "process_outgoing": {"writer": _CHANGED, "reader": _SEEN, "projector": _CHANGED},
    },
)
