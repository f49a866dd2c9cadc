"""What a hostile review of partitions found: each defect with the test that showed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import httpx2
import msgspec
import pytest

from diptych import (
    Application,
    Command,
    ConfigurationError,
    Key,
    NotFresh,
    Query,
    Reader,
    ReadModel,
)
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.clock import SystemClock
from diptych.entrypoints.http import http_app
from diptych.errors import HistoryDiverged, InvalidMessage, OutcomeUnknown, StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import AppendResult, Commit, ReadResult
from diptych.event_store.merged_log import MergedLog
from diptych.event_store.position import START, TOKENS_MAX, Place, Position
from diptych.read_side import snapshot_turns, spanning_queries
from diptych.testing import ManualClock
from diptych.testing.contracts.event_store_case import append_one, event, let_others_run, opened
from tests.tenants import (
    ACME,
    GLOBEX,
    PEN,
    OnShelf,
    Places,
    Sku,
    Stock,
    Stocked,
    TenantId,
    UnitsEverywhere,
    warehouse,
    warehouses,
)
from tests.unit.test_merged_log import Forking
from tests.unit.test_partitions import OrderId, Placed, Shipped, contexts

pytestmark = pytest.mark.anyio

ANSWER_WAIT_S = 30


@pytest.fixture(params=["sqlite", "postgres"])
def kept_places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    return Places(request.param, tmp_path)


def app_on(stores: dict[str, str], *, projecting: bool = True, clock: ManualClock | None = None) -> Application:
    return Application(warehouses(), partition_by=TenantId, store=stores, projecting=projecting, clock=clock)


# ── what another process has put into the order ──────────────────────────────


@pytest.mark.parametrize("known", [0, 1])
async def test_a_token_tells_what_rows_show_that_another_process_has_taken_in(kept_places: Places, known: int) -> None:
    """An eventual answer of a process that has not looked into the order since names the places of those rows."""
    stores = kept_places(ACME, GLOBEX, "*")
    async with app_on(stores) as one:
        for _ in range(known):
            await one.execute(Stock(tenant=ACME, sku=PEN, units=1))
            await one.projected()
        async with app_on(stores, projecting=False) as two:
            for tenant in (ACME, GLOBEX, ACME):
                await one.execute(Stock(tenant=tenant, sku=PEN, units=1))
                await one.projected()
            async with asyncio.timeout(ANSWER_WAIT_S):
                answer = await two.answer(UnitsEverywhere(sku=PEN))
            heads = [await two.partition(name).store.head() for name in (ACME, GLOBEX)]
            shown = {token.high.history_id: token.high for token in answer.shows}
            assert [shown.get(head.history_id) for head in heads] == heads
            assert shown[two.across.log.history_id].position == 3 + known


async def test_a_position_that_the_order_has_not_is_no_place() -> None:
    """What is shown at one is not made up from the last extent."""
    async with opened(MemoryEventStore(SystemClock())) as store:
        await append_one(store, event())
        log = MergedLog(MemoryEventStore(SystemClock()), [store])
        await log.open()
        await log.head()
        with pytest.raises(HistoryDiverged, match="ends before position 2"):
            await log.shown(Position(2))


class Unsure(MemoryEventStore):
    """Appends, and loses the answer."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        """Append, and say that it may not have been."""
        await super().append(commits, base)
        raise OutcomeUnknown("(none given)", "the line is dead")


async def test_nobody_is_told_to_send_a_command_again_that_nobody_sent() -> None:
    """What became of an extent is found by whoever takes in next; a query is told that the store was not there."""
    async with opened(MemoryEventStore(SystemClock())) as store:
        await append_one(store, event())
        log = MergedLog(Unsure(SystemClock()), [store])
        await log.open()
        with pytest.raises(StoreUnavailable, match="the line is dead"):
            await log.head()
        assert (await log.head()).position == 1
        assert len((await log.read(ALL_EVENTS, START, 10)).events) == 1


class Down(MemoryEventStore):
    """Cannot be reached, once it is down."""

    down = False

    async def place_at(self, position: Position) -> Place | None:
        """Where it can be reached."""
        if self.down:
            raise StoreUnavailable("it is down")
        return await super().place_at(position)


async def test_what_is_shown_is_told_while_a_history_is_down() -> None:
    """The order knows: an eventual answer from rows across asks no event store, as one of a partition does not."""
    one, two = Down(SystemClock()), Down(SystemClock())
    async with opened(one), opened(two):
        log = MergedLog(MemoryEventStore(SystemClock()), [one, two])
        await log.open()
        heads: dict[int, set[Place]] = {}
        for store in (one, two, one, one, two):
            await append_one(store, event())
            heads[(await log.head()).position] = {head for each in (one, two) if (head := await each.head()).position}
        one.down = two.down = True
        assert len(heads) == 5
        for position, places in heads.items():
            assert set(await log.shown(Position(position))) == places


# ── forks ────────────────────────────────────────────────────────────────────


class MayFork(Forking):
    """And says that it may."""

    @property
    def may_fork(self) -> bool:
        """It may."""
        return True


@pytest.fixture
async def forked() -> AsyncIterator[MergedLog]:
    """A merged log that has taken in an end that one history then lost; the last event is of the other."""
    one, two = MayFork(SystemClock()), MemoryEventStore(SystemClock())
    async with opened(one), opened(two):
        log = MergedLog(MemoryEventStore(SystemClock()), [one, two])
        await log.open()
        await append_one(one, event(), event("lost"))
        await log.head()
        await append_one(two, event())
        assert (await log.head()).position == 3
        one.lose()
        await append_one(one, event("other"))
        yield log
        await log.close()


@pytest.mark.parametrize("position", [1, 3])
async def test_a_fork_of_one_history_is_told_at_places_of_the_others(forked: MergedLog, position: int) -> None:
    """A checkpoint that is at an event of another history is over what was lost as well."""
    for _ in range(2):
        with pytest.raises(HistoryDiverged, match="the order of what is merged"):
            await forked.place_at(Position(position))


async def test_nothing_is_read_over_a_fork(forked: MergedLog) -> None:
    """From the begin neither: the page would be of another history than the order."""
    for _ in range(2):
        with pytest.raises(HistoryDiverged, match="the order of what is merged"):
            await forked.read(ALL_EVENTS, START, 10)
    with pytest.raises(HistoryDiverged, match="the order of what is merged"):
        await forked.shown(Position(3))


async def test_an_end_that_is_lost_while_it_is_looked_at_is_told() -> None:
    """A fork that is found between the look at the heads and that at the last event is an error of histories."""

    class FoundLate(MayFork):
        """Notices the fork when it looks at a place."""

        async def place_at(self, position: Position) -> Place | None:
            """Lose the end first."""
            if position == 2 and not self.lost:
                self.lose()
            return await super().place_at(position)

    async with opened(FoundLate(SystemClock())) as store:
        await append_one(store, event(), event("lost"))
        log = MergedLog(MemoryEventStore(SystemClock()), [store])
        await log.open()
        for _ in range(2):
            with pytest.raises(HistoryDiverged):
                await log.head()


class FoundWhileRead(MayFork):
    """Notices in the middle of a read that it has lost its end, as PostgreSQL's does by a connection made anew."""

    losing = False

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        """What there is, if nothing was lost."""
        self._notice()
        return await super().read(query, after, limit, until=until)

    async def read_backward(self, query: EventQuery, limit: int, *, before: Position | None = None) -> ReadResult:
        """What there is, if nothing was lost."""
        self._notice()
        return await super().read_backward(query, limit, before=before)

    def _notice(self) -> None:
        if self.losing:
            self.losing = False
            self.lose()
            raise HistoryDiverged("what was read", "the history turned out to be another one meanwhile")


