"""Any interleaving of concurrent commands equals some serial execution (G2, G3, G4).

Whatever runs at the same time, on one bus or on two that share a store: the history that comes out is replayed through
plain Python that knows nothing of the framework, and every outcome has to be the one of its place in that history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import (
    BoundedContext,
    Command,
    Conflict,
    ContextChanged,
    DecisionModel,
    Event,
    EventContext,
    Rejected,
    Verdict,
)
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.application.registration import command_handlers, event_types
from diptych.clock import SystemClock
from diptych.errors import NotPure
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.idempotency import Receipt
from tests.calls import tail_limit, token_at
from tests.school import (
    STUDENT_COURSES_MAX,
    Audit,
    Audited,
    Auditor,
    CourseId,
    CourseOpened,
    Enrol,
    Enrolled,
    EnrolMany,
    EnrolmentRefused,
    OpenCourse,
    StudentId,
    Touch,
    school,
)

READ_MAX = 10_000


class Tally(Command):
    course: CourseId


class Tallied(Event):
    course: CourseId
    before: tuple[int, ...]


class Tallies(DecisionModel[CourseId]):
    """Asks for the context: what is pending cannot be folded into it."""

    positions: tuple[int, ...] = ()

    def evolve(self, event: Tallied, context: EventContext) -> Tallies:
        return Tallies(positions=(*self.positions, context.position))


class Slow:
    """An auditor that lets others go on meanwhile."""

    async def look(self, taken: int) -> None:
        for _ in range(3):
            await checkpoint()


def contexts() -> list[BoundedContext]:
    tallying = BoundedContext("tallying")

    @tallying.command_handler
    def tally(command: Tally, tallies: Tallies) -> Tallied:
        return Tallied(course=command.course, before=tallies.positions)

    return [school(), tallying]


# ── the same in plain Python ─────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """What a command gives: events, or a refusal and perhaps its fact."""

    events: tuple[Event, ...] = ()
    code: str = ""
    facts: tuple[tuple[str, object], ...] = ()


def enrolled(history: Sequence[Event], course: str | None = None, student: str | None = None) -> int:
    return sum(
        isinstance(event, Enrolled) and course in (None, event.course) and student in (None, event.student)
        for event in history
    )


def capacity(history: Sequence[Event], course: str) -> int:
    opened = [event.capacity for event in history if isinstance(event, CourseOpened) and event.course == course]
    return opened[-1] if opened else 0


def serial(history: Sequence[Event], command: Command) -> Outcome:
    """What a command gives where it is executed alone, after this history."""
    match command:
        case OpenCourse(course=course, capacity=wanted):
            return Outcome(() if capacity(history, course) else (CourseOpened(course=course, capacity=wanted),))
        case Enrol(course=course, student=student):
            return serial_enrol(history, course, student)
        case EnrolMany(courses=courses, student=student):
            for course in courses:
                if enrolled(history, course) >= capacity(history, course):
                    return Outcome(code="course-full", facts=(("course", course),))
            return Outcome(tuple(Enrolled(course=course, student=student) for course in courses))
        case Audit(course=course):
            return Outcome((Audited(course=course, taken=enrolled(history, course)),))
        case Tally(course=course):
            at = [n for n, event in enumerate(history, 1) if isinstance(event, Tallied) and event.course == course]
            return Outcome((Tallied(course=course, before=tuple(at)),))
        case _:
            return Outcome()


def concerns(command: Command, event: Event) -> bool:
    """Whether what the command is decided on has this event in it."""
    match command, event:
        case Tally(course=course), Tallied():
            return event.course == course
        case Enrol(course=course, student=student), Enrolled():
            return event.course == course or event.student == student
        case EnrolMany(courses=courses), CourseOpened() | Enrolled():
            return event.course in courses
        case (
            (OpenCourse(course=course) | Enrol(course=course) | Audit(course=course) | Touch(course=course)),
            (CourseOpened() | Enrolled()),
        ):
            return event.course == course
        case _:
            return False


def serial_enrol(history: Sequence[Event], course: CourseId, student: StudentId) -> Outcome:
    if enrolled(history, course, student):
        return Outcome(code="already-enrolled")
    if (courses := enrolled(history, None, student)) >= STUDENT_COURSES_MAX:
        return Outcome(code="too-many-courses", facts=(("courses", courses),))
    if enrolled(history, course) >= (room := capacity(history, course)):
        refused = EnrolmentRefused(course=course, student=student)
        return Outcome((refused,), "course-full", (("capacity", room),))
    return Outcome((Enrolled(course=course, student=student),))


# ── what is executed ─────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """One command on its way.

    Attributes:
        bus: which of two buses executes it.
        turns: how many turns of the event loop it comes later.
        with_id: whether the caller gives it an id; its outcome is kept then, and asked for again at the end.
        repeated: whether it is sent twice at the same time, where it has an id.
        back: how far before the head the answer was that it is based on; None where it is based on none.
        dry_run: whether it is only asked what would come of it.
    """

    command: Command
    bus: int
    turns: int
    with_id: bool
    repeated: bool
    back: int | None = None
    dry_run: bool = False

    @property
    def times(self) -> int:
        """How often it is sent at the same time: once, where a basis of its own may have it refused."""
        return 2 if self.repeated and self.with_id and self.back is None and not self.dry_run else 1


@dataclass(frozen=True)
class Answer:
    call: Call
    number: int
    before: int
    after: int
    outcome: Receipt | Verdict | BaseException

    @property
    def basis(self) -> int:
        """The position that the command was based on; the beginning where its caller had seen nothing yet."""
        return max(0, self.before - (self.call.back or 0))


courses = st.sampled_from([CourseId("c1"), CourseId("c2"), CourseId("c3")])
students = st.sampled_from([StudentId("s1"), StudentId("s2"), StudentId("s3")])
commands = st.one_of(
    st.builds(OpenCourse, course=courses, capacity=st.integers(1, 3)),
    st.builds(Enrol, course=courses, student=students),
    st.builds(Enrol, course=courses, student=students),
    st.builds(EnrolMany, courses=st.lists(courses, min_size=1, max_size=4).map(tuple), student=students),
    st.builds(Audit, course=courses),
    st.builds(Touch, course=courses),
    st.builds(Tally, course=courses),
)
calls = st.builds(
    Call,
    commands,
    st.integers(0, 1),
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, None, 0, 1, 3]),
    st.sampled_from([False, False, False, True]),
)
opening = [Call(OpenCourse(course=CourseId(f"c{n}"), capacity=2), 0, 0, with_id=False, repeated=False) for n in (1, 2)]


async def made_bus(store: EventStore, cached: int) -> CommandBus:
    parts = contexts()
    types = event_types(parts)
    made = CommandBus(command_handlers(parts, {Auditor: Slow()}, types), store, History(types), SystemClock())
    made._cache._limit = cached
    await made.open()
    return made


async def executed(store: EventStore, bus: CommandBus, number: int, call: Call) -> list[Answer]:
    for _ in range(call.turns):
        await checkpoint()

    async def once() -> Answer:
        before = (await store.head()).position
        answer = Answer(call, number, before, before, Conflict("", 0, 0))
        outcome: Receipt | Verdict | BaseException
        try:
            outcome = await asked(store, bus, answer)
        except (Rejected, Conflict, ContextChanged, NotPure) as error:
            outcome = error
        return replace(answer, after=(await store.head()).position, outcome=outcome)

    return await asyncio.gather(*(once() for _ in range(call.times)))


async def asked(store: EventStore, bus: CommandBus, answer: Answer) -> Receipt | Verdict:
    call, sender = answer.call, Sender(actor=str(answer.number))
    basis = [] if call.back is None else [await token_at(store, answer.basis)]
    if call.dry_run:
        return await bus.can(call.command, sender, basis)
    return await bus.execute(call.command, f"id-{answer.number}" if call.with_id else None, sender, basis)


async def recorded(store: EventStore) -> list[tuple[str, Event]]:
    """The history: who caused an event, and the event."""
    history = History(event_types(contexts()))
    found = (await store.read(ALL_EVENTS, START, READ_MAX)).events
    assert [event.position for event in found] == list(range(1, len(found) + 1))
    assert [event.recorded_at for event in found] == sorted(event.recorded_at for event in found)
    return [(history.context(event).actor or "", history.event(event)) for event in found]


# ── what has to hold ─────────────────────────────────────────────────────────


def check(answers: Sequence[Answer], log: Sequence[tuple[str, Event]]) -> None:
    history = [event for _, event in log]
    by_number: dict[int, list[Answer]] = {}
    for answer in answers:
        by_number.setdefault(answer.number, []).append(answer)
    claimed = 0
    for number, same in by_number.items():
        mine = [position for position, (actor, _) in enumerate(log, 1) if actor == str(number)]
        assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else True, (
            "one command's events are contiguous"
        )
        told = {said(answer) for answer in same}
        assert len(told) == 1, f"repetitions of {same[0].call} heard {told}"
        claimed += len(mine)
        check_outcome(same, mine, history)
    assert claimed == len(history), "every event was caused by a command"


def said(answer: Answer) -> object:
    match answer.outcome:
        case Receipt(place=place, events=events):
            return (place, events)
        case Rejected(code=code, facts=facts):
            return (code, tuple(facts.items()))
        case other:
            return type(other)


def check_outcome(same: Sequence[Answer], mine: Sequence[int], history: Sequence[Event]) -> None:
    call, outcome = same[0].call, same[0].outcome
    assert not (mine and call.dry_run), "a dry run does nothing"
    if isinstance(outcome, Conflict | NotPure):
        assert not mine, "what ended in a conflict did nothing"
        assert isinstance(call.command, Audit), "a pure command loses fewer races than the limit here"
    elif isinstance(outcome, ContextChanged):
        assert not mine, "what was based on a stale answer did nothing"
        since = history[same[0].basis : same[0].after]
        assert any(concerns(call.command, event) for event in since), "something has changed"
    elif isinstance(outcome, Verdict):
        check_verdict(same[0], outcome, history)
    elif isinstance(outcome, Receipt):
        assert list(outcome.events) == [history[position - 1] for position in mine]
        assert outcome.position == (mine[-1] if mine else outcome.position)
        before = outcome.position - len(mine)
        assert holds_at(same[0], before, history), "accepted on what its caller had seen"
        assert serial(history[:before], call.command) == Outcome(outcome.events), "accepted as at its position"
    else:
        assert isinstance(outcome, Rejected)
        facts = tuple(outcome.facts.items())
        events = tuple(history[position - 1] for position in mine)
        heads = [mine[0] - 1] if mine else range(min(a.before for a in same), max(a.after for a in same) + 1)
        expected = Outcome(events, outcome.code, facts)
        legal = any(
            serial(history[:head], call.command) == expected and holds_at(same[0], head, history) for head in heads
        )
        assert legal, f"{call.command} was refused with {outcome}, at no head between its call and its answer"


def holds_at(answer: Answer, head: int, history: Sequence[Event]) -> bool:
    """Whether nothing that concerns the command came between what it is based on, if anything, and a head."""
    based_on = head if answer.call.back is None else answer.basis
    return not any(concerns(answer.call.command, event) for event in history[based_on:head])


def check_verdict(answer: Answer, verdict: Verdict, history: Sequence[Event]) -> None:
    """It was so at some head between call and answer."""
    heads = [head for head in range(answer.before, answer.after + 1) if holds_at(answer, head, history)]
    would = [serial(history[:head], answer.call.command) for head in heads]
    if verdict.rejected is None:
        assert Outcome(verdict.events) in would
    else:
        said = (verdict.rejected.code, tuple(verdict.rejected.facts.items()))
        assert said in [(outcome.code, outcome.facts) for outcome in would]


async def check_kept(answers: Sequence[Answer], bus: CommandBus) -> None:
    """Whatever had an id and an outcome has the same one for ever, on another bus too (G4)."""
    for answer in answers:
        call = answer.call
        if call.with_id and not call.dry_run and not isinstance(answer.outcome, Conflict | ContextChanged):
            outcome: Receipt | BaseException
            try:
                outcome = await bus.execute(call.command, f"id-{answer.number}", Sender(actor="again"))
            except Rejected as error:
                outcome = error
            assert said(answer) == said(replace(answer, outcome=outcome))


@asynccontextmanager
async def stores(kind: str) -> AsyncIterator[Sequence[EventStore]]:
    """The stores of two buses: the same one, or two instances over one file."""
    with TemporaryDirectory() as folder:
        made: list[Any] = []
        if kind == "sqlite two instances":
            path = str(Path(folder, "events.db"))
            made = [SqliteEventStore(path, SystemClock(), synchronous="NORMAL") for _ in range(2)]
        elif kind == "sqlite":
            made = [SqliteEventStore(str(Path(folder, "events.db")), SystemClock(), synchronous="NORMAL")] * 2
        else:
            made = [MemoryEventStore(SystemClock())] * 2
        for store in dict.fromkeys(made):
            await store.open()
        try:
            yield made
        finally:
            for store in dict.fromkeys(made):
                await store.close()


@pytest.mark.parametrize(
    ("kind", "buses"), [("memory", 1), ("memory", 2), ("sqlite", 1), ("sqlite", 2), ("sqlite two instances", 2)]
)
def test_g3_concurrent_commands_equal_a_serial_execution(kind: str, buses: int) -> None:
    """Accepted: legal at its position. Refused: legal at a head between call and answer. Repeated: once."""

    @settings(max_examples=150 if kind == "memory" else 40, deadline=None)
    @given(st.lists(calls, min_size=2, max_size=24), st.sampled_from([1, 2, 1_000]), st.sampled_from([1, 3, 1_000]))
    def holds(given_calls: list[Call], cached: int, tail: int) -> None:
        async def run() -> None:
            async with stores(kind) as opened:
                made = [await made_bus(store, cached) for store in opened]
                course = [*opening, *given_calls]
                jobs = []
                for number, call in enumerate(course):
                    index = call.bus % buses
                    jobs.append(executed(opened[index], made[index], number, call))
                answers = [answer for found in await asyncio.gather(*jobs) for answer in found]
                log = await recorded(opened[0])
                check(answers, log)
                await check_kept(answers, made[-1])
                assert await recorded(opened[0]) == log, "what was sent again changed nothing"
                for bus in made:
                    await bus.close()

        with tail_limit(tail):
            asyncio.run(run())

    holds()
