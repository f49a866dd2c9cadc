"""Valkey's read store when things go wrong: killed workers, a killed server, one that forgets, one that is emptied."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

import diptych
from diptych import Application, NotFresh
from diptych.adapters.valkey.read_store import connect
from diptych.errors import StoreUnavailable
from diptych.read_side import leases
from diptych.read_side.read_store import Order
from diptych.testing.contracts.read_store_cases import ARTICLES, NAME, SEATS, create, rows_of, shown_generation
from tests.contracts.read_store_sql import opened
from tests.faults.counting import Count, CounterId, CountOf, Increment, counting
from tests.valkey_server import ValkeyServer, new_read_store, own_server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

KILLS = 3
ROWS = 300
EVENTS = 1_000
WAIT_S_MAX = 30
A = CounterId("a")
ROOT = Path(__file__).parents[2]
KEPT_AT_ONCE = ("--appendonly", "yes", "--appendfsync", "always")
WRITER = """
import asyncio, sys
from diptych.adapters.valkey.read_store import connect
from diptych.errors import StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.read_store import BlockedKey, SliceWrite
from diptych.testing.contracts.read_store_cases import place

async def main(url, rows):
    store = connect(url)
    await store.open()
    while True:
        writes = []
        for generation in await store.generations():
            position = Position(generation.checkpoint.position + 1)
            wide = len(generation.table.columns) == 4
            upserts = [(f"c{n}", position, f"word{position}", None)[:4 if wide else 2] for n in range(rows)]
            block = [BlockedKey(generation.name, "[]", position, "boom")]
            writes.append(SliceWrite(generation, place(position), upserts, block=block))
        await store.write(writes)
        print(position, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
SERVED = """
import asyncio, sys
from diptych import Application
from diptych.read_side import leases
from tests.faults.counting import counting

leases.LEASE_S, leases.LEASE_RENEW_S = 1.0, 0.2  # nobody has to wait long for one that was killed

async def main(events, rows):
    async with Application(counting, store=events, read_store=rows):
        print("open", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def program(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process, which tells on stdout how far it is."""
    path = os.pathsep.join([str(Path(diptych.__file__).parents[1]), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )


async def prepare(url: str) -> None:
    async with opened(connect(url)) as store:
        await create(store, SEATS)
        await create(store, ARTICLES, "articles")


async def check(url: str) -> int:
    """The one position that everything shows."""
    async with opened(connect(url)) as store:
        seats, articles = await rows_of(store), await rows_of(store, order=(Order("id"),), name="articles")
        async with store.snapshot() as snapshot:
            generations = [await shown_generation(snapshot, name) for name in (NAME, "articles")]
            blocked = [*await snapshot.blocked(NAME), *await snapshot.blocked("articles")]
            (position,) = {generation.checkpoint.position for generation in generations if generation}
            found = await snapshot.search("articles", f"word{position}", 2 * ROWS)
            assert await snapshot.count("articles", ()) == ROWS
    assert len(seats) == len(articles) == len(found) == ROWS
    assert {taken for _, taken in seats} == {position} == {row[1] for row in articles}
    assert {key.position for key in blocked} == {position}
    return position


async def test_rows_and_checkpoint_agree_after_the_worker_is_killed() -> None:
    """At any instant: all that is stored is of one position, none before the last acknowledged."""
    url = new_read_store()
    await prepare(url)
    reached = 0
    for _ in range(KILLS):
        acknowledged = killed_after(program(WRITER, url, ROWS), random.randrange(2, 12))
        position = await check(url)
        assert position >= acknowledged > reached
        reached = position


def killed_after(process: subprocess.Popen[str], lines: int) -> int:
    """The last position that a worker said, when it is killed after so many."""
    with process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    return int([line for line in said if line.endswith("\n")][-1])


async def test_rows_and_checkpoint_agree_after_the_server_is_killed() -> None:
    """While it is written to: what it comes back with is of one position, none before the last acknowledged."""
    with own_server(*KEPT_AT_ONCE) as server:
        url = server.url("killed")
        await prepare(url)
        reached = 0
        for _ in range(KILLS):
            with program(WRITER, url, ROWS) as process:
                assert process.stdout is not None
                said = [process.stdout.readline() for _ in range(random.randrange(2, 12))]
                server.kill()
                said += process.stdout.readlines()  # it ends, since its store is gone
            server.start()
            acknowledged = int([line for line in said if line.endswith("\n")][-1])
            position = await check(url)
            assert position >= acknowledged > reached
            reached = position


async def test_a_worker_that_is_killed_while_it_builds_is_followed_by_the_next(tmp_path: Path) -> None:
    """Who comes after it goes on where it was, and counts nothing twice."""
    events, rows = f"sqlite:{tmp_path}/events.db", new_read_store()
    async with Application(counting, store=events, read_store="memory:") as app:
        await asyncio.gather(*(app.execute(Increment(counter=CounterId(f"c{n % 10}"))) for n in range(EVENTS)))
    for _ in range(KILLS):
        with program(SERVED, events, rows) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            process.kill()
    async with Application(counting, store=events, read_store=rows) as app:
        for n in range(10):
            found = await app.query(CountOf(counter=CounterId(f"c{n}")), freshness="latest", wait_s=WAIT_S_MAX)
            assert found == Count(counter=CounterId(f"c{n}"), value=EVENTS // 10, events=EVENTS // 10)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are renewed often: that is when it shows that the server is another one."""
    monkeypatch.setattr(leases, "LEASE_RENEW_S", 0.05)


def saved(server: ValkeyServer) -> Path:
    """A copy of what the server holds now."""
    assert server.command("SAVE") == b"+OK"
    older = server.folder / "older.rdb"
    shutil.copy(server.folder / "dump.rdb", older)
    return older


@pytest.mark.usefixtures("hurried")
async def test_a_server_that_comes_back_older_is_brought_up_to_date(tmp_path: Path) -> None:
    """It has lost what it acknowledged last: without any new event it is folded again, and nothing twice.

    Meanwhile a token is waited for, and nothing less is shown for it.
    """
    with own_server() as server:
        async with Application(counting, store=f"sqlite:{tmp_path}/events.db", read_store=server.url()) as app:
            receipt = await app.execute(Increment(counter=A))
            assert await app.query(CountOf(counter=A), after=receipt) == Count(counter=A, value=1, events=1)
            older = saved(server)
            for n in range(2, 6):
                receipt = await app.execute(Increment(counter=A))
                assert await app.query(CountOf(counter=A), after=receipt) == Count(counter=A, value=n, events=n)
            server.kill()
            shutil.copy(older, server.folder / "dump.rdb")
            server.start()
            answer = await asyncio.wait_for(eventually(app, receipt.token), WAIT_S_MAX)
            assert answer == Count(counter=A, value=5, events=5)


async def eventually(app: Application, token: str) -> Count | None:
    """The answer, once the server can be reached again and has what is asked for."""
    while True:
        try:
            return await app.query(CountOf(counter=A), after=token, wait_s=1)
        except (StoreUnavailable, NotFresh):
            await checkpoint()


@pytest.mark.usefixtures("hurried")
async def test_a_server_that_was_emptied_is_filled_again(tmp_path: Path) -> None:
    """Queries never show that there is nothing: they are told that the rows are not there yet, until they are."""
    with own_server() as server:
        async with Application(counting, store=f"sqlite:{tmp_path}/events.db", read_store=server.url()) as app:
            receipts = [await app.execute(Increment(counter=A)) for _ in range(5)]
            assert await app.query(CountOf(counter=A), after=receipts[-1]) == Count(counter=A, value=5, events=5)
            assert server.command("FLUSHALL") == b"+OK"
            shown: list[Count | None] = []
            async with asyncio.timeout(WAIT_S_MAX):
                while not shown:
                    with contextlib.suppress(NotFresh):
                        shown.append(await app.query(CountOf(counter=A), wait_s=0))
            assert shown == [Count(counter=A, value=5, events=5)]
            receipt = await app.execute(Increment(counter=A))
            assert await app.query(CountOf(counter=A), after=receipt) == Count(counter=A, value=6, events=6)
            assert (await app.health()).ready
