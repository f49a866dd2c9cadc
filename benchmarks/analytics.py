"""Rows written in bulk, and an aggregate over all of them: read models in DuckDB beside SQLite.

python -m benchmarks.analytics [rows]
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import tempfile
import time
from pathlib import Path

from diptych.adapters.connect import connect_read_store
from diptych.errors import Overloaded
from diptych.read_side.read_store import Column, ColumnKind, SliceWrite, Table, Written
from diptych.testing.contracts.read_store_cases import create, place

ROWS = 1_000_000
BATCHES = (10_000, 1_000)
"""Rows of one write: while the backlog is long, and while it is short."""
SALES = Table(
    "shop_sale",
    (
        Column("id", ColumnKind.TEXT),
        Column("country", ColumnKind.TEXT),
        Column("day", ColumnKind.DATE),
        Column("units", ColumnKind.INTEGER),
        Column("cents", ColumnKind.INTEGER),
    ),
    key=("id",),
)
ASKED = "SELECT country, count(*) AS n, sum(cents * units) AS total FROM shop_sale GROUP BY country ORDER BY country"


async def measure(url: str, rows: int) -> None:
    store = connect_read_store(url)
    await store.open()
    generation = await create(store, SALES)
    first = dt.date(2020, 1, 1)
    done = 0
    for batch, until in zip(BATCHES, (rows, rows + rows // 10), strict=True):
        spent, begin = 0.0, done
        while done < until:
            sales = [
                (f"sale-{n:08}", f"C{n % 40}", first + dt.timedelta(n % 1_500), n % 7, n % 10_007)
                for n in range(done, done + batch)
            ]
            done += batch
            began = time.perf_counter()
            (written,) = await store.write([SliceWrite(generation, place(done), sales)])
            spent += time.perf_counter() - began
            assert isinstance(written, Written), written
            generation = written.generation
        print(f"{url.partition(':')[0]}: {(done - begin) / spent:,.0f} rows/s written, {batch:,} at once")
    for _ in range(3):
        began = time.perf_counter()
        try:
            async with store.snapshot() as snapshot:
                found = await snapshot.sql(ASKED, (), {"total": (ColumnKind.INTEGER, False)})
        except Overloaded as error:
            print(f"{url.partition(':')[0]}: {error}")
            continue
        print(f"{url.partition(':')[0]}: {len(found)} groups in {(time.perf_counter() - began) * 1_000:,.1f} ms")
    await store.close()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as folder:
        for scheme in ("sqlite", "duckdb"):
            asyncio.run(measure(f"{scheme}:{Path(folder) / scheme}.db", rows))
            print(f"{scheme}: {(Path(folder) / f'{scheme}.db').stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
