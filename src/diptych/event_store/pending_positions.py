"""Which positions a decision may have been made at, while a batch is judged."""

from __future__ import annotations

__all__ = ["PendingPositions"]


class PendingPositions:
    """Follows one batch: up to which position a condition's `after` names what its decision saw.

    Up to the head that the caller knew, positions are history. Beyond, they are pending: promises that hold while the
    history still ended there and every earlier commit with events was appended as decided.
    """

    __slots__ = ("_intact", "_last")

    def __init__(self, head: int, base: int | None) -> None:
        """Begin a batch.

        Args:
            head: the head of the history in the append section.
            base: the head that the caller knew, if it says so.
        """
        self._last = head if base is None else min(base, head)
        self._intact = base == head

    def came_about(self, after: int) -> bool:
        """Whether what is at this position is what the caller meant by it."""
        return after <= self._last

    def note(self, event_count: int, *, appended: bool) -> None:
        """Follow one more commit. One without events takes no position: it breaks no chain, whatever its answer."""
        if self._intact and appended:
            self._last += event_count
        elif event_count:
            self._intact = False
