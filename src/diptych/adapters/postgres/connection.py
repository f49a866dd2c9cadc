"""Connections to one PostgreSQL database: where it is, who may use how many, and what a failure means.

Nothing that is right depends on a connection's settings: what does is said in the statement's own transaction, so that
a pooler in front of the server, which gives every transaction another connection, breaks nothing.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg
import msgspec

from diptych.errors import ConfigurationError, NotGranted, Overloaded, StoreClosed, StoreUnavailable

__all__ = [
    "BEGIN",
    "DRIVER_ERRORS",
    "INDEXED",
    "OWNERS",
    "Connections",
    "Link",
    "PostgresUrl",
    "check_name",
    "connect",
    "failure",
    "is_lost",
    "is_missing_schema",
    "parse_url",
    "roll_back",
    "say_goodbye",
    "state_of",
    "transaction",
    "was_not_sent",
]

DEFAULT_SCHEMA = "diptych"
"""The schema that holds the tables, unless the URL says `schema=`."""
NAME_CHARACTERS_MAX = 40
"""Characters of a schema's name, and of what roles' names begin with; names made from it have to fit into 63 bytes."""
CONNECT_S_MAX = 10.0
"""How long connecting may take; of several hosts, each has its share of it."""
HOSTS_MAX = 10
"""Hosts that one URL may name."""
STATEMENT_S_MAX = 60.0
"""How long a statement may take before it is cancelled."""
UNANSWERED_S_MAX = 120.0
"""How long any statement waits that says nothing else: a server that hangs keeps nobody for ever."""
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
ROLL_BACK_S_MAX = 5.0
"""How long a rollback may take before its connection is cut."""
CLOSE_S_MAX = 5.0
"""How long a connection may take to say goodbye before it is cut."""
CONNECTION_WAIT_S_MAX = 30.0
"""How long a call waits for one of the connections to be free."""
WAITING_CALLS_MAX = 10_000
"""Calls that wait for a connection; more get `Overloaded`."""
STATEMENTS_KEPT = 500
"""Prepared statements kept, each connection."""
SERVER_VERSION_MIN = 140_000
"""PostgreSQL 14, as `server_version_num` writes it."""

Link: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""One connection of the driver's."""
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What the driver raises: the server's no, or that no answer came."""

_NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{NAME_CHARACTERS_MAX - 1}}}")
INDEXED: Mapping[str, str] = {"jit": "off", "enable_seqscan": "off", "enable_bitmapscan": "off"}
"""Planner settings for statements that find their rows in order by an index. Without statistics, in tables that have
just begun to grow, the planner would scan whole tables, and keep that plan while they grow."""
_SESSION = {
    "application_name": "diptych",
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",
}
_REMEDIES = {
    "08": "check that the server runs and can be reached",
    "25006": "nothing was done: this server is read-only, a replica or set so. Send it again, to the primary",
    "28": "check the user and password in the URL, and the server's pg_hba.conf",
    "3D000": "there is no such database; make it with createdb",
    "40": "other transactions were in the way; send it again",
    "53100": "nothing was done: its disk is full; make room, and send it again",
    "53200": "the server is out of memory",
    "53300": "the server takes no more connections; raise its max_connections, or use fewer processes",
    "53": "the server is short of something",
    "55P03": "another transaction holds its lock; end it, or wait for it",
    "57014": "nothing was done: the statement was cancelled, by hand or by a statement_timeout; send it again",
    "57P": "the server is stopping, starting or was restarted; it is tried again on the next call",
    "58": "the server's disk fails; check it",
    "XX": "the server's data are damaged; restore a backup",
}
"""What to do, by SQLSTATE or its beginning; the longest that fits."""
_KEPT_BACK = "cannot switch to state"
"""How the driver begins, where it has heard the server's goodbye, and the connection is not closed yet."""
_DENIED = "42501"
"""The role may not."""
OWNERS = (
    "this is the owner's to do, and no role's that `diptych migrate --grants` prints: connect as the user who owns the "
    "schema, or may make it"
)
"""What to do where a role is refused what none of the roles may."""
_WRONG_SERVER = frozenset({"25006"})
"""This connection will go on refusing what others would do: a setting of its session, or the wrong server."""
_MISSING = frozenset({"3F000", "42P01", "42703", "42883"})
"""No such schema, table, column, function."""