@pytest.mark.parametrize("of_history_first", [True, False])
async def test_a_failover_that_each_store_notices_for_itself_is_no_other_order(*, of_history_first: bool) -> None:
    """Order and history are back at one moment: what both share is there, and is not taken for lost in between."""
    order, store = FoundWhileRead(SystemClock()), MayFork(SystemClock())
    async with opened(store):
        log = MergedLog(order, [store])
        await log.open()
        await append_one(store, event(), event())
        shared = await log.head()
        await append_one(store, event("lost"))
        assert (await log.head()).position == 3
        order.losing = True
        if of_history_first:
            store.lose()
        assert await log.place_at(Position(2)) == shared
        if not of_history_first:
            store.lose()
        assert await log.head() == shared
        assert order.lost == 1


class Beside(MemoryEventStore):
    """Another one loses its end while this one is asked how far it is."""

    beside: Forking | None = None

    async def head(self) -> Place:
        """The place of the last event."""
        if self.beside is not None:
            self.beside.lose()
            self.beside = None
        return await super().head()


async def test_what_is_lost_while_heads_are_looked_up_is_not_put_into_the_order() -> None:
    """It would be there for good, though the order had never seen it, and rows across would end."""
    one, two = MayFork(SystemClock()), Beside(SystemClock())
    async with opened(one), opened(two):
        log = MergedLog(MemoryEventStore(SystemClock()), [one, two])
        await log.open()
        await append_one(one, event(), event())
        shared = await log.head()
        await append_one(one, event("lost"))
        two.beside = one
        assert await log.head() == shared
        await append_one(one, event("other"))
        assert [recorded.type for recorded in (await log.read(ALL_EVENTS, Position(2), 10)).events] == ["other"]


