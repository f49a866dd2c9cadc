"""What reviews have found on the way of queries: who may ask, what they see, and cursors that nobody gave out."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import httpx2
import pytest
from msgspec import Meta

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    Identity,
    Indexed,
    Key,
    Page,
    Query,
    ReadModel,
)
from diptych.entrypoints.http import http_app
from diptych.entrypoints.http.row_lines import PIECE_BYTES
from diptych.errors import Blocked, Forbidden
from diptych.read_side.conditions import all_of, one_of, starts_with
from diptych.read_side.declared_queries import Where
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_middleware import NextQuery
from diptych.security import Actor, requires

pytestmark = pytest.mark.anyio


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class OrderId(Identity): ...


class Place(Command):
    order: OrderId
    customer: str | None = None
    price: Decimal = Decimal(1)


class Placed(Event):
    order: OrderId
    customer: str | None
    price: Decimal
    placed_at: datetime


class Order(ReadModel):
    order: Key[OrderId]
    customer: Indexed[str | None] = None
    price: Decimal = Decimal(0)
    number: int = 0
    weight: float = 0.0
    placed_at: datetime | None = None


class Orders(Query[list[Order]]): ...


class Pages(Query[Page[Order]]):
    order_by: Literal["price", "number", "weight", "placed_at", "customer"] = "price"
    customer: Annotated[str | None, Where(starts_with)] = None
    limit: Annotated[int, Meta(ge=1, le=5)] = 1
    cursor: str | None = None


@requires("orders:read")
class Reading(Query[list[Order]]): ...


@requires("prices:read")
class Pricing(Query[list[Order]]): ...


class ReadingPrices(Reading, Pricing): ...


@requires("audit")
class Auditing(Reading, Pricing): ...


def shop() -> BoundedContext:
    context = BoundedContext("shop")

    @context.command_handler
    def place(command: Place) -> Placed:
        return Placed(order=command.order, customer=command.customer, price=command.price, placed_at=NOON)

    @context.projection
    def order(row: Order, event: Placed) -> Order:
        return Order(order=row.order, customer=event.customer, price=event.price, placed_at=event.placed_at)

    return context


# ── who may ask ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("query", "required"),
    [(ReadingPrices(), {"orders:read", "prices:read"}), (Auditing(), {"audit", "orders:read", "prices:read"})],
)
async def test_a_query_requires_what_every_base_class_does(query: Query[Any], required: set[str]) -> None:
    """Not the first one alone."""
    async with Application(shop(), store="memory:") as app:
        for lacking in required:
            with pytest.raises(Forbidden) as refused:
                await app.query(query, actor=Actor("ada", required - {lacking}))
            assert refused.value.missing == (lacking,)
        assert await app.query(query, actor=Actor("ada", required)) == []


# ── what they see ────────────────────────────────────────────────────────────

TENANT: contextvars.ContextVar[str | None] = contextvars.ContextVar("TENANT", default=None)


async def test_no_answer_of_a_live_query_is_made_with_what_another_subscriber_had_set() -> None:
    """Two of the same actor share answers, so that what only one of their requests knows decides about neither."""

    async def own(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        return await proceed(query, context.only(Order, customer=TENANT.get()))

    async with Application(shop(), store="memory:", query_middleware=[own]) as app:
        shown: dict[str, list[set[str | None]]] = {"ada": [], "bob": []}
        subscribed = {name: asyncio.Event() for name in shown}

        async def follow(name: str) -> None:
            TENANT.set(name)
            async for answer in app.subscribe(Orders()):
                shown[name].append({row.customer for row in answer.value})
                subscribed[name].set()

        following = [asyncio.create_task(follow(name)) for name in shown]
        await asyncio.gather(*(found.wait() for found in subscribed.values()))
        for number in range(5):
            await app.execute(Place(order=OrderId(f"a{number}"), customer="ada"))
            await app.query(Orders(), after=await app.execute(Place(order=OrderId(f"b{number}"), customer="bob")))
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    for name, answers in shown.items():
        assert set().union(*answers) <= {name}


@pytest.mark.parametrize("nested", [False, True])
async def test_nobody_owns_what_nobody_owns_also_within_all_of(nested: bool) -> None:
    """None is a value like others in `all_of`, and matches no row there either; `one_of` says that it is meant."""

    async def own(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        wanted = all_of(context.actor)
        return await proceed(query, context.only(Order, customer=all_of(wanted) if nested else wanted))

    async def unowned(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        return await proceed(query, context.only(Order, customer=all_of(one_of(None))))

    for middleware, found in ((own, []), (unowned, ["n1"])):
        async with Application(shop(), store="memory:", query_middleware=[middleware]) as app:
            token = await app.execute(Place(order=OrderId("n1")))
            assert [row.order for row in await app.query(Orders(), after=token)] == found


async def test_why_a_projection_stopped_is_not_told_to_whom_rows_are_hidden() -> None:
    """What the user's code raised may be about a row that they do not see."""
    context = BoundedContext("shop")

    def keys(event: Placed) -> list[str]:
        raise ValueError(f"{event.customer} is nobody")

    @context.command_handler
    def place(command: Place) -> Placed:
        return Placed(order=command.order, customer=command.customer, price=command.price, placed_at=NOON)

    @context.projection(keys=keys)
    def order(row: Order | None, event: Placed) -> Order | None:
        return row

    async def own(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        return await proceed(query, context if context.trusted else context.only(Order, customer=context.actor))

    async with Application(context, store="memory:", query_middleware=[own]) as app:
        token = await app.execute(Place(order=OrderId("o1"), customer="bob"))
        with pytest.raises(Blocked, match="bob is nobody"):
            await app.query(Orders(), after=token, actor=Actor(trusted=True))
        with pytest.raises(Blocked, match="bob is nobody"):
            await app.query_many([Orders(), Orders()], after=token, actor=Actor(trusted=True))
        for asked in (
            app.query(Orders(), after=token, actor="ada"),
            app.query_many([Orders()], after=token, actor="ada"),
        ):
            with pytest.raises(Blocked) as hidden:
                await asked
            assert "bob" not in str(hidden.value)


# ── cursors that nobody gave out ─────────────────────────────────────────────


@pytest.fixture
async def client(store_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with Application(shop(), store=store_url) as app:
        for order in ("o1", "o2"):
            await app.execute(Place(order=OrderId(order), customer='a>b"<c'))
        await app.projected()
        transport = httpx2.ASGITransport(http_app(app), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as opened:
            yield opened


def tampered(cursor: str, values: str) -> str:
    """The same cursor with other values in it."""
    decoded = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return base64.urlsafe_b64encode(f"{json.dumps(decoded[:2])[:-1]},{values}]".encode()).decode().rstrip("=")


MADE_UP = [
    ("price", '["NaN","o1"]'),
    ("price", '["sNaN","o1"]'),
    ("price", '["Infinity","o1"]'),
    ("price", '[null,"o1"]'),
    ("price", '["1",null]'),
    ("price", '["1"]'),
    ("number", '[9223372036854775808,"o1"]'),
    ("weight", '["nan","o1"]'),
    ("weight", f'[{"9" * 400},"o1"]'),
    ("placed_at", '["2026-01-01T00:00:00","o1"]'),
    ("placed_at", '["9999-12-31T23:59:59-14:00","o1"]'),
    ("customer", '["a\\u0000","o1"]'),
    ("customer", '["\\ud800","o1"]'),
    ("customer", '["a","o\\u0000"]'),
    ("number", "[" * 3_000 + "]" * 3_000),
]
"""What a cursor holds that no row does, by what is ordered by."""


async def test_a_cursor_that_was_made_up_is_none(client: httpx2.AsyncClient) -> None:
    """Whatever it holds that no row could, on every store alike: said to its sender, and nothing goes wrong here."""
    for order_by, values in MADE_UP:
        first = await client.get("/queries/Pages", params={"order_by": order_by})
        asked = {"order_by": order_by, "cursor": tampered(first.json()["next"], values)}
        refused = await client.get("/queries/Pages", params=asked)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:diptych:problem:unknown-cursor"), values


async def test_a_cursor_that_was_given_out_is_taken(client: httpx2.AsyncClient) -> None:
    """By every kind of column."""
    for order_by in ("price", "number", "weight", "placed_at", "customer"):
        first = await client.get("/queries/Pages", params={"order_by": order_by})
        second = await client.get("/queries/Pages", params={"order_by": order_by, "cursor": first.json()["next"]})
        assert [row["order"] for row in second.json()["items"]] == ["o2"], order_by


async def sent_by(app: Any, query: str, query_string: bytes, accept: bytes) -> list[dict[str, Any]]:
    """What a server is told to send, message by message."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()  # it stays
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": f"/queries/{query}", "root_path": "",
        "headers": [(b"accept", accept)], "query_string": query_string,
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def test_what_a_request_says_ends_no_link() -> None:
    """Servers let through what a URI may not hold: `>` would end the link, and what follows be the sender's."""
    async with Application(shop(), store="memory:") as app:
        for order in ("o1", "o2"):
            await app.execute(Place(order=OrderId(order), customer='a>b"<c'))
        await app.projected()
        sent = await sent_by(http_app(app), "Pages", b'customer=a>b"<c&limit=1', b"*/*")
    (link,) = [value for name, value in sent[0]["headers"] if name == b"link"]
    assert link.startswith(b"<?customer=a%3Eb%22%3Cc&limit=1&cursor=")
    assert link.count(b">") == 1
    assert link.endswith(b'>; rel="next"')


async def test_rows_as_lines_are_sent_in_pieces() -> None:
    """A client that is slow has the server hold one of them, and not a page; together they are the lines."""
    async with Application(shop(), store="memory:") as app:
        for number in range(40):
            await app.execute(Place(order=OrderId(f"o{number:02}"), customer="x" * 10_000))
        await app.projected()
        sent = await sent_by(http_app(app), "Orders", b"", b"application/x-ndjson")
    bodies = [message["body"] for message in sent[1:]]
    assert max(map(len, bodies)) < PIECE_BYTES + 11_000
    assert len(bodies) >= 40 * 10_000 // (PIECE_BYTES + 11_000)
    lines = [json.loads(line) for line in b"".join(bodies).splitlines()]
    assert [line["order"] for line in lines[:-1]] == [f"o{number:02}" for number in range(40)]
    assert lines[-1]["$end"]["rows"] == 40
