"""Wrong programs: every ignored error is one that both checkers have to find, else the ignore is an error itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diptych import (
    Application,
    BoundedContext,
    Command,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Query,
    Reader,
    ReadModel,
    replace,
)
from diptych.testing import scenario
from tests.typing.first_program import Course, CourseId, Enrol, Enrolled, Seats, SeatsOf, enrol
from tests.typing.hard_cases import MonthSales, OrderLine, Sold, lines

wrong = BoundedContext("wrong")


class StudentId(Identity): ...


# ── identities are kept apart ────────────────────────────────────────────────


def identities() -> None:
    Enrol(course=StudentId("ann"))  # type: ignore[arg-type]
    Enrol(course="python")  # type: ignore[arg-type]
    SeatsOf(course=StudentId("ann"))  # type: ignore[arg-type]
    CourseId(7)  # type: ignore[arg-type]


# ── messages ─────────────────────────────────────────────────────────────────


def messages() -> None:
    Enrol(CourseId("python"))  # type: ignore[call-arg]
    Enrol()  # type: ignore[call-arg]
    Enrol(course=CourseId("python"), seat=1)  # type: ignore[call-arg]
    Enrol(course=CourseId("python")).course = CourseId("rust")  # type: ignore[misc]
    Course().taken = 1  # type: ignore[misc]
    Seats(course=CourseId("python"), taken="many")  # type: ignore[arg-type]


# ── the two panels take what is theirs ───────────────────────────────────────


async def panels(app: Application) -> None:
    await app.execute(SeatsOf(course=CourseId("python")))  # type: ignore[arg-type]
    await app.execute(Enrolled(course=CourseId("python")))  # type: ignore[arg-type]
    await app.query(Enrol(course=CourseId("python")))  # type: ignore[arg-type]
    taken: int = await app.query(SeatsOf(course=CourseId("python")))  # type: ignore[arg-type]
    await app.query(SeatsOf(course=CourseId("python")), freshness="soon")  # type: ignore[arg-type]
    print(taken, (await app.query(SeatsOf(course=CourseId("python")))).taken)  # type: ignore[union-attr]


async def readers(read: Reader) -> None:
    await read.get(Enrolled, "python")  # type: ignore[type-var]
    row: Seats = await read.get(Seats, "python")  # type: ignore[assignment]
    print(row)


# ── handlers ─────────────────────────────────────────────────────────────────


@wrong.command_handler  # type: ignore[type-var]
def gives_no_event(command: Enrol) -> int:
    return 1


@wrong.command_handler  # type: ignore[type-var]
def gives_a_command(command: Enrol) -> Iterable[Command]:
    return [command]


@wrong.command_handler  # type: ignore[type-var]
async def gives_a_row(command: Enrol) -> Seats:
    return Seats(course=command.course)


@wrong.query_handler  # type: ignore[arg-type]
def is_not_async(query: SeatsOf, read: Reader) -> None:
    return None


@wrong.query_handler  # type: ignore[type-var]
async def takes_a_command(query: Enrol, read: Reader) -> None:
    return None


@wrong.subscriber  # type: ignore[type-var]
def is_no_coroutine(events: Sequence[tuple[Enrolled, EventContext]]) -> None: ...


# ── projections ──────────────────────────────────────────────────────────────


@wrong.projection  # type: ignore[arg-type, misc]
def gives_another_model(row: Seats, event: Enrolled) -> MonthSales:
    return MonthSales(month="")


@wrong.projection  # type: ignore[arg-type, type-var]
def folds_a_command(row: Seats, event: Enrol) -> Seats:
    return row


@wrong.projection(each=lines)  # type: ignore[arg-type]
def takes_another_part(row: MonthSales, event: Sold, line: str) -> MonthSales:
    return row


@wrong.projection(key=lines)  # type: ignore[arg-type]
def takes_another_event(row: MonthSales, event: Enrolled) -> MonthSales:
    return row


def count(event: Sold) -> int:
    return len(event.lines)


@wrong.projection(keys=count)  # type: ignore[arg-type]
def has_no_keys(row: MonthSales, event: Sold) -> MonthSales:
    return row


# ── models ───────────────────────────────────────────────────────────────────


class Model(DecisionModel[CourseId]):
    taken: int = 0

    def evolve(self, event: Enrolled) -> Model:
        return replace(self, taken=self.taken + 1)

    if sys.version_info >= (3, 13):  # `replace` is checked field by field where classes have `__replace__`

        def names_no_field(self) -> Model:
            return replace(self, took=1)  # type: ignore[call-arg]

        def gives_another_type(self) -> Model:
            return replace(self, taken="many")  # type: ignore[arg-type]

    def gives_something_else(self) -> Seats:
        return replace(self, taken=1)  # type: ignore[return-value]


class Another(Query[int]): ...


class Row(ReadModel): ...


def scenarios() -> None:
    told = scenario(wrong)
    told.given(Enrol(course=CourseId("python")))  # type: ignore[arg-type]
    told.when(Enrolled(course=CourseId("python")))  # type: ignore[arg-type]
    told.then_row(Enrolled(course=CourseId("python")))  # type: ignore[arg-type]
    told.then(Enrolled(course=CourseId("python")))  # type: ignore[attr-defined]
    told.when(Enrol(course=CourseId("python"))).then_rejected(7)  # type: ignore[arg-type]
    told.when(Enrol(course=CourseId("python"))).then_row(Another())  # type: ignore[arg-type]


def no_parts(stored: Mapping[str, Any]) -> int:
    return len(stored)


def upcasters() -> None:
    wrong.upcaster(Enrolled, from_version=1, into={Enrolled: 2})(no_parts)  # type: ignore[type-var]
    wrong.upcaster(Enrolled, from_version=1, into={Enrolled: "2"})  # type: ignore[dict-item]
    wrong.upcaster(Enrolled, from_version=1, into={Enrol: 2})  # type: ignore[dict-item]


def unused(line: OrderLine, row: Row, event: Event) -> None:
    enrol(line, Course())  # type: ignore[arg-type]
