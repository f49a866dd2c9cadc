"""Settings: flag before environment before `diptych.toml` before default.

Flags and environment come parsed, from `options`; here the file is read and the layers are put on each other.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec

from diptych.entrypoints.cli import logs
from diptych.errors import ConfigurationError
from diptych.read_side.rebuild_policy import KEEP_S, OnChanged, RebuildPolicy

if TYPE_CHECKING:
    from diptych.application.dividing import Replicas

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_LOG_FORMAT",
    "DEFAULT_ON_CHANGED",
    "DEFAULT_POLICY",
    "DEFAULT_PORT",
    "DEFAULT_PROCESSES",
    "DEFAULT_ROLE",
    "ENVIRONMENT_PREFIX",
    "PORT_MAX",
    "PROCESSES_MAX",
    "SERVER_VARIABLE",
    "SETTINGS_FILE",
    "Places",
    "Policy",
    "Role",
    "Sent",
    "Settings",
    "by_read_model",
    "settled",
]

SETTINGS_FILE = "diptych.toml"
"""Read from the working directory, where it exists; its relative paths are relative to there as well."""
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
Role: TypeAlias = Literal["all", "api", "worker"]
"""What a server does: take commands and answer queries, keep read models and deliver to subscribers, or both."""
DEFAULT_ROLE: Role = "all"
DEFAULT_PROCESSES = 1
Policy: TypeAlias = Literal["wait", "primary"]
"""What becomes of a query that has to show more than a replica has replayed."""
DEFAULT_POLICY: Policy = "wait"
DEFAULT_ON_CHANGED: OnChanged = "build"
PROCESSES_MAX = 256
"""Servers that one command starts."""
SERVER_VARIABLE = "DIPTYCH_SERVER"
"""Set for a server that another process has started: what it hands over, see `processes`."""
DEFAULT_LOG_FORMAT: Literal["text", "json"] = "text"
PORT_MAX = 65_535
"""The greatest TCP port."""
ENVIRONMENT_PREFIX = "DIPTYCH_"
"""How the environment variables of settings begin."""

_MEMORY = "memory:"
_IN_THE_FILE = frozenset({"partition_by", "inline"})
"""Settings that go with tables, or are lists, and are in the file alone."""

_log = logging.getLogger("diptych.cli")


Sent: TypeAlias = str | list[str] | dict[str, str | list[str]]
"""Where a read model is kept: a URL, several, or one of both for each partition."""


class Places(NamedTuple):
    """Where one event store is, its read models, their replicas, and the read models that are kept elsewhere."""

    store: str | None
    read_store: str | None
    read_replicas: tuple[str, ...]
    sent: tuple[str, ...] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a command goes by.

    Attributes:
        app: bounded contexts, each as `module:context`.
        partition_by: what divides the application into partitions: "context", or an identity as `module:Identity`.
        partition: the one to look into.
        store: the event store's URL; where there are partitions, that of each by name.
        read_store: the read models' URL, likewise; beside the event store where there is none.
        read_stores: by read model, the URLs of the stores that it is kept in instead, which may be told by partition.
        read_replica: URLs of replicas of the read store, with commas between them, likewise.
        replica_policy: what becomes of a query that has to show more than a replica has replayed.
        host: the address to serve at.
        port: the port to serve at, 0 to 65,535; 0 takes a free one.
        role: what a server does.
        processes: how many servers share the address.
        jwks: where the keys are that bearer tokens are verified with.
        issuer: of those tokens.
        audience: of those tokens.
        without_authentication: whether everyone who reaches the server may do everything.
        on_changed: what becomes of read models whose rows are of other code.
        rebuild_rate: events in a second that builds are taken over, at most; without it there is no limit.
        keep: seconds for which the rows are kept that a build has replaced.
        log_format: for people or machines.
        inline: read models that every append folds in its own transaction, by name: "school.Seats".
    """

    app: tuple[str, ...] = ()
    partition_by: str | None = None
    partition: str | None = None
    store: str | dict[str, str] | None = None
    read_store: str | dict[str, str] | None = None
    read_stores: dict[str, Sent] = {}
    read_replica: str | dict[str, str] | None = None
    replica_policy: Policy = DEFAULT_POLICY
    host: str = DEFAULT_HOST
    port: Annotated[int, msgspec.Meta(ge=0, le=PORT_MAX)] = DEFAULT_PORT
    role: Role = DEFAULT_ROLE
    processes: Annotated[int, msgspec.Meta(ge=1, le=PROCESSES_MAX)] = DEFAULT_PROCESSES
    jwks: str | None = None
    issuer: str | None = None
    audience: str | None = None
    without_authentication: bool = False
    on_changed: OnChanged = DEFAULT_ON_CHANGED
    rebuild_rate: float | None = None
    keep: float = KEEP_S
    log_format: Literal["text", "json"] = DEFAULT_LOG_FORMAT
    inline: tuple[str, ...] = ()

    def looked_into(self) -> Places:
        """Where the store is that is looked into: the only one, or that of the partition named.

        Raises:
            ConfigurationError: none is named where there are partitions, or one that there is not.
        """
        if not isinstance(self.store, dict):
            if self.partition is not None:
                raise ConfigurationError("--partition: there are none; store in diptych.toml is one URL, no table")
            if isinstance(self.read_store, dict) or isinstance(self.read_replica, dict):
                raise ConfigurationError("diptych.toml names read stores by partition, and store is one URL")
            return Places(self.store, self.read_store, _urls(self.read_replica), self._sent(""))
        if self.partition not in self.store:
            what = f"there is no partition {self.partition!r}" if self.partition else "which partition? say --partition"
            raise ConfigurationError(f"{what}; there are {', '.join(self.store)}")
        name = self.partition
        replicas = _urls(_of(self.read_replica, name))
        return Places(self.store[name], _of(self.read_store, name), replicas, self._sent(name))

    def _sent(self, partition: str) -> tuple[str, ...]:
        """The URLs of where single read models are kept, in this partition, each once."""
        found: dict[str, None] = {}
        for sent in self.read_stores.values():
            urls = sent.get(partition, ()) if isinstance(sent, dict) else sent
            found.update(dict.fromkeys([urls] if isinstance(urls, str) else urls))
        return tuple(found)

    @property
    def lasting_read_stores(self) -> dict[str, Sent]:
        """The same, without what is in memory where it is kept elsewhere as well: for who looks, and does not serve."""
        return {
            name: {partition: _lasting(urls) for partition, urls in sent.items()}
            if isinstance(sent, dict)
            else _lasting(sent)
            for name, sent in self.read_stores.items()
        }

    def each(self) -> list[Settings]:
        """Settings that look into one partition, for each that there is; only these where one is named, or none is."""
        if not isinstance(self.store, dict) or self.partition is not None:
            return [self]
        return [msgspec.structs.replace(self, partition=name) for name in self.store]

    def narrowed(self) -> Settings:
        """Settings with the stores of the partition named, and of no other."""

        def only(urls: str | dict[str, str] | None) -> dict[str, str] | None:
            return (
                {name: url for name, url in urls.items() if name == self.partition} if isinstance(urls, dict) else None
            )

        return msgspec.structs.replace(
            self,
            store=only(self.store),
            read_store=only(self.read_store),
            read_stores={
                name: {part: urls for part, urls in sent.items() if part == self.partition}
                if isinstance(sent, dict)
                else sent
                for name, sent in self.read_stores.items()
            },
            read_replica=only(self.read_replica),
        )

    @property
    def rebuilding(self) -> RebuildPolicy:
        """What `on_changed`, `rebuild_rate` and `keep` say."""
        return RebuildPolicy(on_changed=self.on_changed, keep_s=self.keep, events_per_s=self.rebuild_rate)

    @property
    def read_replicas(self) -> Replicas:
        """The URLs in `read_replica`."""
        if isinstance(self.read_replica, dict):
            return {name: _urls(urls) for name, urls in self.read_replica.items()}
        return _urls(self.read_replica)


