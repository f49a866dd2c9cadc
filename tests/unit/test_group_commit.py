"""Group commit: chains of commands that build on each other, and everything that may break them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime

import pytest

from diptych import BoundedContext, Command, CommandContext, Conflict, DecisionModel, Event, EventContext, Rejected
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.application.registration import command_handlers, event_types
from diptych.clock import SystemClock
from diptych.errors import InvalidEvent, OutcomeUnknown, StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Appended, AppendResult, Commit, Conflicting
from diptych.event_store.history import History
from diptych.event_store.position import START, Place, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.write_side import command_bus, group_commit, model_cache
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.idempotency import Receipt
from tests.school import (
    Auditor,
    Course,
    CourseId,
    CourseOpened,
    Enrol,
    Enrolled,
    OpenCourse,
    StudentId,
    Touch,
    school,
)

pytestmark = pytest.mark.anyio

PYTHON, RUST = CourseId("python"), CourseId("rust")
NOBODY = Sender()


class WatchedStore(MemoryEventStore):
    """A store in memory that tells of its batches, and lets something happen just before one is appended."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.batches: list[tuple[Sequence[Commit], list[AppendResult]]] = []
        self.before: Callable[[], Awaitable[None]] | None = None

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        if self.before is not None:
            await self.before()
        results = await super().append(commits, base)
        self.batches.append((commits, results))
        return results

    async def foreign(self, *events: Event) -> None:
        """What another process appends: behind the back of whoever uses this instance."""
        types = event_types([school()])
        made = []
        for event in events:
            found = types.of(type(event))
            tags = found.tags(event)
            made.append(NewEvent(unique_bytes(), found.name, 1, found.codec.settle(event)[0], tags))
        await super().append([Commit(tuple(made))])


class Silent:
    async def look(self, taken: int) -> None: ...


async def bus(
    store: MemoryEventStore, *contexts: BoundedContext, services: Mapping[type, object] | None = None
) -> CommandBus:
    types = event_types(contexts)
    handlers = command_handlers(contexts, services or {Auditor: Silent()}, types)
    made = CommandBus(handlers, store, History(types), SystemClock())
    await store.open()
    await made.open()
    return made


async def types_of(store: MemoryEventStore) -> list[str]:
    found = await store.read(ALL_EVENTS, START, 10_000)
    return [recorded.type.partition(".")[2] for recorded in found.events]


async def together(
    commands: CommandBus, *given: Command, ids: Mapping[int, str] | None = None
) -> list[Receipt | BaseException]:
    """Execute commands at the same moment: nothing here has to wait for a disk, so they share their first batch."""
    sent = [commands.execute(command, (ids or {}).get(n), NOBODY) for n, command in enumerate(given)]
    return await asyncio.gather(*sent, return_exceptions=True)


def enrol(student: object, course: CourseId = PYTHON) -> Enrol:
    return Enrol(course=course, student=StudentId(f"s{student}"))


# ── chains ───────────────────────────────────────────────────────────────────


async def test_commands_of_one_batch_decide_on_each_others_pending_events() -> None:
    """A hot entity costs one transaction for all who wait, and each sees the ones before it."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=7), None, NOBODY)
    outcomes = await together(commands, *(enrol(n) for n in range(10)))
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 7 + [Rejected] * 3
    assert [outcome.position for outcome in outcomes if isinstance(outcome, Receipt)] == list(range(2, 9))
    commits, results = store.batches[-1]
    assert len(commits) == 10
    assert all(isinstance(result, Appended) for result in results)
    assert [max(condition.after for condition in commit.conditions) for commit in commits[:7]] == list(range(1, 8))


async def test_a_batch_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `BATCH_COMMANDS_MAX` commands take several transactions, in the order they came."""
    monkeypatch.setattr(group_commit, "BATCH_COMMANDS_MAX", 3)
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=99), None, NOBODY)
    outcomes = await together(commands, *(enrol(n) for n in range(10)))
    assert [len(commits) for commits, _ in store.batches[1:]] == [3, 3, 3, 1]
    assert [outcome.position for outcome in outcomes if isinstance(outcome, Receipt)] == list(range(2, 12))


