"""Queries without a handler: conditions, orders and pages declared on the class; and fields chosen of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated, Any, Literal

import httpx2
import msgspec
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
    at_least,
    one_of,
    starts_with,
)
from diptych.application.registration import event_types, projections
from diptych.entrypoints.http import http_app
from diptych.errors import InvalidMessage
from diptych.read_side.chosen_fields import ChosenFields
from diptych.read_side.conditions import all_of, at_most, less_than
from diptych.read_side.declared_queries import Listing, Where

pytestmark = pytest.mark.anyio


class BookId(Identity): ...


class AddBook(Command):
    book: BookId
    title: str
    country: str
    price: Decimal


class BookAdded(Event):
    book: BookId
    title: str
    country: str
    price: Decimal


class Book(ReadModel):
    book: Key[BookId]
    title: str
    country: Indexed[str]
    price: Decimal
    marks: tuple[str, ...] = ()


class BooksLike(Query[list[Book]]):
    country: str | None = None
    countries: Annotated[tuple[str, ...] | None, Where(one_of, "country")] = None
    title: Annotated[str | None, Where(starts_with)] = None
    cheapest: Annotated[Decimal | None, Where(at_least, "price")] = None
    dearest: Annotated[Decimal | None, Where(at_most, "price")] = None
    order_by: Literal["title", "-price,title"] | None = None


class TopBooks(Query[list[Book]]):
    order_by: Literal["title", "-price"] = "-price"
    limit: Annotated[int, Meta(ge=1, le=10)] = 2


class Catalogue(Query[Page[Book]]):
    country: str | None = None
    order_by: Literal["title", "-price"] = "title"
    limit: Annotated[int, Meta(ge=1, le=10)] = 2
    cursor: str | None = None


class BookOf(Query[Book | None]):
    book: BookId


class CountBetween(Query[int]): ...


class Titles(Query[list[str]]): ...


def library() -> BoundedContext:
    context = BoundedContext("library")

    @context.command_handler
    def add(command: AddBook) -> BookAdded:
        return BookAdded(book=command.book, title=command.title, country=command.country, price=command.price)

    @context.projection
    def book(event: BookAdded) -> Book:
        return Book(book=event.book, title=event.title, country=event.country, price=event.price)

    @context.query_handler
    async def between(query: CountBetween, read: Reader) -> int:
        return await read.count(Book, price=all_of(at_least(Decimal(3)), less_than(Decimal(10))))

    @context.query_handler
    async def titles(query: Titles, read: Reader) -> list[str]:
        return [row.title for row in await read.find(Book)]

    return context


BOOKS = [
    ("b1", "The Trial", "CZ", "8.5"),
    ("b2", "Candide", "FR", "10"),
    ("b3", "Emma", "GB", "9.99"),
    ("b4", "Zadig", "FR", "8.5"),
    ("b5", "The Waves", "GB", "2"),
]


@pytest.fixture
async def app(store_url: str) -> AsyncIterator[Application]:
    async with Application(library(), store=store_url) as opened:
        for book, title, country, price in BOOKS:
            await opened.execute(AddBook(book=BookId(book), title=title, country=country, price=Decimal(price)))
        await opened.query(Titles(), freshness="latest")
        yield opened


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://library") as made:
        yield made


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (BooksLike(), "b1 b2 b3 b4 b5"),
        (BooksLike(country="FR"), "b2 b4"),
        (BooksLike(countries=("CZ", "GB")), "b1 b3 b5"),
        (BooksLike(countries=()), ""),
        (BooksLike(title="The "), "b1 b5"),
        (BooksLike(cheapest=Decimal("8.5")), "b1 b2 b3 b4"),
        (BooksLike(cheapest=Decimal("8.5"), dearest=Decimal("9.99")), "b1 b3 b4"),
        (BooksLike(country="FR", countries=("FR", "GB"), dearest=Decimal(9)), "b4"),
        (BooksLike(order_by="title"), "b2 b3 b1 b5 b4"),
        (BooksLike(order_by="-price,title", cheapest=Decimal(8)), "b2 b3 b1 b4"),
        (TopBooks(), "b2 b3"),
        (TopBooks(limit=1, order_by="title"), "b2"),
    ],
)
async def test_a_list_is_what_its_fields_ask_for(app: Application, query: Query[list[Book]], found: str) -> None:
    """Every condition that is asked holds, those of one column together; in the order that is asked for."""
    assert [row.book for row in await app.query(query)] == found.split()


async def test_several_conditions_on_one_column_are_for_handlers_too(app: Application) -> None:
    """`all_of` says them as one value."""
    assert await app.query(CountBetween()) == 3


async def test_pages_go_on_by_key(app: Application) -> None:
    """Without a handler: each row once, also where the column that orders is the same in two."""
    found: list[str] = []
    query: Catalogue | None = Catalogue(order_by="-price")
    while query is not None:
        page = await app.query(query)
        assert len(page.items) <= 2
        found += [row.book for row in page.items]
        query = None if page.next is None else Catalogue(order_by="-price", cursor=page.next)
    assert found == ["b2", "b3", "b1", "b4", "b5"]
    page = await app.query(Catalogue())
    with pytest.raises(InvalidMessage, match="no cursor of this query"):
        await app.query(Catalogue(order_by="-price", cursor=page.next))


async def test_links_lead_from_page_to_page(client: httpx2.AsyncClient) -> None:
    """`Link: rel="next"` is the same request from the next cursor on, whatever else it says; the last page has none."""
    url, found = "/queries/Catalogue?order_by=-price&limit=2&fields=book%2Cprice", []
    for _ in BOOKS:
        response = await client.get(url)
        assert response.status_code == 200, response.text
        found += response.json()["items"]
        if "next" not in response.links:
            break
        assert response.json()["next"]
        head = await client.head(url)
        assert head.headers["link"] == response.headers["link"]
        url = str(response.url.join(response.links["next"]["url"]))
    assert [row["book"] for row in found] == ["b2", "b3", "b1", "b4", "b5"]
    assert found[0] == {"book": "b2", "price": "10"}
    posted = await client.post("/queries/Catalogue", json={"limit": 1})
    assert posted.json()["next"]
    assert "link" not in posted.headers


async def test_fields_are_chosen(client: httpx2.AsyncClient) -> None:
    """Of one row, a list or a page, over GET and POST; in the order of the class, under an ETag of their own."""
    whole = await client.get("/queries/BookOf?book=b1")
    one = await client.get("/queries/BookOf?book=b1&fields=title,book")
    assert one.content == b'{"book":"b1","title":"The Trial"}'
    assert one.headers["etag"] != whole.headers["etag"]
    assert (await client.get("/queries/BookOf?book=none&fields=title")).content == b"null"
    assert (await client.get("/queries/TopBooks?fields=price&fields=title")).json()[0] == {
        "title": "Candide",
        "price": "10",
    }
    posted = await client.post("/queries/TopBooks?fields=book", json={"limit": 1})
    assert posted.json() == [{"book": "b2"}]


@pytest.mark.parametrize("fields", ["titel", "title,", "", "title,price,secret"])
async def test_fields_that_there_are_none_of_are_told(client: httpx2.AsyncClient, fields: str) -> None:
    """All at once, with those that there are, whatever the answer would be."""
    for response in (
        await client.get(f"/queries/BookOf?book=none&fields={fields}"),
        await client.post(f"/queries/BookOf?fields={fields}", json={"book": "none"}),
    ):
        assert response.status_code == 422, response.text
        assert response.json()["type"] == "urn:diptych:problem:invalid-message"
        (error,) = response.json()["errors"]
        assert error["path"] == "$.fields"
        assert "is no field of it; there are book, title, country, price, marks" in error["message"]
    untold = await client.get("/queries/Titles?fields=title")
    assert untold.status_code == 422, "an answer that has no fields has no such parameter"


async def test_fields_are_chosen_in_python_alike(app: Application) -> None:
    """Checked against the query's type, before anything is asked."""
    chosen = ChosenFields(Catalogue, ["title", "price"])
    page = chosen.of(await app.query(Catalogue(limit=1)))
    assert page == Page([{"title": "Candide", "price": Decimal(10)}], page.next)
    assert ChosenFields(BookOf, ["book"]).of(None) is None
    for query, names in ((BookOf, ["isbn"]), (BookOf, []), (Titles, ["title"]), (CountBetween, ["real"])):
        with pytest.raises(InvalidMessage):
            ChosenFields(query, names)


