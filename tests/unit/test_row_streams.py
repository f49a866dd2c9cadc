"""Streams of rows: any number of them, a page at a time, from one moment until its snapshot is too old."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anyio.lowlevel import checkpoint

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    Identity,
    Key,
    NotFresh,
    Query,
    Reader,
    ReadModel,
)
from diptych.entrypoints.http import http_app
from diptych.errors import Forbidden, InvalidMessage, Overloaded, StoreClosed
from diptych.read_side import row_streams, spanning_queries
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_middleware import NextQuery
from diptych.security import Actor, requires

pytestmark = pytest.mark.anyio


class GrainId(Identity): ...


class Sow(Command):
    first: int
    grains: int


class Sown(Event):
    first: int
    grains: int


class Grain(ReadModel):
    grain: Key[GrainId]
    number: int
    owner: str


class Grains(Query[list[Grain]]): ...


class GrainOf(Query[Grain | None]):
    grain: GrainId


class Counted(Query[list[int]]): ...


@requires("grains:all")
class AllGrains(Query[list[Grain]]): ...


def name_of(number: int) -> GrainId:
    return GrainId(f"g{number:05}")


def numbers(event: Sown) -> range:
    return range(event.first, event.first + event.grains)


def field() -> BoundedContext:
    context = BoundedContext("field")

    @context.command_handler
    def sow(command: Sow) -> Sown:
        return Sown(first=command.first, grains=command.grains)

    @context.projection(each=numbers, key=name_of)
    def grain(row: Grain | None, event: Sown, number: int) -> Grain:
        return Grain(grain=name_of(number), number=number, owner="ada" if number % 2 else "bob")

    @context.query_handler
    async def counted(query: Counted, read: Reader) -> list[int]:
        return [await read.count(Grain)]

    return context


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_streams, "STREAM_PAGE_ROWS", 10)


@pytest.fixture
async def app(store_url: str) -> AsyncIterator[Application]:
    async with Application(field(), store=store_url) as opened:
        await opened.query(Grains(), after=await opened.execute(Sow(first=0, grains=35)))
        yield opened


async def snapshots_held(app: Application, wanted: int) -> None:
    """Wait until so many are."""
    async with asyncio.timeout(20):
        while len(app._streams) != wanted:
            await checkpoint()


async def test_all_rows_come_once_in_order(app: Application) -> None:
    """A page at a time, from one snapshot, which is let go of with the last row."""
    stream = app.stream(Grains())
    assert [row.number async for row in stream] == list(range(35))
    assert (stream.snapshots, stream.incomplete) == (1, False)
    assert stream.token == (await app.answer(Grains())).token
    await snapshots_held(app, 0)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_shows_one_moment(app: Application) -> None:
    """What is written meanwhile is not in it, whatever its place in the order."""
    async with app.stream(Grains()) as stream:
        first = await anext(stream)
        await app.query(Grains(), after=await app.execute(Sow(first=35, grains=5)))
        assert [first.number, *[row.number async for row in stream]] == list(range(35))
        assert stream.snapshots == 1


async def test_past_its_age_it_goes_on_by_key_and_says_so(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot is let go of though nobody asks; the next rows are of a newer one, never an older."""
    monkeypatch.setattr(row_streams, "STREAM_SNAPSHOT_S_MAX", 0.01)
    stream = app.stream(Grains())
    found = [(await anext(stream)).number]
    await snapshots_held(app, 0)
    shown = stream.token
    await app.query(Grains(), after=await app.execute(Sow(first=35, grains=5)))
    found += [row.number async for row in stream]
    assert found == list(range(40))
    assert stream.snapshots > 1
    assert stream.token != shown


async def test_whoever_leaves_lets_go_of_the_snapshot(app: Application) -> None:
    """By closing it, by leaving its block, and by being cancelled while rows are read."""
    stream = app.stream(Grains())
    await anext(stream)
    assert len(app._streams) == 1
    await stream.aclose()
    assert len(app._streams) == 0
    async with app.stream(Grains()) as other:
        await anext(other)
    assert len(app._streams) == 0

    async def read() -> None:
        async for _ in app.stream(Grains()):
            await checkpoint()

    reading = asyncio.create_task(read())
    await checkpoint()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    async with aclosing(app.stream(Grains())) as again:
        assert (await anext(again)).number == 0