# ── partitions that come and go ──────────────────────────────────────────────


async def test_a_partition_that_is_missing_is_told_wherever_the_last_event_is(kept_places: Places) -> None:
    """Rows across would go on with what it held, and answers would not name it."""
    stores = kept_places(ACME, GLOBEX, "*")
    async with app_on(stores) as app:
        for tenant in (ACME, GLOBEX):
            await app.execute(Stock(tenant=tenant, sku=PEN, units=1))
            await app.projected()
    del stores[ACME]
    async with AsyncExitStack() as stack:
        with pytest.raises(HistoryDiverged, match="is not here"):
            await stack.enter_async_context(app_on(stores))


# ── ages ─────────────────────────────────────────────────────────────────────


async def test_an_age_across_is_that_of_what_is_missing_of_each_history(kept_places: Places) -> None:
    """The first event that is missing may be younger than a later one: of another history."""
    stores, clock = kept_places(ACME, GLOBEX, "*"), ManualClock()
    async with app_on(stores, clock=clock):
        pass
    async with app_on(stores, projecting=False, clock=clock) as app:
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=1))
        clock.advance(timedelta(seconds=100))
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        with pytest.raises(NotFresh):
            await app.query(UnitsEverywhere(sku=PEN), within_s=50, wait_s=0)
        assert await app.query(UnitsEverywhere(sku=PEN), within_s=150, wait_s=0) is None


# ── where a message belongs ──────────────────────────────────────────────────


class Owner(msgspec.Struct, frozen=True):
    tenant: TenantId


class Put(Command):
    owner: Owner
    sku: Sku


class Pair(Command):
    pair: tuple[TenantId, int]
    sku: Sku


class KindsOf(Query[int]):
    owner: Owner


async def test_a_message_is_of_the_partition_that_its_handler_will_see() -> None:
    """Where the codec makes a struct of a dict that was given for one, that struct names the partition (rule 38)."""
    context = warehouse()

    @context.command_handler
    def put(command: Put) -> Stocked:
        return Stocked(sku=command.sku, units=5)

    @context.command_handler
    def pair(command: Pair) -> Stocked:
        return Stocked(sku=command.sku, units=5)

    @context.query_handler
    async def kinds_of(query: KindsOf, read: Reader) -> int:
        return await read.count(OnShelf)

    given: dict[str, Owner] = {name: {"tenant": name} for name in (GLOBEX, "nobody")}  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    async with Application(context, partition_by=TenantId, store={ACME: "memory:", GLOBEX: "memory:"}) as app:
        receipt = await app.execute(Put(owner=given[GLOBEX], sku=PEN))
        assert receipt.place == await app.partition(GLOBEX).store.head()
        assert await app.query(KindsOf(owner=given[GLOBEX]), after=receipt) == 1
        for wrong in (Put(owner=given["nobody"], sku=PEN), Pair(pair=("acme",), sku=PEN)):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            with pytest.raises(InvalidMessage):
                await app.execute(wrong)
        with pytest.raises(InvalidMessage):
            await app.query(KindsOf(owner=given["nobody"]))
        assert (await app.partition(ACME).status()).head == 0


