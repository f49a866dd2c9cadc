"""Reads on threads of stores in a file: what they do when the store is closed, and how long each may run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from diptych.adapters.duckdb import read_snapshot as duckdb_snapshot
from diptych.adapters.duckdb import read_store as duckdb
from diptych.adapters.sqlite import read_store as sqlite
from diptych.errors import Overloaded, StoreClosed
from diptych.read_side.read_store import ColumnKind
from diptych.testing.contracts.read_store_cases import NAME, SEATS, build
from tests.contracts.read_store_sql import opened

if TYPE_CHECKING:
    from pathlib import Path

    from diptych.read_side.read_store import ReadStore

pytestmark = pytest.mark.anyio

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
async def test_a_read_of_a_store_that_was_closed_says_so(kind: str, tmp_path: Path) -> None:
    """Also in a snapshot that was open before: a handler may be under way when its application is closed."""
    url = f"{kind}:{tmp_path / 'read.db'}"
    store: ReadStore = duckdb.connect(url) if kind == "duckdb" else sqlite.connect(url)
    async with opened(store):
        await build(store, SEATS, [("a", 1)])
        async with store.snapshot() as snapshot:
            assert await snapshot.count(NAME, ()) == 1
            await store.close()
            with pytest.raises(StoreClosed, match="closed"):
                await snapshot.count(NAME, ())


async def test_a_read_that_waited_for_a_thread_has_a_limit_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of how long it runs: those that wait behind others have it from when they begin."""
    monkeypatch.setattr(duckdb_snapshot, "READ_THREADS", 1)
    monkeypatch.setattr(duckdb_snapshot, "READ_S_MAX", 0.1)
    store = duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}")

    async def endless() -> None:
        async with store.snapshot() as snapshot:
            await snapshot.sql(ENDLESS, (), {"c": (ColumnKind.INTEGER, False)})

    async with opened(store), asyncio.timeout(20):
        found = await asyncio.gather(*(endless() for _ in range(4)), return_exceptions=True)
    assert [type(each) for each in found] == [Overloaded] * 4
