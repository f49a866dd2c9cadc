"""What would come of a command, decided and not done."""

from __future__ import annotations

import msgspec

from diptych.messages.event import Event
from diptych.messages.rejected import Rejected

__all__ = ["Verdict"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What would have come of a command, at the head as it was then; true where it would have been taken.

    Attributes:
        events: what would have happened, in order, may be empty.
        rejected: what the domain would have said; None where it would not have said no.
    """

    events: tuple[Event, ...] = ()
    rejected: Rejected | None = None

    def __bool__(self) -> bool:
        """Whether it would have been taken."""
        return self.rejected is None
