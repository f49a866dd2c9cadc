"""Slices that are at different places: each folds, blocks and removes rows of its own keys and of no others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import pytest

from diptych import BoundedContext, Event, EventContext, ExpiresAt, Identity, Key, ReadModel, replace
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.application.registration import event_types, projections
from diptych.event_store.event_store import Commit
from diptych.event_store.history import History
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.read_side import projector as module
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.partitions import slice_of
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import Failed, Order, SliceWrite, WriteResult
from diptych.read_side.slice import Slice
from diptych.testing import ManualClock
from tests.parking import ACTOR, REASON

pytestmark = pytest.mark.anyio

UNSTORABLE = 99
"""An amount that the store refuses, and nobody knows before."""


class Sku(Identity): ...


class Moved(Event):
    sku: Sku
    amount: int = 1
    other: Sku | None = None


class Last(ReadModel):
    """Its key is told by the fold alone."""

    entry: Key[str]
    amount: int


class Session(ReadModel):
    sku: Key[Sku]
    until: ExpiresAt[datetime]
    events: int


class Stock(ReadModel):
    sku: Key[Sku]
    amount: int = 0


class PickyStore(MemoryReadStore):
    """Refuses rows with one amount, as a server may whose limits nobody knows."""

    def _write(self, write: SliceWrite) -> WriteResult:
        refused = any(UNSTORABLE in row for row in write.upserts)
        return Failed("it is too much") if refused else super()._write(write)


FIRST, SECOND = (next(sku for n in range(99) if slice_of(key_text((sku := Sku(f"s{n}"),)), 2) == at) for at in (0, 1))


class Warehouse:
    """A history, and one read model of it in two slices."""

    def __init__(self, context: BoundedContext) -> None:
        self.clock = ManualClock()
        self.types = event_types([context])
        self.store = MemoryEventStore(self.clock)
        self.read_store = PickyStore()
        (self.projection,) = projections([context], self.types)
        self.projector = Projector(self.store, History(self.types), self.read_store, [self.projection])

    async def open(self) -> tuple[Slice, Slice]:
        await self.store.open()
        await self.read_store.open()
        await self.projector.open()
        first, second = self.projector.slices
        return first, second

    async def append(self, event: Event, after_s: float = 0.0) -> None:
        self.clock.advance(after_s)
        found = self.types.of(type(event))
        data, settled = found.codec.settle(event)
        new = NewEvent(unique_bytes(), found.name, 1, data, found.tags(settled))
        await self.store.append([Commit((new,))])

    async def fold(self, slice: Slice, batches: int = 99) -> None:
        """Fold with one slice, as a process that holds no other one does."""
        for _ in range(batches):
            if not await self.projector.advance([slice]):
                return

    async def rows(self) -> list[ReadModel]:
        order = [Order(column) for column in self.projection.form.table.key]
        async with self.read_store.snapshot() as snapshot:
            rows = await snapshot.find(self.projection.name, (), order, 99)
        return [self.projection.form.model(row) for row in rows]

    async def blocked(self) -> list[str]:
        async with self.read_store.snapshot() as snapshot:
            return [found.key for found in await snapshot.blocked(self.projection.name)]


async def test_a_row_that_its_fold_names_is_written_by_its_slice_alone() -> None:
    """Another slice, which folds the same event to learn whose it is, does not bring an older row back."""
    context = BoundedContext("warehouse", events=[Moved])

    @context.projection(partitions=2)
    def last(event: Moved) -> Last:
        return Last(entry=event.sku, amount=event.amount)

    warehouse = Warehouse(context)
    ahead, behind = await warehouse.open()
    assert slice_of(key_text((str(FIRST),)), 2) == ahead.generation.slice
    for amount in (1, 2, 3):
        await warehouse.append(Moved(sku=FIRST, amount=amount))
    await warehouse.fold(ahead)
    warehouse.projector._batch_max = 1
    await warehouse.fold(behind, batches=1)
    assert await warehouse.rows() == [Last(entry=FIRST, amount=3)]


async def test_g9_a_refused_row_blocks_its_key_in_its_slice_alone() -> None:
    """An event that concerns keys of both: what the store refuses of one blocks nothing of the other."""
    context = BoundedContext("warehouse", events=[Moved])

    def both(event: Moved) -> Iterable[Sku]:
        return [event.sku] if event.other is None else [event.sku, event.other]

    @context.projection(keys=both, partitions=2)
    def stock(row: Stock, event: Moved) -> Stock:
        return replace(row, amount=event.amount if row.sku == FIRST else 1)

    warehouse = Warehouse(context)
    first, second = await warehouse.open()
    await warehouse.append(Moved(sku=FIRST, amount=UNSTORABLE, other=SECOND))
    await warehouse.append(Moved(sku=SECOND))
    await warehouse.fold(first)
    await warehouse.fold(second)
    assert await warehouse.blocked() == [key_text((FIRST,))]
    assert await warehouse.rows() == [Stock(sku=SECOND, amount=1)]


async def test_g9_a_blocked_key_is_replayed_up_to_where_its_slice_is() -> None:
    """Not up to where another one is, which would lose what lies between."""
    context = BoundedContext("warehouse", events=[Moved])

    @context.projection(partitions=2)
    def stock(row: Stock, event: Moved) -> Stock:
        if event.amount < 0:
            raise ValueError("poisoned")
        return replace(row, amount=row.amount + event.amount)

    warehouse = Warehouse(context)
    behind, ahead = await warehouse.open()
    await warehouse.append(Moved(sku=SECOND, amount=-1))
    await warehouse.fold(behind)
    await warehouse.append(Moved(sku=SECOND, amount=5))
    await warehouse.fold(ahead)
    assert (behind.position, ahead.position) == (1, 2)
    by_hand = BlockedKeys(warehouse.projector, warehouse.store, warehouse.read_store, ManualClock())
    name, key = warehouse.projection.name, key_text((SECOND,))
    assert await by_hand.discard(name, key, position=1, actor=ACTOR, reason=REASON) is None
    assert await warehouse.rows() == [Stock(sku=SECOND, amount=5)]
    await warehouse.fold(behind)
    assert await warehouse.rows() == [Stock(sku=SECOND, amount=5)]


async def test_a_row_that_has_expired_for_one_slice_stays_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slice that a row belongs to may have to fold an event of before; only that slice removes it."""
    monkeypatch.setattr(module, "BATCH_EVENTS_MAX", 1)
    context = BoundedContext("warehouse", events=[Moved])

    @context.projection(partitions=2)
    def session(row: Session | None, event: Moved, context: EventContext) -> Session:
        until = context.recorded_at + timedelta(seconds=10)
        return Session(sku=event.sku, until=until, events=1 if row is None else row.events + 1)

    warehouse = Warehouse(context)
    ahead, behind = await warehouse.open()
    warehouse.projector._batch_max = 1
    await warehouse.append(Moved(sku=SECOND))
    await warehouse.fold(behind)
    await warehouse.append(Moved(sku=SECOND), after_s=5)
    await warehouse.append(Moved(sku=FIRST), after_s=20)
    await warehouse.fold(ahead)
    await warehouse.fold(behind, batches=1)
    rows = {getattr(row, "sku", None): getattr(row, "events", 0) for row in await warehouse.rows()}
    assert rows == {FIRST: 1, SECOND: 2}
    await warehouse.fold(behind)
    assert [getattr(row, "sku", None) for row in await warehouse.rows()] == [FIRST]
