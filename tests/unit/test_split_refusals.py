"""What cannot be split as it is written: refused where it is said, where a store is opened, or where it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Event,
)
from diptych.application.registration import event_types
from diptych.errors import ConfigurationError, TagsChanged, UnreadableEvent
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import StoredType
from diptych.event_store.history import EVENT_PARTS_MAX, History
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from tests.split_orders import (
    PEN,
    AddressGiven,
    Fields,
    Look,
    OrderId,
    OrderPlaced,
    Pinged,
    Shipped,
    StreetId,
    apart,
    by_streets,
    in_euros,
    nothing,
    orders,
    pinged,
    placed,
    store,
    until,
)

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
"""Where a second application finds what the first one has left; that every store is alike, others show."""
on_two = pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)


# ── tags ─────────────────────────────────────────────────────────────────────


class Named(Event, stored_as="shop.StreetNamed", version=2):
    order: OrderId
    street: StreetId


def test_a_part_with_a_tag_that_is_not_stored_is_told() -> None:
    """By the names alone; where the tags are there, all is well."""
    history = History(event_types([by_streets()]))
    with pytest.raises(TagsChanged, match="diptych retag"):
        history.check_tags(StoredType("shop.OrderPlaced", 1, ("order",)))
    history.check_tags(StoredType("shop.OrderPlaced", 1, ("order", "street")))
    history.check_tags(StoredType("shop.OrderPlaced", 1, ("order", "customer", "street")))


@kept
async def test_a_part_with_a_tag_that_is_not_stored_refuses_the_store(store_url: str) -> None:
    """Whoever asked for it by that tag would miss it; `diptych retag` is named (rule 20)."""
    async with Application(BoundedContext("shop", events=[Shipped]), store=store_url) as app:
        await store(app.partition(), placed())
    with pytest.raises(TagsChanged, match=r"shop\.StreetNamed.*diptych retag") as changed:
        await Application(by_streets(), store=store_url).open()
    assert (changed.value.type, changed.value.part) == ("shop.OrderPlaced", "shop.StreetNamed")
    assert (changed.value.stored, changed.value.coded) == (("order",), ("order", "street"))


async def test_a_part_may_have_fewer_tags_than_what_it_is_stored_in() -> None:
    """It is found by its own alone: a query by one that it has not does not mean it."""
    shop = BoundedContext("shop", events=[Named, Shipped])

    @shop.upcaster(Named, from_version=1, into={Named: 2, Shipped: 1})
    def both(stored: Fields) -> Any:
        yield Shipped, {"order": stored["order"], "what": "all"}
        yield Named, stored

    async with Application(shop) as app:
        event = NewEvent(
            unique_bytes(), "shop.StreetNamed", 1, b'{"order":"pen","street":"Kai"}', ("order:pen", "street:Kai")
        )
        await store(app.partition(), event)

        async def found(*tags: str) -> int:
            query = EventQuery((QueryItem(frozenset({"shop.Shipped"}), frozenset(tags)),))
            return len([event async for event in app.events(query)])

        assert [await found("order:pen"), await found("street:Kai"), await found("order:pen", "street:Kai")] == [
            1,
            0,
            0,
        ]


@on_two
async def test_an_identity_that_a_part_makes_up_is_refused_where_it_is_read(store_url: str) -> None:
    """A part with another order's name would be missed by decisions on that one."""

    def renames(stored: Fields) -> Any:
        yield AddressGiven, {"order": "other", "street": stored["street"]}

    async with Application(orders(renames, shipping=False), store=store_url) as app:
        await store(app.partition(), placed())
        with pytest.raises(UnreadableEvent, match=r"'order:pen'.*AddressGiven.*'order:other'.*diptych retag"):
            await app.execute(Look(order=PEN))


# ── what is refused ──────────────────────────────────────────────────────────


class Unknown(Event):
    order: OrderId


class Left(Event, version=2):
    order: OrderId


class Right(Event, version=2):
    order: OrderId


def refused(context: BoundedContext) -> str:
    with pytest.raises(ConfigurationError) as error:
        event_types([context])
    return str(error.value)


def test_a_part_of_an_event_that_nobody_knows_is_refused() -> None:
    """When the application is made: nothing of it would be read."""
    shop = BoundedContext("shop", events=[Pinged])
    shop.upcaster(Pinged, from_version=1, into={Unknown: 1})(nothing)
    assert "Unknown is no event that this application knows" in refused(shop)


@pytest.mark.parametrize("version", [0, 3])
def test_a_part_of_a_version_that_is_not_coded_is_refused(version: int) -> None:
    """Versions are those of the class of today, or before."""
    shop = BoundedContext("shop", events=[Pinged, AddressGiven])
    shop.upcaster(Pinged, from_version=1, into={AddressGiven: version})(nothing)
    assert f"makes AddressGiven of version {version} of Pinged, and AddressGiven is version 2 here" in refused(shop)


