"""The clock that tests move by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from diptych.testing import ManualClock

START = datetime(2024, 2, 29, 12, tzinfo=UTC)


def test_it_stands_still() -> None:
    """Without being moved it shows the same time for ever."""
    clock = ManualClock(START)
    assert clock.now() == clock.now() == START


def test_it_advances_by_a_duration_or_by_seconds() -> None:
    """Both forms add up."""
    clock = ManualClock(START)
    clock.advance(timedelta(days=1))
    clock.advance(0.5)
    assert clock.now() == START + timedelta(days=1, milliseconds=500)


def test_it_does_not_advance_backwards() -> None:
    """A negative step is a mistake, and moves nothing."""
    clock = ManualClock(START)
    with pytest.raises(ValueError, match="use set"):
        clock.advance(-1)
    assert clock.now() == START


def test_it_is_set_to_any_time() -> None:
    """To an earlier one as well."""
    clock = ManualClock(START)
    clock.set(START - timedelta(days=1))
    assert clock.now() == START - timedelta(days=1)


@pytest.mark.parametrize("moment", [START.replace(tzinfo=None), START.replace(tzinfo=timezone(timedelta(hours=1)))])
def test_it_takes_only_utc(moment: datetime) -> None:
    """Naive times and other zones are refused, at the start and later."""
    with pytest.raises(ValueError, match="not in UTC"):
        ManualClock(moment)
    with pytest.raises(ValueError, match="not in UTC"):
        ManualClock().set(moment)
