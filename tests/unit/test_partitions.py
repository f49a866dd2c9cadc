"""Partitions: an application divided by tenant, or by context; each a history of its own (rule 38)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Key,
    NotFresh,
    Query,
    Reader,
    ReadModel,
    Rejected,
    SyncApplication,
    replace,
)
from diptych.errors import (
    CommandIdReused,
    HistoryDiverged,
    InvalidEvent,
    InvalidMessage,
    SpansPartitions,
    StoreClosed,
    UnknownPartition,
)
from diptych.event_store.event_query import ALL_EVENTS
from tests.tenants import (
    ACME,
    GLOBEX,
    PEN,
    Lend,
    Move,
    Places,
    Sku,
    Stock,
    Stocked,
    TenantId,
    UnitsOnShelf,
    by_tenant,
    warehouse,
)

pytestmark = pytest.mark.anyio


# ── by tenant ────────────────────────────────────────────────────────────────


async def test_each_tenant_has_a_history_of_its_own(places: Places) -> None:
    """Positions, decisions and rows of one tenant know nothing of the other's."""
    async with by_tenant(places) as app:
        first = await app.execute(Stock(tenant=ACME, sku=PEN, units=8))
        other = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=9))
        assert (first.position, other.position) == (1, 1)
        with pytest.raises(Rejected, match="full"):
            await app.execute(Stock(tenant=ACME, sku=PEN, units=3))
        last = await app.execute(Stock(tenant=ACME, sku=PEN, units=2))
        assert last.position == 2
        assert await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), after=last) == 10
        assert await app.query(UnitsOnShelf(tenant=GLOBEX, sku=PEN), after=other) == 9


async def test_tenants_commit_at_the_same_time(places: Places) -> None:
    """Every partition takes its commands in its own append section; all are kept, each without a gap."""
    tenants = [TenantId(f"t{number}") for number in range(3)]
    async with by_tenant(places, *tenants) as app:
        commands = [Stock(tenant=tenant, sku=Sku(f"s{n}"), units=1) for n in range(20) for tenant in tenants]
        await asyncio.gather(*map(app.execute, commands))
        for tenant in tenants:
            events = [event async for event in app.partition(tenant).events(ALL_EVENTS)]
            assert [event.position for event in events] == list(range(1, 21))
        await app.projected()
        assert [await app.query(UnitsOnShelf(tenant=tenant, sku=Sku("s19"))) for tenant in tenants] == [1, 1, 1]


async def test_the_partition_is_part_of_the_command_id(places: Places) -> None:
    """One id names a command of each tenant; within one it is kept to its first outcome (rules 8 and 38)."""
    async with by_tenant(places) as app:
        mine = await app.execute(Stock(tenant=ACME, sku=PEN, units=1), command_id="order-1")
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2), command_id="order-1")
        again = await app.execute(Stock(tenant=ACME, sku=PEN, units=1), command_id="order-1")
        assert again.place == mine.place
        with pytest.raises(CommandIdReused):
            await app.execute(Stock(tenant=ACME, sku=PEN, units=2), command_id="order-1")


async def test_it_goes_on_where_it_was(kept_places: Places) -> None:
    """Opened again, every partition has its history and rows."""
    stores = kept_places(ACME, GLOBEX)
    for units in (1, 2):
        async with Application(warehouse(), partition_by=TenantId, store=stores) as app:
            for tenant in (ACME, GLOBEX):
                receipt = await app.execute(Stock(tenant=tenant, sku=PEN, units=1))
                assert await app.query(UnitsOnShelf(tenant=tenant, sku=PEN), after=receipt) == units