async def test_a_batch_has_a_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past `BATCH_BYTES_MAX` a batch takes no more, be they of events or of rejections; the order is kept."""
    monkeypatch.setattr(group_commit, "BATCH_BYTES_MAX", 100)  # an enrolment has 34
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=4), None, NOBODY)
    ids = {n: f"id-{n}" for n in range(20)}
    outcomes = await together(commands, *(enrol(n) for n in range(20)), ids=ids)
    sizes = [len(commits) for commits, _ in store.batches[1:]]
    assert max(sizes) < 10
    assert sum(sizes) == 20
    assert [outcome.position for outcome in outcomes if isinstance(outcome, Receipt)] == [2, 3, 4, 5]


async def test_a_batch_whose_first_command_alone_is_past_the_limit_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command fails after its bytes were counted: those behind it are decided in the next batch."""
    monkeypatch.setattr(group_commit, "BATCH_BYTES_MAX", 1)
    context = BoundedContext("school")

    class Fill(Command):
        course: CourseId

    class Filled(Event):
        course: CourseId
        at: str

    @context.command_handler
    def fill(command: Fill, course: Course) -> Iterator[Filled]:
        yield Filled(course=command.course, at="a")
        yield Filled(course=command.course, at="\0")

    commands = await bus(WatchedStore(), context, school())
    outcomes = await together(commands, Fill(course=PYTHON), Touch(course=PYTHON), Touch(course=RUST))
    assert [type(outcome) for outcome in outcomes] == [InvalidEvent, Receipt, Receipt]


async def test_a_batch_that_is_cancelled_in_the_store_has_no_known_outcome() -> None:
    """Whoever still listens when the loop is torn down must not take it that nothing was appended (rule 13)."""
    store = WatchedStore()
    commands = await bus(store, school())

    async def cancel() -> None:
        store.before = None
        (task,) = (task for task in asyncio.all_tasks() if "GroupCommit._run" in str(task.get_coro()))
        task.cancel()
        await asyncio.Event().wait()

    store.before = cancel
    (outcome,) = await together(commands, Touch(course=PYTHON), ids={0: "once"})
    assert isinstance(outcome, OutcomeUnknown)
    assert outcome.command_id == "once"
    assert isinstance(await commands.execute(Touch(course=PYTHON), "once", NOBODY), Receipt)


async def test_g3_a_foreign_event_of_the_entity_in_between_is_seen_by_every_link() -> None:
    """Another process takes the last seats between decision and append: the chain decides again, and sells none."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=3), None, NOBODY)

    async def meddle() -> None:
        store.before = None
        await store.foreign(*(Enrolled(course=PYTHON, student=StudentId(f"f{n}")) for n in range(2)))

    store.before = meddle
    outcomes = await together(commands, *(enrol(n) for n in range(4)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Receipt", "Rejected", "Rejected", "Rejected"]
    assert (await types_of(store)).count("Enrolled") == 3


async def test_g3_a_rejection_on_a_pending_event_that_did_not_come_about_is_taken_back() -> None:
    """The seat seemed gone since an earlier link was about to take it; that one lost, so the seat is free."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    for n in range(5):
        await commands.execute(OpenCourse(course=CourseId(f"c{n}"), capacity=9), None, NOBODY)

    async def meddle() -> None:
        store.before = None
        await store.foreign(*(Enrolled(course=CourseId(f"c{n}"), student=StudentId("s0")) for n in range(5)))

    store.before = meddle
    first, second = await together(commands, enrol(0), enrol(1))
    assert isinstance(first, Rejected)
    assert first.code == "too-many-courses"
    assert isinstance(second, Receipt)


@pytest.mark.parametrize("links", [2, 5, 30])
async def test_g12_only_own_conflicts_count_towards_the_limit(monkeypatch: pytest.MonkeyPatch, links: int) -> None:
    """Foreign events of other entities break chains; they never make a command lose a race that it was not in."""
    monkeypatch.setattr(command_bus, "CONFLICTS_MAX", 1)
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=99), None, NOBODY)

    async def meddle() -> None:
        await store.foreign(CourseOpened(course=RUST, capacity=1))

    store.before = meddle
    outcomes = await together(commands, *(enrol(n) for n in range(links)))
    assert [type(outcome) for outcome in outcomes] == [Receipt] * links
    assert not any(isinstance(result, Conflicting) for _, results in store.batches for result in results)


async def test_g12_foreign_events_break_no_decision_that_stands_on_no_pending_event() -> None:
    """Commands on entities of their own share a batch; what another process appends to others costs no second try."""
    store = WatchedStore()
    commands = await bus(store, school())

    async def meddle() -> None:
        await store.foreign(CourseOpened(course=RUST, capacity=1))

    store.before = meddle
    for turn in range(2):
        opening = (OpenCourse(course=CourseId(f"c{turn}-{n}"), capacity=1) for n in range(5))
        outcomes = await together(commands, *opening)
        assert [type(outcome) for outcome in outcomes] == [Receipt] * 5
    assert [[type(result) for result in results] for _, results in store.batches] == [[Appended] * 5] * 2


