"""A row by key as of half a history ago, from its own events; beside all of its read model, and the live row."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.bank import AccountId, Balance, BalanceOf, Credit, bank
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from diptych import Application, BoundedContext, Query, Reader, Receipt

EVENTS = 50_000
ACCOUNTS = 2_000

asking = BoundedContext("asking")


class Listed(Query[int]):
    """How many accounts there are: of all rows."""


@asking.query_handler
async def listed(query: Listed, read: Reader) -> int:
    return await read.count(Balance)


def opened(folder: Path) -> Application:
    """The bank, and one more query."""
    return Application(bank, asking, store=f"sqlite:{folder}/diptych.db")


async def fill(folder: Path) -> Receipt:
    """Append the history; the receipt of the command in its middle."""
    receipts: list[Receipt] = []
    async with opened(folder) as app:
        for start in range(0, EVENTS, 500):
            commands = (Credit(account=AccountId(f"a{n % ACCOUNTS}"), amount=n % 97) for n in range(start, start + 500))
            receipts += await asyncio.gather(*(app.execute(command) for command in commands))
        await app.projected()
    return receipts[EVENTS // 2]


def side(folder: Path, ask: Callable[[Application, int], Awaitable[object]]) -> Side:
    """One caller, one query after the other."""

    async def run(seconds: float) -> Turn:
        latencies: list[float] = []
        async with opened(folder) as app:
            begun = time.perf_counter()
            while (started := time.perf_counter()) - begun < seconds:
                await ask(app, len(latencies) % ACCOUNTS)
                latencies.append(time.perf_counter() - started)
            return Turn(len(latencies), time.perf_counter() - begun, latencies)

    return lambda seconds: asyncio.run(run(seconds))


def main() -> None:
    """Print one line."""
    asked = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        then = asyncio.run(fill(folder))
        sides: dict[str, Side] = {
            "by_key": side(folder, lambda app, n: app.query(BalanceOf(account=AccountId(f"a{n}")), as_of=then)),
            "all_of_it": side(folder, lambda app, _: app.query(Listed(), as_of=then)),
            "live_row": side(folder, lambda app, n: app.query(BalanceOf(account=AccountId(f"a{n}")))),
        }
        turns = in_turns(sides, asked.seconds, asked.rounds)
        report("as of then, by key", turns, "by_key", events=EVENTS, folded_at_most=EVENTS // 2)


if __name__ == "__main__":
    main()
