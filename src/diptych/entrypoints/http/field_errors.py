"""Every field error of a message, not only the first one, at which the decoder stops.

The idea: the decoder judges, here is only descended. What decodes is right, whatever it is. What does not is taken
apart, as its type says, and its parts are judged alike; where no part is to blame, the decoder's words about the whole
stand. So this never disagrees with the decoder, and is only run when that has refused a message.
"""

from __future__ import annotations

import collections.abc
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec

from diptych.entrypoints.http.problems import INVALID_MESSAGE, MALFORMED_JSON, Problem
from diptych.messages.annotations import members, unwrap
from diptych.messages.message import Value

__all__ = ["REFUSALS", "FieldError", "field_errors", "invalid_message", "refusal", "unknown_fields"]

FIELD_ERRORS_MAX = 1_000
"""Field errors that one problem lists."""
PARTS_MAX = 20_000
"""Parts of one message that are judged on their own; what is left over is judged as a whole."""
DEPTH_MAX = 64
"""How deep a message is taken apart."""
DECODERS_MAX = 1_024
"""Decoders of parts that are kept."""

REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoder raises for bytes that are no such message."""

_plain = msgspec.json.Decoder()
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_told_path = re.compile(r"(.*) - at `(key` in `)?\$(.*)`", re.DOTALL)
_place = re.compile(r" \(byte (\d+)\)$")
_lone_surrogate = re.compile(rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|[c-fC-F])")
_identifier = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class FieldError(NamedTuple):
    """What is wrong with one field.

    Attributes:
        path: `$.lines[0].quantity`; `$` is the message.
        message: what is wrong with it.
    """

    path: str
    message: str


def refusal(data: bytes, cls: type, others: Iterable[FieldError] = ()) -> Problem:
    """The problem with bytes that the decoder of a message has refused."""
    malformed = _malformed(data)
    if malformed is not None:
        return malformed
    return invalid_message(cls, [*others, *field_errors(data, cls)])


def invalid_message(cls: type, errors: Iterable[tuple[str, str]]) -> Problem:
    """The problem that a message has these errors."""
    listed = [{"path": path, "message": message} for path, message in errors]
    more = f"; the first {FIELD_ERRORS_MAX} are listed" if len(listed) > FIELD_ERRORS_MAX else ""
    count = "one error" if len(listed) == 1 else f"{len(listed)} errors"
    return Problem(INVALID_MESSAGE, f"{cls.__name__} has {count}{more}", errors=listed[:FIELD_ERRORS_MAX])


def field_errors(data: bytes, cls: type) -> list[FieldError]:
    """The field errors of well-formed JSON that is to be a message of this class; empty where it is one."""
    collector = _Collector()
    collector.judge(data, cls, "$", 0)
    known = {error.path for error in collector.errors}
    if b"\\u0000" in data:
        held = (FieldError(path, "Text must not contain NUL (U+0000)") for path in _nul_paths(_plain.decode(data), "$"))
        collector.errors.extend(error for error in held if error.path not in known)
    return collector.errors


def unknown_fields(sent: Any, read: Any, path: str) -> Iterator[FieldError]:
    """What was sent and is not in what was read from it: fields that a nested value does not have."""
    if isinstance(read, msgspec.Struct):
        names = dict(zip(read.__struct_encode_fields__, read.__struct_fields__, strict=True))
        for name, held in sent.items() if isinstance(sent, dict) else ():
            if name in names:
                yield from unknown_fields(held, getattr(read, names[name]), _child(path, name))
            elif name != read.__struct_config__.tag_field:
                yield FieldError(_child(path, name), unknown_field(name, names))
    elif isinstance(read, Mapping) and isinstance(sent, dict):
        for (name, held), value in zip(sent.items(), read.values(), strict=False):
            yield from unknown_fields(held, value, _child(path, name))
    elif isinstance(read, list | tuple) and isinstance(sent, list):
        for index, (held, value) in enumerate(zip(sent, read, strict=False)):
            yield from unknown_fields(held, value, f"{path}[{index}]")


# ── taking apart ─────────────────────────────────────────────────────────────


class _Collector:
    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self._parts = 0

    def judge(self, data: bytes | msgspec.Raw, annotation: Any, path: str, depth: int) -> None:
        """Add the errors of one part."""
        self._parts += 1
        try:
            _decoder(annotation).decode(data)
        except REFUSALS as error:
            before = len(self.errors)
            if depth < DEPTH_MAX:
                self._descend(bytes(data), annotation, path, depth + 1)
            if len(self.errors) == before:
                self.errors.append(_told(error, path))

    def _descend(self, data: bytes, annotation: Any, path: str, depth: int) -> None:
        bare, marks = unwrap(annotation)
        alternatives = [member for member in members(bare) if member is not type(None)]
        if len(alternatives) != 1 or alternatives[0] is not bare:
            chosen = _chosen(data, alternatives)
            if chosen is not None:
                self._descend(data, chosen, path, depth)
            return
        origin = typing.get_origin(bare) or bare
        if not isinstance(origin, type):
            return
        if issubclass(origin, msgspec.Struct):
            self._struct(data, bare, path, depth)
        elif issubclass(origin, collections.abc.Mapping):
            self._mapping(data, typing.get_args(bare), marks, path, depth)
        elif issubclass(origin, collections.abc.Collection) and not issubclass(origin, str | bytes | bytearray):
            self._elements(data, origin, typing.get_args(bare), marks, path, depth)

    def _struct(self, data: bytes, cls: Any, path: str, depth: int) -> None:
        config = (typing.get_origin(cls) or cls).__struct_config__
        held = None if config.array_like else _object(data)
        if held is None:
            return
        fields = msgspec.structs.fields(cls)
        for field in fields:
            if field.encode_name in held:
                self._part(held[field.encode_name], field.type, _child(path, field.encode_name), depth)
            elif field.required:
                self.errors.append(FieldError(_child(path, field.encode_name), "This field is required"))
        if config.forbid_unknown_fields or issubclass(typing.get_origin(cls) or cls, Value):
            known = [field.encode_name for field in fields]
            self._unknown([name for name in held if name not in known and name != config.tag_field], known, path)

    def _unknown(self, names: Iterable[str], known: list[str], path: str) -> None:
        for name in names:
            if len(self.errors) > FIELD_ERRORS_MAX:
                return
            self.errors.append(FieldError(_child(path, name), unknown_field(name, known)))

    def _mapping(self, data: bytes, types: tuple[Any, ...], marks: tuple[Any, ...], path: str, depth: int) -> None:
        held = _object(data)
        if held is None or len(types) != 2:
            return
        self._whole(data, dict[types[0], msgspec.Raw], marks, path)  # type: ignore[valid-type]
        for name, value in held.items():
            self._part(value, types[1], _child(path, name), depth)

    def _elements(
        self, data: bytes, origin: type, types: tuple[Any, ...], marks: tuple[Any, ...], path: str, depth: int
    ) -> None:
        if not types or not data.startswith(b"["):
            return
        self._whole(data, list[msgspec.Raw], marks, path)
        elements = _decoder(list[msgspec.Raw]).decode(data)
        is_fixed = issubclass(origin, tuple) and types[-1] is not Ellipsis
        if is_fixed and len(elements) != len(types):
            return
        for index, element in enumerate(elements):
            self._part(element, types[index] if is_fixed else types[0], f"{path}[{index}]", depth)

    def _part(self, data: msgspec.Raw, annotation: Any, path: str, depth: int) -> None:
        if self._parts < PARTS_MAX and len(self.errors) <= FIELD_ERRORS_MAX:
            self.judge(data, annotation, path, depth)

    def _whole(self, data: bytes, form: Any, marks: tuple[Any, ...], path: str) -> None:
        """Judge the length of a collection, and the keys of a mapping, whatever it holds."""
        metas = tuple(mark for mark in marks if isinstance(mark, msgspec.Meta))
        try:
            _decoder(Annotated[(form, *metas)] if metas else form).decode(data)
        except REFUSALS as error:
            self.errors.append(_told(error, path))


def _chosen(data: bytes, alternatives: list[Any]) -> Any:
    """The member of a union that these bytes are meant to be, where that can be told."""
    if data.startswith(b"{"):
        objects = [member for member in alternatives if _is_a(member, msgspec.Struct, collections.abc.Mapping)]
        return objects[0] if len(objects) == 1 else _tagged(data, objects)
    if data.startswith(b"["):
        arrays = [member for member in alternatives if _is_a(member, collections.abc.Collection)]
        arrays = [member for member in arrays if not _is_a(member, str, bytes, bytearray, collections.abc.Mapping)]
        return arrays[0] if len(arrays) == 1 else None
    return None


def _tagged(data: bytes, structs: list[Any]) -> Any:
    held = _object(data) or {}
    for struct in structs:
        config = getattr(typing.get_origin(struct) or struct, "__struct_config__", None)
        if config is not None and config.tag_field in held and _plain.decode(held[config.tag_field]) == config.tag:
            return struct
    return None


def _is_a(annotation: Any, *kinds: type) -> bool:
    bare, _ = unwrap(annotation)
    origin = typing.get_origin(bare) or bare
    return isinstance(origin, type) and issubclass(origin, kinds)


def _object(data: bytes) -> Mapping[str, msgspec.Raw] | None:
    try:
        return _raw_object.decode(data)
    except REFUSALS:
        return None


@lru_cache(maxsize=DECODERS_MAX)
def _decoder(annotation: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(annotation)


# ── words ────────────────────────────────────────────────────────────────────


def unknown_field(name: str, known: Iterable[str]) -> str:
    """What is said of a field that a message does not have."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"There is no such field; did you mean {close[0]}?" if close else "There is no such field"


