"""Options that several commands take, in groups. What a flag leaves open comes from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from diptych.entrypoints.cli.failures import UsageError
from diptych.entrypoints.cli.settings import (
    DEFAULT_HOST,
    DEFAULT_LOG_FORMAT,
    DEFAULT_ON_CHANGED,
    DEFAULT_POLICY,
    DEFAULT_PORT,
    DEFAULT_PROCESSES,
    DEFAULT_ROLE,
    PORT_MAX,
    PROCESSES_MAX,
    Policy,
    Role,
    Settings,
    by_read_model,
    settled,
)
from diptych.read_side.rebuild_policy import KEEP_S, OnChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ADDRESS_UNSET",
    "BUILDS_UNSET",
    "CALLERS_UNSET",
    "CHANGED_UNSET",
    "EVENT_STORE_UNSET",
    "LOGS_UNSET",
    "PARTITION_UNSET",
    "REPLICAS_UNSET",
    "STORES_UNSET",
    "AppNames",
    "BuildOptions",
    "CallerOptions",
    "ChangedOptions",
    "EventStoreOptions",
    "LogOptions",
    "PartitionOptions",
    "ReplicaOptions",
    "ServeOptions",
    "StoreOptions",
    "at_least",
    "fields_of",
    "in_range",
    "settings_of",
]

_STORES = Group("Stores", sort_key=2)
_HTTP = Group("HTTP", sort_key=3)
_BUILDS = Group("Changed read models", sort_key=4)
_LOGS = Group("Logs", sort_key=5)


def at_least(least: int) -> Parameter:
    """A whole number that is not smaller."""
    return in_range(least, None)


def in_range(least: int, most: int | None) -> Parameter:
    """A whole number between two, both included."""

    def check(_: object, value: object) -> None:
        if isinstance(value, int) and (value < least or (most is not None and value > most)):
            raise ValueError(f"It must be {least} or more." if most is None else f"It must be {least} to {most}.")

    return Parameter(validator=check)


AppNames = Annotated[
    str,
    Parameter(
        name="APP",
        env_var="DIPTYCH_APP",
        help="Bounded contexts, as module:context; the current directory is importable.",
    ),
]
"""What to run, or whose store to look into: `*app: AppNames`."""

# Named here, since cyclopts evaluates the annotations below without this module's other names.
_STORE = Parameter(name="--store", env_var="DIPTYCH_STORE", metavar="URL", group=_STORES)
_READ_STORE = Parameter(
    name="--read-store",
    env_var="DIPTYCH_READ_STORE",
    metavar="URL",
    show_default=lambda _: "beside the event store",
    group=_STORES,
)
_READ_STORES = Parameter(
    name="--read-stores",
    env_var="DIPTYCH_READ_STORES",
    metavar="READ_MODEL=URL",
    negative="",
    show_default=lambda _: "none",
    group=_STORES,
)
_READ_REPLICA = Parameter(
    name="--read-replica",
    env_var="DIPTYCH_READ_REPLICA",
    metavar="URL[,URL]",
    show_default=lambda _: "none",
    group=_STORES,
)
_REPLICA_POLICY = Parameter(
    name="--replica-policy",
    env_var="DIPTYCH_REPLICA_POLICY",
    show_default=lambda _: DEFAULT_POLICY,
    group=_STORES,
)
_PARTITION = Parameter(
    name="--partition",
    env_var="DIPTYCH_PARTITION",
    metavar="NAME",
    show_default=lambda _: "the only one",
    group=_STORES,
)
_REBUILD_RATE = Parameter(
    name="--rebuild-rate",
    env_var="DIPTYCH_REBUILD_RATE",
    metavar="EVENTS",
    show_default=lambda _: "no limit",
    group=_BUILDS,
)
_KEEP = Parameter(
    name="--keep", env_var="DIPTYCH_KEEP", metavar="SECONDS", show_default=lambda _: f"{KEEP_S:g}", group=_BUILDS
)
_ON_CHANGED = Parameter(
    name="--on-changed", env_var="DIPTYCH_ON_CHANGED", show_default=lambda _: DEFAULT_ON_CHANGED, group=_BUILDS
)
_HOST = Parameter(
    name="--host", env_var="DIPTYCH_HOST", metavar="ADDRESS", show_default=lambda _: DEFAULT_HOST, group=_HTTP
)
_PORT = Parameter(name="--port", env_var="DIPTYCH_PORT", show_default=lambda _: str(DEFAULT_PORT), group=_HTTP)
_ROLE = Parameter(name="--role", env_var="DIPTYCH_ROLE", show_default=lambda _: DEFAULT_ROLE, group=_HTTP)
_PORTS = in_range(0, PORT_MAX)
_PROCESSES = Parameter(
    name="--processes", env_var="DIPTYCH_PROCESSES", show_default=lambda _: str(DEFAULT_PROCESSES), group=_HTTP
)
_COUNTS = in_range(1, PROCESSES_MAX)
_WITHOUT_AUTHENTICATION = Parameter(
    name="--without-authentication",
    env_var="DIPTYCH_WITHOUT_AUTHENTICATION",
    negative="",
    show_default=False,
    group=_HTTP,
)
_JWKS = Parameter(name="--jwks", env_var="DIPTYCH_JWKS", metavar="URL|FILE", show_default=lambda _: "none", group=_HTTP)
_ISSUER = Parameter(name="--issuer", env_var="DIPTYCH_ISSUER", metavar="TEXT", show_default=False, group=_HTTP)
_AUDIENCE = Parameter(name="--audience", env_var="DIPTYCH_AUDIENCE", metavar="TEXT", show_default=False, group=_HTTP)
_VERBOSE = Parameter(name=["--verbose", "-v"], negative="", show_default=False, group=_LOGS)
_LOG_FORMAT = Parameter(
    name="--log-format", env_var="DIPTYCH_LOG_FORMAT", show_default=lambda _: DEFAULT_LOG_FORMAT, group=_LOGS
)


@Parameter(name="*")
@dataclass(frozen=True)
class EventStoreOptions:
    """Which event store."""

    store: Annotated[str | None, _STORE] = None
    """The event store: sqlite:shop.db (a path), postgresql://user@host/database, or memory: to keep nothing."""


