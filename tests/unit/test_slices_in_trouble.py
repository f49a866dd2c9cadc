"""Slices of which one stops, stands still, was split meanwhile, or is of another history: the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    EventContext,
    ExpiresAt,
    Identity,
    Key,
    Query,
    ReadModel,
    replace,
)
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.registration import event_types, projections
from diptych.errors import HistoryDiverged, StoreUnavailable
from diptych.event_store.event_store import Commit
from diptych.event_store.history import History
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.read_side import projector as module
from diptych.read_side import rebuild
from diptych.read_side import slice as slice_module
from diptych.read_side.partitions import slice_of
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import SliceWrite, WriteResult, Written
from diptych.read_side.rebuild import Rebuilds
from diptych.read_side.slice import Slice
from diptych.testing import ManualClock

pytestmark = pytest.mark.anyio


class Sku(Identity): ...


class Count(Command):
    sku: Sku


class Counted(Event):
    sku: Sku
    amount: int = 1


class Stock(ReadModel):
    sku: Key[Sku]
    events: int = 0


class Tally(ReadModel):
    sku: Key[Sku]
    events: int = 0


class Session(ReadModel):
    sku: Key[Sku]
    until: ExpiresAt[datetime]


class StockOf(Query[Stock | None]):
    sku: Sku


class TallyOf(Query[Tally | None]):
    sku: Sku


class Stocks(Query[list[Stock]]): ...


WAIT_S = 20.0
POISONED = Sku("poisoned")
BAD = slice_of(key_text((POISONED,)), 2)


def skus(number: int, slices: int = 2) -> list[Sku]:
    return [s for n in range(99) if slice_of(key_text(((s := Sku(f"s{n}")),)), slices) == number]


HEALTHY = skus(1 - BAD)[0]


def warehouse(partitions: int, version: int = 1, poisonous: int = 1) -> BoundedContext:
    context = BoundedContext("warehouse")

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(sku=command.sku)

    @context.projection(partitions=partitions, version=version)
    def stock(row: Stock, event: Counted) -> Stock:
        if event.sku == "poisoned" and version >= poisonous:
            raise ValueError("poisoned")
        return replace(row, events=row.events + 1)

    return context


@pytest.fixture
def easily_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 1,001 blocked keys stop a slice, and 1,000 events are a batch."""
    monkeypatch.setattr(slice_module, "BLOCKED_KEYS_MAX", 0)
    monkeypatch.setattr(module, "BATCH_EVENTS_MAX", 1)
    monkeypatch.setattr(module, "BATCH_EVENTS_MIN", 1)


async def one_stopped(url: str, poisonous: int = 1) -> None:
    async with asyncio.timeout(10), Application(warehouse(2, poisonous=poisonous), store=url) as app:
        await app.execute(Count(sku=POISONED))
        receipts = [await app.execute(Count(sku=HEALTHY)) for _ in range(5)]
        assert await app.query(StockOf(sku=HEALTHY), after=receipts[-1]) == Stock(sku=HEALTHY, events=5)
        await app.projected()


@pytest.mark.usefixtures("easily_stopped")
async def test_projected_returns_where_a_stopped_slice_holds_the_barrier(tmp_path: Path) -> None:
    """A stopped slice would be waited for at the barrier: there is none then, and `projected()` returns."""
    url = f"sqlite:{tmp_path}/a.db"
    await one_stopped(url)
    async with Application(warehouse(4), store=url) as app:
        await app.execute(Count(sku=HEALTHY))
        await asyncio.wait_for(app.projected(), 3)


@pytest.mark.usefixtures("easily_stopped")
async def test_a_healthy_slice_goes_on_when_a_split_is_asked_for(tmp_path: Path) -> None:
    """What answered before a deployment with another number answers after it, though a slice is stopped."""
    url = f"sqlite:{tmp_path}/a.db"
    await one_stopped(url)
    async with Application(warehouse(2), store=url) as app:  # the same number: all is well
        receipt = await app.execute(Count(sku=HEALTHY))
        assert await app.query(StockOf(sku=HEALTHY), after=receipt) == Stock(sku=HEALTHY, events=6)
    async with Application(warehouse(4), store=url) as app:
        receipt = await app.execute(Count(sku=HEALTHY))
        await app.query(StockOf(sku=HEALTHY), after=receipt, wait_s=2)


