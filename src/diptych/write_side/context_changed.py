"""How a command hears that its user was looking at something older than it would be decided on."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import DiptychError
from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["ContextChanged"]


class ContextChanged(DiptychError):
    """What the command is decided on has changed since the answer that it is based on; nothing was done.

    Attributes:
        command: the name of the command type.
        based_on: the position that the command was based on.
        events: what has come since that concerns the decision, in order; the first of them, where they are many. Those
            that are stored under former names, or as older versions, are told as code of now would have stored them.
        more: whether there are more.
    """

    def __init__(self, command: str, based_on: int, events: Sequence[RecordedEvent], *, more: bool) -> None:
        self.command = command
        self.based_on = based_on
        self.events = tuple(events)
        self.more = more
        listed = [f"{event.type} at position {event.position}" for event in self.events] + ["more"] * more
        super().__init__(
            f"{command} is based on position {based_on}, and what it is decided on has changed since: "
            f"{', '.join(listed)}; nothing was done, look again and decide anew"
        )
