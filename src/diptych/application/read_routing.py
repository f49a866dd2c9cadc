"""Which read models are kept in which read stores: `read_stores` of an application, told for each of its partitions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from diptych.errors import ConfigurationError
from diptych.read_side.projection import Projection

__all__ = ["MEMORY", "ReadStores", "Route", "check_apart", "routes", "sent"]

ReadStores: TypeAlias = Mapping[Any, str | Sequence[str] | Mapping[Any, str | Sequence[str]]]
"""By read model, or its name: a URL, several, or one of both for each partition."""
MEMORY = "memory:"
"""The one URL that means another store wherever it stands."""


class Route(NamedTuple):
    """A read store of one partition, and what is kept there.

    Attributes:
        url: where; None: where everything is of which nothing is said.
        projections: that feed the read models there; none may be left.
        answering: the names of those whose queries it answers: of a read model in several stores the first does.
    """

    url: str | None
    projections: Sequence[Projection]
    answering: frozenset[str]


def sent(
    read_stores: ReadStores, projections: Collection[Projection], partitions: Mapping[str, Collection[str]] | None
) -> dict[str, dict[str, Sequence[str]]]:
    """The URLs of the read models that are sent somewhere, by projection, of each partition.

    Args:
        read_stores: as it was given.
        projections: of the whole application.
        partitions: by name, the projections that follow each; None where it is not divided, which is one of the empty
            name.

    Raises:
        ConfigurationError: there is no such read model or partition, or it is in none of that; or a place is named
            twice, or none.
    """
    if not isinstance(read_stores, Mapping):
        raise ConfigurationError(
            "read_stores maps read models to URLs: {Seats: URL}; read_store is the one of all others"
        )
    found: dict[str, dict[str, Sequence[str]]] = {name: {} for name in (("",) if partitions is None else partitions)}
    seen: dict[str, object] = {}
    for key, given in read_stores.items():
        name = _named(key, projections)
        if seen.setdefault(name, key) is not key:
            raise ConfigurationError(f"read_stores names {name} twice: name it once, with all its stores")
        for partition, urls in _by_partition(name, given, partitions).items():
            found[partition][name] = _urls(name, urls)
    return found


def routes(projections: Sequence[Projection], sent: Mapping[str, Sequence[str]], default: str) -> list[Route]:
    """The read stores of a partition, each once, the default one first.

    Args:
        projections: of the partition.
        sent: the URLs of those read models that are sent somewhere, by projection.
        default: the URL of where all others are.
    """
    kept: dict[str, list[Projection]] = {default: []}
    answering: dict[str, set[str]] = {}
    for projection in projections:
        urls = sent.get(projection.name, (default,))
        for url in urls:
            kept.setdefault(url, []).append(projection)
        answering.setdefault(urls[0], set()).add(projection.name)
    return [
        Route(None if url == default else url, held, frozenset(answering.get(url, ()))) for url, held in kept.items()
    ]


def check_apart(places: Mapping[str, Collection[str]]) -> None:
    """Make sure that no two partitions keep read models in one place.

    Args:
        places: URLs, by partition.

    Raises:
        ConfigurationError: two do.
    """
    kept: dict[str, str] = {}
    for partition, urls in places.items():
        for url in urls:
            other = partition if url == MEMORY else kept.setdefault(url, partition)
            if other != partition:
                raise ConfigurationError(
                    f"read_stores: the partitions {other!r} and {partition!r} cannot be kept in one place"
                )


def _named(key: object, projections: Collection[Projection]) -> str:
    found = [each.name for each in projections if key in (each.form.cls, each.name, each.form.name)]
    if len(found) == 1:
        return found[0]
    shown = key.__name__ if isinstance(key, type) else repr(key)
    if found:
        raise ConfigurationError(f"read_stores: {shown} could be {' or '.join(sorted(found))}: write which")
    known = ", ".join(sorted(each.name for each in projections)) or "none"
    raise ConfigurationError(f"read_stores: no projection of this application feeds {shown}; there are {known}")


def _by_partition(name: str, given: object, partitions: Mapping[str, Collection[str]] | None) -> Mapping[str, object]:
    if isinstance(given, Mapping):
        if partitions is None:
            raise ConfigurationError(f"read_stores of {name} are named by partition, and there are none")
        unknown = sorted(given.keys() - set(partitions))
        if unknown:
            raise ConfigurationError(f"read_stores of {name}: store names no partition {unknown[0]!r}")
        there = [partition for partition, names in partitions.items() if name in names]
        elsewhere = sorted(given.keys() - set(there))
        if elsewhere:
            raise ConfigurationError(
                f"read_stores of {name}: it is not folded in the partition {elsewhere[0]!r}, but in "
                f"{', '.join(map(repr, there))}"
            )
        return given
    if partitions is None:
        return {"": given}
    if _urls(name, given) != [MEMORY]:
        raise ConfigurationError(
            f"read_stores of {name} are given by partition, as store is: {{name: URL}}; but for {MEMORY!r}, of which "
            "each has its own"
        )
    return dict.fromkeys(partitions, given)


def _urls(name: str, given: object) -> Sequence[str]:
    urls = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    if not urls or not all(isinstance(url, str) and url for url in urls):
        raise ConfigurationError(f"read_stores of {name}: give a URL, or a list of them, the one that answers first")
    if len(set(urls)) < len(urls):
        raise ConfigurationError(f"read_stores of {name} names one place twice")
    return urls
