"""From bytes to messages: straight to the class where they fit, and with care where they do not."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from diptych.entrypoints.http.field_errors import REFUSALS, FieldError, refusal
from diptych.messages.codec import Codec

__all__ = ["MessageDecoder"]

INTEGER_DIGITS_MAX = 308
"""Digits of a number with a fraction that is read as an integer, like those of the largest float."""


class MessageDecoder:
    """Decodes the messages of one class."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self._decode: Callable[[bytes], Any] = Codec(cls).decode_unchecked

    def decode(self, data: bytes) -> Any:
        """The message.

        Raises:
            Problem: it is none; with every error in it.
        """
        try:
            return self._decode(data)
        except REFUSALS:
            pass
        read = _with_integers(data)
        try:
            return self._decode(read)
        except REFUSALS:
            raise self.refusal(read) from None

    def refusal(self, data: bytes, others: tuple[FieldError, ...] = ()) -> Exception:
        """The problem with what is no message of this class."""
        return refusal(data, self.cls, others)


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
