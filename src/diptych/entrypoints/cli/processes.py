"""`diptych run --processes N`: several servers behind one listening socket, kept alive by the process that was started.

    parent: listens, starts, watches ──▶ N children: `diptych run …`, which take connections from the parent's socket

A child is told by the environment of the socket, and of a pipe on which it says that it serves. Its standard input is
the reading end of another pipe: it stops when that ends, so that a parent that is killed leaves nobody behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from diptych.clock import pause
from diptych.entrypoints.cli.failures import CommandFailed
from diptych.entrypoints.cli.settings import ENVIRONMENT_PREFIX, SERVER_VARIABLE, Settings

__all__ = ["Child", "as_child", "keep_alive"]

RESTART_FIRST_S, RESTART_MAX_S = 0.1, 30.0
"""Seconds between a server's end and the start of the next but one: doubled each time, up to the second."""

_log = logging.getLogger("diptych.cli")


# ── the parent ───────────────────────────────────────────────────────────────


async def keep_alive(
    settings: Settings, listening: socket.socket, on_ready: Callable[[], None], *, verbose: bool
) -> None:
    """Run so many servers until this task is cancelled, and start another one for each that dies.

    Args:
        settings: of each.
        listening: where they take connections from.
        on_ready: called once all of them serve.
        verbose: whether they log more than problems.

    Raises:
        CommandFailed: one of the first ended before it served; what was wrong it has told itself. The others are
            stopped. A later one that cannot start is tried again, and again.
    """
    command = [sys.executable, "-m", "diptych", *_arguments(settings, verbose=verbose)]
    environment = {**os.environ, **_stores(settings)}
    missing = settings.processes

    def one_is_ready() -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            on_ready()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(settings.processes):
                group.create_task(_kept_alive(command, environment, listening, one_is_ready))
    except* CommandFailed as failed:
        raise failed.exceptions[0] from None


def _arguments(settings: Settings, *, verbose: bool) -> list[str]:
    """The command line of one server: all that was settled, wherever it came from, but for `_stores`."""
    given = ("--role", settings.role, "--log-format", settings.log_format, "--replica-policy", settings.replica_policy)
    told = [("--jwks", settings.jwks), ("--issuer", settings.issuer), ("--audience", settings.audience)]
    callers = [part for name, value in told if value for part in (name, value)]
    switches = [
        *(["--verbose"] if verbose else []),
        *(["--without-authentication"] if settings.without_authentication else []),
    ]
    builds = ["--on-changed", settings.on_changed, "--keep", str(settings.keep)]
    builds += [] if settings.rebuild_rate is None else ["--rebuild-rate", str(settings.rebuild_rate)]
    return ["run", *settings.app, *given, *callers, *builds, "--processes", "1", *switches]


def _stores(settings: Settings) -> dict[str, str]:
    """The environment of one server says where its stores are: a command line, with a password in it, all can see.

    Those of partitions, and others that no variable can hold, it reads as this process did, from the settings file.
    """
    stores = {"STORE": settings.store, "READ_STORE": settings.read_store, "READ_REPLICA": settings.read_replica}
    found = {f"{ENVIRONMENT_PREFIX}{name}": url for name, url in stores.items() if isinstance(url, str)}
    sent = [(name, [urls] if isinstance(urls, str) else urls) for name, urls in settings.read_stores.items()]
    said = [f"{name}={url}" for name, urls in sent if isinstance(urls, list) for url in urls]
    from_the_file = any(isinstance(urls, dict) for _, urls in sent) or any(part.split() != [part] for part in said)
    if said and not from_the_file:
        found[f"{ENVIRONMENT_PREFIX}READ_STORES"] = " ".join(said)
    return found


async def _kept_alive(
    command: Sequence[str], environment: Mapping[str, str], listening: socket.socket, on_ready: Callable[[], None]
) -> None:
    code = await _run_once(command, environment, listening, on_ready)
    _log.error("a server ended with exit code %s; another one is started", code)
    backoff = RESTART_FIRST_S
    while True:
        started = time.monotonic()
        try:
            code = await _run_once(command, environment, listening, _tell_replaced)
            _log.error("a server ended with exit code %s; another one is started", code)
        except CommandFailed as failed:  # what was well when the others began may be again: a store, a module
            _log.error("%s; it is tried again in %.1f s", failed, backoff)
        if time.monotonic() - started > RESTART_MAX_S:
            backoff = RESTART_FIRST_S
        await pause(backoff)
        backoff = min(backoff * 2, RESTART_MAX_S)


def _tell_replaced() -> None:
    _log.info("it is replaced")


async def _run_once(
    command: Sequence[str], environment: Mapping[str, str], listening: socket.socket, on_ready: Callable[[], None]
) -> int:
    """Run one server to its end.

    Raises:
        CommandFailed: it ended before it served.
    """
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(listening.fileno(), writing),
            env={**environment, SERVER_VARIABLE: f"{listening.fileno()},{writing}"},
            start_new_session=True,  # Ctrl-C goes to the parent alone, which stops them in order
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        if not await _said(reading):
            code = await process.wait()
            raise CommandFailed(f"a server ended with exit code {code} before it could serve")
        on_ready()
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _said(pipe: int) -> bytes:
    """What comes out of a pipe until its other end is closed."""
    reader = asyncio.StreamReader()
    with os.fdopen(pipe, "rb") as file:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            return await reader.read()
        finally:
            transport.close()


# ── a child ──────────────────────────────────────────────────────────────────


class Child(NamedTuple):
    """A server that another process has started.

    Attributes:
        listening: the socket that it shares.
        ready: a pipe to tell on that it serves.
    """

    listening: socket.socket
    ready: int

    def tell_ready(self) -> None:
        """Tell the parent that this one serves."""
        os.write(self.ready, b".")
        os.close(self.ready)


def as_child() -> Child | None:
    """What the parent has handed over, and be told to stop when it is gone; None in a process without such a parent."""
    told = os.environ.pop(SERVER_VARIABLE, None)
    if told is None:
        return None
    loop, pipe = asyncio.get_running_loop(), sys.stdin.fileno()

    def look() -> None:
        if not os.read(pipe, 1):  # it never writes
            loop.remove_reader(pipe)
            signal.raise_signal(signal.SIGTERM)

    loop.add_reader(pipe, look)
    listening, _, ready = told.partition(",")
    return Child(socket.socket(fileno=int(listening)), int(ready))
