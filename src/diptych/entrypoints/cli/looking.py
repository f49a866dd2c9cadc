"""Looking into stores that are there already: commands that do so never make a new, empty one unless told to."""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from diptych.adapters.connect import connect_event_store
from diptych.application.application import Application
from diptych.application.dividing import ACROSS
from diptych.application.follower import Follower
from diptych.application.partition import Partition
from diptych.clock import SystemClock
from diptych.entrypoints.cli.contexts import load_contexts, load_partition_by
from diptych.entrypoints.cli.settings import Settings
from diptych.errors import ConfigurationError
from diptych.event_store.event_store import EventStore

__all__ = ["choose", "hint", "opened_history", "opened_partition", "opened_store"]


@asynccontextmanager
async def opened_store(settings: Settings, *, or_new: bool = False) -> AsyncGenerator[EventStore]:
    """The event store alone, without the code that wrote it.

    Args:
        settings: where.
        or_new: whether to make it where it is a file that is not there.

    Raises:
        ConfigurationError: none is named, or there is none.
    """
    store = connect_event_store(_kept(settings.looked_into().store, or_new=or_new), SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_partition(settings: Settings, *, replicas: bool = False) -> AsyncGenerator[Follower]:
    """What the contexts named have in a store, beside whichever process projects it: this one does not.

    Args:
        settings: which, and where.
        replicas: whether to look at the replicas as well.

    Raises:
        ConfigurationError: no context, store or partition is named, or there is none.
    """
    _kept(settings.looked_into().store)
    contexts = load_contexts(settings.app)
    divided = load_partition_by(settings.partition_by)
    name = settings.partition or ""
    if isinstance(settings.store, dict) and isinstance(divided, type) and ACROSS not in settings.store:
        settings = settings.narrowed()  # one such knows nothing of the others
    async with Application(
        *contexts,
        store=settings.store,
        read_store=settings.read_store,
        read_stores=settings.lasting_read_stores,
        inline=settings.inline,
        read_replicas=settings.read_replicas if replicas else (),
        partition_by=divided,
        projecting=False,
        rebuilding=msgspec.structs.replace(settings.rebuilding, on_changed="build"),  # it is opened to look, and to act
    ) as application:
        yield application.across if name == ACROSS else application.partition(name)


@asynccontextmanager
async def opened_history(settings: Settings) -> AsyncGenerator[Partition]:
    """The same, of one history: what is decided on it, and not only followed.

    Raises:
        ConfigurationError: see `opened_partition`; or what follows several partitions is named.
    """
    async with opened_partition(settings) as partition:
        if not isinstance(partition, Partition):
            raise ConfigurationError("what is across partitions has no history of its own: name one with --partition")
        yield partition


def choose(what: str, wanted: str, known: Iterable[str]) -> str:
    """The one of the names, qualified or not ("school.Seats", "Seats"), that is meant.

    Raises:
        ConfigurationError: there is none, or several; with the names.
    """
    names = sorted(known)
    found = [name for name in names if wanted in (name, name.rpartition(".")[2])]
    if wanted in found or len(found) == 1:
        return wanted if wanted in found else found[0]
    if found:
        raise ConfigurationError(f"{wanted} could be {' or '.join(found)}: write which")
    raise ConfigurationError(f"no {what} is named {wanted!r}; {hint(wanted, names)}")


def hint(wanted: str, known: Iterable[str]) -> str:
    """What could have been meant: the names, qualified or not, that are close; without any, all that there are."""
    names = sorted(known)
    close = [name for name in names if difflib.get_close_matches(wanted, [name, name.rpartition(".")[2]])]
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names) or 'none'}"


def _kept(url: str | None, *, or_new: bool = False) -> str:
    if url is None or url.startswith("memory:"):
        raise ConfigurationError(
            "which store? One in memory ends with its process; name a kept one with --store sqlite:<path>, "
            "DIPTYCH_STORE, or store in diptych.toml"
        )
    scheme, _, path = url.partition(":")
    if not or_new and scheme == "sqlite" and path and not Path(path).exists():
        raise ConfigurationError(f"there is no store at {path}{_beside(Path(path))}; `diptych run` makes one")
    return url


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    close = difflib.get_close_matches(path.name, [found.name for found in folder.glob("*.db")], n=1)
    return f"; did you mean {folder / close[0]}?" if close else ""
