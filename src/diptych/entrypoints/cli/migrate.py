"""`diptych migrate`: the tables of a server's stores, made or upgraded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import UsageError
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    LogOptions,
    PartitionOptions,
    StoreOptions,
)
from diptych.entrypoints.cli.settings import Settings, by_read_model, settled
from diptych.entrypoints.cli.signals import run_async
from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from diptych.adapters.connect import Port

__all__ = ["migrate"]

_NAMES: Mapping[Port, str] = {"event_store": "event store", "read_store": "read store"}
_BY_ITSELF = "makes its own tables when it is opened"
_NO_ROLES = "has no roles; who may open it is for its file or process to say"


def migrate(
    *,
    sql: Annotated[bool, Parameter(name="--sql", negative="", show_default=False)] = False,
    grants: Annotated[bool, Parameter(name="--grants", negative="", show_default=False)] = False,
    role_prefix: Annotated[str | None, Parameter(name="--role-prefix", show_default=False)] = None,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Make or upgrade the tables of stores on a server.

    Run it before the first start, and before each start with a newer Diptych. It may be run again, by several at once:
    each step is done once, in a transaction. Files need none: they are made and upgraded when they are opened.

    Args:
        sql: print what would be done in an empty database, and do nothing.
        grants: print what lets three roles do their part and no more (writer, reader, projector), and do nothing.
        role_prefix: what the names of these roles begin with; by default the schema of the events.
        stores: which.
        partition: which; by default all of them.
        log: how.
    """
    settings = settled(
        verbose=log.verbose,
        store=stores.store,
        read_store=stores.read_store,
        read_stores=by_read_model(stores.read_stores),
        partition=partition.partition,
        log_format=log.log_format,
    )
    if role_prefix is not None and not grants:
        raise UsageError("--role-prefix names the roles that --grants prints: give both")
    if sql:
        _print_sql(settings)
    if grants:
        _print_grants(settings, role_prefix)
    if not sql and not grants:
        run_async(lambda: _migrated(settings))


def _stores(settings: Settings) -> Iterator[tuple[str, str, list[str]]]:
    """The URLs of the event store and its read stores, of each partition; one without a name where there are none."""
    from diptych.adapters.connect import default_read_store

    for each in settings.each():
        places = each.looked_into()
        if places.store is None:
            raise ConfigurationError("which store? Say --store postgresql://user@host/database, or set DIPTYCH_STORE")
        read_store = places.read_store or default_read_store(places.store)
        others = [url for url in places.sent if url not in ("memory:", read_store)]
        yield each.partition or "", places.store, [read_store, *others]


def _each(settings: Settings) -> Iterator[tuple[str, Port, str]]:
    """The same one by one: partition, what it is, and URL."""
    for partition, store, read_stores in _stores(settings):
        yield partition, "event_store", store
        for url in read_stores:
            yield partition, "read_store", url


def _print_sql(settings: Settings) -> None:
    from diptych.adapters.connect import migration_sql

    for partition, port, url in _each(settings):
        sql = migration_sql(url, port) or f"-- {_named(partition, port)}: {_BY_ITSELF}"
        screen.write(sql.rstrip().encode())


def _print_grants(settings: Settings, prefix: str | None) -> None:
    from diptych.adapters.connect import check_grantable, default_role_prefix, grants_sql

    for partition, store, read_stores in _stores(settings):
        for read_store in read_stores:
            check_grantable(store, read_store)
        roles = prefix
        if roles is None:
            roles = next(filter(None, (default_role_prefix(store, url) for url in read_stores)), "")
        kept: list[tuple[Port, str]] = [("event_store", store), *(("read_store", url) for url in read_stores)]
        for port, url in kept:
            sql = grants_sql(url, port, roles) or f"-- {_named(partition, port)}: {_NO_ROLES}"
            screen.write(sql.rstrip().encode())


async def _migrated(settings: Settings) -> None:
    from diptych.adapters.connect import migrate

    for partition, port, url in _each(settings):
        steps = await migrate(url, port)
        done = _BY_ITSELF if steps is None else f"migrated: {', '.join(steps)}" if steps else "nothing was missing"
        screen.output().print(f"{_named(partition, port)}: {done}", soft_wrap=True)


def _named(partition: str, port: Port) -> str:
    return f"partition {partition}, {_NAMES[port]}" if partition else _NAMES[port]
