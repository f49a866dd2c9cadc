"""The tables of the event store in PostgreSQL, and the function that is its append section.

Tags and type names are kept once, and known by integers everywhere else, given out in order, so that the index of tags
grows at its end where entities are new. An event carries its tags as JSON as well, so that reading it needs no join.
The one row of `history` holds the head: whoever appends locks it first, and nobody else ever waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.adapters.postgres.append_function import (
    APPEND_FUNCTION,
    APPEND_FUNCTION_CHECKED,
    APPEND_FUNCTION_IN_FEWER_STEPS,
    APPEND_FUNCTION_MODELS_ALIKE,
    APPEND_FUNCTION_TAGGED_ALIKE,
)
from diptych.adapters.postgres.grants import Grants, Role
from diptych.adapters.postgres.migrations import Migration, Migrations

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EVENT_STORE_GRANTS", "EVENT_STORE_MIGRATIONS"]

_TABLES = """
CREATE TABLE {schema}.history (
    one integer PRIMARY KEY CHECK (one = 1),
    history_id bytea NOT NULL,
    position bigint NOT NULL,        -- of the last event
    event_id bytea NOT NULL,         -- of the last event; zeros while there is none
    recorded_at bigint NOT NULL,     -- of the last event
    tag_count bigint NOT NULL,       -- ids given out in tags
    type_count integer NOT NULL      -- ids given out in event_types
) WITH (fillfactor = 50);
INSERT INTO {schema}.history
VALUES (1, uuid_send(gen_random_uuid()), 0, decode(repeat('00', 16), 'hex'), 0, 0, 0);

CREATE TABLE {schema}.event_types (
    id integer PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);
CREATE TABLE {schema}.event_versions (
    type integer NOT NULL,           -- event_types.id
    version integer NOT NULL,
    tag_names bytea,                 -- JSON array of text; null: never registered
    held boolean NOT NULL,           -- true once an event of it is stored
    PRIMARY KEY (type, version)
);
CREATE TABLE {schema}.events (
    position bigint PRIMARY KEY,
    recorded_at bigint NOT NULL,     -- microseconds since 1970 UTC
    type integer NOT NULL,           -- event_types.id
    version integer NOT NULL,
    event_id bytea NOT NULL,
    data bytea NOT NULL,             -- JSON, as bytes
    tags bytea NOT NULL,             -- JSON array of text
    metadata bytea NOT NULL          -- JSON
);
CREATE UNIQUE INDEX events_by_id ON {schema}.events (event_id);
CREATE INDEX events_by_type ON {schema}.events (type, position);
CREATE TABLE {schema}.tags (
    id bigint PRIMARY KEY,
    tag text COLLATE "C" NOT NULL UNIQUE
);
CREATE TABLE {schema}.event_tags (
    tag bigint NOT NULL,             -- tags.id
    position bigint NOT NULL,
    type integer NOT NULL,
    PRIMARY KEY (tag, position) INCLUDE (type)
);
CREATE TABLE {schema}.outcomes (
    command_id text COLLATE "C" PRIMARY KEY,
    payload_hash bytea NOT NULL,
    position bigint NOT NULL,        -- where it was judged
    event_count integer NOT NULL,    -- events of the command, ending there
    rejection bytea                  -- JSON
);
"""

_MODEL_STATES = """
CREATE TABLE {schema}.model_states (
    model text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,   -- JSON array of identities
    fold text COLLATE "C" NOT NULL,  -- which code has folded it
    data bytea NOT NULL,             -- JSON
    position bigint NOT NULL,        -- up to which its events are folded
    PRIMARY KEY (model, key)
) WITH (fillfactor = 80);
"""

_HORIZONS = """
CREATE TABLE {schema}.horizons (
    type text COLLATE "C" PRIMARY KEY,  -- stored name
    position bigint NOT NULL            -- up to which its events have no data
);
"""

_AS_OWNER = """
ALTER FUNCTION {schema}.append SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION {schema}.register_types SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
REVOKE ALL ON FUNCTION {schema}.append, {schema}.register_types FROM PUBLIC;
"""

_FACTS = """
ALTER TABLE {schema}.history ADD COLUMN tagging bytea NOT NULL DEFAULT '';  -- another when events are tagged anew
ALTER TABLE {schema}.history ADD COLUMN unfinished bytea;      -- JSON: types and versions that are being tagged anew
ALTER TABLE {schema}.event_versions ADD COLUMN facts bytea;    -- JSON: schemas and places of tags; null: not known