@Parameter(name="*")
@dataclass(frozen=True)
class StoreOptions(EventStoreOptions):
    """Which stores."""

    read_store: Annotated[str | None, _READ_STORE] = None
    """The read models' store."""

    read_stores: Annotated[tuple[str, ...], _READ_STORES] = ()
    """Where one read model is kept instead: Seats=memory:. May be repeated; of several for one read model the first
    answers, and all are fed."""


@Parameter(name="*")
@dataclass(frozen=True)
class PartitionOptions:
    """Which partition."""

    partition: Annotated[str | None, _PARTITION] = None
    """Of a store that diptych.toml divides into partitions, the one to look into."""


@Parameter(name="*")
@dataclass(frozen=True)
class ReplicaOptions:
    """Which replicas."""

    read_replica: Annotated[str | None, _READ_REPLICA] = None
    """Streaming replicas of the read models' PostgreSQL, which queries are asked on."""

    replica_policy: Annotated[Policy | None, _REPLICA_POLICY] = None
    """wait: a query that has to show more than a replica has replayed waits for that. primary: the primary answers."""


@Parameter(name="*")
@dataclass(frozen=True)
class ServeOptions:
    """Where to listen."""

    host: Annotated[str | None, _HOST] = None
    """The address to listen at; 0.0.0.0 is all of them."""

    port: Annotated[int | None, _PORT, _PORTS] = None
    """The port to listen at; 0 takes a free one."""

    role: Annotated[Role | None, _ROLE] = None
    """api: take commands and answer queries. worker: keep read models, deliver to subscribers, and serve health alone.
    all: both."""

    processes: Annotated[int | None, _PROCESSES, _COUNTS] = None
    """How many servers share the address and the work; one that dies is replaced. They need a store that they share."""

    without_authentication: Annotated[bool | None, _WITHOUT_AUTHENTICATION] = None
    """Everyone who reaches the server may send every command, and nobody is known: for a proxy before it that knows
    who may."""


@Parameter(name="*")
@dataclass(frozen=True)
class CallerOptions:
    """Who may send commands and queries."""

    jwks: Annotated[str | None, _JWKS] = None
    """The public keys that bearer tokens (JWT) are verified with: a JSON Web Key Set, at an https URL or in a file."""

    issuer: Annotated[str | None, _ISSUER] = None
    """The issuer of those tokens, their `iss`."""

    audience: Annotated[str | None, _AUDIENCE] = None
    """What has to be in their `aud`."""


@Parameter(name="*")
@dataclass(frozen=True)
class LogOptions:
    """How much to say, and how."""

    verbose: Annotated[bool, _VERBOSE] = False
    """Log what is done, not only problems; show tracebacks."""

    log_format: Annotated[Literal["text", "json"] | None, _LOG_FORMAT] = None
    """Logs for people, or JSON lines for machines; on stderr."""


@Parameter(name="*")
@dataclass(frozen=True)
class BuildOptions:
    """How read models are built anew."""

    rebuild_rate: Annotated[float | None, _REBUILD_RATE] = None
    """Positions of the history in a second that a build is taken over, at most."""

    keep: Annotated[float | None, _KEEP] = None
    """For how long the rows are kept that a build has replaced, to go back to; 0 drops them at once."""


@Parameter(name="*")
@dataclass(frozen=True)
class ChangedOptions(BuildOptions):
    """What becomes of read models whose code has changed."""

    on_changed: Annotated[OnChanged | None, _ON_CHANGED] = None
    """build: new rows are built beside the old, and queries wait for them. serve-old: the old rows answer meanwhile.
    wait: it serves when all are built. refuse: it does not serve."""


BUILDS_UNSET = BuildOptions()
CHANGED_UNSET = ChangedOptions()
EVENT_STORE_UNSET = EventStoreOptions()
STORES_UNSET = StoreOptions()
REPLICAS_UNSET = ReplicaOptions()
PARTITION_UNSET = PartitionOptions()
ADDRESS_UNSET = ServeOptions()
CALLERS_UNSET = CallerOptions()
LOGS_UNSET = LogOptions()


def fields_of(text: str) -> dict[str, Any]:
    """Fields of a message, as they are written on the command line.

    Raises:
        UsageError: they are no JSON object.
    """
    from diptych.errors import InvalidMessage
    from diptych.messages.codec import decode

    try:
        return decode(text.encode(), dict[str, Any])
    except (InvalidMessage, UnicodeError) as error:
        raise UsageError(f"{text!r} are no fields: write a JSON object, as in '{{\"amount\": 5}}'") from error


def settings_of(
    app: Sequence[str],
    stores: StoreOptions,
    partition: PartitionOptions,
    log: LogOptions,
    builds: BuildOptions = BUILDS_UNSET,
) -> Settings:
    """The settings of a command about what some contexts have in stores, with logging set up as they say."""
    return settled(
        verbose=log.verbose,
        app=app,
        store=stores.store,
        read_store=stores.read_store,
        read_stores=by_read_model(stores.read_stores),
        partition=partition.partition,
        rebuild_rate=builds.rebuild_rate,
        keep=builds.keep,
        log_format=log.log_format,
    )
