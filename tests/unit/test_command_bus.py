"""The write side, through the application: outcomes, idempotency, conflicts, chains."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    Conflict,
    Event,
    Reader,
    Rejected,
)
from diptych.errors import CommandIdReused, InvalidEvent, InvalidMessage, Overloaded, StoreClosed, UnknownMessage
from diptych.event_store.event_query import ALL_EVENTS
from diptych.messages.command import CommandContext
from diptych.write_side.attempt import Attempt
from diptych.write_side.command_bus import NextCommand
from diptych.write_side.group_commit import GroupCommit
from diptych.write_side.idempotency import Receipt
from tests.school import (
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
    Seats,
    StudentId,
    Touch,
    school,
)

pytestmark = pytest.mark.anyio

PYTHON = CourseId("python")
ADA = StudentId("ada")


class Silent:
    """An auditor that finds nothing."""

    async def look(self, taken: int) -> None: ...


def application(store_url: str, auditor: Auditor | None = None, **options: object) -> Application:
    return Application(
        school(),
        store=store_url,
        services={Auditor: auditor or Silent()},
        **options,  # type: ignore[arg-type]
    )


async def recorded(app: Application) -> list[tuple[int, str]]:
    return [(event.position, event.type) async for event in app.events(ALL_EVENTS)]


async def test_a_command_gives_a_receipt_with_its_events(store_url: str) -> None:
    """The receipt names where the command took effect, and what happened."""
    async with application(store_url) as app:
        receipt = await app.execute(OpenCourse(course=PYTHON, capacity=2))
        assert receipt.position == 1
        assert receipt.events == (CourseOpened(course=PYTHON, capacity=2),)
        assert await recorded(app) == [(1, "school.CourseOpened")]


async def test_a_command_may_have_no_event(store_url: str) -> None:
    """An empty outcome is judged at the head and says so."""
    async with application(store_url) as app:
        await app.execute(OpenCourse(course=PYTHON, capacity=2))
        receipt = await app.execute(Touch(course=PYTHON))
        assert (receipt.position, receipt.events) == (1, ())


async def test_g1_a_command_of_several_events_is_all_or_nothing(store_url: str) -> None:
    """A generator that refuses half-way leaves none of its events."""
    async with application(store_url) as app:
        await app.execute(OpenCourse(course=PYTHON, capacity=1))
        with pytest.raises(Rejected) as refused:
            await app.execute(EnrolMany(courses=(PYTHON, CourseId("rust")), student=ADA))
        assert (refused.value.code, refused.value.facts) == ("course-full", {"course": "rust"})
        assert await recorded(app) == [(1, "school.CourseOpened")]


async def test_a_refusal_may_leave_a_fact(store_url: str) -> None:
    """`Rejected(record=...)` commits the event and still refuses."""
    async with application(store_url) as app:
        with pytest.raises(Rejected) as refused:
            await app.execute(Enrol(course=PYTHON, student=ADA))
        assert refused.value.facts == {"capacity": 0}
        assert await recorded(app) == [(1, "school.EnrolmentRefused")]


async def test_g3_one_seat_goes_to_one_of_many(store_url: str) -> None:
    """Of concurrent commands on one boundary exactly as many succeed as the decision allows."""
    async with application(store_url) as app:
        await app.execute(OpenCourse(course=PYTHON, capacity=3))
        enrolments = [app.execute(Enrol(course=PYTHON, student=StudentId(f"s{n}"))) for n in range(40)]
        outcomes = await asyncio.gather(*enrolments, return_exceptions=True)
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 3
        assert sum(isinstance(outcome, Rejected) for outcome in outcomes) == 37
        types = [type for _, type in await recorded(app)]
        assert types.count("school.Enrolled") == 3


async def test_g3_several_models_are_one_boundary(store_url: str) -> None:
    """A student's limit holds over courses that are enrolled in at the same time."""
    async with application(store_url) as app:
        courses = [CourseId(f"c{n}") for n in range(12)]
        for course in courses:
            await app.execute(OpenCourse(course=course, capacity=9))
        outcomes = await asyncio.gather(
            *(app.execute(Enrol(course=course, student=ADA)) for course in courses), return_exceptions=True
        )
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 5


