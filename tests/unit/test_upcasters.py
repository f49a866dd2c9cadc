"""Events of older versions: read as the class of today, wherever they are read, or refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
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
    Rejected,
    replace,
)
from diptych.application.registration import event_types, projections
from diptych.errors import NewerHistory, TagsChanged, Unavailable, UnreadableEvent
from diptych.event_store.event_store import Appended, Commit
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
Fields = Mapping[str, Any]
WAIT_S = 20
"""Seconds that a subscriber may take."""
LOOK_S = 0.1
"""Seconds after which is looked again: what stops changes nothing that is stored."""


class OrderId(Identity): ...


class CustomerId(Identity): ...


class Place(Command):
    order: OrderId
    cents: int


class Look(Command):
    """Folds the order, and does nothing."""

    order: OrderId


class Total(ReadModel):
    order: Key[OrderId]
    cents: int = 0
    currency: str = ""


class TotalOf(Query[Total | None]):
    order: OrderId


PEN = OrderId("pen")


def version_1() -> BoundedContext:
    """The shop as it was: an order had a total in euros, as text."""
    shop = BoundedContext("shop")

    class OrderPlaced(Event):
        order: OrderId
        total: str

    @shop.command_handler
    def place(command: Place) -> OrderPlaced:
        return OrderPlaced(order=command.order, total=f"{command.cents / 100:.2f}")

    class Known(DecisionModel[OrderId]):
        def evolve(self, event: OrderPlaced) -> Known:
            return self

    @shop.command_handler
    def look(command: Look, known: Known) -> None:
        return None

    @shop.projection
    def totals(row: Total, event: OrderPlaced) -> Total:
        return replace(row, cents=-1)

    @shop.subscriber
    async def listen(events: Sequence[tuple[OrderPlaced, EventContext]]) -> None:
        return None

    return shop


class OrderPlaced(Event, version=3):
    order: OrderId
    cents: int
    currency: str


class Order(DecisionModel[OrderId]):
    cents: int = 0

    def evolve(self, event: OrderPlaced) -> Order:
        return Order(cents=self.cents + event.cents)


def in_cents(stored: Fields) -> Fields:
    return {"order": stored["order"], "cents": round(float(stored["total"]) * 100)}


def with_currency(stored: Fields) -> Fields:
    return {**stored, "currency": "EUR"}


def version_3(
    *,
    first: Callable[[Fields], Any] | None = in_cents,
    second: Callable[[Fields], Any] | None = with_currency,
    told: list[OrderPlaced] | None = None,
) -> BoundedContext:
    """The shop of today, with these upcasters, and a subscriber that keeps what it is told."""
    shop = BoundedContext("shop")

    @shop.command_handler
    def place(command: Place, order: Order) -> OrderPlaced:
        if order.cents:
            raise Rejected("placed-already", cents=order.cents)
        return OrderPlaced(order=command.order, cents=command.cents, currency="EUR")

    @shop.projection
    def totals(row: Total, event: OrderPlaced) -> Total:
        return replace(row, cents=row.cents + event.cents, currency=event.currency)

    for version, upcaster in enumerate((first, second), 1):
        if upcaster is not None:
            shop.upcaster(OrderPlaced, from_version=version)(upcaster)
    if told is not None:

        @shop.subscriber
        async def listen(events: Sequence[tuple[OrderPlaced, EventContext]]) -> None:
            told.extend(event for event, _ in events)

    return shop


async def store_as_older_code(app: Application, version: int, data: bytes, tag: str = "order:pen") -> None:
    """Append an event as a process with older code does, which has the same store open."""
    new = NewEvent(unique_bytes(), "shop.OrderPlaced", version, data, (tag,))
    (result,) = await app.partition().store.append([Commit(events=(new,))])
    assert isinstance(result, Appended)


async def until(happened: Callable[[], bool], app: Application) -> None:
    seen = 0
    async with asyncio.timeout(WAIT_S):
        while not happened():
            seen = await app.partition().read_store.wait_for_change(seen, LOOK_S)


@pytest.fixture
async def old_store(store_url: str) -> str:
    """A store in which code of version 1 has placed an order, with the command id "first"."""
    async with Application(version_1(), store=store_url) as app:
        receipt = await app.execute(Place(order=PEN, cents=250), command_id="first")
        assert await app.query(TotalOf(order=PEN), after=receipt) == Total(order=PEN, cents=-1)
    return store_url


# ── wherever an event is read ────────────────────────────────────────────────

VERSIONS = [(1, b'{"order":"pen","total":"2.50"}'), (2, b'{"order":"pen","cents":250}')]


@pytest.mark.parametrize(("version", "data"), VERSIONS)
async def test_an_older_version_is_upcast_for_decisions_rows_and_subscribers(
    store_url: str, version: int, data: bytes
) -> None:
    """Through every upcaster from its version on, on every store, also where older code stores it meanwhile."""
    told: list[OrderPlaced] = []
    async with Application(version_3(told=told), store=store_url) as app:
        await store_as_older_code(app, version, data)
        with pytest.raises(Rejected) as rejected:
            await app.execute(Place(order=PEN, cents=100))
        assert rejected.value.facts == {"cents": 250}
        shown = await app.query(TotalOf(order=PEN), freshness="latest")
        assert shown == Total(order=PEN, cents=250, currency="EUR")
        await until(lambda: bool(told), app)
    assert told == [OrderPlaced(order=PEN, cents=250, currency="EUR")]


@kept
async def test_a_store_of_an_older_version_is_opened_and_goes_on(old_store: str) -> None:
    """Old and new events make one state; the old ones stay stored as they were."""
    async with Application(version_3(), store=old_store) as app:
        await app.execute(Place(order=OrderId("ink"), cents=1000))
        rows = [await app.query(TotalOf(order=OrderId(name)), freshness="latest") for name in ("pen", "ink")]
        stored = [
            (event.version, event.data)
            async for event in app.events(app.partition().projector.slices[0].projection.query)
        ]
    assert [(row.cents, row.currency) for row in rows if row] == [(250, "EUR"), (1000, "EUR")]
    assert stored == [(1, b'{"order":"pen","total":"2.50"}'), (3, b'{"order":"ink","cents":1000,"currency":"EUR"}')]


@kept
async def test_a_kept_receipt_tells_its_events_upcast(old_store: str) -> None:
    """The outcome of a command that was executed by older code is read by newer code."""
    async with Application(version_3(), store=old_store) as app:
        receipt = await app.execute(Place(order=PEN, cents=250), command_id="first")
    assert (receipt.position, receipt.events) == (1, (OrderPlaced(order=PEN, cents=250, currency="EUR"),))


@kept
async def test_a_kept_receipt_outlives_an_upcaster_that_fails(old_store: str) -> None:
    """Sent again under its id, the command is not executed again: its receipt waits for the upcaster to be mended."""
    async with Application(version_3(second=fails), store=old_store) as app:
        with pytest.raises(UnreadableEvent, match="fails of version 2 failed"):
            await app.execute(Place(order=PEN, cents=250), command_id="first")
        assert (await app.status()).head == 1
    async with Application(version_3(), store=old_store) as app:
        assert (await app.execute(Place(order=PEN, cents=250), command_id="first")).position == 1


@kept
async def test_a_changed_upcaster_builds_the_rows_anew(old_store: str) -> None:
    """Rows of older code of an upcaster are not this code's rows; by hand it is the same (rule 23)."""

    def in_dollars(stored: Fields) -> Fields:
        return {**stored, "currency": "USD"}

    async with Application(version_3(), store=old_store) as app:
        assert (await app.query(TotalOf(order=PEN), freshness="latest")) == Total(order=PEN, cents=250, currency="EUR")
    async with Application(version_3(second=in_dollars), store=old_store) as app:
        dollars = Total(order=PEN, cents=250, currency="USD")
        assert await app.query(TotalOf(order=PEN), freshness="latest") == dollars
        await app.rebuilds.rebuild("shop.Total")
        assert await app.query(TotalOf(order=PEN), freshness="latest") == dollars


