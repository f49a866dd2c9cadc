"""Dividing an application into partitions: which stores, and which of the compiled parts, each has (rule 38)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from diptych.application import registration
from diptych.application.bounded_context import BoundedContext
from diptych.application.wiring import Compiled
from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery
from diptych.event_store.position import TOKENS_MAX
from diptych.messages.identity import Identity
from diptych.messages.registry import EventTypes
from diptych.read_side.projection import Projection
from diptych.read_side.read_model import ReadModel

__all__ = ["ACROSS", "WHOLE", "PartitionBy", "Replicas", "StoreUrls", "Stores", "divided", "inline_names", "store_urls"]

PartitionBy: TypeAlias = type[Identity] | Literal["context"]
"""What tells the partition of a message: the identity that it names, or the context that it belongs to."""
Stores: TypeAlias = str | Mapping[Any, str] | None
"""A URL, or one for each partition, by the name or identity of it."""
Replicas: TypeAlias = Sequence[str] | Mapping[Any, Sequence[str]]
"""URLs, or some for each partition."""
ACROSS = "*"
"""What stands for all partitions at once, among their stores: where the rows that are folded across them are kept."""
WHOLE = ""
"""The name of the only partition of an application that is not divided."""


class StoreUrls(NamedTuple):
    """Where a partition is kept; None where nothing was said.

    Attributes:
        sent: the URLs of those read models that have stores of their own, by projection.
    """

    store: str | None
    read_store: str | None
    read_replicas: Sequence[str]
    sent: Mapping[str, Sequence[str]] = MappingProxyType({})

    @property
    def read_urls(self) -> set[str]:
        """Where read models are kept, as far as it was said."""
        said = {self.read_store} if self.read_store else set[str]()
        return said.union(*self.sent.values())


def store_urls(
    partition_by: PartitionBy | None, store: Stores, read_store: Stores, read_replicas: Replicas
) -> dict[str, StoreUrls]:
    """The URLs by partition.

    Raises:
        ConfigurationError: they are given for other partitions than there are, or twice the same.
    """
    if partition_by is None:
        if isinstance(store, Mapping) or isinstance(read_store, Mapping) or isinstance(read_replicas, Mapping):
            raise ConfigurationError(
                "stores are named by partition: say what tells the partition of a message, partition_by=TenantId or "
                'partition_by="context"'
            )
        return {WHOLE: StoreUrls(store, read_store, tuple(read_replicas))}
    if not isinstance(store, Mapping) or not store:
        raise ConfigurationError(
            "partition_by needs a store for each partition: store={name: URL}, in one database (each in a schema or "
            "file of its own) or in several"
        )
    if WHOLE in store or not store.keys() - {ACROSS}:
        raise ConfigurationError(f"store names at least one partition beside {ACROSS!r}, and none by an empty name")
    if ACROSS in store and len(store) > TOKENS_MAX:
        raise ConfigurationError(
            f"store names {len(store)} histories, and what is folded across them names each in its tokens: at most "
            f"TOKENS_MAX={TOKENS_MAX:,}"
        )
    reads = _by_partition("read_store", store, {} if read_store is None else read_store)
    replicas = _by_partition("read_replicas", store, {} if read_replicas == () else read_replicas)
    _check_distinct("store", store)
    _check_distinct("read_store", reads)
    return {name: StoreUrls(store[name], reads.get(name), tuple(replicas.get(name, ()))) for name in store}


def _by_partition(argument: str, store: Mapping[str, str], given: object) -> Mapping[str, str]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{argument} is given by partition, as store is: {{name: ...}}")
    unknown = sorted(given.keys() - store.keys())
    if unknown:
        raise ConfigurationError(f"{argument} names {unknown[0]!r}, which store does not: there are {_listed(store)}")
    return given


def _check_distinct(argument: str, urls: Mapping[str, str]) -> None:
    kept: dict[str, str] = {}
    for name, url in urls.items():
        other = name if url == "memory:" else kept.setdefault(url, name)
        if other != name:
            raise ConfigurationError(f"{argument}: the partitions {other!r} and {name!r} cannot be kept in one place")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


# ── what works on each ───────────────────────────────────────────────────────


def divided(
    compiled: Compiled, contexts: Sequence[BoundedContext], partition_by: PartitionBy | None, names: Sequence[str]
) -> dict[str, Compiled]:
    """What works on each partition of an application, by name, and on all of them at once.

    Raises:
        ConfigurationError: a decision or a fold needs events of two partitions; or the names are not those of the
            contexts.
    """
    if partition_by is None:
        return {WHOLE: compiled}
    own = [name for name in names if name != ACROSS]
    if partition_by == "context":
        parts = _by_context(compiled, contexts, own)
    else:
        one = compiled._replace(projections=[found for found in compiled.projections if not found.commutative])
        parts = {name: _of_identity(one, partition_by, name) for name in own}
    placed = {found.name for part in parts.values() for found in part.projections}
    across = [found for found in compiled.projections if found.name not in placed]
    _check_across(across, kept=ACROSS in names)
    if across:
        parts[ACROSS] = compiled._replace(projections=across, handlers={}, subscribers=[], processes=[])
    return parts


def inline_names(inline: Iterable[type[ReadModel] | str], parts: Mapping[str, Compiled]) -> frozenset[str]:
    """The projections that are to be folded with each append, by name.

    Raises:
        ConfigurationError: nothing feeds a read model; or it is folded across partitions, where nothing is appended.
    """
    known = {found.name: found for part in parts.values() for found in part.projections}
    names: set[str] = set()
    for wanted in inline:
        found = [name for name, each in known.items() if wanted in (name, each.form.cls)]
        if not found:
            given = wanted if isinstance(wanted, str) else wanted.__name__
            raise ConfigurationError(f"inline names {given}, which no projection feeds; there are {', '.join(known)}")
        names.update(found)
    across = names.intersection(found.name for found in parts[ACROSS].projections) if ACROSS in parts else ()
    if across:
        raise ConfigurationError(
            f"{min(across)} is folded across partitions, and no append is to all of them: it cannot be inline"
        )
    return frozenset(names)


def _by_context(compiled: Compiled, contexts: Sequence[BoundedContext], names: Sequence[str]) -> dict[str, Compiled]:
    if frozenset(names) != compiled.context_names:
        raise ConfigurationError(
            f"partitioned by context, there is a store for each: there are the contexts "
            f"{_listed(sorted(compiled.context_names))}, and stores for {_listed(names)}"
        )
    registration.check_decisions(contexts, compiled.types)
    return {name: _of_context(compiled, name) for name in names}


def _check_across(projections: Sequence[Projection], *, kept: bool) -> None:
    if projections and not kept:
        raise ConfigurationError(
            f"{projections[0].name} is folded across partitions: say where its rows, and the order of the events, are "
            f"kept: store={{..., {ACROSS!r}: URL}}"
        )
    if kept and not projections:
        raise ConfigurationError(
            f"store names {ACROSS!r}, for rows across partitions, and no projection that follows several of them is "
            "declared commutative=True"
        )
    for found in projections:
        if found.form.expiry is not None:
            raise ConfigurationError(
                f"{found.name} is folded across partitions, and its rows expire: the times of several histories have "
                "no order to expire by. Leave ExpiresAt to read models of one partition"
            )


def _of_identity(compiled: Compiled, identity: type[Identity], name: str) -> Compiled:
    """Everything; its events name no other identity of the kind."""
    return compiled._replace(types=EventTypes(found.only_tagged(identity, name) for found in compiled.types))


def _of_context(compiled: Compiled, name: str) -> Compiled:
    """The context's decisions, and whatever follows its events alone."""
    types = compiled.types
    return compiled._replace(
        context_names=frozenset((name,)),
        types=EventTypes(found for found in types if found.context == name),
        handlers={cls: found for cls, found in compiled.handlers.items() if found.context == name},
        projections=[
            found
            for found in compiled.projections
            if _followed(found.name, found.query, types, several=found.commutative) == [name]
        ],
        subscribers=[
            found
            for found in compiled.subscribers
            if _followed(found.name, found.query, types, several=False) == [name]
        ],
        processes=[
            found for found in compiled.processes if _followed(found.name, found.query, types, several=False) == [name]
        ],
        query_handlers={},
    )


def _followed(follower: str, query: EventQuery, types: EventTypes, *, several: bool) -> list[str]:
    """The contexts whose events are followed.

    Raises:
        ConfigurationError: there are several, and may not be.
    """
    stored = [found for found in types if any(found.name in item.types for item in query.items)]
    contexts = sorted({found.context for found in stored})
    if len(contexts) > 1 and not several:
        raise ConfigurationError(
            f"{follower} follows events of the partitions {_listed(contexts)}, which have no order among each other. "
            "Fold each into a read model of its own and ask both; or, where the rows come out the same whatever that "
            "order, declare the projection commutative=True"
        )
    return contexts
