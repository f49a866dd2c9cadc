"""Upcasters: a stored event of an older version as the class of today would have been stored.

One upcaster leads from one version to the next. What it is given, and what it gives, are the fields as JSON reads them:
the classes of older versions need not be kept. One that says `into=` splits: it gives any number of parts, each the
fields of an event at a version of its own, from which it goes on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from diptych.errors import ConfigurationError, InvalidMessage
from diptych.messages.annotations import snake_case
from diptych.messages.codec import decode, encode, to_plain
from diptych.messages.event import Event
from diptych.messages.message import options_of, required_fields

__all__ = [
    "Part",
    "Split",
    "Upcast",
    "UpcastFailed",
    "UpcasterDeclaration",
    "Upcasters",
    "skeleton",
    "split_apart",
    "stored_fields",
]

Upcast: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The stored fields of one version to those of the next."""
Part: TypeAlias = tuple[type[Event], Mapping[str, Any]]
"""One of the events that a stored one has become: its class, and its fields at the version that `into=` names."""
Split: TypeAlias = Callable[[Mapping[str, Any]], Iterable[Part]]
"""The stored fields of one version to the parts that the event has become, in order; there may be none."""


class UpcastFailed(Exception):
    """An upcaster did not give the fields of the next version; with the reason, which names it."""


class UpcasterDeclaration(NamedTuple):
    """A function that was declared an upcaster."""

    event: type[Event]
    from_version: int
    function: Upcast | Split
    into: Mapping[type[Event], int] | None = None

    @property
    def name(self) -> str:
        """Where the function is, for messages."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"

    @property
    def said(self) -> tuple[Any, ...]:
        """What was said of it beside its code: for fingerprints, and in an order."""
        said = (self.event.__qualname__, self.from_version, self.name)
        return said if self.into is None else (*said, sorted((cls.__qualname__, n) for cls, n in self.into.items()))


class Upcasters:
    """The upcasters of one event class, each for the version that it leads away from.

    Raises:
        ConfigurationError: one is for a version that there never was or still is, or two are for the same.
    """

    def __init__(self, cls: type[Event], declarations: Iterable[UpcasterDeclaration] = ()) -> None:
        self._version = options_of(cls).version
        self._steps: dict[int, UpcasterDeclaration] = {}
        for declaration in declarations:
            _check(declaration, self._version)
            other = self._steps.setdefault(declaration.from_version, declaration)
            if other is not declaration:
                raise ConfigurationError(
                    f"{declaration.name} and {other.name} both upcast {cls.__name__} from version "
                    f"{declaration.from_version}: remove one"
                )

    def __iter__(self) -> Iterator[UpcasterDeclaration]:
        """From the lowest version on."""
        return iter(self._steps[version] for version in sorted(self._steps))

    def split(self, version: int) -> UpcasterDeclaration | None:
        """The first upcaster, on the way from this version to the class's, that splits; None: it stays one event."""
        return next((step for step in self if step.into is not None and step.from_version >= version), None)

    def missing(self, version: int) -> int | None:
        """The first version that nothing leads away from, on the way to the class's, or to where it splits; or None.

        A version that is not below the class's has no way: it is missing itself, unless it is the class's own.
        """
        if version > self._version:
            return version
        split = self.split(version)
        end = self._version if split is None else split.from_version + 1
        return next((step for step in range(version, end) if step not in self._steps), None)

    def upcast(self, version: int, data: bytes, until: int) -> bytes:
        """The data of an event of an older version as that of a later one, with nothing `missing` between.

        Raises:
            UpcastFailed: an upcaster raised, or what it was given, or gave, is no JSON object.
        """
        return encode(self.lead(version, stored_fields(data), until))

    def lead(self, version: int, stored: Mapping[str, Any], until: int) -> Mapping[str, Any]:
        """The fields of an older version as those of a later one; nothing between is missing, or splits.

        Raises:
            UpcastFailed: an upcaster raised, or what it gave is no JSON object.
        """
        for step in range(version, until):
            stored = _applied(self._steps[step], stored)
        return stored


