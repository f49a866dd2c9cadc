"""Leases: of several processes one works on each generation; others follow when it ends, stalls, or has too much."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import AsyncExitStack

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    EventContext,
    Identity,
    Key,
    Query,
    ReadModel,
    replace,
)
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.process_store import MemoryProcessStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.application.partition import Partition
from diptych.application.registration import event_types
from diptych.application.wiring import ConnectedStore, compile_contexts, wire
from diptych.clock import SystemClock
from diptych.errors import StoreUnavailable
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.history import History
from diptych.event_store.position import NOWHERE, START, Place
from diptych.read_side import leases as module
from diptych.read_side import projector, subscriber
from diptych.read_side.leases import LEASE_S, Leases
from diptych.read_side.read_store import Fenced, Generation, Leased, LeaseKey, SliceWrite, Table, WriteResult
from diptych.read_side.rebuild_policy import RebuildPolicy
from diptych.read_side.subscriber import Subscriber, Subscription
from diptych.write_side.command_bus import Sender

pytestmark = pytest.mark.anyio

HANG_S = 30
"""What takes longer hangs."""
KEYS: list[LeaseKey] = [("a", 1, 0), ("b", 1, 0), ("c", 1, 0), ("d", 1, 0)]


class Sku(Identity): ...


class Count(Command):
    sku: Sku


class Counted(Event):
    sku: Sku


class Stock(ReadModel):
    sku: Key[Sku]
    events: int = 0


class Ledger(ReadModel):
    sku: Key[Sku]
    events: int = 0


class StockOf(Query[Stock | None]):
    sku: Sku


A = Sku("a")


class SharedEventStore(MemoryEventStore):
    """Of several processes, as it were: one that ends does not end it."""

    async def close(self) -> None:
        """It stays open for the others."""


class SharedReadStore(MemoryReadStore):
    """The same; with a clock that is set by hand, and whose `lease` may fail or take its time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(self.now)
        self.error: BaseException | None = None
        self.failed = asyncio.Event()
        self.lease_takes_s = 0.0
        self.results: list[WriteResult] = []

    def now(self) -> float:
        return self.now_s

    async def open(self) -> None:
        if not self._open:
            await super().open()

    async def close(self) -> None:
        """It stays open for the others."""

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        self.now_s += self.lease_takes_s
        if self.error is not None:
            self.failed.set()
            raise self.error
        return await super().lease(worker, wanted, ttl_s)

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        results = await super().write(writes)
        self.results += results
        return results


@pytest.fixture
async def read_store() -> SharedReadStore:
    store = SharedReadStore()
    await store.open()
    for name, *_ in KEYS:
        await store.create_generation(name, "1", None, Place(b"h" * 16, START, NOWHERE), live=True)
    return store


def leases(store: SharedReadStore, worker: str, keys: Sequence[LeaseKey] = KEYS) -> Leases:
    return Leases(store, lambda: keys, worker, store.now)


def held(by: Leases, keys: Sequence[LeaseKey] = KEYS) -> list[str]:
    return [key[0] for key in keys if by.epoch(key) is not None]


# ── what one process holds ───────────────────────────────────────────────────


async def test_a_lease_is_over_by_the_clock_of_its_holder_also_where_nobody_says_so(
    read_store: SharedReadStore,
) -> None:
    """While the store cannot be reached, work goes on until the time is over, and no longer."""
    mine = leases(read_store, "a")
    assert held(mine) == []
    await mine.renew()
    read_store.now_s = 5.0
    read_store.error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        await mine.renew()
    read_store.now_s = LEASE_S - 0.1
    assert held(mine) == ["a", "b", "c", "d"]
    read_store.now_s = LEASE_S
    assert held(mine) == []
    read_store.error = None
    await mine.renew()
    assert held(mine) == ["a", "b", "c", "d"]


