"""Decimals as text that sorts by value, for stores whose own numbers are not exact enough (rule 32).

The exponent goes beside the text, so that 40.0 and 40.00 are equal and yet each reads back as it was. The text of a
positive number is

    1  <exponent of the leading digit>  <digits, without zeros at the end>

where the exponent begins with a letter that says its sign and length, `P7`, `Q12`, `N8` (for -1: the complement of
1). A negative number is `-`, the same with every character complemented, and `~`, which makes the shorter of two that
begin alike the larger. Zero is `0`.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

__all__ = ["DecodeError", "decode_decimal", "encode_decimal"]

EXPONENTS_CACHED = 256
"""Exponents of decimals whose form is kept at hand."""
PLAIN_EXPONENT_MAX = 40
"""A decimal whose own exponent is unknown is written without one below this many digits."""

_MIDDLE = ord("O")
_EXPONENT_DIGITS_MAX = 19
_COMPLEMENT = {ord("0") + digit: ord("9") - digit for digit in range(10)} | {
    _MIDDLE + step: _MIDDLE - step for step in range(-_EXPONENT_DIGITS_MAX, _EXPONENT_DIGITS_MAX + 1)
}


class DecodeError(ValueError):
    """What a column of a result holds is not of the kind asked for."""


def encode_decimal(value: Decimal) -> tuple[str, int]:
    """Text that sorts as the values do, and the exponent. Zero loses its sign.

    Raises:
        ValueError: the value is not finite.
    """
    mantissa, _, power = format(value, "E").partition("E")
    code, adjusted = _encode_exponent(power)
    digits = mantissa.replace(".", "")
    negative = digits[0] == "-"
    if negative:
        digits = digits[1:]
    exponent = adjusted - len(digits) + 1
    significant = digits.rstrip("0")
    if not significant:
        return "0", exponent
    text = code + significant
    return (f"-{text.translate(_COMPLEMENT)}~" if negative else f"1{text}"), exponent


@lru_cache(EXPONENTS_CACHED)
def _encode_exponent(power: str) -> tuple[str, int]:
    adjusted = int(power)
    digits = str(abs(adjusted))
    if adjusted >= 0:
        return chr(_MIDDLE + len(digits)) + digits, adjusted
    return chr(_MIDDLE - len(digits)) + digits.translate(_COMPLEMENT), adjusted


def decode_decimal(text: str, exponent: int | None) -> Decimal:
    """The value of the text, written with that exponent; None: with as few zeros as it can.

    Raises:
        DecodeError: this is no decimal's text.
    """
    try:
        if text == "0":
            return Decimal(f"0E{exponent or 0}")
        negative = text[0] == "-"
        body = text[1:-1].translate(_COMPLEMENT) if negative else text[1:]
        adjusted, digits = _decode_exponent(body)
        if exponent is None:
            shortest = adjusted - len(digits) + 1
            exponent = min(shortest, 0) if adjusted < PLAIN_EXPONENT_MAX else shortest
        return Decimal(f"{'-' if negative else ''}{digits.ljust(adjusted - exponent + 1, '0')}E{exponent}")
    except (ArithmeticError, IndexError, ValueError) as error:
        raise DecodeError(f"{text!r} is no decimal as read models keep them") from error


def _decode_exponent(body: str) -> tuple[int, str]:
    length = ord(body[0]) - _MIDDLE
    if length > 0:
        return int(body[1 : length + 1]), body[length + 1 :]
    return -int(body[1 : 1 - length].translate(_COMPLEMENT)), body[1 - length :]