@pytest.mark.usefixtures("easily_stopped")
async def test_projected_returns_where_a_build_has_a_stopped_slice(tmp_path: Path) -> None:
    """A changed fold is built, and one of its slices has stopped: nobody waits for it to be live."""
    url = f"sqlite:{tmp_path}/a.db"
    await one_stopped(url, poisonous=2)
    async with Application(warehouse(2, version=2, poisonous=2), store=url) as app:
        await asyncio.wait_for(app.projected(), 3)


@pytest.mark.usefixtures("easily_stopped")
async def test_a_build_with_a_stopped_slice_does_not_switch_with_each_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all have caught up is asked now and then, not with each event."""
    url = f"sqlite:{tmp_path}/a.db"
    await one_stopped(url, poisonous=2)
    calls = 0
    real = SqliteReadStore.switch

    async def switch(self: SqliteReadStore, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        nonlocal calls
        calls += 1
        return await real(self, name, number, keep_s=keep_s)

    monkeypatch.setattr(SqliteReadStore, "switch", switch)
    async with Application(warehouse(2, version=2, poisonous=2), store=url) as app:
        running = app.partition()
        for _ in range(20):
            receipt = await app.execute(Count(sku=HEALTHY))
            while min(s.position for s in running.projector.slices if not s.stopped) < int(receipt.position):
                await running.read_store.wait_for_change(running.read_store.changes, 1)
    assert calls < 10


# ── forks ────────────────────────────────────────────────────────────────────


class ForkingStore(MemoryEventStore):
    """After `fork`, the history ends earlier and goes on with other events, as after a failover."""

    number = 0

    @property
    def forks(self) -> int:
        return self.number

    def fork(self, at: int) -> None:
        del self._events[at:]
        self.number += 1


class World:
    def __init__(self, context: BoundedContext, store: MemoryEventStore | None = None) -> None:
        self.clock = ManualClock()
        self.types = event_types([context])
        self.store = store or MemoryEventStore(self.clock)
        self.read_store = MemoryReadStore()
        self.context = context

    async def open(self) -> None:
        await self.store.open()
        await self.read_store.open()

    def projector(self, context: BoundedContext | None = None) -> Projector:
        types = self.types
        return Projector(self.store, History(types), self.read_store, projections([context or self.context], types))

    async def append(self, event: Event, after_s: float = 0.0) -> None:
        self.clock.advance(after_s)
        found = self.types.of(type(event))
        data, settled = found.codec.settle(event)
        await self.store.append([Commit((NewEvent(unique_bytes(), found.name, 1, data, found.tags(settled)),))])


async def test_slices_that_were_split_after_a_fork_are_verified() -> None:
    """Whoever took their place is looked at as well, and stops where its history is gone."""
    world = World(warehouse(2), ForkingStore(ManualClock()))
    await world.open()
    mine = world.projector()
    await mine.open()
    for _n in range(3):
        await world.append(Counted(sku=HEALTHY))
    while await mine.advance(mine.slices):
        pass
    assert {slice.position for slice in mine.slices} == {3}
    world.store.fork(2)  # type: ignore[attr-defined]
    await world.append(Counted(sku=HEALTHY))  # another one at position 3
    await world.append(Counted(sku=HEALTHY))
    other = world.projector(warehouse(3))
    with pytest.raises(HistoryDiverged):
        await other.open()
    await mine._verify()
    assert all(slice.stopped for slice in mine.slices), [(s.generation.slice, s.stopped) for s in mine.slices]


class FoundLate(ForkingStore):
    """Notices a second fork while it is looked at because of the first one."""

    late = False

    async def place_at(self, position: Position) -> Place | None:
        """The place, if it is not noticed now."""
        if self.late:
            self.late = False
            self.fork(3)
            raise HistoryDiverged("what was read", "the history turned out to be another one meanwhile")
        return await super().place_at(position)


async def test_a_fork_that_is_noticed_while_another_is_verified_stops_nothing() -> None:
    """What was being looked up is looked up again: rows of what is still there go on."""
    world = World(warehouse(1), FoundLate(ManualClock()))
    await world.open()
    mine = world.projector()
    await mine.open()
    await world.append(Counted(sku=HEALTHY))
    while await mine.advance(mine.slices):
        pass
    for _n in range(4):
        await world.append(Counted(sku=HEALTHY))
    world.store.fork(4)  # type: ignore[attr-defined]
    world.store.late = True  # type: ignore[attr-defined]
    with pytest.raises(HistoryDiverged, match="meanwhile"):
        await mine._verify()
    assert not any(slice.stopped for slice in mine.slices)
    await mine._verify()
    while await mine.advance(mine.slices):
        pass
    assert {slice.position for slice in mine.slices} == {3}


# ── expiry ───────────────────────────────────────────────────────────────────


def sessions(partitions: int = 2) -> BoundedContext:
    context = BoundedContext("warehouse", events=[Counted])

    @context.projection(partitions=partitions)
    def session(row: Session | None, event: Counted, context: EventContext) -> Session:
        return Session(sku=event.sku, until=context.recorded_at + timedelta(seconds=10))

    return context


async def test_expired_rows_of_a_slice_are_removed_whatever_another_one_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a slice that stands still come first, and do not keep others from being removed."""
    monkeypatch.setattr(slice_module, "EXPIRED_ROWS_MAX", 2)
    world = World(sessions())
    await world.open()
    projector = world.projector()
    await projector.open()
    _first, second = projector.slices
    for sku in skus(0)[:4]:
        await world.append(Counted(sku=sku))
    while await projector.advance(projector.slices):
        pass
    # from here on the first slice stands still: stopped, or held by a process that hangs
    for n in range(30):
        for sku in skus(1)[n : n + 1]:
            await world.append(Counted(sku=sku), after_s=30)
        while await projector.advance([second]):
            pass
    async with world.read_store.snapshot() as snapshot:
        keys = await snapshot.expired("warehouse.Session", world.clock.now(), 999)
    mine = [key for key in keys if second.owns(key)]
    assert len(mine) <= 2