async def test_a_message_names_one_partition_that_there_is() -> None:
    """Of two, or of one that is not there, nothing is decided and nothing answered; the error says where and what."""
    context = warehouse()

    @context.command_handler
    def move(command: Move) -> Stocked:
        return Stocked(sku=command.sku, units=1)

    stores = {ACME: "memory:", GLOBEX: "memory:"}
    async with Application(context, partition_by=TenantId, store=stores) as app:
        with pytest.raises(SpansPartitions, match="'acme' and 'globex'") as spanning:
            await app.execute(Move(source=ACME, target=GLOBEX, sku=PEN))
        assert spanning.value.partitions == (ACME, GLOBEX)
        within = await app.execute(Move(source=ACME, target=ACME, sku=PEN))
        assert within.position == 1
        with pytest.raises(UnknownPartition, match=r"no partition 'hooli' at \$\.tenant") as unknown:
            await app.execute(Stock(tenant=TenantId("hooli"), sku=PEN, units=1))
        assert unknown.value.partition == "hooli"
        with pytest.raises(UnknownPartition):
            await app.query(UnitsOnShelf(tenant=TenantId("hooli"), sku=PEN))
        with pytest.raises(InvalidMessage, match="tenant"):
            await app.execute(Stock(tenant=7, sku=PEN, units=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert [(await app.partition(name).status()).head for name in stores] == [1, 0]


async def test_an_event_of_another_tenant_is_refused() -> None:
    """What a decision in one partition gives is of that partition: an event tagged with another is not stored."""
    async with Application(warehouse(), partition_by=TenantId, store={ACME: "memory:", GLOBEX: "memory:"}) as app:
        with pytest.raises(InvalidEvent, match=r"tagged tenant:globex, in the partition of tenant:acme"):
            await app.execute(Lend(tenant=ACME, to=GLOBEX, sku=PEN))
        assert (await app.execute(Lend(tenant=ACME, to=ACME, sku=PEN))).position == 1
        assert (await app.partition(GLOBEX).status()).head == 0


async def test_every_message_has_to_say_its_partition() -> None:
    """A command without the identity is found when the application opens, not when it is sent."""

    class Close(Command):
        sku: Sku

    context = warehouse()

    @context.command_handler
    def close(command: Close) -> Stocked:
        return Stocked(sku=command.sku, units=0)

    with pytest.raises(ConfigurationError, match=r"Close does not say which partition .* TenantId"):
        await Application(context, partition_by=TenantId, store={ACME: "memory:"}).open()


async def test_a_token_is_of_the_partition_that_gave_it(places: Places) -> None:
    """Another tenant's history is not waited for; tokens of both are, each by its own; a strange one is refused."""
    async with by_tenant(places) as app:
        mine = await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        theirs = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        both = f"{mine.token}, {theirs.token}"
        for tenant, units in ((ACME, 1), (GLOBEX, 2)):
            answer = await app.answer(UnitsOnShelf(tenant=tenant, sku=PEN), after=both)
            assert answer.value == units
            (shown,) = answer.shows
            assert shown.high.history_id == app.partition(tenant).store.history_id
        await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), after=theirs)
        async with by_tenant(Places("memory", Path())) as stranger:
            strange = await stranger.execute(Stock(tenant=ACME, sku=PEN, units=1))
        for token in (strange.token, f"{both},{strange.token}"):
            with pytest.raises(HistoryDiverged, match="no partition has the history"):
                await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), after=token)


async def test_without_projections_a_token_is_not_waited_for_in_vain(kept_places: Places) -> None:
    """What a tenant wrote is not shown before it is folded: also where the other tenant's rows are further on (G7)."""
    stores = kept_places(ACME, GLOBEX)
    async with Application(warehouse(), partition_by=TenantId, store=stores) as app:
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=1))
        receipt = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        await app.projected()
    async with Application(warehouse(), partition_by=TenantId, store=stores, projecting=False) as app:
        mine = await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        with pytest.raises(NotFresh):
            await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), after=mine, wait_s=0)
        assert await app.query(UnitsOnShelf(tenant=GLOBEX, sku=PEN), after=receipt, wait_s=0) == 3


# ── by context ───────────────────────────────────────────────────────────────


class OrderId(Identity): ...


class Place(Command):
    order: OrderId


class Placed(Event):
    order: OrderId


class Ship(Command):
    order: OrderId


class Shipped(Event):
    order: OrderId


class Orders(ReadModel):
    order: Key[OrderId]


class ToShip(ReadModel):
    """Of the shipping context, folded from what the sales context has published."""

    order: Key[OrderId]


class Shipments(ReadModel):
    order: Key[OrderId]


class Progress(Query[str]):
    order: OrderId


class OrderOf(Query[Orders | None]):
    order: OrderId


def contexts(seen: list[str]) -> tuple[BoundedContext, BoundedContext]:
    sales, shipping = BoundedContext("sales"), BoundedContext("shipping")

    @sales.command_handler
    def place(command: Place) -> Placed:
        return Placed(order=command.order)

    @sales.projection
    def orders(event: Placed) -> Orders:
        return Orders(order=event.order)

    @shipping.command_handler
    def ship(command: Ship) -> Shipped:
        return Shipped(order=command.order)

    @shipping.projection
    def to_ship(event: Placed) -> ToShip:
        return ToShip(order=event.order)

    @shipping.projection
    def shipments(event: Shipped) -> Shipments:
        return Shipments(order=event.order)

    @shipping.subscriber
    async def notify(events: Sequence[tuple[Placed, EventContext]]) -> None:
        seen.extend(event.order for event, _ in events)

    @sales.query_handler
    async def progress(query: Progress, read: Reader) -> str:
        if await read.get(Shipments, query.order) is not None:
            return "shipped"
        return "placed" if await read.get(Orders, query.order) is not None else "unknown"

    return sales, shipping


def by_context(stores: dict[str, str], *, projecting: bool = True, seen: list[str] | None = None) -> Application:
    found = contexts([] if seen is None else seen)
    return Application(*found, partition_by="context", store=stores, projecting=projecting)


