"""Where overlay, past moments and tags meet: rows that are folded by key from their own events (rules 21 and 36)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    Identity,
    Key,
    Query,
    Reader,
    ReadModel,
    Untagged,
    Value,
    replace,
)

pytestmark = pytest.mark.anyio


class CourseId(Identity): ...


class Student(Identity): ...


class Enrol(Command):
    course: CourseId
    student: Student


class Grade(Command):
    course: CourseId
    students: tuple[Student, ...]


class Mark(Value):
    student: Untagged[Student]


class Enrolled(Event):
    course: CourseId
    student: Student


class Graded(Event):
    course: CourseId
    marks: tuple[Mark, ...]


class Seat(ReadModel):
    course: Key[CourseId]
    student: Key[Student]
    enrolled: bool
    marks: int = 0


class SeatOf(Query[Seat | None]):
    course: CourseId
    student: Student


class SeatAndAll(Query[tuple[int, int]]):
    course: CourseId
    student: Student


class SeatsThrice(Query[list[int]]): ...


def school() -> BoundedContext:
    context = BoundedContext("school")

    @context.command_handler
    def enrol(command: Enrol) -> Enrolled:
        return Enrolled(course=command.course, student=command.student)

    @context.command_handler
    def grade(command: Grade) -> Graded:
        return Graded(course=command.course, marks=tuple(Mark(student=each) for each in command.students))

    @context.projection
    def enrolled(event: Enrolled) -> Seat:
        return Seat(course=event.course, student=event.student, enrolled=True)

    def marks(event: Graded) -> Iterable[Mark]:
        return event.marks

    @context.projection(each=marks)
    def graded(row: Seat, event: Graded, mark: Mark) -> Seat:
        return replace(row, marks=row.marks + 1)

    @context.query_handler
    async def seat_and_all(query: SeatAndAll, read: Reader) -> tuple[int, int]:
        seat = await read.get(Seat, query.course, query.student)
        seats, other = await asyncio.gather(read.find(Seat), read.get(Seat, query.course, Student("bob")))
        return (seat.marks if seat else -1) + (other.marks if other else -1), len(seats)

    @context.query_handler
    async def seats_thrice(query: SeatsThrice, read: Reader) -> list[int]:
        return await asyncio.gather(*(read.count(Seat) for _ in range(3)))

    return context


@asynccontextmanager
async def built(store_url: str) -> AsyncGenerator[Application]:
    """An application whose rows nobody moves on."""
    context = school()
    async with Application(context, store=store_url, projecting=False) as app:
        projector = app.partition().projector
        await projector.advance(projector.slices)
        yield app


PYTHON, ANN, BOB = CourseId("python"), Student("ann"), Student("bob")


async def test_a_row_is_folded_whatever_its_events_do_to_others(store_url: str) -> None:
    """Of other rows that an event of its own touches not all events are there, and they are left alone."""
    async with built(store_url) as app:
        await app.execute(Enrol(course=PYTHON, student=ANN))
        await app.execute(Enrol(course=PYTHON, student=BOB))
        await app.execute(Grade(course=PYTHON, students=(ANN, BOB)))
        found = await app.query(SeatOf(course=PYTHON, student=ANN), freshness="overlay", wait_s=0)
        assert found == Seat(course=PYTHON, student=ANN, enrolled=True, marks=1)


async def test_a_handler_may_ask_for_several_things_at_once(store_url: str) -> None:
    """By key and by filter, of one read model."""
    async with built(store_url) as app:
        await app.execute(Enrol(course=PYTHON, student=ANN))
        await app.execute(Enrol(course=PYTHON, student=BOB))
        await app.execute(Grade(course=PYTHON, students=(ANN, BOB)))
        assert await app.query(SeatAndAll(course=PYTHON, student=ANN), freshness="overlay", wait_s=0) == (2, 2)


async def test_a_snapshot_is_asked_for_several_things_at_once(store_url: str) -> None:
    """Whatever the store is: what runs on one connection waits for its turn."""
    async with built(store_url) as app:
        await app.execute(Enrol(course=PYTHON, student=ANN))
        projector = app.partition().projector
        await projector.advance(projector.slices)
        assert await app.query(SeatsThrice()) == [1, 1, 1]
