"""The whole application in memory: at rest after every command."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from anyio.lowlevel import checkpoint

from diptych import (
    BoundedContext,
    Command,
    ConfigurationError,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Key,
    Query,
    ReadModel,
    Rejected,
    replace,
)
from diptych.errors import Blocked
from diptych.testing import InMemoryApplication, ManualClock

pytestmark = pytest.mark.anyio


class CourseId(Identity): ...


PYTHON = CourseId("python")


class Enrol(Command):
    course: CourseId


class Enrolled(Event):
    course: CourseId


class Refused(Event):
    course: CourseId


class Course(DecisionModel[CourseId]):
    taken: int = 0

    def evolve(self, event: Enrolled) -> Course:
        return Course(taken=self.taken + 1)


class Seats(ReadModel):
    course: Key[CourseId]
    taken: int = 0
    refused: int = 0


class SeatsOf(Query[Seats | None]):
    course: CourseId


class NotShown(ReadModel):
    course: Key[CourseId]


def school() -> BoundedContext:
    """A context of two seats a course."""
    context = BoundedContext("school")

    @context.command_handler
    def enrol(command: Enrol, course: Course) -> Enrolled | Refused:
        if course.taken == 2:
            raise Rejected("course-full", record=Refused(course=command.course))
        return Enrolled(course=command.course)

    @context.projection
    def seats(row: Seats, event: Enrolled | Refused) -> Seats:
        if isinstance(event, Refused):
            return replace(row, refused=row.refused + 1)
        return replace(row, taken=row.taken + 1)

    return context


async def test_a_query_needs_no_token() -> None:
    """When a command returns, accepted or rejected, every projection shows what it has done."""
    async with InMemoryApplication(school()) as app:
        for taken in (1, 2):
            await app.execute(Enrol(course=PYTHON))
            assert await app.query(SeatsOf(course=PYTHON)) == Seats(course=PYTHON, taken=taken)
            assert await app.rows(Seats) == [Seats(course=PYTHON, taken=taken)]
        with pytest.raises(Rejected):
            await app.execute(Enrol(course=PYTHON))
        assert await app.rows(Seats) == [Seats(course=PYTHON, taken=2, refused=1)]


async def test_a_token_can_still_be_given() -> None:
    """The signature of `query` is the application's own."""
    async with InMemoryApplication(school()) as app:
        receipt = await app.execute(Enrol(course=PYTHON))
        assert await app.query(SeatsOf(course=PYTHON), after=receipt) == Seats(course=PYTHON, taken=1)


async def test_time_stands_still_until_it_is_moved() -> None:
    """Facts are recorded at the clock's time, given ones too."""
    async with InMemoryApplication(school(), clock=ManualClock()) as app:
        start = app.clock.now()
        await app.given(Enrolled(course=PYTHON))
        app.clock.advance(timedelta(hours=1))
        await app.execute(Enrol(course=PYTHON))
        facts = await app.facts()
    assert [fact.event for fact in facts] == [Enrolled(course=PYTHON), Enrolled(course=PYTHON)]
    assert [fact.context.recorded_at - start for fact in facts] == [timedelta(0), timedelta(hours=1)]


async def test_given_facts_come_before_commands() -> None:
    """Later ones would slip past decisions."""
    async with InMemoryApplication(school()) as app:
        await app.given(Enrolled(course=PYTHON), Enrolled(course=PYTHON))
        with pytest.raises(Rejected, match="course-full"):
            await app.execute(Enrol(course=PYTHON))
        with pytest.raises(RuntimeError, match="before the first command"):
            await app.given(Enrolled(course=PYTHON))


async def test_a_fold_that_fails_fails_the_query() -> None:
    """Queries are strict: a blocked key is no old answer."""
    context = school()

    class Broken(ReadModel):
        course: Key[CourseId]

    class BrokenOf(Query[Broken | None]):
        course: CourseId

    @context.projection
    def broken(row: Broken, event: Enrolled) -> Broken:
        raise ZeroDivisionError("always")

    async with InMemoryApplication(context) as app:
        await app.execute(Enrol(course=PYTHON))
        with pytest.raises(Blocked, match="always"):
            await app.query(BrokenOf(course=PYTHON))
        assert await app.query(SeatsOf(course=PYTHON)) == Seats(course=PYTHON, taken=1)


async def test_subscribers_have_had_everything() -> None:
    """Also what follows from the commands that they execute themselves."""
    context = school()
    delivered: list[int] = []

    @context.subscriber
    async def fill(events: Sequence[tuple[Enrolled, EventContext]], app: InMemoryApplication) -> None:
        for _event, known in events:
            await checkpoint()
            delivered.append(known.position)
            if known.position == 1:
                await app.execute(Enrol(course=PYTHON))

    services: dict[type, object] = {}
    app = InMemoryApplication(context, services={InMemoryApplication: _Later(services)})
    services[InMemoryApplication] = app
    async with app:
        await app.execute(Enrol(course=PYTHON))
        assert delivered == [1, 2]
        assert await app.rows(Seats) == [Seats(course=PYTHON, taken=2)]


class _Later:
    """Stands for the application, which does not exist yet when its services are listed."""

    def __init__(self, services: dict[type, object]) -> None:
        self._services = services

    async def execute(self, command: Command) -> None:
        app = self._services[InMemoryApplication]
        assert isinstance(app, InMemoryApplication)
        await app.execute(command)


async def test_a_subscriber_that_fails_fails_the_test() -> None:
    """Its error is shown; nothing waits for its next try."""
    context = school()

    @context.subscriber
    async def fail(events: Sequence[tuple[Enrolled, EventContext]]) -> None:
        raise ZeroDivisionError("no mail today")

    async with InMemoryApplication(context) as app:
        with pytest.raises(AssertionError, match=r"school\.fail fails.*no mail today"):
            await app.execute(Enrol(course=PYTHON))


async def test_rows_of_a_model_that_nothing_feeds_are_an_error() -> None:
    """Not an empty list."""
    async with InMemoryApplication(school()) as app:
        with pytest.raises(ConfigurationError, match="NotShown"):
            await app.rows(NotShown)
