"""Leases of one file between processes: one of them works, and `kill -9` of it is all that the next one needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import diptych
from diptych import Application
from diptych.adapters.sqlite import read_store as sqlite
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.partition import Partition
from diptych.errors import StoreUnavailable
from diptych.read_side.read_store import Leased
from diptych.testing.contracts.read_store_cases import NAME, SEATS, create
from tests.faults.leased_stock import (
    ACROSS,
    TOLD,
    WHOLE,
    AllStockOf,
    Count,
    Sku,
    StockOf,
    applications,
    told,
)

fcntl = pytest.importorskip("fcntl", reason="this system has no flock: everybody holds everything")
pytestmark = pytest.mark.anyio

HANG_S = 60
ROOT = Path(__file__).parents[2]
KEY = (NAME, 1, 0)
SKUS = (Sku("a"), Sku("b"))
HISTORIES = {WHOLE: "whole", "a": "a", "b": "b", ACROSS: "across"}
"""Each of them, and the name of its file."""


def stores_in(folder: Path) -> dict[str, str]:
    """What is whole, and two partitions with what is across them."""
    return {name: f"sqlite:{folder}/{place}.db" for name, place in HISTORIES.items()}


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that projects; it counts what it is told to."""
    sources = [str(Path(diptych.__file__).parents[1]), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources), TOLD: str(folder)}
    command = [sys.executable, "-m", "tests.faults.leased_stock", json.dumps(stores_in(folder))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def count_in(process: subprocess.Popen[str], sku: Sku) -> None:
    """Let it count; returns once that is folded."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{sku}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "counted\n"


async def delivered(partition: Partition, position: int) -> None:
    seen = 0
    while (await partition.status()).subscribers[0].checkpoint < position:
        seen = await partition.read_store.wait_for_change(seen, HANG_S)


async def counted(whole: Application, divided: Application, *, times: int) -> None:
    """Count each SKU in both; it is folded and delivered then so many times."""
    for app in (whole, divided):
        for sku in SKUS:
            receipt = await app.execute(Count(sku=sku))
            row = await app.query(StockOf(sku=sku), after=receipt, wait_s=HANG_S)
            assert row is not None
            assert row.events == times
    await delivered(whole.partition(), times * len(SKUS))
    for sku in SKUS:
        await delivered(divided.partition(sku), times)
    across = await divided.query(AllStockOf(name="all"), freshness="latest", wait_s=HANG_S)
    assert across is not None
    assert across.events == times * len(SKUS)


def worked(folder: Path, *shares: tuple[int, int]) -> None:
    """Of every history, one process after the other has worked on so many events of each SKU, and on none twice."""
    for history, each in [(WHOLE, len(SKUS)), (ACROSS, len(SKUS)), *((sku, 1) for sku in SKUS)]:
        expected: dict[int, list[int]] = {}
        first = 1
        for pid, times in shares:
            expected[pid] = list(range(first, first + times * each))
            first += times * each
        assert told(folder, history, "folded.txt") == expected
        if history != ACROSS:
            assert told(folder, history, "heard.txt") == expected


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("end", ["kill", "stop gracefully"])
async def test_g5_of_two_processes_one_works_and_the_other_takes_over_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Killed or ended: what it left is folded and delivered by the other, and what it did is not done again."""
    monkeypatch.setenv(TOLD, str(tmp_path))
    with another_process(tmp_path) as first:
        whole, divided = applications(stores_in(tmp_path))
        async with asyncio.timeout(HANG_S), whole, divided:
            for sku in SKUS:
                await asyncio.to_thread(count_in, first, sku)
            await counted(whole, divided, times=2)
            worked(tmp_path, (first.pid, 2))
            if end == "kill":
                first.kill()
            else:
                assert first.stdin is not None
                first.stdin.close()
            await asyncio.to_thread(first.wait)
            await counted(whole, divided, times=3)
    worked(tmp_path, (first.pid, 2), (os.getpid(), 1))


# ── the files ────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[SqliteReadStore]:
    store = sqlite.connect(f"sqlite:{folder}/read.db")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def lock_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*-lease-*"))


async def test_two_instances_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    """And one that is closed without a release holds nothing; who comes next fences it all the same."""
    async with opened(tmp_path) as other:
        async with opened(tmp_path) as store:
            await create(store, SEATS)
            assert await store.lease("a", [KEY], 1) == Leased({KEY: 0})
            assert await other.lease("b", [KEY], 1) == Leased({})
        assert await other.lease("b", [KEY], 1) == Leased({KEY: 1})


async def test_an_idle_holder_writes_nothing(tmp_path: Path) -> None:
    """However often it renews: neither the file nor its log changes."""
    async with opened(tmp_path) as store:
        await create(store, SEATS)
        await store.lease("a", [KEY], 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "read.db")) as watching:
            before = watching.execute("PRAGMA data_version").fetchone()
            for _ in range(10):
                assert await store.lease("a", [KEY], 1) == Leased({KEY: 0})
            assert watching.execute("PRAGMA data_version").fetchone() == before


