"""Events per second folded from a backlog on PostgreSQL, by one worker process and by two.

Two figures: two read models, of which two workers have one each; and one read model in two slices, that they share.
The workers are open, idle, and have their leases when a backlog is committed in one transaction. It is over when the
checkpoints are at its end; then the next one comes, until the time is up. Each side has an event store of its own.
Beside them: the bare loop, and a peer where it is installed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import msgspec

from benchmarks.bank import (
    AccountId,
    Activity,
    Balance,
    Credit,
    Credited,
    activity,
    balance,
    bank,
    in_two_slices,
    one_read_model,
    write_side_only,
)
from benchmarks.measure import AsyncSide, Turn, arguments, awaited_in_turns, report
from benchmarks.postgres import has_peers, in_thread
from benchmarks.postgres_processes import READY_S_MAX, receive, start_together
from benchmarks.postgres_server import database, in_schema
from diptych import Application
from diptych.adapters.postgres.deployment import migrate
from diptych.clock import pause

if TYPE_CHECKING:
    from benchmarks.bare_postgres import Link

CONTEXTS = {"bank": bank, "one_read_model": one_read_model, "in_two_slices": in_two_slices}
ACCOUNTS = 2_000
ROUNDS_OF_ACCOUNTS = 25
"""Events of each account in a backlog."""
BATCH_EVENTS = 1_000
"""Of the bare loop, as of the projector."""
PEER_CONNECTIONS = 4
"""Of the peer's pool: it works on one, and waits on others."""
POLL_S = 0.01
"""Between looks whether the workers are done."""

_BACKLOG = """
WITH held AS (SELECT position, recorded_at FROM {schema}.history WHERE one = 1 FOR NO KEY UPDATE),
written AS (
  INSERT INTO {schema}.events (position, recorded_at, type, version, event_id, data, tags, metadata)
  SELECT held.position + n * $1::bigint + e.position, held.recorded_at, e.type, e.version,
    uuid_send(gen_random_uuid()), e.data, e.tags, e.metadata
  FROM held, generate_series(0, $2::bigint - 1) AS n, {schema}.events AS e WHERE e.position <= $1
  RETURNING position, event_id),
last AS (SELECT position, event_id FROM written ORDER BY position DESC LIMIT 1),
moved AS (
  UPDATE {schema}.history AS h SET position = last.position, event_id = last.event_id FROM last WHERE h.one = 1)
SELECT position, pg_notify('{schema}_events', '') FROM last"""
_BARE_TABLES = """
CREATE TABLE {schema}.balance (account text PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE {schema}.activity (account text PRIMARY KEY, entries bigint NOT NULL, largest bigint NOT NULL);
CREATE TABLE {schema}.checkpoint (position bigint NOT NULL);
INSERT INTO {schema}.checkpoint VALUES (0)"""


class Bench(NamedTuple):
    """A side's stores, and the connection that fills and watches them."""

    url: str
    schema: str
    link: Link

    @property
    def store(self) -> str:
        """The event store's URL."""
        return in_schema(self.url, self.schema)

    @property
    def read_store(self) -> str:
        """The read store's URL."""
        return in_schema(self.url, f"{self.schema}_read")

    async def prepare(self) -> None:
        """Make the tables, and append the events that backlogs are copies of: one of each account."""
        await migrate(self.store, "event_store")
        await migrate(self.read_store, "read_store")
        async with Application(write_side_only, store=self.store, read_store="memory:") as app:
            commands = (Credit(account=AccountId(f"a{n}"), amount=n % 97) for n in range(ACCOUNTS))
            await asyncio.gather(*(app.execute(command) for command in commands))

    async def backlog(self) -> int:
        """Commit a backlog, and tell the workers; the position of its last event."""
        statement = _BACKLOG.format(schema=self.schema)
        position: int = await self.link.fetchval(statement, ACCOUNTS, ROUNDS_OF_ACCOUNTS)
        return position

    async def until(self, condition: str, *values: object, seconds: float = READY_S_MAX) -> None:
        """Wait until the generations are such.

        Raises:
            TimeoutError: they are not in time.
        """
        statement = f"SELECT {condition} FROM {self.schema}_read.diptych_generations"
        async with asyncio.timeout(seconds):
            while not await self.link.fetchval(statement, *values):
                await pause(POLL_S)


