"""Rows that expire (rule 40): declared by a mark, left out of every read, and removed once nobody can see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import msgspec
import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandContext,
    ConfigurationError,
    Event,
    ExpiresAt,
    Identity,
    Indexed,
    Key,
    Page,
    Query,
    Reader,
    ReadModel,
    Searchable,
    Value,
)
from diptych.adapters.memory import read_store as memory
from diptych.entrypoints.http import http_app
from diptych.read_side.read_model import RowForm
from diptych.read_side.read_store import SliceWrite, Written
from diptych.testing import InMemoryApplication, ManualClock, scenario
from diptych.testing.contracts.read_store_cases import place
from tests.school import Seats

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class OfferId(Identity): ...


class MakeOffer(Command):
    offer: OfferId
    title: str = "tea"
    minutes: int | None = 10


class OfferMade(Event):
    offer: OfferId
    title: str
    until: datetime | None


class Offer(ReadModel):
    offer: Key[OfferId]
    title: Searchable[str]
    until: Indexed[ExpiresAt[datetime | None]]


class OfferOf(Query[Offer | None]):
    offer: OfferId


class OffersOf(Query[list[Offer]]):
    title: str


class Everything(Value):
    got: bool
    many: tuple[str, ...]
    found: tuple[str, ...]
    count: int
    words: tuple[str, ...]


class Look(Query[Everything]):
    offer: OfferId


class Shown(msgspec.Struct):
    offer: str


class BySql(Query[list[str]]): ...


class Named(ReadModel):
    name: Key[OfferId]
    until: ExpiresAt[datetime | None]


class Names(Query[list[str]]): ...


class Pages(Query[Page[Offer]]):
    cursor: str | None = None


shop = BoundedContext("shop")


@shop.command_handler
def make_offer(command: MakeOffer, context: CommandContext) -> OfferMade:
    until = None if command.minutes is None else context.now + timedelta(minutes=command.minutes)
    return OfferMade(offer=command.offer, title=command.title, until=until)


@shop.projection
def offers(event: OfferMade) -> Offer:
    return Offer(offer=event.offer, title=event.title, until=event.until)


@shop.query_handler
async def look(query: Look, read: Reader) -> Everything:
    return Everything(
        got=await read.get(Offer, query.offer) is not None,
        many=tuple(await read.get_many(Offer, [OfferId(name) for name in "abc"])),
        found=tuple(offer.offer for offer in await read.find(Offer, order_by="-offer", limit=1)),
        count=await read.count(Offer, title="tea"),
        words=tuple(offer.offer for offer in await read.search(Offer, "tea", limit=1)),
    )


@shop.query_handler
async def by_sql(query: BySql, read: Reader) -> list[str]:
    found = await read.sql(Shown, "SELECT offer FROM shop_offer ORDER BY offer", touches=[Offer])
    return [row.offer for row in found]


@shop.query_handler
async def pages(query: Pages, read: Reader) -> Page[Offer]:
    return await read.page(Offer, limit=2, cursor=query.cursor)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
async def app(store_url: str, clock: ManualClock) -> AsyncIterator[Application]:
    async with Application(shop, store=store_url, clock=clock) as opened:
        yield opened


async def offer(app: Application, name: str, minutes: int | None = 10, title: str = "tea") -> None:
    await app.execute(MakeOffer(offer=OfferId(name), title=title, minutes=minutes))
    await app.projected()


async def stored(app: Application) -> int:
    """How many rows the read store holds, expired ones included."""
    running = app.partition()
    async with running.read_store.snapshot() as snapshot:
        return await snapshot.count("shop.Offer", ())


# ── what is declared ─────────────────────────────────────────────────────────


def test_the_mark_names_the_column_and_changes_no_other_model() -> None:
    """It stands beside other marks; the form of a model without it, which its fingerprint covers, is as it was."""
    assert RowForm(Offer, "shop").table.expires == "until"
    assert RowForm(Seats, "school").table.expires is None
    assert "expires" not in msgspec.to_builtins(RowForm(Seats, "school").table)


class OfText(ReadModel):
    name: Key[str]
    until: ExpiresAt[str]


class OfUnion(ReadModel):
    name: Key[str]
    until: ExpiresAt[datetime | int | None]


class OfNothing(ReadModel):
    name: Key[str]
    until: ExpiresAt  # type: ignore[type-arg]


class Inside(ReadModel):
    name: Key[str]
    until: ExpiresAt[datetime] | None = None


class Twice(ReadModel):
    name: Key[str]
    until: ExpiresAt[datetime]
    then: ExpiresAt[datetime]


@pytest.mark.parametrize("model", [OfText, OfUnion, OfNothing, Inside])
def test_an_expiry_is_a_datetime(model: type[ReadModel]) -> None:
    """Anything else is refused with model, field and what to write; a mark inside a union would do nothing."""
    with pytest.raises(ConfigurationError, match=rf"{model.__name__}\.until .*ExpiresAt\[datetime \| None\]"):
        RowForm(model, "shop")


def test_a_row_expires_once() -> None:
    """Two marked fields are refused, naming both."""
    with pytest.raises(ConfigurationError, match=r"Twice has more than one ExpiresAt field \(until, then\)"):
        RowForm(Twice, "shop")


# ── what is shown ────────────────────────────────────────────────────────────


async def test_no_read_shows_an_expired_row(app: Application, clock: ManualClock) -> None:
    """From its time on it is none, to every method and query; no event is needed, and limits count what is shown."""
    await offer(app, "a", minutes=None)
    await offer(app, "b", minutes=20)
    await offer(app, "c", minutes=10)
    clock.set(NOON + timedelta(minutes=10) - timedelta(microseconds=1))
    before = await app.query(Look(offer=OfferId("c")))
    assert before == Everything(got=True, many=("a", "b", "c"), found=("c",), count=3, words=("a",))
    assert await app.query(OfferOf(offer=OfferId("c"))) is not None
    assert [row.offer for row in await app.query(OffersOf(title="tea"))] == ["a", "b", "c"]
    clock.set(NOON + timedelta(minutes=10))
    after = await app.query(Look(offer=OfferId("c")))
    assert after == Everything(got=False, many=("a", "b"), found=("b",), count=2, words=("a",))
    assert await app.query(OfferOf(offer=OfferId("c"))) is None
    assert [row.offer for row in await app.query(OffersOf(title="tea"))] == ["a", "b"]
    assert await stored(app) == 3


async def test_pages_go_on_while_rows_expire(app: Application, clock: ManualClock) -> None:
    """A cursor is good later on: what has expired meanwhile is left out, and hides nothing."""
    for name, minutes in (("a", 10), ("b", 10), ("c", 10), ("d", 30), ("e", 30)):
        await offer(app, name, minutes)
    first = await app.query(Pages())
    clock.advance(timedelta(minutes=10))
    second = await app.query(Pages(cursor=first.next))
    assert [[row.offer for row in page.items] for page in (first, second)] == [["a", "b"], ["d", "e"]]
    assert second.next is None


async def test_sql_shows_no_expired_row(tmp_path: Path, clock: ManualClock) -> None:
    """By the application's clock, not the machine's."""
    async with Application(shop, store=f"sqlite:{tmp_path}/events.db", clock=clock) as app:
        await offer(app, "a", minutes=None)
        await offer(app, "b")
        assert await app.query(BySql()) == ["a", "b"]
        clock.advance(timedelta(minutes=10))
        assert await app.query(BySql()) == ["a"]


class Hurried(ManualClock):
    """Goes on each time that it is looked at."""

    def now(self) -> datetime:
        self.advance(timedelta(minutes=10))
        return super().now()


async def test_one_query_has_one_time() -> None:
    """However long its handler takes, all that it reads is of one moment."""
    clock = Hurried(NOON)
    async with Application(shop, store="memory:", clock=clock) as app:
        for name in "abc":
            await app.execute(MakeOffer(offer=OfferId(name), minutes=None if name == "a" else 60))
        await app.projected()
        seen = [await app.query(Look(offer=OfferId("b"))) for _ in range(10)]
    assert all(
        (answer.got, answer.count) == ("b" in answer.many, len(answer.many)) and answer.found[0] == answer.many[-1]
        for answer in seen
    )
    assert {len(answer.many) for answer in seen} == {1, 2, 3}


async def test_what_the_history_saw_expire_stays_so_for_a_clock_that_is_behind(
    app: Application, clock: ManualClock
) -> None:
    """An answer is never of a time before the last event that it shows."""
    await offer(app, "a")
    clock.advance(timedelta(minutes=10))
    await offer(app, "b")
    clock.set(NOON)
    assert (await app.query(Look(offer=OfferId("a")))).many == ("b",)


async def test_an_etag_changes_when_a_row_expires(clock: ManualClock) -> None:
    """The hash is of what is shown: 304 before, 200 after, though the history has not moved (rule 29)."""
    async with Application(shop, store="memory:", clock=clock) as app:
        await offer(app, "a")
        transport = httpx2.ASGITransport(http_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
            first = await client.get("/queries/OfferOf?offer=a")
            known = {"If-None-Match": first.headers["etag"]}
            assert (await client.get("/queries/OfferOf?offer=a", headers=known)).status_code == 304
            clock.advance(timedelta(minutes=10))
            later = await client.get("/queries/OfferOf?offer=a", headers=known)
            assert (later.status_code, later.content) == (200, b"null")
            assert later.headers["consistency-token"] == first.headers["consistency-token"]


# ── what is stored ───────────────────────────────────────────────────────────


async def test_expired_rows_are_removed_with_a_later_event(app: Application, clock: ManualClock) -> None:
    """With its batch, whatever the event is; rows that have not expired stay, and a rebuild shows the same."""
    for name, minutes in (("a", 10), ("b", 10), ("c", 30), ("d", None)):
        await offer(app, name, minutes)
    clock.advance(timedelta(minutes=10))
    assert await stored(app) == 4
    await offer(app, "e", minutes=0)
    assert await stored(app) == 2
    assert (await app.rebuilds.compare("Offer")).same
    await app.rebuilds.rebuild("Offer")
    assert [row.offer for row in await app.query(OffersOf(title="tea"))] == ["c", "d"]


async def test_a_row_that_has_expired_when_it_replaces_another_leaves_neither(
    store_url: str, clock: ManualClock
) -> None:
    """Also where only the row that is returned tells its key, so that the one before was not loaded."""
    context = BoundedContext("shop")
    context.command_handler(make_offer)

    @context.projection
    def named(event: OfferMade) -> Named:
        return Named(name=event.offer, until=event.until)

    @context.query_handler
    async def names(query: Names, read: Reader) -> list[str]:
        return [found.name for found in await read.find(Named)]

    async with Application(context, store=store_url, clock=clock) as opened:
        await offer(opened, "a", minutes=10)
        await offer(opened, "a", minutes=0)
        assert await opened.query(Names()) == []
        assert (await opened.rebuilds.compare("Named")).same


async def test_rows_that_are_put_off_again_and_again_cost_memory_once() -> None:
    """The memory store notes each new expiry, and forgets the old ones past a limit."""
    store = memory.MemoryReadStore()
    await store.open()
    form = RowForm(Offer, "shop")
    (generation,) = await store.create_generation("shop.Offer", "", form.table, place(0), live=True)
    for minute in range(3_000):
        row = form.row(Offer(offer=OfferId("a"), title="tea", until=NOON + timedelta(minutes=minute)))
        (result,) = await store.write([SliceWrite(generation, place(minute + 1), upserts=[row])])
        assert isinstance(result, Written)
        generation = result.generation
        assert len(store._builds["shop.Offer", 1].expiries) <= 2 + memory.STALE_EXPIRIES_MAX
    async with store.snapshot() as snapshot:
        assert await snapshot.expired("shop.Offer", NOON + timedelta(minutes=2_998), 10) == []
        assert await snapshot.expired("shop.Offer", NOON + timedelta(minutes=2_999), 10) == [("a",)]


# ── the testing kit ──────────────────────────────────────────────────────────


async def test_an_application_in_memory_shows_rows_by_its_clock() -> None:
    """`rows` leaves out what has expired."""
    async with InMemoryApplication(shop) as app:
        await app.execute(MakeOffer(offer=OfferId("a")))
        assert [row.offer for row in await app.rows(Offer)] == ["a"]
        app.clock.advance(timedelta(minutes=10))
        assert await app.rows(Offer) == []


def test_a_scenario_has_no_expired_row() -> None:
    """A row that expires at the scenario's time is none, and one that expires later is."""
    clock = ManualClock(NOON)
    over = OfferMade(offer=OfferId("a"), title="tea", until=NOON)
    good = OfferMade(offer=OfferId("b"), title="tea", until=NOON + timedelta(minutes=1))
    (
        scenario(shop, clock=clock)
        .given(over, good)
        .then_no_row(Offer, OfferId("a"))
        .then_row(Offer(offer=OfferId("b"), title="tea", until=good.until))
    )
