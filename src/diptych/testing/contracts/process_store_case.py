"""What the parts of the process store's contract share: how they come by stores, processes and what goes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Literal
from uuid import UUID, uuid5

import msgspec

from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.process_managers.process_store import (
    Instance,
    Outgoing,
    ProcessChange,
    ProcessStore,
    StoredProcess,
)

__all__ = [
    "FAR_US",
    "HISTORY",
    "LONG_S",
    "OVER_S",
    "RACERS",
    "SHIPPING",
    "ProcessStoreCase",
    "Writing",
    "begun",
    "instance",
    "item",
    "opened",
    "place",
]

HISTORY = b"h" * 16
"""The id of the history that is followed."""
SHIPPING = "shop.Shipping"
LONG_S = 3_600.0
"""A lease that does not run out while a test runs."""
OVER_S = 0.0
"""A lease that has run out as soon as it was given."""
RACERS = 5
"""Commits that begin at one place."""
FAR_US = (1 << 62) - 1
"""A time that no test reaches."""


def place(position: int) -> Place:
    """A place in the history."""
    return Place(HISTORY, Position(position), NOWHERE if position == 0 else position.to_bytes(16, "big"))


def instance(name: str, **changes: Any) -> Instance:
    """An instance that goes on."""
    begun = Instance(id=name, state=b"{}", started=Position(1), started_at_us=1, last=Position(1), last_at_us=1)
    return msgspec.structs.replace(begun, **changes)


def item(
    of: str, position: int = 1, ordinal: int = 0, kind: Literal["command", "timeout"] = "command", **changes: Any
) -> Outgoing:
    """A command or timeout of an instance."""
    found = Outgoing(
        id=str(uuid5(UUID(int=0), f"{of} {position} {ordinal} {kind}")),
        instance=of,
        kind=kind,
        position=Position(position),
        ordinal=ordinal,
        due_us=0,
        type="shop.Ship",
        version=1,
        data=b'{"order": "a"}',
        tags=(),
        metadata=b"{}",
    )
    return msgspec.structs.replace(found, **changes)


class Writing:
    """A process as whoever works on it knows it."""

    def __init__(self, store: ProcessStore, stored: StoredProcess) -> None:
        self.store = store
        self.stored = stored

    def change(self, to: int | None = None, **what: Any) -> ProcessChange:
        """A change from where it stands."""
        stored = self.stored
        return ProcessChange(
            process=stored.name,
            epoch=stored.epoch,
            after=stored.checkpoint,
            checkpoint=stored.checkpoint if to is None else place(to),
            fingerprint="new",
            **what,
        )

    async def commit(self, to: int | None = None, **what: Any) -> None:
        """Make a change true, which has to work."""
        change = self.change(to, **what)
        assert await self.store.commit(change), "nobody else has changed the process, and the commit is refused"
        self.stored = StoredProcess(change.process, change.checkpoint, change.fingerprint, change.epoch)

    async def due(self, now_us: int = 0, limit: int = 100) -> list[Outgoing]:
        """What is to go out."""
        return await self.store.due(self.stored.name, now_us, limit)


class ProcessStoreCase(ABC):
    """How one adapter gives the contract its places."""

    shares_place: ClassVar[bool] = True
    """Whether two instances can be open on one place at a time. If not, the tests use one instance in both places."""
    leases_are_locks: ClassVar[bool] = False
    """Whether leases are locks of the operating system, which end with their holder and after no time."""

    @abstractmethod
    def place(self) -> AbstractAsyncContextManager[Callable[[], ProcessStore]]:
        """A new, empty place, for the length of the block; what is yielded connects one more store to it."""

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[ProcessStore]:
        """One open store in a new place."""
        async with self.place() as connect, opened(connect()) as store:
            yield store

    @asynccontextmanager
    async def two_stores(self) -> AsyncGenerator[tuple[ProcessStore, ProcessStore]]:
        """Two open stores in one new place."""
        async with self.place() as connect, opened(connect()) as one:
            if not self.shares_place:
                yield one, one
                return
            async with opened(connect()) as other:
                yield one, other

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[Writing]:
        """One process at the beginning, held."""
        async with self.store() as store:
            yield await begun(store)


async def begun(store: ProcessStore, process: str = SHIPPING) -> Writing:
    """A new process at the beginning, held by "a"."""
    stored = await store.create(process, place(START), "")
    epochs = await store.lease("a", [process], LONG_S)
    return Writing(store, msgspec.structs.replace(stored, epoch=epochs[process]))


@asynccontextmanager
async def opened(store: ProcessStore) -> AsyncGenerator[ProcessStore]:
    """The store, open for the length of the block."""
    await store.open()
    try:
        yield store
    finally:
        await store.close()
