"""Deployment on PostgreSQL: how stores come to be on a server, who may do what there, what they are, and what survives.

Each function takes a store's URL and needs no store that is open. Those that differ between events and read models
take the port as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from diptych.adapters.postgres.connection import DRIVER_ERRORS, STATEMENT_S_MAX, connect, failure, parse_url
from diptych.adapters.postgres.event_schema import EVENT_STORE_GRANTS, EVENT_STORE_MIGRATIONS
from diptych.adapters.postgres.grants import check_apart
from diptych.adapters.postgres.process_schema import PROCESS_GRANTS, PROCESS_MIGRATIONS
from diptych.adapters.postgres.read_schema import READ_STORE_GRANTS, READ_STORE_MIGRATIONS
from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncpg

    from diptych.adapters.postgres.connection import PostgresUrl
    from diptych.adapters.postgres.grants import Grants
    from diptych.adapters.postgres.migrations import Migration, Migrations

__all__ = [
    "Port",
    "check_grantable",
    "commits_survive",
    "grants_sql",
    "migrate",
    "migration_sql",
    "role_prefix",
    "shown",
    "whereabouts",
]

Port: TypeAlias = Literal["event_store", "read_store"]
"""What a store is to the application."""

_MIGRATIONS: Mapping[Port, Sequence[Migrations]] = {
    "event_store": (EVENT_STORE_MIGRATIONS, PROCESS_MIGRATIONS),
    "read_store": (READ_STORE_MIGRATIONS,),
}
_GRANTS: Mapping[Port, Sequence[Grants]] = {
    "event_store": (EVENT_STORE_GRANTS, PROCESS_GRANTS),
    "read_store": (READ_STORE_GRANTS,),
}
_SELECT_DURABILITY = """
SELECT current_setting('synchronous_standby_names') <> '' AND current_setting('synchronous_commit') <> 'local',
    count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')),
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
FROM pg_catalog.pg_stat_replication
"""
_SELECT_WHEREABOUTS = """
SELECT s.system_identifier, d.oid::bigint, n.oid::bigint
FROM pg_catalog.pg_control_system() AS s, pg_catalog.pg_database AS d, pg_catalog.pg_namespace AS n
WHERE d.datname = pg_catalog.current_database() AND n.nspname = $1
"""


async def migrate(url: str, port: Port) -> list[Migration]:
    """Make or upgrade the tables of a store; safe to run twice, and by several at once.

    With the events come the tables of processes.

    Returns:
        The migrations that were missing, in order; empty where none was.

    Raises:
        NewerStore: a newer Diptych migrated it; nothing was changed.
        StoreUnavailable: the server cannot be reached, or refuses; nothing was changed.
        ConfigurationError: the URL cannot be read.
    """
    where = parse_url(url)
    return [step for migrations in _MIGRATIONS[port] for step in await migrations.apply(where)]


def migration_sql(url: str, port: Port) -> str:
    """What `migrate` would do to an empty database, as one script for psql.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    where = parse_url(url)
    return "\n".join(migrations.sql(where) for migrations in _MIGRATIONS[port])


def grants_sql(url: str, port: Port, prefix: str) -> str:
    """A script for psql that lets roles do their part, and no more; the writer's has none in a read store.

    Raises:
        ConfigurationError: the URL cannot be read, or the prefix is no plain name.
    """
    where = parse_url(url)
    return "\n".join(grants.sql(where, prefix) for grants in _GRANTS[port])


def check_grantable(url: str, read_url: str) -> None:
    """Make sure that the read models are not in the schema of the events.

    Raises:
        ConfigurationError: they are, or a URL cannot be read.
    """
    check_apart(parse_url(url), parse_url(read_url))


def role_prefix(url: str) -> str:
    """What the names of a store's roles begin with, unless said otherwise.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return parse_url(url).schema


def shown(url: str) -> str:
    """The URL without its password.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return parse_url(url).shown


async def commits_survive(url: str) -> str:
    """What an acknowledged commit survives as the server is set now, in words (rule 18).

    A standby that confirms commits outlives the server's machine.

    Raises:
        StoreUnavailable: the server cannot be reached, or refuses.
        ConfigurationError: the URL cannot be read.
    """
    ((confirmed, standbys, sees_standbys),) = await _asked(parse_url(url), _SELECT_DURABILITY)
    if not confirmed:
        return "a crash, not the loss of the server's machine: set synchronous_standby_names"
    if not sees_standbys:
        return (
            "the loss of the server's machine, as it is set; whether a synchronous standby is connected this user "
            "may not see: grant it pg_read_all_stats"
        )
    if not standbys:
        return "the loss of the server's machine; but no synchronous standby is connected, so that commits wait for one"
    return "the loss of the server's machine: a synchronous standby confirms them"


async def whereabouts(url: str) -> str:
    """Where a store is, whatever its URL says: another host name, port or parameter may lead to the same place.

    Returns:
        The identifier that a server shares with its standbys alone, and the numbers of the database and the schema.

    Raises:
        StoreUnavailable: the server cannot be reached, or refuses.
        ConfigurationError: the URL cannot be read, or its schema is not there.
    """
    where = parse_url(url)
    rows = await _asked(where, _SELECT_WHEREABOUTS, where.schema)
    if not rows:
        raise ConfigurationError(f"{where.shown} has no schema {where.schema}")
    return "postgresql:" + ":".join(map(str, rows[0]))


async def _asked(where: PostgresUrl, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """Rows of one statement, on a connection of its own."""
    link = await connect(where, read_only=True)
    try:
        return await link.fetch(statement, *arguments, timeout=STATEMENT_S_MAX)
    except DRIVER_ERRORS as error:
        raise (failure(where, error) or error) from error
    finally:
        link.terminate()
