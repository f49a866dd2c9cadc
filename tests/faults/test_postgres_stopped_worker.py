"""A worker that is stopped (SIGSTOP) in the middle of a batch, past its lease, and wakes when another has gone on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter as Tally
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

import diptych
from diptych import Application, Receipt
from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.event_store.event_query import ALL_EVENTS
from tests.faults.incrementing import in_schema, token_of
from tests.faults.leased_stock import (
    ACROSS,
    STOPPED_BY,
    TOLD,
    WHOLE,
    AllStockOf,
    Count,
    Sku,
    StockOf,
    applications,
)
from tests.postgres_cluster import cluster, migrated
from tests.postgres_server import by_hand

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP"),
]

WAIT_S = 60.0
CALLERS = 2
"""Of each application."""
SKUS = (Sku("s1"), Sku("s2"))
"""Each a partition of what is divided."""
STOP = Sku("stop")
"""One more, whose event stops the worker."""
ROOT = Path(__file__).parents[2]
WORKER = """
import asyncio, itertools, json, sys
from diptych.adapters.postgres import read_catalog
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.read_side import leases
from tests.faults.leased_stock import run

leases.LEASE_S, leases.LEASE_RENEW_S, leases.LEASE_LOOK_S = 1.0, 0.3, 0.05
read_catalog.TRANSACTION_IDLE_S_MAX = 0.5
write, numbers = PostgresReadStore.write, itertools.count()

async def told(store, writes):
    number, schema = next(numbers), store._url.schema
    print(number, "begins", schema, flush=True)
    results = await write(store, writes)
    for one, result in zip(writes, results):
        print(number, one.generation.name, type(result).__name__, flush=True)
    return results

PostgresReadStore.write = told
asyncio.run(run(json.loads(sys.argv[1])))
"""


@contextmanager
def worker(stores: dict[str, str], folder: Path, stopped_by: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that projects; one that is going to be stopped says what became of each of its writes."""
    sources = os.pathsep.join([str(Path(diptych.__file__).parents[1]), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": sources, TOLD: str(folder), STOPPED_BY: stopped_by}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps(stores)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if stopped_by else subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def first_write_after_waking(process: subprocess.Popen[str], schema: str) -> str:
    """What became of the write of the batch in which it was stopped, into that schema."""
    await heard(process, "woken")
    begun = set[str]()
    while True:
        number, what, *more = (await line_of(process)).split()
        if what == "begins" and more == [schema]:
            begun.add(number)
        elif number in begun and what == "warehouse.Stock":
            return more[0]


async def heard(process: subprocess.Popen[str], what: str) -> None:
    """Wait until the process says so."""
    while (line := await line_of(process)) != what:
        assert line, "it has ended"


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


class Load:
    """Callers of one application that count, one command after the other."""

    def __init__(self, app: Application, *, divided: bool) -> None:
        self.receipts: dict[int, Receipt] = {}
        self.over = False
        self.app = app
        self.divided = divided
        self._numbers = count(1)
        self._progress = asyncio.Condition()

    async def call(self) -> None:
        while not self.over:
            number = next(self._numbers)
            receipt = await self.app.execute(Count(sku=SKUS[number % len(SKUS)]), command_id=f"n{number}")
            async with self._progress:
                self.receipts[number] = receipt
                self._progress.notify_all()

    async def folded(self, more: int) -> None:
        """Wait until so many more commands are acknowledged, and what they have done is shown."""
        wanted = len(self.receipts) + more
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.receipts) >= wanted)
        await self.shown()

    async def shown(self) -> None:
        """See everything that is acknowledged, in every partition and across them."""
        last = token_of(list(self.receipts.values()))
        for sku in SKUS:
            await self.app.query(StockOf(sku=sku), after=last, wait_s=WAIT_S)
        if self.divided:
            await self.app.query(AllStockOf(name="all"), after=last, wait_s=WAIT_S)


