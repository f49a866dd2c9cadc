"""The schema of an event class: what its JSON may say, and which place of it gives which tag.

It is told by structure, as plain JSON: names of fields count, those of classes and modules do not, since they are not
stored. So a nested value may be renamed or moved, and two schemas are compared without the classes that they were of.

Constraints (`msgspec.Meta`) are not part of it: whether stored values keep to them, only the values can tell.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import hashlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec

from diptych.messages.annotations import unwrap
from diptych.messages.codec import encode_canonical, to_plain
from diptych.messages.identity import UNTAGGED, Identity, tag_name
from diptych.messages.message import required_fields
from diptych.messages.tags import is_struct, types_of_fields

__all__ = ["Described", "Schema", "described", "differences", "schema_fingerprint"]

Schema: TypeAlias = Any
"""Plain JSON: a word; or an object with one of `any_of`, `values`, `list`, `tuple`, `map`, `fields` and `again`."""
_WORDS = frozenset({"Decimal", "UUID", "bool", "bytes", "date", "datetime", "float", "int", "str", "time", "timedelta"})
_ANYTHING = "any"
_NULL = "null"


class Described(NamedTuple):
    """What is a stored fact of an event class.

    Attributes:
        schema: of its JSON.
        tag_fields: the places that give tags, sorted, each as "lines[].sku: sku", path and tag name.
    """

    schema: Schema
    tag_fields: tuple[str, ...]


def described(cls: type) -> Described:
    """The schema of an event class, and its places that give tags."""
    walk = _Walk()
    schema = to_plain(walk.of(cls, "", tagged=True))
    return Described(schema, tuple(sorted(walk.places)))


def schema_fingerprint(schema: Schema, tag_fields: Iterable[str]) -> str:
    """32 hexadecimal digits (BLAKE2b) that differ where schema or places of tags do."""
    return hashlib.blake2b(encode_canonical((schema, tuple(tag_fields))), digest_size=16).hexdigest()


class _Walk:
    """One way through a class.

    Attributes:
        places: those that give tags, as they are met.
    """

    def __init__(self) -> None:
        self.places: list[str] = []
        self._around: list[Any] = []

    def of(self, annotation: Any, path: str, *, tagged: bool) -> Schema:
        bare, marks = unwrap(annotation)
        tagged = tagged and UNTAGGED not in marks
        origin, arguments = typing.get_origin(bare), typing.get_args(bare)
        if isinstance(bare, type) and issubclass(bare, Identity):
            if tagged:
                self.places.append(f"{path}: {tag_name(bare)}")
            return "str"
        if origin is typing.Literal:
            return _values(arguments)
        if isinstance(bare, type) and issubclass(bare, enum.Enum):
            return _values(member.value for member in bare)
        if is_struct(bare):
            return self._struct(bare, path, tagged=tagged)
        if (arguments and not isinstance(origin, type)) or _is_union(bare):
            return _any_of([self.of(member, path, tagged=tagged) for member in arguments])
        if isinstance(origin, type) and arguments:
            return self._collection(origin, arguments, path, tagged=tagged)
        plain: Any = getattr(bare, "__supertype__", None)
        if plain is not None:  # a NewType
            return self.of(plain, path, tagged=tagged)
        return _word(bare)

    def _collection(self, origin: type, arguments: tuple[Any, ...], path: str, *, tagged: bool) -> Schema:
        if issubclass(origin, collections.abc.Mapping):
            key, value = arguments
            of_key = self.of(key, f"{path}{{key}}", tagged=tagged)
            return {"map": [of_key, self.of(value, f"{path}{{}}", tagged=tagged)]}
        if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
            return {"tuple": [self.of(part, f"{path}[{n}]", tagged=tagged) for n, part in enumerate(arguments)]}
        if issubclass(origin, collections.abc.Iterable):
            return {"list": self.of(arguments[0], f"{path}[]", tagged=tagged)}
        return _word(origin)

    def _struct(self, cls: Any, path: str, *, tagged: bool) -> Schema:
        if cls in self._around:
            return {"again": len(self._around) - self._around.index(cls)}
        self._around.append(cls)
        names, required = _names(cls), _required(cls)
        begin = f"{path}." if path else ""
        fields = {
            names[name]: self.of(held, f"{begin}{names[name]}", tagged=tagged)
            for name, held in types_of_fields(cls).items()
        }
        self._around.pop()
        found: dict[str, Any] = {"fields": fields, "required": sorted(names[name] for name in required)}
        return found | _form(cls)


def _is_union(bare: Any) -> bool:
    return typing.get_origin(bare) is typing.Union or type(bare).__name__ == "UnionType"


def _word(bare: Any) -> Schema:
    if bare is None or bare is type(None):
        return _NULL
    if bare in (Any, object) or isinstance(bare, TypeVar):
        return _ANYTHING
    if bare in (list, set, frozenset, tuple):
        return {"list": _ANYTHING}
    if bare is dict:
        return {"map": [_ANYTHING, _ANYTHING]}
    name = getattr(bare, "__name__", repr(bare))
    return name if name in _WORDS else f"type {name}"


def _values(found: Iterable[Any]) -> Schema:
    return {"values": sorted(to_plain(list(found)), key=lambda value: (type(value).__name__, str(value)))}


def _any_of(found: Iterable[Schema]) -> Schema:
    flat = {encode_canonical(part): part for each in found for part in _alternatives(each)}
    return {"any_of": [flat[key] for key in sorted(flat)]} if len(flat) > 1 else next(iter(flat.values()))


def _alternatives(schema: Schema) -> list[Schema]:
    found: list[Schema] = schema["any_of"] if isinstance(schema, dict) and "any_of" in schema else [schema]
    return found


# ── classes with fields ──────────────────────────────────────────────────────


def _names(cls: Any) -> Mapping[str, str]:
    """The names of the fields as they are stored, by those in the code."""
    origin = typing.get_origin(cls) or cls
    if issubclass(origin, msgspec.Struct):
        return dict(zip(origin.__struct_fields__, origin.__struct_encode_fields__, strict=True))
    return {name: name for name in types_of_fields(cls)}


def _required(cls: Any) -> Iterable[str]:
    """The fields without a default."""
    origin = typing.get_origin(cls) or cls
    if issubclass(origin, msgspec.Struct):
        return required_fields(origin)
    if typing.is_typeddict(origin):
        return frozenset(origin.__required_keys__)
    if dataclasses.is_dataclass(origin):
        missing = dataclasses.MISSING
        fields = dataclasses.fields(origin)
        return [field.name for field in fields if field.default is missing and field.default_factory is missing]
    return [name for name in types_of_fields(cls) if name not in origin._field_defaults]


def _form(cls: Any) -> dict[str, Any]:
    """How it is told from others, and what else it takes; where that is nothing special, nothing."""
    origin = typing.get_origin(cls) or cls
    if typing.is_typeddict(origin):
        return {"sparse": True} if origin.__optional_keys__ else {}
    if not issubclass(origin, msgspec.Struct):
        return {"array": list(types_of_fields(cls))} if issubclass(origin, tuple) else {}
    config = origin.__struct_config__
    found: dict[str, Any] = {"kind": [config.tag_field, config.tag]} if config.tag is not None else {}
    if config.array_like:
        found["array"] = list(_names(cls).values())
    if config.forbid_unknown_fields:
        found["closed"] = True
    if config.omit_defaults:
        found["sparse"] = True  # a field that has its default is not written
    return found


# ── what differs ─────────────────────────────────────────────────────────────


class _How(NamedTuple):
    """What is asked of a comparison; see `differences`."""

    loses: bool
    lacks: bool


def differences(reader: Schema, written: Schema, *, loses: bool = False, lacks: bool = True) -> list[str]:
    """Why what was written with one schema is not read with another, in words; empty where it is.

    Args:
        reader: of the code that reads.
        written: of what is stored.
        loses: whether fields that nothing reads are taken for read, as older code takes those that came after it.
        lacks: whether something else was written as well, with fewer fields: those that had a default may be lacking.
    """
    return _differing(reader, written, "", _How(loses, lacks))


def _differing(reader: Schema, written: Schema, path: str, how: _How) -> list[str]:
    if reader in (written, _ANYTHING):
        return []
    if _is(reader, "fields") and _is(written, "fields") and _form_of(reader) == _form_of(written):
        return list(_of_fields(reader, written, path, how))
    if _is(reader, "list") and _is(written, "list"):
        return _differing(reader["list"], written["list"], f"{path}[]", how)
    if _is(reader, "map") and _is(written, "map"):
        (key, value), (written_key, written_value) = reader["map"], written["map"]
        of_keys = [] if key == "str" else _differing(key, written_key, f"{path}{{key}}", how)  # as JSON has them
        return [*of_keys, *_differing(value, written_value, f"{path}{{}}", how)]
    readers = _alternatives(reader)
    if all(_is_read(readers, part, how) for found in _alternatives(written) for part in _each_value(found)):
        return []
    return [f"{path or 'it'} was {_text(written)} and is {_text(reader)}"]


def _each_value(schema: Schema) -> list[Schema]:
    """Values one by one, of which different alternatives may read each; anything else as it is."""
    if not _is(schema, "values"):
        return [schema]
    return [_NULL if value is None else {"values": [value]} for value in schema["values"]]


def _reads_null(reader: Any) -> bool:
    return None in reader["values"] if _is(reader, "values") else bool(reader == _NULL)


def _is(schema: Any, kind: str) -> bool:
    return isinstance(schema, dict) and kind in schema


def _form_of(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    return schema.get("kind"), "array" in schema


def _is_read(readers: Iterable[Schema], written: Schema, how: _How) -> bool:
    """Whether one of the alternatives reads it."""
    return any(
        reader in (written, _ANYTHING)
        or (isinstance(reader, str) and isinstance(written, str) and written in _READ_AS.get(reader, ()))
        or _reads_values(reader, written)
        or (written == _NULL and _reads_null(reader))
        or (isinstance(reader, dict) and isinstance(written, dict) and _nested_is_read(reader, written, how))
        for reader in readers
    )


_READ_AS: Mapping[str, frozenset[str]] = {
    "float": frozenset({"int"}),
    "Decimal": frozenset({"int", "float"}),
    "str": frozenset({"Decimal", "UUID", "date", "datetime", "time", "timedelta"}),
}
"""What else a word reads without a loss: as the same text, or the same number."""


def _nested_is_read(reader: Mapping[str, Any], written: Mapping[str, Any], how: _How) -> bool:
    if _is(written, "tuple"):
        parts = written["tuple"]
        readers = reader.get("tuple") or ([reader["list"]] * len(parts) if _is(reader, "list") else [])
        pairs = list(zip(readers, parts, strict=False))
        return len(readers) == len(parts) and not any(_differing(here, there, "", how) for here, there in pairs)
    if _is(written, "fields") and _is(reader, "map") and "array" not in written:
        key, value = reader["map"]
        return key in ("str", _ANYTHING) and not any(
            _differing(value, held, "", how) for held in written["fields"].values()
        )
    if _is(reader, "fields") and _form_of(reader) != _form_of(written):
        return False
    alike = any(_is(reader, kind) and _is(written, kind) for kind in ("list", "map", "fields"))
    return alike and not _differing(reader, written, "", how)


def _reads_values(reader: Schema, written: Any) -> bool:
    if not _is(written, "values"):
        return False
    values = written["values"]
    if _is(reader, "values"):
        return all(any(type(each) is type(value) and each == value for each in reader["values"]) for value in values)
    return isinstance(reader, str) and all(type(value).__name__ == reader for value in values)


def _of_fields(reader: Schema, written: Schema, path: str, how: _How) -> Iterator[str]:
    here, there = reader["fields"], written["fields"]
    begin = f"{path}." if path else ""
    gone = [] if how.loses and "closed" not in reader else [name for name in there if name not in here]
    new = [name for name in here if name not in there]
    for name in gone:
        called = [other for other in new if here[other] == there[name]]
        now = f", and {begin}{called[0]} is new: is that what it is called now?" if len(called) == 1 else ""
        yield f"the field {begin}{name} is gone{now}"
    for name in reader["required"]:
        if name not in there:
            yield f"the field {begin}{name} is new and has no default"
        elif name not in written["required"] and (how.lacks or "sparse" in written):
            yield f"the field {begin}{name} has no default any more"
    order = written.get("array", [])
    if reader.get("array", [])[: len(order)] != order:
        yield f"the fields of {path or 'it'}, which are stored without their names, are in another order"
    for name in sorted(there.keys() & here.keys()):
        yield from _differing(here[name], there[name], f"{begin}{name}", how)


def _text(schema: Schema) -> str:
    if isinstance(schema, str):
        return schema
    (kind, held), *_ = ((kind, schema[kind]) for kind in _TEXTS if kind in schema)
    return _TEXTS[kind](held)


_TEXTS: Mapping[str, typing.Callable[[Any], str]] = {
    "any_of": lambda held: " | ".join(map(_text, held)),
    "values": lambda held: " | ".join(map(repr, held)),
    "list": lambda held: f"list[{_text(held)}]",
    "tuple": lambda held: f"tuple[{', '.join(map(_text, held))}]",
    "map": lambda held: f"dict[{', '.join(map(_text, held))}]",
    "fields": lambda held: f"{{{', '.join(held)}}}",
    "again": lambda held: f"the same again, {held} around it",
}
