"""Who may ask what, and sees which rows: scopes of queries, query middlewares, and rows that others do not see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import msgspec
import pytest
from msgspec.structs import replace
from starlette.requests import HTTPConnection

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    Event,
    Identity,
    Indexed,
    Key,
    Page,
    Query,
    Reader,
    ReadModel,
    Searchable,
    SyncApplication,
    at_least,
)
from diptych.entrypoints.http import http_app
from diptych.errors import Blocked, Forbidden
from diptych.read_side.conditions import one_of
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_middleware import NextQuery
from diptych.security import Actor, requires
from tests.tenants import Places

pytestmark = pytest.mark.anyio


class OrderId(Identity): ...


class PlaceOrder(Command):
    order: OrderId
    customer: str | None
    text: str = "tea"
    units: int = 1


class OrderPlaced(Event):
    order: OrderId
    customer: str | None
    text: str
    units: int


class Order(ReadModel):
    order: Key[OrderId]
    customer: Indexed[str | None] = None
    text: Searchable[str] = ""
    units: int = 0


class OrderOf(Query[Order | None]):
    order: OrderId


class Orders(Query[list[Order]]): ...


class OrdersOf(Query[list[Order]]):
    customer: str


class Everything(Query[dict[str, Any]]):
    """What each way to read gives."""


class Units(msgspec.Struct):
    units: int


class ByHand(Query[int]): ...


class WhoAmI(Query[list[str]]): ...


@requires("orders:audit")
class Audit(Query[list[Order]]): ...


class LongAudit(Audit): ...


def shop() -> BoundedContext:
    context = BoundedContext("shop")

    @context.command_handler
    def place(command: PlaceOrder) -> OrderPlaced:
        return OrderPlaced(order=command.order, customer=command.customer, text=command.text, units=command.units)

    @context.projection
    def order_row(row: Order, event: OrderPlaced) -> Order:
        if event.text == "torn":
            raise ValueError("cannot be folded")
        return Order(order=row.order, customer=event.customer, text=event.text, units=row.units + event.units)

    @context.query_handler
    async def everything(query: Everything, read: Reader) -> dict[str, Any]:
        names = [OrderId(name) for name in ("a1", "a2", "b1", "n1")]
        pages: list[str] = []
        page: Page[Order] = await read.page(Order, limit=1, order_by="-units")
        while True:
            pages += [row.order for row in page.items]
            if page.next is None:
                break
            page = await read.page(Order, limit=1, order_by="-units", cursor=page.next)
        return {
            "get": [name for name in names if await read.get(Order, name) is not None],
            "get_many": list(await read.get_many(Order, names)),
            "find": [row.order for row in await read.find(Order, units=at_least(0))],
            "page": pages,
            "count": await read.count(Order),
            "search": sorted(row.order for row in await read.search(Order, "tea")),
        }

    @context.query_handler
    async def by_hand(query: ByHand, read: Reader) -> int:
        return sum(row.units for row in await read.sql(Units, "SELECT units FROM shop_order", touches=[]))

    @context.query_handler
    @requires("me")
    async def who_am_i(query: WhoAmI, context: QueryContext) -> list[str]:
        return [str(context.actor), *sorted(context.scopes)]

    return context


async def own_orders(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
    """Everybody sees their own orders, and the application itself all of them."""
    return await proceed(query, context if context.trusted else context.only(Order, customer=context.actor))


ORDERS = {"a1": "ada", "a2": "ada", "b1": "bob", "n1": None}
ALL = Actor(trusted=True)


async def place_orders(app: Application, **more: str | None) -> str:
    last = ""
    for number, (order, customer) in enumerate({**ORDERS, **more}.items(), 1):
        last = (await app.execute(PlaceOrder(order=OrderId(order), customer=customer, units=number))).token
    return last


@pytest.fixture
async def app(store_url: str) -> AsyncIterator[Application]:
    async with Application(shop(), store=store_url, query_middleware=[own_orders]) as opened:
        yield opened


def seen(*orders: str) -> dict[str, Any]:
    """What `Everything` gives to whoever sees these rows."""
    return {
        "get": list(orders),
        "get_many": list(orders),
        "find": list(orders),
        "page": sorted(orders, reverse=True, key=list(ORDERS).index),
        "count": len(orders),
        "search": list(orders),
    }


# ── which rows there are ─────────────────────────────────────────────────────


async def test_rows_of_others_do_not_exist(app: Application) -> None:
    """By key, filter, page, word and count; without a handler as with one; and of nobody nothing."""
    token = await place_orders(app)
    assert await app.query(Everything(), after=token, actor=ALL) == seen("a1", "a2", "b1", "n1")
    assert await app.query(Everything(), after=token, actor="ada") == seen("a1", "a2")
    assert await app.query(Everything(), after=token, actor="bob") == seen("b1")
    assert await app.query(Everything(), after=token, actor="eve") == seen()
    assert await app.query(Everything(), after=token) == seen(), "whoever is not known owns no rows"
    assert await app.query(OrderOf(order=OrderId("b1")), actor="ada") is None
    assert [row.order for row in await app.query(Orders(), actor="ada")] == ["a1", "a2"]
    assert await app.query(OrdersOf(customer="bob"), actor="ada") == [], "what is asked for widens nothing"


async def test_rows_as_of_a_past_moment_are_narrowed(store_url: str) -> None:
    """By key and by filter."""
    async with Application(shop(), store=store_url, query_middleware=[own_orders]) as app:
        token = await place_orders(app)
        await app.query(Orders(), after=token, actor=ALL)
        later = await place_orders(app, a3="ada")
        assert [row.order for row in await app.query(Orders(), as_of=token, actor="ada")] == ["a1", "a2"]
        assert await app.query(OrderOf(order=OrderId("b1")), as_of=token, actor="ada") is None
        assert [row.order for row in await app.query(Orders(), as_of=later, actor="ada")] == ["a1", "a2", "a3"]


async def test_overlaid_rows_are_narrowed(tmp_path: Any) -> None:
    """Those that are folded onto what is stored, by key and by filter."""
    url = f"sqlite:{tmp_path}/orders.db"
    async with Application(shop(), store=url) as app:
        await app.query(Orders(), after=await place_orders(app))
    async with Application(shop(), store=url, query_middleware=[own_orders], projecting=False) as app:
        await app.execute(PlaceOrder(order=OrderId("a1"), customer="bob"))
        assert [row.order for row in await app.query(Orders(), freshness="overlay", actor="bob")] == ["a1", "b1"]
        assert [row.order for row in await app.query(Orders(), freshness="overlay", actor="ada")] == ["a2"]
        assert await app.query(OrderOf(order=OrderId("a1")), freshness="overlay", actor="ada") is None
        assert await app.query(OrderOf(order=OrderId("a1")), freshness="overlay", actor="bob") is not None


async def test_across_partitions_rows_are_narrowed(places: Places) -> None:
    """A query that spans histories reads each of them as whoever asks may."""
    other = BoundedContext("other")

    class Note(Command):
        note: OrderId

    class Noted(Event):
        note: OrderId

    @other.command_handler
    def note(command: Note) -> Noted:
        return Noted(note=command.note)

    async with Application(
        shop(), other, store=places("shop", "other"), partition_by="context", query_middleware=[own_orders]
    ) as app:
        token = await place_orders(app)
        assert await app.query(Everything(), after=token, actor="bob") == seen("b1")
        assert await app.query(Everything(), after=token, actor=ALL) == seen("a1", "a2", "b1", "n1")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_sql_is_refused_where_rows_are_hidden(kind: str, tmp_path: Any) -> None:
    """Also where it says that it touches nothing: what it reads nobody can tell."""
    from tests.postgres_server import new_stores

    url = f"sqlite:{tmp_path}/orders.db" if kind == "sqlite" else await new_stores()
    async with Application(shop(), store=url, query_middleware=[own_orders]) as app:
        await app.query(Orders(), after=await place_orders(app), actor=ALL)
        assert await app.query(ByHand(), actor=ALL) == 10
        with pytest.raises(ConfigurationError, match=r"SQL would show rows of Order .*QueryContext\.actor"):
            await app.query(ByHand(), actor="ada")


async def test_live_queries_are_each_of_their_actor(app: Application) -> None:
    """Two who wait for the same query at once do not share its answer."""
    await app.query(Orders(), after=await place_orders(app), actor=ALL)
    lives = {name: app.subscribe(Orders(), actor=name) for name in ("ada", "bob")}
    shown = {name: [row.order for row in (await anext(live)).value] for name, live in lives.items()}
    assert shown == {"ada": ["a1", "a2"], "bob": ["b1"]}
    await app.execute(PlaceOrder(order=OrderId("a3"), customer="ada"))
    await app.execute(PlaceOrder(order=OrderId("b2"), customer="bob"))

    async def until(name: str, order: str) -> object:
        async for answer in lives[name]:
            found: list[str] = [row.order for row in answer.value]
            assert {order[0] for order in found} == {name[0]}
            if order in found:
                return found
        raise AssertionError("it ended")

    later = list(await asyncio.gather(until("ada", "a3"), until("bob", "b2")))
    assert later == [["a1", "a2", "a3"], ["b1", "b2"]]
    for live in lives.values():
        await live.aclose()


async def test_keys_that_are_blocked_are_not_told_to_whom_rows_are_hidden(app: Application) -> None:
    """A strict answer is refused all the same, and says no more than that."""
    await place_orders(app)
    torn = await app.execute(PlaceOrder(order=OrderId("secret"), customer="bob", text="torn"))
    with pytest.raises(Blocked) as told:
        await app.query(Orders(), after=torn, actor=ALL)
    assert told.value.keys == ('["secret"]',)
    for as_of, after in ((torn, None), (None, torn)):
        with pytest.raises(Blocked) as hidden:
            await app.query(Orders(), as_of=as_of, after=after, actor="ada")
        assert hidden.value.keys == ()
        assert "secret" not in str(hidden.value)


async def test_conditions_add_up(app: Application) -> None:
    """What one middleware hides, the next cannot show."""
    await app.query(Orders(), after=await place_orders(app), actor=ALL)

    async def wider(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        narrowed = context.only(Order, customer=one_of("ada", "bob", None)).only(Order, units=at_least(2))
        return await proceed(query, narrowed)

    async with Application(shop(), store="memory:", query_middleware=[own_orders, wider]) as other:
        token = await place_orders(other)
        assert [row.order for row in await other.query(Orders(), after=token, actor="ada")] == ["a2"]
        assert [row.order for row in await other.query(Orders(), after=token, actor=ALL)] == ["a2", "b1", "n1"]
    with pytest.raises(ConfigurationError, match=r"only\(Order\) hides no row"):
        QueryContext(now=app.now()).only(Order)


async def test_a_column_that_there_is_none_of_shows_nothing(store_url: str) -> None:
    """A filter that cannot be is an error, and no open door."""

    async def misspelt(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        return await proceed(query, context.only(Order, costumer=context.actor))

    async with Application(shop(), store=store_url, query_middleware=[misspelt]) as app:
        token = await place_orders(app)
        queries: list[Query[Any]] = [OrderOf(order=OrderId("a1")), Orders(), Everything()]
        for query in queries:
            with pytest.raises(ConfigurationError, match="Order has no column 'costumer'"):
                await app.query(query, after=token, actor="ada")


# ── scopes, and middlewares ──────────────────────────────────────────────────


@pytest.mark.parametrize("query", [Audit(), LongAudit()])
async def test_a_query_is_asked_by_those_who_have_its_scopes(app: Application, query: Query[Any]) -> None:
    """It stands on the class of the query, where there is no handler, and holds for its subclasses."""
    for actor in (None, "ada", Actor("ada", {"orders:read"})):
        with pytest.raises(Forbidden) as refused:
            await app.query(query, actor=actor)
        assert (refused.value.message, refused.value.missing) == (type(query).__name__, ("orders:audit",))
        with pytest.raises(Forbidden):
            await anext(app.subscribe(query, actor=actor))
    assert await app.query(query, actor=Actor("ada", {"orders:audit"})) == []
    assert await app.query(query, actor=ALL) == []


async def test_a_handler_is_told_who_asks(app: Application) -> None:
    """The context is a parameter like the reader; what the handler requires counts as what the class does."""
    with pytest.raises(Forbidden, match="WhoAmI requires me: ada does not have it"):
        await app.query(WhoAmI(), actor="ada")
    assert await app.query(WhoAmI(), actor=Actor("ada", {"me", "more"})) == ["ada", "me", "more"]


async def test_middlewares_wrap_the_way_the_first_outermost() -> None:
    """They may look scopes up, change the query and the answer, or answer themselves; fields are settled before."""
    heard: list[str] = []

    def named(name: str) -> Callable[[Query[Any], QueryContext, NextQuery], Awaitable[Answer[Any]]]:
        async def middleware(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
            heard.append(f"{name} {type(query).__name__} {context.actor}")
            return await proceed(query, replace(context, scopes=context.scopes | {name}))

        return middleware

    async def masked(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        if isinstance(query, Orders):
            query = OrdersOf(customer="bob")
        answer = await proceed(query, context)
        if isinstance(answer.value, list):
            rows = [replace(row, text="***") if isinstance(row, Order) else row for row in answer.value]
            return replace(answer, value=rows)
        return answer

    async with Application(shop(), store="memory:", query_middleware=[named("me"), named("b"), masked]) as app:
        token = await place_orders(app)
        assert await app.query(WhoAmI(), actor="ada") == ["ada", "b", "me"]
        assert heard == ["me WhoAmI ada", "b WhoAmI ada"]
        shown = await app.query(Orders(), after=token)
        assert [(row.order, row.text) for row in shown] == [("b1", "***")]
        with pytest.raises(ValueError, match="Expected"):
            await app.query(OrderOf(order=3))  # type: ignore[arg-type]
        assert len(heard) == 4, "what cannot be a query goes to nobody"


def test_without_an_event_loop_it_is_the_same() -> None:
    """The synchronous application takes middlewares and actors alike."""
    with SyncApplication(shop(), store="memory:", query_middleware=[own_orders]) as app:
        receipt = app.execute(PlaceOrder(order=OrderId("a1"), customer="ada"))
        assert len(app.query(Orders(), after=receipt, actor="ada")) == 1
        assert app.answer(Orders(), after=receipt, actor="bob").value == []
        live = app.subscribe(Orders(), after=receipt, actor="ada")
        assert len(next(live).value) == 1
        live.close()


# ── over HTTP ────────────────────────────────────────────────────────────────


class _ByHeader:
    """Whoever says so: what is tried is what comes after."""

    scheme = {"type": "apiKey", "in": "header", "name": "who"}

    async def authenticate(self, request: HTTPConnection) -> Actor:
        return Actor(request.headers["who"], frozenset(request.headers.get("may", "").split()))


async def test_over_http_the_actor_asks(app: Application) -> None:
    """Each sees their own rows, under an ETag of their own, which no shared cache keeps; and 403 where scopes lack."""
    token = await place_orders(app)
    transport = httpx2.ASGITransport(http_app(app, authenticator=_ByHeader()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
        told = {}
        for who in ("ada", "bob"):
            told[who] = await client.get("/queries/Orders", headers={"who": who, "Consistency-Token": token})
        assert [row["order"] for row in told["ada"].json()] == ["a1", "a2"]
        assert [row["order"] for row in told["bob"].json()] == ["b1"]
        assert told["ada"].headers["cache-control"] == "private, no-cache"
        etag = told["ada"].headers["etag"]
        assert (await client.get("/queries/Orders", headers={"who": "ada", "If-None-Match": etag})).status_code == 304
        assert (await client.get("/queries/Orders", headers={"who": "bob", "If-None-Match": etag})).status_code == 200
        for accept in ("application/json", "text/event-stream"):
            refused = await client.get("/queries/Audit", headers={"who": "ada", "Accept": accept})
            assert (refused.status_code, refused.json()["missing"]) == (403, ["orders:audit"])
        assert (await client.get("/queries/Audit", headers={"who": "ada", "may": "orders:audit"})).status_code == 200
        document = (await client.get("/openapi.json")).json()
    audit = document["paths"]["/queries/Audit"]
    assert all("403" in operation["responses"] for operation in audit.values())
    assert all("403" not in operation["responses"] for operation in document["paths"]["/queries/Orders"].values())
