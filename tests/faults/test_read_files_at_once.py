"""One snapshot of a file, asked for several things at once, or too late: no read keeps the process from going on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import diptych
from diptych.adapters.connect import connect_read_store
from diptych.errors import StoreUnavailable
from diptych.testing.contracts.read_store_cases import BY_COURSE, NAME, SEATS, build

ENDS_S_MAX = 60.0
"""How long the program may take; where its threads wait for each other, it never ends, and answers no signal."""
PROGRAM = """
import asyncio, sys
from anyio.lowlevel import checkpoint
from diptych.adapters.connect import connect_read_store
from diptych.read_side.read_store import ColumnKind
from diptych.testing.contracts.read_store_cases import BY_COURSE, NAME, SEATS, build

COUNT = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) SELECT max(n) AS n FROM n"

def reads(snapshot):
    yield lambda: snapshot.get_many(NAME, [("a",)])
    yield lambda: snapshot.find(NAME, (), BY_COURSE, 10)
    yield lambda: snapshot.count(NAME, ())
    yield lambda: snapshot.search(NAME, "a", 1)
    yield lambda: snapshot.expired(NAME, None, 1)
    yield lambda: snapshot.blocked(NAME, 1)
    yield lambda: snapshot.slices(NAME, 1)
    yield lambda: snapshot.slices("school.Others")
    yield lambda: snapshot.kept(NAME, "f")
    yield lambda: snapshot.sql("SELECT course FROM school_seats", (), {"course": (ColumnKind.TEXT, False)})

async def main(url, many):
    store = connect_read_store(url)
    await store.open()
    await build(store, SEATS, [("a", 1)])
    for number in range(10):
        async with store.snapshot() as snapshot:
            await list(reads(snapshot))[number]()  # statements that are prepared already are bound at once
            long = asyncio.create_task(snapshot.sql(COUNT, (many,), {"n": (ColumnKind.INTEGER, False)}))
            for _ in range(5):
                await checkpoint()
            await list(reads(snapshot))[number]()
            assert await long == [{"n": many}]
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize(("scheme", "many"), [("sqlite", "2000000"), ("duckdb", "20000")])
def test_a_long_read_and_another_one_both_end(tmp_path: Path, scheme: str, many: str) -> None:
    """Each kind of read beside one on a thread: what runs on the event loop waits for its turn at the connection."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{scheme}:{tmp_path}/rows.db", many],
        env={"PYTHONPATH": str(Path(diptych.__file__).parents[1])},
        timeout=ENDS_S_MAX,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["sqlite", "duckdb"])
async def test_nothing_is_read_from_a_snapshot_that_is_over(tmp_path: Path, scheme: str) -> None:
    """Its connection may be another one's by then, on which a thread reads."""
    store = connect_read_store(f"{scheme}:{tmp_path}/rows.db")
    await store.open()
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        await snapshot.get_many(NAME, [("a",)])
    for read in (
        snapshot.get_many(NAME, [("a",)]),
        snapshot.find(NAME, (), BY_COURSE, 10),
        snapshot.blocked(NAME),
        snapshot.slices("school.Others"),
        snapshot.kept(NAME, "f"),
    ):
        with pytest.raises(StoreUnavailable, match="ended before this"):
            await read
    await store.close()
