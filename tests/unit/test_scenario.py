"""Scenarios: what they accept, and how they say what is wrong."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from diptych import (
    BoundedContext,
    Command,
    CommandContext,
    ConfigurationError,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Key,
    ReadModel,
    Rejected,
    replace,
)
from diptych.errors import InvalidMessage, UnknownMessage
from diptych.testing import ManualClock, difference, scenario

school = BoundedContext("school")


class CourseId(Identity): ...


PYTHON, RUST = CourseId("python"), CourseId("rust")


class Enrol(Command):
    course: CourseId
    fee: Decimal = Decimal(0)


class Cancel(Command):
    course: CourseId


class Enrolled(Event):
    course: CourseId
    fee: Decimal = Decimal(0)


class Cancelled(Event):
    course: CourseId
    by: str | None = None


class EnrolmentRefused(Event):
    course: CourseId


class Course(DecisionModel[CourseId]):
    taken: int = 0
    last_at: datetime | None = None

    def evolve(self, event: Enrolled | Cancelled, context: EventContext) -> Course:
        change = 1 if isinstance(event, Enrolled) else -1
        return Course(taken=self.taken + change, last_at=context.recorded_at)


@school.command_handler
def enrol(command: Enrol, course: Course) -> Enrolled | EnrolmentRefused:
    if course.taken == 2:
        raise Rejected(
            "course-full", record=EnrolmentRefused(course=command.course), taken=2, fee=command.fee, last=course.last_at
        )
    return Enrolled(course=command.course, fee=command.fee)


@school.command_handler
def cancel(command: Cancel, course: Course, context: CommandContext) -> list[Cancelled]:
    return [Cancelled(course=command.course, by=context.actor) for _ in range(course.taken)]


class Seats(ReadModel):
    course: Key[CourseId]
    taken: int = 0
    fees: Decimal = Decimal(0)


@school.projection
def seats(row: Seats, event: Enrolled | Cancelled) -> Seats | None:
    if isinstance(event, Cancelled):
        return None if row.taken == 1 else replace(row, taken=row.taken - 1)
    if event.fee < 0:
        raise ValueError("a fee below zero")
    return replace(row, taken=row.taken + 1, fees=row.fees + event.fee)


class NotShown(ReadModel):
    course: Key[CourseId]


def told(check: Any) -> str:
    """What a check says is wrong; something has to be."""
    with pytest.raises(AssertionError) as caught:
        check()
    return str(caught.value)


# ── deciders ─────────────────────────────────────────────────────────────────


def test_the_events_that_happened_are_compared() -> None:
    """A command gives its events, decided on what was given, and each check can be followed by another."""
    begun = scenario(school).given(Enrolled(course=PYTHON), Enrolled(course=PYTHON))
    begun.when(Cancel(course=PYTHON)).then(Cancelled(course=PYTHON), Cancelled(course=PYTHON))
    begun.when(Enrol(course=RUST)).then(Enrolled(course=RUST)).then_row(Seats(course=RUST, taken=1))


def test_a_beginning_can_be_shared() -> None:
    """Steps give new scenarios and leave the one before as it was."""
    empty = scenario(school)
    one = empty.given(Enrolled(course=PYTHON))
    one.given(Enrolled(course=PYTHON)).then_row(Seats(course=PYTHON, taken=2))
    one.then_row(Seats(course=PYTHON, taken=1))
    empty.then_no_row(Seats, PYTHON)


def test_who_wants_it_reaches_the_handler() -> None:
    """The actor is the command's."""
    begun = scenario(school).given(Enrolled(course=PYTHON))
    begun.when(Cancel(course=PYTHON), actor="ann").then(Cancelled(course=PYTHON, by="ann"))


def test_an_event_that_differs_is_shown_field_by_field() -> None:
    """Expected, actual, and the fields in between."""
    outcome = scenario(school).when(Enrol(course=PYTHON, fee=Decimal("1.5")))
    message = told(lambda: outcome.then(Enrolled(course=PYTHON, fee=Decimal("2.5"))))
    assert "- Enrolled(course='python', fee=Decimal('2.5'))" in message
    assert "+ Enrolled(course='python', fee=Decimal('1.5'))" in message
    assert "fee: expected Decimal('2.5'), actual Decimal('1.5')" in message
    assert "course: expected" not in message