def _check(declaration: UpcasterDeclaration, version: int) -> None:
    cls, wanted = declaration.event.__name__, declaration.from_version
    if not 1 <= wanted < version:
        raise ConfigurationError(
            f"{declaration.name} upcasts {cls} from version {wanted!r}, and {cls} is version {version} here: an "
            f"upcaster leads from a version below that to the next. Say class {cls}(Event, version=...), or remove it"
        )
    function = declaration.function
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{declaration.name}: an upcaster is a plain function, without `async`")
    if declaration.into is None and inspect.isgeneratorfunction(function):
        raise ConfigurationError(
            f"{declaration.name} yields the parts that {cls} is to become: say which events those are, "
            f"@....upcaster({cls}, from_version={wanted}, into={{{cls}: {wanted + 1}, ...}})"
        )


def stored_fields(data: bytes) -> Mapping[str, Any]:
    """The fields in an event's data, as JSON reads them.

    Raises:
        UpcastFailed: it is no JSON object.
    """
    try:
        return decode(data, dict[str, Any])
    except InvalidMessage as error:
        raise UpcastFailed(f"only a JSON object can be upcast: {error}") from error


def _applied(step: UpcasterDeclaration, stored: Mapping[str, Any]) -> Any:
    """What one upcaster gives, as JSON reads it, so that the next one is never given anything else."""
    try:
        found = step.function(stored)
        if not isinstance(found, Mapping):
            raise TypeError(
                f"it gave {found!r}, which is no mapping of fields; an event becomes one event, unless into= says "
                "which ones it becomes"
            )
        return to_plain(found)
    except Exception as error:
        raise _failed(step, error) from error


def split_apart(step: UpcasterDeclaration, stored: Mapping[str, Any]) -> Iterator[Part]:
    """The parts that an upcaster gives, one after the other, their fields as JSON reads them.

    Raises:
        UpcastFailed: it raised, or a part is none that it may give.
    """
    try:
        found: Any = step.function(stored)
        if not isinstance(found, Iterable) or isinstance(found, Mapping | str):
            raise TypeError(f"it gave {found!r}; say each part with its class, [({step.event.__name__}, {{...}}), ...]")
        for cls, fields in found:
            if step.into is None or cls not in step.into:
                raise TypeError(f"it gave a part of {cls!r}, which its into= does not name")
            if not isinstance(fields, Mapping):
                raise TypeError(f"as a part it gave {fields!r}, which is no mapping of fields")
            yield cls, to_plain(fields)
    except Exception as error:
        raise _failed(step, error) from error


def _failed(step: UpcasterDeclaration, error: Exception) -> UpcastFailed:
    return UpcastFailed(
        f"the upcaster {step.name} of version {step.from_version} failed: {type(error).__name__}: {error}"
    )


def skeleton(cls: type[Event], context: str, version: int, data: bytes) -> str:
    """The upcaster to be written for a version of an event class, with the fields to be filled in.

    Args:
        cls: the event class.
        context: the name of its context.
        version: that it is to lead away from.
        data: of an event of that version, or of one before it.
    """
    stored = _fields(data)
    written = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    required = [written[name] for name in cls.__struct_fields__ if name in required_fields(cls)]
    last = version + 1 >= options_of(cls).version
    missing = [f', "{name}": ...' for name in required if name not in stored] if last else []
    return (
        f"@{snake_case(context).replace('-', '_')}.upcaster({cls.__name__}, from_version={version})\n"
        f"def {snake_case(cls.__name__)}_from_{version}(stored: Mapping[str, Any]) -> Mapping[str, Any]:\n"
        f"    return {{**stored{''.join(missing)}}}  # as version {version + 1} has them"
    )


def _fields(data: bytes) -> Mapping[str, Any]:
    try:
        return decode(data, dict[str, Any])
    except InvalidMessage:  # the skeleton is a help, and the data is told of elsewhere
        return {}