async def test_g12_what_a_decision_stood_on_is_still_known_after_foreign_events() -> None:
    """Where another process writes all the time, a model that was used in the last batch is not read again."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=3), None, NOBODY)

    async def meddle() -> None:
        await store.foreign(CourseOpened(course=RUST, capacity=1))

    store.before = meddle
    await commands.execute(enrol(0), None, NOBODY)
    store.read = None  # type: ignore[assignment]  # whoever reads fails
    (outcome,) = await together(commands, enrol(0))
    assert isinstance(outcome, Rejected)
    assert outcome.code == "already-enrolled"


async def test_own_conflicts_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that loses every race says how often, and to which event."""
    monkeypatch.setattr(command_bus, "CONFLICTS_MAX", 4)
    store = WatchedStore()
    commands = await bus(store, school())

    async def meddle() -> None:
        await store.foreign(Enrolled(course=PYTHON, student=StudentId("f")))

    store.before = meddle
    with pytest.raises(Conflict) as lost:
        await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    assert (lost.value.command, lost.value.attempts, lost.value.position) == ("OpenCourse", 4, 4)
    assert await types_of(store) == ["Enrolled"] * 4


async def test_a_duplicate_in_the_middle_breaks_no_outcome() -> None:
    """A link turns out to be done already: what was decided on its pending events is decided again."""
    store = WatchedStore()
    here, there = await bus(store, school()), await bus(store, school())
    await here.execute(OpenCourse(course=PYTHON, capacity=3), None, NOBODY)

    async def meddle() -> None:
        store.before = None
        await there.execute(enrol(1), "enrol-1", NOBODY)

    store.before = meddle
    outcomes = await together(here, enrol(0), enrol(1), enrol(2), enrol(3), ids={1: "enrol-1"})
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Receipt", "Receipt", "Receipt", "Rejected"]
    assert isinstance(outcomes[1], Receipt)
    assert outcomes[1].position == 2
    assert (await types_of(store)).count("Enrolled") == 3


async def test_g4_an_outcome_kept_meanwhile_is_heard_in_the_section() -> None:
    """Another process executes the same id after this one looked: the section answers with that outcome."""
    store = WatchedStore()
    here, there = await bus(store, school()), await bus(store, school())
    command = OpenCourse(course=PYTHON, capacity=3)
    other: list[Receipt] = []

    async def meddle() -> None:
        store.before = None
        other.append(await there.execute(command, "open-1", NOBODY))

    store.before = meddle
    assert [await here.execute(command, "open-1", NOBODY)] == other
    assert await types_of(store) == ["CourseOpened"]


async def test_a_handler_that_fails_in_the_middle_leaves_the_chain_whole() -> None:
    """An exception of user code takes no position: the links around it hold at the first try."""

    class Break(Command):
        course: CourseId

    context = BoundedContext("broken")

    @context.command_handler
    def break_it(command: Break, course: Course) -> None:
        raise ZeroDivisionError

    store = WatchedStore()
    commands = await bus(store, school(), context)
    await commands.execute(OpenCourse(course=PYTHON, capacity=3), None, NOBODY)
    outcomes = await together(commands, enrol(1), Break(course=PYTHON), enrol(2))
    assert [type(outcome) for outcome in outcomes] == [Receipt, ZeroDivisionError, Receipt]
    assert len(store.batches) == 2


async def test_a_rejection_in_the_middle_leaves_the_chain_whole() -> None:
    """A refusal without an event takes no position; one with an event takes one that the next links know."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    given = (enrol(1), enrol(1), enrol(2), enrol(3), OpenCourse(course=RUST, capacity=1))
    outcomes = await together(commands, *given)
    codes = [outcome.code if isinstance(outcome, Rejected) else "" for outcome in outcomes]
    assert codes == ["", "already-enrolled", "course-full", "course-full", ""]
    assert len(store.batches) == 2
    assert all(isinstance(result, Appended) for _, results in store.batches for result in results)
    assert await types_of(store) == [
        "CourseOpened",
        "Enrolled",
        "EnrolmentRefused",
        "EnrolmentRefused",
        "CourseOpened",
    ]


async def test_conditions_are_one_for_each_model_at_its_own_position() -> None:
    """Every outcome carries the conditions of all its models, rejections too; positions are never merged."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    await commands.execute(enrol(1), None, NOBODY)
    with pytest.raises(Rejected):
        await commands.execute(enrol(1), None, NOBODY)
    (rejected,), _ = store.batches[-1]
    assert rejected.rejection is not None
    items = {tuple(sorted(condition.item.tags)): condition.item.types for condition in rejected.conditions}
    assert items == {
        ("course:python",): {"school.CourseOpened", "school.Enrolled"},
        ("student:s1",): {"school.Enrolled"},
        ("course:python", "student:s1"): {"school.Enrolled"},
    }


