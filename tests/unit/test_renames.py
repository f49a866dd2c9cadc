"""Names that changed: what is stored under a former name is read, projected and decided on as if under that of now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

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
    Query,
    ReadModel,
    Receipt,
    Rejected,
    replace,
)
from diptych.application.registration import event_types
from diptych.errors import TagsChanged, UnreadableEvent
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import Appended, Commit
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.stored_query import STORED_ITEMS_MAX, stored_query
from diptych.messages.unique_id import unique_bytes

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)

ORDERS_MAX = 2
WAIT_S = 20
"""Seconds that a subscriber may take."""


class CustId(Identity): ...


class CustomerId(Identity, formerly=["cust", "client"]): ...


class ShopId(Identity, formerly=["store"]): ...


class Place(Command):
    customer: CustomerId
    shop: ShopId


class Look(Command):
    """Decides, and does nothing: what it decided on is known to its process afterwards."""

    customer: CustomerId


class Orders(ReadModel):
    customer: Key[CustomerId]
    count: int = 0


class OrdersOf(Query[Orders | None]):
    customer: CustomerId


class OrderPlaced(Event, formerly=["OrderCreated", "sales.OrderMade"]):
    customer: CustomerId
    shop: ShopId


class Customer(DecisionModel[CustomerId]):
    orders: int = 0

    def evolve(self, event: OrderPlaced) -> Customer:
        return Customer(orders=self.orders + 1)


class Regular(DecisionModel[CustomerId, ShopId]):
    orders: int = 0

    def evolve(self, event: OrderPlaced) -> Regular:
        return Regular(orders=self.orders + 1)


ADA, BOB, HERE = CustomerId("ada"), CustomerId("bob"), ShopId("here")


def of_old() -> BoundedContext:
    """The shop as it was."""
    shop = BoundedContext("shop")

    class OrderCreated(Event):
        customer: CustId
        shop: ShopId

    @shop.command_handler
    def place(command: Place) -> OrderCreated:
        return OrderCreated(customer=CustId(command.customer), shop=command.shop)

    @shop.projection
    def orders(row: Orders, event: OrderCreated) -> Orders:
        return replace(row, count=row.count + 1)

    return shop


def of_today(told: list[OrderPlaced] | None = None) -> BoundedContext:
    """The shop of today: a customer places at most `ORDERS_MAX` orders."""
    shop = BoundedContext("shop")

    @shop.command_handler
    def place(command: Place, customer: Customer, regular: Regular) -> OrderPlaced:
        if customer.orders >= ORDERS_MAX:
            raise Rejected("too-many", orders=customer.orders, here=regular.orders)
        return OrderPlaced(customer=command.customer, shop=command.shop)

    @shop.command_handler
    def look(command: Look, customer: Customer) -> None:
        return None

    @shop.projection
    def orders(row: Orders, event: OrderPlaced) -> Orders:
        return replace(row, count=row.count + 1)

    if told is not None:

        @shop.subscriber
        async def listen(events: Sequence[tuple[OrderPlaced, EventContext]]) -> None:
            told.extend(event for event, _ in events)

    return shop


async def store_as_older_code(app: Application, type: str, *tags: str) -> None:
    """Append an order of Ada's as a process with older code does, which has the same store open."""
    data = b'{"customer":"ada","shop":"here"}'
    (result,) = await app.partition().store.append([Commit(events=(NewEvent(unique_bytes(), type, 1, data, tags),))])
    assert isinstance(result, Appended)


@pytest.fixture
async def old_store(store_url: str) -> str:
    """A store in which older code has placed an order of Ada's."""
    async with Application(of_old(), store=store_url) as app:
        await app.execute(Place(customer=ADA, shop=HERE), command_id="first")
    return store_url


# ── whatever the names ───────────────────────────────────────────────────────

STORED = {
    "as now": ("shop.OrderPlaced", "customer:ada", "shop:here"),
    "another type": ("shop.OrderCreated", "customer:ada", "shop:here"),
    "a type of another context": ("sales.OrderMade", "customer:ada", "shop:here"),
    "another tag": ("shop.OrderPlaced", "cust:ada", "shop:here"),
    "a still older tag": ("shop.OrderPlaced", "client:ada", "store:here"),
    "all of it": ("shop.OrderCreated", "cust:ada", "store:here"),
}


@pytest.mark.parametrize("names", STORED)
async def test_a_conflict_on_a_former_name_is_noticed(store_url: str, names: str) -> None:
    """The decision stood on a cached state, and an event of older code came between: it is decided again (G3)."""
    async with Application(of_today(), store=store_url) as app:
        await app.execute(Place(customer=ADA, shop=HERE))
        await app.execute(Look(customer=ADA))
        await store_as_older_code(app, *STORED[names])
        with pytest.raises(Rejected) as rejected:
            await app.execute(Place(customer=ADA, shop=HERE))
        await app.execute(Place(customer=BOB, shop=HERE))  # none of that is Bob's
    assert rejected.value.facts == {"orders": 2, "here": 2}