def test_a_part_of_a_version_from_which_a_step_is_missing_is_refused() -> None:
    """It has to lead to the class of today."""
    shop = BoundedContext("shop", events=[Pinged, AddressGiven])
    shop.upcaster(Pinged, from_version=1, into={AddressGiven: 1})(nothing)
    assert "nothing upcasts AddressGiven from version 1 to 2" in refused(shop)


def test_parts_that_become_again_what_they_are_of_are_refused() -> None:
    """Over several types, and by one itself."""
    shop = BoundedContext("shop", events=[Left, Right])
    shop.upcaster(Left, from_version=1, into={Right: 1})(nothing)
    shop.upcaster(Right, from_version=1, into={Left: 1, Right: 2})(nothing)
    assert "Left (version 1) → Right (version 1) → Left (version 1)" in refused(shop)
    shop = BoundedContext("shop", events=[Left])
    shop.upcaster(Left, from_version=1, into={Left: 1})(nothing)
    assert "becomes that again" in refused(shop)
    shop = BoundedContext("shop", events=[Left, Right])
    shop.upcaster(Left, from_version=1, into={Right: 1})(nothing)
    shop.upcaster(Right, from_version=1, into={Left: 2, Right: 2})(nothing)
    types = event_types([shop])
    assert [found.name for found in types.parts_of(types.of(Left), 1)] == ["shop.Left", "shop.Right"]


async def never(stored: Fields) -> Any:
    yield Pinged, stored


def yields(stored: Fields) -> Any:
    yield Pinged, stored


def test_an_upcaster_in_another_form_is_refused() -> None:
    """One that is async; and one that yields without a word of what."""
    shop = BoundedContext("shop", events=[Pinged])
    shop.upcaster(Pinged, from_version=1, into={Pinged: 2})(never)
    assert "an upcaster is a plain function, without `async`" in refused(shop)
    shop = BoundedContext("shop", events=[Pinged])
    shop.upcaster(Pinged, from_version=1)(yields)
    assert "into={Pinged: 2, ...}" in refused(shop)


async def test_a_part_of_another_partition_is_refused() -> None:
    """Where contexts are partitions, a part is read in the history of what it is stored in."""
    other = BoundedContext("other", events=[AddressGiven])
    other.upcaster(AddressGiven, from_version=1)(in_euros)
    shop = BoundedContext("shop", events=[OrderPlaced])
    shop.upcaster(OrderPlaced, from_version=1, into={OrderPlaced: 2, AddressGiven: 1})(apart)
    shop.upcaster(OrderPlaced, from_version=2)(in_euros)
    stores = {"shop": "memory:", "other": "memory:"}
    with pytest.raises(ConfigurationError, match="apart makes AddressGiven of the partition 'other'"):
        await Application(shop, other, store=stores, partition_by="context").open()


FAILING: dict[str, tuple[Callable[[Fields], Any], str]] = {
    "raises": (lambda stored: stored["no such field"], "failed: KeyError: 'no such field'"),
    "raises late": (lambda stored: ((stored["no"], {}) for _ in range(1)), "failed: KeyError: 'no'"),
    "returns nothing": (lambda stored: None, "failed: TypeError: it gave None; say each part with its class"),
    "gives fields": (lambda stored: stored, "failed: TypeError: it gave {.*say each part with its class"),
    "gives another type": (lambda stored: [(Shipped, stored)], "gave a part of .*Shipped.*into= does not name"),
    "gives an event": (lambda stored: [(AddressGiven, 3)], "as a part it gave 3, which is no mapping of fields"),
    "gives other fields": (
        lambda stored: [(OrderPlaced, {"order": "pen"})],
        r"no OrderPlaced \(version 3\).*missing required field `cents`",
    ),
    "gives too many": (
        lambda stored: [(OrderPlaced, {"order": "pen", "cents": 1})] * (EVENT_PARTS_MAX + 1),
        f"becomes more events than EVENT_PARTS_MAX={EVENT_PARTS_MAX}",
    ),
}


@pytest.mark.parametrize("case", FAILING)
async def test_a_split_that_fails_is_named(case: str) -> None:
    """To the caller of a command, and where a projection says why it has stopped: nothing is skipped silently."""
    split, reason = FAILING[case]
    async with Application(orders(split, shipping=False)) as app:
        await store(app.partition(), pinged(), placed())
        with pytest.raises(UnreadableEvent, match=reason) as error:
            await app.execute(Look(order=PEN))
        assert (error.value.type, error.value.version, error.value.position) == ("shop.OrderPlaced", 1, 2)
        (followed, _) = app.partition().projector.slices
        await until(lambda: bool(followed.stopped), app)
        assert followed.position == 1
