"""What the read side can do, on every store that rows can be kept in: the table of the reference, tried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta

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
    Value,
    at_least,
    replace,
)
from diptych.read_side.declared_queries import Where
from diptych.read_side.rebuild_policy import RebuildPolicy
from tests import valkey_server
from tests.opensearch_server import new_read_store as new_opensearch
from tests.postgres_server import in_thread, new_read_store

pytestmark = pytest.mark.anyio

WAIT_S = 60.0
NO_SQL = {"memory", "valkey", "opensearch"}
NOT_KEPT = {"memory"}


class BookId(Identity): ...


class AuthorId(Identity): ...


class Add(Command):
    book: BookId
    author: AuthorId
    title: str
    price: Decimal


class Rename(Command):
    author: AuthorId
    name: str


class Added(Event):
    book: BookId
    author: AuthorId
    title: str
    price: Decimal


class Renamed(Event):
    author: AuthorId
    name: str


class Book(ReadModel):
    book: Key[BookId]
    title: Searchable[str] = ""
    author: Indexed[AuthorId] = AuthorId("")
    name: str = ""
    price: Indexed[Decimal] = Decimal(0)


class BookOf(Query[Book | None]):
    book: BookId


class Books(Query[list[Book]]):
    author: AuthorId | None = None


class Shelf(Query[Page[Book]]):
    dear: Annotated[Decimal | None, Where(at_least, "price")] = None
    order_by: Literal["-price"] = "-price"
    limit: Annotated[int, Meta(ge=1, le=10)] = 2
    cursor: str | None = None


class Found(Query[list[Book]]):
    words: str


class Total(Value):
    price: Decimal


class Dearest(Query[list[Total]]): ...


class AtOnce(Query[tuple[int, int, int]]): ...


TEA, WAR, ANN = BookId("tea"), BookId("war"), AuthorId("ann")
BOOKS = [
    Add(book=TEA, author=ANN, title="The book of tea", price=Decimal("9.50")),
    Add(book=WAR, author=ANN, title="War, and tea, and peace", price=Decimal("12.00")),
    Add(book=BookId("zen"), author=AuthorId("bob"), title="Zen", price=Decimal("7.25")),
]


def library(factor: int = 1) -> BoundedContext:
    """Prices times a factor, by code of that version."""
    context = BoundedContext("library")

    @context.command_handler
    def add(command: Add) -> Added:
        return Added(book=command.book, author=command.author, title=command.title, price=command.price)

    @context.command_handler
    def rename(command: Rename) -> Renamed:
        return Renamed(author=command.author, name=command.name)

    @context.projection(version=factor)
    def book(event: Added) -> Book:
        return Book(book=event.book, title=event.title, author=event.author, price=event.price * factor)

    @context.projection(version=factor, where="author")
    def named(row: Book, event: Renamed) -> Book:
        return replace(row, name=event.name)

    @context.query_handler
    async def found(query: Found, read: Reader) -> list[Book]:
        return list(await read.search(Book, query.words))

    @context.query_handler
    async def dearest(query: Dearest, read: Reader) -> list[Total]:
        return list(await read.sql(Total, "SELECT max(price) AS price FROM library_book", touches=[Book]))

    @context.query_handler
    async def at_once(query: AtOnce, read: Reader) -> tuple[int, int, int]:
        rows, count, one = await asyncio.gather(read.find(Book), read.count(Book), read.get_many(Book, [TEA]))
        return len(rows), count, len(one)

    return context


@pytest.fixture(params=["memory", "sqlite", "postgres", "duckdb", "valkey", "opensearch"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def opened(kind: str, tmp_path: Path) -> Callable[..., Application]:
    """Makes applications whose events are in one file, and whose rows are in a store of that kind."""
    made = {
        "memory": lambda: "memory:",
        "sqlite": lambda: f"sqlite:{tmp_path}/rows.db",
        "postgres": lambda: in_thread(new_read_store()),
        "duckdb": lambda: f"duckdb:{tmp_path}/rows.duckdb",
        "valkey": valkey_server.new_read_store,
        "opensearch": new_opensearch,
    }
    url = made[kind]()

    def application(factor: int = 1, *, projecting: bool = True) -> Application:
        keeping = RebuildPolicy(keep_s=3_600)
        store = f"sqlite:{tmp_path}/events.db"
        return Application(library(factor), store=store, read_store=url, projecting=projecting, rebuilding=keeping)

    return application


async def test_it_is_asked_in_every_way(kind: str, opened: Callable[..., Application]) -> None:
    """By key, declared, by words, in SQL, several at once, in one handler and by one call, and as a stream."""
    async with asyncio.timeout(WAIT_S), opened() as app:
        for book in BOOKS:
            await app.execute(book)
        named = await app.execute(Rename(author=ANN, name="Ann"))
        tea, all_of_ann = await app.query_many([BookOf(book=TEA), Books(author=ANN)], after=named)
        assert tea == Book(book=TEA, title=BOOKS[0].title, author=ANN, name="Ann", price=Decimal("9.50"))
        assert [(book.book, book.name) for book in all_of_ann] == [(TEA, "Ann"), (WAR, "Ann")]
        page = await app.query(Shelf(dear=Decimal(8)))
        assert [book.book for book in page.items] == [WAR, TEA]
        last = await app.query(Shelf(cursor=(await app.query(Shelf())).next))
        assert ([book.book for book in last.items], last.next) == ([BookId("zen")], None)
        assert {book.book for book in await app.query(Found(words="TEA"))} == {TEA, WAR}
        assert [book.book for book in await app.query(Found(words="pea te"))] == [WAR]
        assert await app.query(AtOnce()) == (3, 3, 1)
        async with app.stream(Books()) as rows:
            assert [row.book async for row in rows] == [TEA, WAR, BookId("zen")]
        if kind in NO_SQL:
            with pytest.raises(ConfigurationError):
                await app.query(Dearest())
        else:
            assert await app.query(Dearest()) == [Total(price=Decimal(12))]


async def test_it_is_fresh_live_and_asked_of_the_past(kind: str, opened: Callable[..., Application]) -> None:
    """An overlay lacks nothing though nobody folds, the past is what it was, and who follows a row hears of it."""
    async with asyncio.timeout(WAIT_S):
        async with opened() as app:
            await app.execute(BOOKS[0])
            await app.projected()
        async with opened(projecting=False) as app:
            receipt = await app.execute(BOOKS[1])
            war = await app.query(BookOf(book=WAR), freshness="overlay")
            assert war is not None
            overlaid = await app.query(Books(author=ANN), freshness="overlay")
            past = await app.query(Books(), as_of=receipt)
            assert [book.book for book in overlaid] == [book.book for book in past] == [TEA, WAR]
            assert await app.query(BookOf(book=TEA), as_of=datetime(2020, 1, 1, tzinfo=UTC)) is None
            history = [change.event async for change in app.partition().row_histories.of(Book, TEA)]
            assert history == ["library.Added"]
        async with opened() as app, aclosing(app.subscribe(BookOf(book=TEA), after=receipt)) as answers:
            names: list[str] = []
            async for answer in answers:
                assert answer.value is not None
                names.append(answer.value.name)
                if len(names) == 3:
                    break
                await app.execute(Rename(author=ANN, name=f"Ann {len(names)}"))
            assert names == ["", "Ann 1", "Ann 2"]


async def test_it_is_built_beside_compared_switched_and_gone_back_from(
    kind: str, opened: Callable[..., Application]
) -> None:
    """Unchanged code changes no row, changed code those that it does; rows in memory are of the code that runs."""
    async with asyncio.timeout(WAIT_S):
        async with opened() as app:
            for book in BOOKS:
                await app.execute(book)
            await app.projected()
            assert (await app.rebuilds.compare("Book")).same
            assert await app.rebuilds.rebuild("Book") == len(BOOKS)
            books = await app.query(Books(), freshness="latest")
            assert len(books) == len(BOOKS)
        async with opened(2, projecting=False) as app:
            found = await app.rebuilds.compare("Book")
            changed = 0 if kind in NOT_KEPT else len(BOOKS)
            assert (found.rows, found.added, found.removed, found.changed) == (len(BOOKS), 0, 0, changed)
            await app.rebuilds.rebuild("Book")
            tea = await app.query(BookOf(book=TEA), freshness="latest", wait_s=WAIT_S)
            assert tea is not None
            assert tea.price == Decimal("19.00")
            await app.rebuilds.back("Book")
        async with opened(projecting=False) as app:
            tea = await app.query(BookOf(book=TEA), freshness="latest", wait_s=WAIT_S)
            assert tea is not None
            assert tea.price == Decimal("9.50")