def fingerprint(context: BoundedContext) -> str:
    (found,) = projections([context], event_types([context]))
    return found.fingerprint()


def test_the_fingerprint_of_a_fold_covers_the_upcasters_of_its_events() -> None:
    """Their code, what that reaches, and which version each is for; an equal one is no change."""
    rate = 2

    def doubled(stored: Fields) -> Fields:
        return {**stored, "cents": stored["cents"] * rate, "currency": "EUR"}

    before = fingerprint(version_3(second=doubled))
    assert fingerprint(version_3(second=doubled)) == before
    rate = 3
    assert fingerprint(version_3(second=doubled)) != before
    swapped = version_3(first=with_currency, second=in_cents)
    assert len({before, fingerprint(version_3()), fingerprint(swapped), fingerprint(version_3(second=None))}) == 4


# ── what cannot be read ──────────────────────────────────────────────────────


@kept
async def test_a_missing_link_refuses_the_store_and_gives_the_upcaster_to_write(old_store: str) -> None:
    """Named with event, version and position; the skeleton, filled in, is what was missing."""
    with pytest.raises(UnreadableEvent, match="position 1 .*nothing upcasts version 2 to the next") as unreadable:
        await Application(version_3(second=None), store=old_store).open()
    error = unreadable.value
    assert (error.type, error.version, error.position) == ("shop.OrderPlaced", 1, 1)
    assert "\n" not in str(error)
    assert "@shop.upcaster(OrderPlaced, from_version=2) def order_placed_from_2(" in str(error)
    assert '"currency": ...' in error.skeleton
    shop = version_3(second=None)
    names = {"shop": shop, "OrderPlaced": OrderPlaced, "Mapping": Mapping, "Any": Any}
    exec(error.skeleton.replace("...", '"CHF"'), names)  # noqa: S102  # what a user does with it
    assert [step.from_version for step in shop.upcasters] == [1, 2]
    assert shop.upcasters[1].function({"order": "pen", "cents": 1}) == {"order": "pen", "cents": 1, "currency": "CHF"}