class PostgresUrl(msgspec.Struct, frozen=True):
    """Where a store is.

    Attributes:
        dsns: for the driver, without our own parameters; one for each host, in the order in which they are tried.
        attributes: which of them will do, a `target_session_attrs`; empty where whichever is there will.
        schema: that holds the tables; plain, so that it needs no escaping inside double quotes.
        pooled: whether a pooler stands before the server that gives every transaction another connection.
        shown: the URL without its password, for messages.
    """

    dsns: tuple[str, ...]
    attributes: str
    schema: str
    pooled: bool
    shown: str

    @property
    def quoted_schema(self) -> str:
        """The schema's name as SQL."""
        return f'"{self.schema}"'

    @property
    def user(self) -> str:
        """Whom the driver connects as: by the URL or, where it names nobody, by the environment, as libpq does."""
        parts = urlsplit(self.dsns[0])
        named = unquote(parts.username or "") or dict(parse_qsl(parts.query)).get("user", "")
        return named or os.environ.get("PGUSER", "") or getpass.getuser()


def parse_url(url: str) -> PostgresUrl:
    """Read `postgresql://user:password@host:port,host:port/database?schema=name&pgbouncer=true&…`.

    `schema` and `pgbouncer` are ours, all else is the driver's: a socket's folder as `host`, `sslmode` and so on. Of
    several hosts, the first that is the primary is connected to, or that which `target_session_attrs` describes.

    Raises:
        ConfigurationError: it cannot be read, names several hosts in `host` or `port`, or `schema` or `pgbouncer` has
            no value that is allowed.
    """
    try:
        parts = urlsplit(url)
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        _check_is_whole(url)
        user, at, named_hosts = parts.netloc.rpartition("@")
        hosts = named_hosts.split(",")
        for host in hosts:
            _check_host(host, alone=len(hosts) == 1)
        if len(hosts) > HOSTS_MAX:
            raise ConfigurationError(f"this URL names {len(hosts)} hosts; HOSTS_MAX={HOSTS_MAX} is the limit")
        place = f"{user.partition(':')[0]}@{named_hosts}"
    except ValueError:
        # What is wrong may be in the password, or a part of it taken for a port: it is not repeated.
        raise ConfigurationError(
            "this URL of PostgreSQL cannot be read: it is postgresql://user:password@host:port/database?name=value&…, "
            "with several hosts as host:port,host:port; "
            "in a user or password / ? # @ : [ ] are written as %2F %3F %23 %40 %3A %5B %5D"
        ) from None
    if any(name in {"host", "port"} and "," in value for name, value in parameters):
        raise ConfigurationError("host= and port= name one: write several as //user@host:port,host:port/database")
    ours = {name: value for name, value in parameters if name in {"schema", "pgbouncer", "target_session_attrs"}}
    theirs = urlencode([(name, value) for name, value in parameters if name not in ours])
    schema = ours.get("schema", DEFAULT_SCHEMA)
    check_name("schema", schema)
    pooled = ours.get("pgbouncer", "false")
    if pooled not in {"true", "false"}:
        raise ConfigurationError(f"pgbouncer={pooled}: write pgbouncer=true, or leave it out")
    named = urlencode([(name, value) for name, value in parameters if "password" not in name.lower()])
    return PostgresUrl(
        dsns=tuple(urlunsplit(("postgresql", f"{user}{at}{host}", parts.path, theirs, "")) for host in hosts),
        attributes=ours.get("target_session_attrs", "primary" if len(hosts) > 1 else ""),
        schema=schema,
        pooled=pooled == "true",
        shown=urlunsplit(("postgresql", place.removeprefix("@"), parts.path, named, "")),
    )


