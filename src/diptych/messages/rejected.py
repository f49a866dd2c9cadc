"""How a handler says no."""

from __future__ import annotations

from typing import Any

from diptych.errors import DiptychError
from diptych.messages.event import Event

__all__ = ["Rejected"]


class Rejected(DiptychError):
    """The domain says no: `raise Rejected("course-full", course=command.course)`.

    Attributes:
        code: a stable word that callers may branch on; prose is derived from it.
        facts: what the refusal stands on; what JSON can say (a Decimal reads back as a string).
        record: an event that is committed together with the refusal, so that it can be counted.
    """

    def __init__(self, code: str, /, *, record: Event | None = None, **facts: Any) -> None:
        self.code = code
        self.facts: dict[str, Any] = facts
        self.record = record
        told = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        super().__init__(f"{code} ({told})" if told else code)
