"""`diptych rebuild`: a read model built anew from the history, beside the one that answers."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.options import LOGS_UNSET, STORES_UNSET, AppNames, LogOptions, StoreOptions
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async

__all__ = ["rebuild"]


def rebuild(
    read_model: Annotated[str, Parameter(name="READ_MODEL")],
    /,
    *app: AppNames,
    stores: StoreOptions = STORES_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Build a read model anew, and switch to it when it has caught up.

    The old rows answer until then. Stopped in the middle, it has changed nothing.

    Args:
        read_model: "school.Seats" or "Seats".
        app: whose.
        stores: which.
        log: how.
    """
    settings = settled(
        verbose=log.verbose, app=app, store=stores.store, read_store=stores.read_store, log_format=log.log_format
    )
    run_async(lambda: _rebuilt(settings, read_model))


async def _rebuilt(settings: Settings, read_model: str) -> None:
    from diptych.entrypoints.cli.looking import choose, opened_application

    async with opened_application(settings) as application:
        name = choose("read model", read_model, [found.name for found in (await application.status()).projections])
        started = time.perf_counter()
        with screen.progress(f"Rebuilding {name}") as bar:
            position = await application.rebuilds.rebuild(name, bar)
        took_s = time.perf_counter() - started
    screen.output().print(f"{name} is rebuilt up to position {screen.count(position)}, in {took_s:.1f} s.")
