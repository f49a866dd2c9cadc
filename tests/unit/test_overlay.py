"""Answers that are fresh without a wait: what rows lack of the history is folded onto them (rule 36, G7)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from diptych import (
    Answer,
    Application,
    BoundedContext,
    Command,
    Event,
    EventContext,
    ExpiresAt,
    Identity,
    Indexed,
    Key,
    Query,
    Reader,
    ReadModel,
    Searchable,
    SyncApplication,
    Untagged,
    replace,
)
from diptych.errors import Blocked, CannotOverlay, InvalidMessage, NotFresh
from diptych.event_store.event_store import EventLog
from diptych.read_side import overlay
from diptych.testing import InMemoryApplication, ManualClock
from tests.renamed_bank import MAIN, STORED, BranchId, Moved, bank, store_as_older_code
from tests.tenants import Places

pytestmark = pytest.mark.anyio


class BookId(Identity): ...


class Shelf(Identity): ...


class Put(Command):
    book: BookId
    shelf: str = "a"
    title: str = "Emma"


class Burn(Command):
    book: BookId


class PutThere(Event):
    book: BookId
    shelf: Untagged[Shelf]
    title: str


class Burnt(Event):
    book: BookId


class Book(ReadModel):
    book: Key[BookId]
    title: Searchable[str] = ""
    shelf: Indexed[str] = ""
    moves: Indexed[int] = 0


class Shelved(ReadModel):
    shelf: Key[Shelf]
    books: int = 0


class News(ReadModel):
    book: Key[BookId]
    until: ExpiresAt[datetime]


class BookOf(Query[Book | None]):
    book: BookId


class BooksOn(Query[list[Book]]):
    shelf: str


class NewsOf(Query[News | None]):
    book: BookId


class ShelfOf(Query[Shelved | None]):
    shelf: Shelf


class Overview(Query[tuple[int, int]]):
    """Books, and shelves."""


class Titled(Query[list[Book]]):
    text: str


class Titles(Query[list[str]]): ...


class Least(Query[Book]):
    """Moved least often."""


class TitleRow(msgspec.Struct):
    title: str


library = BoundedContext("library")
DAY = timedelta(days=1)
EMMA, IVANHOE = BookId("emma"), BookId("ivanhoe")


@library.command_handler
def put(command: Put) -> PutThere:
    return PutThere(book=command.book, shelf=Shelf(command.shelf), title=command.title)


@library.command_handler
def burn(command: Burn) -> Burnt:
    return Burnt(book=command.book)


@library.projection
def book(row: Book, event: PutThere) -> Book:
    if event.title == "poison":
        raise ValueError("poisoned")
    return replace(row, title=event.title, shelf=event.shelf, moves=row.moves + 1)


@library.projection
def book_gone(row: Book | None, event: Burnt) -> Book | None:
    return None


@library.projection
def shelved(row: Shelved, event: PutThere) -> Shelved:
    return replace(row, books=row.books + 1)


@library.projection
def news(event: PutThere, context: EventContext) -> News:
    return News(book=event.book, until=context.recorded_at + DAY)


@library.query_handler
async def overview(query: Overview, read: Reader) -> tuple[int, int]:
    return await read.count(Book), len(await read.find(Shelved))


@library.query_handler
async def least(query: Least, read: Reader) -> Book:
    (found,) = await read.find(Book, order_by="moves", limit=1)
    return found


@library.query_handler
async def titled(query: Titled, read: Reader) -> list[Book]:
    return await read.search(Book, query.text)


@library.query_handler
async def titles(query: Titles, read: Reader) -> list[str]:
    rows = await read.sql(TitleRow, "SELECT title FROM library_book ORDER BY title", touches=[Book])
    return [row.title for row in rows]


@asynccontextmanager
async def unprojected(store_url: str, **settings: Any) -> AsyncGenerator[Application]:
    """A library whose rows nobody moves on."""
    async with Application(library, store=store_url, projecting=False, **settings) as app:
        yield app


async def project(app: Application) -> None:
    """Move the rows on to where the history is, once."""
    projector = app.partition().projector
    while await projector.advance(projector.slices):
        pass


async def overlaid(app: Application, query: Query[Any]) -> Answer[Any]:
    return await app.answer(query, freshness="overlay", wait_s=0)


async def test_it_shows_what_nobody_has_projected(store_url: str) -> None:
    """By key, by filter and in a handler; its token is that of the last event, and later answers show as much."""
    async with unprojected(store_url) as app:
        await app.execute(Put(book=EMMA))
        await project(app)
        await app.execute(Put(book=EMMA, shelf="b"))
        last = await app.execute(Put(book=IVANHOE, shelf="b", title="Ivanhoe"))
        assert (await app.answer(BookOf(book=EMMA))).value == Book(book=EMMA, title="Emma", shelf="a", moves=1)
        with pytest.raises(NotFresh):
            await app.query(BookOf(book=EMMA), after=last, wait_s=0)
        emma = Book(book=EMMA, title="Emma", shelf="b", moves=2)
        ivanhoe = Book(book=IVANHOE, title="Ivanhoe", shelf="b", moves=1)
        answers: list[tuple[Query[Any], Any]] = [
            (BookOf(book=EMMA), emma),
            (BookOf(book=BookId("waverley")), None),
            (BooksOn(shelf="b"), [emma, ivanhoe]),
            (BooksOn(shelf="a"), []),
            (ShelfOf(shelf=Shelf("b")), Shelved(shelf=Shelf("b"), books=2)),
            (Overview(), (2, 2)),
        ]
        for query, value in answers:
            found = await overlaid(app, query)
            assert (found.value, found.token, found.incomplete) == (value, last.token, False)
        assert (await app.answer(BookOf(book=EMMA))).value == replace(emma, shelf="a", moves=1), "nothing was written"
        await app.execute(Burn(book=EMMA))
        assert (await overlaid(app, BookOf(book=EMMA))).value is None
        assert (await overlaid(app, BooksOn(shelf="b"))).value == [ivanhoe]
        assert (await overlaid(app, Overview())).value == (1, 2)
        await project(app)
        assert (await app.query(Overview())) == (1, 2)


async def test_what_goes_behind_a_limit_lets_others_in(store_url: str) -> None:
    """Rows that were not among the first are, once those have changed."""
    async with unprojected(store_url) as app:
        for book in (EMMA, IVANHOE):
            await app.execute(Put(book=book))
        await project(app)
        assert (await overlaid(app, Least())).value.book == EMMA
        await app.execute(Put(book=EMMA))
        assert (await overlaid(app, Least())).value.book == IVANHOE


async def test_rows_that_lack_nothing_are_as_they_are(store_url: str) -> None:
    """Words and SQL included, which the store alone can find."""
    async with unprojected(store_url) as app:
        await app.execute(Put(book=EMMA))
        await project(app)
        assert [row.book for row in (await overlaid(app, Titled(text="emm"))).value] == [EMMA]
        if not store_url.startswith("memory"):
            assert (await overlaid(app, Titles())).value == ["Emma"]
        await app.execute(Put(book=IVANHOE))
        for query in (Titled(text="emm"), Titles()):
            with pytest.raises(CannotOverlay, match=r"what Book lacks .* rows as they are stored; ask with .*latest"):
                await overlaid(app, query)


async def test_a_key_that_tags_its_events_is_quick_behind_a_long_tail(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all other reads the tail is folded by type, up to its limit."""
    monkeypatch.setattr(overlay, "TAIL_EVENTS_MAX", 3)
    async with unprojected(store_url) as app:
        for number in range(4):
            await app.execute(Put(book=BookId(f"b{number}")))
        assert (await overlaid(app, BookOf(book=BookId("b3")))).value.moves == 1
        for query in (BooksOn(shelf="a"), ShelfOf(shelf=Shelf("a")), Overview()):
            with pytest.raises(CannotOverlay, match="more than TAIL_EVENTS_MAX=3 events"):
                await overlaid(app, query)
        await project(app)
        assert (await overlaid(app, Overview())).value == (4, 1)