def check_name(what: str, name: str) -> None:
    """Make sure that a name needs no escaping, and that names made from it fit.

    Raises:
        ConfigurationError: it needs some, or is too long.
    """
    if not _NAME.fullmatch(name) or name.lower().startswith("pg_"):
        raise ConfigurationError(
            f"{what}={name}: such a name has letters, digits and _, at most "
            f"NAME_CHARACTERS_MAX={NAME_CHARACTERS_MAX}, and does not begin with pg_"
        )


def _check_is_whole(url: str) -> None:
    """A bare `/`, `?` or `#` in a password ends the host too early: an `@` comes after it, and the rest were shown.

    So it were behind a bare `@`, where the driver takes the host to begin.

    Raises:
        ValueError: it is so.
    """
    parts = urlsplit(url)
    if "@" in parts.path or "#" in url or ("@" not in parts.netloc and "@" in parts.query):
        raise ValueError
    if parts.netloc.count("@") > 1:
        raise ValueError


def _check_host(host: str, *, alone: bool) -> None:
    """One of several has a name, and its port is a number.

    Raises:
        ValueError: it is not so.
    """
    parts = urlsplit(f"//{host}")
    if not (parts.hostname or alone) or (parts.port is None and host.endswith(":")):
        raise ValueError


# ── failures ─────────────────────────────────────────────────────────────────


def state_of(error: BaseException) -> str:
    """The server's five characters for what went wrong; empty where the error is not the server's."""
    return str(getattr(error, "sqlstate", None) or "") if isinstance(error, asyncpg.PostgresError) else ""


def is_lost(error: BaseException) -> bool:
    """Whether no answer came, or only that the server goes away.

    What was sent may or may not have been done; if it was sent at all, see `was_not_sent`.
    """
    state = state_of(error)
    return state.startswith(("08", "57P")) if state else isinstance(error, DRIVER_ERRORS)


def was_not_sent(error: BaseException) -> bool:
    """Whether the driver kept it back, for the connection was being ended: nothing was done."""
    return isinstance(error, asyncpg.InternalClientError) and str(error).startswith(_KEPT_BACK)


def is_missing_schema(error: BaseException) -> bool:
    """Whether the store's tables are not there."""
    return state_of(error) in _MISSING


def failure(url: PostgresUrl, error: BaseException, *, denied: str = "") -> Exception | None:
    """What callers get for an error of the driver or server; None where it is a defect of ours and comes out as it is.

    Args:
        url: of the store.
        error: what was raised.
        denied: what to do where the role may not; empty where another role may.

    Returns:
        StoreUnavailable with what to do; ConfigurationError where the tables are missing; NotGranted.
    """
    state = state_of(error)
    if was_not_sent(error):
        return StoreUnavailable(f"{url.shown}: nothing was done: the server was ending the connection; send it again")
    if state == _DENIED:
        return NotGranted(url.shown, url.user, str(error), denied)
    if state in _MISSING:
        return ConfigurationError(
            f"{url.shown} has not the tables that this Diptych needs ({error}): "
            "run diptych migrate with the same --store and --read-store"
        )
    for length in (5, 3, 2):
        remedy = _REMEDIES.get(state[:length])
        if remedy is not None:
            return StoreUnavailable(f"{url.shown}: {error} ({remedy})")
    if not state and isinstance(error, DRIVER_ERRORS):
        said = str(error) or type(error).__name__
        return StoreUnavailable(f"{url.shown}: {said} ({_REMEDIES['08']})")
    return None


# ── connections ──────────────────────────────────────────────────────────────


