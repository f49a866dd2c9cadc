"""What this process knows to be in the history, and how often another history was found where that was."""

from __future__ import annotations

import logging
from typing import NamedTuple

from diptych.errors import HistoryDiverged
from diptych.event_store.position import NOWHERE, START, Place, Position

__all__ = ["Known", "KnownHistory"]

_KNOWN = "what this process last wrote or read"
_log = logging.getLogger("diptych.postgres")


class Known(NamedTuple):
    """A place that is known to be in the history, and how many forks were found when it was."""

    place: Place
    forks: int


class KnownHistory:
    """The furthest place that was read, written or told of. It is on every server that goes on with this history.

    Attributes:
        place: that place; with an empty history id before anything is known.
        forks: see `EventStore.forks`.
    """

    def __init__(self, shown: str) -> None:
        """Know nothing yet. `shown` is the URL, for messages."""
        self.forks = 0
        self._shown = shown
        self.forget()

    @property
    def history_id(self) -> bytes:
        """Of the history; empty before anything is known."""
        return self.place.history_id

    @property
    def now(self) -> Known:
        """As it is now: whoever reads or writes from now on does so as one who knows this."""
        return Known(self.place, self.forks)

    def forget(self) -> None:
        """Know nothing of what is there."""
        self.place = Place(b"", START, NOWHERE)

    def learn(self, place: Place, forks: int) -> None:
        """Remember how far the history was seen, by somebody who began when there were so many forks."""
        if not self.place.history_id:
            self.place = place
        elif forks == self.forks and place.history_id == self.place.history_id:
            self.place = max(self.place, place, key=_position)

    def difference(self, known: Known, head: Place, found: bytes | None) -> HistoryDiverged | None:
        """How what was known differs from what is there; from now on it is what is there that is known.

        Args:
            known: what was known when it was asked for.
            head: the head that is there.
            found: the id of the event that is there at the position known; None past the head.
        """
        place = known.place
        try:
            place.check(head.history_id, NOWHERE if place.position == 0 else found, _KNOWN)
        except HistoryDiverged as error:
            if head.history_id != place.history_id:  # no failover: a copy was made here, or the schema is another one
                return error
            if known.forks == self.forks:  # else somebody else has found it meanwhile
                _log.error("%s goes on as it is there, from position %d: %s", self._shown, head.position, error)
                self.forks += 1
                self.place = Place(head.history_id, Position(head.position), head.event_id)
            return error
        return None


def _position(place: Place) -> Position:
    return place.position