async def test_events_with_former_tags_are_found_by_key(store_url: str) -> None:
    """Older code tags them otherwise; they are the row's all the same."""
    context = bank()

    class Moves(ReadModel):
        branch: Key[BranchId]
        times: int = 0

    class MovesOf(Query[Moves | None]):
        branch: BranchId

    @context.projection
    def moves(row: Moves, event: Moved) -> Moves:
        return replace(row, times=row.times + 1)

    async with Application(context, store=store_url, projecting=False) as app:
        for names in STORED:
            await store_as_older_code(app.partition(), names)
        assert (await overlaid(app, MovesOf(branch=MAIN))).value == Moves(branch=MAIN, times=len(STORED))


async def test_many_keys_are_folded_by_type(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of tags, one read of all events is less; either way the rows are the same."""
    several = BoundedContext("several", modules=[])

    class Many(Query[int]):
        books: tuple[str, ...]

    @several.query_handler
    async def many(query: Many, read: Reader) -> int:
        found = await read.get_many(Book, query.books)
        again = await read.get_many(Book, query.books[:1])
        return sum(row.moves for row in found.values()) + 10 * len(again)

    async with Application(library, several, store=store_url, projecting=False) as app:
        for number in range(4):
            await app.execute(Put(book=BookId(f"b{number}")))
        for limit in (4, 3):
            monkeypatch.setattr(overlay, "KEYS_BY_TAG_MAX", limit)
            assert (await overlaid(app, Many(books=("b0", "b1", "b2", "none")))).value == 13


async def test_what_cannot_be_folded_is_not_shown(store_url: str) -> None:
    """An event that the fold chokes on, ahead of the projector or behind it; other keys are shown."""
    async with unprojected(store_url) as app:
        await app.execute(Put(book=EMMA))
        await app.execute(Put(book=EMMA, title="poison"))
        await app.execute(Put(book=IVANHOE))
        with pytest.raises(CannotOverlay, match="poisoned"):
            await overlaid(app, BookOf(book=EMMA))
        assert (await overlaid(app, BookOf(book=IVANHOE))).value is not None
        await project(app)
        await app.execute(Put(book=EMMA))
        await app.execute(Put(book=IVANHOE))
        for query in (BookOf(book=EMMA), BooksOn(shelf="a")):
            with pytest.raises(Blocked, match="poisoned"):
                await overlaid(app, query)
        assert (await overlaid(app, BookOf(book=IVANHOE))).value.moves == 2


async def test_rows_expire_as_they_will(store_url: str) -> None:
    """By the time of the last event, or by the clock where that is later."""
    clock = ManualClock()
    async with unprojected(store_url, clock=clock) as app:
        await app.execute(Put(book=EMMA))
        assert (await overlaid(app, NewsOf(book=EMMA))).value == News(book=EMMA, until=clock.now() + DAY)
        await project(app)
        clock.advance(DAY)
        await app.execute(Put(book=IVANHOE))
        assert (await overlaid(app, NewsOf(book=EMMA))).value is None
        assert (await overlaid(app, NewsOf(book=IVANHOE))).value is not None


async def test_the_tail_is_read_once_for_a_key_and_not_at_all_where_nothing_is_lacking(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is fresh already costs a look at the head."""
    async with unprojected(store_url) as app:
        await app.execute(Put(book=EMMA))
        reads = 0
        log: EventLog = app.partition().log
        real = log.read

        async def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal reads
            reads += 1
            return await real(*arguments, **named)

        monkeypatch.setattr(log, "read", counted)
        await overlaid(app, BookOf(book=EMMA))
        assert reads == 1
        monkeypatch.undo()
        await project(app)
        monkeypatch.setattr(log, "read", counted)
        await overlaid(app, BookOf(book=EMMA))
        assert reads == 1


async def test_it_is_one_of_the_ways_to_be_fresh(store_url: str) -> None:
    """With a token, or an age, one of them is meant."""
    async with unprojected(store_url) as app:
        receipt = await app.execute(Put(book=EMMA))
        with pytest.raises(InvalidMessage, match="give one of them"):
            await app.answer(BookOf(book=EMMA), after=receipt, freshness="overlay")


async def test_in_tests_it_is_one_of_the_ways_as_well() -> None:
    """What an application refuses, the one for tests refuses too, though it shows everything by default."""
    async with InMemoryApplication(library) as app:
        receipt = await app.execute(Put(book=EMMA))
        assert await app.query(BookOf(book=EMMA), freshness="overlay") == await app.query(BookOf(book=EMMA))
        with pytest.raises(InvalidMessage, match="give one of them"):
            await app.answer(BookOf(book=EMMA), after=receipt, freshness="overlay")


def test_it_works_without_an_event_loop() -> None:
    """A synchronous application has it too."""
    with SyncApplication(library, store="memory:", projecting=False) as app:
        app.execute(Put(book=EMMA))
        row = app.query(BookOf(book=EMMA), freshness="overlay")
        assert row is not None
        assert row.moves == 1


async def test_it_is_overlaid_in_each_partition(places: Places) -> None:
    """An answer from several histories shows each up to its end."""
    other = BoundedContext("other")

    class Lend(Command):
        book: BookId

    class Lent(Event):
        book: BookId

    class Loans(ReadModel):
        book: Key[BookId]
        times: int = 0

    class Known(Query[tuple[int, int]]):
        book: BookId

    @other.command_handler
    def lend(command: Lend) -> Lent:
        return Lent(book=command.book)

    @other.projection
    def loans(row: Loans, event: Lent) -> Loans:
        return replace(row, times=row.times + 1)

    @other.query_handler
    async def known(query: Known, read: Reader) -> tuple[int, int]:
        book, lent = await read.get(Book, query.book), await read.get(Loans, query.book)
        return book.moves if book else 0, lent.times if lent else 0

    store = places("library", "other")
    async with Application(library, other, store=store, partition_by="context", projecting=False) as app:
        put = await app.execute(Put(book=EMMA))
        lent = await app.execute(Lend(book=EMMA))
        found = await overlaid(app, Known(book=EMMA))
        assert found.value == (1, 1)
        assert {token.high.position for token in found.shows} == {put.position, lent.position}