async def test_each_model_is_judged_at_the_position_that_its_own_read_covered() -> None:
    """An event that comes between the reads of two models conflicts with the one that was read before it."""
    store = WatchedStore()
    here, there = await bus(store, school()), await bus(store, school())
    await here.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    fresh = await bus(store, school())
    read = store.read
    reads = 0

    async def meddling(query, after, limit, *, until=None):  # type: ignore[no-untyped-def]
        nonlocal reads
        reads += 1
        if reads == 2:
            await there.execute(enrol(1), None, NOBODY)
        return await read(query, after, limit, until=until)

    store.read = meddling  # type: ignore[method-assign]
    with pytest.raises(Rejected, match="course-full"):
        await fresh.execute(enrol(2), None, NOBODY)
    assert (await types_of(store)).count("Enrolled") == 1


# ── what the store does to a batch ───────────────────────────────────────────


class Counted(Event):
    course: CourseId
    after: datetime | None


class Count(Command):
    course: CourseId


class Counter(DecisionModel[CourseId]):
    """Wants to know when its events were recorded, so a pending one cannot be folded."""

    count: int = 0
    last: datetime | None = None
    positions: tuple[int, ...] = ()

    def evolve(self, event: Counted, context: EventContext) -> Counter:
        return Counter(count=self.count + 1, last=context.recorded_at, positions=(*self.positions, context.position))


def counting(seen: list[tuple[int, ...]]) -> BoundedContext:
    context = BoundedContext("counting")

    @context.command_handler
    def count(command: Count, counter: Counter) -> Counted:
        seen.append(counter.positions)
        return Counted(course=command.course, after=counter.last)

    return context


async def test_a_model_that_asks_for_the_context_waits_for_the_next_batch() -> None:
    """What is pending has no time yet: such links are decided one batch later, in their order, with true contexts."""
    store, seen = WatchedStore(), list[tuple[int, ...]]()
    commands = await bus(store, counting(seen), school())
    outcomes = await together(commands, *(Count(course=PYTHON) for _ in range(4)), Count(course=RUST))
    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    assert [receipt.position for receipt in receipts] == [1, 3, 4, 5, 2]
    assert seen == [(), (), (1,), (1, 3), (1, 3, 4)]
    recorded = (await store.read(ALL_EVENTS, START, 10)).events
    afters = [event.after for receipt in receipts for event in receipt.events if isinstance(event, Counted)]
    assert afters == [None, *(recorded[n].recorded_at for n in (0, 2, 3)), None]


@pytest.mark.parametrize("error", [StoreUnavailable("disk full"), OutcomeUnknown("x", "disk")])
async def test_a_batch_that_fails_is_told_to_everyone_and_nothing_of_it_comes_later(error: Exception) -> None:
    """Whoever heard that the store failed is not executed afterwards, links that had to wait included."""
    store, seen = WatchedStore(), list[tuple[int, ...]]()
    commands = await bus(store, counting(seen), school())

    async def fail() -> None:
        store.before = None
        raise error

    store.before = fail
    outcomes = await together(commands, *(Count(course=PYTHON) for _ in range(3)))
    assert [type(outcome) for outcome in outcomes] == [type(error)] * 3
    await commands.close()
    assert await types_of(store) == []
    again = await bus(store, counting(seen), school())
    assert (await again.execute(Count(course=PYTHON), None, NOBODY)).position == 1