async def test_each_context_has_a_history_of_its_own(places: Places) -> None:
    """Its commands are decided there; what follows its events does, in whichever context it is declared."""
    seen: list[str] = []
    async with by_context(places("sales", "shipping"), seen=seen) as app:
        placed = await app.execute(Place(order=OrderId("o-1")))
        shipped = await app.execute(Ship(order=OrderId("o-1")))
        assert (placed.position, shipped.position) == (1, 1)
        await app.projected()
        names = {
            name: {found.name for found in (await app.partition(name).status()).projections}
            for name in ("sales", "shipping")
        }
        assert names == {"sales": {"sales.Orders", "shipping.ToShip"}, "shipping": {"shipping.Shipments"}}
        assert await app.query(OrderOf(order=OrderId("o-1")), after=placed) == Orders(order=OrderId("o-1"))


async def test_an_answer_tells_what_it_shows_of_each_partition(places: Places) -> None:
    """A token of an answer from two partitions names both; with it, a later answer shows no less of either (G7, G8)."""
    async with by_context(places("sales", "shipping")) as app:
        placed = await app.execute(Place(order=OrderId("o-1")))
        answer = await app.answer(Progress(order=OrderId("o-1")), after=placed)
        assert answer.value == "placed"
        shown = {token.high.history_id: token.high.position for token in answer.shows}
        assert shown == {app.partition("sales").store.history_id: 1, app.partition("shipping").store.history_id: 0}
        shipped = await app.execute(Ship(order=OrderId("o-1")))
        assert await app.query(Progress(order=OrderId("o-1")), after=f"{answer.token},{shipped.token}") == "shipped"
        assert await app.query(Progress(order=OrderId("o-1")), freshness="latest") == "shipped"


async def test_an_answer_waits_for_each_partition_that_it_touches(kept_places: Places) -> None:
    """Where one partition's rows are behind a token, the answer waits for them, and past the limit says so (G7)."""
    stores = kept_places("sales", "shipping")
    async with by_context(stores) as app:
        await app.projected()
    async with by_context(stores, projecting=False) as app:
        placed = await app.execute(Place(order=OrderId("o-1")))
        shipped = await app.execute(Ship(order=OrderId("o-1")))
        with pytest.raises(NotFresh, match="Shipments"):
            await app.query(Progress(order=OrderId("o-1")), after=shipped, wait_s=0)
        with pytest.raises(NotFresh, match="Orders"):
            await app.query(OrderOf(order=OrderId("o-1")), after=placed, wait_s=0)
        waiting = asyncio.ensure_future(
            app.query(Progress(order=OrderId("o-1")), after=f"{placed.token},{shipped.token}", wait_s=30)
        )
        async with by_context(stores):
            assert await waiting == "shipped"


async def test_a_decision_on_two_contexts_is_refused() -> None:
    """A model of another context's events would need two partitions: found when the application opens."""
    sales, shipping = contexts([])

    class Order(DecisionModel[OrderId]):
        placed: bool = False

        def evolve(self, event: Placed) -> Order:
            return replace(self, placed=True)

    class Check(Command):
        order: OrderId

    @shipping.command_handler
    def check(command: Check, order: Order) -> Shipped:
        return Shipped(order=command.order)

    stores = {"sales": "memory:", "shipping": "memory:"}
    with pytest.raises(ConfigurationError, match=r"check decides on Order, which folds Placed of .*'sales'"):
        await Application(sales, shipping, partition_by="context", store=stores).open()


async def test_a_fold_of_two_contexts_is_refused() -> None:
    """Events of two partitions have no order: a row of both is refused, and the error says what to do."""
    sales, shipping = contexts([])

    class Both(ReadModel):
        order: Key[OrderId]
        shipped: bool = False

    @sales.projection
    def both_placed(row: Both, event: Placed) -> Both:
        return row

    @sales.projection
    def both_shipped(row: Both, event: Shipped) -> Both:
        return replace(row, shipped=True)

    stores = {"sales": "memory:", "shipping": "memory:"}
    with pytest.raises(ConfigurationError, match=r"Both follows events of the partitions 'sales', 'shipping'"):
        await Application(sales, shipping, partition_by="context", store=stores).open()


async def test_an_event_of_another_context_is_not_appended_here() -> None:
    """A handler that gives an event which its annotation does not name cannot put it into the wrong history."""
    sales, shipping = contexts([])

    class Mix(Command):
        order: OrderId

    @shipping.command_handler
    def mix(command: Mix) -> Shipped:
        return Placed(order=command.order)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    stores = {"sales": "memory:", "shipping": "memory:"}
    async with Application(sales, shipping, partition_by="context", store=stores) as app:
        with pytest.raises(ConfigurationError, match="Placed is no event that this application knows"):
            await app.execute(Mix(order=OrderId("o-1")))
        assert [(await app.partition(name).status()).head for name in stores] == [0, 0]