async def test_streams_that_hold_snapshots_are_few(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, and finds room when another is over."""
    monkeypatch.setattr(row_streams, "STREAMS_MAX", 2)
    streams = [app.stream(Grains()) for _ in range(3)]
    for stream in streams[:2]:
        await anext(stream)
    with pytest.raises(Overloaded, match="STREAMS_MAX"):
        await anext(streams[2])
    await streams[0].aclose()
    async with app.stream(Grains()) as found:
        assert (await anext(found)).number == 0
    await streams[1].aclose()


@pytest.mark.parametrize(
    "several",
    [{"read_stores": {Grain: "memory:"}}, {"partition_by": "context", "store": {"field": "memory:"}}],
    ids=["stores", "contexts"],
)
async def test_streams_take_no_turn_from_handlers_that_may_span_stores(
    several: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slow clients hold theirs for half a minute, and each of them reads of one store."""
    monkeypatch.setattr(spanning_queries, "SPANNING_ANSWERS_MAX", 1)
    async with Application(field(), **{"store": f"sqlite:{tmp_path}/events.db", **several}) as app:
        await app.query(Grains(), after=await app.execute(Sow(first=0, grains=35)))
        async with app.stream(Grains()) as stream, app.stream(Grains()) as other:
            assert (await anext(stream)).number == (await anext(other)).number == 0
            assert await app.query(Counted()) == [35]
            assert len(app._streams) == 2


async def test_a_stream_is_as_fresh_as_it_is_asked_to_be(store_url: str) -> None:
    """It waits like an answer, or is none; overlaid rows are streamed, too."""
    async with Application(field(), store=store_url) as app:
        token = await app.execute(Sow(first=0, grains=12))
        assert len([row async for row in app.stream(Grains(), after=token)]) == 12
    async with Application(field(), store="memory:", projecting=False) as app:
        token = await app.execute(Sow(first=0, grains=12))
        with pytest.raises(NotFresh):
            await anext(app.stream(Grains(), after=token, wait_s=0))


async def test_pages_go_through_the_middlewares(store_url: str) -> None:
    """Rows are narrowed, and changed, page by page; what an actor may not any more ends the stream."""
    pages: list[int] = []
    allowed = asyncio.Event()
    allowed.set()

    async def own(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        if not allowed.is_set():
            raise Forbidden(type(query).__name__, context.actor, ["any"])
        answer = await proceed(query, context.only(Grain, owner=context.actor))
        if isinstance(answer.value, list):
            pages.append(len(answer.value))
        return answer

    async with Application(field(), store=store_url, query_middleware=[own]) as app:
        token = await app.execute(Sow(first=0, grains=50))
        rows = [row async for row in app.stream(Grains(), after=token, actor="ada")]
        assert [row.number for row in rows] == list(range(1, 50, 2))
        assert pages == [10, 10, 5]
        stream = app.stream(Grains(), actor="bob")
        assert (await anext(stream)).number == 0
        allowed.clear()
        with pytest.raises(Forbidden):
            _ = [row async for row in stream]
        await snapshots_held(app, 0)


async def test_what_cannot_be_streamed_is_refused(app: Application) -> None:
    """One row, what a handler makes, and what the actor may not ask."""
    others: list[Query[Any]] = [GrainOf(grain=name_of(1)), Counted()]
    for query in others:
        with pytest.raises(InvalidMessage, match="can be streamed"):
            app.stream(query)
    with pytest.raises(Forbidden):
        await anext(app.stream(AllGrains()))
    async with app.stream(AllGrains(), actor=Actor("ada", {"grains:all"})) as stream:
        assert (await anext(stream)).number == 0


async def test_a_stream_ends_with_the_application(store_url: str) -> None:
    """Whoever wants the next page hears that it is closed."""
    app = Application(field(), store=store_url)
    await app.open()
    stream = app.stream(Grains(), after=await app.execute(Sow(first=0, grains=35)))
    await anext(stream)
    await app.close()
    with pytest.raises(StoreClosed):
        _ = [row async for row in stream]


# ── over HTTP ────────────────────────────────────────────────────────────────

LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://field") as made:
        yield made


async def test_rows_are_lines(app: Application, client: httpx2.AsyncClient) -> None:
    """Each as GET gives it, chosen fields as well; and at the end how many there were."""
    whole = (await client.get("/queries/Grains")).json()
    response = await client.get("/queries/Grains", headers=LINES)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["consistency-token"] == (await app.answer(Grains())).token
    *rows, end = [json.loads(line) for line in response.text.splitlines()]
    assert rows == whole
    assert end == {"$end": {"rows": 35, "snapshots": 1, "incomplete": False}}
    chosen = await client.post("/queries/Grains?fields=number", json={}, headers=LINES)
    assert chosen.text.splitlines()[1] == '{"number":1}'
    head = await client.head("/queries/Grains", headers=LINES)
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "application/x-ndjson")
    either = await client.get("/queries/Grains", headers={"Accept": "application/x-ndjson;q=0.5, application/json"})
    assert either.json() == whole
    await snapshots_held(app, 0)


async def test_lines_say_where_a_newer_moment_begins(
    app: Application, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the rows, with its token; and the last line says of how many moments they are."""
    monkeypatch.setattr(row_streams, "STREAM_SNAPSHOT_S_MAX", 0)
    lines = [json.loads(line) for line in (await client.get("/queries/Grains", headers=LINES)).text.splitlines()]
    assert [line["number"] for line in lines if "number" in line] == list(range(35))
    told = [line["$snapshot"]["token"] for line in lines if "$snapshot" in line]
    assert told == [(await app.answer(Grains())).token] * 3
    assert lines[-1]["$end"]["snapshots"] == 4


async def test_a_failure_on_the_way_is_the_last_line(store_url: str) -> None:
    """With the problem, and no end: whoever reads it knows that rows are missing."""
    pages = 0

    async def second_fails(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        nonlocal pages
        pages += 1
        if pages > 1:
            raise Forbidden(type(query).__name__, context.actor, ["more"])
        return await proceed(query, context)

    async with Application(field(), store=store_url, query_middleware=[second_fails]) as app:
        token = (await app.execute(Sow(first=0, grains=35))).token
        transport = httpx2.ASGITransport(http_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://field") as client:
            response = await client.get("/queries/Grains", headers={**LINES, "Consistency-Token": token})
            *rows, last = [json.loads(line) for line in response.text.splitlines()]
            assert (response.status_code, len(rows)) == (200, 10)
            assert (last["$error"]["status"], last["$error"]["missing"]) == (403, ["more"])
            refused = await client.get("/queries/Grains", headers=LINES)
            assert refused.status_code == 403, "what is refused at first has its status"
        await snapshots_held(app, 0)


async def test_what_cannot_be_lines_is_refused(app: Application, client: httpx2.AsyncClient) -> None:
    """One row, what a handler makes, and a past moment."""
    token = (await app.answer(Grains())).token
    for url, headers in (("GrainOf?grain=g", {}), ("Counted", {}), ("Grains", {"As-Of": token})):
        response = await client.get(f"/queries/{url}", headers={**LINES, **headers})
        assert (response.status_code, response.json()["header"]) == (400, "Accept")


async def test_a_client_that_goes_away_frees_the_snapshot(app: Application) -> None:
    """Though it does not take what is being sent: rows are neither read on nor kept for it."""
    sent: list[bytes] = []
    gone, stuck = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 3:
            stuck.set()
            await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/queries/Grains", "query_string": b"", "root_path": ""}
    scope["headers"] = [(b"accept", b"application/x-ndjson")]
    serving = asyncio.create_task(http_app(app)(scope, receive, send))
    await stuck.wait()
    assert len(app._streams) == 1
    assert b"".join(sent).count(b"\n") == 20, "two pages, and no more than it takes"
    gone.set()
    await snapshots_held(app, 0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
