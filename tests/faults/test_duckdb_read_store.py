"""`kill -9` while DuckDB's read store writes or switches: all agrees (G5), nothing acknowledged is lost (G11)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import diptych
from diptych.adapters.duckdb import read_store as duckdb
from diptych.read_side.read_store import Column, ColumnKind, Order, Table
from diptych.testing.contracts.read_store_cases import BY_COURSE, NAME, SEATS, create, rows_of, shown_generation
from tests.contracts.read_store_sql import opened, select

NOTES = Table(
    "press_notes",
    (Column("id", ColumnKind.TEXT), Column("n", ColumnKind.INTEGER), Column("note", ColumnKind.TEXT)),
    key=("id",),
)
KILLS = 3
ROWS = 100
LETTERS = 60_000
"""So that the log is copied into the file, as it is past 16 MiB, while the writer runs: it dies in that as well."""
WRITER = """
import asyncio, sys
from diptych.adapters.duckdb.read_store import connect
from diptych.event_store.position import Position
from diptych.read_side.read_store import BlockedKey, SliceWrite
from diptych.testing.contracts.read_store_cases import place

async def main(path, rows, letters):
    store = connect(f"duckdb:{path}")
    await store.open()
    for batch in range(1_000_000):
        writes = []
        for generation in await store.generations():
            position = Position(generation.checkpoint.position + 1)
            if len(generation.table.columns) == 3:
                upserts = [(f"c{n}", position, "x" * letters) for n in range(rows)]
            else:
                upserts = [(f"c{n}", position) for n in range(rows)]
            block = [BlockedKey(generation.name, "[]", position, "boom")]
            writes.append(SliceWrite(generation, place(position), upserts, block=block))
        await store.write(writes)
        print(position, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""
SWITCHER = """
import asyncio, sys
from diptych.adapters.duckdb.read_store import connect
from diptych.testing.contracts.read_store_cases import NAME, SEATS, place, write

async def main(path):
    store = connect(f"duckdb:{path}")
    await store.open()
    while True:
        builds = [found for found in await store.generations() if found.number <= 2]
        for build in builds:
            course = f"of {build.number}"
            await write(store, build, checkpoint=place(1 + builds[0].checkpoint.position), upserts=[(course, 1)])
        await store.create_generation(NAME, "other", SEATS, place(0), live=False, anew=True)
        (other,) = [build.number for build in builds if not build.live]
        assert await store.switch(NAME, other, keep_s=3_600)
        print(sum(build.epoch for build in builds) + 1, flush=True)

asyncio.run(main(sys.argv[1]))
"""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


def test_rows_and_checkpoint_agree_after_kill_9(tmp_path: Path) -> None:
    """Killed at any instant: all that is stored is of one position, none before the last acknowledged."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path = tmp_path / "read.duckdb"
    asyncio.run(prepare(path))
    reached = 0
    for _ in range(KILLS):
        acknowledged = run_until_killed(
            chance.randrange(2, 9), WRITER, str(path), str(ROWS), str(chance.choice([1, LETTERS]))
        )
        position = asyncio.run(check(path))
        assert position >= acknowledged > reached
        reached = position


def test_one_answers_and_one_is_kept_after_kill_9(tmp_path: Path) -> None:
    """Two that take turns, killed at any instant: what the catalog, the view and the tables say is of one switch."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path = tmp_path / "read.duckdb"
    asyncio.run(prepare_two(path))
    reached = 0
    for _ in range(KILLS):
        acknowledged = run_until_killed(chance.randrange(2, 9), SWITCHER, str(path))
        switches = asyncio.run(check_switches(path))
        assert switches >= acknowledged > reached
        reached = switches


async def prepare(path: Path) -> None:
    store = duckdb.connect(f"duckdb:{path}")
    await store.open()
    await create(store, SEATS)
    await create(store, NOTES, "notes")
    await store.close()


def run_until_killed(acknowledgements: int, *program: str) -> int:
    """Run a program until it is killed, after so many acknowledgements; the last number it said."""
    environment = {**os.environ, "PYTHONPATH": str(Path(diptych.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", *program], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return int([line for line in lines if line.endswith("\n")][-1])


async def check(path: Path) -> int:
    store = duckdb.connect(f"duckdb:{path}")
    await store.open()
    seats, notes = await rows_of(store), await rows_of(store, order=(Order("id"),), name="notes")
    async with store.snapshot() as snapshot:
        generations = [await shown_generation(snapshot, name) for name in (NAME, "notes")]
        blocked = [*await snapshot.blocked(NAME), *await snapshot.blocked("notes")]
        (position,) = {generation.checkpoint.position for generation in generations if generation}
    await store.close()
    assert [row[1] for row in seats] == [row[1] for row in notes] == [position] * ROWS
    assert [key.position for key in blocked] == [position] * 2
    return position


async def prepare_two(path: Path) -> None:
    async with opened(duckdb.connect(f"duckdb:{path}")) as store:
        await create(store, SEATS)
        await create(store, SEATS, live=False)


async def check_switches(path: Path) -> int:
    """How many there were: each has made one epoch go up."""
    async with opened(duckdb.connect(f"duckdb:{path}")) as store:
        builds = await store.generations()
        switches = sum(build.epoch for build in builds[:2])
        live = 1 + switches % 2
        (kept,) = [build for build in builds if build.kept_until is not None]
        assert [build.number for build in builds if build.live] == [live]
        assert kept.number == 3 - live
        shown = await select(store, "SELECT course FROM school_seats", course=ColumnKind.TEXT)
        assert shown == [{"course": f"of {live}"}]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), BY_COURSE, 9, None, kept.number) == [(f"of {kept.number}", 1)]
        text = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
        tables = [row["table_name"] for row in await select(store, text, table_name=ColumnKind.TEXT)]
        assert sorted(tables) == sorted(f"school_seats__g{build.number}" for build in builds)
        return switches
