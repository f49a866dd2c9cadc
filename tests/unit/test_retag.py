"""Stored events tagged anew: decisions find them by the new tags, nothing else of them changes, nobody is misled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    DecisionModel,
    Event,
    Identity,
    ProcessManager,
    Reaction,
    Rejected,
    Untagged,
    replace,
)
from diptych.adapters.connect import connect_event_store
from diptych.application.registration import event_types
from diptych.application.retagging import Standing, standing_on
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, Retagged, TagsChanged, UnreadableEvent, Unstorable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Commit, EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.event_store.retag import RetaggedType, plan_retag
from diptych.event_store.tagging import UNTOUCHED
from diptych.messages.unique_id import unique_bytes
from diptych.testing.contracts.event_store_case import opened
from tests.own_tables import AccountId, Bank, Database, Open
from tests.transferring import banking

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)


class OrderId(Identity): ...


class BuyerId(Identity): ...


class Place(Command):
    order: OrderId
    buyer: BuyerId


class Pay(Command):
    order: OrderId


class Tally(Command):
    buyer: BuyerId


def before() -> BoundedContext:
    """Orders are found by their own identity alone."""
    shop = BoundedContext("shop")

    class OrderPlaced(Event):
        order: OrderId
        buyer: Untagged[BuyerId]

    class OrderPaid(Event):
        order: OrderId

    class Order(DecisionModel[OrderId], state_stored=True):
        placed: bool = False

        def evolve(self, event: OrderPlaced) -> Order:
            return Order(placed=True)

    class Till(DecisionModel[OrderId], state_stored=True):
        paid: int = 0

        def evolve(self, event: OrderPaid) -> Till:
            return Till(paid=self.paid + 1)

    @shop.command_handler
    def place(command: Place, order: Order) -> OrderPlaced:
        if order.placed:
            raise Rejected("placed already")
        return OrderPlaced(order=command.order, buyer=command.buyer)

    @shop.command_handler
    def pay(command: Pay, till: Till) -> OrderPaid:
        return OrderPaid(order=command.order)

    return shop


def after() -> BoundedContext:
    """And by the buyer's: how many a buyer has can be decided on."""
    shop = BoundedContext("shop")

    class OrderPlaced(Event):
        order: OrderId
        buyer: BuyerId

    class OrderPaid(Event):
        order: OrderId

    class Counted(Event):
        buyer: BuyerId
        orders: int

    class Buyer(DecisionModel[BuyerId], state_stored=True):
        orders: int = 0

        def evolve(self, event: OrderPlaced) -> Buyer:
            return replace(self, orders=self.orders + 1)

    class Till(DecisionModel[OrderId], state_stored=True):
        paid: int = 0

        def evolve(self, event: OrderPaid) -> Till:
            return Till(paid=self.paid + 1)

    @shop.command_handler
    def place(command: Place, buyer: Buyer) -> OrderPlaced:
        return OrderPlaced(order=command.order, buyer=command.buyer)

    @shop.command_handler
    def tally(command: Tally, buyer: Buyer) -> Counted:
        return Counted(buyer=command.buyer, orders=buyer.orders)

    @shop.command_handler
    def pay(command: Pay, till: Till) -> OrderPaid:
        return OrderPaid(order=command.order)

    return shop


ORDERS = [("o1", "ann"), ("o2", "bob"), ("o3", "ann")]


async def fill(url: str) -> None:
    async with Application(before(), store=url) as app:
        for order, buyer in ORDERS:
            await app.execute(Place(order=OrderId(order), buyer=BuyerId(buyer)))
            await app.execute(Pay(order=OrderId(order)))


def reading(*contexts: BoundedContext) -> History:
    return History(event_types(contexts))


async def all_events(store: EventStore) -> Sequence[RecordedEvent]:
    return (await store.read(ALL_EVENTS, START, 100)).events


async def retag(store: EventStore, context: BoundedContext, types: Sequence[str] = ()) -> list[RetaggedType]:
    history = reading(context)
    plan = await plan_retag(store, history, types)
    standing = standing_on([stored.name for stored in plan.types], [context], history.types)
    return await plan.run(standing.unaffected, lambda *_: None)


