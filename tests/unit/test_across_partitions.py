"""Rows that are folded across partitions: as fresh, as exact and as durable as those of one (rule 38)."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import pytest

from diptych import (
    Application,
    BoundedContext,
    ConfigurationError,
    ExpiresAt,
    Key,
    NotFresh,
    Query,
    Reader,
    ReadModel,
    replace,
)
from diptych.errors import HistoryDiverged
from diptych.testing import ManualClock, check_commutative
from tests.tenants import (
    ACME,
    GLOBEX,
    PEN,
    Lent,
    OnAllShelves,
    OnShelf,
    Places,
    Sku,
    Stock,
    Stocked,
    TenantId,
    UnitsEverywhere,
    UnitsOnShelf,
    warehouse,
    warehouses,
)
from tests.unit.test_partitions import OrderId, Place, Placed, Ship, Shipped, contexts

pytestmark = pytest.mark.anyio


def app_on(stores: dict[str, str], *, projecting: bool = True) -> Application:
    return Application(warehouses(), partition_by=TenantId, store=stores, projecting=projecting)


def units(row: OnAllShelves | None) -> int:
    return 0 if row is None else row.units


async def test_a_row_of_all_partitions_shows_what_each_has_written(places: Places) -> None:
    """A receipt of any of them is waited for (G7); the latest is that of all."""
    async with app_on(places(ACME, GLOBEX, "*")) as app:
        expected = 0
        for number in range(1, 5):
            receipt = await app.execute(Stock(tenant=(ACME, GLOBEX)[number % 2], sku=PEN, units=number))
            expected += number
            assert units(await app.query(UnitsEverywhere(sku=PEN), after=receipt)) == expected
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        assert units(await app.query(UnitsEverywhere(sku=PEN), freshness="latest")) == expected + 1
        assert await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), freshness="latest") == 2 + 4 + 1
        await app.projected()
        status = await app.across.status()
        assert [(found.name, found.checkpoint) for found in status.projections] == [("warehouse.OnAllShelves", 5)]
        assert (await app.health()).ready


async def test_its_token_tells_what_it_shows_of_each_partition(kept_places: Places) -> None:
    """Who has seen a row across does not see less of a partition afterwards, nor of the rows across (G7, G8)."""
    stores = kept_places(ACME, GLOBEX, "*")
    async with app_on(stores) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        await app.projected()
    stale = dict(stores)
    async with app_on(stores) as app:
        receipt = await app.execute(Stock(tenant=ACME, sku=PEN, units=4))
        answer = await app.answer(UnitsEverywhere(sku=PEN), after=receipt)
        shown = {token.high.history_id: token.high.position for token in answer.shows}
        assert shown == {
            app.across.log.history_id: 3,
            app.partition(ACME).store.history_id: 2,
            app.partition(GLOBEX).store.history_id: 1,
        }
        assert await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), after=answer) == 5
        assert units(await app.query(UnitsEverywhere(sku=PEN), after=answer)) == 7
    async with app_on(stale, projecting=False) as app:
        more = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=1))
        for token in (more.token, f"{answer.token},{more.token}"):
            with pytest.raises(NotFresh, match="OnAllShelves"):
                await app.query(UnitsEverywhere(sku=PEN), after=token, wait_s=0)
        assert units(await app.query(UnitsEverywhere(sku=PEN), after=answer, wait_s=0)) == 7


async def test_several_processes_fold_it_together(kept_places: Places) -> None:
    """Two applications take in, fold and answer: each event once, whoever holds the lease, and whichever goes (G5)."""
    stores = kept_places(ACME, GLOBEX, "*")
    async with app_on(stores) as one:
        async with app_on(stores) as two:
            commands = [Stock(tenant=(ACME, GLOBEX)[n % 2], sku=Sku(f"s{n % 7}"), units=1) for n in range(60)]
            sent = [(one, two)[number // 2 % 2].execute(command) for number, command in enumerate(commands)]
            receipts = await asyncio.gather(*sent)
            tokens = ",".join(receipt.token for receipt in receipts)
            for app in (one, two):
                found = [units(await app.query(UnitsEverywhere(sku=Sku(f"s{n}")), after=tokens)) for n in range(7)]
                assert found == [len(commands[n::7]) for n in range(7)]
        last = await one.execute(Stock(tenant=ACME, sku=PEN, units=1))
        assert units(await one.query(UnitsEverywhere(sku=PEN), after=last)) == 1
        assert (await one.across.rebuilds.compare("OnAllShelves")).same
        assert (await one.across.rebuilds.rebuild("OnAllShelves")) == 61
        assert units(await one.query(UnitsEverywhere(sku=PEN), after=last)) == 1


async def test_it_goes_on_where_it_was(kept_places: Places) -> None:
    """Opened again, nothing is folded twice; what came while nothing followed is."""
    stores = kept_places(ACME, GLOBEX, "*")
    async with app_on(stores) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        await app.projected()
    async with app_on(stores, projecting=False) as app:
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
    async with app_on(stores) as app:
        last = await app.execute(Stock(tenant=ACME, sku=PEN, units=4))
        assert units(await app.query(UnitsEverywhere(sku=PEN), after=last)) == 5 + 2
        assert (await app.across.rebuilds.compare("OnAllShelves")).same


async def test_a_partition_that_joins_is_folded_as_well(tmp_path: Path) -> None:
    """One that is missing later is an error that says so: rows would be without what it held."""
    stores = {ACME: f"sqlite:{tmp_path}/acme.db", "*": f"sqlite:{tmp_path}/across.db"}
    async with app_on(stores) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        await app.projected()
    both = {**stores, GLOBEX: f"sqlite:{tmp_path}/globex.db"}
    async with app_on(both) as app:
        last = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        assert units(await app.query(UnitsEverywhere(sku=PEN), after=last)) == 3
    with pytest.raises(HistoryDiverged, match="is not here"):
        await app_on(stores).open()


async def test_a_query_that_names_no_partition_sees_rows_across_alone() -> None:
    """And one that names one, those of the partition alone."""

    class Everything(Query[int]): ...

    class Mine(Query[int]):
        tenant: TenantId

    context = warehouses()

    @context.query_handler
    async def everything(query: Everything, read: Reader) -> int:
        return await read.count(OnShelf)

    @context.query_handler
    async def mine(query: Mine, read: Reader) -> int:
        return await read.count(OnAllShelves)

    async with Application(context, partition_by=TenantId, store={ACME: "memory:", "*": "memory:"}) as app:
        for query in (Everything(), Mine(tenant=ACME)):
            with pytest.raises(ConfigurationError, match="no projection"):
                await app.query(query)


async def test_contexts_meet_in_a_read_model_across() -> None:
    """By context, a commutative fold of events of two; a handler may read it beside those of one."""
    sales, shipping = contexts([])

    class Both(ReadModel):
        order: Key[OrderId]
        placed: bool = False
        shipped: bool = False

    class BothOf(Query[Both | None]):
        order: OrderId

    @sales.projection(commutative=True)
    def both_placed(row: Both, event: Placed) -> Both:
        return replace(row, placed=True)

    @sales.projection(commutative=True)
    def both_shipped(row: Both, event: Shipped) -> Both:
        return replace(row, shipped=True)

    first, second = OrderId("o-1"), OrderId("o-2")
    of_sales = [Placed(order=first), Placed(order=second)]
    check_commutative(sales, shipping, partitions=[of_sales, [Shipped(order=first)]])
    stores = {"sales": "memory:", "shipping": "memory:", "*": "memory:"}
    async with Application(sales, shipping, partition_by="context", store=stores) as app:
        shipped = await app.execute(Ship(order=OrderId("o-1")))
        placed = await app.execute(Place(order=OrderId("o-1")))
        tokens = f"{placed.token},{shipped.token}"
        answer = await app.answer(BothOf(order=OrderId("o-1")), after=tokens)
        assert answer.value == Both(order=OrderId("o-1"), placed=True, shipped=True)
        assert len(answer.shows) == 3


async def test_its_lag_is_that_of_the_oldest_event_that_it_lacks() -> None:
    """Which need not be the next one: times do not grow along what is merged."""
    clock = ManualClock()
    stores = {ACME: "memory:", GLOBEX: "memory:", "*": "memory:"}
    async with Application(warehouses(), partition_by=TenantId, store=stores, clock=clock, projecting=False) as app:
        early = clock.now()
        clock.advance(100)
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=1))
        assert (await app.across.log.head()).position == 1
        clock.set(early)
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        clock.advance(101)
        (found,) = (await app.across.status()).projections
        assert (found.lag_events, found.lag_s) == (2, 101.0)


# ── what is refused ──────────────────────────────────────────────────────────


async def test_what_is_across_has_a_place_and_needs_one() -> None:
    """A commutative projection without a store for it, a store without such a projection, rows that expire."""
    with pytest.raises(ConfigurationError, match=r"OnAllShelves is folded across partitions: .*'\*': URL"):
        await app_on({ACME: "memory:"}).open()
    with pytest.raises(ConfigurationError, match=r"store names '\*'"):
        await Application(warehouse(), partition_by=TenantId, store={ACME: "memory:", "*": "memory:"}).open()
    context = warehouse()

    class Fading(ReadModel):
        sku: Key[Sku]
        until: ExpiresAt[datetime | None] = None

    @context.projection(commutative=True)
    def fading(event: Stocked) -> Fading:
        return Fading(sku=event.sku)

    with pytest.raises(ConfigurationError, match="Fading is folded across partitions, and its rows expire"):
        await Application(context, partition_by=TenantId, store={ACME: "memory:", "*": "memory:"}).open()
    async with Application(warehouses(), store="memory:") as undivided:
        with pytest.raises(ConfigurationError, match="nothing is folded across"):
            _ = undivided.across


def test_one_read_model_is_commutative_as_a_whole() -> None:
    """Of two functions that feed it, both say so, or none."""
    context = warehouses()

    @context.projection
    def lent(row: OnAllShelves, event: Lent) -> OnAllShelves:
        return row

    with pytest.raises(ConfigurationError, match=r"on_all_shelves and .*lent, .* one says commutative=True"):
        check_commutative(context, partitions=[])


def test_a_fold_that_minds_the_order_is_found() -> None:
    """Every order of two partitions is tried; the error shows the rows, and the order that gives others."""
    context = BoundedContext("warehouse", events=[Stocked])

    @context.projection(commutative=True)
    def last_one_wins(event: Stocked) -> OnAllShelves:
        return OnAllShelves(sku=event.sku, units=event.units)

    mine, theirs = [Stocked(sku=PEN, units=1), Stocked(sku=PEN, units=2)], [Stocked(sku=PEN, units=9)]
    check_commutative(context, partitions=[mine])
    with pytest.raises(
        AssertionError, match=r"warehouse\.OnAllShelves is not commutative(.|\n)*units=9(.|\n)*in this order"
    ):
        check_commutative(context, partitions=[mine, theirs])


def test_a_sum_does_not_mind_the_order() -> None:
    """Also where there are more orders than are tried."""
    mine = [Stocked(sku=Sku(f"s{number % 3}"), units=number) for number in range(12)]
    check_commutative(warehouses(), partitions=[mine, mine, mine])


def test_nothing_commutative_is_nothing_to_check() -> None:
    """A check of nothing would pass for ever."""
    with pytest.raises(ConfigurationError, match="declared commutative"):
        check_commutative(warehouse(), partitions=[[Stocked(sku=PEN, units=1)]])