async def work(context: str, store: str, rows: str, parent: Connection) -> None:
    """What a worker does: fold, until it is told to stop."""
    async with Application(CONTEXTS[context], store=store, read_store=rows):
        await start_together(parent)


def run_worker(context: str, store: str, rows: str, parent: Connection) -> None:
    """What the process of a worker does."""
    asyncio.run(work(context, store, rows, parent))


@contextmanager
def workers(bench: Bench, context: str, count: int) -> Iterator[None]:
    """So many worker processes, opened one after the other: the first makes the tables of the read models."""
    spawning = multiprocessing.get_context("spawn")
    running: list[tuple[BaseProcess, Connection]] = []
    try:
        for _ in range(count):
            mine, theirs = spawning.Pipe()
            process: BaseProcess = spawning.Process(
                target=run_worker, args=(context, bench.store, bench.read_store, theirs)
            )
            process.start()
            theirs.close()
            running.append((process, mine))
            receive(mine, READY_S_MAX)
        yield
        for _, pipe in running:
            pipe.send(None)
    finally:
        for process, pipe in running:
            pipe.close()
            process.join()


def diptych_side(bench: Bench, context: str, count: int) -> AsyncSide:
    """Backlogs folded by so many workers; what is timed is from a backlog's commit to the last checkpoint."""

    async def side(seconds: float) -> Turn:
        done, took_s = 0, 0.0
        with workers(bench, context, count):
            await bench.until(f"count(DISTINCT last_holder) = {count} AND count(last_holder) = count(*)")
            while took_s < seconds:
                end = await bench.backlog()
                started = time.perf_counter()
                await bench.until("bool_and(position >= $1)", end)
                took_s += time.perf_counter() - started
                done += ACCOUNTS * ROUNDS_OF_ACCOUNTS
        return Turn(done, took_s)

    return side


def bare_side(bench: Bench, folds: Sequence[Fold]) -> AsyncSide:
    """The same backlogs, read, folded and written on one connection."""

    async def side(seconds: float) -> Turn:
        done, took_s = 0, 0.0
        while took_s < seconds:
            await bench.backlog()
            started = time.perf_counter()
            await fold_backlog(bench, folds)
            took_s += time.perf_counter() - started
            done += ACCOUNTS * ROUNDS_OF_ACCOUNTS
        return Turn(done, took_s)

    return side


Fold = Callable[["Link", str, Sequence[Credited], list[str]], Awaitable[None]]
"""Folds a batch into one table: connection, schema, events, their accounts."""


async def fold_backlog(bench: Bench, folds: Sequence[Fold]) -> None:
    """A thousand events to a transaction, with the checkpoint; it waits for no disk, as the projector's do not."""
    link, schema = bench.link, bench.schema
    decode = msgspec.json.Decoder(Credited).decode
    position: int = await link.fetchval(f"SELECT position FROM {schema}.checkpoint")
    read = f"SELECT position, data FROM {schema}.events WHERE type = 1 AND position > $1 ORDER BY position LIMIT $2"
    while found := await link.fetch(read, position, BATCH_EVENTS):
        position = found[-1][0]
        events = [decode(data) for _, data in found]
        keys: list[str] = list({event.account for event in events})
        await link.execute("BEGIN; SET LOCAL synchronous_commit = off")
        for fold in folds:
            await fold(link, schema, events, keys)
        await link.execute(f"UPDATE {schema}.checkpoint SET position = $1", position)
        await link.execute("COMMIT")


