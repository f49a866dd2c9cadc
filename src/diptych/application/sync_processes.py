"""The instances of processes, for code without an event loop: the same calls, which block."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from diptych.messages.command import Command
from diptych.process_managers.processes import LIST_INSTANCES_MAX, InstanceDetails, InstanceStatus, Processes

__all__ = ["Call", "SyncProcesses"]

T = TypeVar("T")


class Call(Protocol):
    """Runs a coroutine on the application's event loop, and waits for it."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Its result."""
        ...


class SyncProcesses:
    """See `Processes` for the arguments and errors of every method. Made by `SyncApplication`."""

    def __init__(self, call: Call, find: Callable[[], Processes]) -> None:
        self._call = call
        self._find = find

    def list(
        self,
        process: str | None = None,
        *,
        ended: bool = False,
        stuck: bool = False,
        after: InstanceStatus | None = None,
        limit: int = LIST_INSTANCES_MAX,
    ) -> Sequence[InstanceStatus]:
        """See `Processes.list`."""

        async def listed() -> Sequence[InstanceStatus]:
            return await self._find().list(process, ended=ended, stuck=stuck, after=after, limit=limit)

        return self._call(listed())

    def show(self, process: str, instance: str) -> InstanceDetails:
        """See `Processes.show`."""

        async def shown() -> InstanceDetails:
            return await self._find().show(process, instance)

        return self._call(shown())

    def retry(self, process: str, instance: str, *, reason: str = "", actor: str | None = None) -> int:
        """See `Processes.retry`."""

        async def retried() -> int:
            return await self._find().retry(process, instance, reason=reason, actor=actor)

        return self._call(retried())

    def close(self, process: str, instance: str, *, reason: str, actor: str | None = None) -> int:
        """See `Processes.close`."""

        async def closed() -> int:
            return await self._find().close(process, instance, reason=reason, actor=actor)

        return self._call(closed())

    def send(self, process: str, instance: str, command: Command, *, reason: str = "", actor: str | None = None) -> int:
        """See `Processes.send`."""

        async def sent() -> int:
            return await self._find().send(process, instance, command, reason=reason, actor=actor)

        return self._call(sent())
