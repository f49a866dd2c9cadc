"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["START_TIME", "ManualClock"]

START_TIME = datetime(2024, 1, 1, tzinfo=UTC)
"""Where a `ManualClock` stands, unless told otherwise."""


class ManualClock:
    """A `Clock` that is set by hand. Give it to an application, a scenario, or whatever tells the time.

    Args:
        start: the time that it shows first, aware, in UTC.

    Raises:
        ValueError: `start` is naive, or not in UTC.
    """

    def __init__(self, start: datetime = START_TIME) -> None:
        self._now = _in_utc(start)

    def __repr__(self) -> str:
        return f"ManualClock({self._now.isoformat()})"

    def now(self) -> datetime:
        """The time that was set, aware, in UTC."""
        return self._now

    def advance(self, by: timedelta | float) -> None:
        """Go forward by a duration, or by so many seconds.

        Raises:
            ValueError: it is negative; `set` goes back.
        """
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta(0):
            raise ValueError(f"a clock advances, {by!r} goes back: use set() for that")
        self._now += step

    def set(self, now: datetime) -> None:
        """Show another time, earlier or later.

        Raises:
            ValueError: it is naive, or not in UTC.
        """
        self._now = _in_utc(now)


def _in_utc(moment: datetime) -> datetime:
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"{moment!r} is not in UTC: write datetime(..., tzinfo=UTC)")
    return moment
