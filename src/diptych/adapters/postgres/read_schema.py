"""The catalog of the read store in PostgreSQL; the tables of generations are made as they come.

Names that the user may choose freely (read models become views of the schema) do not begin with `diptych_`. Keys are
kept by a hash too, since an index takes no text beyond a few kilobytes. `diptych_dropped_tables` holds what nobody
finds any more by the catalog, while snapshots of before may still be reading it. What a worker wants, in
`diptych_workers`, is an array of [name, number, slice].
"""

from __future__ import annotations

from diptych.adapters.postgres.grants import Grants
from diptych.adapters.postgres.migrations import Migration, Migrations

__all__ = ["READ_STORE_GRANTS", "READ_STORE_MIGRATIONS"]

_CATALOG = """
CREATE TABLE {schema}.diptych_projections (
    name text COLLATE "C" PRIMARY KEY,
    last_number integer NOT NULL,        -- of its generations, dropped ones included
    view_name text COLLATE "C",          -- of the view that was made for it; null: none
    view_number integer                  -- of the generation that the view shows
);
CREATE TABLE {schema}.diptych_generations (
    name text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    fingerprint text NOT NULL,
    table_name text COLLATE "C",         -- of the read model; null: a subscriber
    form json,                           -- of its table
    live boolean NOT NULL,
    history_id bytea NOT NULL,           -- this and the next two: the checkpoint
    position bigint NOT NULL,
    event_id bytea NOT NULL,
    epoch bigint NOT NULL,
    stopped text NOT NULL,
    recorded_at timestamptz,
    last_holder text COLLATE "C",        -- the worker that has, or had, the lease; null: it was released
    PRIMARY KEY (name, number)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX diptych_live ON {schema}.diptych_generations (name) WHERE live;
CREATE TABLE {schema}.diptych_blocked_keys (
    name text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    key_hash bytea NOT NULL,
    key text COLLATE "C" NOT NULL,       -- JSON array
    position bigint NOT NULL,
    error text NOT NULL,
    PRIMARY KEY (name, number, key_hash)
);
CREATE TABLE {schema}.diptych_discards (
    name text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    key_hash bytea NOT NULL,
    key text COLLATE "C" NOT NULL,       -- JSON array
    PRIMARY KEY (name, position, key_hash)
);
CREATE TABLE {schema}.diptych_workers (
    name text COLLATE "C" PRIMARY KEY,
    wanted json NOT NULL,                -- array of [name, number] of generations
    alive_until timestamptz NOT NULL
);
CREATE TABLE {schema}.diptych_dropped_tables (
    table_name text COLLATE "C" PRIMARY KEY,
    dropped_at timestamptz NOT NULL
);
"""

_SLICES = """
ALTER TABLE {schema}.diptych_generations
    ADD COLUMN slice integer NOT NULL DEFAULT 0,
    ADD COLUMN slices integer NOT NULL DEFAULT 1,
    ADD COLUMN barrier bigint,                       -- no slice goes beyond it; null: there is none
    ADD COLUMN slices_next integer NOT NULL DEFAULT 0,
    DROP CONSTRAINT diptych_generations_pkey,
    ADD PRIMARY KEY (name, number, slice);
DROP INDEX {schema}.diptych_live;
CREATE UNIQUE INDEX diptych_live ON {schema}.diptych_generations (name) WHERE live AND slice = 0;
DELETE FROM {schema}.diptych_workers;                -- what they want has three parts now; they come back by themselves
"""

READ_STORE_MIGRATIONS = Migrations(
    store="read store", steps=(Migration(1, "catalog", _CATALOG), Migration(2, "slices", _SLICES))
)

_CHANGED = "SELECT, INSERT, UPDATE, DELETE"

READ_STORE_GRANTS = Grants(
    store="read store",
    tables={
        "migrations": {"reader": "SELECT", "projector": "SELECT"},
        "diptych_projections": {"reader": "SELECT", "projector": "SELECT, INSERT, UPDATE"},
        "diptych_generations": {"reader": "SELECT", "projector": _CHANGED},
        "diptych_blocked_keys": {"reader": "SELECT", "projector": _CHANGED},
        "diptych_discards": {"reader": "SELECT", "projector": "SELECT, INSERT"},
        "diptych_workers": {"projector": _CHANGED},
        "diptych_dropped_tables": {"reader": "SELECT", "projector": "SELECT, INSERT, DELETE"},
    },
    makes_tables=True,
)
