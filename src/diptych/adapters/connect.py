"""Finds the adapter for a URL: the only place that knows them all, and imports none before it is asked for."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast
from urllib.parse import parse_qsl, urlencode

from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from diptych.clock import Clock
    from diptych.event_store.event_store import EventStore
    from diptych.event_store.position import Place, Position
    from diptych.event_store.recorded_event import RecordedEvent
    from diptych.event_store.transactions import Lender
    from diptych.process_managers.process_store import ProcessStore
    from diptych.read_side.columnar_rows import ColumnarRows
    from diptych.read_side.query_source import QuerySource, ReplicaPolicy
    from diptych.read_side.read_store import ReadStore

__all__ = [
    "Port",
    "check_grantable",
    "commits_survive",
    "connect_event_store",
    "connect_process_store",
    "connect_query_source",
    "connect_read_store",
    "default_read_store",
    "default_role_prefix",
    "export_events",
    "export_rows",
    "grants_sql",
    "lender",
    "migrate",
    "migration_sql",
    "read_store_beside",
    "whereabouts",
    "without_password",
]

Port: TypeAlias = Literal["event_store", "read_store"]
"""What a store is to the application; its adapter's module has that name."""

_ADAPTERS = {
    "memory": "diptych.adapters.memory",
    "sqlite": "diptych.adapters.sqlite",
    "postgresql": "diptych.adapters.postgres",
    "postgres": "diptych.adapters.postgres",
    "duckdb": "diptych.adapters.duckdb",
    "opensearch": "diptych.adapters.opensearch",
    "opensearch+http": "diptych.adapters.opensearch",
    "valkey": "diptych.adapters.valkey",
    "valkeys": "diptych.adapters.valkey",
    "valkey+unix": "diptych.adapters.valkey",
}
_READ_SERVERS = frozenset({"opensearch", "opensearch+http", "valkey", "valkeys", "valkey+unix"})
"""Servers of read models and nothing else."""
_READ_MODELS_ONLY = _READ_SERVERS | {"duckdb"}
"""Where read models can be kept and nothing else."""
_SERVERS = frozenset({"postgresql", "postgres"})
"""Where stores are deployed (an adapter's module `deployment` says how), and read stores can have replicas."""
_SCHEME = re.compile(r"[A-Za-z+.-]*:?")
_LENDERS = {"sqlalchemy": "diptych.adapters.sqlalchemy.sessions"}
"""By library, who makes what handlers take of it from a transaction's connection."""
_EXTRAS = {"asyncpg": "postgres", "duckdb": "duckdb", "httpx2": "opensearch", "valkey": "valkey"}
"""Drivers that do not come with the base install, and the extra that each comes with."""


def connect_event_store(url: str, clock: Clock) -> EventStore:
    """The event store for a URL, not opened yet.

    `memory:`, `sqlite:shop.db` (a path, relative or absolute), or `postgresql://user@host/database?schema=diptych`.

    Raises:
        ConfigurationError: the URL has no known scheme, or no path where it needs one; or its driver is not installed.
    """
    return cast("EventStore", _module(url, "event_store").connect(url, clock))


def connect_read_store(url: str) -> ReadStore:
    """The read store for a URL, not opened yet.

    `memory:`, `sqlite:shop.read.db`, `duckdb:shop.duckdb`, `postgresql://user@host/database?schema=diptych_read`,
    `opensearch://user@host:9200?prefix=shop` (`opensearch+http://` without TLS), or `valkey://user@host/0?prefix=shop`.

    Raises:
        ConfigurationError: the URL has no known scheme, or no path where it needs one; or its driver is not installed.
    """
    return cast("ReadStore", _module(url, "read_store").connect(url))


def connect_process_store(url: str) -> ProcessStore:
    """The process store beside the events at a URL: in the same file, or schema; not opened yet.

    Raises:
        ConfigurationError: the URL has no known scheme, or cannot be read; or its driver is not installed.
    """
    return cast("ProcessStore", _module(url, "process_store").connect(url))


