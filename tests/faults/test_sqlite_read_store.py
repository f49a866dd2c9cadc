"""`kill -9` while a read store writes: rows and checkpoint agree afterwards (G5), and nothing acknowledged is lost."""

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
from diptych.adapters.sqlite import read_store as sqlite
from diptych.read_side.read_store import Order
from diptych.testing.contracts.read_store_cases import ARTICLES, NAME, SEATS, create, rows_of, shown_generation

ARTICLES_ORDER = (Order("id"),)
KILLS = 3
MANY_ROWS = 300
FEW_ROWS = 3
FATAL_STATEMENTS = [*(str(number) for number in range(2, 27, 3)), "COMMIT"]
"""Of one batch: the writer dies before this one, by number (the search index's own are counted too) or by its text."""
WRITER = """
import asyncio, os, signal, sys
from diptych.adapters.sqlite.read_store import connect
from diptych.event_store.position import Position
from diptych.read_side.read_store import BlockedKey, SliceWrite
from diptych.testing.contracts.read_store_cases import place

def die_at(statement):
    count = 0
    def trace(text):
        nonlocal count
        count += 1
        if statement in (str(count), text):
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

async def main(path, rows, fatal_statement):
    store = connect(f"sqlite:{path}")
    await store.open()
    for batch in range(2 if fatal_statement else 1_000_000):
        writes = []
        for generation in await store.generations():
            position = Position(generation.checkpoint.position + 1)
            wide = len(generation.table.columns) == 4
            upserts = [(f"c{n}", position, f"word{position}", None)[:4 if wide else 2] for n in range(rows)]
            block = [BlockedKey(generation.name, "[]", position, "boom")]
            writes.append(SliceWrite(generation, place(position), upserts, block=block))
        if batch == 1 and fatal_statement:
            store._writer._open_connection().set_trace_callback(die_at(fatal_statement))
        await store.write(writes)
        print(position, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


def test_rows_and_checkpoint_agree_after_kill_9(tmp_path: Path) -> None:
    """Killed at any instant: all that is stored is of one position, none before the last acknowledged."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    asyncio.run(prepare(tmp_path / "read.db"))
    reached = 0
    for _ in range(KILLS):
        acknowledged = write_until_killed(tmp_path / "read.db", MANY_ROWS, chance.randrange(2, 12))
        position = asyncio.run(check(tmp_path / "read.db", MANY_ROWS))
        assert position >= acknowledged > reached
        reached = position


def test_rows_and_checkpoint_agree_after_dying_between_any_two_statements(tmp_path: Path) -> None:
    """A batch that dies before one of its statements has left nothing; the one before it is whole."""
    asyncio.run(prepare(tmp_path / "read.db"))
    reached = 0
    for statement in FATAL_STATEMENTS:
        acknowledged = write_until_killed(tmp_path / "read.db", FEW_ROWS, None, statement)
        assert acknowledged == reached + 1
        reached = asyncio.run(check(tmp_path / "read.db", FEW_ROWS))
        assert reached == acknowledged, f"statement {statement}"


async def prepare(path: Path) -> None:
    store = sqlite.connect(f"sqlite:{path}")
    await store.open()
    await create(store, SEATS)
    await create(store, ARTICLES, "articles")
    await store.close()


def write_until_killed(path: Path, rows: int, acknowledgements: int | None, fatal_statement: str = "") -> int:
    """Run the writer until it dies, after so many acknowledgements or before a statement; the last position it said."""
    environment = {**os.environ, "PYTHONPATH": str(Path(diptych.__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, str(path), str(rows), fatal_statement]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements or 0)]
        if acknowledgements is not None:
            process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return int([line for line in lines if line.endswith("\n")][-1])


async def check(path: Path, rows: int) -> int:
    store = sqlite.connect(f"sqlite:{path}")
    await store.open()
    seats, articles = await rows_of(store), await rows_of(store, order=ARTICLES_ORDER, name="articles")
    async with store.snapshot() as snapshot:
        generations = [await shown_generation(snapshot, name) for name in (NAME, "articles")]
        blocked = [*await snapshot.blocked(NAME), *await snapshot.blocked("articles")]
        (position,) = {generation.checkpoint.position for generation in generations if generation}
        found = await snapshot.search("articles", f"word{position}", rows * 2)
        snapshot.connection.set_authorizer(None)
        assert snapshot.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    await store.close()
    assert len(seats) == len(articles) == len(found) == rows
    assert {taken for _, taken in seats} == {position} == {row[1] for row in articles}
    assert {key.position for key in blocked} == {position}
    return position