async def test_verify_finds_no_difference_where_slices_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are compared as of the latest moment that any slice has come to: what has expired by then is in neither."""
    world = World(sessions())
    await world.open()
    projector = world.projector()
    await projector.open()
    projector._batch_max = 1
    _first, second = projector.slices
    for sku in skus(1)[:4]:
        await world.append(Counted(sku=sku))
    for _ in range(4):
        await projector.advance([second])
    await world.append(Counted(sku=skus(1)[5]), after_s=60)
    await projector.advance([second])  # removes four; the first slice is at 0
    monkeypatch.setattr(slice_module, "EXPIRED_ROWS_MAX", 1)  # stands for more than 1,000 rows
    found = await Rebuilds(projector, world.read_store).compare("Session")
    assert found.same, found


# ── races ────────────────────────────────────────────────────────────────────


async def test_a_projection_that_is_replaced_while_it_is_split_is_still_known() -> None:
    """The generation goes between the split and the look at it: it is followed, and says what happened."""

    class Racing(MemoryReadStore):
        async def split(self, name: str, number: int, slices: int | None = None) -> bool:
            done = await super().split(name, number, slices)
            await self.create_generation(
                name, "other", (await self.generations())[0].table, Place(b"", START, NOWHERE), live=False, anew=True
            )
            await self.switch(name, number + 1)
            return done

    world = World(warehouse(2))
    world.read_store = Racing()
    await world.open()
    await world.projector().open()
    late = world.projector(warehouse(3))
    await late.open()
    assert late.slices_of("warehouse.Stock")


async def test_a_rebuild_that_is_split_as_it_is_switched_to_goes_on() -> None:
    """Another process opens with another number between the switch and the look at it."""

    class Racing(MemoryReadStore):
        async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
            done = await super().switch(name, number, keep_s=keep_s)
            if done:
                await self.split(name, number, 3)
            return done

    world = World(warehouse(2))
    world.read_store = Racing()
    await world.open()
    projector = world.projector()
    await projector.open()
    await world.append(Counted(sku=HEALTHY))
    while await projector.advance(projector.slices):
        pass
    await Rebuilds(projector, world.read_store).rebuild("Stock")
    assert not [slice.stopped for slice in projector.slices if slice.stopped]


async def test_slices_that_were_split_while_they_were_folded_retire(caplog: pytest.LogCaptureFixture) -> None:
    """Another process has split them: those that they were split into are followed, and nothing has stopped."""
    world = World(warehouse(2))
    await world.open()
    projector = world.projector()
    await projector.open()
    await world.append(Counted(sku=HEALTHY))
    were = list(projector.slices)
    await world.read_store.split("warehouse.Stock", 1, 3)
    await projector.advance(were)
    assert [(slice.retired, slice.goes_on, slice.stopped) for slice in were] == [(True, False, "")] * 2
    assert not await projector.advance(were)
    assert await projector.advance(projector.slices)
    assert [(slice.position, slice.goes_on) for slice in projector.slices] == [(1, True)] * 3
    assert not caplog.records


# ── rebuilds beside other processes ──────────────────────────────────────────


async def test_a_rebuild_gives_up_on_live_rows_that_it_cannot_catch_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit, which its error names; the live generation stays, and the build is gone."""
    monkeypatch.setattr(rebuild, "CATCH_UP_ATTEMPTS_MAX", 3)
    attempts: list[int] = []

    class Racing(MemoryReadStore):
        async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
            attempts.append(number)
            await world.append(Counted(sku=HEALTHY))
            await other.advance(other.slices)
            return await super().switch(name, number, keep_s=keep_s)

    world = World(warehouse(2))
    world.read_store = Racing()
    await world.open()
    projector, other = world.projector(), world.projector()
    await projector.open()
    await other.open()
    with pytest.raises(StoreUnavailable, match=r"warehouse\.Stock cannot be rebuilt.*CATCH_UP_ATTEMPTS_MAX=3"):
        await Rebuilds(projector, world.read_store).rebuild("Stock")
    assert attempts == [2] * 3
    assert [(each.number, each.live) for each in await world.read_store.generations()] == [(1, True)] * 2


