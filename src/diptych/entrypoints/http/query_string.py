"""Query strings as messages: each name a field, repeated names a list, text read as the field's type says, strictly.

A query string becomes the JSON object that says the same, and goes the way of every body from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote_plus

import msgspec
from msgspec import inspect

from diptych.entrypoints.http.field_errors import FieldError
from diptych.entrypoints.http.problems import MALFORMED_QUERY_STRING, Problem
from diptych.messages.codec import encode

__all__ = ["FIELDS", "Parameter", "as_json", "parameters", "with_cursor", "without_fields"]

QUERY_FIELDS_MAX = 1_000
"""Fields of one query string."""

FIELDS = "fields"
"""The name that chooses fields of an answer, where a query has no field of that name."""
_CURSOR = "cursor"
_QUERY = "%!$&'()*+,;=:@/?"

_TEXTS = (
    inspect.StrType, inspect.DecimalType, inspect.DateTimeType, inspect.DateType, inspect.TimeType,
    inspect.TimeDeltaType, inspect.UUIDType, inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType,
)  # fmt: skip
_LISTS = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)
_INTEGER = r"-?(?:0|[1-9]\d*)"
_NUMBER = _INTEGER + r"(?:\.\d+)?(?:[eE][+-]?\d+)?"
_BOOLEAN = "true|false"


class Parameter(NamedTuple):
    """One field of a query, as a query string gives it.

    Attributes:
        literal: what is JSON as it stands (a number, true, false); all other text is a JSON string.
        is_list: whether its name may be repeated; never, it is the empty list.
        required: whether it has to be there.
        fills: whether a list that is not there has to be said to be empty.
    """

    literal: re.Pattern[str]
    is_list: bool
    required: bool
    fills: bool


def parameters(cls: type[msgspec.Struct]) -> Mapping[str, Parameter] | None:
    """The fields of a query, by name; None where one is neither scalar nor list of scalars: it then needs a body."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    found: dict[str, Parameter] = {}
    for field in info.fields:
        bare = _bare(field.type)
        is_list = isinstance(bare, _LISTS)
        literals = _literals(bare.item_type if isinstance(bare, _LISTS) else bare)
        if literals is None:
            return None
        required = field.required and not (isinstance(bare, _LISTS) and not bare.min_length)
        found[field.encode_name] = Parameter(
            re.compile("|".join(literals) or "(?!)", re.ASCII), is_list, required, is_list and field.required
        )
    return found


def as_json(query_string: bytes, known: Mapping[str, Parameter]) -> tuple[bytes, list[FieldError]]:
    """The JSON object that a query string stands for, and what is wrong with its names.

    Raises:
        Problem: it is no text, or has too many fields.
    """
    if not query_string:
        pairs = []
    else:
        try:
            text = query_string.decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
        except UnicodeDecodeError as error:
            raise Problem(MALFORMED_QUERY_STRING, "It is no percent-encoded UTF-8") from error
        except ValueError as error:
            limit = f"It has more than QUERY_FIELDS_MAX={QUERY_FIELDS_MAX} fields"
            raise Problem(MALFORMED_QUERY_STRING, limit) from error
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    errors: list[FieldError] = []
    members: list[bytes] = []
    for name, values in given.items():
        parameter = known.get(name)
        if parameter is None:  # the decoder says that it is unknown
            members.append(encode(name) + b":null")
        elif parameter.is_list:
            members.append(encode(name) + b":[" + b",".join(_value(parameter, value) for value in values) + b"]")
        else:
            if len(values) > 1:
                errors.append(FieldError(f"$.{name}", f"This is one value, and was given {len(values)} times"))
            members.append(encode(name) + b":" + _value(parameter, values[0]))
    members.extend(encode(name) + b":[]" for name, parameter in known.items() if parameter.fills and name not in given)
    return b"{" + b",".join(members) + b"}", errors


def without_fields(query_string: bytes) -> tuple[bytes, list[str] | None]:
    """A query string without `fields=a,b`, and the names in that; None where it is not there."""
    if FIELDS.encode() not in query_string:
        return query_string, None
    kept, chosen = _apart(query_string, FIELDS)
    names = [name for value in chosen for name in value.split(",")]
    return kept, names if chosen else None


def with_cursor(query_string: bytes, cursor: str) -> str:
    """A query string that asks the same, from a cursor on; what may not be in one (RFC 3986) is percent-encoded."""
    kept, _ = _apart(query_string, _CURSOR)
    return "&".join(filter(None, (quote(kept, safe=_QUERY), f"{_CURSOR}={quote(cursor, safe='')}")))


def _apart(query_string: bytes, name: str) -> tuple[bytes, list[str]]:
    """A query string without a name, and the values that this had, in order."""
    kept: list[bytes] = []
    values: list[str] = []
    for part in query_string.split(b"&"):
        left, _, right = part.partition(b"=")
        if unquote_plus(left.decode("latin-1")) == name:
            values.append(unquote_plus(right.decode("latin-1")))
        else:
            kept.append(part)
    return b"&".join(kept), values


def _value(parameter: Parameter, text: str) -> bytes:
    return text.encode() if parameter.literal.fullmatch(text) else encode(text)


def _bare(type: inspect.Type) -> inspect.Type:
    """A type without its marks, and without None, which a query string says by silence."""
    while True:
        if isinstance(type, inspect.Metadata):
            type = type.type
        elif isinstance(type, inspect.UnionType) and len(held := _not_none(type)) == 1:
            (type,) = held
        else:
            return type


def _not_none(union: inspect.UnionType) -> list[inspect.Type]:
    return [member for member in union.types if not isinstance(member, inspect.NoneType)]


def _literals(type: inspect.Type) -> list[str] | None:
    """The patterns of the JSON literals that a scalar may be; None where it is no scalar."""
    bare = _bare(type)
    if isinstance(bare, inspect.UnionType):
        parts = [_literals(member) for member in _not_none(bare)]
        return None if None in parts else [pattern for part in parts if part is not None for pattern in part]
    if isinstance(bare, inspect.BoolType):
        return [_BOOLEAN]
    if isinstance(bare, inspect.IntType):
        return [_INTEGER]
    if isinstance(bare, inspect.FloatType):
        return [_NUMBER]
    if isinstance(bare, inspect.EnumType | inspect.LiteralType):
        return [_INTEGER] if any(isinstance(value, int) for value in _values(bare)) else []
    return [] if isinstance(bare, _TEXTS) else None


def _values(type: inspect.EnumType | inspect.LiteralType) -> list[Any]:
    if isinstance(type, inspect.LiteralType):
        return list(type.values)
    return [member.value for member in type.cls]