@pytest.mark.parametrize("names", [["*"], [""], ["", ACME, "*"]])
async def test_there_is_a_partition_and_each_has_a_name(names: list[str]) -> None:
    """What has none would pass for the only partition of an application that is not divided."""
    with pytest.raises(ConfigurationError, match="at least one partition"):
        await app_on(dict.fromkeys(names, "memory:")).open()


# ── many partitions ──────────────────────────────────────────────────────────


async def test_the_token_of_an_answer_over_many_partitions_is_taken_back_over_http() -> None:
    """As it was given out, however many histories it names, up to the limit on them."""
    names = [TenantId(f"t{number}") for number in range(100)]
    async with app_on(dict.fromkeys([*names, "*"], "memory:")) as app:
        for name in names:
            await app.execute(Stock(tenant=name, sku=PEN, units=1))
        await app.projected()
        transport = httpx2.ASGITransport(http_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://warehouse") as client:
            first = await client.get("/queries/UnitsEverywhere", params={"sku": PEN})
            token = first.headers["consistency-token"]
            assert token.count(",") == len(names)
            again = await client.get(
                "/queries/UnitsEverywhere", params={"sku": PEN}, headers={"Consistency-Token": token}
            )
            assert (again.status_code, again.json()) == (200, {"sku": PEN, "units": len(names)})


async def test_no_more_histories_are_folded_across_than_a_token_names() -> None:
    """Else nothing could be asked for after an answer; without rows across, there may be more."""
    names = [f"t{number}" for number in range(TOKENS_MAX)]
    with pytest.raises(ConfigurationError, match="TOKENS_MAX=1,000"):
        await app_on(dict.fromkeys([*names, "*"], "memory:")).open()
    with pytest.raises(ConfigurationError, match="OnAllShelves is folded across"):
        await app_on(dict.fromkeys([*names, "one more"], "memory:")).open()


# ── snapshots of two partitions ──────────────────────────────────────────────


class Bought(ReadModel):
    order: Key[OrderId]


class Sent(ReadModel):
    order: Key[OrderId]


class BoughtThenSent(Query[int]): ...


class SentThenBought(Query[int]): ...


async def test_queries_that_meet_two_partitions_in_two_orders_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where snapshots are few, whoever holds one of a store gets one of the other."""
    monkeypatch.setattr(snapshot_turns, "SNAPSHOTS_MAX", 1)
    monkeypatch.setattr(spanning_queries, "SPANNING_ANSWERS_MAX", 1)
    sales, shipping = contexts([])
    holding, go_on = asyncio.Event(), asyncio.Event()

    @sales.projection
    def bought(event: Placed) -> Bought:
        return Bought(order=event.order)

    @shipping.projection
    def sent(event: Shipped) -> Sent:
        return Sent(order=event.order)

    @sales.query_handler
    async def bought_then_sent(query: BoughtThenSent, read: Reader) -> int:
        first = await read.count(Bought)
        holding.set()
        await go_on.wait()
        return first + await read.count(Sent)

    @sales.query_handler
    async def sent_then_bought(query: SentThenBought, read: Reader) -> int:
        return await read.count(Sent) + await read.count(Bought)

    stores = {"sales": "memory:", "shipping": "memory:"}
    async with Application(sales, shipping, partition_by="context", store=stores) as app:
        one = asyncio.ensure_future(app.query(BoughtThenSent()))
        await holding.wait()
        other = asyncio.ensure_future(app.query(SentThenBought()))
        await let_others_run()
        go_on.set()
        assert [await one, await other] == [0, 0]
