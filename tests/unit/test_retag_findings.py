"""Events that are tagged anew, together with what else became of them: split, pruned, kept as states, renamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
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
from diptych.application.retagging import check_states, standing_on
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, HistoryPruned, SchemaChanged, TagsChanged, UnreadableEvent
from diptych.event_store.event_store import EventStore
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.event_store.retag import RetaggedType, Retagging, plan_retag
from diptych.testing.contracts.event_store_case import opened

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
on_file = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)

LATER = datetime(2999, 1, 1, tzinfo=UTC)


class OrderId(Identity): ...


class BuyerId(Identity): ...


class Place(Command):
    order: OrderId
    buyer: BuyerId


class Look(Command):
    order: OrderId
    buyer: BuyerId


def old() -> BoundedContext:
    """Orders, of which nobody decides by who has placed them."""
    shop = BoundedContext("shop")

    class OrderPlaced(Event):
        order: OrderId
        buyer: Untagged[BuyerId]

    class Order(DecisionModel[OrderId], state_stored=True):
        placed: int = 0

        def evolve(self, event: OrderPlaced) -> Order:
            return Order(placed=self.placed + 1)

    @shop.command_handler
    def place(command: Place, order: Order) -> OrderPlaced:
        return OrderPlaced(order=command.order, buyer=command.buyer)

    return shop


def tagged() -> BoundedContext:
    """The same, found by who has placed them as well."""
    shop = BoundedContext("shop")

    class OrderPlaced(Event):
        order: OrderId
        buyer: BuyerId

    class Noted(Event):
        order: OrderId

    class Order(DecisionModel[OrderId], state_stored=True):
        placed: int = 0

        def evolve(self, event: OrderPlaced | Noted) -> Order:
            return Order(placed=self.placed + 1)

    @shop.command_handler
    def place(command: Place, order: Order) -> OrderPlaced:
        return OrderPlaced(order=command.order, buyer=command.buyer)

    @shop.command_handler
    def look(command: Look, order: Order) -> Noted:
        return Noted(order=command.order)

    return shop


def apart() -> BoundedContext:
    """An order that was stored as one event is two, of which the second is the buyer's."""
    shop = BoundedContext("shop")

    class OrderPlaced(Event, version=2):
        order: OrderId

    class Bought(Event):
        buyer: BuyerId

    class Buyer(DecisionModel[BuyerId], state_stored=True):
        bought: int = 0

        def evolve(self, event: Bought) -> Buyer:
            return replace(self, bought=self.bought + 1)

    class Order(DecisionModel[OrderId]):
        placed: int = 0

        def evolve(self, event: OrderPlaced) -> Order:
            return Order(placed=self.placed + 1)

    class Greeting(ProcessManager[BuyerId]):
        buyer: BuyerId

        def react(self, event: Bought) -> Reaction[Greeting]:
            return Reaction(self)

    shop.process_manager(Greeting)

    @shop.upcaster(OrderPlaced, from_version=1, into={OrderPlaced: 2, Bought: 1})
    def two(stored: Mapping[str, Any]) -> Iterator[tuple[type[Event], Mapping[str, Any]]]:
        yield OrderPlaced, {"order": stored["order"]}
        yield Bought, {"buyer": stored["buyer"]}

    @shop.command_handler
    def look(command: Look, buyer: Buyer, order: Order) -> OrderPlaced:
        raise Rejected("seen", bought=buyer.bought, placed=order.placed)

    return shop


async def fill(url: str) -> None:
    async with Application(old(), store=url) as app:
        for order, buyer in (("o1", "ann"), ("o2", "bob"), ("o3", "ann")):
            await app.execute(Place(order=OrderId(order), buyer=BuyerId(buyer)))


async def planned(store: EventStore, context: BoundedContext, types: Sequence[str] = ()) -> Retagging:
    return await plan_retag(store, History(event_types([context])), types)


# ── parts ────────────────────────────────────────────────────────────────────


@kept
async def test_what_is_apart_has_the_tags_of_all_its_parts(store_url: str) -> None:
    """A part with a tag that the stored event has not is refused before; afterwards it is found by it."""
    await fill(store_url)
    with pytest.raises(TagsChanged, match="Bought"):
        await Application(apart(), store=store_url).open()
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await planned(store, apart())
        assert await plan.run((), lambda *_: None) == [RetaggedType("shop.OrderPlaced", 1, 3, 3)]
        assert [found.tag_names for found in await store.stored_types()] == [("buyer", "order")]
        assert (await planned(store, apart())).types == []
    async with Application(apart(), store=store_url) as app:
        with pytest.raises(Rejected) as rejected:
            await app.execute(Look(order=OrderId("o2"), buyer=BuyerId("ann")))
    assert rejected.value.facts == {"bought": 2, "placed": 1}


