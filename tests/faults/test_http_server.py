"""The HTTP server as a process of its own: it stops so that whoever is being served is served, and stays bounded."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest

from diptych.entrypoints.http import server
from diptych.entrypoints.http.body import BODY_BYTES_MAX, BODY_DRAINED_BYTES_MAX
from diptych.errors import ConfigurationError
from tests.served import SOCKET_S, Served

# Says on stdout what happens, one word a line; lets the request under way go on when a line comes in on stdin.
PROGRAM = """
import asyncio, sys
from diptych.entrypoints.http import body, server
from tests.http_library import Outside, open_library

def say(word):
    print(word, flush=True)

async def main():
    server.STOP_S, body.BODY_READ_S = float(sys.argv[1]), float(sys.argv[2])
    outside = Outside()
    outside.on_entered = lambda: say("entered")
    asyncio.get_running_loop().add_reader(sys.stdin, outside.let_go.set)
    async with open_library(outside) as app:
        await server.serve(app, host="127.0.0.1", port=0, on_ready=say)
        say("served")
    say("closed")

with asyncio.Runner(loop_factory=server.event_loop) as runner:
    runner.run(main())
"""


Start = Callable[..., Served]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Served] = []

    def start(*, stop_s: float = SOCKET_S, body_read_s: float = SOCKET_S) -> Served:
        started.append(Served(PROGRAM, stop_s, body_read_s))
        return started[-1]

    yield start
    for served in started:
        served.kill()


def is_live(connection: HTTPConnection) -> bool:
    connection.request("GET", "/health/live")
    response = connection.getresponse()
    return (response.status, response.read()) == (200, b'{"live":true}')


def order(served: Served) -> HTTPConnection:
    """A connection whose request is under way, in the handler."""
    connection = served.connect()
    connection.request("POST", "/commands/Order", b'{"book": "emma"}', {"Content-Type": "application/json"})
    assert served.says() == "entered"
    return connection


def read(connection: HTTPConnection) -> tuple[HTTPResponse, dict[str, object]]:
    response = connection.getresponse()
    return response, json.loads(response.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_under_way_end(start: Start, number: signal.Signals) -> None:
    """Idle connections are closed, a request under way is answered, and only then does `serve` return."""
    served = start()
    idle, busy = served.connect(), order(served)
    assert is_live(idle)
    served.process.send_signal(number)
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""  # it has begun to stop
    served.let_go()
    response, receipt = read(busy)
    assert (response.status, receipt["position"]) == (200, 1)
    code, words, errors = served.ends()
    assert (code, words, errors) == (0, ["served", "closed"], "")


def test_what_takes_too_long_does_not_hold_the_stop(start: Start) -> None:
    """Past the limit a request under way, and one whose body never comes, are given up; the application is closed."""
    served = start(stop_s=0.2)
    order(served)
    stalled = served.connect()
    stalled.putrequest("POST", "/commands/GiveBack")
    stalled.putheader("Content-Type", "application/json")
    stalled.putheader("Content-Length", "100")
    stalled.endheaders(b"{")
    assert is_live(served.connect())
    served.process.send_signal(signal.SIGTERM)
    code, words, _ = served.ends()
    assert (code, words) == (0, ["served", "closed"])


def test_a_second_signal_stops_at_once(start: Start) -> None:
    """Who asks twice does not wait for the limit."""
    served = start(stop_s=10 * SOCKET_S)
    idle = served.connect()
    assert is_live(idle)
    order(served)
    served.process.send_signal(signal.SIGTERM)
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""
    served.process.send_signal(signal.SIGTERM)
    code, words, _ = served.ends()
    assert (code, words) == (0, ["served", "closed"])


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_giant_body_hears_that_it_is_too_large(start: Start, chunked: bool) -> None:
    """A client that sends 10 MB reads a 413 when it is through, and may go on with the connection."""
    connection = start().connect()
    pieces = [b"x" * 65_536] * (10 * BODY_BYTES_MAX // 65_536)
    body = iter(pieces) if chunked else b"".join(pieces)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/commands/GiveBack", body, headers, encode_chunked=chunked)
    response, problem = read(connection)
    assert (response.status, problem["type"]) == (413, "urn:diptych:problem:body-too-large")
    assert is_live(connection)


def test_a_body_without_end_is_cut_off(start: Start) -> None:
    """What announces more than is ever drained gets its 413 before it has sent anything, and a closed connection."""
    connection = start().connect()
    connection.putrequest("POST", "/commands/GiveBack")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(BODY_DRAINED_BYTES_MAX + 1))
    connection.endheaders()
    response, _ = read(connection)
    assert (response.status, response.headers["connection"]) == (413, "close")


def test_a_client_that_asks_first_is_told_at_once(start: Start) -> None:
    """`Expect: 100-continue` with too large a body gets the 413 instead of the 100."""
    served = start()
    with socket.create_connection(("127.0.0.1", served.port), timeout=SOCKET_S) as raw:
        head = f"Content-Length: {BODY_BYTES_MAX + 1}\r\nExpect: 100-continue\r\nContent-Type: application/json"
        raw.sendall(f"POST /commands/GiveBack HTTP/1.1\r\nHost: library\r\n{head}\r\n\r\n".encode())
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_a_body_that_does_not_come_is_not_waited_for(start: Start) -> None:
    """A body has a named time to arrive, then its client gets a 408."""
    connection = start(body_read_s=0.1).connect()
    connection.putrequest("POST", "/commands/GiveBack")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    response, problem = read(connection)
    assert (response.status, problem["type"]) == (408, "urn:diptych:problem:body-timeout")


def test_a_client_that_goes_away_is_nobodys_problem(start: Start) -> None:
    """A connection that ends in the middle of a body leaves no trace, and the server goes on."""
    served = start()
    with socket.create_connection(("127.0.0.1", served.port), timeout=SOCKET_S) as raw:
        head = "Content-Length: 100\r\nContent-Type: application/json"
        raw.sendall(f"POST /commands/GiveBack HTTP/1.1\r\nHost: library\r\n{head}\r\n\r\n{{".encode())
        assert is_live(served.connect())
    assert is_live(served.connect())
    served.process.send_signal(signal.SIGTERM)
    assert served.ends() == (0, ["served", "closed"], "")


def test_an_address_in_use_is_told() -> None:
    """A port that is taken is an error that names it, and says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}.*--port"):
            server.listen("127.0.0.1", port)


def test_replies_are_sent_without_delay() -> None:
    """The socket names its protocol: asyncio turns Nagle's algorithm off for those only (40 ms a reply otherwise)."""
    with server.listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
