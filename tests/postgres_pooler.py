"""A real PgBouncer before the tests' PostgreSQL, in transaction mode, where there is one on this machine.

Each transaction has another connection of the server than the one before it, so that whatever relies on a session is
found out. Where there is none, `pooled` still says `pgbouncer=true`: what Diptych does then is tested, no pooler.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit, urlunsplit

from tests.postgres_server import by_hand, in_thread, new_folder, server_url, with_parameter

__all__ = ["PGBOUNCER", "pooled", "start", "stop"]

PGBOUNCER = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
"""The program; None where there is none."""
START_S_MAX = 30
_POOL = """
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
server_round_robin = 1
default_pool_size = 20
max_client_conn = 1000
log_connections = 0
log_disconnections = 0
log_pooler_errors = 0
"""


def pooled(url: str) -> str:
    """The URL of the same store, through the pooler."""
    url = with_parameter(url, "pgbouncer", "true")
    if PGBOUNCER is None:
        return url
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items() if name not in {"host", "port"}}
    user = parts.username or "postgres"
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{_pooler().port}", query=urlencode(query)))


def stop() -> None:
    """Kill the pooler, with all that goes through it."""
    _pooler().stop()


def start() -> None:
    """Let it be there again."""
    _pooler().start()


class _Pooler:
    """A pooler with a port of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._user = _user()
        self._folder = new_folder("pooler")
        self._settings = self._folder / "pgbouncer.ini"
        self._settings.write_text(_POOL.format(server=_server(), port=self.port))
        if self._user is not None:
            for path in (self._folder, self._settings):
                shutil.chown(path, self._user)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        assert PGBOUNCER is not None
        user = [] if self._user is None else ["-u", self._user]
        self._process = subprocess.Popen([PGBOUNCER, "-q", *user, str(self._settings)])
        in_thread(asyncio.wait_for(self._answer(), START_S_MAX))

    def stop(self) -> None:
        """It is gone at once."""
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self._folder)

    async def _answer(self) -> None:
        while True:
            try:
                async with by_hand(f"postgresql://postgres@127.0.0.1:{self.port}/postgres"):
                    return
            except OSError:
                assert self._process.poll() is None, "the pooler has ended"


@cache
def _pooler() -> _Pooler:
    """The one of this process of tests; it is started when it is first asked for, and ends with it."""
    pooler = _Pooler()
    atexit.register(pooler.remove)
    return pooler


def _server() -> str:
    """Where the server is, and as whom all are let in."""
    parts = urlsplit(server_url())
    asked = parse_qs(parts.query)
    host = asked["host"][0] if "host" in asked else parts.hostname
    found = {"host": host, "port": parts.port or asked.get("port", ["5432"])[0], "user": parts.username or "postgres"}
    if parts.password:
        found["password"] = unquote(parts.password)
    return " ".join(f"{name}={value}" for name, value in found.items())


def _user() -> str | None:
    """Who runs it: it refuses to run as root, and a server's own socket is for its own user."""
    if os.geteuid() != 0:
        return None
    folder = Path(parse_qs(urlsplit(server_url()).query).get("host", ["/"])[0])
    return folder.owner() if folder.is_dir() and folder.owner() != "root" else "nobody"