async def test_a_lease_is_never_valid_for_longer_than_the_store_thinks(read_store: SharedReadStore) -> None:
    """Its time counts from before the store was asked, however long the answer took."""
    mine = leases(read_store, "a")
    read_store.lease_takes_s = 4.0
    await mine.renew()
    assert read_store.now_s == 4.0
    read_store.now_s = LEASE_S
    assert held(mine) == []


async def test_who_works_is_told_when_what_is_held_changes(read_store: SharedReadStore) -> None:
    """A wait ends when a lease is won, lost, or valid again; and not when it is renewed."""
    mine = leases(read_store, "a")
    waiting = asyncio.create_task(mine.wait(mine.version, asyncio.Event().wait))
    await asyncio.wait([waiting], timeout=0)
    await mine.renew()
    await asyncio.wait_for(waiting, HANG_S)
    version = mine.version
    await mine.renew()
    assert mine.version == version
    await read_store.drop_generation("a", 1)
    await mine.renew()
    assert mine.version != version
    assert mine.gone == {("a", 1, 0)}
    version, read_store.now_s = mine.version, LEASE_S * 2
    await mine.renew()
    assert mine.version != version
    await asyncio.wait_for(mine.wait(version, asyncio.Event().wait), HANG_S)  # it changed before the wait began


async def test_a_wait_that_ends_by_itself_hands_on_how(read_store: SharedReadStore) -> None:
    """A time-out of what is waited for is its own, not the end of this wait."""
    mine = leases(read_store, "a")

    async def late() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await mine.wait(mine.version, late)


async def test_the_surplus_is_worked_on_no_more_and_released_when_the_work_on_it_is_over(
    read_store: SharedReadStore,
) -> None:
    """Nothing that is under way is handed to another process that is alive."""
    one, two = leases(read_store, "one"), leases(read_store, "two")
    await one.renew()
    await two.renew()
    with one.using([("a", 1, 0)]):
        await one.renew()
        await two.renew()
        assert (held(one), held(two)) == (["c", "d"], ["b"])
    await one.renew()
    await two.renew()
    assert (held(one), held(two)) == (["c", "d"], ["a", "b"])