def connect_query_source(
    url: str,
    read_store: ReadStore,
    replicas: Sequence[str],
    policy: ReplicaPolicy,
    place_at: Callable[[Position], Awaitable[Place | None]],
) -> QuerySource:
    """Where queries are asked: replicas of the read store at a URL, not opened yet.

    Args:
        url: the read store's.
        read_store: the same, connected.
        replicas: their URLs, at least one.
        policy: what becomes of a query that has to show more than a replica has replayed.
        place_at: tells the place at a position of the history, so that no copy of another one is believed.

    Raises:
        ConfigurationError: a read store of this kind has no replicas, or their URLs are none of such.
    """
    scheme = url.partition(":")[0]
    if scheme not in _SERVERS:
        raise ConfigurationError(
            f"read models in {scheme}: have no replicas: leave them out, or keep the read models in PostgreSQL"
        )
    for replica in replicas:
        if replica.partition(":")[0] not in _SERVERS:
            raise ConfigurationError("a replica of read models in PostgreSQL is postgresql://user@host/database")
    return cast("QuerySource", _module(url, "query_source").connect(read_store, replicas, policy, place_at))


def default_read_store(store: str) -> str:
    """The read store's URL where none is given: beside the event store, in a file or schema of its own."""
    scheme, _, path = store.partition(":")
    if scheme in _SERVERS:
        return _with_read_schema(store)
    if scheme != "sqlite":
        return "memory:"
    stem = path.removesuffix("?own_tables=true").removesuffix(".db")
    return f"sqlite:{stem}.read.db"


def read_store_beside(store: str) -> str:
    """The URL of the read store that is in the event store's own database, so that one transaction changes both."""
    scheme, _, path = store.partition(":")
    return f"sqlite:{path}" if scheme == "sqlite" else default_read_store(store)


def without_password(url: str) -> str:
    """A store's URL as it may be shown.

    Raises:
        ConfigurationError: the URL has no known scheme, or cannot be read; or its driver is not installed.
    """
    if _scheme(url) in _READ_SERVERS:
        return cast("str", _module(url, "read_store").shown(url))
    deployment = _deployment(url)
    return cast("str", deployment.shown(url)) if deployment else url


async def commits_survive(url: str) -> str:
    """What an acknowledged commit of an event store survives, in words.

    Raises:
        StoreUnavailable: the server cannot be reached, or refuses.
        ConfigurationError: the URL has no known scheme, or cannot be read; or its driver is not installed.
    """
    deployment = _deployment(url)
    if not deployment:
        return "a crash, not the loss of the machine or its disk: back it up"
    return cast("str", await deployment.commits_survive(url))


async def whereabouts(url: str) -> str:
    """What tells an event store that is there from all others, where its URL may be written in ways that do not.

    Raises:
        StoreUnavailable: it cannot be reached, or refuses.
        ConfigurationError: the URL has no known scheme, or cannot be read; or its driver is not installed.
    """
    deployment = _deployment(url)
    return cast("str", await deployment.whereabouts(url)) if deployment else url


def _with_read_schema(url: str) -> str:
    """Apart from the events, so that what may be granted on read models is said once, by schema."""
    place, _, query = url.partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    parameters["schema"] = f"{parameters.get('schema', 'diptych')}_read"
    return f"{place}?{urlencode(parameters)}"


async def migrate(url: str, port: Port) -> list[str] | None:
    """Make or upgrade a store's tables; what was done, in order. None where the store does so itself when it is opened.

    Raises:
        NewerStore: a newer Diptych migrated it; nothing was changed.
        StoreUnavailable: the server cannot be reached, or refuses; nothing was changed.
        ConfigurationError: the URL cannot be read.
    """
    deployment = _deployment(url)
    if not deployment:
        return None
    return [f"{step.number} {step.name}" for step in await deployment.migrate(url, port)]