async def test_a_bus_goes_on_after_a_failed_batch() -> None:
    """What was pending when the store failed is forgotten: the next decision stands on the committed history."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)

    async def fail() -> None:
        store.before = None
        raise StoreUnavailable("locked")

    store.before = fail
    with pytest.raises(StoreUnavailable):
        await commands.execute(enrol(1), None, NOBODY)
    assert (await commands.execute(enrol(2), None, NOBODY)).position == 2


async def test_a_bus_goes_on_when_the_head_cannot_be_read_after_a_batch() -> None:
    """A batch without success asks where the history ends; if that fails, pending events are forgotten too."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(OpenCourse(course=PYTHON, capacity=2), None, NOBODY)
    head = store.head

    async def meddle() -> None:
        store.before = None
        store.head = unavailable  # type: ignore[method-assign]
        await store.foreign(Enrolled(course=PYTHON, student=StudentId("f")))

    async def unavailable() -> Place:
        store.head = head  # type: ignore[method-assign]
        raise StoreUnavailable("gone")

    store.before = meddle
    with pytest.raises(StoreUnavailable):
        await commands.execute(enrol(1), None, NOBODY)
    receipt = await commands.execute(enrol(2), None, NOBODY)
    assert receipt.position == 3
    assert [len(results) for _, results in store.batches[-2:]] == [1, 1]
    assert isinstance(store.batches[-1][1][0], Appended)


async def test_an_event_that_no_store_takes_fails_its_command_alone() -> None:
    """Past a size limit the command hears so, and the links after it hold."""
    context = BoundedContext("big")

    class Note(Command):
        course: CourseId
        text: str

    class Noted(Event):
        course: CourseId
        text: str

    @context.command_handler
    def note(command: Note, course: Course) -> Noted:
        return Noted(course=command.course, text=command.text)

    store = WatchedStore()
    commands = await bus(store, context, school())
    given = (Touch(course=RUST), Note(course=PYTHON, text="x" * (1 << 20)), Note(course=PYTHON, text="y"))
    outcomes = await together(commands, *given)
    assert "EVENT_BYTES_MAX" in str(outcomes[1])
    assert isinstance(outcomes[2], Receipt)
    assert outcomes[2].position == 1


# ── what is remembered ───────────────────────────────────────────────────────


@pytest.mark.parametrize(("cached", "tail"), [(1, 8_192), (20_000, 1), (1, 1), (1, 3)])
async def test_forgetting_costs_reads_and_changes_no_outcome(
    monkeypatch: pytest.MonkeyPatch, cached: int, tail: int
) -> None:
    """With hardly any cache or tail, and another process writing in between, every outcome stays the same."""
    monkeypatch.setattr(model_cache, "TAIL_EVENTS_MAX", tail)
    store = WatchedStore()
    here, there = await bus(store, school()), await bus(store, school())
    for commands in (here, there):
        commands._cache._limit = cached
    for n in range(3):
        await here.execute(OpenCourse(course=CourseId(f"c{n}"), capacity=4), None, NOBODY)
    sent = [
        commands.execute(enrol(student, CourseId(f"c{course}")), None, NOBODY)
        for student in range(6)
        for course in range(3)
        for commands in (here, there)
    ]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 12
    assert sum(isinstance(outcome, Rejected) for outcome in outcomes) == 24


async def test_a_head_that_was_read_is_the_base_of_the_next_batch() -> None:
    """What another process appended before a model was read costs no second try."""
    store = WatchedStore()
    here = await bus(store, school())
    await here.execute(OpenCourse(course=PYTHON, capacity=3), None, NOBODY)
    await store.foreign(CourseOpened(course=RUST, capacity=1), Enrolled(course=RUST, student=StudentId("f")))
    outcomes = await together(here, enrol(1, RUST), enrol(2, RUST))
    assert [type(outcome) for outcome in outcomes] == [Rejected, Rejected]
    assert [len(results) for _, results in store.batches] == [1, 2]


async def test_commands_of_other_handlers_are_followed_without_reading() -> None:
    """A cached model is brought up to date from what other commands appended here."""
    store = WatchedStore()
    commands = await bus(store, school())
    await commands.execute(Touch(course=PYTHON), None, NOBODY)
    store.read = None  # type: ignore[assignment]  # whoever reads fails
    await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    receipt = await commands.execute(OpenCourse(course=PYTHON, capacity=1), None, NOBODY)
    assert receipt.events == ()


async def test_now_is_one_for_all_attempts_of_a_command() -> None:
    """A command that decides again decides at the same time as before."""
    context, seen = BoundedContext("timed"), list[tuple[datetime, str]]()

    class Wait(Command):
        course: CourseId

    @context.command_handler
    def wait(command: Wait, course: Course, context: CommandContext) -> None:
        seen.append((context.now, context.command_id))

    store = WatchedStore()
    commands = await bus(store, context, school())

    async def meddle() -> None:
        store.before = None
        await store.foreign(Enrolled(course=PYTHON, student=StudentId("f")))

    store.before = meddle
    await commands.execute(Wait(course=PYTHON), None, NOBODY)
    assert len(seen) == 2
    assert len(set(seen)) == 1
