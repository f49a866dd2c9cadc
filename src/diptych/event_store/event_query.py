"""Which events: the one language in which folds, projections and append conditions say what they depend on."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

__all__ = ["ALL_EVENTS", "EventQuery", "QueryItem"]


class QueryItem(msgspec.Struct, frozen=True, gc=False):
    """Matches an event that is of any of the types and carries all of the tags.

    Attributes:
        types: stored names; empty matches every type.
        tags: empty matches every event; a repeated tag counts once.
    """

    types: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()

    def matches(self, type: str, tags: Collection[str]) -> bool:
        """Whether an event of that stored type with those tags is meant."""
        return (not self.types or type in self.types) and self.tags.issubset(tags)


class EventQuery(msgspec.Struct, frozen=True):
    """Matches an event that any of its items matches. No item matches nothing; one empty item, everything."""

    items: tuple[QueryItem, ...]

    def matches(self, type: str, tags: Collection[str]) -> bool:
        """Whether an event of that stored type with those tags is meant."""
        return any(item.matches(type, tags) for item in self.items)


ALL_EVENTS = EventQuery((QueryItem(),))