async def test_the_end_of_the_work_on_a_surplus_is_acted_on_at_once(
    read_store: SharedReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process does not wait for a renewal."""
    monkeypatch.setattr(module, "LEASE_RENEW_S", 3_600.0)
    monkeypatch.setattr(module, "LEASE_LOOK_S", 0.0)
    one, two = leases(read_store, "one", KEYS[:2]), leases(read_store, "two", KEYS[:2])
    async with asyncio.timeout(HANG_S), AsyncExitStack() as closing:
        closing.push_async_callback(one.close)
        closing.push_async_callback(two.close)
        await one.open()
        with one.using([("a", 1, 0)]):
            await two.open()
            version = one.version
            one.ask()
            await one.wait(version, asyncio.Event().wait)
            assert (held(one), held(two)) == (["b"], [])
            version = two.version
        await two.wait(version, asyncio.Event().wait)
        assert (held(one), held(two)) == (["b"], ["a"])


async def test_closing_releases_and_others_hear_of_it(
    read_store: SharedReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not wait until it is time to renew, or until the lease has run out."""
    monkeypatch.setattr(module, "LEASE_RENEW_S", 3_600.0)
    monkeypatch.setattr(module, "LEASE_LOOK_S", 0.0)
    one, two = leases(read_store, "one", KEYS[:1]), leases(read_store, "two", KEYS[:1])
    async with asyncio.timeout(HANG_S):
        await one.open()
        await two.open()
        version = two.version
        await one.close()
        await two.wait(version, asyncio.Event().wait)
        assert (held(one), held(two)) == ([], ["a"])
        await two.close()


async def test_an_opening_that_is_cancelled_leaves_nothing_held(
    read_store: SharedReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store had given the leases already; the next process need not wait until they have run out."""
    given, lease = asyncio.Event(), SharedReadStore.lease

    async def never_told(store: SharedReadStore, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        await lease(store, worker, wanted, ttl_s)
        given.set()
        await asyncio.Event().wait()
        raise AssertionError

    one, two = leases(read_store, "one"), leases(read_store, "two")
    with monkeypatch.context() as patched:
        patched.setattr(SharedReadStore, "lease", never_told)
        opening = asyncio.create_task(one.open())
        await given.wait()
        opening.cancel()
        await asyncio.wait([opening])
    await one.close()
    await two.renew()
    assert held(two) == ["a", "b", "c", "d"]


async def test_a_close_that_is_cancelled_gives_the_leases_up_all_the_same(read_store: SharedReadStore) -> None:
    """Whoever closes in a hurry does not keep others waiting until the leases have run out."""
    one, two = leases(read_store, "one"), leases(read_store, "two")
    await one.open()
    closing = asyncio.create_task(one.close())
    await asyncio.sleep(0)  # noqa: TID251 — it waits for the renewing task to end
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    await two.renew()
    assert held(two) == ["a", "b", "c", "d"]


async def test_nothing_is_delivered_on_a_lease_that_went_while_the_checkpoint_was_read(
    read_store: SharedReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint read then is fenced by the epoch of who has the lease now, whose work it would undo."""
    store = MemoryEventStore(SystemClock())
    await store.open()

    async def deliver(events: Sequence[tuple[Event, EventContext]]) -> None:
        raise AssertionError

    counted = QueryItem(frozenset({"counted"}))
    alarm = Subscriber("alarm", EventQuery((counted,)), counted, deliver)
    subscription = Subscription(alarm, store, History(event_types([])), read_store)
    await subscription.open()
    one, two = (leases(read_store, name, [subscription.lease_key]) for name in ("one", "two"))
    await two.renew()
    read_store.now_s += LEASE_S
    await one.renew()
    create = SharedReadStore.create_generation

    async def slow(
        store: SharedReadStore, name: str, fingerprint: str, table: Table | None, checkpoint: Place, *, live: bool
    ) -> list[Generation]:
        read_store.now_s += LEASE_S
        await two.renew()
        return await create(store, name, fingerprint, table, checkpoint, live=live)

    with monkeypatch.context() as patched:
        patched.setattr(SharedReadStore, "create_generation", slow)
        assert not await subscription._is_held(one)
    assert await subscription._is_held(two)


async def test_closing_without_the_store_is_no_error(read_store: SharedReadStore) -> None:
    """The others have to wait until the leases run out."""

    async def release(worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        raise StoreUnavailable("gone")

    mine = leases(read_store, "a")
    await mine.open()
    read_store.release = release  # type: ignore[method-assign]
    await mine.close()
    assert held(mine) == []


async def test_renewals_go_on_after_a_failure(read_store: SharedReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sooner than usual; what nobody expected ends them, and is told."""
    monkeypatch.setattr(module, "LEASE_RENEW_S", 0.0)
    monkeypatch.setattr(module, "LEASE_LOOK_S", 0.0)
    mine = leases(read_store, "a")
    async with asyncio.timeout(HANG_S):
        await mine.open()
        version, read_store.error, read_store.now_s = mine.version, StoreUnavailable("gone"), LEASE_S
        for _ in range(10):
            await read_store.failed.wait()
            read_store.failed.clear()
        read_store.error = None
        await mine.wait(version, asyncio.Event().wait)
        assert held(mine) == ["a", "b", "c", "d"]
        assert mine.failure == ""
        read_store.error = ZeroDivisionError("unexpected")
        assert mine._task is not None
        await asyncio.wait([mine._task])
        assert "unexpected" in mine.failure
        await mine.close()


# ── several processes, one store ─────────────────────────────────────────────


class Fleet:
    """Processes that run one context on one store in memory; each counts what it folds and hears."""

    def __init__(self) -> None:
        self.store = SharedEventStore(SystemClock())
        self.read_store = SharedReadStore()
        self.closing = AsyncExitStack()
        self.folded: dict[str, list[str]] = {}
        self.heard: dict[str, list[int]] = {}
        self.delivering = asyncio.Event()
        self.deliver = asyncio.Event()
        self.deliver.set()

    async def start(self, name: str) -> Partition:
        """One more process."""
        self.folded[name], self.heard[name] = [], []
        context = self._context(name)
        compiled = compile_contexts([context], {})
        everything = frozenset(projection.name for projection in compiled.projections)
        running = wire(
            compiled,
            self.store,
            [ConnectedStore(self.read_store, compiled.projections, everything)],
            MemoryProcessStore(),
            clock=SystemClock(),
            projecting=True,
            policy=RebuildPolicy(),
            commands_waiting_max=100,
        )
        running.leases._monotonic = self.read_store.now
        await running.open()
        self.closing.push_async_callback(running.close)
        return running

    def _context(self, name: str) -> BoundedContext:
        context = BoundedContext("warehouse", events=[Counted])

        @context.command_handler
        def count(command: Count) -> Counted:
            return Counted(sku=command.sku)

        @context.projection
        def stock(row: Stock, event: Counted) -> Stock:
            self.folded[name].append("Stock")
            return replace(row, events=row.events + 1)

        @context.projection
        def ledger(row: Ledger, event: Counted) -> Ledger:
            self.folded[name].append("Ledger")
            return replace(row, events=row.events + 1)

        @context.subscriber
        async def alarm(events: Sequence[tuple[Counted, EventContext]]) -> None:
            self.delivering.set()
            await self.deliver.wait()
            self.heard[name] += [context.position for _, context in events]

        @context.subscriber
        async def zeal(events: Sequence[tuple[Counted, EventContext]]) -> None:
            pass

        return context

    async def followed(self, by: Partition) -> None:
        """Wait until everything shows, and has heard of, the history as it is now."""
        seen = 0
        await by.projected()
        while any(found.lag_events for found in (await by.status()).subscribers):
            seen = await self.read_store.wait_for_change(seen, HANG_S)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_RENEW_S", 0.02)
    monkeypatch.setattr(module, "LEASE_LOOK_S", 0.0)
    monkeypatch.setattr(projector, "IDLE_WAIT_S", 3_600.0)
    monkeypatch.setattr(subscriber, "IDLE_WAIT_S", 3_600.0)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def shares_of(*processes: Partition) -> Iterator[set[str]]:
    for process in processes:
        yield {key[0] for key in process.leases.asked if process.leases.epoch(key) is not None}


async def until_shared(*processes: Partition) -> None:
    """Wait until every process has a share."""
    while not all(shares_of(*processes)):
        await asyncio.wait(
            [
                asyncio.create_task(process.leases.wait(process.leases.version, asyncio.Event().wait))
                for process in processes
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )


async def count(process: Partition, times: int) -> None:
    for _ in range(times):
        await process.commands.execute(Count(sku=A), None, Sender())


@pytest.mark.usefixtures("_impatient")
async def test_g5_the_work_is_shared_among_processes_and_done_once(fleet: Fleet) -> None:
    """Each generation is folded by one of them, each event once; one that comes gets its share of them."""
    async with asyncio.timeout(HANG_S), fleet.closing:
        one = await fleet.start("one")
        await count(one, 3)
        await fleet.followed(one)
        two = await fleet.start("two")
        await until_shared(one, two)
        mine, theirs = shares_of(one, two)
        assert len(mine) == len(theirs) == 2
        assert mine.isdisjoint(theirs)
        await count(two, 4)
        await fleet.followed(one)
        await fleet.followed(two)
        assert sorted(fleet.folded["one"] + fleet.folded["two"]) == ["Ledger"] * 7 + ["Stock"] * 7
        assert sorted(fleet.heard["one"] + fleet.heard["two"]) == [1, 2, 3, 4, 5, 6, 7]
        assert fleet.read_store.results.count(Fenced()) == 0


@pytest.mark.usefixtures("_impatient")
async def test_g5_a_process_that_ends_hands_over_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other goes on with everything, from where it was left."""
    async with asyncio.timeout(HANG_S), fleet.closing:
        one, two = await fleet.start("one"), await fleet.start("two")
        await until_shared(one, two)
        monkeypatch.setattr(module, "LEASE_RENEW_S", 3_600.0)
        await count(one, 2)
        await fleet.followed(two)
        await one.close()
        before = len(fleet.folded["one"])
        await count(two, 3)
        await fleet.followed(two)
        assert len(fleet.folded["one"]) == before
        assert sorted(fleet.folded["one"] + fleet.folded["two"]) == ["Ledger"] * 5 + ["Stock"] * 5
        assert [len(share) for share in shares_of(one, two)] == [0, 4]


@pytest.mark.usefixtures("_impatient")
async def test_g5_a_process_that_stalls_is_taken_over_and_writes_nothing_any_more(fleet: Fleet) -> None:
    """Stopped in the middle of a batch and woken after its lease, it is fenced; the other one folds that batch."""
    async with asyncio.timeout(HANG_S), fleet.closing:
        one = await fleet.start("one")
        await count(one, 1)
        await fleet.followed(one)
        stopped = one.projector
        (slice,) = [slice for slice in stopped.slices if slice.projection.form.cls is Stock]
        async with stopped.lock:  # as if it were in the middle of a batch, and renewed nothing any more
            assert one.leases._task is not None
            one.leases._task.cancel()
            zombie = slice.generation
            fleet.read_store.now_s += LEASE_S
            two = await fleet.start("two")
            await count(two, 2)
            await two.projected()
            head = await fleet.store.head()
            assert await fleet.read_store.write([SliceWrite(zombie, head, [("a", 99)])]) == [Fenced()]
            assert await fleet.read_store.write([SliceWrite(slice.generation, head, [("a", 99)])]) == [Fenced()]
        assert [len(share) for share in shares_of(one, two)] == [0, 4]
        await fleet.followed(two)
        assert (fleet.folded["one"].count("Stock"), fleet.folded["two"].count("Stock")) == (1, 2)
        async with fleet.read_store.snapshot() as snapshot:
            assert await snapshot.get_many("warehouse.Stock", [("a",)]) == {("a",): ("a", 3)}


@pytest.mark.usefixtures("_impatient")
async def test_a_process_that_stalled_comes_back_with_a_share(fleet: Fleet) -> None:
    """It reads anew what the other has done meanwhile, and folds on from there."""
    async with asyncio.timeout(HANG_S), fleet.closing:
        one = await fleet.start("one")
        await count(one, 1)
        await fleet.followed(one)
        fleet.read_store.error = StoreUnavailable("one cannot reach it")
        version = one.leases.version
        await fleet.read_store.failed.wait()
        fleet.read_store.now_s += LEASE_S
        assert list(shares_of(one)) == [set()]
        fleet.read_store.error = None
        two = await fleet.start("two")
        if one.leases.version == version:
            await one.leases.wait(version, asyncio.Event().wait)
        await until_shared(one, two)
        await count(two, 5)
        await fleet.followed(one)
        await fleet.followed(two)
        assert sorted(fleet.folded["one"] + fleet.folded["two"]) == ["Ledger"] * 6 + ["Stock"] * 6


@pytest.mark.usefixtures("_impatient")
async def test_a_delivery_under_way_is_not_handed_to_another_process(fleet: Fleet) -> None:
    """The subscriber that is to move goes on where it was left, when the delivery is over: nothing comes twice."""
    async with asyncio.timeout(HANG_S), fleet.closing:
        one = await fleet.start("one")
        fleet.deliver.clear()
        await count(one, 3)
        await fleet.delivering.wait()
        two, three = await fleet.start("two"), await fleet.start("three")
        four = await fleet.start("four")
        await until_shared(one, two, three)
        while ("warehouse.alarm", 1, 0) not in one.leases._leased.surplus:
            await one.leases.wait(one.leases.version, asyncio.Event().wait)
        assert list(shares_of(one, four)) == [{"warehouse.zeal"}, set()]
        await count(two, 2)
        fleet.deliver.set()
        await fleet.followed(one)
        assert fleet.heard["one"] + fleet.heard["four"] == [1, 2, 3, 4, 5]
        assert fleet.heard["four"][-1:] == [5]


# ── applications on one file ─────────────────────────────────────────────────


class Trouble:
    """What is wrong around a projection."""

    now = False


def warehouse(folded: list[Sku], heard: list[int] | None = None, step: int = 1) -> BoundedContext:
    """One projection, which counts by `step`; it stops where there is trouble."""
    context = BoundedContext("warehouse")

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(sku=command.sku)

    def sku_of(event: Counted) -> Sku:
        if Trouble.now:
            raise KeyError("no key")
        return event.sku

    if step == 1:

        @context.projection(key=sku_of)
        def stock(row: Stock, event: Counted) -> Stock:
            folded.append(event.sku)
            return replace(row, events=row.events + 1)

    else:

        @context.projection(key=sku_of)
        def stock_by_ten(row: Stock, event: Counted) -> Stock:
            folded.append(event.sku)
            return replace(row, events=row.events + 10)

    if heard is not None:

        @context.subscriber
        async def hear(events: Sequence[tuple[Counted, EventContext]]) -> None:
            heard.extend(context.position for _, context in events)

    return context


@pytest.fixture
def url(tmp_path: object) -> str:
    return f"sqlite:{tmp_path}/events.db"


async def shown(app: Application, after: str) -> int:
    row = await app.query(StockOf(sku=A), after=after, wait_s=HANG_S)
    return 0 if row is None else row.events


async def test_g5_of_two_applications_on_one_file_one_folds_and_the_other_follows_it(url: str) -> None:
    """Both answer; the second takes over when the first is closed."""
    folds: list[list[Sku]] = [[], []]
    first, second = (Application(warehouse(folded), store=url) for folded in folds)
    async with asyncio.timeout(HANG_S), second:
        await second.close()
        async with first:
            await second.open()
            for n in range(1, 6):
                app = (first, second)[n % 2]
                receipt = await app.execute(Count(sku=A))
                assert await shown(second, receipt.token) == n
            await second.projected()
            assert (await second.health()).ready
            assert [len(folded) for folded in folds] == [5, 0]
        receipt = await second.execute(Count(sku=A))
        assert await shown(second, receipt.token) == 6
    assert [len(folded) for folded in folds] == [5, 1]


async def test_of_two_applications_on_one_file_one_delivers(url: str) -> None:
    """Each event comes to the subscriber of one of them, once; and to that of the other when the first is closed."""
    heard: list[list[int]] = [[], []]
    first, second = (Application(warehouse([], each), store=url) for each in heard)

    async def delivered(app: Application, position: int) -> None:
        seen = 0
        while (await app.status()).subscribers[0].checkpoint < position:
            seen = await app.partition().read_store.wait_for_change(seen, HANG_S)

    async with asyncio.timeout(HANG_S):
        await first.open()
        async with second:
            for _ in range(4):
                await second.execute(Count(sku=A))
            await delivered(second, 4)
            await first.close()
            await second.execute(Count(sku=A))
            await delivered(second, 5)
    assert heard == [[1, 2, 3, 4], [5]]


async def test_changed_code_is_built_beside_while_the_old_goes_on(url: str) -> None:
    """A lease is on one generation: who runs other code does not wait for the old one to end."""
    folds: list[list[Sku]] = [[], []]
    async with asyncio.timeout(HANG_S), Application(warehouse(folds[0]), store=url) as old:
        receipt = await old.execute(Count(sku=A))
        assert await shown(old, receipt.token) == 1
        async with Application(warehouse(folds[1], step=10), store=url) as new:
            assert await shown(new, receipt.token) == 10
            receipt = await old.execute(Count(sku=A))
            assert await shown(new, receipt.token) == 20
    assert len(folds[1]) == 2


async def test_a_rebuild_is_followed_by_who_holds_the_lease_and_by_who_waits_for_it(url: str) -> None:
    """The new generation is leased like the old one: by one, then by the next, neither of which was told."""
    folds: list[list[Sku]] = [[], []]
    first, second = (Application(warehouse(folded), store=url) for folded in folds)
    async with asyncio.timeout(HANG_S), Application(warehouse([]), store=url, projecting=False) as by_hand:
        await first.open()
        async with second:
            receipt = await second.execute(Count(sku=A))
            assert await shown(first, receipt.token) == 1
            await by_hand.rebuilds.rebuild("Stock")
            receipt = await second.execute(Count(sku=A))
            assert await shown(second, receipt.token) == 2
            assert sum(len(folded) for folded in folds) <= 3, "the one that is fenced has folded it in vain"
            for app in (first, second):
                leases = app.partition().leases
                leases.ask()
                version = leases.version
                while ("warehouse.Stock", 2, 0) not in leases.asked:
                    await leases.wait(version, asyncio.Event().wait)
                    version = leases.version
            await first.close()
            receipt = await second.execute(Count(sku=A))
            assert await shown(second, receipt.token) == 3
            assert (await second.rebuilds.compare("Stock")).same


async def test_a_successor_is_asked_for_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever learns in the middle of its work that its generation was replaced does not wait for a renewal."""
    monkeypatch.setattr(module, "LEASE_RENEW_S", 3_600.0)
    async with (
        asyncio.timeout(HANG_S),
        Application(warehouse([]), store=url) as app,
        Application(warehouse([]), store=url, projecting=False) as by_hand,
    ):
        receipt = await app.execute(Count(sku=A))
        assert await shown(app, receipt.token) == 1
        await by_hand.rebuilds.rebuild("Stock")
        receipt = await app.execute(Count(sku=A))
        assert await shown(app, receipt.token) == 2
        await app.rebuilds.rebuild("Stock")
        receipt = await app.execute(Count(sku=A))
        assert await shown(app, receipt.token) == 3


async def test_a_rebuild_by_who_does_not_hold_the_lease(url: str) -> None:
    """It is a projecting process itself, beside the one that folds."""
    folds: list[list[Sku]] = [[], []]
    first, second = (Application(warehouse(folded), store=url) for folded in folds)
    async with asyncio.timeout(HANG_S), first, second:
        receipt = await first.execute(Count(sku=A))
        assert await shown(second, receipt.token) == 1
        assert (await second.rebuilds.compare("Stock")).same
        await second.rebuilds.rebuild("Stock")
        receipt = await first.execute(Count(sku=A))
        assert await shown(first, receipt.token) == 2
        assert (await first.rebuilds.compare("Stock")).same


async def test_what_cannot_go_on_here_is_left_to_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stops at an event gives its lease up; another tries again, and the first one says so."""
    folds: list[list[Sku]] = [[], []]
    first, second = (Application(warehouse(folded), store=url) for folded in folds)
    monkeypatch.setattr(Trouble, "now", True)
    monkeypatch.setattr(module, "LEASE_RENEW_S", 3_600.0)
    async with asyncio.timeout(HANG_S), first:
        await first.execute(Count(sku=A))
        await first.projected()
        (status,) = (await first.status()).projections
        assert "no key" in status.stopped
        assert not (await first.health()).ready
        monkeypatch.setattr(Trouble, "now", False)
        async with second:
            receipt = await second.execute(Count(sku=A))
            assert await shown(first, receipt.token) == 2
            (status,) = (await first.status()).projections
            assert status.stopped == ""
            assert (await first.health()).ready
    assert [len(folded) for folded in folds] == [0, 2]


async def test_an_application_that_does_not_project_asks_for_nothing(url: str) -> None:
    """Another one gets the leases, also when it comes later."""
    folded: list[Sku] = []
    async with asyncio.timeout(HANG_S), Application(warehouse([]), store=url, projecting=False) as looking:
        receipt = await looking.execute(Count(sku=A))
        assert looking.partition().leases.asked == frozenset()
        async with Application(warehouse(folded), store=url):
            assert await shown(looking, receipt.token) == 1
    assert len(folded) == 1
