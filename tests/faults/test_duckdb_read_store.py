"""`kill -9` while DuckDB's read store writes: rows and checkpoint agree (G5), nothing acknowledged is lost (G11)."""

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
from diptych.testing.contracts.read_store_cases import NAME, SEATS, create, rows_of, shown_generation

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
        acknowledged = write_until_killed(path, chance.randrange(2, 9), chance.choice([1, LETTERS]))
        position = asyncio.run(check(path))
        assert position >= acknowledged > reached
        reached = position


async def prepare(path: Path) -> None:
    store = duckdb.connect(f"duckdb:{path}")
    await store.open()
    await create(store, SEATS)
    await create(store, NOTES, "notes")
    await store.close()


def write_until_killed(path: Path, acknowledgements: int, letters: int) -> int:
    """Run the writer until it is killed, after so many acknowledgements; the last position it said."""
    environment = {**os.environ, "PYTHONPATH": str(Path(diptych.__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, str(path), str(ROWS), str(letters)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
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
