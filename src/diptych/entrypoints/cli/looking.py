"""Looking into stores that are there already: commands that do so never make a new, empty one."""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from diptych.adapters.connect import connect_event_store
from diptych.application.application import Application
from diptych.clock import SystemClock
from diptych.entrypoints.cli.contexts import load_contexts
from diptych.entrypoints.cli.settings import Settings
from diptych.errors import ConfigurationError
from diptych.event_store.event_store import EventStore

__all__ = ["choose", "hint", "opened_application", "opened_store"]


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncGenerator[EventStore]:
    """The event store alone, without the code that wrote it.

    Raises:
        ConfigurationError: none is named, or there is none.
    """
    store = connect_event_store(_existing(settings.store), SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_application(settings: Settings, *, replicas: bool = False) -> AsyncGenerator[Application]:
    """The application of the contexts named, beside whichever process projects it: this one does not.

    Args:
        settings: which, and where.
        replicas: whether to look at the replicas as well.

    Raises:
        ConfigurationError: no context or store is named, or there is none.
    """
    store = _existing(settings.store)
    contexts = load_contexts(settings.app)
    async with Application(
        *contexts,
        store=store,
        read_store=settings.read_store,
        read_replicas=settings.read_replicas if replicas else (),
        projecting=False,
    ) as application:
        yield application


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


def _existing(url: str | None) -> str:
    if url is None or url == "memory:":
        raise ConfigurationError(
            "which store? One in memory ends with its process; name a kept one with --store sqlite:<path>, "
            "DIPTYCH_STORE, or store in diptych.toml"
        )
    scheme, _, path = url.partition(":")
    if scheme == "sqlite" and path and not Path(path).exists():
        raise ConfigurationError(f"there is no store at {path}{_beside(Path(path))}; `diptych run` makes one")
    return url


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    close = difflib.get_close_matches(path.name, [found.name for found in folder.glob("*.db")], n=1)
    return f"; did you mean {folder / close[0]}?" if close else ""