async def test_g3_a_refusal_holds_only_at_the_head(tmp_path: Path) -> None:
    """What this process has cached never refuses a command that another process has made possible."""
    url = f"sqlite:{tmp_path}/shared.db"
    async with application(url, projecting=False) as here, application(url, projecting=False) as there:
        with pytest.raises(Rejected):
            await here.execute(Enrol(course=PYTHON, student=ADA))
        await there.execute(OpenCourse(course=PYTHON, capacity=1))
        receipt = await here.execute(Enrol(course=PYTHON, student=ADA))
        assert receipt.events == (Enrolled(course=PYTHON, student=ADA),)


async def test_g3_two_processes_on_one_file_sell_each_seat_once(tmp_path: Path) -> None:
    """Two applications with caches of their own race on one boundary; the store judges."""
    url = f"sqlite:{tmp_path}/shared.db"
    async with application(url, projecting=False) as one, application(url, projecting=False) as two:
        await one.execute(OpenCourse(course=PYTHON, capacity=10))
        outcomes = await asyncio.gather(
            *(app.execute(Enrol(course=PYTHON, student=StudentId(f"{n}"))) for n, app in enumerate([one, two] * 15)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 10
        assert all(isinstance(outcome, Receipt | Rejected) for outcome in outcomes)


async def test_g2_a_reader_never_sees_a_gap_nor_an_event_behind_it(store_url: str) -> None:
    """Whoever follows the history while many write hears 1, 2, 3 …, each once."""
    async with application(store_url) as app:
        seen: list[int] = []

        async def follow() -> None:
            async for event in app.events(ALL_EVENTS, follow=True):
                seen.append(event.position)
                if len(seen) == 120:
                    return

        follower = asyncio.ensure_future(follow())
        commands = [OpenCourse(course=CourseId(f"c{n % 130}"), capacity=1) for n in range(200)]
        await asyncio.gather(*(app.execute(command) for command in commands))
        await asyncio.wait_for(follower, 30)
        assert seen == list(range(1, 121))


async def test_g13_a_command_handler_cannot_ask_for_the_read_side() -> None:
    """A read model or a `Reader` in a command handler's signature is refused when the application opens."""
    for wanted in (Reader, Seats):
        context = BoundedContext("school")

        def peek(command: Touch, read: object) -> None:
            raise AssertionError("this handler must not be run")

        peek.__annotations__["read"] = wanted
        context.command_handler(peek)
        with pytest.raises(ConfigurationError, match="peek: parameter `read`"):
            await Application(context, store="memory:").open()


# ── idempotency ──────────────────────────────────────────────────────────────


async def test_g4_the_same_id_gives_the_first_receipt_again(store_url: str) -> None:
    """A repeated command changes nothing and hears what it heard first, events included."""
    async with application(store_url) as app:
        first = await app.execute(OpenCourse(course=PYTHON, capacity=2), command_id="open-1")
        again = await app.execute(OpenCourse(course=PYTHON, capacity=2), command_id="open-1")
        assert again == first
        assert len(await recorded(app)) == 1


async def test_g4_a_refusal_is_kept_for_ids_that_the_caller_gave(store_url: str) -> None:
    """A refused command is refused again, though it would be accepted if it were decided anew."""
    async with application(store_url) as app:
        command = Enrol(course=PYTHON, student=ADA)
        with pytest.raises(Rejected) as first:
            await app.execute(command, command_id="enrol-1")
        await app.execute(OpenCourse(course=PYTHON, capacity=2))
        with pytest.raises(Rejected) as again:
            await app.execute(command, command_id="enrol-1")
        assert (again.value.code, again.value.facts) == (first.value.code, first.value.facts)
        assert (await app.execute(command)).events


async def test_g4_another_payload_under_the_same_id_is_an_error(store_url: str) -> None:
    """An id belongs to one command."""
    async with application(store_url) as app:
        await app.execute(OpenCourse(course=PYTHON, capacity=2), command_id="open-1")
        with pytest.raises(CommandIdReused):
            await app.execute(OpenCourse(course=PYTHON, capacity=3), command_id="open-1")
        with pytest.raises(CommandIdReused):
            await app.execute(Touch(course=PYTHON), command_id="open-1")


async def test_g4_ids_in_flight_join(store_url: str) -> None:
    """The same command sent twice at the same time takes effect once, and both hear the same."""
    async with application(store_url) as app:
        command = OpenCourse(course=PYTHON, capacity=2)
        outcomes = await asyncio.gather(*(app.execute(command, command_id="open-1") for _ in range(20)))
        assert {outcome.position for outcome in outcomes} == {1}
        assert len(await recorded(app)) == 1


async def test_g4_ids_in_flight_with_another_payload_are_refused(store_url: str) -> None:
    """Joining compares payloads too."""
    async with application(store_url) as app:
        first, second = await asyncio.gather(
            app.execute(OpenCourse(course=PYTHON, capacity=2), command_id="open-1"),
            app.execute(OpenCourse(course=PYTHON, capacity=3), command_id="open-1"),
            return_exceptions=True,
        )
        assert isinstance(first, Receipt)
        assert isinstance(second, CommandIdReused)


async def test_g4_across_processes_and_restarts(tmp_path: Path) -> None:
    """Outcomes are in the store: another process, or a later one, hears them."""
    url = f"sqlite:{tmp_path}/shared.db"
    command = OpenCourse(course=PYTHON, capacity=2)
    async with application(url, projecting=False) as one, application(url, projecting=False) as two:
        first, second = await asyncio.gather(
            one.execute(command, command_id="open-1"), two.execute(command, command_id="open-1")
        )
        assert first == second
    async with application(url) as later:
        assert await later.execute(command, command_id="open-1") == first


async def test_g4_a_cancelled_caller_hears_the_outcome_by_its_id() -> None:
    """Cancelling a caller does not cancel what was submitted; the id tells what became of it."""
    async with application("memory:") as app:
        command = OpenCourse(course=PYTHON, capacity=2)
        for turns in range(8):
            caller = asyncio.ensure_future(app.execute(command, command_id=f"open-{turns}"))
            for _ in range(turns):
                await checkpoint()
            caller.cancel()
            await asyncio.wait([caller])
            again = await app.execute(command, command_id=f"open-{turns}")
            assert again.position == 1
        assert len(await recorded(app)) == 1


# ── handlers with services ───────────────────────────────────────────────────


class Meddler:
    """An auditor during whose look somebody enrols."""

    def __init__(self, times: int) -> None:
        self.app: Application | None = None
        self.left = times
        self.seen: list[int] = []

    async def look(self, taken: int) -> None:
        self.seen.append(taken)
        if self.left and self.app is not None:
            self.left -= 1
            await self.app.execute(Enrol(course=PYTHON, student=StudentId(f"s{self.left}")))


async def test_g3_an_async_handler_that_lost_the_race_is_a_conflict(store_url: str) -> None:
    """It is not run twice unless it says that it may be."""
    meddler = Meddler(1)
    async with application(store_url, meddler) as app:
        meddler.app = app
        await app.execute(OpenCourse(course=PYTHON, capacity=9))
        with pytest.raises(Conflict) as conflict:
            await app.execute(Audit(course=PYTHON))
        assert (conflict.value.attempts, conflict.value.position) == (1, 2)
        assert meddler.seen == [0]
        receipt = await app.execute(Audit(course=PYTHON))
        assert receipt.events == (Audited(course=PYTHON, taken=1),)


async def test_g3_an_idempotent_handler_is_run_again_up_to_a_limit(store_url: str) -> None:
    """With `idempotent=True` it is decided again on fresh models; past the limit it is a conflict."""
    context = school()
    context.command_handlers = [
        handler._replace(idempotent=True) if handler.name.endswith("audit") else handler
        for handler in context.command_handlers
    ]
    meddler = Meddler(3)
    async with Application(context, store=store_url, services={Auditor: meddler}) as app:
        meddler.app = app
        await app.execute(OpenCourse(course=PYTHON, capacity=99))
        receipt = await app.execute(Audit(course=PYTHON))
        assert receipt.events == (Audited(course=PYTHON, taken=3),)
        meddler.left = 99
        with pytest.raises(Conflict) as conflict:
            await app.execute(Audit(course=PYTHON))
        assert conflict.value.attempts == 10


async def test_nothing_is_held_while_a_handler_awaits(store_url: str) -> None:
    """Other commands, of the same entity too, go through while a handler waits for the world."""
    started, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        async def look(self, taken: int) -> None:
            started.set()
            await go_on.wait()

    async with application(store_url, Slow()) as app:
        audit = asyncio.ensure_future(app.execute(Audit(course=PYTHON)))
        await started.wait()
        assert (await app.execute(OpenCourse(course=CourseId("rust"), capacity=1))).position == 1
        go_on.set()
        assert (await audit).position == 2


# ── limits and errors ────────────────────────────────────────────────────────


async def test_g12_more_commands_than_the_limit_are_refused() -> None:
    """Past the named limit the caller gets `Overloaded`, and what was accepted goes through."""
    async with application("memory:", commands_waiting_max=10) as app:
        commands = (app.execute(OpenCourse(course=CourseId(f"c{n}"), capacity=1)) for n in range(25))
        outcomes = await asyncio.gather(*commands, return_exceptions=True)
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 10
        overloaded = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert len(overloaded) == 15
        assert (overloaded[0].limit_name, overloaded[0].limit) == ("commands_waiting_max", 10)
        assert len(await recorded(app)) == 10


async def test_wrong_types_are_refused_before_anything_happens(store_url: str) -> None:
    """A command whose fields have the wrong types names field and type."""
    async with application(store_url) as app:
        with pytest.raises(InvalidMessage) as invalid:
            await app.execute(OpenCourse(course=PYTHON, capacity="two"))  # type: ignore[arg-type]
        assert invalid.value.problems[0][0] == "$.capacity"
        assert await recorded(app) == []


@pytest.mark.parametrize("text", ["nul\0", "lone \ud800 surrogate"])
async def test_text_that_no_store_keeps_is_refused(store_url: str, text: str) -> None:
    """NUL and lone surrogates are refused on the way in."""
    async with application(store_url) as app:
        with pytest.raises(InvalidMessage):
            await app.execute(OpenCourse(course=CourseId(text), capacity=2))


@pytest.mark.parametrize("fee", ["NaN", "sNaN12", "Infinity", "-Infinity"])
async def test_decimals_are_finite(fee: str) -> None:
    """A decimal that no column could hold is refused at its path, before it is a fact that blocks a row."""
    context = BoundedContext("till")

    class Charge(Command):
        fees: tuple[Decimal, ...]

    @context.command_handler
    def charge(command: Charge) -> None: ...

    async with Application(context, store="memory:") as app:
        with pytest.raises(InvalidMessage) as invalid:
            await app.execute(Charge(fees=(Decimal(1), Decimal(fee))))
        assert invalid.value.problems[0][0] == "$.fees[1]"
        assert (await app.execute(Charge(fees=(Decimal("1E+20"),)))).position == 0


async def test_a_handler_says_what_it_gives() -> None:
    """Without a return annotation its events would be unknown at the first command: it is refused at the opening."""
    context = BoundedContext("school")

    def silent(command: Touch):  # type: ignore[no-untyped-def]
        return None

    context.command_handler(silent)
    with pytest.raises(ConfigurationError, match="silent: annotate what it gives"):
        await Application(context, store="memory:").open()


@pytest.mark.parametrize("command_id", ["", "x" * 129, "line\nbreak"])
async def test_command_ids_are_checked(command_id: str) -> None:
    """An id has 1 to 128 printable characters."""
    async with application("memory:") as app:
        with pytest.raises(InvalidMessage):
            await app.execute(Touch(course=PYTHON), command_id=command_id)


async def test_unknown_commands_name_close_ones() -> None:
    """A command without handler is named, with what is close to it."""

    class Enroll(Command):
        course: CourseId

    async with application("memory:") as app:
        with pytest.raises(UnknownMessage) as unknown:
            await app.execute(Enroll(course=PYTHON))
        assert unknown.value.close[0] == "Enrol"


async def test_a_handler_that_fails_fails_alone(store_url: str) -> None:
    """An exception of the user's code reaches its caller; the others in the batch go on."""
    context = BoundedContext("broken")

    class Break(Command):
        course: CourseId

    @context.command_handler
    def break_it(command: Break) -> None:
        raise ZeroDivisionError

    async with Application(school(), context, store=store_url, services={Auditor: Silent()}) as app:
        outcomes = await asyncio.gather(
            app.execute(OpenCourse(course=PYTHON, capacity=1)),
            app.execute(Break(course=PYTHON)),
            app.execute(OpenCourse(course=CourseId("rust"), capacity=1)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [Receipt, ZeroDivisionError, Receipt]


async def test_events_that_cannot_be_stored_are_the_handlers_fault(store_url: str) -> None:
    """A handler that gives an event with a wrong type is named, and nothing is stored."""
    context = BoundedContext("broken")

    class Give(Command):
        course: CourseId

    class Given(Event):
        when: datetime

    @context.command_handler
    def give(command: Give) -> Given:
        return Given(when=datetime(2026, 1, 1))  # noqa: DTZ001

    async with Application(context, store=store_url) as app:
        with pytest.raises(InvalidEvent) as invalid:
            await app.execute(Give(course=PYTHON))
        assert "give" in invalid.value.handler
        assert await recorded(app) == []


async def test_middleware_wraps_every_command() -> None:
    """The first middleware is outermost; one may refuse before anything else happens."""
    seen: list[str] = []

    async def outer(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        seen.append("outer")
        receipt = await proceed(command, context)
        seen.append("after")
        return receipt

    async def authorise(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        seen.append(f"authorise {context.actor}")
        if context.actor != "admin":
            raise Rejected("forbidden")
        return await proceed(command, context)

    async with application("memory:", command_middleware=[outer, authorise]) as app:
        with pytest.raises(Rejected):
            await app.execute(Touch(course=PYTHON), actor="guest")
        await app.execute(Touch(course=PYTHON), actor="admin")
        assert seen == ["outer", "authorise guest", "outer", "authorise admin", "after"]


async def test_a_closed_application_says_so() -> None:
    """Before open and after close, nothing runs."""
    app = application("memory:")
    with pytest.raises(StoreClosed):
        await app.execute(Touch(course=PYTHON))
    async with app:
        pass
    with pytest.raises(StoreClosed):
        await app.execute(Touch(course=PYTHON))


async def test_closing_finishes_what_was_submitted(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that was submitted before the close is committed and answered."""
    submit, submitted = GroupCommit.submit, asyncio.Semaphore(0)

    def submit_and_tell(group: GroupCommit, attempt: Attempt) -> None:
        submit(group, attempt)
        submitted.release()

    monkeypatch.setattr(GroupCommit, "submit", submit_and_tell)
    app = application(store_url)
    await app.open()
    callers = [asyncio.ensure_future(app.execute(OpenCourse(course=CourseId(f"c{n}"), capacity=1))) for n in range(5)]
    for _ in callers:
        await submitted.acquire()
    await app.close()
    assert sorted([(await caller).position for caller in callers]) == [1, 2, 3, 4, 5]


async def test_a_cold_hot_model_is_folded_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that want the same model at the same time share one reading of its history."""
    url = f"sqlite:{tmp_path}/events.db"
    async with application(url) as app:
        await app.execute(OpenCourse(course=PYTHON, capacity=99))
        await asyncio.gather(*(app.execute(Enrol(course=PYTHON, student=StudentId(f"s{n}"))) for n in range(20)))
    monkeypatch.setattr("diptych.write_side.command_bus.FOLD_PAGE_EVENTS", 2)  # several readings, the others meanwhile
    async with application(url) as app:
        reads = 0
        store = app.partition().store
        read = store.read

        async def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*arguments, **options)

        monkeypatch.setattr(store, "read", counted)
        await asyncio.gather(*(app.execute(Touch(course=PYTHON)) for _ in range(30)))
        assert reads <= 12


async def test_the_envelope_travels_with_the_events(store_url: str) -> None:
    """Who, and as part of what, is kept with every event."""
    async with application(store_url) as app:
        await app.execute(
            OpenCourse(course=PYTHON, capacity=1),
            command_id="open-1",
            actor="ada",
            correlation_id="c",
            causation_id="k",
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        (found,) = [event async for event in app.events(ALL_EVENTS)]
        assert found.metadata == (
            b'{"command_id":"open-1","correlation_id":"c","causation_id":"k","actor":"ada",'
            b'"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}'
        )
        assert found.tags == ("course:python",)
        assert found.recorded_at.tzinfo is UTC


async def test_enrolment_refusals_are_declared() -> None:
    """An event that no annotation names is unknown, and the error says where to name it."""
    context = school()
    context.events = ()
    async with Application(context, store="memory:", services={Auditor: Silent()}) as app:
        with pytest.raises(ConfigurationError, match=r"EnrolmentRefused.*events="):
            await app.execute(Enrol(course=PYTHON, student=ADA))
        assert EnrolmentRefused.__name__ == "EnrolmentRefused"
