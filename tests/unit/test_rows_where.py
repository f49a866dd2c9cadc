"""Rows that events find by what they hold (`where=`): as they are asked, parked, looked back on and compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    Event,
    Identity,
    Indexed,
    Key,
    Query,
    ReadModel,
    Untagged,
    Value,
    replace,
)
from diptych.application.registration import event_types, projections
from diptych.errors import Blocked, CannotOverlay
from diptych.read_side import matching_rows, slice
from diptych.read_side.read_model import RowForm, key_text
from tests.parking import discard, parked, retry

pytestmark = pytest.mark.anyio


class OrderId(Identity): ...


class CustomerId(Identity): ...


class Place(Command):
    order: OrderId
    customer: CustomerId
    total: int = 1


class Merge(Command):
    kept: CustomerId
    gone: CustomerId


class Refund(Command):
    customer: CustomerId
    amount: int


class OrderPlaced(Event):
    order: OrderId
    customer: CustomerId
    total: int


class Merged(Event):
    kept: CustomerId
    gone: CustomerId


class Refunded(Event):
    customer: CustomerId
    amount: int


class Order(ReadModel):
    order: Key[OrderId]
    customer: Indexed[CustomerId] = CustomerId("")
    total: int = 0


class Labelled(ReadModel):
    order: Key[OrderId]
    customer: Indexed[CustomerId] = CustomerId("")
    label: Any = ""


class OrderOf(Query[Order | None]):
    order: OrderId


class LabelOf(Query[Labelled | None]):
    order: OrderId


class OrdersOf(Query[list[Order]]):
    customer: CustomerId


ADA, BOB = CustomerId("ada"), CustomerId("bob")
O1, O2, O3 = OrderId("o1"), OrderId("o2"), OrderId("o3")


def shop(broken: Sequence[str] = (), partitions: int = 1) -> BoundedContext:
    """Orders of customers; one of an order that is broken cannot be refunded."""
    context = BoundedContext("shop")

    @context.command_handler
    def place(command: Place) -> OrderPlaced:
        return OrderPlaced(order=command.order, customer=command.customer, total=command.total)

    @context.command_handler
    def merge(command: Merge) -> Merged:
        return Merged(kept=command.kept, gone=command.gone)

    @context.command_handler
    def refund(command: Refund) -> Refunded:
        return Refunded(customer=command.customer, amount=command.amount)

    @context.projection(partitions=partitions)
    def placed(event: OrderPlaced) -> Order:
        return Order(order=event.order, customer=event.customer, total=event.total)

    @context.projection(where={"customer": "gone"})
    def merged(row: Order, event: Merged) -> Order:
        return replace(row, customer=event.kept)

    @context.projection(where="customer")
    def refunded(row: Order, event: Refunded) -> Order:
        if row.order in broken:
            raise ValueError("cannot be refunded")
        return replace(row, total=row.total - event.amount)

    return context


async def placed(app: Application, *orders: tuple[OrderId, CustomerId, int]) -> None:
    for order, customer, total in orders:
        await app.execute(Place(order=order, customer=customer, total=total))


@asynccontextmanager
async def unprojected(store_url: str) -> AsyncGenerator[Application]:
    """A shop whose rows nobody moves on."""
    async with Application(shop(), store=store_url, projecting=False) as app:
        yield app


async def project(app: Application) -> None:
    projector = app.partition().projector
    while await projector.advance(projector.slices):
        pass


@pytest.mark.parametrize("partitions", [1, 3])
async def test_one_event_changes_every_row_that_holds_its_value(store_url: str, partitions: int) -> None:
    """Also rows that hold it by an event of the same kind; others, and those that held it before, it does not."""
    async with Application(shop(partitions=partitions), store=store_url) as app:
        await placed(app, (O1, ADA, 10), (O2, BOB, 20), (O3, ADA, 30))
        await app.execute(Merge(kept=BOB, gone=ADA))
        await app.execute(Refund(customer=ADA, amount=5))
        last = await app.execute(Refund(customer=BOB, amount=1))
        found = await app.query(OrdersOf(customer=BOB), after=last)
        assert {(row.order, row.total) for row in found} == {(O1, 9), (O2, 19), (O3, 29)}
        assert await app.query(OrdersOf(customer=ADA), after=last) == []


async def test_a_fold_that_fails_blocks_the_one_row_that_it_fails_for(store_url: str) -> None:
    """What comes for that row waits, and is folded when it goes on: of the events that would have found it, all."""
    async with Application(shop(broken=[O1]), store=store_url) as app:
        await placed(app, (O1, ADA, 10), (O2, ADA, 20))
        await app.execute(Refund(customer=ADA, amount=5))
        await app.execute(Merge(kept=BOB, gone=ADA))
        last = await app.execute(Refund(customer=BOB, amount=1))
        assert await app.query(OrderOf(order=O2), after=last) == Order(order=O2, customer=BOB, total=14)
        (item,) = await parked(app)
        assert (item.key, item.position) == ('["o1"]', 3)
        assert "cannot be refunded" in item.error
        still = await retry(app, '["o1"]')
        assert still is not None
        assert still.position == 3
        still = await discard(app, '["o1"]')
        assert still is not None, "it waits behind the next event that finds it"
        assert still.position == 5
        assert await discard(app, '["o1"]') is None
        assert await app.query(OrderOf(order=O1), after=last) == Order(order=O1, customer=BOB, total=10)
        await app.partition().rebuilds.rebuild("Order")
        assert await app.query(OrderOf(order=O1), after=last) == Order(order=O1, customer=BOB, total=10)


async def test_what_is_mended_goes_on_with_all_that_waited(store_url: str) -> None:
    """Also where no event tells the key of the row: they find it."""
    broken = [O1]
    async with Application(shop(broken), store=store_url) as app:
        await placed(app, (O1, ADA, 10))
        await app.execute(Refund(customer=ADA, amount=5))
        await app.execute(Merge(kept=BOB, gone=ADA))
        last = await app.execute(Refund(customer=BOB, amount=1))
        with pytest.raises(Blocked):
            await app.query(OrderOf(order=O1), after=last)
        broken.clear()
        assert await retry(app, '["o1"]') is None
        assert await app.query(OrderOf(order=O1), after=last) == Order(order=O1, customer=BOB, total=4)


async def test_a_document_that_cannot_be_stored_blocks_its_own_row(store_url: str) -> None:
    """And none of the others that the event has found."""
    context = shop()

    @context.projection
    def labelled(row: Labelled, event: OrderPlaced) -> Labelled:
        return replace(row, customer=event.customer)

    @context.projection(where="customer")
    def relabelled(row: Labelled, event: Refunded) -> Labelled:
        return replace(row, label=object() if row.order == O2 else ["refunded", event.amount])

    async with Application(context, store=store_url) as app:
        await placed(app, (O1, ADA, 10), (O2, ADA, 20), (O3, ADA, 30))
        last = await app.execute(Refund(customer=ADA, amount=5))
        with pytest.raises(Blocked):
            await app.query(LabelOf(order=O2), after=last)
        found = await app.query(LabelOf(order=O3), after=last)
        assert found == Labelled(order=O3, customer=ADA, label=["refunded", 5])
        (item,) = await parked(app)
        assert (item.key, item.position) == ('["o2"]', 4)
        assert "column label cannot hold <object" in item.error


async def test_rows_of_any_past_moment(store_url: str) -> None:
    """By key and by filter: what was found then, is found again."""
    async with Application(shop(), store=store_url) as app:
        await placed(app, (O1, ADA, 10))
        before = await app.execute(Refund(customer=ADA, amount=5))
        await app.execute(Merge(kept=BOB, gone=ADA))
        assert await app.query(OrderOf(order=O1), as_of=before.token) == Order(order=O1, customer=ADA, total=5)
        assert await app.query(OrdersOf(customer=BOB), as_of=before.token) == []


async def test_how_a_row_came_to_be_tells_of_the_events_that_found_it(store_url: str) -> None:
    """And of no other."""
    async with Application(shop(broken=[O2]), store=store_url) as app:
        await placed(app, (O1, ADA, 10), (O2, BOB, 20))
        await app.execute(Refund(customer=BOB, amount=1))
        await app.execute(Merge(kept=ADA, gone=BOB))
        await app.execute(Refund(customer=ADA, amount=5))
        histories = app.partition().row_histories
        assert [(each.position, each.effect) async for each in histories.of(Order, O1)] == [
            (1, "created"),
            (5, "changed"),
        ]
        assert [(each.position, each.effect) async for each in histories.of(Order, O2)] == [
            (2, "created"),
            (3, "blocked"),
            (4, "waiting"),
        ]


async def test_what_events_find_is_not_overlaid(store_url: str) -> None:
    """Which rows they would change is for the store to say; with no such event among what rows lack, they are."""
    async with unprojected(store_url) as app:
        await placed(app, (O1, ADA, 10))
        await project(app)
        await placed(app, (O2, ADA, 20))
        answer = await app.answer(OrdersOf(customer=ADA), freshness="overlay", wait_s=0)
        assert {row.order for row in answer.value} == {O1, O2}
        await app.execute(Refund(customer=ADA, amount=1))
        queries: list[Query[Any]] = [OrdersOf(customer=ADA), OrderOf(order=O1)]
        for query in queries:
            with pytest.raises(CannotOverlay, match="an event that finds its rows by where="):
                await app.answer(query, freshness="overlay", wait_s=0)


async def test_a_live_query_is_woken_by_an_event_that_finds_its_row(store_url: str) -> None:
    """Which rows it changes is not told by the event, so all are."""
    async with Application(shop(), store=store_url) as app:
        await placed(app, (O1, ADA, 10))
        async with aclosing(app.subscribe(OrderOf(order=O1))) as answers:
            async with asyncio.timeout(30):
                while (await anext(answers)).value != Order(order=O1, customer=ADA, total=10):
                    pass
                await app.execute(Refund(customer=ADA, amount=5))
                while (await anext(answers)).value != Order(order=O1, customer=ADA, total=5):
                    pass


async def test_a_fresh_build_is_the_same(store_url: str) -> None:
    """Compared row by row, of three slices as well."""
    async with Application(shop(partitions=3), store=store_url) as app:
        await placed(app, *((OrderId(f"o{n}"), CustomerId(f"c{n % 3}"), n) for n in range(20)))
        await app.execute(Merge(kept=ADA, gone=CustomerId("c0")))
        await app.execute(Merge(kept=ADA, gone=CustomerId("c1")))
        last = await app.execute(Merge(kept=CustomerId("c2"), gone=ADA))
        found = await app.query(OrdersOf(customer=CustomerId("c2")), after=last)
        assert len(found) == 20
        comparison = await app.partition().rebuilds.compare("Order")
        assert comparison.same
        assert comparison.rows == 20


# ── limits ───────────────────────────────────────────────────────────────────


def limit_to(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (slice, matching_rows):
        monkeypatch.setattr(module, "KEYS_PER_EVENT_MAX", rows)


async def test_events_that_find_many_rows_together_are_folded_a_few_at_a_time(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one batch may find is bounded; a larger one is folded in halves."""
    limit_to(2, monkeypatch)
    async with unprojected(store_url) as app:
        orders = [(OrderId(f"o{n}"), CustomerId(f"c{n // 2}"), n) for n in range(8)]
        await placed(app, *orders)
        await project(app)
        for n in range(4):
            await app.execute(Refund(customer=CustomerId(f"c{n}"), amount=n))
        await project(app)
        for n in range(4):
            found = await app.query(OrdersOf(customer=CustomerId(f"c{n}")), freshness="latest")
            assert {row.total for row in found} == {n, n + 1}


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_event_that_finds_too_many_rows_stops_the_projection(
    store_url: str, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """Also where the rows come with the same batch; it says what to do, and nothing is changed in part."""
    limit_to(2, monkeypatch)
    async with unprojected(store_url) as app:
        await placed(app, (O1, ADA, 1), (O2, ADA, 2), (O3, ADA, 3))
        if not at_once:
            await project(app)
        await app.execute(Refund(customer=ADA, amount=1))
        await project(app)
        (projection,) = (await app.status()).projections
        assert (
            "refunded: the event at position 4 would change more than KEYS_PER_EVENT_MAX=2 rows" in projection.stopped
        )
        assert projection.checkpoint == 3
        assert await parked(app) == []


# ── declarations ─────────────────────────────────────────────────────────────


class Line(Value):
    sku: str


class Priced(Event):
    sku: Untagged[OrderId]
    day: int = 0
    lines: tuple[Line, ...] = ()


class Shown(ReadModel):
    key: Key[str]
    part: Key[str]
    sku: Indexed[str] = ""
    day: int = 0
    lines: tuple[Line, ...] = ()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    context = BoundedContext("priced", events=[Priced])
    declared: Any = context.projection
    declared(**options)(function)
    return projections([context], event_types([context]))[0]


def row_and_event(row: Shown, event: Priced) -> Shown: ...


def row_event_and_part(row: Shown, event: Priced, part: Line) -> Shown: ...


def creates(event: Priced) -> Shown: ...


def may_be_none(row: Shown | None, event: Priced) -> Shown: ...


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (row_and_event, {"where": "lines"}, "where= names 'lines', which is no column of Shown to find rows by"),
        (row_and_event, {"where": "price"}, "where= names 'price', which is no column of Shown to find rows by"),
        (row_and_event, {"where": {"sku": "name"}}, r"Priced has no field 'name' .* where=\{'sku': ...\}"),
        (row_and_event, {"where": {"sku": "day"}}, "Priced.day is no text as Shown.sku is"),
        (row_and_event, {"where": "day"}, "no index finds the rows of Shown by day, so that each event would look at"),
        (row_and_event, {"where": {"part": "sku"}}, "no index finds the rows of Shown by part"),
        (row_and_event, {"where": {}}, "where= names no column"),
        (row_and_event, {"where": "sku", "key": str}, "it goes with neither key= nor keys="),
        (row_and_event, {"where": "sku", "keys": list}, "it goes with neither key= nor keys="),
        (creates, {"where": "sku"}, "take the row, as `row: Shown`"),
        (may_be_none, {"where": "sku"}, "take the row, as `row: Shown`"),
    ],
)
def test_what_cannot_find_rows_is_refused(function: Any, options: dict[str, Any], problem: str) -> None:
    """When it is compiled, with the remedy."""
    with pytest.raises(ConfigurationError, match=problem):
        compiled(function, **options)


