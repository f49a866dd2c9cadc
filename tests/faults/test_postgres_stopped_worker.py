"""A worker that is stopped (SIGSTOP) in the middle of a batch, past its lease, and wakes when another has gone on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

import diptych
from diptych import Application, Receipt
from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres.connection import parse_url
from diptych.event_store.event_query import ALL_EVENTS
from tests.faults.leased_stock import STOPPED_BY, TOLD, Count, Sku, StockOf, warehouse
from tests.postgres_server import by_hand, new_stores

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP"),
]

WAIT_S = 30.0
CALLERS = 4
SKUS = 5
ROOT = Path(__file__).parents[2]
WORKER = """
import asyncio, itertools, sys
from diptych.adapters.postgres import read_catalog
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.read_side import leases
from tests.faults.leased_stock import run

leases.LEASE_S, leases.LEASE_RENEW_S, leases.LEASE_LOOK_S = 1.0, 0.3, 0.05
read_catalog.TRANSACTION_IDLE_S_MAX = 0.5
write, numbers = PostgresReadStore.write, itertools.count()

async def told(store, writes):
    number = next(numbers)
    print(number, "begins", flush=True)
    results = await write(store, writes)
    for one, result in zip(writes, results):
        print(number, one.generation.name, type(result).__name__, flush=True)
    return results

PostgresReadStore.write = told
asyncio.run(run(sys.argv[1]))
"""


@contextmanager
def worker(url: str, folder: Path, stopped_by: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that projects, and says what became of each of its writes."""
    sources = os.pathsep.join([str(Path(diptych.__file__).parents[1]), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": sources, TOLD: str(folder), STOPPED_BY: stopped_by}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def first_write_after_waking(process: subprocess.Popen[str]) -> str:
    """What became of the write of the batch in which it was stopped."""
    while await line_of(process) != "woken":
        pass
    begun = set[str]()
    while True:
        number, what, *became = (await line_of(process)).split()
        if what == "begins":
            begun.add(number)
        elif number in begun and what == "warehouse.Stock":
            return became[0]


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


class Load:
    """Callers that count, one command after the other."""

    def __init__(self, app: Application) -> None:
        self.receipts: dict[int, Receipt] = {}
        self.over = False
        self._app = app
        self._numbers = count(1)
        self._progress = asyncio.Condition()

    async def call(self) -> None:
        while not self.over:
            number = next(self._numbers)
            receipt = await self._app.execute(Count(sku=Sku(f"s{number % SKUS}")), command_id=f"n{number}")
            async with self._progress:
                self.receipts[number] = receipt
                self._progress.notify_all()

    async def acknowledged(self, more: int) -> Receipt:
        """The last of so many more commands."""
        wanted = len(self.receipts) + more
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.receipts) >= wanted)
        return max(self.receipts.values(), key=lambda receipt: receipt.position)


async def test_g5_a_worker_that_was_stopped_past_its_lease_writes_nothing_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one goes on meanwhile; the batch that the stopped one had folded is refused, and both work again."""
    monkeypatch.setenv(TOLD, str(tmp_path))
    url = await new_stores()
    catalog = f"{parse_url(default_read_store(url)).quoted_schema}.diptych_generations"
    epoch = f"SELECT epoch FROM {catalog} WHERE name = 'warehouse.Stock'"
    holders = f"SELECT count(DISTINCT last_holder) FROM {catalog}"
    async with (
        asyncio.timeout(WAIT_S),
        by_hand(url) as look,
        Application(warehouse, store=url, projecting=False) as app,
        asyncio.TaskGroup() as group,
    ):
        load = Load(app)
        callers = [group.create_task(load.call()) for _ in range(CALLERS)]
        with worker(url, tmp_path, stopped_by="stop") as stopped:
            assert await line_of(stopped) == "open"
            await app.query(StockOf(sku=Sku("s1")), after=await load.acknowledged(20), wait_s=WAIT_S)
            epoch_before = await look.fetchval(epoch)
            midway = await app.execute(Count(sku=Sku("stop")), command_id="stop")
            await asyncio.to_thread(os.waitid, os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)

            with worker(url, tmp_path) as other:
                await app.query(StockOf(sku=Sku("stop")), after=midway, wait_s=WAIT_S)
                await app.query(StockOf(sku=Sku("s1")), after=await load.acknowledged(20), wait_s=WAIT_S)
                epoch_of_other = await look.fetchval(epoch)
                assert epoch_of_other > epoch_before
                stopped.send_signal(signal.SIGCONT)
                assert await first_write_after_waking(stopped) == "Fenced"

                while await look.fetchval(holders) < 2:
                    pass
                await load.acknowledged(20)
                load.over = True
                await asyncio.wait(callers)
                last = max(load.receipts.values(), key=lambda receipt: receipt.position)
                await app.query(StockOf(sku=Sku("s1")), after=last, wait_s=WAIT_S)
                assert other.poll() is None
    async with Application(warehouse, store=url, projecting=False) as app:
        events = [recorded async for recorded in app.events(ALL_EVENTS)]
        assert [recorded.position for recorded in events] == list(range(1, len(events) + 1))
        counted = Tally(recorded.tags[0].removeprefix("sku:") for recorded in events)
        assert counted.total() == len(load.receipts) + 1
        for sku, times in counted.items():
            row = await app.query(StockOf(sku=Sku(sku)))
            assert row is not None
            assert row.events == times