async def test_a_comparison_gives_up_on_live_rows_that_it_cannot_catch_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit, which its error names; the fresh fold is gone, and with less to do there is no difference."""
    monkeypatch.setattr(rebuild, "CATCH_UP_ATTEMPTS_MAX", 3)
    racing = True

    class Overtaken(Projector):
        async def advance(self, slices: Sequence[Slice], until: Position | None = None) -> bool:
            folded = await super().advance(slices, until)
            if racing:
                await world.append(Counted(sku=HEALTHY))
                await other.advance(other.slices)
            return folded

    world = World(warehouse(2))
    await world.open()
    other = world.projector()
    await other.open()
    await world.append(Counted(sku=HEALTHY))
    await other.advance(other.slices)
    projector = Overtaken(
        world.store, History(world.types), world.read_store, projections([world.context], world.types)
    )
    projector.slices = [Slice(slice.projection, slice.generation) for slice in other.slices]
    rebuilds = Rebuilds(projector, world.read_store)
    with pytest.raises(StoreUnavailable, match=r"warehouse\.Stock cannot be compared.*CATCH_UP_ATTEMPTS_MAX=3"):
        await rebuilds.compare("Stock")
    racing = False
    assert [each.number for each in await world.read_store.generations()] == [1, 1]
    found = await rebuilds.compare("Stock")
    assert found.same
    assert found.position > 1


async def test_a_rebuild_that_another_process_holds_at_a_barrier_gives_up() -> None:
    """It cannot come to the live rows, and says so instead of looking for ever; the live generation stays."""

    class Racing(MemoryReadStore):
        raced = False

        async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
            if not self.raced and writes[0].generation.number == 2:
                self.raced = True
                place = await world.store.place_at(Position(1))
                assert place is not None
                await super().write([SliceWrite(writes[1].generation, place)])
                await self.split("warehouse.Stock", 2, 3)
            return await super().write(writes)

    world = World(warehouse(2))
    world.read_store = Racing()
    await world.open()
    projector = world.projector()
    await projector.open()
    for _ in range(3):
        await world.append(Counted(sku=HEALTHY))
    while await projector.advance(projector.slices):
        pass
    with pytest.raises(StoreUnavailable, match="gets no further than position 1: another process splits it anew"):
        await Rebuilds(projector, world.read_store).rebuild("Stock")
    assert [(each.number, each.live) for each in await world.read_store.generations()] == [(1, True)] * 2


# ── leases ───────────────────────────────────────────────────────────────────


async def test_a_lease_kept_over_a_split_is_fenced_when_it_is_released(tmp_path: Path) -> None:
    """On SQLite its holder keeps the lock, and is forgotten by the split; its release raises the epoch all the same."""
    store = SqliteReadStore(f"{tmp_path}/rows.db")
    await store.open()
    try:
        start = Place(b"h" * 16, START, NOWHERE)
        await store.create_generation("a", "", None, start, live=True, slices=2)
        keys = [("a", 1, 0), ("a", 1, 1)]
        await store.lease("one", keys, 10)
        await store.split("a", 1, 1)
        await store.lease("one", keys[:1], 10)
        (held,) = await store.generations()
        await store.release("one")
        await store.lease("two", keys[:1], 10)
        (result,) = await store.write([SliceWrite(held, Place(b"h" * 16, Position(1), b"e" * 16))])
        assert not isinstance(result, Written), "the worker can write after its release"
    finally:
        await store.close()


async def test_within_reads_the_history_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of slices at one place one is judged, however many there are."""
    async with Application(warehouse(256), store="memory:") as app:
        await app.execute(Count(sku=HEALTHY))
        await app.projected()
        store = app.partition().store
        calls = 0
        real = store.read

        async def read(*a: object, **k: object) -> object:
            nonlocal calls
            calls += 1
            return await real(*a, **k)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "read", read)
        await app.query(Stocks(), within_s=1)
        assert calls == 1


