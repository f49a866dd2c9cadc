"""`diptych rebuild`: a read model built anew from the history, beside the one that answers."""

from __future__ import annotations

import logging
import time
from typing import Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    StoreOptions,
    settings_of,
)
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async

__all__ = ["rebuild"]

_log = logging.getLogger("diptych.cli")


def rebuild(
    read_model: Annotated[str, Parameter(name="READ_MODEL")],
    /,
    *app: AppNames,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Build a read model anew, and switch to it when it has caught up.

    The old rows answer until then. Stopped in the middle, it has changed nothing. If those are of other code, a server
    that still runs it loses them: it is said, and the server is to be restarted.

    Args:
        read_model: "school.Seats" or "Seats".
        app: whose.
        stores: which.
        partition: which.
        log: how.
    """
    settings = settings_of(app, stores, partition, log)
    run_async(lambda: _rebuilt(settings, read_model))


async def _rebuilt(settings: Settings, read_model: str) -> None:
    from diptych.entrypoints.cli.looking import choose, opened_partition

    async with opened_partition(settings) as partition:
        known = {found.name: found for found in (await partition.status()).projections}
        name = choose("read model", read_model, known)
        others = known[name].other_code
        if others:
            _log.warning(
                "the live rows of %s are of other code than this: a server that still runs that code has none to "
                "answer from once this has switched, and its queries of it end in NotFresh until it is restarted",
                name,
            )
        started = time.perf_counter()
        with screen.progress(f"Rebuilding {name}") as bar:
            position = await partition.rebuilds.rebuild(name, bar)
        took_s = time.perf_counter() - started
    done = f"{name} is rebuilt up to position {screen.count(position)}, in {took_s:.1f} s."
    restart = " Restart with this code what still runs the other: it has lost these rows." if others else ""
    screen.output().print(done + restart, soft_wrap=True)
