"""The wait for a command's own write on PostgreSQL, beside the command itself, the same by hand, and one-row commits.

One caller on an idle server: a command, and the query that shows what it wrote, with the receipt as its token. Then
keyed queries beside a bare SELECT by key.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg

from benchmarks.bank import Balance
from benchmarks.bare_postgres import TABLES, raw_commits
from benchmarks.bare_wait import ROW_TABLES, bare_waits
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from benchmarks.postgres_server import database, in_schema
from benchmarks.queries import ACCOUNTS, Stores, fill, own_write_side, query_side
from diptych.adapters.postgres.deployment import migrate

READ_SCHEMA = "benchmark_read"


async def prepare(url: str, stores: Stores) -> None:
    """Make the tables of all sides, and give every account a row."""
    await migrate(stores.store, "event_store")
    await migrate(stores.read_store, "read_store")
    link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
    await link.execute(TABLES + ROW_TABLES)
    await link.close()
    await fill(stores)


def raw_side(url: str) -> Side:
    """One-row durable commits: what the server allows one caller."""

    async def run(seconds: float) -> Turn:
        link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
        turn = await raw_commits(link, seconds)
        await link.close()
        return turn

    return lambda seconds: asyncio.run(run(seconds))


def bare_side(url: str) -> Side:
    """A SELECT by key, and the row as a struct."""

    async def run(seconds: float) -> Turn:
        link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
        latencies: list[float] = []
        begun = time.perf_counter()
        while (started := time.perf_counter()) - begun < seconds:
            key = f"a{len(latencies) % ACCOUNTS}"
            select = f"SELECT account, balance FROM {READ_SCHEMA}.bank_balance WHERE account = $1"
            ((account, held),) = await link.fetch(select, key)
            Balance(account=account, balance=held)
            latencies.append(time.perf_counter() - started)
        turn = Turn(len(latencies), time.perf_counter() - begun, latencies)
        await link.close()
        return turn

    return lambda seconds: asyncio.run(run(seconds))


def main() -> None:
    """Print two lines; the first is of waits one after the other, so that their rate is the inverse of the mean."""
    asked = arguments(__doc__ or "")
    with database() as url:
        stores = Stores(url, in_schema(url, READ_SCHEMA))
        asyncio.run(prepare(url, stores))
        sides = {
            "diptych": own_write_side(stores, after_receipt=True),
            "its_command": own_write_side(stores, after_receipt=False),
            "bare_wait": lambda seconds: asyncio.run(bare_waits(url, ACCOUNTS, seconds)),
            "raw_commit": raw_side(url),
        }
        report("token wait on PostgreSQL, idle", in_turns(sides, asked.seconds, asked.rounds), "diptych")
        sides = {"diptych": query_side(stores), "bare_select": bare_side(url)}
        report("keyed query on PostgreSQL", in_turns(sides, asked.seconds, asked.rounds), "diptych")


if __name__ == "__main__":
    main()