@kept
async def test_decisions_find_old_events_by_their_new_tags(store_url: str) -> None:
    """The code is refused before, and opens after; positions, ids and fields are what they were."""
    await fill(store_url)
    with pytest.raises(TagsChanged, match="diptych retag"):
        await Application(after(), store=store_url).open()
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        stored = await all_events(store)
        assert await retag(store, after()) == [RetaggedType("shop.OrderPlaced", 1, 3, 3)]
        now = await all_events(store)
        assert [set(event.tags) for event in now[::2]] == [
            {f"order:{order}", f"buyer:{buyer}"} for order, buyer in ORDERS
        ]
        assert now[1::2] == stored[1::2]
        untagged = [[(e.position, e.event_id, e.type, e.data, e.metadata) for e in each] for each in (now, stored)]
        assert untagged[0] == untagged[1]
        assert await store.model_state("shop.Order", '["o1"]') is None
        assert await store.model_state("shop.Till", '["o1"]') is not None
    with pytest.raises(TagsChanged):
        await Application(before(), store=store_url).open()
    async with Application(after(), store=store_url) as app:
        await app.execute(Tally(buyer=BuyerId("ann")))
        assert [event.data async for event in app.events(ALL_EVENTS, after=6)] == [b'{"buyer":"ann","orders":2}']


async def test_a_memory_store_is_tagged_anew_likewise(store_url: str) -> None:
    """Whatever has it open is refused from then on, with what to do, until it is opened again."""
    async with Application(before(), store=store_url) as app:
        await app.execute(Place(order=OrderId("o1"), buyer=BuyerId("ann")))
        store = app.partition().store
        assert await retag(store, after()) == [RetaggedType("shop.OrderPlaced", 1, 1, 1)]
        for command in (Place(order=OrderId("o2"), buyer=BuyerId("ann")), Pay(order=OrderId("o1"))):
            with pytest.raises(Retagged, match="start it again, with the code that tags them so"):
                await app.execute(command)
        assert await store.stored_types() == [
            replace_tags(stored, ("buyer", "order")) for stored in await store.stored_types()
        ]


def replace_tags(stored: Any, names: tuple[str, ...]) -> Any:
    return type(stored)(stored.name, stored.version, names, stored.facts)


@kept
async def test_a_count_changes_nothing(store_url: str) -> None:
    """It tells what would become of the events, and lets everyone go on."""
    await fill(store_url)
    async with Application(before(), store=store_url) as app:
        store = app.partition().store
        stored, types = await all_events(store), await store.stored_types()
        moves: list[tuple[int, int | None]] = []
        plan = await plan_retag(store, reading(after()))
        assert await plan.counted(lambda *moved: moves.append(moved)) == [RetaggedType("shop.OrderPlaced", 1, 3, 3)]
        assert moves[-1] == (5, 6)
        assert (await all_events(store), await store.stored_types()) == (stored, types)
        await app.execute(Pay(order=OrderId("o1")))