def test_what_finds_rows() -> None:
    """An indexed field, or the first of the key; others with it; of the event, or of its part."""
    event = Priced(sku=OrderId("tea"), day=3, lines=(Line(sku="ink"),))
    for function, options, values in (
        (row_and_event, {"where": "sku"}, ("tea",)),
        (row_and_event, {"where": {"key": "sku"}}, ("tea",)),
        (row_and_event, {"where": {"sku": "sku", "day": "day"}}, ("tea", 3)),
        (row_event_and_part, {"where": "sku", "each": lambda event: event.lines}, ("ink",)),
        (row_event_and_part, {"where": {"day": "day", "sku": "sku"}, "each": lambda event: event.lines}, (3, "ink")),
    ):
        (step,) = compiled(function, **options).steps(7, event, None)
        assert (step.key, step.values) == (None, values)


def test_what_no_row_can_hold_finds_none() -> None:
    """It is not even looked for."""
    assert compiled(row_and_event, where={"sku": "sku"}).steps(7, Priced(sku=OrderId("a\0b")), None) == []


class Every(ReadModel):
    text: Key[str]
    number: Key[int]
    real: Key[float]
    yes: Key[bool]
    decimal: Key[Decimal]
    moment: Key[datetime]
    day: Key[date]
    duration: Key[timedelta]
    some: Key[bytes]


def test_a_key_is_told_and_understood_again() -> None:
    """Of every kind: what is blocked is named so, and found by it when it is tried again."""
    form = RowForm(Every, "test")
    now = datetime(2024, 2, 29, 23, 30, 1, 5, tzinfo=UTC)
    key = ('a"é', -(2**63), 1.0, True, Decimal("-1.50"), now, now.date(), timedelta(days=-1, microseconds=3), b"\0\xff")
    assert form.key_of_text(key_text(key)) == key


def test_other_columns_are_another_fold() -> None:
    """Rows that were found otherwise are built anew."""
    prints = [
        compiled(row_and_event, **options).fingerprint()
        for options in ({"where": {"sku": "sku"}}, {"where": {"key": "sku"}}, {"key": lambda event: ("a", "b")})
    ]
    assert len(set(prints)) == 3
