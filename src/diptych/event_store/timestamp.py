"""Moments as whole microseconds: exact, ordered as numbers, the same in every store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["moment", "to_microseconds"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC of an aware datetime."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The moment so many microseconds after 1970, aware, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)
