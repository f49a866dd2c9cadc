"""Events per second folded from a backlog into two read models: Diptych and the bare loop, in turns."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.bank import AccountId, Activity, Balance, Credit, Credited, activity, balance, bank, write_side_only
from benchmarks.measure import Turn, arguments, in_turns, report
from diptych import Application

EVENTS = 50_000
ACCOUNTS = 2_000
BATCH_EVENTS = 1_000


async def fill(folder: Path) -> None:
    """Append the backlog."""
    async with Application(write_side_only, store=f"sqlite:{folder}/diptych.db", projecting=False) as app:
        for start in range(0, EVENTS, 500):
            commands = (Credit(account=AccountId(f"a{n % ACCOUNTS}"), amount=n % 97) for n in range(start, start + 500))
            await asyncio.gather(*(app.execute(command) for command in commands))


def diptych_turn(folder: Path, number: int) -> Turn:
    """Open with an empty read store, and fold everything."""

    async def run() -> Turn:
        read_store = f"sqlite:{folder}/read-{number}.db"
        started = time.perf_counter()
        async with Application(bank, store=f"sqlite:{folder}/diptych.db", read_store=read_store) as app:
            await app.projected()
            return Turn(EVENTS, time.perf_counter() - started)

    return asyncio.run(run())


def bare_turn(folder: Path, number: int) -> Turn:
    """Read, decode, fold and write the same events into two tables, a thousand to a transaction."""
    source = sqlite3.connect(f"file:{folder}/diptych.db?mode=ro", uri=True)
    target = sqlite3.connect(folder / f"bare-{number}.db", isolation_level=None)
    target.execute("PRAGMA journal_mode = WAL")
    target.execute("PRAGMA synchronous = NORMAL")
    target.execute("CREATE TABLE balance (account TEXT PRIMARY KEY, balance INTEGER)")
    target.execute("CREATE TABLE activity (account TEXT PRIMARY KEY, entries INTEGER, largest INTEGER)")
    target.execute("CREATE TABLE checkpoint (position INTEGER)")
    decode = msgspec.json.Decoder(Credited).decode
    started, position = time.perf_counter(), 0
    while found := source.execute(
        "SELECT position, data FROM events WHERE position > ? ORDER BY position LIMIT ?", (position, BATCH_EVENTS)
    ).fetchall():
        position = found[-1][0]
        fold_batch(target, [decode(data) for _, data in found], position)
    took = time.perf_counter() - started
    source.close()
    target.close()
    return Turn(EVENTS, took)


def fold_batch(target: sqlite3.Connection, events: list[Credited], position: int) -> None:
    """One SELECT and one UPSERT a table, in one transaction with the checkpoint."""
    keys = list({event.account for event in events})
    marks = ", ".join("?" * len(keys))
    balances = {
        account: Balance(account=account, balance=held)
        for account, held in target.execute(f"SELECT * FROM balance WHERE account IN ({marks})", keys)
    }
    activities = {
        account: Activity(account=account, entries=entries, largest=largest)
        for account, entries, largest in target.execute(
            f"SELECT * FROM activity WHERE account IN ({marks})",
            keys,
        )
    }
    for event in events:
        key = event.account
        balances[key] = balance(balances.get(key) or Balance(account=key), event)
        activities[key] = activity(activities.get(key) or Activity(account=key), event)
    target.execute("BEGIN")
    target.executemany(
        "INSERT INTO balance VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET balance = excluded.balance",
        [(row.account, row.balance) for row in balances.values()],
    )
    target.executemany(
        "INSERT INTO activity VALUES (?, ?, ?) ON CONFLICT (account) DO UPDATE"
        " SET entries = excluded.entries, largest = excluded.largest",
        [(row.account, row.entries, row.largest) for row in activities.values()],
    )
    target.execute("UPDATE checkpoint SET position = ?", (position,))
    target.execute("COMMIT")


def main() -> None:
    """Print one line."""
    asked = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(fill(folder))
        numbers = iter(range(1_000_000))
        sides = {
            "diptych": lambda _: diptych_turn(folder, next(numbers)),
            "bare_loop": lambda _: bare_turn(folder, next(numbers)),
        }
        report(
            "projection into two read models",
            in_turns(sides, asked.seconds, asked.rounds),
            "diptych",
            events=EVENTS,
            accounts=ACCOUNTS,
        )


if __name__ == "__main__":
    main()
