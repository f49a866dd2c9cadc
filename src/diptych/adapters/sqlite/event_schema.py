"""The tables of the event store's file.

Tags and type names are kept once, and known by small integers everywhere else: SQLite's log writes whole pages, and
narrow keys touch fewer. An event carries its tags as JSON as well, so that reading it needs no join.
"""

from __future__ import annotations

from diptych.adapters.sqlite.file_format import FileFormat

__all__ = ["EVENT_STORE_FORMAT", "OWN_TABLES"]

OWN_TABLES = "?own_tables=true"
"""What a URL ends with whose file has the user's own tables already."""

_MODEL_STATES = """
    CREATE TABLE model_states (
        model TEXT NOT NULL,
        key TEXT NOT NULL,             -- JSON array of identities
        fold TEXT NOT NULL,            -- which code has folded it
        data BLOB NOT NULL,            -- JSON
        position INTEGER NOT NULL,     -- up to which its events are folded
        PRIMARY KEY (model, key)
    ) WITHOUT ROWID
"""

_HORIZONS = """
    CREATE TABLE horizons (
        type TEXT PRIMARY KEY,         -- stored name
        position INTEGER NOT NULL      -- up to which its events have no data
    ) WITHOUT ROWID
"""
_FACTS = (
    "ALTER TABLE history ADD COLUMN tagging BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE history ADD COLUMN unfinished BLOB",
    "ALTER TABLE event_versions ADD COLUMN facts BLOB",
)
_MODEL_UNIONS = """
    CREATE TABLE model_unions (
        model TEXT PRIMARY KEY,        -- qualified name
        version INTEGER NOT NULL,
        types BLOB NOT NULL            -- JSON array of text: stored names of the events that it folds
    ) WITHOUT ROWID
"""

EVENT_STORE_FORMAT = FileFormat(
    name="event store",
    application_id=0x44507465,  # "DPte"
    version=4,
    schema=(
        """
        CREATE TABLE history (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            history_id BLOB NOT NULL,
            tagging BLOB NOT NULL DEFAULT x'',  -- another whenever events are begun to be tagged anew
            unfinished BLOB,               -- JSON: types and versions whose events are being tagged anew
            models BLOB NOT NULL DEFAULT x''    -- another whenever model_unions changes
        )
        """,
        """
        CREATE TABLE events (
            position INTEGER PRIMARY KEY,
            type INTEGER NOT NULL,         -- event_types.id
            version INTEGER NOT NULL,
            recorded_at INTEGER NOT NULL,  -- microseconds since 1970 UTC
            event_id BLOB NOT NULL,
            data BLOB NOT NULL,            -- JSON, as bytes; empty once pruned
            tags BLOB NOT NULL,            -- JSON array of text
            metadata BLOB NOT NULL         -- JSON
        )
        """,
        "CREATE UNIQUE INDEX events_by_id ON events (event_id)",
        "CREATE INDEX events_by_type ON events (type)",
        "CREATE TABLE event_types (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
        """
        CREATE TABLE event_versions (
            type INTEGER NOT NULL,         -- event_types.id
            version INTEGER NOT NULL,
            tag_names BLOB,                -- JSON array of text; null: never registered
            held INTEGER NOT NULL,         -- 1 once an event of it is stored
            facts BLOB,                    -- JSON: schemas, and which places give which tags; null: not known
            PRIMARY KEY (type, version)
        ) WITHOUT ROWID
        """,
        "CREATE TABLE tags (id INTEGER PRIMARY KEY, tag TEXT NOT NULL UNIQUE)",
        """
        CREATE TABLE event_tags (
            tag INTEGER NOT NULL,          -- tags.id
            position INTEGER NOT NULL,
            type INTEGER NOT NULL,
            PRIMARY KEY (tag, position)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE outcomes (
            command_id TEXT PRIMARY KEY,
            payload_hash BLOB NOT NULL,
            position INTEGER NOT NULL,     -- where it was judged
            event_count INTEGER NOT NULL,  -- events of the command, ending there
            rejection BLOB                 -- JSON
        ) WITHOUT ROWID
        """,
        _MODEL_STATES,
        _HORIZONS,
        _MODEL_UNIONS,
    ),
    upgrades={
        1: (_MODEL_STATES,),
        2: (_HORIZONS, *_FACTS),
        3: (_MODEL_UNIONS, "ALTER TABLE history ADD COLUMN models BLOB NOT NULL DEFAULT x''"),
    },
)