# ── the partitions themselves ────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"partition_by": TenantId}, "a store for each partition"),
        ({"partition_by": TenantId, "store": "memory:"}, "a store for each partition"),
        ({"partition_by": TenantId, "store": {}}, "a store for each partition"),
        ({"store": {"acme": "memory:"}}, "say what tells the partition"),
        ({"partition_by": TenantId, "store": {"a": "sqlite:x.db", "b": "sqlite:x.db"}}, "'a' and 'b' cannot be kept"),
        ({"partition_by": TenantId, "store": {"a": "memory:"}, "read_store": "memory:"}, "given by partition"),
        ({"partition_by": TenantId, "store": {"a": "memory:"}, "read_store": {"c": "memory:"}}, "names 'c'"),
        ({"partition_by": "context", "store": {"a": "memory:"}}, r"contexts 'warehouse', and stores for 'a'"),
    ],
)
async def test_stores_fit_the_partitions(arguments: dict[str, object], told: str) -> None:
    """Stores for other partitions than there are, or one for two, are told when the application opens."""
    with pytest.raises(ConfigurationError, match=told):
        await Application(warehouse(), **arguments).open()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_two_partitions_are_two_histories(tmp_path: Path) -> None:
    """One file under two names is refused before a command could be decided in either."""
    stores = {ACME: f"sqlite:{tmp_path}/one.db", GLOBEX: f"sqlite:{tmp_path}/../{tmp_path.name}/one.db"}
    reads = {ACME: "memory:", GLOBEX: "memory:"}
    with pytest.raises(ConfigurationError, match="'acme' and 'globex' are one and the same"):
        await Application(warehouse(), partition_by=TenantId, store=stores, read_store=reads).open()


async def test_one_partition_that_cannot_be_opened_opens_none(tmp_path: Path) -> None:
    """The error tells which; the others are closed again, and may be opened by themselves."""
    stores = {ACME: f"sqlite:{tmp_path}/acme.db", GLOBEX: f"sqlite:{tmp_path}/nodir/globex.db"}
    app = Application(warehouse(), partition_by=TenantId, store=stores)
    with pytest.raises(Exception, match="nodir") as failed:
        await app.open()
    assert failed.value.__notes__ == ["It was opening the partition 'globex'."]
    with pytest.raises(StoreClosed):
        app.partition(ACME)
    async with Application(warehouse(), partition_by=TenantId, store={ACME: stores[ACME]}) as alone:
        assert (await alone.execute(Stock(tenant=ACME, sku=PEN, units=1))).position == 1


async def test_what_is_known_is_asked_of_one_partition() -> None:
    """Status, events and what is done by hand are of one: without its name they are an error that lists them."""
    async with Application(warehouse(), partition_by=TenantId, store={ACME: "memory:", GLOBEX: "memory:"}) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        assert (await app.partition(ACME).status()).head == 1
        with pytest.raises(ConfigurationError, match=r"say which partition; there are 'acme', 'globex'"):
            await app.status()
        with pytest.raises(ConfigurationError, match="no partition 'hooli'"):
            app.partition("hooli")
        assert (await app.health()).ready
    async with Application(warehouse(), store="memory:") as whole:
        assert (await whole.partition().status()).head == 0
        with pytest.raises(ConfigurationError, match="no partition 'acme'; there are none"):
            whole.partition(ACME)


async def test_health_tells_which_partition_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot do its work is told, and keeps nobody from the others; where none can, it is not ready."""
    async with Application(warehouse(), partition_by=TenantId, store={ACME: "memory:", GLOBEX: "memory:"}) as app:
        monkeypatch.setattr(app.partition(GLOBEX).projector, "failure", "the disk is full")
        health = await app.health()
        assert health.ready
        assert health.impaired == ("partition 'globex': projections have stopped: the disk is full",)
        monkeypatch.setattr(app.partition(ACME).projector, "failure", "so is this")
        health = await app.health()
        assert not health.ready
        assert health.reason == "partition 'acme': projections have stopped: so is this"


def test_partitions_without_an_event_loop(tmp_path: Path) -> None:
    """`SyncApplication` routes as `Application` does; its status is of the partition named."""
    stores = {ACME: f"sqlite:{tmp_path}/acme.db", GLOBEX: f"sqlite:{tmp_path}/globex.db"}
    with SyncApplication(warehouse(), partition_by=TenantId, store=stores) as app:
        receipt = app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        assert app.query(UnitsOnShelf(tenant=GLOBEX, sku=PEN), after=receipt) == 2
        assert [app.status(name).head for name in stores] == [0, 1]
        with pytest.raises(ConfigurationError, match="say which partition"):
            app.status()