def migration_sql(url: str, port: Port) -> str | None:
    """What `migrate` would do in an empty database, as a script; None where the store does so itself.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    deployment = _deployment(url)
    return cast("str", deployment.migration_sql(url, port)) if deployment else None


def check_grantable(store: str, read_store: str) -> None:
    """Make sure that roles can be told apart by what they may do in each store.

    Raises:
        ConfigurationError: both are in one schema; or a URL cannot be read.
    """
    deployment = _deployment(store)
    if deployment and _deployment(read_store):
        deployment.check_grantable(store, read_store)


def grants_sql(url: str, port: Port, prefix: str) -> str | None:
    """A script that lets roles on the server do their part and no more; None where a store has none.

    Args:
        url: of a store whose tables are there.
        port: which kind.
        prefix: what the names of the roles begin with.

    Raises:
        ConfigurationError: the URL cannot be read, or the prefix is no plain name.
    """
    deployment = _deployment(url)
    return cast("str", deployment.grants_sql(url, port, prefix)) if deployment else None


def default_role_prefix(store: str, read_store: str) -> str | None:
    """What the names of both stores' roles begin with where nothing is said; None where neither has roles.

    Raises:
        ConfigurationError: a URL cannot be read.
    """
    deployments = [(url, _deployment(url)) for url in (store, read_store)]
    return next((cast("str", deployment.role_prefix(url)) for url, deployment in deployments if deployment), None)


def lender(kind: Any) -> Lender | None:
    """Who makes a handler's parameter of this type, of a library, from the transaction's connection; None: nobody."""
    for base in getattr(kind, "__mro__", ()):
        module = _LENDERS.get(base.__module__.partition(".")[0])
        if module is not None:
            return cast("Lender | None", import_module(module).lender(kind))
    return None


async def export_events(events: AsyncIterable[RecordedEvent], target: Path, moved: Callable[[int], object]) -> int:
    """Write events, ordered by position, to a Parquet file, whole or not at all; how many there were.

    Args:
        events: which.
        target: the file; one of that name is replaced.
        moved: is told now and then how many there are.

    Raises:
        StoreUnavailable: the file cannot be written; with the reason.
        ConfigurationError: DuckDB, which writes it, is not installed.
    """
    made = _imported("diptych.adapters.duckdb.event_table", "--parquet")
    return cast("int", await made.export_events(events, target, moved))


async def export_rows(
    rows: ColumnarRows, target: Path, moved: Callable[[int, int | None], object], decimals: Literal["decimal", "text"]
) -> tuple[int, Mapping[str, str]]:
    """Write rows to a Parquet file, whole or not at all; how many there were, and what they show.

    Args:
        rows: which.
        target: the file; one of that name is replaced.
        moved: is told now and then how many there are, and about how many there will be.
        decimals: what decimals become: DECIMAL(38,12), or text.

    Raises:
        StoreUnavailable: the file cannot be written; with the reason.
        ConfigurationError: DuckDB, which writes it, is not installed; or a decimal does not fit.
    """
    made = _imported("diptych.adapters.duckdb.columnar_rows", "--parquet")
    return cast("tuple[int, Mapping[str, str]]", await made.export_rows(rows, target, moved, decimals=decimals))


def _deployment(url: str) -> Any:
    """What an adapter knows of its servers; None where a store is in a file or a process."""
    return _module(url, "deployment") if _scheme(url) in _SERVERS else None


def _module(url: str, name: str) -> Any:
    scheme = _scheme(url)
    if scheme in _READ_MODELS_ONLY and name != "read_store":
        raise ConfigurationError(
            f"{scheme}: keeps read models, no events: give it as read_store=, beside a store= in sqlite: or postgresql:"
        )
    return _imported(f"{_ADAPTERS[scheme]}.{name}", f"{scheme}:")


def _imported(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name in _EXTRAS:
            extra = _EXTRAS[error.name]
            raise ConfigurationError(f"{what} needs {error.name}: pip install 'diptych[{extra}]'") from error
        raise


def _scheme(url: str) -> str:
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in _ADAPTERS:
        known = ", ".join(f"{name}:" for name in _ADAPTERS)
        may_hold_password = "@" in url or "=" in url
        begin = _SCHEME.match(url)
        shown = f"{begin[0] if begin else ''}…" if may_hold_password else url
        raise ConfigurationError(f"no store for the URL {shown!r}: it must begin with one of {known}")
    return scheme
