"""The server is killed again and again under load: nothing acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
import tomllib
from collections import Counter as Tally
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from diptych import Application
from diptych.application.partition import Partition
from diptych.event_store.event_query import ALL_EVENTS
from diptych.messages.codec import decode
from diptych.messages.envelope import Envelope
from tests.faults.counting import CounterId, CountOf, Incremented, TotalOf, counting, totals
from tests.postgres_server import new_stores

pytestmark = pytest.mark.anyio

KILLS, KILLS_DIVIDED = 12, 5
CLIENTS = 16
COUNTERS = 5
WAIT_S = 60.0
ROOT = Path(__file__).parents[2]


class Load:
    """Clients that increment counters, and repeat each command with its key until it is acknowledged.

    Attributes:
        acknowledged: the positions of those that were executed, by key.
        accepted: the keys of those that are executed later: every third command prefers that.
    """

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}
        self.accepted: set[str] = set()
        self.url = ""
        self.up = asyncio.Event()
        self.stopping = False
        self._enough = asyncio.Event()
        self._wanted = 0
        self._number = 0

    async def client(self) -> None:
        async with httpx2.AsyncClient(timeout=30) as http:
            while not self.stopping:
                self._number += 1
                await self._until_acknowledged(http, self._number)

    async def _until_acknowledged(self, http: httpx2.AsyncClient, number: int) -> None:
        key, counter, later = f"key-{number}", f"c{number % COUNTERS}", number % 3 == 0
        headers = {"Idempotency-Key": key} | ({"Prefer": "respond-async"} if later else {})
        while not self.stopping:
            await self.up.wait()
            try:
                answer = await http.post(f"{self.url}/commands/Increment", json={"counter": counter}, headers=headers)
            except httpx2.TransportError:  # killed: the server may or may not have done it
                await asyncio.sleep(0)  # noqa: TID251 — let the others go on
                continue
            assert answer.status_code == (202 if later else 200), answer.text
            if later:
                self.accepted.add(key)
            else:
                self.acknowledged[key] = answer.json()["position"]
            if len(self.acknowledged) >= self._wanted:
                self._enough.set()
            return

    async def more(self, count: int) -> None:
        """Wait until so many more commands are acknowledged."""
        self._wanted = len(self.acknowledged) + count
        self._enough.clear()
        await self._enough.wait()


@asynccontextmanager
async def server(folder: Path, load: Load) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server process that the load goes to while it lives, with the settings in a folder; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "diptych", "run", "--port", "0"),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = b""
    while not (found := re.search(rb"http://[\d.]+:\d+", said)):
        line = await process.stderr.readline()
        assert line, said.decode()
        said += line
    load.url = found.group().decode()
    load.up.set()
    try:
        yield process
    finally:
        load.up.clear()
        process.send_signal(signal.SIGKILL)
        await process.communicate()


UNDIVIDED = 'app = "tests.faults.counting:counting"\nstore = "sqlite:counting.db"'
"""One history, in a file beside the settings."""
APPS = '["tests.faults.counting:counting", "tests.faults.counting:totals"]'


async def in_partitions() -> str:
    """A history for each counter, in files beside the settings or one database of PostgreSQL; and a row of them all."""
    stores = {f"c{number}": f"sqlite:c{number}.db" for number in range(COUNTERS)}
    stores |= {f"c{number}": await new_stores() for number in range(2)}
    listed = "".join(f'"{name}" = "{url}"\n' for name, url in {**stores, "*": "sqlite:across.db"}.items())
    return f'app = {APPS}\npartition_by = "tests.faults.counting:CounterId"\n[store]\n{listed}'


@pytest.mark.timeout(300)
@pytest.mark.parametrize("divided", [False, True])
async def test_g11_a_server_killed_again_and_again_loses_nothing_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, divided: bool
) -> None:
    """Acknowledged means durable, accepted that it is done; a repeated key has one effect; the rows equal the fold."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    randomness = random.Random(seed)
    stores = await in_partitions() if divided else UNDIVIDED
    (tmp_path / "diptych.toml").write_text(stores)
    load = Load()
    clients = [asyncio.ensure_future(load.client()) for _ in range(CLIENTS)]
    for _ in range(KILLS_DIVIDED if divided else KILLS):
        async with server(tmp_path, load):
            await load.more(randomness.randrange(1, 120))
    async with server(tmp_path, load):
        await load.more(CLIENTS)
        load.stopping = True
        await asyncio.gather(*clients)

    monkeypatch.chdir(tmp_path)
    found = tomllib.loads(stores)["store"]
    contexts = (counting, totals) if divided else (counting,)
    async with Application(*contexts, store=found, partition_by=CounterId if divided else None) as app:
        for name in [f"c{n}" for n in range(COUNTERS)] if divided else [""]:
            await all_executed(app.partition(name))
        await app.projected()
        kept = [
            await checked(app, app.partition(name))
            for name in ([f"c{n}" for n in range(COUNTERS)] if divided else [""])
        ]
        if divided:
            row = await app.query(TotalOf(name="all"))
            assert row is not None
            assert row.events == sum(map(len, kept))
            assert (await app.across.rebuilds.compare("totals.Total")).same
        assert len(load.accepted) > KILLS_DIVIDED
        assert load.accepted <= {key for each in kept for key in each}
        assert {
            key: place for each in kept for key, place in each.items() if key in load.acknowledged
        } == load.acknowledged


async def all_executed(partition: Partition) -> None:
    """Have what was accepted executed here; on PostgreSQL once the lease of the last server is over."""
    async with asyncio.timeout(WAIT_S):
        while (await partition.status()).scheduled.waiting:
            head = (await partition.store.head()).position
            await partition.store.wait_for_events(head, 0.5)


async def checked(app: Application, partition: Partition) -> dict[str, int]:
    """The position of each command in a history that is whole, and whose read model equals the fold."""
    events = [event async for event in partition.events(ALL_EVENTS)]
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    keys = [decode(event.metadata, Envelope).command_id for event in events]
    assert max(Tally(keys).values()) == 1
    tally: Tally[str] = Tally()
    for event in events:
        found = decode(event.data, Incremented)
        tally[found.counter] += 1
        assert found.to == tally[found.counter]
    assert (await partition.rebuilds.compare("counting.Count")).same
    for counter, value in tally.items():
        row = await app.query(CountOf(counter=CounterId(counter)))
        assert row is not None
        assert (row.value, row.events) == (value, value)
    return {key: event.position for key, event in zip(keys, events, strict=True) if key is not None}