def test_missing_and_further_events_are_told_apart() -> None:
    """- is missing, + is too much, and what is right carries no sign."""
    outcome = scenario(school).given(Enrolled(course=PYTHON)).when(Cancel(course=PYTHON))
    message = told(lambda: outcome.then(Cancelled(course=PYTHON), Enrolled(course=PYTHON)))
    assert "  - Enrolled(course='python'" in message
    assert "    Cancelled(course='python'" in message
    assert "  + Cancelled(course='python'" in told(outcome.then_nothing)


def test_another_order_is_called_so() -> None:
    """The same events in another order are not called missing."""
    first, second = Enrolled(course=PYTHON), Enrolled(course=RUST)
    message = difference.events_difference([first, second], [second, first])
    assert "another order" in message
    assert difference.events_difference([first], [first]) == ""


def test_nothing_happened() -> None:
    """A command that was accepted without events is no rejection, and the other way round."""
    outcome = scenario(school).when(Cancel(course=PYTHON)).then_nothing().then()
    message = told(lambda: outcome.then_rejected("course-full"))
    assert "accepted" in message
    assert "(none)" in message


def full() -> Any:
    """The outcome of enrolling in a full course, a fact recorded with the refusal."""
    moment = datetime(2024, 5, 1, tzinfo=UTC)
    begun = scenario(school, clock=ManualClock(moment)).given(Enrolled(course=PYTHON), Enrolled(course=PYTHON))
    return begun.when(Enrol(course=PYTHON, fee=Decimal("9.50")))


def test_a_rejection_is_compared_by_code_facts_and_record() -> None:
    """Facts are compared as they are told to everyone: after the codec; those not named are not looked at."""
    outcome = full()
    outcome.then_rejected("course-full")
    outcome.then_rejected("course-full", taken=2, fee=Decimal("9.50"), last=datetime(2024, 5, 1, tzinfo=UTC))
    outcome.then_rejected("course-full", record=EnrolmentRefused(course=PYTHON), taken=2)


def test_a_rejection_that_differs_says_in_what() -> None:
    """Code, each fact, a missing fact, the recorded event: each is named."""
    outcome = full()
    assert "+ code='course-full'" in told(lambda: outcome.then_rejected("full"))
    message = told(lambda: outcome.then_rejected("course-full", taken=3, room=None))
    assert "- taken=3" in message
    assert "+ taken=2" in message
    assert "- room=None" in message
    recorded = told(lambda: outcome.then_rejected("course-full", record=EnrolmentRefused(course=RUST)))
    assert "course: expected 'rust', actual 'python'" in recorded


def test_a_rejection_is_not_taken_for_events() -> None:
    """Where events were expected, the rejection is shown with its facts, even where its record is what was expected."""
    outcome = full()
    assert "course-full (taken=2" in told(lambda: outcome.then(EnrolmentRefused(course=PYTHON)))
    assert "course-full (taken=2" in told(outcome.then_nothing)


def test_what_is_no_rejection_is_raised() -> None:
    """An invalid command, one without handler, an unknown event: errors of the test, not outcomes."""
    with pytest.raises(InvalidMessage):
        scenario(school).when(Enrol(course=PYTHON, fee="much"))  # type: ignore[arg-type]

    class Unheard(Command): ...

    with pytest.raises(UnknownMessage):
        scenario(school).when(Unheard())

    class NeverPublished(Event): ...

    with pytest.raises(ConfigurationError, match="NeverPublished"):
        scenario(school).given(NeverPublished()).when(Enrol(course=PYTHON))


def test_given_events_pass_the_codec() -> None:
    """What could not have been stored cannot have happened."""
    with pytest.raises(InvalidMessage):
        scenario(school).given(Enrolled(course=PYTHON, fee="much")).then_no_row(Seats, PYTHON)  # type: ignore[arg-type]


# ── time ─────────────────────────────────────────────────────────────────────


def test_given_events_carry_their_time() -> None:
    """By `at`, by `ago`, or by moving the clock in between."""
    clock = ManualClock(datetime(2024, 5, 3, tzinfo=UTC))
    begun = scenario(school, clock=clock).given(Enrolled(course=PYTHON), at=datetime(2024, 5, 1, tzinfo=UTC))
    by_ago = begun.given(Enrolled(course=PYTHON), ago=timedelta(days=1))
    by_ago.when(Enrol(course=PYTHON)).then_rejected("course-full", last="2024-05-02T00:00:00Z")
    by_clock = begun.given(Enrolled(course=PYTHON))
    clock.advance(timedelta(days=1))
    by_clock.when(Enrol(course=PYTHON)).then_rejected("course-full", last="2024-05-03T00:00:00Z")


