"""Messages as bytes and back: JSON, by msgspec, in this module only.

Whatever is about to be stored is decoded again first. So a wrong type, a naive datetime or a lone surrogate is
refused before it is a fact, and a decision is folded from exactly what a later reader will see.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from diptych.errors import ConfigurationError, InvalidMessage
from diptych.messages.message import held_types

__all__ = ["Codec", "decode", "encode", "encode_canonical", "to_plain"]

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_sorted_encoder = msgspec.json.Encoder(order="sorted")
_plain_decoder = msgspec.json.Decoder()

HASH_SCHEME = b"1:"
"""The version of the payload hash: part of what is hashed, so that another scheme cannot be mistaken for it."""

_MAY_HOLD_FLOATS = frozenset[Any]({float, Any, object, dict, list, tuple})
_MAY_HOLD_DECIMALS = frozenset[Any]({Decimal, Any, object, dict, list, tuple})
_NO_DECIMAL = re.compile(rb'"-?(?:s?NaN[0-9]*|Infinity)"', re.IGNORECASE)
_Defaults = tuple[tuple[str, Any], ...]

encode: Callable[[Any], bytes] = _encoder.encode
"""A value as JSON bytes."""

encode_canonical: Callable[[Any], bytes] = _sorted_encoder.encode
"""A value as JSON bytes with sorted keys: equal values give equal bytes."""


def decode(data: bytes, type: type[T]) -> T:
    """A value of `type` from JSON bytes.

    Raises:
        InvalidMessage: it is not one.
    """
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessage(getattr(type, "__name__", str(type)), [_problem(error)]) from error


def _decoder(cls: type[T]) -> msgspec.json.Decoder[T]:
    try:
        return msgspec.json.Decoder(cls)
    except TypeError as error:
        remedy = "; a Meta stands with the type that it constrains, as in Annotated[str, Meta(max_length=9)] | None"
        raise ConfigurationError(
            f"{cls.__qualname__}: {error}{remedy if 'Can only set' in str(error) else ''}"
        ) from error


def to_plain(value: Any) -> Any:
    """A value as JSON reads it back: dicts, lists, strings, numbers; a Decimal or datetime is a string."""
    return _plain_decoder.decode(_encoder.encode(value))


class Codec:
    """Encodes and decodes one message class, and checks what it encodes."""

    def __init__(self, cls: type[Any]) -> None:
        """Compile it.

        Raises:
            ConfigurationError: a field's type is none that messages can have, or a constraint is on another type than
                it is for.
        """
        held = held_types(cls)  # before msgspec looks at the annotations
        structs = [found for found in held if isinstance(found, type) and issubclass(found, msgspec.Struct)]
        self.cls = cls
        self.decode_unchecked: Callable[[bytes], Any] = _decoder(cls).decode
        self._holds_floats = not held.isdisjoint(_MAY_HOLD_FLOATS)
        self._holds_decimals = not held.isdisjoint(_MAY_HOLD_DECIMALS)
        self._defaults = _defaults(cls)
        self._leaves_out = _any_default(self._defaults) or not _encodes_its_fields_only(cls)
        self._defaults_within = {struct: found for struct in structs if _any_default(found := _defaults(struct))}

    def decode(self, data: bytes) -> Any:
        """The message in `data`.

        Raises:
            InvalidMessage: with the first problem and its path.
        """
        try:
            return self.decode_unchecked(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMessage(self.cls.__name__, [_problem(error)]) from error

    def settle(self, message: Any) -> tuple[bytes, Any]:
        """The message's bytes, and the message as those bytes read back.

        Raises:
            InvalidMessage: a field has the wrong type, a datetime is naive, a text holds NUL or a lone surrogate, a
                float or decimal is not finite.
        """
        try:
            data = _encoder.encode(message)
            if b"\\u0000" in data and _holds_nul(_plain_decoder.decode(data)):
                raise InvalidMessage(self.cls.__name__, [("$", "text must not contain NUL (U+0000)")])
            if self._holds_floats and b"null" in data and _holds_no_number(msgspec.to_builtins(message)):
                raise InvalidMessage(self.cls.__name__, [("$", "a number must be finite: JSON has no NaN or infinity")])
            if self._holds_decimals and _NO_DECIMAL.search(data) and (path := _infinite_decimal(message, "$")):
                raise InvalidMessage(self.cls.__name__, [(path, "a decimal must be finite, not NaN or infinity")])
            return data, self.decode_unchecked(data)
        except (msgspec.MsgspecError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidMessage(self.cls.__name__, [_problem(error)]) from error

    def payload_hash(self, name: str, message: Any) -> bytes:
        """16 bytes that tell this payload, of the type with this full name, from all others (BLAKE2b, RFC 7693).

        Fields that equal their default are left out, at any depth, so that a field added later does not change old
        hashes.
        """
        given = _given(message, self._defaults) if self._leaves_out else message
        if self._defaults_within:  # else the encoder says it all, without a walk through every value
            given = self._sent(given)
        try:
            encoded = _sorted_encoder.encode(given)
        except TypeError:  # a set whose elements have no order of their own
            encoded = _sorted_encoder.encode(self._sent(given))
        return hashlib.blake2b(HASH_SCHEME + name.encode() + encoded, digest_size=16).digest()

    def _sent(self, value: Any) -> Any:
        """A value as it is hashed: as the encoder would write it, but for fields that equal their default."""
        if isinstance(value, Mapping):
            return {key: self._sent(held) for key, held in value.items()}
        if isinstance(value, list | tuple):
            return [self._sent(held) for held in value]
        if isinstance(value, set | frozenset):
            try:
                return [self._sent(held) for held in sorted(value)]
            except TypeError:
                return sorted((self._sent(held) for held in value), key=encode_canonical)
        if not isinstance(value, msgspec.Struct):
            return value
        config, defaults = value.__struct_config__, self._defaults_within.get(type(value)) or _defaults(type(value))
        given = _given(value, defaults)
        if config.array_like:
            last = max((place for place, (name, _) in enumerate(defaults, 1) if name in given), default=0)
            tag = [] if config.tag is None else [config.tag]
            return tag + [self._sent(getattr(value, name)) for name, _ in defaults[:last]]
        tagged = {} if config.tag_field is None else {config.tag_field: config.tag}
        names = dict(zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True))
        return tagged | {names[name]: self._sent(held) for name, held in given.items()}


def _given(struct: Any, defaults: _Defaults) -> Any:
    return {name: getattr(struct, name) for name, default in defaults if getattr(struct, name) != default}


def _defaults(cls: type[Any]) -> _Defaults:
    fields = msgspec.structs.fields(cls)
    return tuple(
        (field.name, field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default)
        for field in fields
    )


def _encodes_its_fields_only(cls: type[Any]) -> bool:
    return cls.__struct_fields__ == cls.__struct_encode_fields__ and cls.__struct_config__.tag is None


def _any_default(defaults: _Defaults) -> bool:
    return any(default is not msgspec.NODEFAULT for _, default in defaults)


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(held) for key, held in value.items())
    return isinstance(value, list) and any(_holds_nul(held) for held in value)


def _holds_no_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_holds_no_number(held) for held in value.values())
    return isinstance(value, list | tuple) and any(_holds_no_number(held) for held in value)


def _infinite_decimal(value: Any, path: str) -> str | None:
    """The path of a decimal that is not finite; None where there is none."""
    if isinstance(value, Decimal):
        return None if value.is_finite() else path
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, msgspec.Struct):
        parts = ((f"{path}.{name}", getattr(value, name)) for name in value.__struct_fields__)
    elif isinstance(value, Mapping):
        parts = ((f"{path}[{key!r}]", held) for key, held in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = ((f"{path}[{index}]", held) for index, held in enumerate(value))
    return next((found for where, held in parts if (found := _infinite_decimal(held, where)) is not None), None)


def _problem(error: Exception) -> tuple[str, str]:
    if isinstance(error, UnicodeError):
        return "$", "text must be valid Unicode, without lone surrogates"
    if isinstance(error, RecursionError):
        return "$", "it is nested too deeply"
    text, _, path = str(error).partition(" - at `")
    return (path.removesuffix("`") or "$"), text
