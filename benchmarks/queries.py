"""Keyed queries per second beside a bare SELECT by key, and the wait for a command's own write beside raw commits."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.bank import AccountId, Balance, BalanceOf, Credit, bank
from benchmarks.bare_loop import raw_commits
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from diptych import Application

ACCOUNTS = 1_000


class Stores(NamedTuple):
    """The URLs of an application's two stores."""

    store: str
    read_store: str

    def open(self) -> Application:
        """An application on them, to be entered."""
        return Application(bank, store=self.store, read_store=self.read_store)


async def fill(stores: Stores) -> None:
    """Give every account a row."""
    async with stores.open() as app:
        commands = (Credit(account=AccountId(f"a{n}"), amount=n) for n in range(ACCOUNTS))
        await asyncio.gather(*(app.execute(command) for command in commands))
        await app.projected()


def query_side(stores: Stores) -> Side:
    """One caller, one key after the other."""

    async def run(seconds: float) -> Turn:
        latencies: list[float] = []
        async with stores.open() as app:
            begun = time.perf_counter()
            while (started := time.perf_counter()) - begun < seconds:
                await app.query(BalanceOf(account=AccountId(f"a{len(latencies) % ACCOUNTS}")))
                latencies.append(time.perf_counter() - started)
            return Turn(len(latencies), time.perf_counter() - begun, latencies)

    return lambda seconds: asyncio.run(run(seconds))


def own_write_side(stores: Stores, *, after_receipt: bool) -> Side:
    """One caller: a command, and the query that shows what it wrote. What is timed is one or the other."""

    async def run(seconds: float) -> Turn:
        commands: list[float] = []
        answers: list[float] = []
        async with stores.open() as app:
            begun = time.perf_counter()
            while (started := time.perf_counter()) - begun < seconds:
                account = AccountId(f"a{len(commands) % ACCOUNTS}")
                receipt = await app.execute(Credit(account=account, amount=1))
                written = time.perf_counter()
                await app.query(BalanceOf(account=account), after=receipt)
                commands.append(written - started)
                answers.append(time.perf_counter() - written)
        timed = answers if after_receipt else commands
        return Turn(len(timed), sum(timed), timed)

    return lambda seconds: asyncio.run(run(seconds))


def raw_side(folder: Path) -> Side:
    """One-row durable commits: what the disk allows one caller."""
    return lambda seconds: Turn(*raw_commits(folder / "raw.db", seconds))


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
    """Print two lines; the second is of waits one after the other, so that their rate is the inverse of the mean."""
    asked = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = Stores(f"sqlite:{folder}/diptych.db", f"sqlite:{folder}/read.db")
        asyncio.run(fill(stores))
        sides: dict[str, Side] = {"diptych": query_side(stores), "bare_select": bare_side(folder)}
        report("keyed query", in_turns(sides, asked.seconds, asked.rounds), "diptych")
        sides = {
            "diptych": own_write_side(stores, after_receipt=True),
            "its_command": own_write_side(stores, after_receipt=False),
            "raw_commit": raw_side(folder),
        }
        report("token wait, idle", in_turns(sides, asked.seconds, asked.rounds), "diptych")


if __name__ == "__main__":
    main()
