"""What the API answers with, as the checkers see it."""

from __future__ import annotations

from typing import Any, assert_type

from diptych import (
    Answer,
    Application,
    Command,
    Event,
    Identity,
    Page,
    Query,
    Reader,
    ReadModel,
    Receipt,
    SyncApplication,
    Value,
    replace,
)
from diptych.testing import InMemoryApplication, ManualClock, Outcome, Scenario, scenario
from tests.typing.first_program import Course, CourseId, Enrol, Enrolled, Seats, SeatsOf, enrol, school, seats
from tests.typing.hard_cases import (
    Best,
    ProductId,
    ProductSales,
    SalesOf,
    Search,
    Total,
    UnitsSold,
    checkout,
    transfer,
)

PYTHON = CourseId("python")


async def asked(app: Application) -> None:
    """A query's answer is of the type that it declares."""
    assert_type(await app.query(SeatsOf(course=PYTHON)), Seats | None)
    assert_type(await app.query(SalesOf(product=ProductId("pen"))), ProductSales | None)
    assert_type(await app.query(Search(text="pen")), list[ProductSales])
    assert_type(await app.query(Best()), Page[ProductSales])
    assert_type((await app.query(Best())).items, list[ProductSales])
    assert_type(await app.query(UnitsSold(), freshness="latest"), Total)
    answer = await app.answer(SeatsOf(course=PYTHON))
    assert_type(answer, Answer[Seats | None])
    assert_type(answer.value, Seats | None)
    assert_type(answer.token, str)
    assert_type(await app.query(UnitsSold(), after=answer), Total)


async def executed(app: Application) -> None:
    """A command gives a receipt."""
    receipt = await app.execute(Enrol(course=PYTHON), command_id="1")
    assert_type(receipt, Receipt)
    assert_type(receipt.command_id, str)
    assert_type(receipt.position, int)
    assert_type(receipt.token, str)
    assert_type(receipt.events, tuple[Event, ...])
    await app.query(SeatsOf(course=PYTHON), after=receipt)


def blocking(app: SyncApplication) -> None:
    """The same without a loop."""
    assert_type(app.execute(Enrol(course=PYTHON)), Receipt)
    assert_type(app.query(SeatsOf(course=PYTHON)), Seats | None)
    assert_type(app.answer(UnitsSold()), Answer[Total])


async def read_with(read: Reader) -> None:
    """A reader gives rows of the model that it is asked for."""
    assert_type(await read.get(Seats, PYTHON), Seats | None)
    assert_type(await read.get_many(Seats, [PYTHON]), dict[Any, Seats])
    assert_type(await read.find(Seats, taken=3), list[Seats])
    assert_type(await read.page(Seats), Page[Seats])
    assert_type(await read.count(Seats), int)
    assert_type(await read.search(ProductSales, "pen"), list[ProductSales])
    assert_type(await read.sql(Total, "select 1 as units", touches=[Seats]), list[Total])


def declared() -> None:
    """Decorated functions can still be called, in unit tests without any application."""
    assert_type(enrol(Enrol(course=PYTHON), Course()), Enrolled)
    assert_type(seats(Seats(course=PYTHON), Enrolled(course=PYTHON)), Seats | None)
    assert callable(transfer)
    assert callable(checkout)


def copied() -> None:
    """A copy is of the same type, and fields are of theirs."""
    assert_type(replace(Seats(course=PYTHON), taken=2), Seats)
    assert_type(Seats(course=PYTHON).course, CourseId)
    assert_type(CourseId.new(), CourseId)


def told() -> None:
    """Scenarios."""
    assert_type(scenario(school), Scenario)
    assert_type(scenario(school, clock=ManualClock()).given(Enrolled(course=PYTHON)), Scenario)
    assert_type(scenario(school).then_row(Seats(course=PYTHON)), Scenario)
    outcome = scenario(school).when(Enrol(course=PYTHON))
    assert_type(outcome, Outcome)
    assert_type(outcome.then(Enrolled(course=PYTHON)), Outcome)
    assert_type(outcome.then_nothing(), Outcome)
    assert_type(outcome.then_rejected("course-full", record=Enrolled(course=PYTHON), taken=30), Outcome)
    assert_type(outcome.then_row(Seats(course=PYTHON)).then_no_row(Seats, PYTHON), Outcome)


async def in_memory() -> None:
    """The whole application in memory."""
    async with InMemoryApplication(school) as app:
        assert_type(app, InMemoryApplication)
        assert_type(app.clock, ManualClock)
        assert_type(await app.query(SeatsOf(course=PYTHON)), Seats | None)
        assert_type(await app.rows(Seats), list[Seats])


def generic(command: Command, query: Query[int], row: ReadModel, value: Value, identity: Identity) -> None:
    """Bases can be named in annotations."""
    assert_type((command, query, row, value), tuple[Command, Query[int], ReadModel, Value])
    text: str = identity
    assert text
