"""A partition: one history with its two panels, opened and closed in the order of the data."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from msgspec.structs import replace

from diptych.application.follower import Follower
from diptych.application.pruning import Pruning
from diptych.application.status import Health, Status
from diptych.errors import DiptychError
from diptych.event_store.event_store import EventStore
from diptych.process_managers.process_worker import ProcessWorker
from diptych.process_managers.processes import Processes
from diptych.process_managers.scheduled_commands import ScheduledCommands
from diptych.write_side.command_bus import CommandBus

__all__ = ["Partition"]


@dataclass(frozen=True, kw_only=True)
class Partition(Follower):
    """One history of an open application, with what decides on it and what follows it.

    An application has one, unless it is partitioned. Made by the application.

    Attributes:
        store: the history, which is the log that is followed.
        processes: their instances: listed, and helped on by hand.
        pruning: drops the data of old events.
        scheduled: commands that are executed later: listed, cancelled, and tried again.
    """

    store: EventStore
    commands: CommandBus
    context_names: frozenset[str]
    process_worker: ProcessWorker
    processes: Processes
    pruning: Pruning
    scheduled: ScheduledCommands

    async def open(self) -> None:
        """Open the stores, check that they fit the code and each other, and follow the history."""
        await self.store.open()
        await self.history.register(self.store, self.context_names)
        await self.commands.open()
        await super().open()
        await self.process_worker.open(running=self.projecting)

    async def status(self) -> Status:
        """How far the history is, and how far everything that follows it."""
        worker = self.process_worker
        return replace(await super().status(), processes=await worker.status(), scheduled=await worker.scheduled())

    async def health(self) -> Health:
        """Whether the stores are reachable, and projections and processes run and keep up."""
        found = await super().health()
        if not found.ready:
            return found
        try:
            failure = await self.process_worker.failure() if self.projecting else ""
            stuck = await self.process_worker.stuck()
            scheduled = await self.process_worker.wrong_with_scheduled()
        except DiptychError as error:
            return Health(ready=False, reason=str(error))
        if failure:
            return Health(ready=False, reason=f"processes have stopped: {failure}")
        told = [f"process {name}: instances are stuck, the first is {first!r}" for name, first in stuck]
        return replace(found, impaired=(*found.impaired, *told, *scheduled))

    async def close(self) -> None:
        """Stop in the order of the data: processes and commands first, the stores last."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.store.close)
            closing.push_async_callback(super().close)
            closing.push_async_callback(self.commands.close)
            closing.push_async_callback(self.process_worker.close)
