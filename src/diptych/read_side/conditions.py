"""Conditions are values: `find(Sales, units=at_least(10), country=one_of("FR", "DE"))`; a plain value means equal."""

from __future__ import annotations

from typing import Any

import msgspec

from diptych.read_side.read_store import Comparison

__all__ = ["AllOf", "Condition", "all_of", "at_least", "at_most", "less_than", "more_than", "one_of", "starts_with"]


class Condition(msgspec.Struct, frozen=True):
    """A comparison with a value; made by the functions of this module."""

    comparison: Comparison
    value: Any


class AllOf(msgspec.Struct, frozen=True):
    """Conditions, or values, that all have to hold; made by `all_of`."""

    conditions: tuple[Any, ...]


def all_of(*conditions: object) -> AllOf:
    """Columns for which all of the conditions hold: `price=all_of(at_least(10), less_than(20))`."""
    return AllOf(conditions)


def at_least(value: object) -> Condition:
    """Columns that are `value` or more; None never is."""
    return Condition(Comparison.AT_LEAST, value)


def at_most(value: object) -> Condition:
    """Columns that are `value` or less; None never is."""
    return Condition(Comparison.AT_MOST, value)


def more_than(value: object) -> Condition:
    """Columns that are more than `value`; None never is."""
    return Condition(Comparison.MORE_THAN, value)


def less_than(value: object) -> Condition:
    """Columns that are less than `value`; None never is."""
    return Condition(Comparison.LESS_THAN, value)


def one_of(*values: object) -> Condition:
    """Columns that are one of the values; none of no values."""
    return Condition(Comparison.ONE_OF, values)


def starts_with(prefix: str) -> Condition:
    """Text columns that begin with `prefix`; case matters."""
    return Condition(Comparison.STARTS_WITH, prefix)