class Connections:
    """A few connections to one database, made when they are first needed, and made anew when they were lost.

    For one event loop at a time; it may be opened in one and, once closed, again in another.
    """

    def __init__(
        self,
        url: PostgresUrl,
        size_max: int,
        *,
        read_only: bool,
        verify: Callable[[Link], Awaitable[None]],
        planning: Mapping[str, str] = INDEXED,
    ) -> None:
        """Remember the settings; nothing is opened yet.

        Args:
            url: where to connect.
            size_max: how many connections at most.
            read_only: whether the server is to refuse whatever writes (G13).
            verify: looks at every new connection before it is used; it raises where it should not be.
            planning: settings of the server's planner.
        """
        self.url = url
        self._size_max = size_max
        self._read_only = read_only
        self._verify = verify
        self._planning = planning
        self._begin = "; ".join(
            (
                f"BEGIN ISOLATION LEVEL READ COMMITTED{' READ ONLY' if read_only else ''}",
                *(f"SET LOCAL {name} = {value}" for name, value in planning.items()),
            )
        )
        self._idle: deque[Link] = deque()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._backends = set[int]()
        self._used = 0
        self._is_open = False

    def open(self) -> None:
        """Take calls from now on."""
        self._is_open = True

    async def close(self) -> None:
        """Let go of the connections; those in use are closed when they are given back."""
        self._is_open = False
        while self._waiting:
            _refuse(self._waiting.popleft())
        idle = list(self._idle)
        self._idle.clear()
        await asyncio.gather(*map(say_goodbye, idle))

    async def rows(
        self, statement: str, *arguments: object, timeout_s: float = STATEMENT_S_MAX
    ) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own, on any connection."""
        async with self.connection() as link:
            return await self.rows_on(link, statement, arguments, timeout_s=timeout_s)

    async def rows_on(
        self, link: Link, statement: str, arguments: Sequence[object], *, timeout_s: float = STATEMENT_S_MAX
    ) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own, on this connection."""
        if not self.url.pooled:
            return await link.fetch(statement, *arguments, timeout=timeout_s)
        await link.execute(self._begin)
        try:
            rows = await link.fetch(statement, *arguments, timeout=timeout_s)
        except asyncpg.PostgresError:
            await link.execute("ROLLBACK")
            raise
        await link.execute("COMMIT")
        return rows

    def connection(self) -> AbstractAsyncContextManager[Link]:
        """One connection, for the block. One that was lost, or whose call was cancelled, is not used again.

        Raises:
            StoreClosed: not open.
            StoreUnavailable: the server cannot be reached, or no connection was free in time.
            Overloaded: too many calls wait.
        """
        return self._connection()

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Link]:
        await self._wait_for_turn()
        link: Link | None = None
        try:
            link = self._next_idle() or await self._connect()
            yield link
        except BaseException as error:
            if link is not None:
                self._judge(link, error)
            raise
        finally:
            good = link if link is not None and not link.is_closed() else None
            if good is not None and self._is_open:
                self._idle.append(good)
            self._end_turn()
            if good is not None and not self._is_open:
                await say_goodbye(good)

    def _judge(self, link: Link, error: BaseException) -> None:
        """Where the server only said no, the connection is as good as ever; what cut it has cut the idle ones too."""
        lost = is_lost(error) or state_of(error) in _WRONG_SERVER
        if lost or not isinstance(error, asyncpg.PostgresError):
            link.terminate()
        if lost:
            self.cut_idle()

    def cut_idle(self) -> None:
        """Let go of what nobody uses: the next call makes a new connection, which is verified."""
        while self._idle:
            self._idle.pop().terminate()

    async def _wait_for_turn(self) -> None:
        if not self._is_open:
            raise StoreClosed(f"the store {self.url.shown} is not open")
        if self._used >= self._size_max or self._waiting:
            await self._wait()
        else:
            self._used += 1

    async def _wait(self) -> None:
        if len(self._waiting) >= WAITING_CALLS_MAX:
            raise Overloaded("WAITING_CALLS_MAX", WAITING_CALLS_MAX)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(CONNECTION_WAIT_S_MAX):
                await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.result():
                self._end_turn()  # it came too late to be used
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(
                    f"{self.url.shown}: none of {self._size_max} connections was free for {CONNECTION_WAIT_S_MAX} s "
                    "(CONNECTION_WAIT_S_MAX)"
                ) from error
            raise
        if not self._is_open:
            if turn.result():
                self._end_turn()
            raise StoreClosed(f"the store {self.url.shown} was closed")

    def _end_turn(self) -> None:
        """Hand the turn to who waits longest; it is theirs from now on, so that nobody takes it before they wake."""
        self._used -= 1
        while self._waiting and self._used < self._size_max:
            turn = self._waiting.popleft()
            if not turn.done():
                self._used += 1
                turn.set_result(True)

    def _next_idle(self) -> Link | None:
        while self._idle:
            link = self._idle.pop()
            if not link.is_closed():
                return link
        return None

    async def _connect(self) -> Link:
        link = await connect(self.url, read_only=self._read_only, planning=self._planning)
        try:
            await self._verify(link)
        except BaseException:
            link.terminate()
            raise
        backend = link.get_server_pid()
        self._backends.add(backend)
        link.add_termination_listener(lambda _: self._backends.discard(backend))
        return link

    def has(self, backend: int) -> bool:
        """Whether the server's backend of this number is at the other end of one of these connections."""
        return backend in self._backends


