"""What lately happened, coarsely: says at once that nothing matches, or "look closer", never "something matches"."""

from __future__ import annotations

from diptych.event_store.event_query import QueryItem
from diptych.event_store.recorded_event import NewEvent

__all__ = ["RecentPositions"]

RECENT_NAMES_MAX = 200_000
"""Tags whose last position is known; past it all are forgotten, and closer looks follow until they come again."""


class RecentPositions:
    """The last position of every tag and type, complete for the positions in (since, head]."""

    __slots__ = ("_tags", "_types", "head", "since")

    def __init__(self, head: int) -> None:
        """Know nothing of what is up to this head, and everything of what will be noted after it."""
        self.head = self.since = head
        self._tags: dict[str, int] = {}
        self._types: dict[str, int] = {}

    def note(self, event: NewEvent) -> None:
        """Follow one more event, at the next position."""
        self.head = position = self.head + 1
        self._types[event.type] = position
        for tag in event.tags:
            self._tags[tag] = position

    def take_in(self, later: RecentPositions) -> None:
        """Follow what another has noted from this one's head on."""
        assert later.since == self.head
        if len(self._tags) + len(later._tags) > RECENT_NAMES_MAX:
            self._tags.clear()
            self._types.clear()
            self.since = later.since
        self._tags.update(later._tags)
        self._types.update(later._types)
        self.head = later.head

    def has_none(self, item: QueryItem, after: int) -> bool:
        """Whether surely no event in (after, head] matches. False says nothing."""
        if after >= self.head:
            return True
        if after < self.since:
            return False
        last = self._tags.get
        for tag in item.tags:
            if last(tag, 0) <= after:
                return True
        last = self._types.get
        return bool(item.types) and all(last(type, 0) <= after for type in item.types)