@kept
async def test_an_event_of_a_newer_version_refuses_the_store(store_url: str) -> None:
    """No upcaster leads back: the code is to be newer."""
    async with Application(version_3(), store=store_url) as app:
        await app.execute(Place(order=PEN, cents=250))
    with pytest.raises(UnreadableEvent, match=r"version 3.*version 1 here: newer code has stored it") as unreadable:
        await Application(version_1(), store=store_url).open()
    assert unreadable.value.skeleton == ""


async def test_code_that_meets_a_newer_version_says_that_it_is_the_older_one(store_url: str) -> None:
    """While it runs: what would fold the event may be asked of another process; nothing is guessed (rule 22)."""
    async with Application(version_1(), store=store_url) as app:
        await store_as_older_code(app, 3, b'{"order":"pen","cents":250,"currency":"EUR"}')
        with pytest.raises(NewerHistory, match="version 1 here: newer code has stored it") as newer:
            await app.execute(Look(order=PEN))
        assert (newer.value.type, newer.value.version, newer.value.position) == ("shop.OrderPlaced", 3, 1)
        assert isinstance(newer.value, Unavailable)
        await app.execute(Look(order=OrderId("ink")))
        await until(lambda: not app.partition().projector.slices[0].goes_on, app)
        (projection,) = (await app.status()).projections
        assert (projection.checkpoint, projection.blocked) == (0, 0)


async def test_a_subscriber_of_older_code_leaves_a_newer_version_to_newer_code(tmp_path: Path) -> None:
    """It says so, and gives its lease up: it would hold up the process that can read the event (rule 22)."""
    store, told = f"sqlite:{tmp_path / 'shop.db'}", list[OrderPlaced]()
    async with Application(version_1(), store=store) as old:
        await store_as_older_code(old, 3, b'{"order":"pen","cents":250,"currency":"EUR"}')
        (subscription,) = old.partition().stores[0].subscriptions
        await until(lambda: bool(subscription.failure), old)
        async with Application(version_3(told=told), store=store) as new:
            await until(lambda: bool(told), new)
            (status,) = (await old.status()).subscribers
    assert told == [OrderPlaced(order=PEN, cents=250, currency="EUR")]
    assert "newer code has stored it" in status.stopped


async def test_a_changed_schema_without_a_version_gives_the_upcaster_to_write(store_url: str) -> None:
    """A field that stored events have not and that has no default: to be given one, or to be filled in."""
    async with Application(version_3(), store=store_url) as app:
        await store_as_older_code(app, 3, b'{"order":"pen","cents":250}')
        with pytest.raises(UnreadableEvent, match="Give new fields a default.*version=4.*write an upcaster") as error:
            await app.execute(Place(order=PEN, cents=1))
    assert "from_version=3" in error.value.skeleton
    assert '{**stored, "currency": ...}' in error.value.skeleton


async def never(stored: Fields) -> Fields:
    return stored


def fails(stored: Fields) -> Fields:
    return {"currency": stored["no such field"]}


NO_MAPPING = "lambda.* of version 2 failed: TypeError: .*an event becomes one event"
FAILING: dict[str, tuple[Callable[[Fields], Any], str]] = {
    "raises": (
        fails,
        r"the upcaster tests\.unit\.test_upcasters\.fails of version 2 failed: KeyError: 'no such field'",
    ),
    "several": (lambda stored: [stored, stored], NO_MAPPING),
    "none": (lambda stored: None, NO_MAPPING),
    "no JSON": (lambda stored: {**stored, "currency": object()}, "lambda.* of version 2 failed: TypeError"),
    "other fields": (
        lambda stored: {**stored, "currency": 3},
        r"version 3 here, and what .*lambda.* made of it is none",
    ),
}


