"""Keyed queries per second, and the wait for a command's own write, beside a bare SELECT by key."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from pathlib import Path

from benchmarks.bank import AccountId, Balance, BalanceOf, Credit, bank
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from diptych import Application

ACCOUNTS = 1_000


async def fill(folder: Path) -> None:
    """Give every account a row."""
    async with Application(bank, store=f"sqlite:{folder}/diptych.db", read_store=f"sqlite:{folder}/read.db") as app:
        commands = (Credit(account=AccountId(f"a{n}"), amount=n) for n in range(ACCOUNTS))
        await asyncio.gather(*(app.execute(command) for command in commands))
        await app.projected()


def query_side(folder: Path) -> Side:
    """One caller, one key after the other."""

    async def run(seconds: float) -> Turn:
        latencies: list[float] = []
        async with Application(bank, store=f"sqlite:{folder}/diptych.db", read_store=f"sqlite:{folder}/read.db") as app:
            begun = time.perf_counter()
            while (started := time.perf_counter()) - begun < seconds:
                await app.query(BalanceOf(account=AccountId(f"a{len(latencies) % ACCOUNTS}")))
                latencies.append(time.perf_counter() - started)
            return Turn(len(latencies), time.perf_counter() - begun, latencies)

    return lambda seconds: asyncio.run(run(seconds))


def own_write_side(folder: Path, *, ask: bool) -> Side:
    """One caller: a command, and with `ask` the query that waits for what it wrote."""

    async def run(seconds: float) -> Turn:
        latencies: list[float] = []
        async with Application(bank, store=f"sqlite:{folder}/diptych.db", read_store=f"sqlite:{folder}/read.db") as app:
            begun = time.perf_counter()
            while (started := time.perf_counter()) - begun < seconds:
                account = AccountId(f"a{len(latencies) % ACCOUNTS}")
                receipt = await app.execute(Credit(account=account, amount=1))
                if ask:
                    await app.query(BalanceOf(account=account), after=receipt)
                latencies.append(time.perf_counter() - started)
            return Turn(len(latencies), time.perf_counter() - begun, latencies)

    return lambda seconds: asyncio.run(run(seconds))


def bare_side(folder: Path) -> Side:
    """A SELECT by key in a read transaction of its own, and the row as a struct."""
    connection = sqlite3.connect(f"file:{folder}/read.db?mode=ro", uri=True, isolation_level=None)

    def side(seconds: float) -> Turn:
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            connection.execute("BEGIN")
            account, held = connection.execute(
                "SELECT account, balance FROM bank_balance WHERE account = ?", (f"a{count % ACCOUNTS}",)
            ).fetchone()
            Balance(account=account, balance=held)
            connection.execute("COMMIT")
            count += 1
        return Turn(count, time.perf_counter() - started)

    return side


def main() -> None:
    """Print two lines."""
    asked = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(fill(folder))
        sides: dict[str, Side] = {"diptych": query_side(folder), "bare_select": bare_side(folder)}
        report("keyed query", in_turns(sides, asked.seconds, asked.rounds), "diptych")
        sides = {"diptych": own_write_side(folder, ask=True), "command_alone": own_write_side(folder, ask=False)}
        report("command and the query after it", in_turns(sides, asked.seconds, asked.rounds), "diptych")


if __name__ == "__main__":
    main()