@pytest.mark.parametrize("names", STORED)
async def test_rows_subscribers_and_queries_by_name_have_it_too(store_url: str, names: str) -> None:
    """In the order of the history, each once."""
    told: list[OrderPlaced] = []
    async with Application(of_today(told), store=store_url) as app:
        await store_as_older_code(app, *STORED[names])
        receipt = await app.execute(Place(customer=ADA, shop=HERE))
        assert await app.query(OrdersOf(customer=ADA), after=receipt) == Orders(customer=ADA, count=2)
        seen = 0
        async with asyncio.timeout(WAIT_S):
            while len(told) < 2:
                seen = await app.partition().read_store.wait_for_change(seen, WAIT_S)
        by_name = EventQuery((QueryItem(frozenset({"shop.OrderPlaced"})),))
        by_tag = EventQuery((QueryItem(tags=frozenset({"customer:ada", "shop:here"})),))
        by_former_name = EventQuery((QueryItem(frozenset({STORED[names][0]})),))
        found = [[event.position async for event in app.events(query)] for query in (by_name, by_tag, by_former_name)]
        stored = [(event.type, *event.tags) async for event in app.events(by_name)]
    assert told == [OrderPlaced(customer=ADA, shop=HERE)] * 2
    assert found == [[1, 2], [1, 2], [1, 2] if names.endswith(("now", "tag")) else [1]]
    assert stored == [STORED[names], STORED["as now"]]


async def test_commands_that_are_decided_together_see_each_others_events(store_url: str) -> None:
    """Pending events, which have the names of now, beside stored ones that have former ones."""
    async with Application(of_today(), store=store_url) as app:
        await store_as_older_code(app, *STORED["all of it"])
        placing = [app.execute(Place(customer=ADA, shop=HERE)) for _ in range(10)]
        outcomes = await asyncio.gather(*placing, return_exceptions=True)
        assert await app.query(OrdersOf(customer=ADA), freshness="latest") == Orders(customer=ADA, count=2)
    assert [isinstance(outcome, Receipt) for outcome in outcomes].count(True) == 1
    assert {outcome.facts["orders"] for outcome in outcomes if isinstance(outcome, Rejected)} == {2}


@kept
async def test_a_store_of_older_code_goes_on_under_the_names_of_now(old_store: str) -> None:
    """Decisions, rows built anew, kept outcomes; and what is stored stays as it is."""
    stored: list[tuple[str, ...]] = []
    for _ in range(2):  # the second time both names are in the store
        async with Application(of_today(), store=old_store) as app:
            first = await app.execute(Place(customer=ADA, shop=HERE), command_id="first")
            assert first.events == (OrderPlaced(customer=ADA, shop=HERE),)
            await app.execute(Place(customer=ADA, shop=HERE), command_id="second")
            with pytest.raises(Rejected):
                await app.execute(Place(customer=ADA, shop=HERE))
            assert await app.query(OrdersOf(customer=ADA), freshness="latest") == Orders(customer=ADA, count=2)
            await app.rebuilds.rebuild("shop.Orders")
            assert (await app.rebuilds.compare("shop.Orders")).same
            stored = [(event.type, *event.tags) async for event in app.events(EventQuery((QueryItem(),)))]
    assert stored == [("shop.OrderCreated", "cust:ada", "shop:here"), STORED["as now"]]


@kept
async def test_a_class_may_be_renamed_and_changed(old_store: str) -> None:
    """Versions go on over a rename: the upcasters of the class read what was stored under its former names."""

    class Ordered(Event, formerly=["OrderCreated"], version=2):
        customer: CustomerId
        shop: ShopId
        channel: str

    class Channel(ReadModel):
        customer: Key[CustomerId]
        name: str = ""

    class ChannelOf(Query[Channel | None]):
        customer: CustomerId

    shop = BoundedContext("shop")
    shop.upcaster(Ordered, from_version=1)(lambda stored: {**stored, "channel": "counter"})

    @shop.projection
    def channels(row: Channel, event: Ordered) -> Channel:
        return replace(row, name=event.channel)

    async with Application(shop, store=old_store) as app:
        found = await app.query(ChannelOf(customer=ADA), freshness="latest")
    assert found == Channel(customer=ADA, name="counter")


# ── refused ──────────────────────────────────────────────────────────────────


@kept
async def test_a_renamed_class_that_does_not_say_so_is_refused(old_store: str) -> None:
    """The error names what to write."""

    class Renamed(Event):
        customer: CustomerId

    with pytest.raises(UnreadableEvent, match=r'NewName\(Event, formerly=\["shop\.OrderCreated"\]\)'):
        await Application(BoundedContext("shop", events=[Renamed]), store=old_store).open()


@kept
async def test_a_renamed_identity_that_does_not_say_so_is_refused(old_store: str) -> None:
    """Decisions would miss what is tagged with the former name."""

    class BuyerId(Identity): ...

    class OrderCreated(Event):
        customer: BuyerId
        shop: ShopId

    with pytest.raises(TagsChanged, match="formerly=") as tags:
        await Application(BoundedContext("shop", events=[OrderCreated]), store=old_store).open()
    assert (tags.value.stored, tags.value.coded) == (("cust", "shop"), ("buyer", "shop"))


