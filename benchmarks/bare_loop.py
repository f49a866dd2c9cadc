"""The same store work without Diptych: what SQLite and msgspec cost by themselves, in the plainest loop.

The tables hold what Diptych's hold, with the same indexes; every command loads its account's events by tag (or takes
the state from a dictionary), folds, decides, and appends one event under its condition, with its outcome. Commands that
wait at the same time share a transaction.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.bank import Account, Credit, Credited
from diptych.messages.unique_id import unique_bytes, unique_id

_TABLES = """
CREATE TABLE tags (id INTEGER PRIMARY KEY, tag TEXT NOT NULL UNIQUE);
CREATE TABLE events (
  position INTEGER PRIMARY KEY, event_id BLOB NOT NULL UNIQUE, type INTEGER NOT NULL, version INTEGER NOT NULL,
  data BLOB NOT NULL, tags TEXT NOT NULL, metadata BLOB NOT NULL, recorded_at INTEGER NOT NULL);
CREATE INDEX events_by_type ON events (type, position);
CREATE TABLE event_tags (
  tag INTEGER NOT NULL, position INTEGER NOT NULL, type INTEGER NOT NULL, PRIMARY KEY (tag, position)) WITHOUT ROWID;
CREATE TABLE outcomes (
  command_id TEXT PRIMARY KEY, payload_hash BLOB, position INTEGER, event_count INTEGER, rejection BLOB) WITHOUT ROWID;
"""
_LOAD = (
    "SELECT e.data FROM event_tags t JOIN events e USING (position)"
    " WHERE t.tag = ? AND t.position > ? AND t.type = 1 ORDER BY t.position"
)
_CHANGED = "SELECT 1 FROM event_tags WHERE tag = ? AND position > ? AND type = 1 LIMIT 1"


class BareLoop:
    """One file, one connection, no framework."""

    def __init__(self, path: Path, *, cached: bool) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_TABLES)
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Credited).decode
        self._tags: dict[str, int] = {}
        self._states: dict[str, tuple[Account, int]] = {}
        self._cached = cached
        self._head = 0

    def execute(self, commands: Sequence[Credit]) -> None:
        """Load, fold and decide each command, and append all in one durable transaction."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        events, tags, outcomes = [], [], []
        now = time.time_ns() // 1000
        for command in commands:
            tag = self._tag(f"account:{command.account}")
            account, position = self._load(command.account, tag)
            if position < self._head and execute(_CHANGED, (tag, position)).fetchone():
                raise AssertionError("nobody else writes")
            event = Credited(account=command.account, amount=command.amount)
            self._head += 1
            data, metadata = self._encode(event), self._encode({"command_id": (command_id := unique_id())})
            events.append((self._head, unique_bytes(), 1, 1, data, f'["account:{command.account}"]', metadata, now))
            tags.append((tag, self._head, 1))
            outcomes.append((command_id, data[:16], self._head, 1, None))
            self._states[command.account] = (account.evolve(event), self._head)
        self._connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", events)
        self._connection.executemany("INSERT INTO event_tags VALUES (?, ?, ?)", tags)
        self._connection.executemany("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?)", outcomes)
        execute("COMMIT")

    def _load(self, account: str, tag: int) -> tuple[Account, int]:
        if self._cached and account in self._states:
            return self._states[account]
        state = Account()
        for (data,) in self._connection.execute(_LOAD, (tag, 0)):
            state = state.evolve(self._decode(data))
        return state, self._head

    def _tag(self, tag: str) -> int:
        found = self._tags.get(tag)
        if found is None:
            found = self._tags[tag] = len(self._tags) + 1
            self._connection.execute("INSERT INTO tags VALUES (?, ?)", (found, tag))
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def raw_commits(path: Path, seconds: float) -> tuple[int, float]:
    """One-row durable commits in so many seconds: what the disk allows one caller."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB)")
    row, count, started = os.urandom(100), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (data) VALUES (?)", (row,))
        connection.execute("COMMIT")
        count += 1
    took = time.perf_counter() - started
    connection.close()
    return count, took