class Epochs:
    """How often the lease of each slice has changed hands, in every read store."""

    def __init__(self, link: Link, stores: dict[str, str]) -> None:
        self._link = link
        self._catalogs = [
            f"{parse_url(default_read_store(url)).quoted_schema}.diptych_generations" for url in stores.values()
        ]

    async def now(self) -> list[int]:
        return [await self._of(catalog, "sum(epoch)") for catalog in self._catalogs]

    async def holders(self) -> int:
        """Of what is whole, how many hold something."""
        return await self._of(self._catalogs[0], "count(DISTINCT last_holder)")

    async def _of(self, catalog: str, what: str) -> int:
        return int(await self._link.fetchval(f"SELECT {what} FROM {catalog}"))


@pytest.fixture
async def stores() -> AsyncGenerator[dict[str, str]]:
    """What is whole, each partition, and what is across them, on a server that has room for three such processes."""
    with cluster() as server:
        schemas = {name: name for name in (WHOLE, *SKUS, STOP)} | {ACROSS: "across"}
        yield {name: await migrated(in_schema(server.url(), schema)) for name, schema in schemas.items()}


@pytest.mark.parametrize("stopped_in", [WHOLE, STOP])
async def test_g5_a_worker_that_was_stopped_past_its_lease_writes_nothing_when_it_wakes(
    stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    """Another one goes on meanwhile; the batch that the stopped one had folded is refused, and both work again."""
    monkeypatch.setenv(TOLD, str(tmp_path))
    schema = parse_url(default_read_store(stores[stopped_in])).schema
    whole, divided = applications(stores, projecting=False)
    async with (
        asyncio.timeout(WAIT_S),
        by_hand(stores[WHOLE]) as look,
        whole,
        divided,
        asyncio.TaskGroup() as group,
    ):
        epochs, loads = Epochs(look, stores), [Load(whole, divided=False), Load(divided, divided=True)]
        callers = [group.create_task(load.call()) for load in loads for _ in range(CALLERS)]
        with worker(stores, tmp_path, stopped_by=f"{stopped_in} {STOP}") as stopped:
            await heard(stopped, "open")
            for load in loads:
                await load.folded(20)
            before = await epochs.now()
            midway = await loads[stopped_in != WHOLE].app.execute(Count(sku=STOP), command_id="stop")
            await asyncio.to_thread(os.waitid, os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)

            with worker(stores, tmp_path) as other:
                await loads[stopped_in != WHOLE].app.query(StockOf(sku=STOP), after=midway, wait_s=WAIT_S)
                for load in loads:
                    await load.folded(20)
                assert all(now > then for then, now in zip(before, await epochs.now(), strict=True)), "nobody took over"
                stopped.send_signal(signal.SIGCONT)
                assert await first_write_after_waking(stopped, schema) == "Fenced"

                while await epochs.holders() < 2:
                    pass
                for load in loads:
                    await load.folded(20)
                    load.over = True
                await asyncio.wait(callers)
                for load in loads:
                    await load.shown()
                assert other.poll() is None
        for load in loads:
            await prove(load, stops=load.divided == (stopped_in != WHOLE))


async def prove(load: Load, *, stops: bool) -> None:
    """Every event is folded once, those of each partition and those of all."""
    counted = Tally[str]()
    for partition in [load.app.partition(name) for name in ([*SKUS, STOP] if load.divided else [""])]:
        events = [recorded async for recorded in partition.events(ALL_EVENTS)]
        assert [recorded.position for recorded in events] == list(range(1, len(events) + 1))
        counted.update(recorded.tags[0].removeprefix("sku:") for recorded in events)
    assert counted.total() == len(load.receipts) + stops
    for sku, times in counted.items():
        row = await load.app.query(StockOf(sku=Sku(sku)))
        assert row is not None
        assert row.events == times
    if load.divided:
        row_of_all = await load.app.query(AllStockOf(name="all"), freshness="latest", wait_s=WAIT_S)
        assert row_of_all is not None
        assert row_of_all.events == counted.total()