@pytest.mark.parametrize(
    ("field", "annotation", "told"),
    [
        ("isbn", str | None, "is no column of Book"),
        ("price", int | None, "holds another type"),
        ("marks", tuple[str, ...] | None, "is kept as a document"),
        ("low", Annotated[int | None, Where(at_least, "title")], "holds another type"),
        ("low", Annotated[Decimal | None, Where(at_least)], "is no column of Book"),
        ("some", Annotated[str | None, Where(one_of, "country")], r"its type is tuple\[..., ...\]"),
        ("start", Annotated[Decimal | None, Where(starts_with, "price")], "price is no text"),
        ("two", Annotated[str | None, Where(at_least, "title"), Where(at_most, "title")], "several Where"),
        ("order_by", str | None, "which orders may be asked for"),
        ("order_by", Literal["isbn"], "offers 'isbn'"),
        ("order_by", Literal["-title", "marks"], "offers 'marks'"),
        ("limit", int, "says how many rows"),
        ("limit", Annotated[int, Meta(ge=0, le=10)], "says how many rows"),
        ("limit", Annotated[int, Meta(ge=1, le=100_000)], "says how many rows"),
    ],
    ids=map(str, range(14)),
)
def test_what_does_not_fit_is_told_at_start(field: str, annotation: Any, told: str) -> None:
    """By the class, the field, and what to write."""
    context = library()
    (projection,) = projections([context], event_types([context]))
    query = msgspec.defstruct("Wrong", [(field, annotation, None)])  # no Query: every application would meet it
    with pytest.raises(ConfigurationError, match=f"Wrong has no handler, and its field '{field}' .*{told}"):
        Listing(query, projection.form, paged=False)
