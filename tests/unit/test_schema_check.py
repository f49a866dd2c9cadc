"""Whether the code reads what is stored, and what breaks where it does not: told of all at once, changing nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from diptych import Application, BoundedContext, Event, Identity, Value
from diptych.application.registration import event_types
from diptych.event_store.event_store import Appended, Commit, EventStore, StoredType
from diptych.event_store.history import History
from diptych.event_store.pages import event_pages
from diptych.event_store.position import START, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.schema_check import Break, CheckedSchema, HeldType, IgnoredField, check_schema, held_types
from diptych.messages.unique_id import unique_bytes

pytestmark = pytest.mark.anyio
Fields = Mapping[str, Any]


class OrderId(Identity): ...


class BuyerId(Identity): ...


class Line(Value):
    sku: str


class OrderPlaced(Event, version=2):
    order: OrderId
    cents: int
    lines: tuple[Line, ...] = ()


class OrderPaid(Event):
    order: OrderId


STORED = [
    ("shop.OrderPlaced", 1, b'{"order":"a","total":"2.50"}', "order:a"),
    ("shop.OrderPaid", 1, b'{"order":"a"}', "order:a"),
    ("shop.OrderPlaced", 2, b'{"order":"b","cents":1}', "order:b"),
    ("other.Happened", 1, b'{"x":1}', "x:1"),
    ("shop.OrderPlaced", 1, b'{"order":"c","total":"1.00"}', "order:c"),
]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    """A store that holds `STORED`, on every kind of store."""
    async with Application(BoundedContext("nothing"), store=store_url) as app:
        store = app.partition().store
        kinds = {(type, version): tag.partition(":")[0] for type, version, _, tag in STORED}
        await store.register_types([StoredType(*kind, (tag,)) for kind, tag in kinds.items()])
        await append(store, *STORED)
        yield store


async def append(store: EventStore, *stored: tuple[str, int, bytes, str]) -> None:
    events = [NewEvent(unique_bytes(), type, version, data, (tag,)) for type, version, data, tag in stored]
    (result,) = await store.append([Commit(events=tuple(events))])
    assert isinstance(result, Appended)


def in_cents(stored: Fields) -> Fields:
    return {"order": stored["order"], "cents": round(float(stored["total"]) * 100)}


def shop(*events: type[Event], upcaster: Any = in_cents) -> BoundedContext:
    context = BoundedContext("shop", events=events or (OrderPlaced, OrderPaid))
    if upcaster is not None:
        context.upcaster(OrderPlaced, from_version=1)(upcaster)
    return context


async def checked(store: EventStore, *contexts: BoundedContext) -> CheckedSchema:
    moves: list[tuple[int, int | None]] = []
    before = [event async for event in _events(store)]
    history = History(event_types(contexts))
    names = [context.name for context in contexts]
    found = await check_schema(store, history, names, lambda *moved: moves.append(moved))
    assert moves[-1] == (found.events, found.events)
    assert [event async for event in _events(store)] == before
    return found


async def _events(store: EventStore) -> AsyncIterator[object]:
    async for page in event_pages(store, START, (await store.head()).position):
        for event in page:
            yield event


async def test_types_are_listed_with_versions_counts_and_places(store: EventStore) -> None:
    """By name and version, with the tag names that are facts."""
    assert await held_types(store, lambda *_: None) == [
        HeldType("other.Happened", 1, 1, Position(4), Position(4), ("x",)),
        HeldType("shop.OrderPaid", 1, 1, Position(2), Position(2), ("order",)),
        HeldType("shop.OrderPlaced", 1, 2, Position(1), Position(5), ("order",)),
        HeldType("shop.OrderPlaced", 2, 1, Position(3), Position(3), ("order",)),
    ]


async def test_code_that_reads_everything_breaks_nothing(store: EventStore) -> None:
    """Older versions through upcasters; other contexts are none of its business; a field with a default may come."""
    assert await checked(store, shop()) == CheckedSchema(5, 4, [], [], [])


async def test_a_missing_upcaster_is_told_with_its_skeleton_and_count(store: EventStore) -> None:
    """Once for all events of the version."""
    (found,) = (await checked(store, shop(upcaster=None))).breaks
    assert (found.type, found.version, found.events, found.position) == ("shop.OrderPlaced", 1, 2, 1)
    assert "nothing upcasts version 1 to the next" in found.reason
    assert found.skeleton.startswith("@shop.upcaster(OrderPlaced, from_version=1)\ndef ")


async def test_a_removed_class_and_a_changed_one_are_told_together(store: EventStore) -> None:
    """All that breaks, not the first of it: a removed class, and a field that became required in a nested value."""

    class Placed(Event, stored_as="shop.OrderPlaced", version=2):
        order: OrderId
        cents: str

    context = BoundedContext("shop", events=[Placed])
    context.upcaster(Placed, from_version=1)(in_cents)
    found = {(each.type, each.version): each for each in (await checked(store, context)).breaks}
    assert list(found) == [("shop.OrderPlaced", 1), ("shop.OrderPaid", 1), ("shop.OrderPlaced", 2)]
    assert "no event of that name" in found["shop.OrderPaid", 1].reason
    assert "what tests.unit.test_schema_check.in_cents made of it is none" in found["shop.OrderPlaced", 1].reason
    assert "$.cents" in found["shop.OrderPlaced", 2].reason
    assert "from_version=2" in found["shop.OrderPlaced", 2].skeleton


async def test_an_upcaster_that_fails_for_some_events_is_found(store: EventStore) -> None:
    """A schema alone could not tell: one event of the version is read, another is not."""

    def of_some(stored: Fields) -> Fields:
        return {"order": stored["order"], "cents": {"2.50": 250}[stored["total"]]}

    assert [(each.position, each.events) for each in (await checked(store, shop(upcaster=of_some))).breaks] == [(5, 1)]


async def test_an_upcaster_that_changes_an_identity_is_found(store: EventStore) -> None:
    """The event would be folded by the tag that is stored, and tell of another one."""

    def other_order(stored: Fields) -> Fields:
        return {**in_cents(stored), "order": "z"}

    (found,) = (await checked(store, shop(upcaster=other_order))).breaks
    assert (found.events, found.reason[:46]) == (2, "it is tagged ['order:a'], and upcast it would ")


async def test_other_tags_are_told(store: EventStore) -> None:
    """As when the store is opened, and for each version."""

    class Paid(Event, stored_as="shop.OrderPaid"):
        order: BuyerId

    found = (await checked(store, shop(OrderPlaced, Paid))).breaks
    assert [(each.type, each.position, "tagged ['order']" in each.reason) for each in found] == [
        ("shop.OrderPaid", 2, True)
    ]


async def test_a_field_that_nothing_reads_is_told_and_breaks_nothing(store: EventStore) -> None:
    """A field with a default that was renamed would be lost without a word."""
    data = b'{"order":"d","cents":1,"note":"hurry"}'
    await append(store, ("shop.OrderPlaced", 2, data, "order:d"), ("shop.OrderPlaced", 2, data, "order:d"))
    found = await checked(store, shop())
    assert found.breaks == []
    assert found.ignored == [IgnoredField("shop.OrderPlaced", 2, "note", 2, Position(6))]


async def test_a_renamed_class_reads_what_it_was(store: EventStore) -> None:
    """And one that does not say so is told."""

    class Paid(Event, formerly=["OrderPaid"]):
        order: OrderId

    class Other(Event):
        order: OrderId

    assert (await checked(store, shop(OrderPlaced, Paid))).breaks == []
    (found,) = (await checked(store, shop(OrderPlaced, Other))).breaks
    assert isinstance(found, Break)
    assert (found.type, 'formerly=["shop.OrderPaid"]' in found.reason) == ("shop.OrderPaid", True)
