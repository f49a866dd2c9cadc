"""The day and the month that a moment is in."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfoNotFoundError

import pytest

from diptych.read_side.windows import day_of, month_of

LATE = datetime(2024, 2, 29, 23, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "day", "month"),
    [
        ("UTC", date(2024, 2, 29), date(2024, 2, 1)),
        ("Europe/Paris", date(2024, 3, 1), date(2024, 3, 1)),
        ("America/New_York", date(2024, 2, 29), date(2024, 2, 1)),
    ],
)
def test_the_zone_decides(zone: str, day: date, month: date) -> None:
    """Whatever zone the moment itself is told in."""
    for moment in (LATE, LATE.astimezone(timezone(timedelta(hours=9)))):
        assert day_of(moment, zone) == day
        assert month_of(moment, zone) == month


def test_a_day_begins_when_it_does_there() -> None:
    """Also on the day on which clocks are put forward: 23 hours."""
    begins = datetime(2024, 3, 30, 23, tzinfo=UTC)
    assert {day_of(begins + timedelta(hours=hours), "Europe/Paris") for hours in range(23)} == {date(2024, 3, 31)}
    assert day_of(begins + timedelta(hours=23), "Europe/Paris") == date(2024, 4, 1)


def test_what_is_no_moment_has_no_day() -> None:
    """Without a zone, or in one that nobody knows."""
    with pytest.raises(ValueError, match="has no time zone, so that its day cannot be told"):
        day_of(datetime(2024, 2, 29))  # noqa: DTZ001 — that is the point
    with pytest.raises(ZoneInfoNotFoundError):
        day_of(LATE, "Europe/Atlantis")