@kept
async def test_work_that_was_cut_off_is_done_again(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No application opens before it is; then all is as if it had been done at once."""
    await fill(store_url)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        with monkeypatch.context() as patch:
            patch.setattr("diptych.event_store.pages.FIRST_PAGE_EVENTS", 1)
            patch.setattr("diptych.event_store.pages.PAGE_EVENTS_MAX", 1)
            patch.setattr(store, "write_tags", failing_at(2, store.write_tags))
            with pytest.raises(Cut):
                await retag(store, after())
        assert [len(event.tags) for event in await all_events(store)] == [2, 1, 1, 1, 1, 1]
    for context in (before(), after()):
        with pytest.raises(Retagged):
            await Application(context, store=store_url).open()
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await plan_retag(store, reading(after()), ["OrderPaid"])
        assert (plan.resumed, [type.name for type in plan.types]) == (True, ["shop.OrderPaid", "shop.OrderPlaced"])
        assert await retag(store, after()) == [RetaggedType("shop.OrderPlaced", 1, 3, 2)]
    async with Application(after(), store=store_url) as app:
        await app.execute(Tally(buyer=BuyerId("ann")))


class Cut(Exception):
    """Ends the work in the middle."""


def failing_at(call: int, function: Any) -> Any:
    calls = 0

    async def counted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Cut
        await function(*arguments)

    return counted


@kept
async def test_it_can_be_taken_back_by_the_code_of_before(store_url: str) -> None:
    """Also in the middle: every tag is made of the fields."""
    await fill(store_url)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        stored, types = await all_events(store), await store.stored_types()
        await retag(store, after())
        await retag(store, before())
        assert (await all_events(store), await store.stored_types()) == (stored, types)


@kept
async def test_a_type_is_tagged_anew_where_it_is_named(store_url: str) -> None:
    """Nothing is done of itself where no difference is known of; one that is named need have none."""
    await fill(store_url)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        assert (await plan_retag(store, reading(before()))).types == []
        for name in ("OrderPaid", "shop.OrderPaid"):
            assert await retag(store, before(), [name]) == [RetaggedType("shop.OrderPaid", 1, 3, 0)]
        with pytest.raises(ConfigurationError, match="no event is stored of the type 'OrderLost'"):
            await plan_retag(store, reading(before()), ["OrderLost"])
        await store.begin_retag([("shop.OrderPaid", 1)], await store.tagging())
        with pytest.raises(ConfigurationError, match=r"shop\.OrderPaid are to be tagged anew.*does not know them"):
            await plan_retag(store, reading(BoundedContext("other")))


@kept
async def test_older_versions_are_tagged_as_what_they_are_upcast_to(store_url: str) -> None:
    """An upcaster may bring a new identity, which it otherwise may not."""
    await fill(store_url)
    shop = BoundedContext("shop")

    class OrderPlaced(Event, version=2):
        order: OrderId
        customer: BuyerId

    class OrderPaid(Event):
        order: OrderId

    class Orders(DecisionModel[BuyerId]):
        orders: int = 0

        def evolve(self, event: OrderPlaced) -> Orders:
            return Orders(orders=self.orders + 1)

    @shop.command_handler
    def tally(command: Tally, orders: Orders) -> OrderPaid:
        raise Rejected("told", orders=orders.orders)

    @shop.upcaster(OrderPlaced, from_version=1)
    def with_customer(stored: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"order": stored["order"], "customer": stored["buyer"]}

    async with opened(connect_event_store(store_url, SystemClock())) as store:
        assert await retag(store, shop) == [RetaggedType("shop.OrderPlaced", 1, 3, 3)]
    async with Application(shop, store=store_url) as app:
        with pytest.raises(Rejected) as rejected:
            await app.execute(Tally(buyer=BuyerId("ann")))
    assert rejected.value.facts == {"orders": 2}


@kept
@pytest.mark.parametrize("case", ["unreadable", "unstorable"])
async def test_what_cannot_be_tagged_is_told_before_anybody_is_kept_out(store_url: str, case: str) -> None:
    """By the count, which reads all of it."""
    await fill(store_url)

    class OrderPlaced(Event, version=2):
        order: OrderId
        buyer: BuyerId

    shop = BoundedContext("shop", events=[OrderPlaced])

    @shop.upcaster(OrderPlaced, from_version=1)
    def upcast(stored: Mapping[str, Any]) -> Mapping[str, Any]:
        if case == "unreadable":
            raise ValueError("no")
        return {**stored, "buyer": "b" * 600}

    expected, told = (
        (UnreadableEvent, "failed") if case == "unreadable" else (Unstorable, "position 1: .*TAG_BYTES_MAX")
    )
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await plan_retag(store, reading(shop))
        with pytest.raises(expected, match=re.compile(told, re.DOTALL)):
            await plan.counted(lambda *_: None)
        assert (await store.tagging()).unfinished == ()


@kept
async def test_a_type_that_comes_just_before_the_work_is_part_of_it(store_url: str) -> None:
    """What is planned is looked at again once nobody can append."""

    class OrderPlaced(Event):
        order: OrderId
        buyer: BuyerId

    class OrderPaid(Event):
        order: Untagged[OrderId]

    history = reading(BoundedContext("shop", events=[OrderPlaced, OrderPaid]))
    async with Application(before(), store=store_url) as app:
        await app.execute(Pay(order=OrderId("o1")))
        async with opened(connect_event_store(store_url, SystemClock())) as store:
            plan = await plan_retag(store, history)
            assert [type.name for type in plan.types] == ["shop.OrderPaid"]
            await app.execute(Place(order=OrderId("o1"), buyer=BuyerId("ann")))
            assert await plan.run((), lambda *_: None) == [
                RetaggedType("shop.OrderPaid", 1, 1, 1),
                RetaggedType("shop.OrderPlaced", 1, 1, 1),
            ]
            assert (await store.tagging()).unfinished == ()
            assert [set(event.tags) for event in await all_events(store)] == [set(), {"order:o1", "buyer:ann"}]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_own_tables_are_not_written_by_what_is_refused(database: Database, tmp_path: Path) -> None:
    """The handler was run, in a transaction that ends with the append; nothing of it stays."""
    bank = Bank(database, tmp_path)
    async with Application(bank.context, store=bank.url) as app:
        await app.execute(Open(account=AccountId("a")))
        async with opened(connect_event_store(bank.url, SystemClock())) as store:
            await store.begin_retag([("bank.Opened", 1)], UNTOUCHED)
        with pytest.raises(Retagged):
            await app.execute(Open(account=AccountId("b")))
        assert (await app.status()).head == 1
    assert bank.runs == 2
    assert bank.balances() == {"a": 0}


class Moved(Event):
    order: OrderId


class MovedAnew(Event, stored_as="shop.Moved"):
    order: Untagged[OrderId]


class Moving(ProcessManager[OrderId]):
    order: OrderId
    moves: int = 0

    def react(self, event: Moved) -> Reaction[Moving]:
        return Reaction(replace(self, moves=self.moves + 1))


@kept
async def test_a_worker_of_before_stops_at_what_was_tagged_anew(store_url: str) -> None:
    """It finds instances by tags: it would pass over the event, and nobody would ever know."""
    shop = BoundedContext("shop", events=[Moved])
    shop.process_manager(from_beginning=True)(Moving)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        await History(event_types([shop])).register(store, ["shop"])
        moved = NewEvent(unique_bytes(), "shop.Moved", 1, b'{"order":"o1"}', ("order:o1",))
        await store.append([Commit((moved,))])
    async with Application(shop, store=store_url, projecting=False) as app:  # opened before, and behind
        async with opened(connect_event_store(store_url, SystemClock())) as store:
            assert [found.retagged for found in await retag(store, BoundedContext("shop", events=[MovedAnew]))] == [1]
        (runner,) = app.partition().process_worker._runners
        (recorded,) = [event async for event in app.events(ALL_EVENTS)]
        with pytest.raises(UnreadableEvent, match=r"it is tagged \[\], and this code would tag it \['order:o1'\]"):
            runner._given(recorded)  # what it does with each event that it reads


def test_what_stands_on_tags_is_told() -> None:
    """Models whose states are kept, and processes, of these events; of the others, those whose states may stay."""
    context = after()
    shop = frozenset({"shop"})
    assert standing_on(["shop.OrderPlaced"], [context], event_types([context])) == Standing(
        ["shop.Buyer"], frozenset({"shop.Till"}), [], {"shop.Buyer": frozenset({"shop.OrderPlaced"})}, shop
    )
    assert standing_on(["shop.Counted", "other.Gone"], [context], event_types([context])) == Standing(
        [], frozenset({"shop.Buyer", "shop.Till"}), [], {}, shop
    )
    bank = banking()
    for stored, processes in (("bank.Requested", ["bank.Transferring"]), ("bank.Refunded", [])):
        found = standing_on([stored], [bank], event_types([bank]))
        assert found == Standing([], frozenset(), processes, {}, frozenset({"bank"}))