@kept
async def test_versions_that_do_not_go_on_over_a_rename_are_refused(old_store: str) -> None:
    """A class that begins at 1 again would read other fields as its own."""

    class Second(Event, version=2, stored_as="shop.OrderPlaced"):
        customer: CustomerId
        shop: ShopId

    shop = BoundedContext("shop")

    @shop.command_handler
    def place(command: Place) -> Second:
        return Second(customer=command.customer, shop=command.shop)

    class Third(Event, formerly=["OrderPlaced", "OrderCreated"]):
        customer: CustomerId
        shop: ShopId

    shop.upcaster(Second, from_version=1)(dict)
    renamed_only = BoundedContext("shop", events=[Third])

    class Unused(Event, stored_as="shop.OrderCreated"):
        customer: CustomerId
        shop: ShopId

    shop.events = (Unused,)
    async with Application(shop, store=old_store) as app:
        await app.execute(Place(customer=BOB, shop=HERE))
    with pytest.raises(UnreadableEvent, match=r"version 1 here.*over a rename versions go on: say version=2"):
        await Application(renamed_only, store=old_store).open()


def events_named(first: Sequence[str], second: Sequence[str]) -> BoundedContext:
    class First(Event, formerly=first):
        customer: CustomerId

    class Second(Event, formerly=second):
        customer: CustomerId

    return BoundedContext("shop", events=[First, Second])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (["Old"], ["Old"], r"Second says that it was stored as 'shop\.Old', and .*First is, or was, too"),
        (["Old"], ["shop.Old"], r"'shop\.Old'"),
        (["Second"], [], r"First says that it was stored as 'shop\.Second', and .*Second is"),
        ([], ["Second"], r"'shop\.Second', and it is still"),
    ],
    ids=["both", "both, qualified", "another's", "its own"],
)
async def test_a_stored_name_means_one_class(first: Sequence[str], second: Sequence[str], reason: str) -> None:
    """Two that claim it, or one that another has, are told when the application is made."""
    with pytest.raises(ConfigurationError, match=reason):
        await Application(events_named(first, second)).open()


def identities(*kinds: type) -> BoundedContext:
    """An event that holds one of each."""

    class Held(Event):
        first: kinds[0]  # type: ignore[valid-type]
        second: kinds[1]  # type: ignore[valid-type]

    return BoundedContext("shop", events=[Held])


async def test_a_tag_means_one_kind_of_thing() -> None:
    """Two identities that claim a former tag, or one that another has; those that share their tag share the former."""

    class OneId(Identity, formerly=["old"]): ...

    class OtherId(Identity, formerly=["old"]): ...

    class OldId(Identity): ...

    class AlsoOne(Identity, tag="one", formerly=["old", "older"]): ...

    class OwnId(Identity, formerly=["own"]): ...

    for kinds, tag in ((OneId, OtherId), "old"), ((OneId, OldId), "old"), ((OldId, OwnId), "own"):
        with pytest.raises(ConfigurationError, match=f"its tag was '{tag}', which is, or was too"):
            await Application(identities(*kinds)).open()
    async with Application(identities(OneId, AlsoOne)) as app:
        found = app.partition().history.types.stored_tags("one:1")
    assert sorted(found) == ["old:1", "older:1", "one:1"]


@pytest.mark.parametrize("formerly", ["Old", "old"])
def test_former_names_are_a_list(formerly: Any) -> None:
    """A text would be taken for a list of its letters."""
    with pytest.raises(TypeError, match=r"formerly=\['"):

        class Renamed(Event, formerly=formerly): ...

    with pytest.raises(TypeError, match=r"formerly=\['"):

        class RenamedId(Identity, formerly=formerly): ...

    with pytest.raises(TypeError, match="may hold letters"):

        class OddId(Identity, formerly=["a:b"]): ...


def test_the_names_of_one_item_are_bounded() -> None:
    """Former tags multiply: past the limit it is said, and not looked for in thousands of ways."""

    class ManyId(Identity, formerly=[f"former{n}" for n in range(STORED_ITEMS_MAX)]): ...

    types = event_types([identities(ManyId, ShopId)])
    with pytest.raises(ConfigurationError, match="STORED_ITEMS_MAX=64"):
        stored_query(EventQuery((QueryItem(tags=frozenset({"many:1"})),)), types)


async def test_a_model_of_too_many_names_is_told_when_the_application_is_made() -> None:
    """Not by its first command."""

    class LaneId(Identity, formerly=[f"lane{n}" for n in range(8)]): ...

    class RackId(Identity, formerly=[f"rack{n}" for n in range(8)]): ...

    class Stored(Event):
        lane: LaneId
        rack: RackId

    class Store(Command):
        lane: LaneId
        rack: RackId

    class Place(DecisionModel[LaneId, RackId]):
        def evolve(self, event: Stored) -> Place:
            return self

    depot = BoundedContext("depot")

    @depot.command_handler
    def store(command: Store, place: Place) -> Stored:
        return Stored(lane=command.lane, rack=command.rack)

    with pytest.raises(ConfigurationError, match="81 sets of tags"):
        await Application(depot).open()
