"""Processes that die while an append folds inline: events and rows are there together, or neither is (G1, G5)."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from diptych import Application
from tests.inline_bank import AccountId, Balance, BalanceOf, Pay, bank
from tests.postgres_server import new_stores

pytestmark = pytest.mark.anyio

STATEMENTS_MAX = 60
"""More statements than one such transaction has."""
CHILD_S_MAX = 60
EACH_PAYS = 60

CHILD = """
import asyncio, os, signal, sys
from diptych import Application
from diptych.adapters.connect import read_store_beside
from tests.inline_bank import AccountId, Balance, Pay, bank

url, left, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
inline = {"inline": [Balance]} if sys.argv[4] == "inline" else {"read_store": read_store_beside(url)}

def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Application(bank(), store=url, projecting=False, **inline) as app:
        if left:
            app.partition().store._writer._connection.set_trace_callback(count)
        for _ in range(times):
            await app.execute(Pay(account=AccountId("ada"), cents=5))
        print("acknowledged", flush=True)
        if left:
            app.partition().store._writer._connection.set_trace_callback(None)

asyncio.run(main())
"""

POSTGRES_CHILD = """
import asyncio, os, signal, sys
from diptych import Application
from diptych.adapters.postgres.inline_rows import InlineStep, _Rows
from tests.inline_bank import AccountId, Balance, Pay, bank

url, point = sys.argv[1:]
run, write = InlineStep.run, _Rows.write

def die(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

async def dying_run(self, link, appending):
    die("appended")
    await run(self, link, appending)
    die("folded")

async def dying_write(self, writes):
    results = await write(self, writes)
    die("written")
    return results

InlineStep.run, _Rows.write = dying_run, dying_write

async def main():
    async with Application(bank(), store=url, projecting=False, inline=[Balance]) as app:
        await app.execute(Pay(account=AccountId("ada"), cents=5))
        die("acknowledged")

asyncio.run(main())
"""


def child(url: str, *, dies_at: int = 0, times: int = 1, inline: bool = True) -> subprocess.Popen[str]:
    return started(CHILD, url, str(dies_at), str(times), "inline" if inline else "plain")


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def run_python(program: str, *arguments: str) -> int:
    """Its exit code."""
    with started(program, *arguments) as running:
        return running.wait(CHILD_S_MAX)


async def test_g5_a_process_that_dies_at_any_statement_leaves_rows_and_events_together(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    async with Application(bank(), store=f"sqlite:{path}", inline=[Balance], projecting=False) as app:
        await app.execute(Pay(account=AccountId("ada"), cents=5))
    died, at = 0, 1
    while True:
        running = child(f"sqlite:{path}", dies_at=at)
        said, _ = running.communicate(timeout=CHILD_S_MAX)
        with closing(sqlite3.connect(path)) as connection:
            (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
            rows = connection.execute("SELECT cents, payments FROM bank_balance").fetchall()
            at_head = connection.execute(
                "SELECT count(*) FROM diptych_generations WHERE name = 'bank.Balance' AND position = ?", (events,)
            ).fetchone()
        assert rows == [(5 * events, events)], f"killed at statement {at}"
        assert at_head == (1,)
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL
        assert not said
        died, at = died + 1, at + 2
        assert at <= STATEMENTS_MAX
    assert died >= 5, "it was killed before and after each table was written"


@pytest.mark.parametrize("point", ["appended", "written", "folded", "acknowledged"])
async def test_g5_on_postgresql_a_process_that_dies_leaves_rows_and_events_together(point: str) -> None:
    url = await new_stores()
    async with Application(bank(), store=url, inline=[Balance], projecting=False) as app:
        await app.execute(Pay(account=AccountId("ada"), cents=5))
        ended = await asyncio.to_thread(run_python, POSTGRES_CHILD, url, point)
        assert ended == -signal.SIGKILL
        events = 2 if point == "acknowledged" else 1
        assert (await app.status()).head == events
        shown = await app.query(BalanceOf(account=AccountId("ada")), freshness="latest", wait_s=0)
        assert shown == Balance(account=AccountId("ada"), cents=5 * events, payments=events)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_processes_that_fold_and_one_that_does_not_share_a_history(tmp_path: Path, kind: str) -> None:
    """Older code, which knows of no inline read model, only makes those that do catch up."""
    url = f"sqlite:{tmp_path}/events.db" if kind == "sqlite" else await new_stores()
    async with Application(bank(), store=url, inline=[Balance], projecting=False) as app:
        await app.execute(Pay(account=AccountId("ada"), cents=5))
        running = [child(url, times=EACH_PAYS, inline=inline) for inline in (True, True, False)]
        said = await asyncio.gather(*(asyncio.to_thread(each.communicate, timeout=CHILD_S_MAX) for each in running))
        assert [out for out, _ in said] == ["acknowledged\n"] * 3
        receipt = await app.execute(Pay(account=AccountId("ada"), cents=5))
        total = 3 * EACH_PAYS + 2
        assert receipt.position == total
        shown = await app.query(BalanceOf(account=AccountId("ada")), after=receipt, wait_s=0)
        assert shown == Balance(account=AccountId("ada"), cents=5 * total, payments=total)
