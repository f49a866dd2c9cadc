"""Durable commands per second on PostgreSQL from several processes, which share the callers, in turns on one server.

Beside them: the bare loop in as many processes, and `pgbench` with as many connections as there are callers, where that
is there. Each process opens its application first and has one command done; what is measured begins when all have.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import asyncpg

from benchmarks.bank import AccountId, Credit, write_side_only
from benchmarks.bare_postgres import TABLES, BareLoop
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from benchmarks.pgbench import CLIENTS_MAX, find_pgbench, pgbench_turn
from benchmarks.postgres import drive, drive_bare, first_caller
from benchmarks.postgres_server import database
from diptych import Application
from diptych.adapters.postgres.deployment import migrate

PROCESSES = (1, 2, 4)
CALLERS = (16, 64, 256)
"""In all processes together."""
READY_S_MAX = 60.0
"""Seconds that a process may take until it is ready."""

Work: TypeAlias = Callable[[str, int, int, float, Connection], Awaitable[Turn]]
"""Of one process: the URL, its callers, the number of the first of them, seconds, and who is told that it is ready."""


async def diptych_work(url: str, callers: int, first: int, seconds: float, parent: Connection) -> Turn:
    """Commands on an application of its own."""
    async with Application(write_side_only, store=url, read_store="memory:") as app:
        await app.execute(Credit(account=AccountId(f"warm-{first}"), amount=1))
        await start_together(parent)
        return await drive(app, callers, first, seconds)


async def bare_work(url: str, callers: int, first: int, seconds: float, parent: Connection) -> Turn:
    """The bare loop on a connection of its own."""
    link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
    loop = BareLoop(link, cached=False)
    await loop.execute([Credit(account=AccountId(f"warm-{first}"), amount=1)])
    await start_together(parent)
    turn = await drive_bare(loop, callers, first, seconds)
    await link.close()
    return turn


async def start_together(parent: Connection) -> None:
    """Say that this process is ready, and wait until all are."""
    parent.send(None)
    await asyncio.to_thread(parent.recv)


def run_process(work: Work, url: str, callers: int, first: int, seconds: float, parent: Connection) -> None:
    """What a process does."""

    async def run() -> Turn:
        return await work(url, callers, first, seconds, parent)

    parent.send(tuple(asyncio.run(run())))


def processes_turn(work: Work, url: str, callers: int, processes: int, seconds: float) -> Turn:
    """The work in so many processes at once.

    Raises:
        RuntimeError: a process was not ready in time, or ended early.
    """
    spawning = multiprocessing.get_context("spawn")
    pipes = [spawning.Pipe() for _ in range(processes)]
    running = [
        spawning.Process(target=run_process, args=(work, url, callers // processes, first_caller(), seconds, theirs))
        for _, theirs in pipes
    ]
    for process, (_, theirs) in zip(running, pipes, strict=True):
        process.start()
        theirs.close()  # so that a process that ends is seen to
    mine = [pipe for pipe, _ in pipes]
    try:
        for pipe in mine:
            receive(pipe, READY_S_MAX)
        for pipe in mine:
            pipe.send(None)
        turns = [Turn(*receive(pipe, seconds + READY_S_MAX)) for pipe in mine]
    finally:
        for process, pipe in zip(running, mine, strict=True):
            pipe.close()  # one that still waits ends
            process.join()
    return together(turns)


def receive(pipe: Connection, seconds: float) -> tuple[int, float, Sequence[float]]:
    """What a process sends next.

    Raises:
        RuntimeError: nothing came in time, or it ended.
    """
    try:
        if pipe.poll(seconds):
            received: tuple[int, float, Sequence[float]] = pipe.recv()
            return received
    except EOFError as error:
        raise RuntimeError("a measured process ended early; what it said is above") from error
    raise RuntimeError(f"a measured process said nothing for {seconds:.0f} s")


def together(turns: Sequence[Turn]) -> Turn:
    """Turns that were taken at the same time, as one."""
    latencies = [latency for turn in turns for latency in turn.latencies_s]
    return Turn(sum(turn.done for turn in turns), max(turn.took_s for turn in turns), latencies)


def sides_of(url: str, callers: int, pgbench: Path | None) -> dict[str, Side]:
    """What is measured with so many callers."""
    sides: dict[str, Side] = {}
    for name, work in (("diptych", diptych_work), ("bare_loop", bare_work)):
        for processes in PROCESSES:
            sides[f"{name}_{processes}"] = partial(processes_turn, work, url, callers, processes)
    if pgbench and callers <= CLIENTS_MAX:
        sides["pgbench"] = partial(pgbench_turn, pgbench, url, callers)
    return sides


def report_processes(turns: dict[str, list[Turn]], callers: int) -> None:
    """A line per number of processes: beside one process, and beside the bare loop in as many."""
    for processes in PROCESSES:
        shown = {"diptych": turns[f"diptych_{processes}"], "bare_loop": turns[f"bare_loop_{processes}"]}
        if processes > 1:
            shown["one_process"] = turns["diptych_1"]
        if "pgbench" in turns:
            shown["pgbench"] = turns["pgbench"]
        facts = {"callers": callers, "processes": processes}
        report("commands on PostgreSQL from processes", shown, "diptych", **facts)
        if processes > 1:
            bare = {"bare_loop": turns[f"bare_loop_{processes}"], "one_process": turns["bare_loop_1"]}
            report("bare loop on PostgreSQL from processes", bare, "bare_loop", **facts)


async def prepare(url: str) -> None:
    """Make the tables of all sides."""
    await migrate(url, "event_store")
    link: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
    await link.execute(TABLES)
    await link.close()


def main() -> None:
    """Print a line per number of callers and processes."""
    asked = arguments(__doc__ or "")
    pgbench = find_pgbench()
    with database() as url:
        asyncio.run(prepare(url))
        for callers in CALLERS:
            turns = in_turns(sides_of(url, callers, pgbench), asked.seconds, asked.rounds)
            report_processes(turns, callers)


if __name__ == "__main__":
    main()
