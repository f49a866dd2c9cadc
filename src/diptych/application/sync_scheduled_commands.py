"""The commands in time, for code without an event loop: the same calls, which block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diptych.application.sync_processes import Call
from diptych.process_managers.scheduled_commands import LIST_SCHEDULED_MAX, CommandStatus, ScheduledCommands
from diptych.security import Actor

__all__ = ["SyncScheduledCommands"]


class SyncScheduledCommands:
    """See `ScheduledCommands` for the arguments and errors of every method. Made by `SyncApplication`."""

    def __init__(self, call: Call, find: Callable[[], ScheduledCommands]) -> None:
        self._call = call
        self._find = find

    def list(
        self, *, after: str | None = None, failed: bool = False, limit: int = LIST_SCHEDULED_MAX
    ) -> Sequence[CommandStatus]:
        """See `ScheduledCommands.list`."""

        async def listed() -> Sequence[CommandStatus]:
            return await self._find().list(after=after, failed=failed, limit=limit)

        return self._call(listed())

    def status(self, command_id: str) -> CommandStatus | None:
        """See `ScheduledCommands.status`."""

        async def told() -> CommandStatus | None:
            return await self._find().status(command_id)

        return self._call(told())

    def cancel(
        self, command_id: str, *, reason: str | None = None, actor: Actor | str | None = None
    ) -> CommandStatus | None:
        """See `ScheduledCommands.cancel`."""

        async def cancelled() -> CommandStatus | None:
            return await self._find().cancel(command_id, reason=reason, actor=actor)

        return self._call(cancelled())
