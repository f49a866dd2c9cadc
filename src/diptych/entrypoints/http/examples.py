"""Examples of messages, made from their types: what a reader of the OpenAPI document can send as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from diptych.messages.annotations import kebab_case, members, unwrap
from diptych.messages.identity import Identity, tag_name

__all__ = ["example_of"]

DEPTH_MAX = 8
"""How deep an example nests; a type that goes deeper gets none."""

_SCALARS: Mapping[type[inspect.Type], object] = {
    inspect.BoolType: True,
    inspect.DecimalType: "9.90",
    inspect.DateType: "2026-01-31",
    inspect.TimeDeltaType: "PT10M",
    inspect.UUIDType: "01890a5d-ac96-774b-bcce-b302099a8057",
    inspect.BytesType: "AAEC",
    inspect.NoneType: None,
    inspect.AnyType: {},
}


class _NoExampleError(Exception):
    """Nothing can be made up for a type."""


def example_of(cls: type[msgspec.Struct]) -> dict[str, Any] | None:
    """The required fields of a message with values that it takes; None where none can be made up."""
    try:
        made = _struct(inspect.type_info(cls), 0)
        msgspec.convert(msgspec.json.decode(msgspec.json.encode(made)), cls)
    except (_NoExampleError, msgspec.ValidationError):
        return None
    return made


def _struct(info: Any, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {} if info.tag_field is None else {info.tag_field: info.tag}
    annotations = {field.name: field.type for field in msgspec.structs.fields(info.cls)}
    for field in info.fields:
        if field.required:
            name = _text_name(annotations[field.name], field.name)
            made[field.encode_name] = _value(field.type, name, depth + 1)
    return made


def _text_name(annotation: Any, field: str) -> str:
    """What an example of a text is called: an identity by its tag, anything else by its field."""
    for member in members(annotation):
        bare, _ = unwrap(member)
        if isinstance(bare, type) and issubclass(bare, Identity):
            return f"{tag_name(bare)}-1"
    return kebab_case(field).replace("_", " ")


def _value(type: inspect.Type, name: str, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise _NoExampleError
    for kind, make in _MAKERS:
        if isinstance(type, kind):
            return make(type, name, depth)
    for scalar, value in _SCALARS.items():
        if isinstance(type, scalar):
            return value
    raise _NoExampleError


def _text(type: Any, name: str, _depth: int) -> str:
    text = name[: type.max_length] if type.max_length is not None else name
    return text.ljust(type.min_length or 0, "x")


def _number(type: Any, _name: str, _depth: int) -> float:
    low = type.ge if type.ge is not None else None if type.gt is None else type.gt + 1
    high = type.le if type.le is not None else None if type.lt is None else type.lt - 1
    number = 1 if low is None else low
    if high is not None:
        number = min(number, high)
    return number if type.multiple_of is None else -(-number // type.multiple_of) * type.multiple_of


def _elements(type: Any, name: str, depth: int) -> list[Any]:
    return [_value(type.item_type, name, depth + 1) for _ in range(max(1, type.min_length or 0))]


def _mapping(type: Any, name: str, depth: int) -> dict[Any, Any]:
    return {_value(type.key_type, name, depth + 1): _value(type.value_type, name, depth + 1)}


def _moment(type: Any, _name: str, _depth: int) -> str:
    clock = "09:30:00" + ("" if type.tz is False else "Z")
    return clock if isinstance(type, inspect.TimeType) else f"2026-01-31T{clock}"


_COLLECTIONS = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)
_MAKERS: tuple[tuple[Any, Callable[[Any, str, int], Any]], ...] = (
    (inspect.Metadata, lambda type, name, depth: _value(type.type, name, depth)),
    (inspect.StrType, _text),
    (inspect.IntType | inspect.FloatType, _number),
    (inspect.DateTimeType | inspect.TimeType, _moment),
    (inspect.EnumType, lambda type, name, depth: next(iter(type.cls)).value),
    (inspect.LiteralType, lambda type, name, depth: type.values[0]),
    (inspect.UnionType, lambda type, name, depth: _value(type.types[0], name, depth)),
    (_COLLECTIONS, _elements),
    (inspect.TupleType, lambda type, name, depth: [_value(item, name, depth + 1) for item in type.item_types]),
    (inspect.DictType, _mapping),
    (inspect.StructType, lambda type, name, depth: _struct(type, depth)),
)
