"""From bytes to messages: straight to the class where they fit, and with care where they do not."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from diptych.entrypoints.http.field_errors import REFUSALS, FieldError, invalid_message, refusal, unknown_fields
from diptych.messages.codec import Codec
from diptych.messages.message import held_types

__all__ = ["MessageDecoder"]

INTEGER_DIGITS_MAX = 308
"""Digits of a number with a fraction that is read as an integer, like those of the largest float."""


class MessageDecoder:
    """Decodes the messages of one class."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self._decode: Callable[[bytes], Any] = Codec(cls).decode_unchecked
        self._is_lenient = any(_ignores_unknown_fields(held) for held in held_types(cls))

    def decode(self, data: bytes) -> Any:
        """The message.

        Raises:
            Problem: it is none; with every error in it.
        """
        try:
            return self._complete(self._decode(data), data)
        except REFUSALS:
            pass
        read = _with_integers(data)
        try:
            return self._complete(self._decode(read), read)
        except REFUSALS:
            raise self.refusal(read) from None

    def _complete(self, message: Any, data: bytes) -> Any:
        """The message, if all that was sent is in it: the decoder leaves out what a nested value does not have."""
        if self._is_lenient and (errors := list(unknown_fields(msgspec.json.decode(data), message, "$"))):
            raise invalid_message(self.cls, errors)
        return message

    def refusal(self, data: bytes, others: tuple[FieldError, ...] = ()) -> Exception:
        """The problem with what is no message of this class."""
        return refusal(data, self.cls, others)


def _ignores_unknown_fields(held: Any) -> bool:
    return (
        isinstance(held, type) and issubclass(held, msgspec.Struct) and not held.__struct_config__.forbid_unknown_fields
    )


def _with_integers(data: bytes) -> bytes:
    """The same JSON with `3.0` written as `3`: JSON Schema takes both for an integer, the decoder the latter only."""
    try:
        return msgspec.json.encode(_reader.decode(data))
    except REFUSALS:
        return data


def _number(text: str) -> int | msgspec.Raw:
    number = Decimal(text)
    if number.adjusted() < INTEGER_DIGITS_MAX and number == number.to_integral_value():
        return int(number)
    return msgspec.Raw(text.encode())


_reader = msgspec.json.Decoder(float_hook=_number)
