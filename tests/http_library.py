"""A lending library, as the tests of the HTTP entry point see it: every kind of field, answer and failure once."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandContext,
    DecisionModel,
    Event,
    Identity,
    Indexed,
    Key,
    Page,
    Query,
    Reader,
    ReadModel,
    Rejected,
    Value,
)

library = BoundedContext("library")


class BookId(Identity): ...


class ReaderId(Identity): ...


class Shelf(enum.Enum):
    FICTION = "fiction"
    SCIENCE = "science"


class Remark(Value):
    page: Annotated[int, msgspec.Meta(ge=1)]
    text: str = ""


class Lend(Command):
    """Lend a book to a reader.

    A book is lent to one reader at a time.
    """

    book: BookId
    reader: ReaderId
    fee: Decimal = Decimal(0)
    until: date | None = None
    remarks: tuple[Remark, ...] = ()


class Lent(Event):
    book: BookId
    reader: ReaderId
    fee: Decimal = Decimal(0)


class GiveBack(Command):
    """Give a book back."""

    book: BookId


class GivenBack(Event):
    book: BookId


class Tear(Command):
    """Tear a book: an event that the projection cannot fold."""

    book: BookId


class Torn(Event):
    book: BookId


class Loan(DecisionModel[BookId]):
    reader: ReaderId | None = None

    def evolve(self, event: Lent | GivenBack) -> Loan:
        return Loan(reader=event.reader if isinstance(event, Lent) else None)


@library.command_handler
def lend(command: Lend, loan: Loan) -> Lent:
    if loan.reader is not None:
        raise Rejected("lent-already", reader=loan.reader, fee=command.fee)
    return Lent(book=command.book, reader=command.reader, fee=command.fee)


@library.command_handler
def give_back(command: GiveBack) -> GivenBack:
    return GivenBack(book=command.book)


@library.command_handler
def tear(command: Tear) -> Torn:
    return Torn(book=command.book)


class Outside:
    """What handlers meet outside: raises what a test wants, or waits until a test lets it go on."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.seen: list[CommandContext] = []
        self.on_entered: Callable[[], None] = lambda: None

    def meet(self, context: CommandContext) -> None:
        self.seen.append(context)
        if self.failure is not None:
            raise self.failure

    async def pass_through(self) -> None:
        self.entered.set()
        self.on_entered()
        await self.let_go.wait()


class Call(Command):
    """Call the outside."""

    number: int = 0


class Order(Command):
    """Order a book, which takes until the outside answers."""

    book: BookId


class Ordered(Event):
    book: BookId


@library.command_handler
async def call(command: Call, outside: Outside, context: CommandContext) -> None:
    outside.meet(context)


@library.command_handler
async def order(command: Order, outside: Outside) -> Ordered:
    await outside.pass_through()
    return Ordered(book=command.book)


class Book(ReadModel):
    """A book and who has it."""

    book: Key[BookId]
    reader: Indexed[ReaderId | None] = None
    fees: Decimal = Decimal(0)
    loans: int = 0


@library.projection
def books(row: Book, event: Lent | GivenBack | Torn) -> Book:
    if isinstance(event, Lent):
        return Book(book=row.book, reader=event.reader, fees=row.fees + event.fee, loans=row.loans + 1)
    if isinstance(event, GivenBack):
        return Book(book=row.book, fees=row.fees, loans=row.loans)
    raise ValueError("torn")


class BookOf(Query[Book | None]):
    """The book of that name."""

    book: BookId


class LentTo(Query[list[Book]]):
    """The books that a reader has."""

    reader: ReaderId


class Charged(Query[list[Book]]):
    """The books with these fees."""

    fees: Decimal


class Shelved(Query[Page[Book]]):
    """All books, a page at a time."""

    cursor: str | None = None


@library.query_handler
async def shelved(query: Shelved, read: Reader) -> Page[Book]:
    return await read.page(Book, cursor=query.cursor)


class Asked(Value):
    """What was asked, as it was understood."""

    shelf: Shelf
    limit: int
    exact: bool
    ratio: float | None
    fees: tuple[Decimal, ...]
    marks: tuple[str, ...]
    since: datetime | None
    on: date | None
    serial: UUID | None
    size: int | str | None
    kind: str
    data: bytes
    lasting: timedelta | None


class Ask(Query[Asked]):
    """Say back what was asked."""

    shelf: Shelf
    limit: Annotated[int, msgspec.Meta(ge=1, le=100, description="How many")] = 10
    exact: bool = False
    ratio: float | None = None
    fees: tuple[Decimal, ...] = ()
    marks: Annotated[tuple[str, ...], msgspec.Meta(max_length=3)]
    since: datetime | None = None
    on: date | None = None
    serial: UUID | None = None
    size: int | str | None = None
    kind: Literal["paper", "film"] = "paper"
    data: bytes = b""
    lasting: timedelta | None = None


@library.query_handler
async def ask(query: Ask, read: Reader) -> Asked:
    return Asked(**{name: getattr(query, name) for name in Asked.__struct_fields__})


class Count(Query[int]):
    """How often remarks like these were made."""

    remarks: tuple[Remark, ...]
    by_reader: Mapping[ReaderId, int] = {}


@library.query_handler
async def count(query: Count, read: Reader) -> int:
    return len(query.remarks) + len(query.by_reader)


class Knock(Query[str]):
    """Ask the outside."""


@library.query_handler
async def knock(query: Knock, outside: Outside) -> str:
    if outside.failure is not None:
        raise outside.failure
    return "come in"


def open_library(outside: Outside | None = None, store: str = "memory:") -> Application:
    """The application of the library, not open yet."""
    return Application(library, store=store, services={Outside: outside or Outside()})