def test_states_and_processes_of_parts_stand_on_the_tags_of_what_is_apart() -> None:
    """A state of parts that were found by other tags is of other events."""
    context = apart()
    found = standing_on(["shop.OrderPlaced"], [context], event_types([context]))
    assert (found.models, found.unaffected, found.processes) == (["shop.Buyer"], frozenset(), ["shop.Greeting"])


@on_file
async def test_a_version_that_nothing_leads_from_is_told(store_url: str) -> None:
    """Though what comes after it is apart."""
    await fill(store_url)

    class OrderPlaced(Event, version=3):
        order: OrderId
        buyer: BuyerId

    shop = BoundedContext("shop", events=[OrderPlaced])

    @shop.upcaster(OrderPlaced, from_version=2, into={OrderPlaced: 3})
    def one(stored: Mapping[str, Any]) -> Iterator[tuple[type[Event], Mapping[str, Any]]]:
        yield OrderPlaced, stored

    async with opened(connect_event_store(store_url, SystemClock())) as store:
        with pytest.raises(UnreadableEvent, match="nothing upcasts version 1"):
            await (await planned(store, shop, ["OrderPlaced"])).counted(lambda *_: None)


# ── events without data ──────────────────────────────────────────────────────


@kept
async def test_what_has_no_data_is_not_begun_to_be_tagged_anew(store_url: str) -> None:
    """Nobody could finish it, and nobody appends until it is finished."""
    await fill(store_url)
    async with Application(old(), store=store_url) as app:
        (found,) = [cls for cls in app.partition().history.types if cls.name == "shop.OrderPlaced"]
        await app.pruning.prune(found.cls, before=LATER)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await planned(store, tagged())
        for refused in (plan.counted(lambda *_: None), plan.run((), lambda *_: None)):
            with pytest.raises(HistoryPruned, match="position 1 .*which tags it would have now. Nothing was changed"):
                await refused
        assert (await store.tagging()).unfinished == ()
    async with Application(old(), store=store_url) as app:
        await app.execute(Place(order=OrderId("o1"), buyer=BuyerId("ann")))


@kept
async def test_states_that_cannot_be_folded_anew_are_not_dropped(store_url: str) -> None:
    """They are made of pruned events of another type as well; nor those of code that is not there to tell."""
    await fill(store_url)
    context = tagged()
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await planned(store, context)
        await plan.run((), lambda *_: None)
    async with Application(context, store=store_url) as app:
        for order in ("o1", "o2"):
            await app.execute(Look(order=OrderId(order), buyer=BuyerId("ann")))
        types = app.partition().history.types
        (noted,) = [found.cls for found in types if found.name == "shop.Noted"]
        await app.pruning.prune(noted, before=LATER)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        standing = standing_on(["shop.OrderPlaced"], [context], types)
        with pytest.raises(ConfigurationError, match=r"of shop\.Order, which folds shop\.Noted\. Nothing was changed"):
            await check_states(store, standing)
        elsewhere = BoundedContext("elsewhere")
        other = standing_on(["elsewhere.Happened"], [elsewhere], event_types([elsewhere]))
        with pytest.raises(ConfigurationError, match=r"kept states of shop\.Order could .*name the contexts"):
            await check_states(store, other)
        await check_states(store, standing_on(["shop.Other"], [context], types))


@on_file
async def test_a_horizon_before_the_first_event_is_no_loss(store_url: str) -> None:
    """Nothing of the type was pruned, so that its models are folded anew as ever."""
    await fill(store_url)
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        await store.prune("shop.Noted", Position(0), Position(3), 10)
        context = tagged()
        await check_states(store, standing_on(["shop.OrderPlaced"], [context], event_types([context])))


# ── schemas ──────────────────────────────────────────────────────────────────


@on_file
@pytest.mark.parametrize("named", [(), ("OrderPlaced",)])
async def test_a_field_that_was_renamed_is_told_before_its_tags_are_lost(store_url: str, named: Sequence[str]) -> None:
    """It would be read as its default, which names nobody."""
    await fill(store_url)

    class OrderPlaced(Event):
        order: OrderId
        customer: BuyerId | None = None

    async with opened(connect_event_store(store_url, SystemClock())) as store:
        with pytest.raises(SchemaChanged, match="buyer is gone"):
            await planned(store, BoundedContext("shop", events=[OrderPlaced]), named)
