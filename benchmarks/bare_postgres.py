"""The same store work without Diptych: what PostgreSQL, asyncpg and msgspec cost by themselves, in the plainest loop.

The tables hold what Diptych's hold, with the same indexes; every batch loads its accounts' events by tag (or takes the
states from a dictionary), folds, decides, and appends one event for each command, with its outcome, at positions from
one counter row. Commands that wait at the same time share a transaction.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from benchmarks.bank import Account, Credit, Credited
from benchmarks.measure import Turn
from diptych.messages.unique_id import unique_bytes, unique_id

if TYPE_CHECKING:
    import asyncpg

    Link = asyncpg.Connection[asyncpg.Record]

TABLES = """
CREATE SCHEMA bare;
CREATE TABLE bare.head (position bigint NOT NULL);
INSERT INTO bare.head VALUES (0);
CREATE TABLE bare.events (
  position bigint PRIMARY KEY, event_id uuid NOT NULL UNIQUE, type int NOT NULL, data bytea NOT NULL,
  tags text[] NOT NULL, metadata bytea NOT NULL, recorded_at timestamptz NOT NULL);
CREATE INDEX ON bare.events (type, position);
CREATE TABLE bare.event_tags (
  tag text NOT NULL, position bigint NOT NULL, type int NOT NULL, PRIMARY KEY (tag, position));
CREATE TABLE bare.outcomes (command_id text PRIMARY KEY, payload_hash bytea NOT NULL, position bigint NOT NULL);
CREATE TABLE bare.rows (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea NOT NULL);
"""
"""Run once in a database, before anything else here."""
_LOAD = """
SELECT t.tag, e.data FROM bare.event_tags t JOIN bare.events e USING (position)
WHERE t.tag = ANY($1) AND t.type = 1 ORDER BY t.position"""
_APPEND = """
WITH moved AS (UPDATE bare.head SET position = position + cardinality($1::uuid[]) RETURNING position),
given AS (
  SELECT moved.position - cardinality($1) + n AS position, id, tag, data, metadata, command_id
  FROM moved, unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::text[])
    WITH ORDINALITY AS g(id, tag, data, metadata, command_id, n)),
written AS (
  INSERT INTO bare.events SELECT position, id, 1, data, ARRAY[tag], metadata, clock_timestamp() FROM given),
tagged AS (INSERT INTO bare.event_tags SELECT tag, position, 1 FROM given)
INSERT INTO bare.outcomes SELECT command_id, substr(data, 1, 16), position FROM given"""


class BareLoop:
    """One connection, no framework: a batch loads with one statement, and is appended with one."""

    def __init__(self, link: Link, *, cached: bool) -> None:
        self._link = link
        self._cached = cached
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Credited).decode
        self._states: dict[str, Account] = {}

    async def execute(self, commands: Sequence[Credit]) -> None:
        """Load, fold and decide each command, and append all in one durable transaction."""
        states = self._states if self._cached else await self._load([f"account:{c.account}" for c in commands])
        ids, tags, data, metadata, command_ids = [], [], [], [], []
        for command in commands:
            tag = f"account:{command.account}"
            event = Credited(account=command.account, amount=command.amount)
            states[tag] = states.get(tag, Account()).evolve(event)
            ids.append(unique_bytes().hex())
            tags.append(tag)
            data.append(self._encode(event))
            command_ids.append(unique_id())
            metadata.append(self._encode({"command_id": command_ids[-1]}))
        await self._link.execute(_APPEND, ids, tags, data, metadata, command_ids)

    async def _load(self, tags: list[str]) -> dict[str, Account]:
        states: dict[str, Account] = {}
        for tag, data in await self._link.fetch(_LOAD, tags):
            states[tag] = states.get(tag, Account()).evolve(self._decode(data))
        return states


async def raw_commits(link: Link, seconds: float) -> Turn:
    """One-row durable commits, one after the other: what the server allows one caller."""
    row, latencies, begun = os.urandom(100), list[float](), time.perf_counter()
    while (started := time.perf_counter()) - begun < seconds:
        await link.execute("INSERT INTO bare.rows (data) VALUES ($1)", row)
        latencies.append(time.perf_counter() - started)
    return Turn(len(latencies), time.perf_counter() - begun, latencies)