async def connect(url: PostgresUrl, *, read_only: bool = False, planning: Mapping[str, str] = INDEXED) -> Link:
    """A new connection: to the first host that answers and will do.

    The driver would try them too, but give up at one that is just starting, and wait for one that has gone for as long
    as for all.

    Raises:
        StoreUnavailable: no server can be reached, or none lets anybody in; with the reason.
        ConfigurationError: the server is too old, or the URL names what the driver does not know.
    """
    settings = {} if url.pooled else {**_SESSION, **planning}
    attributes = url.attributes
    if read_only and not url.pooled:
        settings["default_transaction_read_only"] = "on"
        # The driver asks the session whether it is read-only, which this one always is.
        attributes = {"read-write": "primary", "read-only": "any"}.get(attributes, attributes)
    link = await _connect_to_one(url, settings, attributes)
    if link.get_server_version()[0] * 10_000 < SERVER_VERSION_MIN:
        link.terminate()
        raise ConfigurationError(f"{url.shown} is too old: Diptych needs PostgreSQL 14 or later")
    return link


async def _connect_to_one(url: PostgresUrl, settings: Mapping[str, str], attributes: str) -> Link:
    """The first host that will do; where none does, the failure that tells most: what a server said, else the last."""
    failed: Exception | None = None
    for dsn in url.dsns:
        wanted = f"{'&' if '?' in dsn else '?'}target_session_attrs={attributes}" if attributes else ""
        try:
            link: Link = await asyncpg.connect(
                dsn + wanted,
                timeout=CONNECT_S_MAX / len(url.dsns),
                command_timeout=UNANSWERED_S_MAX,
                statement_cache_size=0 if url.pooled else STATEMENTS_KEPT,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
                server_settings=dict(settings),
            )
        except (asyncpg.ClientConfigurationError, ssl.SSLError) as error:
            raise ConfigurationError(f"{url.shown}: {error}") from error
        except DRIVER_ERRORS as error:
            failed = error if failed is None or not state_of(failed) else failed
        else:
            return link
    assert failed is not None, "a URL names a host, if only by default"
    raise failure(url, failed) or StoreUnavailable(f"{url.shown}: {failed}") from failed


async def say_goodbye(link: Link) -> None:
    """Close a connection; one that does not come to it is cut."""
    try:
        await link.close(timeout=CLOSE_S_MAX)
    except DRIVER_ERRORS:
        link.terminate()


@asynccontextmanager
async def transaction(link: Link, begin: str = BEGIN) -> AsyncGenerator[None]:
    """A transaction, for the block, on a connection that whoever lends it cuts where its caller is cancelled.

    The driver's own waits for a rollback then, and a server that hangs never answers.
    """
    await link.execute(begin)
    try:
        yield
    except Exception as error:
        await roll_back(link, error)
        raise
    await link.execute("COMMIT")


async def roll_back(link: Link, error: BaseException | None = None) -> None:
    """Undo what a transaction has done. A server that has not answered is asked nothing more: the connection is cut."""
    try:
        if isinstance(error, OSError):
            link.terminate()
        elif not link.is_closed():
            await link.execute("ROLLBACK", timeout=ROLL_BACK_S_MAX)
    except DRIVER_ERRORS:
        link.terminate()  # the server rolls back what nobody holds on to


def _refuse(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)
