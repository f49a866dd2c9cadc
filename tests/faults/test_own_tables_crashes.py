"""Processes that die while a handler with tables of its own is committed: rows and events are there, or none (G1)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from diptych import Application
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import START
from tests.own_tables import AccountId, Bank, Database, Deposit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

STATEMENTS_MAX = 60
"""More statements than one such transaction has."""
CHILD_S_MAX = 60

SQLITE_CHILD = """
import asyncio, os, signal, sqlite3, sys
from diptych import Application, BoundedContext, Transaction
from tests.own_tables import AccountId, Deposit, Deposited

bank = BoundedContext("bank")

@bank.command_handler
def deposit(command: Deposit, transaction: Transaction[sqlite3.Connection]) -> Deposited:
    transaction.connection.execute("UPDATE accounts SET cents = cents + ?", (command.cents,))
    transaction.connection.execute("UPDATE accounts SET cents = cents + ?", (command.cents,))
    return Deposited(account=command.account, cents=command.cents, balance=0)

left = int(sys.argv[2])

def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Application(bank, store=sys.argv[1]) as app:
        app.partition().store._writer._connection.set_trace_callback(count)
        await app.execute(Deposit(account=AccountId("ada"), cents=5), command_id="d-1")
        print("acknowledged", flush=True)
        app.partition().store._writer._connection.set_trace_callback(None)

asyncio.run(main())
"""

POSTGRES_CHILD = """
import asyncio, os, signal, sys
from diptych import Application, BoundedContext, Transaction
from diptych.adapters.postgres.transactions import _LentTransaction
from tests.own_tables import AccountId, Deposit, Deposited

bank, point = BoundedContext("bank"), sys.argv[2]

def die(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

@bank.command_handler
async def deposit(command: Deposit, transaction: Transaction) -> Deposited:
    await transaction.connection.execute("UPDATE accounts SET cents = cents + $1", command.cents)
    die("written")
    await transaction.connection.execute("UPDATE accounts SET cents = cents + $1", command.cents)
    return Deposited(account=command.account, cents=command.cents, balance=0)

end_work, commit_it = _LentTransaction._end_work, _LentTransaction._commit

async def end(self, change):
    await end_work(self, change)
    die("ended")

async def commit(self, commit):
    die("appended")
    await commit_it(self, commit)
    die("committed")

_LentTransaction._end_work, _LentTransaction._commit = end, commit

async def main():
    async with Application(bank, store=sys.argv[1]) as app:
        await app.execute(Deposit(account=AccountId("ada"), cents=5), command_id="d-1")
        print("acknowledged", flush=True)

asyncio.run(main())
"""


def child(program: str, bank: Bank, point: str) -> subprocess.CompletedProcess[str]:
    """Run the program, which may die."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", program, bank.url, point],
        capture_output=True,
        text=True,
        timeout=CHILD_S_MAX,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def made(database: Database, folder: Path) -> Bank:
    bank = Bank(database, folder)
    bank.sql("INSERT INTO accounts VALUES ('ada', 0)")
    return bank


async def both_or_neither(bank: Bank) -> bool:
    """Whether rows, event and outcome are there; all are, or none is, and the next command takes the next position."""
    cents = bank.balances()["ada"]
    async with Application(bank.context, store=bank.url) as app:
        store = app.partition().store
        stored = len((await store.read(ALL_EVENTS, START, 10)).events)
        kept = await store.outcome("d-1")
        assert (cents, stored, kept is not None) in {(0, 0, False), (10, 1, True)}
        receipt = await app.execute(Deposit(account=AccountId("ada")))
        assert receipt.position == stored + 1
    return stored == 1


def crashes(bank_of: Path) -> Iterator[tuple[Bank, int]]:
    for number in range(1, STATEMENTS_MAX):
        folder = bank_of / str(number)
        folder.mkdir()
        yield made("sqlite", folder), number


async def test_g1_a_crash_at_any_statement_leaves_rows_and_events_or_neither(tmp_path: Path) -> None:
    """In SQLite: from the beginning of the transaction over the handler's writes and the append to the commit."""
    found: list[bool] = []
    for bank, number in crashes(tmp_path):
        ended = await asyncio.to_thread(child, SQLITE_CHILD, bank, str(number))
        found.append(await both_or_neither(bank))
        if ended.returncode == 0:
            assert ended.stdout == "acknowledged\n"
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert ended.stdout == ""
    assert found[-1]
    assert found[0] is False
    assert len(found) > 8


@pytest.mark.parametrize(
    ("point", "there"), [("written", False), ("ended", False), ("appended", False), ("committed", True)]
)
async def test_g1_a_crash_of_a_postgres_client_leaves_rows_and_events_or_neither(
    point: str, there: bool, tmp_path: Path
) -> None:
    """Before the append, between it and the commit, or behind it; what was not committed leaves no gap (G2)."""
    bank = made("postgres", tmp_path)
    ended = await asyncio.to_thread(child, POSTGRES_CHILD, bank, point)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert await both_or_neither(bank) is there
