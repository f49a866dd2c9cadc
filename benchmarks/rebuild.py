"""A read model is built anew under a constant load of commands and queries, by a process that is killed in the middle.

Once with the code that runs, and once with changed code. No query may fail or go back in time, what is built goes on
from where it was when its process was killed, and the differences are none for the same code and exact for the other.
What does not hold ends the program. `python -m benchmarks.rebuild --events 1000000`
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from diptych import Application, BoundedContext, Command, Event, Identity, Key, Query, ReadModel
from diptych.clock import pause
from diptych.read_side.comparison import Comparison
from diptych.read_side.rebuild_policy import RebuildPolicy

__all__ = ["Load", "Rebuilt", "fill", "rebuilt_under_load", "tallies"]

ACCOUNTS = 2_000
"""Rows of the read model."""
WRITERS, READERS = 4, 4
"""Callers at once, one command or query after the other."""
WRITER_PAUSE_S, READER_PAUSE_S = 0.02, 0.005
"""Between two of a caller: the load is constant, and the machine is not full of it."""
ACCOUNTS_ASKED = 10
"""Rows that are asked for after the switch, by the code of before."""
TIMES = 10
"""By how much more the changed code counts."""
KILL_AT = 0.4
"""The share of the history at which the process that builds is killed."""
WAIT_S = 60.0
"""For how long a query may wait for what it is to show."""
NAME = "tallies.Tally"


class AccountId(Identity): ...


class Put(Command):
    account: AccountId
    amount: int


class WasPut(Event):
    account: AccountId
    amount: int


class Tally(ReadModel):
    account: Key[AccountId]
    amount: int = 0
    entries: int = 0


class TallyOf(Query[Tally | None]):
    account: AccountId


def tallies(times: int) -> BoundedContext:
    """The read model by code that counts each amount so many times."""
    context = BoundedContext("tallies")

    @context.command_handler
    def put(command: Put) -> WasPut:
        return WasPut(account=command.account, amount=command.amount)

    @context.projection(version=times)
    def tally(row: Tally, event: WasPut) -> Tally:
        return Tally(account=row.account, amount=row.amount + times * event.amount, entries=row.entries + 1)

    return context


def opened(store: str, times: int = 1, *, projecting: bool = True) -> Application:
    """The application by that code; what a switch replaces is kept for as long as this may take."""
    return Application(tallies(times), store=store, projecting=projecting, rebuilding=RebuildPolicy(keep_s=86_400))


async def fill(store: str, events: int) -> None:
    """Append the history, and fold it."""
    async with opened(store) as app:
        for start in range(0, events, 500):
            some = (Put(account=_account(n), amount=1 + n % 97) for n in range(start, min(events, start + 500)))
            await asyncio.gather(*(app.execute(command) for command in some))
        await app.projected()


def _account(number: int) -> AccountId:
    return AccountId(f"a{number % ACCOUNTS}")


class Load:
    """Writers and readers of one application; the first failure of any of them is raised where the load is awaited.

    Attributes:
        commands: executed.
        latencies_s: of queries.
    """

    def __init__(self, app: Application) -> None:
        self.commands = 0
        self.latencies_s: list[float] = []
        self._app = app
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def under_way(self) -> AsyncGenerator[Load]:
        """While the block goes on."""
        async with asyncio.TaskGroup() as callers:
            for number in range(WRITERS):
                callers.create_task(self._write(number))
            for number in range(READERS):
                callers.create_task(self._read(number))
            try:
                yield self
            finally:
                self._stopping.set()

    async def _write(self, number: int) -> None:
        """Commands, and every tenth is followed by a query that shows it."""
        for n in itertools.count(number, WRITERS):
            if self._stopping.is_set():
                return
            receipt = await self._app.execute(Put(account=_account(n * 7), amount=1))
            self.commands += 1
            if n % 10 == 0:
                answer = await self._app.answer(TallyOf(account=_account(n * 7)), after=receipt, wait_s=WAIT_S)
                _check(answer.shows[0].high.position >= receipt.position, f"an answer older than its {receipt}")
            await pause(WRITER_PAUSE_S)

    async def _read(self, number: int) -> None:
        """One row again and again: neither it nor the position that is shown ever goes back."""
        seen, shown = (0, 0), 0
        while not self._stopping.is_set():
            started = time.perf_counter()
            answer = await self._app.answer(TallyOf(account=_account(number)))
            self.latencies_s.append(time.perf_counter() - started)
            assert answer.value is not None
            now = answer.value.entries, answer.value.amount
            _check(now[0] >= seen[0] and now[1] >= seen[1], f"row {number} went from {seen} to {now}")
            _check(answer.shows[0].low >= shown, f"a query went back from {shown} to {answer.shows[0].low}")
            seen, shown = now, answer.shows[0].low
            await pause(READER_PAUSE_S)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


class Rebuilt(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        killed_at: the position that had been reached when the process was killed.
        resumed_at: the position that the next one began at, or a batch behind.
        position: up to which the rows answer.
        took_s: seconds of the second process.
        commands: executed meanwhile.
        queries: answered meanwhile.
        query_p99_s: seconds that one of a hundred took longer than.
        rows: of the read model.
        changed: rows that differed.
    """

    killed_at: int
    resumed_at: int
    position: int
    took_s: float
    commands: int
    queries: int
    query_p99_s: float
    rows: int
    changed: int