async def fold_balances(link: Link, schema: str, events: Sequence[Credited], keys: list[str]) -> None:
    """One SELECT and one upsert by unnest."""
    found = await link.fetch(f"SELECT account, balance FROM {schema}.balance WHERE account = ANY($1::text[])", keys)
    rows = {account: Balance(account=account, balance=held) for account, held in found}
    for event in events:
        key = event.account
        rows[key] = balance(rows.get(key) or Balance(account=key), event)
    await link.execute(
        f"INSERT INTO {schema}.balance SELECT * FROM unnest($1::text[], $2::bigint[]) "
        "ON CONFLICT (account) DO UPDATE SET balance = excluded.balance",
        [row.account for row in rows.values()],
        [row.balance for row in rows.values()],
    )


async def fold_activities(link: Link, schema: str, events: Sequence[Credited], keys: list[str]) -> None:
    """The same for the other table."""
    select = f"SELECT account, entries, largest FROM {schema}.activity WHERE account = ANY($1::text[])"
    rows = {
        account: Activity(account=account, entries=entries, largest=largest)
        for account, entries, largest in await link.fetch(select, keys)
    }
    for event in events:
        key = event.account
        rows[key] = activity(rows.get(key) or Activity(account=key), event)
    await link.execute(
        f"INSERT INTO {schema}.activity SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) "
        "ON CONFLICT (account) DO UPDATE SET entries = excluded.entries, largest = excluded.largest",
        [row.account for row in rows.values()],
        [row.entries for row in rows.values()],
        [row.largest for row in rows.values()],
    )


FIGURES: dict[str, tuple[str, str, Sequence[Fold]]] = {
    "two read models": ("bank", "bank", (fold_balances, fold_activities)),
    "one read model in two slices": ("one_read_model", "in_two_slices", (fold_balances,)),
}
"""By name: the context that one worker runs, the one that two workers run, and the bare loop's folds."""


@asynccontextmanager
async def benches(url: str, names: Sequence[str]) -> AsyncIterator[dict[str, Bench]]:
    """Stores for each side, filled; all on one connection."""
    link: Link = await asyncpg.connect(url)
    made = {name: Bench(url, f"bench_{name}", link) for name in names}
    for bench in made.values():
        await bench.prepare()
    yield made
    await link.close()


async def measure(url: str, figure: str, seconds: float, rounds: int, *, peers: bool) -> None:
    """Print a line for one worker, and one for two."""
    alone, shared, folds = FIGURES[figure]
    names = [f"{name}_{alone}" for name in ("one", "two", "bare")]
    async with benches(url, names) as made:
        one, two, bare = made.values()
        for statement in _BARE_TABLES.format(schema=bare.schema).split(";"):
            await bare.link.execute(statement)
        sides: dict[str, AsyncSide] = {
            "one_worker": diptych_side(one, alone, 1),
            "two_workers": diptych_side(two, shared, 2),
            "bare_loop": bare_side(bare, folds),
        }
        if peers:
            from benchmarks.peer_projections import projection_side
            from benchmarks.peers import postgres_settings

            settings = postgres_settings(url, PEER_CONNECTIONS, with_functions=True)
            sides["eventsourcing"] = in_thread(projection_side(settings, len(folds)))
        turns = await awaited_in_turns(sides, seconds, rounds)
    facts = {"backlog_events": ACCOUNTS * ROUNDS_OF_ACCOUNTS, "accounts": ACCOUNTS}
    name = f"projection on PostgreSQL into {figure}"
    others = {side: found for side, found in turns.items() if side not in {"one_worker", "two_workers"}}
    report(name, {"diptych": turns["one_worker"], **others}, "diptych", workers=1, **facts)
    both = {"diptych": turns["two_workers"], "one_worker": turns["one_worker"], **others}
    report(name, both, "diptych", workers=2, **facts)


def main() -> None:
    """Print two lines for each figure."""
    asked = arguments(__doc__ or "")
    peers = has_peers()
    with database() as url:
        for figure in FIGURES:
            asyncio.run(measure(url, figure, asked.seconds, asked.rounds, peers=peers))


if __name__ == "__main__":
    main()
