"""A durable command and a keyed query over HTTP at 64 connections, against routes that do nothing, in turns.

The servers run in processes of their own, with one worker each; the load generator shares the machine with them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.measure import Side, Turn, arguments, in_turns, report

CONNECTIONS = 64
ACCOUNTS = 1_000

Requests = Callable[[int, int], bytes]
"""A connection's number and a request's number to the request's bytes."""


def post(path: str) -> Requests:
    """A command's request."""

    def request(connection: int, number: int) -> bytes:
        body = b'{"account":"a%d-%d","amount":1}' % (connection, number // 20)
        return (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    return request


def get(path: str) -> Requests:
    """A query's request."""

    def request(connection: int, number: int) -> bytes:
        account = f"a{connection}-{number % (ACCOUNTS // CONNECTIONS)}"
        return f"GET {path}?account={account} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    return request


def load(port: int, requests: Requests) -> Side:
    """Connections that each wait for the answer before their next request."""

    async def run(seconds: float) -> Turn:
        latencies: list[float] = []
        until = time.perf_counter() + seconds

        async def connection(index: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            number = 0
            while (started := time.perf_counter()) < until:
                writer.write(requests(index, number))
                await answered(reader)
                latencies.append(time.perf_counter() - started)
                number += 1
            writer.close()

        started = time.perf_counter()
        await asyncio.gather(*(connection(index) for index in range(CONNECTIONS)))
        return Turn(len(latencies), time.perf_counter() - started, latencies)

    def side(seconds: float) -> Turn:
        return asyncio.run(run(seconds))

    return side


async def answered(reader: asyncio.StreamReader) -> None:
    """Read one answer to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head.decode()
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None
    await reader.readexactly(int(length[1]))


@contextmanager
def serving(*arguments: str) -> Iterator[int]:
    """A server process; its port is in what it says first."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stderr=subprocess.PIPE, env=os.environ | {"NO_COLOR": "1"}
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(rb"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                return
        raise AssertionError(f"{arguments} did not start")
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    """Print two lines."""
    asked = arguments(__doc__ or "")
    peers = ["starlette", *(["fastapi"] if importlib.util.find_spec("fastapi") else [])]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = stack.enter_context(
            serving("diptych", "run", "benchmarks.bank:bank", "--port", "0", "--store", f"sqlite:{folder}/bank.db")
        )
        ports = {
            peer: stack.enter_context(serving("uvicorn", f"benchmarks.noop:{peer}", "--port", "0", "--no-access-log"))
            for peer in peers
        }
        for figure, own, nothing in (
            ("durable command over HTTP", post("/commands/Credit"), post("/nothing")),
            ("keyed query over HTTP", get("/queries/BalanceOf"), get("/nothing")),
        ):
            sides: dict[str, Side] = {"diptych": load(port, own)}
            sides |= {f"{peer}_noop": load(ports[peer], nothing) for peer in peers}
            report(figure, in_turns(sides, asked.seconds, asked.rounds), "diptych", connections=CONNECTIONS)


if __name__ == "__main__":
    main()
