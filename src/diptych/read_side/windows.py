"""Windows of time: the day and the month that a moment is in, as keys of rows."""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

__all__ = ["day_of", "month_of"]

ZONES_MAX = 64
"""Time zones that are kept by name; the one that was used longest ago goes."""


def day_of(moment: datetime, zone: str = "UTC") -> date:
    """The day that a moment is in.

    Args:
        moment: aware, as the times in events are.
        zone: whose days are meant, by its IANA name, "Europe/Paris". A rebuild after its rules have changed may come to
            other days than were stored; those of "UTC" never change.

    Raises:
        ValueError: the moment has no time zone.
        ZoneInfoNotFoundError: the system knows no such zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone, so that its day cannot be told")
    return moment.astimezone(UTC if zone == "UTC" else _zone(zone)).date()


def month_of(moment: datetime, zone: str = "UTC") -> date:
    """The month that a moment is in, as its first day, so that months order and filter as dates. See `day_of`."""
    return day_of(moment, zone).replace(day=1)


@lru_cache(ZONES_MAX)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