def _told(error: Exception, path: str) -> FieldError:
    if isinstance(error, RecursionError):
        return FieldError(path, "This is nested too deeply")
    told = _told_path.fullmatch(str(error))
    if told is None:
        return FieldError(path, str(error))
    text, key, inner = told.groups()
    return FieldError(path + inner, f"{text}, as a key" if key else text)


def _child(path: str, name: str) -> str:
    return f"{path}.{name}" if _identifier.fullmatch(name) else f"{path}[{msgspec.json.encode(name).decode()}]"


def _nul_paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and "\0" in value:
        yield path
    elif isinstance(value, dict):
        for name, held in value.items():
            yield from _nul_paths(name, _child(path, name))
            yield from _nul_paths(held, _child(path, name))
    elif isinstance(value, list):
        for index, held in enumerate(value):
            yield from _nul_paths(held, f"{path}[{index}]")


def _malformed(data: bytes) -> Problem | None:
    """The problem with bytes that are no JSON; None where they are."""
    try:
        data.decode()
        _plain.decode(data)
    except UnicodeDecodeError as error:
        return _at(data, error.start, "This is no UTF-8")
    except RecursionError:
        return Problem(MALFORMED_JSON, "The body is nested too deeply", line=1, column=1)
    except msgspec.ValidationError:  # a number that no float holds: well-formed, and for its field to refuse
        return None
    except msgspec.DecodeError as error:
        surrogate = _lone_surrogate.search(data)
        if surrogate is not None and "byte" not in str(error):
            return _at(data, surrogate.start(), "A lone surrogate is no text")
        place = _place.search(str(error))
        position = len(data) if place is None else int(place.group(1))
        return _at(data, position, _place.sub("", str(error)).removeprefix("JSON is malformed: "))
    return None


def _at(data: bytes, position: int, reason: str) -> Problem:
    line_start = data.rfind(b"\n", 0, position) + 1
    line = data.count(b"\n", 0, position) + 1
    column = len(data[line_start:position].decode(errors="replace")) + 1
    return Problem(MALFORMED_JSON, f"{reason} (line {line}, column {column})", line=line, column=column)