def test_times_that_cannot_be_are_refused() -> None:
    """Backwards, in the future, both forms at once."""
    begun = scenario(school).given(Enrolled(course=PYTHON))
    with pytest.raises(ValueError, match="in which they happened"):
        begun.given(Enrolled(course=PYTHON), ago=timedelta(seconds=1))
    with pytest.raises(ValueError, match="not both"):
        begun.given(Enrolled(course=PYTHON), at=datetime(2024, 5, 1, tzinfo=UTC), ago=timedelta(0))
    with pytest.raises(ValueError, match="is given as recorded at"):
        begun.given(Enrolled(course=PYTHON), at=datetime(2034, 5, 1, tzinfo=UTC)).then_no_row(Seats, PYTHON)


# ── projections ──────────────────────────────────────────────────────────────


def test_rows_are_compared_as_the_read_store_gives_them() -> None:
    """By key, field by field."""
    begun = scenario(school).given(Enrolled(course=PYTHON, fee=Decimal("1.10")), Enrolled(course=PYTHON))
    begun.then_row(Seats(course=PYTHON, taken=2, fees=Decimal("1.10"))).then_no_row(Seats, RUST)
    message = told(lambda: begun.then_row(Seats(course=PYTHON, taken=3, fees=Decimal("1.10"))))
    assert "taken: expected 3, actual 2" in message
    assert "fees: expected" not in message


def test_a_row_that_is_not_there_is_missed() -> None:
    """With those that are."""
    begun = scenario(school).given(Enrolled(course=PYTHON))
    message = told(lambda: begun.then_row(Seats(course=RUST)))
    assert "no row Seats(course='rust'" in message
    assert "Seats(course='python', taken=1" in message
    assert "there is Seats(course='python'" in told(lambda: begun.then_no_row(Seats, PYTHON))


def test_a_deleted_row_is_gone() -> None:
    """A fold that returns None deletes."""
    begun = scenario(school).given(Enrolled(course=PYTHON))
    begun.when(Cancel(course=PYTHON)).then_no_row(Seats, PYTHON)


def test_an_event_that_cannot_be_folded_fails_the_checks_of_its_key() -> None:
    """Not those of other keys."""
    begun = scenario(school).given(Enrolled(course=PYTHON, fee=Decimal(-1)), Enrolled(course=RUST))
    begun.then_row(Seats(course=RUST, taken=1))
    assert "a fee below zero" in told(lambda: begun.then_row(Seats(course=PYTHON)))
    assert "a fee below zero" in told(lambda: begun.then_no_row(Seats, PYTHON))


def test_a_model_that_nothing_feeds_is_no_missing_row() -> None:
    """It is an error of the test, and so is a key of another length."""
    with pytest.raises(ConfigurationError, match="NotShown"):
        scenario(school).then_no_row(NotShown, PYTHON)
    with pytest.raises(TypeError, match="the key of Seats is"):
        scenario(school).then_no_row(Seats, PYTHON, RUST)


# ── where it runs ────────────────────────────────────────────────────────────


@pytest.mark.anyio
async def test_it_works_inside_a_running_loop() -> None:
    """A scenario is synchronous everywhere, and leaves the caller's loop alone."""
    loop = asyncio.get_running_loop()
    scenario(school).when(Enrol(course=PYTHON)).then(Enrolled(course=PYTHON))
    assert asyncio.get_running_loop() is loop


class Gateway:
    """A service that decides by what its caller has set."""

    def __init__(self) -> None:
        self.asked = 0

    async def allows(self) -> bool:
        self.asked += 1
        await checkpoint()
        return _allowed.get()


_allowed: ContextVar[bool] = ContextVar("allowed", default=False)


def test_async_handlers_take_services_once() -> None:
    """A handler with effects runs once in a scenario, with the context variables of the test."""
    shop = BoundedContext("shop")

    class Pay(Command): ...

    class Paid(Event): ...

    @shop.command_handler
    async def pay(command: Pay, gateway: Gateway) -> Paid:
        if not await gateway.allows():
            raise Rejected("declined")
        return Paid()

    gateway = Gateway()
    scenario(shop, services={Gateway: gateway}).when(Pay()).then_rejected("declined")
    token = _allowed.set(True)
    try:
        scenario(shop, services={Gateway: gateway}).when(Pay()).then(Paid())
    finally:
        _allowed.reset(token)
    assert gateway.asked == 2


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped or with NO_COLOR the text is plain."""
    there, here = [Enrolled(course=PYTHON)], [Enrolled(course=RUST)]
    assert "\033" not in difference.events_difference(there, here)

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert "\033[31m  - Enrolled" in difference.events_difference(there, here)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in difference.events_difference(there, here)
