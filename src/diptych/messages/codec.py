"""Messages as bytes and back: JSON, by msgspec, in this module only.

Whatever is about to be stored is decoded again first. So a wrong type, a naive datetime or a lone surrogate is
refused before it is a fact, and a decision is folded from exactly what a later reader will see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from diptych.errors import InvalidMessage

__all__ = ["Codec", "decode", "encode", "encode_canonical", "to_plain"]

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_sorted_encoder = msgspec.json.Encoder(order="sorted")
_plain_decoder = msgspec.json.Decoder()

HASH_SCHEME = b"1:"
"""The version of the payload hash: part of what is hashed, so that another scheme cannot be mistaken for it."""

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
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidMessage(getattr(type, "__name__", str(type)), [_problem(error)]) from error


def to_plain(value: Any) -> Any:
    """A value as JSON reads it back: dicts, lists, strings, numbers; a Decimal or datetime is a string."""
    return _plain_decoder.decode(_encoder.encode(value))


class Codec:
    """Encodes and decodes one message class, and checks what it encodes."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.decode_unchecked: Callable[[bytes], Any] = msgspec.json.Decoder(cls).decode
        self._defaults = _defaults(cls)

    def decode(self, data: bytes) -> Any:
        """The message in `data`.

        Raises:
            InvalidMessage: with the first problem and its path.
        """
        try:
            return self.decode_unchecked(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidMessage(self.cls.__name__, [_problem(error)]) from error

    def settle(self, message: Any) -> tuple[bytes, Any]:
        """The message's bytes, and the message as those bytes read back.

        Raises:
            InvalidMessage: a field has the wrong type, a datetime is naive, a text holds NUL or a lone surrogate.
        """
        try:
            data = _encoder.encode(message)
            if b"\\u0000" in data and _holds_nul(_plain_decoder.decode(data)):
                raise InvalidMessage(self.cls.__name__, [("$", "text must not contain NUL (U+0000)")])
            return data, self.decode_unchecked(data)
        except (msgspec.MsgspecError, UnicodeError, TypeError, OverflowError) as error:
            raise InvalidMessage(self.cls.__name__, [_problem(error)]) from error

    def payload_hash(self, name: str, message: Any) -> bytes:
        """16 bytes that tell this payload, of the type with this full name, from all others (BLAKE2b, RFC 7693).

        Fields that equal their default are left out, so that a field added later does not change old hashes.
        """
        given = {name: getattr(message, name) for name, default in self._defaults if getattr(message, name) != default}
        hashed = hashlib.blake2b(HASH_SCHEME, digest_size=16)
        hashed.update(name.encode())
        hashed.update(_sorted_encoder.encode(given))
        return hashed.digest()


def _defaults(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    fields = msgspec.structs.fields(cls)
    return tuple(
        (field.name, field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default)
        for field in fields
    )


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(held) for key, held in value.items())
    return isinstance(value, list) and any(_holds_nul(held) for held in value)


def _problem(error: Exception) -> tuple[str, str]:
    if isinstance(error, UnicodeError):
        return "$", "text must be valid Unicode, without lone surrogates"
    text, _, path = str(error).partition(" - at `")
    return (path.removesuffix("`") or "$"), text
