"""A partition: one history with its two panels, opened and closed in the order of the data."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from diptych.application.follower import Follower
from diptych.event_store.event_store import EventStore
from diptych.write_side.command_bus import CommandBus

__all__ = ["Partition"]


@dataclass(frozen=True, kw_only=True)
class Partition(Follower):
    """One history of an open application, with what decides on it and what follows it.

    An application has one, unless it is partitioned. Made by the application.

    Attributes:
        store: the history, which is the log that is followed.
    """

    store: EventStore
    commands: CommandBus
    context_names: frozenset[str]

    async def open(self) -> None:
        """Open the stores, check that they fit the code and each other, and follow the history."""
        await self.store.open()
        await self.history.register(self.store, self.context_names)
        await self.commands.open()
        await super().open()

    async def close(self) -> None:
        """Stop in the order of the data: commands first, the stores last."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.store.close)
            closing.push_async_callback(super().close)
            closing.push_async_callback(self.commands.close)
