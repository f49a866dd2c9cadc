"""What becomes of a read model whose fold has changed; how fast builds go, and how long what they replace is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import msgspec

from diptych.errors import ConfigurationError

__all__ = ["KEEP_S", "KEEP_S_MAX", "OnChanged", "RebuildPolicy", "Throttle"]

KEEP_S = 3_600.0
"""Seconds for which the rows that were replaced are kept, to go back to, unless the policy says otherwise."""
KEEP_S_MAX = 30 * 86_400.0
"""Seconds for which they may be kept: they take as much room as those that answer."""

OnChanged: TypeAlias = Literal["build", "serve-old", "wait", "refuse"]
"""Open at once, and build meanwhile; the same, and show the old rows meanwhile; open when all is built; do not open."""


class RebuildPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What an application does about read models whose rows are of other code than its own.

    Attributes:
        on_changed: "build" opens at once and builds the new rows beside the old ones, which go on answering in the
            processes that run the old code; queries of this one wait for the new rows. "serve-old" does the same, and
            answers with the old rows in this process, too, where their columns are the same. "wait" opens when all
            new rows answer. "refuse" does not open, and names what would have to be built first.
        keep_s: seconds for which the replaced rows are kept, to go back to; 0 drops them with the switch.
        events_per_s: how many positions of the history a build is taken over in a second, at most; None: no limit.

    Raises:
        ConfigurationError: a value is none of these.
    """

    on_changed: OnChanged = "build"
    keep_s: float = KEEP_S
    events_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.on_changed not in get_args(OnChanged):
            raise ConfigurationError(f"on_changed={self.on_changed!r}: it is one of {', '.join(get_args(OnChanged))}")
        if not 0 <= self.keep_s <= KEEP_S_MAX:
            raise ConfigurationError(f"keep_s={self.keep_s!r}: it is 0 to {KEEP_S_MAX:g} seconds")
        rate = self.events_per_s
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise ConfigurationError(f"events_per_s={rate!r}: it is a number above 0, or None for no limit")


class Throttle:
    """Holds builds to a rate: after a batch, nothing is built until so much time has gone by as it should have taken.

    Args:
        events_per_s: positions of the history in a second; None: no limit.
        monotonic: tells the time, in seconds.
    """

    def __init__(self, events_per_s: float | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = events_per_s
        self._monotonic = monotonic
        self._due_at = -math.inf

    def note(self, events: int) -> None:
        """Note that a build was taken over so many positions just now."""
        if self._rate is not None:
            self._due_at = max(self._due_at, self._monotonic()) + events / self._rate

    @property
    def due_in_s(self) -> float:
        """Seconds until the next batch may begin; 0: now."""
        return max(0.0, self._due_at - self._monotonic())
