"""An HTTP server that runs as a process of its own, and those who are connected to it."""

from __future__ import annotations

import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOCKET_S = 30
"""Seconds after which a client of these tests gives up."""


class Served:
    """A program that says on stdout what happens, one word a line, and first where it serves."""

    def __init__(self, program: str, *arguments: float) -> None:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        self.connections: list[HTTPConnection] = []
        self.port = int(self.says().rpartition(":")[2] or 0)

    def says(self) -> str:
        """The next line; empty at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        """Let it go on with what waits for a line on stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def connect(self) -> HTTPConnection:
        """A new connection of a client."""
        self.connections.append(HTTPConnection("127.0.0.1", self.port, timeout=SOCKET_S))
        return self.connections[-1]

    def ends(self) -> tuple[int, list[str], str]:
        """Its exit code, what it said at last, and on stderr."""
        out, err = self.process.communicate(timeout=SOCKET_S)
        return self.process.returncode, out.split(), err

    def kill(self) -> None:
        """End it, and all connections."""
        for connection in self.connections:
            connection.close()
        self.process.kill()
        self.process.communicate()
