"""How long a query may take, and how many rows it may ask for: past it, it is stopped, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import msgspec
import pytest

from diptych import Application, BoundedContext, Command, Event, Key, Page, Query, Reader, ReadModel, at_least
from diptych.adapters.postgres import read_snapshot as postgres_snapshot
from diptych.adapters.sqlite import read_snapshot as sqlite_snapshot
from diptych.entrypoints.http import client_watch, http_app
from diptych.errors import ConfigurationError, InvalidMessage, Overloaded
from diptych.read_side import snapshot_reader
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_limits import (
    HANDLER_S_MAX,
    NO_LIMITS,
    QueryLimits,
    QueryTimedOut,
    QueryTooCostly,
    RowCount,
    limited,
)
from diptych.read_side.query_middleware import NextQuery
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from tests.tenants import ACME, PEN, Places, Stock, UnitsOnShelf, by_tenant
from tests.unit.test_http_live_queries import Streamed

pytestmark = pytest.mark.anyio

ROWS = 20


class Plant(Command):
    trees: int


class Planted(Event):
    trees: int


class Tree(ReadModel):
    tree: Key[int]
    height: int


class Felled(ReadModel):
    tree: Key[int]


class Trees(Query[list[Tree]]): ...


@limited(rows=12)
class SomeTrees(Query[list[Tree]]): ...


class FewTrees(SomeTrees): ...


@limited(rows=3)
class FewerTrees(SomeTrees): ...


@limited(rows=5, seconds=20)
class TreePages(Query[Page[Tree]]):
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    cursor: str | None = None


class Read(Query[int]):
    """Reads in one of many ways, some rows each time."""

    how: str
    times: int = 1


class Linger(Query[int]):
    """Takes for ever, inside the store where that can, or beside it."""

    how: str


class Told(Query[QueryLimits]): ...


class Row(msgspec.Struct):
    tree: int


class Lingering:
    """What the handler of `Linger` waits for, and how it came out."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()


ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS tree FROM n"


def numbers(event: Planted) -> range:
    return range(event.trees)


def number_of(number: int) -> int:
    return number


def forest(lingering: Lingering | None = None) -> BoundedContext:
    context = BoundedContext("forest")
    waiting = lingering or Lingering()

    @context.command_handler
    def plant(command: Plant) -> Planted:
        return Planted(trees=command.trees)

    @context.projection(each=numbers, key=number_of)
    def grown(row: Tree | None, event: Planted, number: int) -> Tree:
        return Tree(tree=number, height=number)

    @context.query_handler
    @limited(rows=10)
    async def read(query: Read, read: Reader) -> int:
        ways: dict[str, Any] = {
            "get": lambda: read.get(Tree, 1),
            "none": lambda: read.get(Tree, -1),
            "get_many": lambda: read.get_many(Tree, [1, 2]),
            "find": lambda: read.find(Tree, limit=5),
            "all": lambda: read.find(Tree, limit=1_000),
            "nothing": lambda: read.find(Tree, height=at_least(1_000)),
            "page": lambda: read.page(Tree, limit=5),
            "count": lambda: read.count(Tree),
            "sql": lambda: read.sql(Row, "SELECT tree FROM forest_tree ORDER BY tree LIMIT 5", touches=[Tree]),
            "more sql": lambda: read.sql(Row, "SELECT tree FROM forest_tree", touches=[Tree]),
        }
        for _ in range(query.times):
            await ways[query.how]()
        return query.times

    @context.query_handler
    @limited(seconds=30, rows=10**9)
    async def linger(query: Linger, read: Reader) -> int:
        try:
            waiting.begun.set()
            if query.how == "sql":
                await read.sql(Row, ENDLESS, touches=[Tree])
            while query.how == "rows":
                await read.count(Tree)
            await asyncio.Event().wait()
        finally:
            waiting.ended.set()
        return 0

    @context.query_handler
    @limited(seconds=7)
    async def told(query: Told, read: Reader, context: QueryContext) -> QueryLimits:
        return context.limits

    return context