CREATE FUNCTION {schema}.keep_facts(
    names text[], versions integer[], all_before bytea[], all_after bytea[], lock_wait_ms integer
)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $keep$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM set_config('lock_timeout', lock_wait_ms::text, true);
    PERFORM FROM {schema}.history AS h WHERE h.one = 1 FOR NO KEY UPDATE;
    UPDATE {schema}.event_versions AS v SET facts = u.after
    FROM unnest(names, versions, all_before, all_after) AS u (name, version, before, after)
    JOIN {schema}.event_types AS t ON t.name = u.name
    WHERE v.type = t.id AND v.version = u.version AND (NOT v.held OR v.facts IS NOT DISTINCT FROM u.before);
END
$keep$;
REVOKE ALL ON FUNCTION {schema}.keep_facts FROM PUBLIC;
"""

_MODEL_UNIONS = """
ALTER TABLE {schema}.history ADD COLUMN models bytea NOT NULL DEFAULT '';  -- another whenever model_unions changes
CREATE TABLE {schema}.model_unions (
    model text COLLATE "C" PRIMARY KEY,  -- qualified name
    version integer NOT NULL,
    types bytea NOT NULL                 -- JSON array of text: stored names of the events that it folds
);

CREATE FUNCTION {schema}.keep_models(
    names text[], versions integer[], all_types bytea[], instead_of bytea, lock_wait_ms integer
)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $keep$
DECLARE
    found bytea;
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM set_config('lock_timeout', lock_wait_ms::text, true);
    SELECT h.models INTO STRICT found FROM {schema}.history AS h WHERE h.one = 1 FOR NO KEY UPDATE;
    IF found <> instead_of THEN
        RETURN false;
    END IF;
    INSERT INTO {schema}.model_unions (model, version, types)
    SELECT u.model, u.version, u.types FROM unnest(names, versions, all_types) AS u (model, version, types)
    ON CONFLICT (model) DO UPDATE SET version = excluded.version, types = excluded.types;
    UPDATE {schema}.history AS h SET models = substr(uuid_send(gen_random_uuid()), 9) WHERE h.one = 1;
    RETURN true;
END
$keep$;
REVOKE ALL ON FUNCTION {schema}.keep_models FROM PUBLIC;
"""

EVENT_STORE_MIGRATIONS = Migrations(
    store="event store",
    steps=(
        Migration(1, "tables", _TABLES),
        Migration(2, "append section", APPEND_FUNCTION),
        Migration(3, "append section as its owner", _AS_OWNER),
        Migration(4, "append section that checks its batches", APPEND_FUNCTION_CHECKED),
        Migration(5, "append section in fewer steps", APPEND_FUNCTION_IN_FEWER_STEPS),
        Migration(6, "states of decision models", _MODEL_STATES),
        Migration(7, "horizons of pruning", _HORIZONS),
        Migration(8, "schemas and tags of event types", _FACTS + APPEND_FUNCTION_TAGGED_ALIKE),
        Migration(9, "unions of decision models", _MODEL_UNIONS + APPEND_FUNCTION_MODELS_ALIKE),
    ),
)

_SEEN_BY_ALL: Mapping[Role, str] = {"writer": "SELECT", "reader": "SELECT", "projector": "SELECT"}

EVENT_STORE_GRANTS = Grants(
    store="event store",
    tables={
        "migrations": _SEEN_BY_ALL,
        "history": _SEEN_BY_ALL,
        "event_types": _SEEN_BY_ALL,
        "event_versions": _SEEN_BY_ALL,
        "events": _SEEN_BY_ALL,
        "tags": _SEEN_BY_ALL,
        "event_tags": _SEEN_BY_ALL,
        "outcomes": {"writer": "SELECT"},
        "model_states": {"writer": "SELECT, INSERT, UPDATE"},
        "horizons": _SEEN_BY_ALL,
        "model_unions": _SEEN_BY_ALL,
    },
    functions={
        "append": ("writer",),
        "register_types": ("writer",),
        "keep_facts": ("writer",),
        "keep_models": ("writer",),
    },
)
