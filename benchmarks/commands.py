"""Durable commands per second: Diptych, the bare loop, and raw commits, in turns on one machine."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bank import EARLIER_EVENTS, AccountId, Credit, write_side_only
from benchmarks.bare_loop import BareLoop, raw_commits
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from diptych import Application

CALLERS = (1, 16, 64, 256)
PEER_CALLERS = (1, 64)
"""With how many callers the peer is measured as well: with more it is no faster."""


def account_of(caller: int, number: int) -> AccountId:
    """Callers move on to a new account after ten commands, so that a model has five earlier events on average."""
    return AccountId(f"a{caller}-{number // (2 * EARLIER_EVENTS)}")


def diptych_side(folder: Path, callers: int, *, hot: bool) -> Side:
    """Concurrent callers, each waiting for its receipt before its next command."""
    turn = 0

    async def run(seconds: float) -> Turn:
        latencies: list[float] = []
        async with Application(write_side_only, store=f"sqlite:{folder}/diptych.db") as app:
            until = time.perf_counter() + seconds

            async def caller(index: int) -> None:
                number = 0
                while (started := time.perf_counter()) < until:
                    account = AccountId("hot") if hot else account_of(index + turn * callers, number)
                    await app.execute(Credit(account=account, amount=1))
                    latencies.append(time.perf_counter() - started)
                    number += 1

            started = time.perf_counter()
            await asyncio.gather(*(caller(index) for index in range(callers)))
            return Turn(len(latencies), time.perf_counter() - started, latencies)

    def side(seconds: float) -> Turn:
        nonlocal turn
        turn += 1
        return asyncio.run(run(seconds))

    return side


def bare_side(folder: Path, callers: int, *, cached: bool) -> Side:
    """The same commands, as many to a transaction as there are callers."""
    loop = BareLoop(folder / f"bare-{cached}.db", cached=cached)
    number = 0

    def side(seconds: float) -> Turn:
        nonlocal number
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            loop.execute([Credit(account=account_of(caller, number), amount=1) for caller in range(callers)])
            number += 1
            count += callers
        return Turn(count, time.perf_counter() - started)

    return side


def main() -> None:
    """Print a line per number of callers, and one for a hot entity."""
    asked = arguments(__doc__ or "")
    for callers in CALLERS:
        with tempfile.TemporaryDirectory() as name, ExitStack() as open_peers:
            folder = Path(name)
            sides: dict[str, Side] = {
                "diptych": diptych_side(folder, callers, hot=False),
                "bare_loop": bare_side(folder, callers, cached=False),
                "bare_loop_cached": bare_side(folder, callers, cached=True),
            }
            if callers == 1:
                sides["raw_commits"] = lambda seconds, path=folder / "raw.db": Turn(*raw_commits(path, seconds))  # type: ignore[misc]
            if callers in PEER_CALLERS and importlib.util.find_spec("eventsourcing"):
                from benchmarks.peers import eventsourcing_side, sqlite_settings

                for peer, cached in (("eventsourcing", False), ("eventsourcing_cached", True)):
                    settings = sqlite_settings(folder / f"{peer}.db")
                    sides[peer] = open_peers.enter_context(eventsourcing_side(settings, callers, cached=cached))
            report("commands", in_turns(sides, asked.seconds, asked.rounds), "diptych", callers=callers)
    with tempfile.TemporaryDirectory() as hot, tempfile.TemporaryDirectory() as cold:
        sides = {
            "diptych": diptych_side(Path(hot), 64, hot=True),
            "uncontended": diptych_side(Path(cold), 64, hot=False),
        }
        report("commands on one hot entity", in_turns(sides, asked.seconds, asked.rounds), "diptych", callers=64)


if __name__ == "__main__":
    main()