@pytest.fixture
def lingering() -> Lingering:
    return Lingering()


@pytest.fixture
async def app(store_url: str, lingering: Lingering) -> AsyncIterator[Application]:
    async with Application(forest(lingering), store=store_url) as opened:
        await opened.execute(Plant(trees=ROWS))
        await opened.projected()
        yield opened


async def shown(app: Application) -> int:
    """How many trees are shown, in an answer."""
    rows = await app.query(Trees())
    return len(rows)


# ── rows ─────────────────────────────────────────────────────────────────────


WAYS = {
    "get": (10, "get of Tree"),
    "none": (10, "get of Tree"),
    "get_many": (5, "get of Tree"),
    "find": (2, "find of Tree"),
    "nothing": (10, "find of Tree"),
    "page": (2, "page of Tree"),
    "count": (10, "count of Tree"),
    "sql": (2, "SQL"),
}
"""How often each way of reading may be gone with ten rows, and what it is called."""


async def test_rows_are_counted_however_they_are_read(app: Application, store_url: str) -> None:
    """As many as it may are given; one call more is refused, and tells the query, its limit, and what was asked for."""
    for how, (times, asked) in WAYS.items():
        if how != "sql" or store_url != "memory:":
            assert await app.query(Read(how=how, times=times)) == times
            with pytest.raises(QueryTooCostly, match=r"Read may ask its store for 10 rows, and .* asks for") as refused:
                await app.query(Read(how=how, times=times + 1))
            assert (refused.value.query, refused.value.rows, refused.value.asked) == ("Read", 10, asked)


