"""Finds the adapter for a URL: the only place that knows them all, and imports none before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    from diptych.clock import Clock
    from diptych.event_store.event_store import EventStore
    from diptych.read_side.read_store import ReadStore

__all__ = ["connect_event_store", "connect_read_store", "default_read_store"]

_ADAPTERS = {"memory": "diptych.adapters.memory", "sqlite": "diptych.adapters.sqlite"}


def connect_event_store(url: str, clock: Clock) -> EventStore:
    """The event store for a URL, not opened yet: `memory:` or `sqlite:shop.db` (a path, relative or absolute).

    Raises:
        ConfigurationError: the URL has no known scheme, or no path where it needs one.
    """
    return cast("EventStore", _find(url, "event_store")(url, clock))


def connect_read_store(url: str) -> ReadStore:
    """The read store for a URL, not opened yet: `memory:` or `sqlite:shop.read.db`.

    Raises:
        ConfigurationError: the URL has no known scheme, or no path where it needs one.
    """
    return cast("ReadStore", _find(url, "read_store")(url))


def default_read_store(store: str) -> str:
    """The read store's URL where none is given: beside the event store, in a file of its own."""
    scheme, _, path = store.partition(":")
    if scheme != "sqlite":
        return "memory:"
    stem = path.removesuffix(".db")
    return f"sqlite:{stem}.read.db"


def _find(url: str, port: str) -> Callable[..., Any]:
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in _ADAPTERS:
        known = ", ".join(f"{name}:" for name in _ADAPTERS)
        raise ConfigurationError(f"no store for the URL {url!r}: it must begin with one of {known}")
    return cast("Callable[..., Any]", import_module(f"{_ADAPTERS[scheme]}.{port}").connect)
