"""Clients that ask, and then take nothing of what they are sent: over real sockets, from a server that is a process."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from tests.served import Served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a client takes nothing")

LIMIT_S = 30
"""Seconds after which the server gives up counting."""

# Says where it serves; and, when a line comes in on stdin, that nothing is left of whoever was connected.
PROGRAM = """
import asyncio, sys
from anyio.lowlevel import checkpoint
from diptych import Application, BoundedContext, Command, Event, Identity, Key, Query, ReadModel
from diptych.entrypoints.http import server

class NoteId(Identity): ...
class Write(Command):
    note: NoteId
class Written(Event):
    note: NoteId
class Note(ReadModel):
    note: Key[NoteId]
    text: str = ""
class Notes(Query[list[Note]]): ...

notes = BoundedContext("notes")

@notes.command_handler
def write(command: Write) -> Written:
    return Written(note=command.note)

@notes.projection
def note(row: Note, event: Written) -> Note:
    return Note(note=row.note, text="x" * 40_000)

def say(word):
    print(word, flush=True)

async def main():
    server.CLIENT_TAKES_NOTHING_S_MAX = 1
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: (sys.stdin.readline(), asked.set()))
    async with Application(notes, store="memory:") as app:
        await asyncio.gather(*(app.execute(Write(note=NoteId(f"n{number:03}"))) for number in range(600)))
        await app.projected()
        before = set()
        def ready(url):
            before.update(asyncio.all_tasks())
            say(url)
        async def count():
            await asked.wait()
            try:
                async with asyncio.timeout(float(sys.argv[1])):
                    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
                        await checkpoint()
                say("none")
            except TimeoutError:
                say(f"{len(left)} are left")
        counting = asyncio.create_task(count())
        await server.serve(app, host="127.0.0.1", port=0, on_ready=ready)
        say("served")
        counting.cancel()

with asyncio.Runner(loop_factory=server.event_loop) as runner:
    runner.run(main())
"""


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served(PROGRAM, LIMIT_S)
    yield found
    found.kill()


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_a_client_that_takes_nothing_is_cut_off(served: Served, accept: str) -> None:
    """However it is streamed: its connection, its snapshot, its live query and what is to be sent are let go of."""
    stalled = [socket.socket() for _ in range(3)]
    for line in stalled:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        line.connect(("127.0.0.1", served.port))
        line.sendall(f"GET /queries/Notes HTTP/1.1\r\nHost: notes\r\nAccept: {accept}\r\n\r\n".encode())
        assert line.recv(12) == b"HTTP/1.1 200"
    served.let_go()
    assert served.says() == "none"
    for line in stalled:
        line.close()