@pytest.mark.parametrize("how", ["all", "more sql"])
async def test_no_more_rows_are_fetched_than_it_takes_to_refuse(
    app: Application, store_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store gives one more than there may be, however many there are."""
    if how == "more sql" and store_url == "memory:":
        pytest.skip("there is no SQL")
    given: list[int] = []
    real = RowCount.take

    def take(self: Any, rows: int, asked: str) -> None:
        given.append(rows)
        real(self, rows, asked)

    monkeypatch.setattr(RowCount, "take", take)
    with pytest.raises(QueryTooCostly):
        await app.query(Read(how=how))
    assert given == [11]


async def test_sql_with_too_many_rows_is_refused(app: Application, store_url: str, monkeypatch: Any) -> None:
    """Past the named limit, also where its author allows more rows."""
    if store_url == "memory:":
        pytest.skip("there is no SQL")
    monkeypatch.setattr(snapshot_reader, "SQL_ROWS_MAX", 4)
    with pytest.raises(Overloaded, match="SQL_ROWS_MAX=4"):
        await app.query(Read(how="sql"))


async def test_queries_without_handler_are_limited_by_their_class(app: Application) -> None:
    """What a subclass says holds for it; else what its base class does; a page that fits is given with its cursor."""
    assert await shown(app) == ROWS
    for query, rows in ((SomeTrees(), 12), (FewTrees(), 12), (FewerTrees(), 3)):
        with pytest.raises(QueryTooCostly, match=f"{type(query).__name__} may ask its store for {rows} rows"):
            await app.query(query)
    page = await app.query(TreePages())
    assert (len(page.items), page.next is not None) == (5, True)
    with pytest.raises(QueryTooCostly):
        await app.query(TreePages(limit=6))


async def test_callers_and_middlewares_ask_for_less_and_never_for_more(store_url: str) -> None:
    """The least of what is declared, asked for and narrowed holds; the application says it of all others."""

    async def narrow(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        assert context.limits == asked
        return await proceed(query, context.limited(rows=100))

    default = QueryLimits(rows=2_000)
    asked = NO_LIMITS
    async with Application(forest(), store=store_url, query_middleware=[narrow], query_limits=default) as app:
        assert await app.query(Told()) == QueryLimits(seconds=7, rows=100)
        for asked, told in (
            (QueryLimits(seconds=0.5, rows=50), QueryLimits(seconds=0.5, rows=50)),
            (QueryLimits(seconds=50, rows=5_000), QueryLimits(seconds=7, rows=100)),
        ):
            assert await app.query(Told(), limits=asked) == told
            assert await app.query_many([Told()], limits=asked) == [told]
    async with Application(forest(), store=store_url, query_limits=default) as app:
        assert await app.query(Told()) == QueryLimits(seconds=7, rows=2_000)


async def test_several_at_once_have_limits_of_their_own_and_one_together(app: Application) -> None:
    """Each its author's; all together those of the one that may take most, or what their caller asks for."""
    assert len(await app.query_many([Trees(), Read(how="find", times=2), Trees()])) == 3
    with pytest.raises(QueryTooCostly, match="Read may ask its store for 10 rows"):
        await app.query_many([Trees(), Read(how="find", times=3)])
    with pytest.raises(QueryTooCostly, match="query_many may ask its store for 39 rows"):
        await app.query_many([Trees(), Trees()], limits=QueryLimits(rows=39))
    limits = await app.query_many([Told(), Told()], limits=QueryLimits(rows=2))
    assert limits[0].seconds == 7


async def test_streams_are_counted_over_all_pages_where_somebody_says_so(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application's own limit is for answers; that of the author, or the caller, is for the whole stream."""
    monkeypatch.setattr("diptych.read_side.row_streams.STREAM_PAGE_ROWS", 5)
    app._way._default = QueryLimits(seconds=30, rows=7)
    assert len([row async for row in app.stream(Trees())]) == ROWS
    assert len([row async for row in app.stream(Trees(), limits=QueryLimits(rows=ROWS))]) == ROWS
    for query, limits, rows, told in (
        (SomeTrees(), None, 10, 12),
        (Trees(), QueryLimits(rows=11), 10, 11),
        (Trees(), QueryLimits(rows=10), 10, 10),
    ):
        stream = app.stream(query, limits=limits)
        assert [len(await stream.next_page() or ()) for _ in range(rows // 5)] == [5] * (rows // 5)
        with pytest.raises(QueryTooCostly, match=f"for {told} rows"):
            await stream.next_page()
        assert len(app._streams) == 0


async def test_rows_across_stores_are_counted_together(tmp_path: Any) -> None:
    """A handler that reads from two stores has one limit."""

    class Both(Query[int]): ...

    context = forest()

    @context.projection(each=numbers, key=number_of)
    def felled(row: Felled | None, event: Planted, number: int) -> Felled:
        return Felled(tree=number)

    @context.query_handler
    @limited(rows=10)
    async def both(query: Both, read: Reader) -> int:
        return len([*await read.find(Tree, limit=6), *await read.find(Felled, limit=6)])

    elsewhere = {Felled: f"sqlite:{tmp_path / 'felled.db'}"}
    async with Application(context, store=f"sqlite:{tmp_path / 'trees.db'}", read_stores=elsewhere) as app:
        token = await app.execute(Plant(trees=4))
        assert await app.query(Both(), after=token) == 8
        token = await app.execute(Plant(trees=ROWS))
        with pytest.raises(QueryTooCostly, match="find of Felled"):
            await app.query(Both(), after=token)


async def test_partitions_have_the_same_limits(places: Places) -> None:
    """A partition is no way around them."""
    async with by_tenant(places) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=3))
        assert await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), freshness="latest", limits=QueryLimits(rows=1)) == 3


