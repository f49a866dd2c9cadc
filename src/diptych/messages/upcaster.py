"""Upcasters: a stored event of an older version as the class of today would have been stored.

One upcaster leads from one version to the next. What it is given, and what it gives, are the fields as JSON reads them:
the classes of older versions need not be kept.
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

__all__ = ["Upcast", "UpcastFailed", "UpcasterDeclaration", "Upcasters", "skeleton"]

Upcast: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The stored fields of one version to those of the next."""


class UpcastFailed(Exception):
    """An upcaster did not give the fields of the next version; with the reason, which names it."""


class UpcasterDeclaration(NamedTuple):
    """A function that was declared an upcaster."""

    event: type[Event]
    from_version: int
    function: Upcast

    @property
    def name(self) -> str:
        """Where the function is, for messages."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


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

    def missing(self, version: int) -> int | None:
        """The first version, on the way from this one to the class's, that nothing leads away from; None: all is there.

        A version that is not below the class's has no way: it is missing itself, unless it is the class's own.
        """
        if version > self._version:
            return version
        return next((step for step in range(version, self._version) if step not in self._steps), None)

    def upcast(self, version: int, data: bytes, until: int) -> bytes:
        """The data of an event of an older version as that of a later one, with nothing `missing` between.

        Raises:
            UpcastFailed: an upcaster raised, or what it was given, or gave, is no JSON object.
        """
        try:
            stored = decode(data, dict[str, Any])
        except InvalidMessage as error:
            raise UpcastFailed(f"only a JSON object can be upcast: {error}") from error
        for step in range(version, until):
            stored = _applied(self._steps[step], stored)
        return encode(stored)


def _check(declaration: UpcasterDeclaration, version: int) -> None:
    cls, wanted = declaration.event.__name__, declaration.from_version
    if not 1 <= wanted < version:
        raise ConfigurationError(
            f"{declaration.name} upcasts {cls} from version {wanted!r}, and {cls} is version {version} here: an "
            f"upcaster leads from a version below that to the next. Say class {cls}(Event, version=...), or remove it"
        )
    if inspect.iscoroutinefunction(declaration.function):
        raise ConfigurationError(f"{declaration.name}: an upcaster is a plain function, without `async`")


def _applied(step: UpcasterDeclaration, stored: Mapping[str, Any]) -> Any:
    """What one upcaster gives, as JSON reads it, so that the next one is never given anything else."""
    try:
        found = step.function(stored)
        if not isinstance(found, Mapping):
            raise TypeError(f"it gave {found!r}, which is no mapping of fields; an event becomes one event")
        return to_plain(found)
    except Exception as error:
        raise UpcastFailed(
            f"the upcaster {step.name} of version {step.from_version} failed: {type(error).__name__}: {error}"
        ) from error


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
