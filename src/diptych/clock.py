"""Time, as a port: what is read from a clock can be given by a test."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "pause"]


class Clock(Protocol):
    """Tells the time. `testing.ManualClock` is the one that stands still until it is moved."""

    def now(self) -> datetime:
        """The time now, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time now, aware, in UTC, to the microsecond."""
        return datetime.now(UTC)


async def pause(seconds: float = 0.0) -> None:
    """Let everything else on the event loop go on, and come back after so many seconds; by default at once."""
    await asyncio.sleep(seconds)