async def test_lock_files_are_there_while_they_are_held(tmp_path: Path) -> None:
    """One for each generation, under a name that any file system takes; one that was left behind is used again."""
    async with opened(tmp_path) as store:
        await create(store, None, "odd/näme")
        left_behind = tmp_path / "read.db-lease-odd%2Fn%C3%A4me-1-0"
        left_behind.touch()
        await store.lease("a", [("odd/näme", 1, 0)], 1)
        assert lock_files(tmp_path) == [left_behind.name]
        await store.release("a")
        assert lock_files(tmp_path) == []
        await store.lease("a", [("odd/näme", 1, 0)], 1)
    assert lock_files(tmp_path) == []


async def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened it just before its holder let go tries again with the file that is there now."""
    real, path = fcntl.flock, tmp_path / f"read.db-lease-{NAME}-1-0"
    removed: list[Path] = []

    def flock(file: object, operation: int) -> None:
        if path.exists() and not removed and "lease" in str(getattr(file, "name", "")):
            path.unlink()
            removed.append(path)
        real(file, operation)

    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await create(store, SEATS)
        monkeypatch.setattr(fcntl, "flock", flock)
        assert await store.lease("a", [KEY], 1) == Leased({KEY: 0})
        assert removed
        assert await other.lease("b", [KEY], 1) == Leased({})


async def test_what_cannot_be_locked_is_unavailable(tmp_path: Path) -> None:
    """The error names the file; nothing is held, and what could be locked is free."""
    async with opened(tmp_path) as store:
        await create(store, SEATS)
        await create(store, SEATS, live=False)
        (tmp_path / f"read.db-lease-{NAME}-2-0").mkdir()
        with pytest.raises(StoreUnavailable, match=r"read\.db-lease-school\.Seats-2-0 cannot be locked"):
            await store.lease("a", [KEY, (NAME, 2, 0)], 1)
        assert await store.lease("b", [KEY], 1) == Leased({KEY: 0})


async def test_names_that_are_too_long_for_a_file_are_leased(tmp_path: Path) -> None:
    """Names of classes may be in any script, of which a letter takes nine characters in the name of a file."""
    one, two = (f"仓库.{'库存' * 20}{end}" for end in "甲乙")
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await create(store, None, one)
        await create(store, None, two)
        assert await store.lease("a", [(one, 1, 0)], 1) == Leased({(one, 1, 0): 0})
        assert await other.lease("b", [(one, 1, 0), (two, 1, 0)], 1) == Leased({(two, 1, 0): 0})
    assert lock_files(tmp_path) == []


async def test_a_lease_that_could_not_be_noted_is_free(tmp_path: Path) -> None:
    """Where the file cannot be written, nobody is locked out by who could not go on."""
    async with opened(tmp_path) as store:
        await create(store, SEATS)
        store._writer._lock_wait_s = 0.0
        with contextlib.closing(sqlite3.connect(tmp_path / "read.db", isolation_level=None)) as blocking:
            blocking.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await store.lease("a", [KEY], 1)
            blocking.execute("ROLLBACK")
        assert lock_files(tmp_path) == []
        assert await store.lease("b", [KEY], 1) == Leased({KEY: 0})


async def test_without_locks_everybody_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no `flock`, writes are fenced by checkpoint and epoch, and nothing else."""
    monkeypatch.setattr("diptych.adapters.sqlite.read_leases.fcntl", None)
    async with opened(tmp_path) as store:
        await create(store, SEATS)
        for worker in "abab":
            assert await store.lease(worker, [KEY, (NAME, 2, 0)], 1) == Leased({KEY: 0}, gone=frozenset({(NAME, 2, 0)}))
            await store.release(worker)
    assert lock_files(tmp_path) == []
