"""Which stored events may have parts of which types: what upcasters with `into=` say, checked, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from diptych.errors import ConfigurationError
from diptych.messages.event import Event
from diptych.messages.upcaster import UpcasterDeclaration, Upcasters

__all__ = ["Splits"]


class _Named(Protocol):
    """What is asked here of an `EventType`."""

    name: str
    formerly: tuple[str, ...]
    version: int
    upcasters: Upcasters


T = TypeVar("T", bound=_Named)


class Splits(Generic[T]):
    """What the upcasters of an application split, and into what.

    Attributes:
        names: with which events may be stored that are several now, or none.

    Raises:
        ConfigurationError: a part is of no event of the application, or of a version that its class does not read, or
            becomes, in the end, what it was split from.
    """

    def __init__(self, types: Iterable[T], of: Callable[[type[Event]], T]) -> None:
        self._of = of
        splitting = [found for found in types if any(step.into is not None for step in found.upcasters)]
        self.names = frozenset(name for found in splitting for name in (found.name, *found.formerly))
        self._sources: dict[str, frozenset[str]] = {}
        for found in splitting:
            for step in found.upcasters:
                self._check(step)
        for found in splitting:
            for step in found.upcasters:
                for part in self._reached(found, step.from_version, ()):
                    if part is not found:
                        known = self._sources.get(part.name, frozenset())
                        self._sources[part.name] = known | {found.name, *found.formerly}

    def sources(self, name: str) -> frozenset[str]:
        """With which names events of other types may be stored that have parts of the type with this name of now."""
        return self._sources.get(name, frozenset())

    def reached(self, found: T, version: int) -> list[T]:
        """The types of which an event of a type and version may have parts, by name; itself where it does not split."""
        return sorted(set(self._reached(found, version, ())), key=lambda part: part.name)

    def _reached(self, found: T, version: int, way: tuple[UpcasterDeclaration, ...]) -> Iterator[T]:
        split = found.upcasters.split(version)
        if split is None:
            yield found
        elif split in way:
            names = " → ".join(f"{step.event.__name__} (version {step.from_version})" for step in (*way, split))
            raise ConfigurationError(
                f"what {split.name} makes of {split.event.__name__} becomes that again: {names}. Raise the version of "
                "one of them, so that each upcaster leads on"
            )
        else:
            for cls, part_version in (split.into or {}).items():
                yield from self._reached(self._of(cls), part_version, (*way, split))

    def _check(self, step: UpcasterDeclaration) -> None:
        for cls, version in (step.into or {}).items():
            part = self._of(cls)
            if not 1 <= version <= part.version:
                raise ConfigurationError(
                    f"{step.name} makes {cls.__name__} of version {version!r} of {step.event.__name__}, and "
                    f"{cls.__name__} is version {part.version} here: in into=, name the version that the fields are of"
                )
            missing = part.upcasters.missing(version)
            if missing is not None:
                raise ConfigurationError(
                    f"{step.name} makes {cls.__name__} of version {version} of {step.event.__name__}, and nothing "
                    f"upcasts {cls.__name__} from version {missing} to {missing + 1}: write an upcaster, or give the "
                    f"fields of version {part.version}"
                )
