"""The tags of an event: found from the fields that hold an `Identity`, nested ones and collections included."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from diptych.errors import ConfigurationError
from diptych.messages.annotations import members, unwrap
from diptych.messages.identity import UNTAGGED, Identity, tag_name
from diptych.messages.message import field_types

__all__ = ["TagReader", "is_struct", "tag", "tag_reader", "tagging_identity", "types_of_fields"]

Collect = Callable[[Any], Iterable[str]]
_Get = Callable[[Any], Any]


class TagReader(typing.NamedTuple):
    """Reads the tags of one event class.

    Attributes:
        read: an event to its tags, each once, in order of the fields.
        names: the tag names of its fields, sorted, one entry per place that can give a tag.
    """

    read: Callable[[Any], tuple[str, ...]]
    names: tuple[str, ...]


def tag(identity: type, value: str) -> str:
    """The tag of one identity: "course:python"."""
    return f"{tag_name(identity)}:{value}"


def tag_reader(cls: type) -> TagReader:
    """Compile the reader of an event class.

    Raises:
        ConfigurationError: a union mixes an identity with other strings, so that no value could tell which it is.
    """
    names: list[str] = []
    known: dict[Any, list[tuple[_Get, Collect]]] = {}
    collect = _of_struct(cls, names, known)
    if collect is None:
        return TagReader(lambda event: (), ())
    of_one = _of_one_identity(cls) if len(known[cls]) == 1 else None
    return TagReader(of_one or _of_any(collect), tuple(sorted(names)))


def _of_any(collect: Collect) -> Callable[[Any], tuple[str, ...]]:
    return lambda event: tuple(dict.fromkeys(collect(event)))


def _of_one_identity(cls: type) -> Callable[[Any], tuple[str, ...]] | None:
    """The reader of the most common kind of event, whose one field with tags is an identity; None for any other kind.

    One name of a tag would not do to tell: an event that holds others of its own class names it once, too.
    """
    fields = [(get, tagging_identity(annotation)) for get, annotation in _fields(cls).values()]
    found = [(get, identity) for get, identity in fields if identity is not None]
    if not found:
        return None
    ((get, identity),) = found
    prefix = f"{tag_name(identity)}:"
    return lambda event: (prefix + get(event),)


def tagging_identity(annotation: Any) -> type[Identity] | None:
    """The identity that a field of this type tags its message with; None where it holds none, or is `Untagged`."""
    bare, marks = unwrap(annotation)
    return bare if _is_identity(bare) and UNTAGGED not in marks else None


def _is_identity(bare: Any) -> bool:
    return isinstance(bare, type) and issubclass(bare, Identity)


def _of_struct(cls: Any, names: list[str], known: dict[Any, list[tuple[_Get, Collect]]]) -> Collect | None:
    if cls in known:  # a recursive type: its parts are filled in when they are needed
        parts = known[cls]
    else:
        parts = known[cls] = []
        for name, (get, annotation) in _fields(cls).items():
            collect = _of_type(annotation, names, known, f"{(typing.get_origin(cls) or cls).__name__}.{name}")
            if collect is not None:
                parts.append((get, collect))
        if not parts:
            return None

    def of_struct(value: Any) -> Iterable[str]:
        for get, collect in parts:
            yield from collect(get(value))

    return of_struct


def is_struct(cls: Any) -> bool:
    """Whether a class has fields of its own: a struct, or one of the other kinds that msgspec knows."""
    origin = typing.get_origin(cls) or cls
    if not isinstance(origin, type):
        return False
    return (
        issubclass(origin, msgspec.Struct)
        or dataclasses.is_dataclass(origin)
        or typing.is_typeddict(origin)
        or (issubclass(origin, tuple) and hasattr(origin, "_fields"))
    )


def types_of_fields(cls: Any) -> dict[str, Any]:
    """The type of each field of a class with fields, in order."""
    return {name: annotation for name, (_, annotation) in _fields(cls).items()}


def _fields(cls: Any) -> dict[str, tuple[_Get, Any]]:
    """How each field of a class with fields is got, and its type."""
    origin = typing.get_origin(cls) or cls
    if issubclass(origin, msgspec.Struct):
        return {name: (attrgetter(name), annotation) for name, annotation in field_types(cls).items()}
    hints = typing.get_type_hints(origin, include_extras=True)
    if typing.is_typeddict(origin):
        # A key may be missing: as if the field were optional.
        return {name: (_item_getter(name), annotation | None) for name, annotation in hints.items()}
    return {name: (attrgetter(name), annotation) for name, annotation in hints.items()}


def _item_getter(name: str) -> _Get:
    return lambda value: value.get(name)


def _alternatives(annotation: Any) -> Iterable[Any]:
    """The members of a union, nested ones opened, with their marks; without None."""
    bare, marks = unwrap(annotation)
    if UNTAGGED in marks or len(members(bare)) == 1:
        return () if bare is type(None) else (annotation,)
    return tuple(found for member in typing.get_args(bare) for found in _alternatives(member))


def _of_type(annotation: Any, names: list[str], known: dict[Any, Any], owner: str) -> Collect | None:
    bare, marks = unwrap(annotation)
    if UNTAGGED in marks or isinstance(bare, TypeVar):
        return None
    if len(members(bare)) > 1:
        return _of_union(list(_alternatives(bare)), names, known, owner)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if _is_identity(bare):
        names.append(tag_name(bare))
        return _of_identity(f"{tag_name(bare)}:")
    if is_struct(bare):
        return _of_struct(bare, names, known)
    if not isinstance(origin, type) or not arguments:
        return None
    if issubclass(origin, collections.abc.Mapping):
        return _of_mapping(*(_of_type(argument, names, known, owner) for argument in arguments))
    if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
        return _of_parts([_of_type(argument, names, known, owner) for argument in arguments])
    if issubclass(origin, collections.abc.Iterable):
        return _of_elements(_of_type(arguments[0], names, known, owner))
    return None


def _of_identity(prefix: str) -> Collect:
    return lambda value: (prefix + value,)


def _of_union(alternatives: list[Any], names: list[str], known: dict[Any, Any], owner: str) -> Collect | None:
    collects = [(unwrap(member)[0], _of_type(member, names, known, owner)) for member in alternatives]
    tagged = [(member, collect) for member, collect in collects if collect is not None]
    if not tagged:
        return None
    if len(alternatives) == 1:
        only = tagged[0][1]
        return lambda value: () if value is None else only(value)
    structs = {typing.get_origin(member) or member: collect for member, collect in tagged if is_struct(member)}
    if len(structs) < len(tagged):
        raise ConfigurationError(
            f"{owner}: a union of an identity with other types cannot be told apart at run time; "
            "give each its own field, or mark it Untagged[...]"
        )

    def of_union(value: Any) -> Iterable[str]:
        collect = structs.get(type(value))
        return () if collect is None else collect(value)

    return of_union


def _of_mapping(of_key: Collect | None, of_value: Collect | None) -> Collect | None:
    if of_key is None and of_value is None:
        return None

    def of_mapping(value: Any) -> Iterable[str]:
        for key, held in value.items():
            if of_key is not None:
                yield from of_key(key)
            if of_value is not None:
                yield from of_value(held)

    return of_mapping


def _of_elements(collect: Collect | None) -> Collect | None:
    if collect is None:
        return None
    return lambda value: (found for element in value for found in collect(element))


def _of_parts(collects: list[Collect | None]) -> Collect | None:
    if not any(collects):
        return None

    def of_parts(value: Any) -> Iterable[str]:
        for collect, part in zip(collects, value, strict=True):
            if collect is not None:
                yield from collect(part)

    return of_parts