@pytest.mark.parametrize("case", FAILING)
async def test_an_upcaster_that_fails_is_named(store_url: str, case: str) -> None:
    """To the caller of a command, and where a projection says why it has stopped: nothing is skipped silently."""
    upcaster, reason = FAILING[case]
    async with Application(version_3(second=upcaster), store=store_url) as app:
        await store_as_older_code(app, 1, b'{"order":"pen","total":"2.50"}')
        with pytest.raises(UnreadableEvent, match=reason) as unreadable:
            await app.execute(Place(order=PEN, cents=100))
        assert (unreadable.value.version, unreadable.value.position) == (1, 1)
        await until(lambda: not app.partition().projector.slices[0].goes_on, app)
        (projection,) = (await app.status()).projections
    assert "failed" in projection.stopped or "made of it" in projection.stopped


async def test_only_json_objects_are_upcast(store_url: str) -> None:
    """An event that was stored as an array has no fields to be given."""
    async with Application(version_3(), store=store_url) as app:
        await store_as_older_code(app, 1, b'["pen","2.50"]')
        with pytest.raises(UnreadableEvent, match="only a JSON object can be upcast"):
            await app.execute(Place(order=PEN, cents=100))


@kept
async def test_a_version_that_is_tagged_otherwise_is_refused(old_store: str) -> None:
    """Decisions would miss the old events: an upcaster changes what is read, and no stored tag (rule 20)."""

    class Tagged(Event, version=2, stored_as="shop.OrderPlaced"):
        order: OrderId
        total: str
        customer: CustomerId

    shop = BoundedContext("shop", events=[Tagged])
    shop.upcaster(Tagged, from_version=1)(lambda stored: {**stored, "customer": "c"})
    with pytest.raises(TagsChanged) as tags:
        await Application(shop, store=old_store).open()
    assert (tags.value.stored, tags.value.coded) == (("order",), ("customer", "order"))


# ── what is refused before ───────────────────────────────────────────────────


@pytest.mark.parametrize("version", [3, 4, 0, -1])
async def test_an_upcaster_leads_from_a_version_below_that_of_the_class(version: int) -> None:
    """One for the version that the class has, or for one that there never was, is told when the application is made."""
    shop = version_3()
    shop.upcaster(OrderPlaced, from_version=version)(with_currency)
    with pytest.raises(ConfigurationError, match=rf"with_currency upcasts OrderPlaced from version {version}.* 3 here"):
        await Application(shop).open()


async def test_an_upcaster_may_be_what_partial_makes(store_url: str) -> None:
    """A step with something filled in; messages name the function that it was made of."""

    def with_this(currency: str, stored: Fields) -> Fields:
        return {**stored, "currency": currency, "cents": stored["cents"] + (0 if currency else None)}

    async with Application(version_3(second=partial(with_this, "CHF")), store=store_url) as app:
        await store_as_older_code(app, *VERSIONS[0])
        found = await app.query(TotalOf(order=PEN), freshness="latest")
        assert found == Total(order=PEN, cents=250, currency="CHF")
    async with Application(version_3(second=partial(with_this, ""))) as app:
        await store_as_older_code(app, *VERSIONS[0])
        with pytest.raises(UnreadableEvent, match="with_this of version 2 failed: TypeError"):
            await app.execute(Place(order=PEN, cents=1))


async def test_a_version_has_one_upcaster() -> None:
    """Of two it could not be told which holds."""
    shop = version_3()
    shop.upcaster(OrderPlaced, from_version=2)(fails)
    with pytest.raises(ConfigurationError, match=r"fails and .*with_currency both upcast OrderPlaced from version 2"):
        await Application(shop).open()


async def test_an_upcaster_is_a_plain_function() -> None:
    """It is run wherever an event is read, and waits for nothing."""
    shop = version_3(second=None)
    shop.upcaster(OrderPlaced, from_version=2)(never)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="never: an upcaster is a plain function"):
        await Application(shop).open()


async def test_an_upcaster_is_of_an_event_that_the_application_knows() -> None:
    """One that is neither published nor folded would never be read."""
    shop = BoundedContext("shop")
    shop.upcaster(OrderPlaced, from_version=1)(in_cents)
    with pytest.raises(ConfigurationError, match="OrderPlaced is no event that this application knows"):
        await Application(shop).open()