async def test_a_split_is_done_as_soon_as_the_last_slice_is_at_the_barrier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings the last slice to the barrier splits at once."""
    monkeypatch.setattr(module, "IDLE_WAIT_S", 3_600.0)
    url = f"sqlite:{tmp_path}/a.db"
    async with Application(warehouse(2), store=url) as app:
        await app.execute(Count(sku=HEALTHY))
        await app.projected()
    async with Application(warehouse(2), store=url, projecting=False) as app:  # as where two processes hold them
        await app.execute(Count(sku=Sku("nobody")))
        running = app.partition()
        slices = await running.read_store.generations()
        owner = slices[slice_of(key_text((Sku("nobody"),)), 2)]
        other = next(slice for slice in slices if slice is not owner)
        await running.read_store.write([SliceWrite(other, await running.store.head())])
    async with Application(warehouse(3), store=url) as app:
        receipt = await app.execute(Count(sku=HEALTHY))
        await app.query(StockOf(sku=HEALTHY), after=receipt, wait_s=WAIT_S)


def with_tally(partitions: int) -> BoundedContext:
    context = warehouse(partitions)

    @context.projection
    def tally(row: Tally, event: Counted) -> Tally:
        return replace(row, events=row.events + 1)

    return context


async def test_a_split_is_done_while_another_projection_is_busy(tmp_path: Path) -> None:
    """Whether the barrier was reached is looked at with each batch, though there is always something to fold."""
    url = f"sqlite:{tmp_path}/a.db"
    async with Application(with_tally(2), store=url) as app:
        await app.execute(Count(sku=HEALTHY))
        await app.projected()
    async with Application(with_tally(2), store=url, projecting=False) as app:
        await app.execute(Count(sku=Sku("nobody")))
        running = app.partition()
        slices = [found for found in await running.read_store.generations() if found.name == "warehouse.Stock"]
        owner = slices[slice_of(key_text((Sku("nobody"),)), 2)]
        other = next(slice for slice in slices if slice is not owner)
        await running.read_store.write([SliceWrite(other, await running.store.head())])
    async with Application(with_tally(3), store=url) as app:

        async def load() -> None:
            while True:
                await app.execute(Count(sku=Sku("load")))
                await app.query(TallyOf(sku=Sku("load")), freshness="latest")

        loading = asyncio.create_task(load())
        receipt = await app.execute(Count(sku=HEALTHY))
        try:
            await app.query(StockOf(sku=HEALTHY), after=receipt, wait_s=WAIT_S)
        finally:
            loading.cancel()


async def test_fewer_slices_do_not_stop_a_projection_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several slices have blocked may be more than one may block; it blocks no more, and goes on."""
    monkeypatch.setattr(slice_module, "BLOCKED_KEYS_MAX", 1)

    def made(partitions: int) -> BoundedContext:
        context = BoundedContext("warehouse")

        @context.command_handler
        def count(command: Count) -> Counted:
            return Counted(sku=command.sku)

        @context.projection(partitions=partitions)
        def stock(row: Stock, event: Counted) -> Stock:
            if event.sku in (bad[0], bad[1]):
                raise ValueError("poisoned")
            return replace(row, events=row.events + 1)

        return context

    bad = (skus(0)[0], skus(1)[0])
    well = skus(0)[1]
    url = f"sqlite:{tmp_path}/a.db"
    for partitions in (2, 1):
        async with Application(made(partitions), store=url) as app:
            if partitions == 2:
                for sku in bad:
                    await app.execute(Count(sku=sku))
            for _ in range(3):
                receipt = await app.execute(Count(sku=well))
                await app.query(StockOf(sku=well), after=receipt, wait_s=3)
