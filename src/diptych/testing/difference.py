"""How expected and actual values differ, in words that a person reads in a test's output."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import msgspec

__all__ = ["events_difference", "listed", "mapping_difference", "row_difference"]

_RED, _GREEN, _PLAIN = "\033[31m", "\033[32m", "\033[0m"
_LEGEND = "(- expected, + actual)"


def events_difference(expected: Sequence[Any], actual: Sequence[Any]) -> str:
    """What is missing, what is there beside, what is another, field by field; "" where nothing differs."""
    if list(expected) == list(actual):
        return ""
    told = [[repr(event) for event in events] for events in (expected, actual)]
    if Counter(told[0]) == Counter(told[1]):
        title = "the events are the right ones in another order"
    else:
        title = "the events differ"
    lines = [f"{title} {_LEGEND}:"]
    for operation, first, last, start, end in SequenceMatcher(None, told[0], told[1], autojunk=False).get_opcodes():
        if operation == "equal":
            lines += [f"    {text}" for text in told[0][first:last]]
        else:
            lines += _replaced(expected[first:last], actual[start:end])
    return "\n".join(lines)


def _replaced(expected: Sequence[Any], actual: Sequence[Any]) -> Iterable[str]:
    """Events of one type at one place are compared by field; the others are missing, or too many."""
    for index in range(max(len(expected), len(actual))):
        there, here = expected[index : index + 1], actual[index : index + 1]
        yield from (_minus(repr(event)) for event in there)
        yield from (_plus(repr(event)) for event in here)
        if there and here and type(there[0]) is type(here[0]):
            yield from _fields(there[0], here[0])


def row_difference(expected: msgspec.Struct, actual: msgspec.Struct) -> str:
    """Which fields of two rows of one read model differ; "" where none does."""
    if expected == actual:
        return ""
    lines = [f"the row of {type(expected).__name__} differs {_LEGEND}:", _minus(repr(expected)), _plus(repr(actual))]
    return "\n".join([*lines, *_fields(expected, actual)])


def mapping_difference(title: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    """What of `expected` is another in `actual`, or missing there; "" where nothing is."""
    lines: list[str] = []
    for name, value in expected.items():
        if name not in actual:
            lines.append(_minus(f"{name}={value!r}"))
        elif actual[name] != value:
            lines += [_minus(f"{name}={value!r}"), _plus(f"{name}={actual[name]!r}")]
    return "\n".join([f"{title} {_LEGEND}:", *lines]) if lines else ""


def listed(values: Iterable[Any]) -> str:
    """Values, one to a line."""
    return "\n".join(f"    {value!r}" for value in values) or "    (none)"


def _fields(expected: msgspec.Struct, actual: msgspec.Struct) -> Iterable[str]:
    for name in expected.__struct_fields__:
        there, here = getattr(expected, name), getattr(actual, name)
        if there != here:
            yield f"        {name}: expected {there!r}, actual {here!r}"


def _minus(text: str) -> str:
    return _coloured(_RED, f"  - {text}")


def _plus(text: str) -> str:
    return _coloured(_GREEN, f"  + {text}")


def _coloured(colour: str, text: str) -> str:
    """In colour on a terminal (NO_COLOR: https://no-color.org)."""
    if "NO_COLOR" in os.environ or not sys.stderr.isatty():
        return text
    return f"{colour}{text}{_PLAIN}"