async def rebuilt_under_load(store: str, times: int, events: int) -> Rebuilt:
    """Build anew, by code that counts so many times, beside a server that runs the code of before."""
    async with AsyncExitStack() as running:
        app = await running.enter_async_context(opened(store))
        load = await running.enter_async_context(Load(app).under_way())
        killed_at = await _killed_in_the_middle(store, times, int(events * KILL_AT))
        started = time.perf_counter()
        lines = await _built(store, times)
        took_s = time.perf_counter() - started
        for number in range(ACCOUNTS_ASKED):  # the code of before goes on answering after the switch
            _check(
                await app.query(TallyOf(account=_account(number)), freshness="latest", wait_s=WAIT_S) is not None,
                "no row",
            )
    resumed_at, comparison, position = lines[0]["reached"], lines[-2]["comparison"], lines[-1]["position"]
    found = msgspec.convert(comparison, Comparison)
    _check(resumed_at >= killed_at, f"it was killed at {killed_at}, and began again at {resumed_at}")
    expected = 0 if times == 1 else min(ACCOUNTS, events)
    _check((found.changed, found.added, found.removed) == (expected, 0, 0), f"{expected} rows differ, not {found}")
    for sample in found.samples:
        before, after = sample.before or {}, sample.after or {}
        _check(after == {**before, "amount": times * before["amount"]}, f"{after} from {before}")
    async with opened(store, times, projecting=False) as app:
        _check((await app.rebuilds.compare(NAME)).same, "what was switched to is what a fresh fold gives")
    quantiles = statistics.quantiles(load.latencies_s, n=100)
    return Rebuilt(
        *(killed_at, resumed_at, position, took_s, load.commands, len(load.latencies_s), quantiles[-1]),
        *(found.rows, found.changed),
    )


# ── the process that builds ──────────────────────────────────────────────────


async def _started(store: str, times: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.rebuild", "--build", store, "--times", str(times)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        limit=1 << 20,
    )


async def _killed_in_the_middle(store: str, times: int, after: int) -> int:
    """Start building, and kill that once it has come so far; how far it had come at least."""
    process = await _started(store, times)
    assert process.stdout is not None
    reached = 0
    try:
        while reached < after:
            line = await process.stdout.readline()
            _check(bool(line), "it ended before it could be killed")
            reached = json.loads(line)["reached"]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    return reached


async def _built(store: str, times: int) -> Sequence[dict[str, Any]]:
    process = await _started(store, times)
    out, _ = await process.communicate()
    _check(process.returncode == 0, f"building ended with {process.returncode}")
    return [json.loads(line) for line in out.splitlines()]


async def build(store: str, times: int) -> None:
    """What runs in that process: prints how far it is, how the rows differ, and from where they answer."""

    def tell(**found: object) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.flush()

    def approve(found: Comparison) -> bool:
        tell(comparison=found)
        return True

    async with opened(store, times, projecting=False) as app:
        position = await app.rebuilds.rebuild(NAME, lambda reached, _: tell(reached=reached), approve=approve)
        tell(position=position)


async def measure(store: str, events: int) -> None:
    """Print one line for each of the two."""
    started = time.perf_counter()
    await fill(store, events)
    print(json.dumps({"filled": events, "took_s": round(time.perf_counter() - started, 1)}), flush=True)
    for what, times in (("the same code", 1), ("changed code", TIMES)):
        found = msgspec.structs.asdict(await rebuilt_under_load(store, times, events))
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
        print(json.dumps({"rebuilt": what, **rounded}), flush=True)


def main() -> None:
    """Measure, or be the process that builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000, help="of the history")
    parser.add_argument("--store", help="an empty store's URL; by default a file that is removed again")
    parser.add_argument("--build", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build:
        asyncio.run(build(asked.build, asked.times))
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(asked.store or f"sqlite:{folder}/tallies.db", asked.events))


if __name__ == "__main__":
    main()
