"""Connections to one Valkey server: where it is, what it has to be set to, and what a failure means."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import valkey.asyncio
from valkey.exceptions import NoScriptError, OutOfMemoryError, ValkeyError

from diptych.adapters.valkey.framing import frames, unframed
from diptych.adapters.valkey.scripts import Script
from diptych.errors import ConfigurationError, StoreUnavailable

__all__ = ["Connections", "Listener", "ValkeyUrl", "parse_url"]

DEFAULT_PREFIX = "diptych"
"""What the names of all keys begin with, unless the URL says `prefix=`."""
CONNECTIONS_MAX = 32
"""Connections of one store in one process; more calls wait for one."""
CONNECTION_WAIT_S_MAX = 10
"""Seconds that a call waits for a connection, and that connecting may take."""
ANSWER_S_MAX = 30
"""Seconds that the server may take to answer."""
SYNC_S_MAX = 10
"""Seconds that the server may take to have a change by hand on its disk."""
SERVER_VERSION_MIN = (7, 2)
"""Of Valkey, and of a server that speaks its language: since then `WAITAOF` tells what is on the disk."""

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class ValkeyUrl(NamedTuple):
    """A store's URL, taken apart.

    Attributes:
        server: for the driver.
        prefix: what the names of the keys begin with; in braces, so that they stay together in what is copied from it.
        shown: for messages: without password.
    """

    server: str
    prefix: str
    shown: str


def parse_url(url: str) -> ValkeyUrl:
    """Take `valkey://user:password@host:port/database?prefix=shop` apart; `valkeys:` has TLS, `unix:` is a socket.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"a URL of Valkey cannot be read: {error}") from None
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = settings.pop("prefix", DEFAULT_PREFIX)
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    shown = urlunsplit((parts.scheme, host, parts.path, "", "")) + f"?prefix={prefix}"
    unknown = sorted(settings.keys() - {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
    if unknown:
        raise ConfigurationError(f"{shown}: the setting {unknown[0]!r} of the URL is not known; there is prefix=")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(f"{shown}: a prefix has 1 to 100 letters, digits and . _ : -")
    socket = parts.scheme == "valkey+unix"
    if (socket and not parts.path) or (not socket and not parts.hostname):
        raise ConfigurationError(
            f"{shown}: write valkey://host:6379/0?prefix=shop, valkeys://… for TLS, or valkey+unix:///path/of/socket"
        )
    if not socket and not re.fullmatch(r"(/\d*)?", parts.path):
        raise ConfigurationError(f"{shown}: the path is the number of the database: valkey://host:6379/0")
    scheme = "unix" if socket else parts.scheme
    server = urlunsplit((scheme, parts.netloc, parts.path, urlencode(settings), ""))
    return ValkeyUrl(server, f"{{{prefix}}}", shown)


class Listener:
    """A connection that hears what is published."""

    def __init__(self, heard: Any, failures: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._heard = heard
        self._failures = failures

    async def next(self, timeout_s: float) -> bytes | None:
        """The next message; None after a while without one.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        async with self._failures():
            message = await self._heard.get_message(timeout=timeout_s)
        return None if message is None else cast("bytes", message["data"])

    async def close(self) -> None:
        """Hear no more; the connection may be lost already."""
        with contextlib.suppress(ValkeyError, OSError):
            await self._heard.aclose()


class Connections:
    """The connections of one store."""

    def __init__(self, url: ValkeyUrl) -> None:
        self.url = url
        driver: Any = valkey.asyncio  # what it takes and gives has no types, or half of them
        self._pool = driver.BlockingConnectionPool.from_url(
            url.server,
            max_connections=CONNECTIONS_MAX,
            timeout=CONNECTION_WAIT_S_MAX,
            socket_connect_timeout=CONNECTION_WAIT_S_MAX,
            socket_timeout=ANSWER_S_MAX,
        )
        self._client = driver.Valkey(connection_pool=self._pool)
        self._appends = False

    async def open(self) -> None:
        """Connect, and look whether the server is one that rows may be kept in.

        Raises:
            ConfigurationError: it is set so that rows would be lost silently, or is too old.
            StoreUnavailable: it cannot be reached, or refuses.
        """
        async with self._failures():
            told = cast("dict[str, Any]", await self._client.info("everything"))
        name = f"the read store {self.url.shown}"
        version = str(told.get("valkey_version") or told.get("redis_version", "0"))
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < SERVER_VERSION_MIN:
            raise ConfigurationError(f"{name} runs {version}; Diptych needs Valkey 7.2 or newer")
        if told.get("cluster_enabled"):
            raise ConfigurationError(
                f"{name} is a cluster, over which nothing changes in one transaction: give it a server of its own"
            )
        policy = told.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ConfigurationError(
                f"{name} has maxmemory-policy {policy}, under which the server throws rows away that queries would "
                "then show as not there: set it to noeviction"
            )
        self._appends = bool(told.get("aof_enabled"))

    async def run_id(self) -> bytes:
        """What tells this run of this server from every other one.

        Raises:
            StoreUnavailable: as of `run`.
        """
        async with self._failures():
            told = cast("dict[str, Any]", await self._client.info("server"))
        return str(told["run_id"]).encode()

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()
        await self._pool.disconnect()

    async def run(self, script: Script, values: Iterable[bytes | None]) -> list[bytes | None]:
        """What a script gives.

        Raises:
            StoreUnavailable: the server cannot be reached, or refuses; whether something was done is not known.
        """
        argument = frames(values)
        async with self._failures():
            try:
                answer = await self._client.execute_command("EVALSHA", script.sha, 1, self.url.prefix, argument)
            except NoScriptError:
                answer = await self._client.execute_command("EVAL", script.text, 1, self.url.prefix, argument)
        return unframed(cast("bytes", answer))

    async def run_durably(self, script: Script, values: Iterable[bytes | None]) -> list[bytes | None]:
        """What a script gives, once what it did is on the server's disk.

        Raises:
            ConfigurationError: the server keeps nothing on its disk; nothing was done.
            StoreUnavailable: as of `run`, or it takes too long.
        """
        if not self._appends:
            raise ConfigurationError(
                f"the read store {self.url.shown} has appendonly no: what is decided by hand would be lost with the "
                "server's process. Nothing was done: set appendonly to yes, and open the application anew"
            )
        async with self._failures():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.execute_command("EVAL", script.text, 1, self.url.prefix, frames(values))
            pipeline.execute_command("WAITAOF", 1, 0, SYNC_S_MAX * 1_000)
            answer, synced = cast("Sequence[Any]", await pipeline.execute())
        if not synced[0]:
            raise StoreUnavailable(
                f"the read store {self.url.shown} was changed, but did not have that on its disk within "
                f"SYNC_S_MAX={SYNC_S_MAX} s"
            )
        return unframed(cast("bytes", answer))

    async def command(self, *words: bytes | str | int) -> Any:
        """The answer to a command; the names of its keys begin with `url.prefix`.

        Raises:
            StoreUnavailable: as of `run`.
        """
        async with self._failures():
            return await self._client.execute_command(*words)

    async def listener(self) -> Listener:
        """Somebody who hears what the scripts publish.

        Raises:
            StoreUnavailable: as of `run`.
        """
        heard = self._client.pubsub(ignore_subscribe_messages=True)
        async with self._failures():
            try:
                await heard.subscribe(f"{self.url.prefix}:changes")
            except BaseException:
                await heard.aclose()
                raise
        return Listener(heard, self._failures)

    @asynccontextmanager
    async def _failures(self) -> AsyncGenerator[None]:
        """What the driver raises, as what it means; also that the caller was cancelled, which it sometimes swallows."""
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        failure: Exception | None = None
        try:
            yield
        except (ValkeyError, OSError) as error:
            failure = error
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError from failure
        if isinstance(failure, OutOfMemoryError):
            raise StoreUnavailable(
                f"the read store {self.url.shown} has used up its maxmemory; nothing was changed: {failure}"
            ) from failure
        if failure is not None:
            raise StoreUnavailable(f"the read store {self.url.shown}: {type(failure).__name__}: {failure}") from failure
