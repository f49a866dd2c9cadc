"""A history of older code, whose events are several now or none, is what the same history would be in events of now."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Application, Event, Receipt, Rejected
from diptych.application.registration import event_types
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.history import History
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.testing import InMemoryApplication
from tests.split_orders import (
    AddressGiven,
    GiveAddress,
    GiveAnyAddress,
    GiveOutside,
    Line,
    Look,
    OrderId,
    OrderPlaced,
    Place,
    Seen,
    Shipped,
    orders,
    pinged,
    placed,
    splitting,
    store,
)

ORDERS = [OrderId("pen"), OrderId("ink")]
TYPES = event_types([splitting()])

of_placed = st.tuples(
    st.just("placed"), st.sampled_from(ORDERS), st.integers(1, 9), st.sampled_from(["", "Hafen", "Kai"]), st.booleans()
)
of_pinged = st.tuples(st.just("pinged"), st.sampled_from(ORDERS))
of_now = st.tuples(st.just("now"), st.sampled_from(ORDERS), st.integers(10, 19), st.booleans())
histories = st.lists(st.lists(st.one_of(of_placed, of_pinged, of_now), min_size=1, max_size=5), max_size=4)


def stored_now(event: Event) -> NewEvent:
    """An event as code of now stores it."""
    found = TYPES.of(type(event))
    data, settled = found.codec.settle(event)
    return NewEvent(unique_bytes(), found.name, found.version, data, found.tags(settled))


def today(kind: str, order: OrderId, cents: int = 0, street: Any = "", *_: Any) -> list[Event]:
    """What happened, in events of now; by hand, so without any upcaster."""
    if kind == "pinged":
        return []
    if kind == "now" and street:
        return [AddressGiven(order=order, lines=[f"Deich {cents}"])]
    address = [AddressGiven(order=order, lines=[street, "Germany"])] if street else []
    return [OrderPlaced(order=order, cents=cents, currency="EUR"), *address]


def older(kind: str, order: OrderId, cents: int = 0, street: Any = "", former: bool = False) -> list[NewEvent]:
    """The same, as older code has stored it, where it has."""
    if kind == "pinged":
        return [pinged(order)]
    if kind == "placed":
        return [placed(order, cents, street, former=former)]
    return [stored_now(event) for event in today(kind, order, cents, street)]


async def become(commits: list[list[NewEvent]], batch: int, looks: int) -> Any:
    """What the application makes of a history: events, models, rows, and what its process does."""
    async with InMemoryApplication(orders()) as app:
        app.partition().projector._batch_max = batch
        for n, events in enumerate(commits):
            if events:
                await store(app.partition(), *events)
            if n == looks:  # models are in the cache from here on, and go on from there
                await looked(app)
        await app.settled()
        happened = [fact.event for fact in await app.facts()]
        seen = {row.order: [part.rpartition(" ")[0] for part in row.events.split(";")] for row in await app.rows(Seen)}
        shipped = {
            order: [each for each in happened if isinstance(each, Shipped) and each.order == order] for order in ORDERS
        }
        told = [event for event in happened if not isinstance(event, Shipped)]
        return told, shipped, seen, await app.rows(Line), await looked(app)


async def looked(app: InMemoryApplication) -> list[Any]:
    found: list[Any] = []
    for order in ORDERS:
        try:
            await app.execute(Look(order=order))
        except Rejected as rejected:
            facts = dict(rejected.facts)
            found.append({**facts, "order": [part.rpartition(" ")[0] for part in facts["order"]]})
    return found


@settings(max_examples=25, deadline=None)
@given(history=histories, batch=st.sampled_from([1, 2, 1000]), looks=st.integers(0, 4))
def test_g6_a_history_upcast_into_several_or_none_folds_as_one_of_today(
    history: list[list[Any]], batch: int, looks: int
) -> None:
    """Models, kept states and snapshots, rows and commands of processes, however batches are cut."""

    async def check() -> None:
        before = await become([[each for fact in commit for each in older(*fact)] for commit in history], batch, looks)
        now = [[stored_now(event) for fact in commit for event in today(*fact)] for commit in history]
        assert before == await become(now, batch, looks)
        assert len(before[0]) == sum(len(today(*fact)) for commit in history for fact in commit)

    asyncio.run(check())


WAYS = [GiveAddress, GiveAnyAddress, GiveOutside, Place]
of_commands = st.tuples(st.sampled_from(WAYS), st.sampled_from(ORDERS))
rounds = st.lists(st.lists(st.one_of(of_commands, of_placed), max_size=8), max_size=4)


def doing(app: Application, kind: Any, order: OrderId, *rest: Any) -> Any:
    """A command of this code, or what older code stores meanwhile."""
    if kind == "placed":
        return store(app.partition(), *older(kind, order, *rest))
    return app.execute(Place(order=order, cents=1) if kind is Place else kind(order=order, street=kind.__name__))


@settings(max_examples=25, deadline=None)
@given(steps=rounds)
def test_g3_a_decision_on_parts_equals_a_serial_execution(steps: list[list[Any]]) -> None:
    """Each address says how many its decision knew of: those before it, whoever stored them, and as what."""
    history = History(TYPES)

    async def check() -> None:
        async with Application(orders(shipping=False), projecting=False) as app:
            for step in steps:
                for outcome in await asyncio.gather(*[doing(app, *each) for each in step], return_exceptions=True):
                    assert outcome is None or isinstance(outcome, Receipt), outcome
            every, lines = 0, dict.fromkeys(ORDERS, 0)
            async for recorded in app.events(ALL_EVENTS):
                for event in history.parts(recorded):
                    if isinstance(event, AddressGiven):
                        street, known = event.lines
                        if known != "Germany":  # which older code has stored
                            assert known == str(every if street == "GiveAnyAddress" else lines[event.order]), recorded
                        every, lines[event.order] = every + 1, lines[event.order] + len(event.lines)

    asyncio.run(check())
