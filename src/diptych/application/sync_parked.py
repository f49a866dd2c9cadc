"""What failed and waits for somebody, for code without an event loop: the same calls, which block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diptych.application.parked import PARKED_PAGE_MAX, Dealt, Discards, Parked, ParkedDetails, ParkedPage
from diptych.application.sync_processes import Call
from diptych.security import Actor

__all__ = ["SyncParked"]


class SyncParked:
    """See `Parked` for the arguments and errors of every method. Made by `SyncApplication`."""

    def __init__(self, call: Call, find: Callable[[], Parked]) -> None:
        self._call = call
        self._find = find

    def list(self, *, kind: str | None = None, after: str = "", limit: int = PARKED_PAGE_MAX) -> ParkedPage:
        """See `Parked.list`."""

        async def listed() -> ParkedPage:
            return await self._find().list(kind=kind, after=after, limit=limit)

        return self._call(listed())

    def show(self, item_id: str) -> ParkedDetails:
        """See `Parked.show`."""

        async def shown() -> ParkedDetails:
            return await self._find().show(item_id)

        return self._call(shown())

    def retry(self, item_id: str, *, actor: Actor | str, reason: str, edited: Mapping[str, Any] | None = None) -> Dealt:
        """See `Parked.retry`."""

        async def retried() -> Dealt:
            return await self._find().retry(item_id, actor=actor, reason=reason, edited=edited)

        return self._call(retried())

    def discard(self, item_id: str, *, actor: Actor | str, reason: str) -> Dealt:
        """See `Parked.discard`."""

        async def discarded() -> Dealt:
            return await self._find().discard(item_id, actor=actor, reason=reason)

        return self._call(discarded())

    def discarded(self, *, after: str = "", limit: int = PARKED_PAGE_MAX) -> Discards:
        """See `Parked.discarded`."""

        async def listed() -> Discards:
            return await self._find().discarded(after=after, limit=limit)

        return self._call(listed())
