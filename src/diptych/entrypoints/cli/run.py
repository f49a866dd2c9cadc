"""`diptych run`: bounded contexts, served over HTTP."""

from __future__ import annotations

import logging
import os

from diptych.entrypoints.cli.options import (
    ADDRESS_UNSET,
    CALLERS_UNSET,
    CHANGED_UNSET,
    LOGS_UNSET,
    REPLICAS_UNSET,
    STORES_UNSET,
    AppNames,
    CallerOptions,
    ChangedOptions,
    LogOptions,
    ReplicaOptions,
    ServeOptions,
    StoreOptions,
)
from diptych.entrypoints.cli.processes import as_child, keep_alive
from diptych.entrypoints.cli.settings import DEFAULT_ROLE, Settings, by_read_model, settled
from diptych.entrypoints.cli.signals import Terminated, run_async
from diptych.errors import ConfigurationError

__all__ = ["run"]

_log = logging.getLogger("diptych.cli")


def run(
    *app: AppNames,
    stores: StoreOptions = STORES_UNSET,
    replicas: ReplicaOptions = REPLICAS_UNSET,
    http: ServeOptions = ADDRESS_UNSET,
    callers: CallerOptions = CALLERS_UNSET,
    changed: ChangedOptions = CHANGED_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Serve bounded contexts over HTTP, and keep their read models; or one of both, several processes sharing the work.

    POST /commands/NAME takes commands, GET /queries/NAME answers queries, /openapi.json tells their form.
    Without a store, events are kept in memory, and gone at the end.
    Without --jwks it knows nobody, and is for this machine alone.
    SIGTERM and Ctrl-C let the requests under way end first.

    Args:
        app: what to serve.
        stores: which.
        replicas: which.
        http: where.
        callers: for whom.
        changed: what becomes of read models whose code has changed.
        log: how.
    """
    settings = settled(
        verbose=log.verbose,
        app=app,
        store=stores.store,
        read_store=stores.read_store,
        read_stores=by_read_model(stores.read_stores),
        read_replica=replicas.read_replica,
        replica_policy=replicas.replica_policy,
        host=http.host,
        port=http.port,
        role=http.role,
        processes=http.processes,
        without_authentication=http.without_authentication,
        jwks=callers.jwks,
        issuer=callers.issuer,
        audience=callers.audience,
        on_changed=changed.on_changed,
        rebuild_rate=changed.rebuild_rate,
        keep=changed.keep,
        log_format=log.log_format,
    )
    try:
        run_async(lambda: _served(settings) if settings.processes == 1 else _shared(settings, verbose=log.verbose))
    except Terminated:
        return  # the way in which servers are meant to end


async def _served(settings: Settings) -> None:
    from diptych.application.application import Application
    from diptych.entrypoints.cli.contexts import load_contexts, load_partition_by
    from diptych.entrypoints.cli.http_server import authenticator, serve

    if settings.role != DEFAULT_ROLE:
        _check_is_shared(settings, f"--role {settings.role}")
    child = as_child()
    contexts = load_contexts(settings.app)
    projecting, messages = settings.role != "api", settings.role != "worker"
    asking = await authenticator(settings) if messages else None
    async with Application(
        *contexts,
        store=settings.store,
        read_store=settings.read_store,
        read_stores=settings.read_stores,
        inline=settings.inline,
        read_replicas=settings.read_replicas if messages else (),  # a worker answers no queries
        partition_by=load_partition_by(settings.partition_by),
        replica_policy=settings.replica_policy,
        projecting=projecting,
        rebuilding=settings.rebuilding,
    ) as application:
        await serve(
            application,
            host=settings.host,
            port=settings.port,
            listening=child and child.listening,
            messages=messages,
            asking=asking,
            on_ready=child and child.tell_ready,
        )


async def _shared(settings: Settings, *, verbose: bool) -> None:
    from diptych.entrypoints.cli.http_server import listen

    _check_is_shared(settings, f"--processes {settings.processes}")
    if os.name == "nt":
        raise ConfigurationError("--processes is not for Windows: start several servers at addresses of their own")
    listening, url = listen(settings)

    def ready() -> None:
        _log.info("serving at %s with %d processes; Ctrl-C stops them", url, settings.processes, extra={"url": url})

    with listening:
        await keep_alive(settings, listening, ready, verbose=verbose)


def _check_is_shared(settings: Settings, option: str) -> None:
    stores = settings.store.values() if isinstance(settings.store, dict) else [settings.store]
    if any(store is None or store.startswith("memory:") for store in stores):
        raise ConfigurationError(f"{option} shares its stores with other processes: say which with --store")
