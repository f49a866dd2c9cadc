"""Streams of events from a server that is a process of its own: clients that go away, and the server's own end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest

from tests.served import Served

LIMIT_S = 20
"""Seconds after which the server cancels what is under way, so that a stream which it does not end is cut off."""
CLIENTS = 20

# Says on stdout what happens, one word a line; counts live queries down to none when a line comes in on stdin.
PROGRAM = """
import asyncio, sys
from anyio.lowlevel import checkpoint
from diptych.entrypoints.http import server
from tests.http_library import open_library

def say(word):
    print(word, flush=True)

async def main():
    server.STOP_S = float(sys.argv[1])
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: (sys.stdin.readline(), asked.set()))
    async with open_library() as app:
        async def count():
            await asked.wait()
            try:
                async with asyncio.timeout(float(sys.argv[1])):
                    while len(app._live):
                        await checkpoint()
                say("none")
            except TimeoutError:
                say(f"{len(app._live)} are left")
        counting = asyncio.create_task(count())
        await server.serve(app, host="127.0.0.1", port=0, on_ready=say)
        counting.cancel()
        say("served")
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
    say(f"left:{len(left)}")

with asyncio.Runner(loop_factory=server.event_loop) as runner:
    runner.run(main())
"""


def event(response: HTTPResponse) -> dict[str, str]:
    """The fields of the next event that has data; empty at the end."""
    fields: dict[str, str] = {}
    while line := response.readline():
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            return fields
    return {}


def streaming(served: Served, book: str = "emma") -> HTTPResponse:
    """A stream whose first answer was read."""
    connection = served.connect()
    connection.request("GET", f"/queries/BookOf?book={book}", headers={"Accept": "text/event-stream"})
    response = connection.getresponse()
    assert response.status == 200
    assert event(response)["data"] == "null"
    return response


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served(PROGRAM, LIMIT_S)
    yield found
    found.kill()


def test_a_change_reaches_every_client(served: Served) -> None:
    """Each client of a query hears of the command of another one."""
    streams = [streaming(served) for _ in range(CLIENTS)]
    commands = served.connect()
    commands.request(
        "POST", "/commands/Lend", b'{"book": "emma", "reader": "ada"}', {"Content-Type": "application/json"}
    )
    assert commands.getresponse().status == 200
    for stream in streams:
        assert '"reader":"ada"' in event(stream)["data"]


def test_clients_that_go_away_while_nothing_happens_are_noticed(served: Served) -> None:
    """No live query is left of them, though there is nothing to tell them."""
    for _ in range(CLIENTS):
        streaming(served)
    for connection in served.connections:
        connection.close()
    served.let_go()
    assert served.says() == "none"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_do_not_hold_the_servers_stop(served: Served, number: signal.Signals) -> None:
    """Each is ended with a whole body, long before the limit of requests under way; no task is left."""
    streams = [streaming(served) for _ in range(CLIENTS)]
    served.process.send_signal(number)
    for stream in streams:
        assert event(stream) == {}
    code, words, errors = served.ends()
    assert (code, words[-2:], errors) == (0, ["served", "left:0"], "")