# ── time ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["sql", "rows", "beside"])
async def test_a_query_that_takes_too_long_is_stopped(
    app: Application, store_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as there are snapshots, and once more: what each asked of the store has ended, or the last one waits."""
    if how == "sql" and store_url == "memory:":
        pytest.skip("there is no SQL")
    for module in (sqlite_snapshot, postgres_snapshot):
        monkeypatch.setattr(module, "READ_S_MAX", 20)  # longer than anyone waits for a snapshot
    for _ in range(SNAPSHOTS_MAX + 1):
        with pytest.raises(QueryTimedOut, match=r"Linger took longer than the 0.02 seconds") as stopped:
            await app.query(Linger(how=how), limits=QueryLimits(seconds=0.02))
        assert (stopped.value.query, stopped.value.seconds) == ("Linger", 0.02)
    answers = await asyncio.gather(*(app.query(Trees()) for _ in range(2 * SNAPSHOTS_MAX)))
    assert all(len(rows) == ROWS for rows in answers)


async def test_several_at_once_are_stopped_by_the_limit_of_one(app: Application) -> None:
    """Or by that of all; each error names whose limit it was."""
    with pytest.raises(QueryTimedOut, match="query_many took longer"):
        await app.query_many([Linger(how="beside"), Trees()], limits=QueryLimits(seconds=0.02))
    app._way._declared = {**app._way._declared, Linger: QueryLimits(seconds=0.02)}
    with pytest.raises(QueryTimedOut, match="Linger took longer"):
        await app.query_many([Trees(), Linger(how="beside")])


async def test_a_slow_reader_of_a_stream_is_no_slow_query(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the time in which a page is read counts, which is less than that in which the rows are taken."""
    monkeypatch.setattr("diptych.read_side.row_streams.STREAM_PAGE_ROWS", 5)
    found = 0
    async for _ in app.stream(Trees(), limits=QueryLimits(seconds=1)):
        if found == 7:
            with pytest.raises(QueryTimedOut):
                await app.query(Linger(how="beside"), limits=QueryLimits(seconds=1))
        found += 1
    assert found == ROWS


async def test_a_page_of_a_stream_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs holds up no stream for longer than it may take, and its snapshot is let go of."""

    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    async with Application(forest(), store="memory:") as app:
        await app.execute(Plant(trees=ROWS))
        await app.projected()
        monkeypatch.setattr("diptych.adapters.memory.read_store._Snapshot.find", hang)
        with pytest.raises(QueryTimedOut, match="Trees took longer than the 0.02 seconds"):
            await app.stream(Trees(), limits=QueryLimits(seconds=0.02)).next_page()
        assert len(app._streams) == 0


async def test_time_is_not_counted_while_it_is_waited_for_rows(app: Application) -> None:
    """A wait for freshness has a limit of its own."""
    token = await app.execute(Plant(trees=ROWS))
    rows = await app.query(Trees(), after=token, limits=QueryLimits(seconds=0.5))
    assert len(rows) == ROWS


async def test_who_cancels_a_query_stops_it(app: Application, store_url: str, lingering: Lingering) -> None:
    """Nothing is left of it in the store, and its snapshot is free."""
    for _ in range(SNAPSHOTS_MAX + 1):
        how = "rows" if store_url == "memory:" else "sql"
        asking = asyncio.create_task(app.query(Linger(how=how)))
        await lingering.begun.wait()
        lingering.begun.clear()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert await shown(app) == ROWS


# ── over HTTP ────────────────────────────────────────────────────────────────


async def _asked(app: Application, path: str, **headers: str) -> Any:
    transport = httpx2.ASGITransport(http_app(app))
    async with httpx2.AsyncClient(transport=transport, base_url="http://forest") as client:
        return await client.get(f"/queries/{path}", headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_over_http_each_limit_is_a_problem_of_its_own(app: Application) -> None:
    """422 for what fails again, 503 for what may not; the header asks for less time, and not for more."""
    app._way._declared = {Trees: QueryLimits(rows=5), Linger: QueryLimits(seconds=0.02)}
    reply = await _asked(app, "Trees", query_timeout="3")
    assert reply.status_code == 422
    assert reply.json() == {
        "type": "urn:diptych:problem:query-too-costly",
        "title": "This asks for more rows than it may",
        "status": 422,
        "detail": "Ask for a page of it, or narrow it; asked as it is it fails again",
        "query": "Trees",
        "rows": 5,
    }
    reply = await _asked(app, "Linger?how=beside", query_timeout="3")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "60")
    assert (reply.json()["type"], reply.json()["seconds"]) == ("urn:diptych:problem:query-timed-out", 0.02)
    app._way._declared = {Linger: QueryLimits(seconds=60)}
    reply = await _asked(app, "Linger?how=beside", query_timeout="1")
    assert (reply.status_code, reply.json()["seconds"]) == (503, 1)


async def test_over_http_limits_that_are_none_are_refused() -> None:
    """Misspelt, they would not hold."""
    async with Application(forest(), store="memory:") as app:
        for wrong in ("", "0", "-1", "0.5", "61", "05", "5, 6", "5s"):
            reply = await _asked(app, "Trees", query_timeout=wrong)
            assert (reply.status_code, reply.json()["header"]) == (400, "Query-Timeout")


async def test_over_http_lines_and_live_queries_have_limits(app: Application) -> None:
    """Lines are refused before they begin; a live query takes no limits from its caller."""
    app._way._declared = {Trees: QueryLimits(rows=5)}
    reply = await _asked(app, "Trees", query_timeout="5", accept="application/x-ndjson")
    assert (reply.status_code, reply.json()["type"]) == (422, "urn:diptych:problem:query-too-costly")
    reply = await _asked(app, "Trees", query_timeout="5", accept="text/event-stream")
    assert (reply.status_code, reply.json()["header"]) == (400, "Query-Timeout")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_over_http_a_client_that_goes_away_stops_its_query(
    app: Application, lingering: Lingering, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is answered, and the handler has ended."""
    monkeypatch.setattr(client_watch, "CLIENT_LOOK_S", 0)
    path, headers = "/queries/Linger?how=beside", {"content-type": "application/json"}
    asking = Streamed(http_app(app), path, headers, method, b'{"how":"beside"}' if method == "POST" else b"")
    await lingering.begun.wait()
    asking.gone.set()
    await asyncio.wait((asking.serving,), timeout=10)
    assert asking.serving.done()
    assert lingering.ended.is_set()
    assert asking.sent.empty()


# ── what cannot be ───────────────────────────────────────────────────────────


def test_limits_that_cannot_be_are_refused_where_they_are_stated() -> None:
    """By a caller as a message that is wrong, by an author as a mistake in the code."""
    for wrong in ({"seconds": 0}, {"seconds": -1}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"rows": 0}):
        with pytest.raises(InvalidMessage, match=next(iter(wrong))):
            QueryLimits(**wrong)
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            limited(**wrong)
    with pytest.raises(ConfigurationError, match="says nothing"):
        limited()
    with pytest.raises(ConfigurationError, match="HANDLER_S_MAX"):
        limited(seconds=HANDLER_S_MAX + 1)
    with pytest.raises(ConfigurationError, match="query_limits"):
        Application(forest(), query_limits=QueryLimits(seconds=HANDLER_S_MAX + 1))
    with pytest.raises(ConfigurationError, match="class of a query"):
        limited(rows=5)(Tree)


async def test_limits_stand_where_they_are_heard() -> None:
    """On a handler of commands, or a projection, they would limit nothing."""
    for kind in ("command_handler", "projection"):
        context = BoundedContext("misplaced")

        def plant(command: Plant) -> Planted:
            return Planted(trees=command.trees)

        def grown(event: Planted) -> Tree:
            return Tree(tree=event.trees, height=1)

        context.command_handler(limited(rows=5)(plant) if kind == "command_handler" else plant)
        context.projection(limited(rows=5)(grown) if kind == "projection" else grown)
        with pytest.raises(ConfigurationError, match=r"@limited is for queries"):
            await Application(context).open()
