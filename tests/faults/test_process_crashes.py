"""Workers of processes that are killed at any instant, or stopped past their lease: everything happens once (G10)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import diptych.process_managers.process_leases
from diptych import Application
from tests.faults import ordering
from tests.faults.ordering import DIES_AT, STOPPED_BY, OrderId, Place, expected, happened, seen_through

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

KILLS = 12
LINES_MAX = 25
"""Commands that a worker is let begin at most before it is killed."""
ROUND = LINES_MAX // 2 + 1
"""Orders before each kill: each has a worker begin two commands at least, so that there is enough to be heard."""
ORDERS = 90
STATEMENTS = 20
"""More than the first two commits of a worker have for two orders, each with its begin and end."""
WAIT_S = 90.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def kept_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An event store that outlives its processes."""
    if request.param == "postgres":
        from tests.postgres_server import in_thread, new_stores

        return in_thread(new_stores())
    return f"sqlite:{tmp_path}/events.db"


@contextmanager
def worker(url: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that sees orders through."""
    sources = os.pathsep.join([str(Path(diptych.__file__).parents[1]), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.ordering", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": sources, **settings},
        cwd=ROOT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str]) -> str:
    """The next line of a process; empty once it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """What a process says up to a line that begins so."""
    said = [hear(process)]
    while not said[-1].startswith(wanted):
        assert said[-1], f"it has ended, and never said {wanted!r}: {said}"
        said.append(hear(process))
    return said


async def ordered(url: str, numbers: Sequence[int] = range(ORDERS)) -> None:
    """Have so many orders placed, by a process that sees none of them through."""
    async with Application(ordering.ordering, store=url, projecting=False) as app:
        for number in numbers:
            await app.execute(Place(order=OrderId(str(number))))


async def check_all(url: str, orders: int = ORDERS) -> None:
    """See the rest through here; then everything has happened once."""
    async with Application(ordering.ordering, store=url) as app:
        await seen_through(app, WAIT_S)
        events, most = await happened(app)
        assert events == expected(orders)
        assert most == 1
        assert await app.processes.list(stuck=True) == []
        assert (await app.status()).processes[0].count.waiting == 0


@pytest.mark.timeout(240)
async def test_g10_kill_9_at_any_instant_doubles_and_loses_nothing(
    kept_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed a dozen times while it reacts and sends: each instance ends, each command and timeout once."""
    monkeypatch.setattr(diptych.process_managers.process_leases, "LEASE_S", 0.6)
    seed = random.randrange(1 << 32)
    with capfd.disabled():
        print(f"seed {seed}")
    chance = random.Random(seed)
    begun = 0
    for kill in range(KILLS):
        await ordered(kept_url, range(kill * ROUND, kill * ROUND + ROUND))
        with worker(kept_url) as process:
            await asyncio.to_thread(until, process, "open")
            for _ in range(chance.randrange(1, LINES_MAX)):
                begun += bool(await asyncio.to_thread(hear, process))
            process.send_signal(signal.SIGKILL)
    assert begun > KILLS
    await check_all(kept_url, KILLS * ROUND)


@pytest.mark.timeout(240)
async def test_g10_dying_between_any_two_statements_doubles_and_loses_nothing(tmp_path: Path) -> None:
    """Once at each of the first statements with which a worker changes what is kept of its process."""
    url = f"sqlite:{tmp_path}/events.db"
    for statement in range(1, STATEMENTS + 1):
        await ordered(url, [2 * statement - 2, 2 * statement - 1])
        with worker(url, **{DIES_AT: str(statement)}) as process:
            assert await asyncio.to_thread(process.wait, WAIT_S) == -signal.SIGKILL
        await check_all(url, 2 * statement)


@pytest.mark.timeout(240)
async def test_g10_a_worker_that_was_stopped_past_its_lease_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes up in the middle of a reaction, when another has seen everything through: its commit is refused."""
    from tests.postgres_server import new_stores

    url = await new_stores()
    monkeypatch.setattr(diptych.process_managers.process_leases, "LEASE_S", 0.6)
    monkeypatch.setattr(diptych.process_managers.process_leases, "LEASE_RENEW_S", 0.1)
    await ordered(url)
    with worker(url, **{STOPPED_BY: str(ORDERS // 2)}) as process:
        await asyncio.to_thread(until, process, "stopping")
        await check_all(url)
        process.send_signal(signal.SIGCONT)
        said = await asyncio.to_thread(until, process, "committed")
        assert said[-1] == "committed False"
    await check_all(url)