def _lasting(urls: str | list[str]) -> str | list[str]:
    return urls if isinstance(urls, str) else [url for url in urls if url != _MEMORY] or urls


def _of(urls: str | dict[str, str] | None, partition: str) -> str | None:
    return urls.get(partition) if isinstance(urls, dict) else urls


def _urls(text: str | None) -> tuple[str, ...]:
    """The URLs in a text; a comma inside of one, between hosts with or without ports, parts nothing."""
    found = re.split(r",(?=\s*postgres(?:ql)?://)", text or "")
    return tuple(url.strip() for url in found if url.strip())


def by_read_model(texts: Sequence[str]) -> dict[str, Sent]:
    """The URLs in texts like "Seats=memory:", by read model, in their order.

    Raises:
        ConfigurationError: one has another form.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, url = text.partition("=")
        if not equals or not name or not url or ":" in name:
            raise ConfigurationError("read_stores names read models and their stores: READ_MODEL=URL")
        if url.split() != [url]:
            raise ConfigurationError(f"read_stores of {name}: there is a blank in the URL; write it in {SETTINGS_FILE}")
        found.setdefault(name, []).append(url)
    return dict(found)


def settled(*, verbose: bool, **given: Any) -> Settings:
    """The settings of this command, with logging set up as they say.

    Args:
        verbose: whether to log more than problems.
        given: values from flags and environment, by name; None and () leave the choice to the file.

    Raises:
        ConfigurationError: the file is no TOML, or holds a key or a value that it cannot; with the place.
    """
    chosen = {name: value for name, value in given.items() if value is not None and value not in ((), {})}
    logs.configure(verbose=verbose, form=chosen.get("log_format", DEFAULT_LOG_FORMAT))
    layers: dict[str, Any] = {**_from_file(Path(SETTINGS_FILE)), **chosen}
    settings = Settings(**layers)
    logs.configure(verbose=verbose, form=settings.log_format)
    _warn_of_misspelt(os.environ)
    return settings


def _from_file(path: Path) -> dict[str, Any]:
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    for key in read:
        if key not in Settings.__struct_fields__:
            raise ConfigurationError(f"{path} has an unknown key {key!r}{_instead(key, Settings.__struct_fields__)}")
    if isinstance(read.get("app"), str):
        read["app"] = [read["app"]]
    try:
        checked = msgspec.convert(read, Settings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {_placed(error)}") from error
    return {key: getattr(checked, key) for key in read}


def _instead(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _placed(error: msgspec.ValidationError) -> str:
    text, _, place = str(error).partition(" - at `$.")
    return f"{text[0].lower()}{text[1:]} at {place.removesuffix('`')}" if place else text


def _warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Say which variable was probably meant; others that begin with the prefix are somebody's own."""
    known = [name.upper() for name in Settings.__struct_fields__ if name not in _IN_THE_FILE]
    for variable in environment:
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        close = difflib.get_close_matches(name, known, n=1)
        if variable.startswith(ENVIRONMENT_PREFIX) and name not in known and close:
            meant = ENVIRONMENT_PREFIX + close[0]
            _log.warning("the environment variable %s is not read; did you mean %s?", variable, meant)
