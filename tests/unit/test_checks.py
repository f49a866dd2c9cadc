"""`application/checks.py`: each kind of finding, on a small application that has it, and none on one that has not."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from diptych.application.checks import EVENTS_NAMED_MAX, Finding, findings, misfit
from diptych.application.model import application_model
from diptych.errors import ConfigurationError

Check = Callable[[str], list[Finding]]
_numbers = itertools.count(1)

HEADER = """
from __future__ import annotations

import functools, os, pathlib, random, threading, time, uuid
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from time import time as what_time
from typing import Any, assert_never

from diptych import (
    BoundedContext, Command, CommandContext, CommandRejected, DecisionModel, Event, EventContext, Identity, Indexed,
    Key, ProcessManager, Query, Reaction, Reader, ReadModel, Timeout, Value, replace,
)

school = BoundedContext("school")

class CourseId(Identity): ...
class Enrol(Command):
    course: CourseId
class Enrolled(Event):
    course: CourseId
    seat: int = 0
class Left(Event):
    course: CourseId
class Seats(ReadModel):
    course: Key[CourseId]
    taken: int = 0
    seen: float = 0
class Mailer: ...

@school.command_handler
def enrol(command: Enrol) -> Enrolled:
    return Enrolled(course=command.course)
"""
PROJECTED = """
@school.projection
def seats(row: Seats, event: Enrolled) -> Seats:
    return replace(row, taken=row.taken + 1)
"""


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], ModuleType]:
    """Makes a module of what is written behind `HEADER`. It stays: its classes are found for as long as they live."""

    def make(source: str) -> ModuleType:
        name = f"checked_school_{next(_numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(HEADER + source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        spec.loader.exec_module(found)
        return found

    return make


@pytest.fixture
def check(module: Callable[[str], ModuleType]) -> Check:
    """The findings of a module."""
    return lambda source: findings(application_model([module(source).school]))


def line_of(finding: Finding) -> str:
    """The line that a finding is about."""
    return Path(finding.place.file).read_text().splitlines()[finding.place.line - 1].strip()


# ── messages ─────────────────────────────────────────────────────────────────


def test_a_sound_application_has_nothing(check: Check) -> None:
    """No finding, of whatever severity."""
    assert check(PROJECTED) == []


def test_a_command_without_handler_is_found(check: Check) -> None:
    """Where it is written, with what to write; a base class of others needs none."""
    source = """
class OfCourse(Command):
    course: CourseId
class Leave(OfCourse): ...
"""
    (finding,) = check(PROJECTED + source)
    assert (finding.code, finding.severity) == ("command-without-handler", "error")
    assert finding.problem == "Leave has no handler"
    assert "@context.command_handler that takes a Leave" in finding.remedy
    assert line_of(finding) == "class Leave(OfCourse): ..."
    handled = "@school.command_handler\ndef leave(command: Leave) -> Enrolled: return Enrolled(course=command.course)\n"
    assert check(PROJECTED + source + handled) == []


def test_commands_of_modules_that_are_not_the_contexts_own_are_left_alone(
    check: Check, module: Callable[[str], ModuleType]
) -> None:
    """Another application in the same process has its own handlers, which are not looked at."""
    other = module("class Foreign(Command):\n    course: CourseId\n")
    assert other.Foreign
    assert check(PROJECTED) == []


def test_what_another_context_handles_is_left_alone(check: Check) -> None:
    """One that is imported and not looked at: a module may hold several, and a check is often of one."""
    source = """
office = BoundedContext("office")
class Leave(Command):
    course: CourseId
@office.command_handler
def leave(command: Leave) -> Left:
    return Left(course=command.course)
class Leavers(ReadModel):
    course: Key[CourseId]
@office.projection
def leavers(row: Leavers, event: Left) -> Leavers:
    return row
class LeaverOf(Query[Leavers | None]):
    course: CourseId
class HowMany(Query[int]): ...
@office.query_handler
async def how_many(query: HowMany) -> int:
    return 1
"""
    assert check(PROJECTED + source) == []
    assert [finding.code for finding in check(PROJECTED + source.replace("@office", "@BoundedContext('x')"))] == [
        "command-without-handler",
        "query-without-handler",
        "query-without-handler",
    ]


def test_a_query_without_handler_is_found(check: Check) -> None:
    """One that a read model answers needs none."""
    source = """
class HowMany(Query[int]): ...
class SeatsOf(Query[Seats | None]):
    course: CourseId
"""
    (finding,) = check(PROJECTED + source)
    assert (finding.code, finding.severity) == ("query-without-handler", "error")
    assert finding.problem == "HowMany has no handler"
    handled = "@school.query_handler\nasync def how_many(query: HowMany, mailer: Mailer) -> int: return 1\n"
    assert check(PROJECTED + source + handled) == []


def test_a_command_that_a_process_sends_without_handler_is_found(check: Check) -> None:
    """Wherever it is defined, and however deep in the code of the process."""
    source = """
class Leave(Command):
    course: CourseId
@school.process_manager
class Ending(ProcessManager[CourseId]):
    course: CourseId
    def react(self, event: Enrolled) -> Reaction[Ending]:
        return Reaction(self, self._commands())
    def _commands(self) -> list[Leave]:
        return [Leave(course=self.course)]
"""
    problems = [finding.problem for finding in check(source)]
    assert problems == ["Leave has no handler", "Ending sends Leave, which has no handler"]
    handled = "@school.command_handler\ndef leave(command: Leave) -> Enrolled: return Enrolled(course=command.course)\n"
    assert check(source + handled) == []


def test_an_event_that_nobody_takes_is_found(check: Check) -> None:
    """A warning; folded, subscribed to, reacted to, or listed as the context's, it has somewhere to go."""
    (finding,) = check("")
    assert (finding.code, finding.severity) == ("event-without-reader", "warning")
    assert finding.problem.startswith("Enrolled is stored, and no decision model")
    assert "BoundedContext('school', events=[Enrolled])" in finding.remedy
    assert line_of(finding) == "class Enrolled(Event):"
    subscribed = "@school.subscriber\nasync def tell(events: Sequence[tuple[Enrolled, EventContext]]) -> None: ...\n"
    assert check(subscribed) == []
    assert check("school.events = (Enrolled,)\n") == []


# ── purity ───────────────────────────────────────────────────────────────────

IMPURE = [
    ("time.time()", "reads-clock", "error"),
    ("what_time()", "reads-clock", "error"),
    ("time.monotonic()", "reads-clock", "error"),
    ("datetime.now().timestamp()", "reads-clock", "error"),
    ("dt.datetime.utcnow().timestamp()", "reads-clock", "error"),
    ("date.today().year", "reads-clock", "error"),
    ("random.random()", "reads-chance", "error"),
    ("random.choice([1, 2])", "reads-chance", "error"),
    ("uuid.uuid4().int", "reads-chance", "error"),
    ("len(os.urandom(3))", "reads-chance", "error"),
    ("len(os.environ['HOME'])", "reaches-outside", "error"),
    ("len(os.getenv('HOME', ''))", "reaches-outside", "error"),
    ("len(open('x').read())", "reaches-outside", "error"),
    ("len(pathlib.Path('x').read_text())", "reaches-outside", "error"),
    ("threading.active_count()", "reaches-outside", "error"),
    ("len(input())", "reaches-outside", "error"),
    ("print('folded') or 1", "reaches-outside", "warning"),
    ("hash('x')", "reads-chance", "warning"),
]
PURE = [
    "datetime(2020, 1, 1).timestamp()",
    "datetime.fromisoformat('2020-01-01').timestamp()",
    "timedelta(days=1).total_seconds()",
    "random.Random(row.course).random()",
    "len(os.path.join('a', 'b'))",
    "uuid.uuid5(uuid.NAMESPACE_DNS, row.course).int",
    "len(pathlib.PurePath('a').name)",
    "(lambda time: time.time())(row.taken)",
]


def folding(expression: str) -> str:
    return f"""
@school.projection
def seats(row: Seats, event: Enrolled) -> Seats:
    return replace(row, seen={expression})
"""


@pytest.mark.parametrize(("expression", "code", "severity"), IMPURE)
def test_a_projection_that_takes_what_it_is_not_given_is_found(
    check: Check, expression: str, code: str, severity: str
) -> None:
    """At the line that names it, under whatever name it was imported."""
    (finding,) = check(folding(expression))
    assert (finding.code, finding.severity) == (code, severity)
    assert expression in line_of(finding)
    assert finding.problem.startswith("seats names ")


@pytest.mark.parametrize("expression", PURE)
def test_what_only_looks_like_it_is_left_alone(check: Check, expression: str) -> None:
    """Times that are given, chance from a seed, names that mean something else."""
    assert check(folding(expression)) == []


@pytest.mark.parametrize(("expression", "code", "severity"), IMPURE)
def test_a_pure_decider_is_looked_at_as_well(check: Check, expression: str, code: str, severity: str) -> None:
    """It is decided again where it lost a race."""
    source = f"""
class Leave(Command):
    course: CourseId
@school.command_handler
def leave(command: Leave) -> Enrolled:
    return Enrolled(course=command.course, seat={expression})
"""
    (finding,) = check(PROJECTED + source)
    assert (finding.code, finding.severity) == (code, severity)
    assert finding.problem.startswith("leave names ")


@pytest.mark.parametrize(
    "signature",
    ["async def leave(command: Leave) -> Enrolled", "def leave(command: Leave, mailer: Mailer) -> Enrolled"],
)
def test_a_decider_that_is_async_or_takes_services_may_do_as_it_likes(check: Check, signature: str) -> None:
    """It is run once."""
    source = f"""
class Leave(Command):
    course: CourseId
@school.command_handler
{signature}:
    return Enrolled(course=command.course, seat=int(time.time()) + len(open("x").read()))
"""
    assert check(PROJECTED + source) == []


def test_a_decider_may_make_identities_and_a_fold_may_not(check: Check) -> None:
    """What is new is named once, and the event keeps it."""
    source = """
class Open(Command): ...
@school.command_handler
def open_course(command: Open) -> Enrolled:
    return Enrolled(course=CourseId.new())
"""
    assert check(PROJECTED + source) == []
    (finding,) = check(folding("len(CourseId.new())"))
    assert (finding.code, finding.problem) == (
        "reads-chance",
        "seats names CourseId.new, which is by chance",
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            """
def later() -> float:
    return inner()
def inner() -> float:
    return time.time()
"""
            + folding("later()"),
            "seats, by inner, names time.time",
        ),
        (
            """
class Watch:
    def __init__(self) -> None:
        self.begun = time.time()
"""
            + folding("Watch().begun"),
            "seats, by Watch.__init__, names time.time",
        ),
        (
            """
def traced(function):
    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments)
    return call
@traced
def now() -> float:
    return time.time()
"""
            + folding("now()"),
            "seats, by now, names time.time",
        ),
        (
            """
def seats_key(event: Enrolled) -> str:
    return str(time.time())
@school.projection(key=seats_key)
def seats(row: Seats, event: Enrolled) -> Seats:
    return row
""",
            "key= of seats names time.time",
        ),
        (
            """
@school.projection(key=lambda event: str(time.time()))
def seats(row: Seats, event: Enrolled) -> Seats:
    return row
""",
            "key= of seats names time.time",
        ),
        (
            """
class Course(DecisionModel[CourseId]):
    seen: float = 0
    def evolve(self, event: Enrolled) -> Course:
        return self.later()
    def later(self) -> Course:
        return replace(self, seen=time.time())
class Leave(Command):
    course: CourseId
@school.command_handler
def leave(command: Leave, course: Course) -> Enrolled:
    return Enrolled(course=command.course)
""",
            "Course.evolve, by Course.later, names time.time",
        ),
        (
            """
@school.process_manager
class Ending(ProcessManager[CourseId]):
    seen: float = 0
    def react(self, event: Enrolled) -> Reaction[Ending]:
        from time import time as imported_here
        return Reaction(replace(self, seen=imported_here()))
""",
            "Ending.react names imported_here",
        ),
    ],
    ids=["helper", "constructor", "wrapped", "key", "lambda", "evolve", "react"],
)
def test_what_a_fold_reaches_is_looked_at(check: Check, source: str, problem: str) -> None:
    """Functions, methods and constructors of the same distribution, and all that a projection is made of."""
    (finding,) = check(source)
    assert finding.code == "reads-clock"
    assert finding.problem.startswith(problem)
    assert "recorded_at" in finding.remedy


def test_an_upcaster_is_a_fold(check: Check) -> None:
    """Everything that is folded from such events depends on it."""
    source = """
class Renamed(Event, version=2):
    course: CourseId
@school.upcaster(Renamed, from_version=1)
def renamed_from_1(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**stored, "at": time.time()}
@school.projection
def seats(row: Seats, event: Enrolled | Renamed) -> Seats:
    return row
"""
    (finding,) = check(source)
    assert finding.problem == "the upcaster renamed_from_1 names time.time, which reads the clock"


def test_query_handlers_and_subscribers_may_do_as_they_like(check: Check) -> None:
    """Nothing is folded from what they do."""
    source = """
class HowMany(Query[int]): ...
@school.query_handler
async def how_many(query: HowMany, read: Reader) -> int:
    return int(time.time())
@school.subscriber
async def tell(events: Sequence[tuple[Enrolled, EventContext]]) -> None:
    print(time.time())
"""
    assert check(PROJECTED + source) == []


def test_functions_that_call_each_other_are_read_once(check: Check) -> None:
    """The reading ends."""
    source = """
def even(n: int) -> bool:
    return n == 0 or odd(n - 1)
def odd(n: int) -> bool:
    return n != 0 and even(n - 1)
"""
    assert check(source + folding("even(row.taken)")) == []


# ── totality ─────────────────────────────────────────────────────────────────


def with_left(body: str, returns: str = "Seats") -> str:
    return f"""
class Leave(Command):
    course: CourseId
@school.command_handler
def leave(command: Leave) -> Left:
    return Left(course=command.course)
@school.projection
def seats(row: Seats, event: Enrolled | Left) -> {returns}:
{body}
"""


FIRST = "    match event:\n        case Enrolled():\n            return row"
PARTIAL = [
    FIRST,
    "    match event:\n        case Enrolled(seat=1):\n            return row" + FIRST.partition(":")[2],
    "    if isinstance(event, Enrolled):\n        return row",
    "    if not isinstance(event, Left):\n        return row\n    elif row.taken > 1:\n        print",
    "    if not isinstance(event, Left):\n        return row\n    if isinstance(event, Enrolled):\n        return",
    FIRST + "\n        case Left():\n            row = replace(row, taken=0)",
]
TOTAL = [
    FIRST + "\n        case Left() if row.taken:\n            row = row\n        case Left():\n            return row",
    "    if isinstance(event, Enrolled):\n        return row\n    assert isinstance(event, Enrolled)",
    FIRST + "\n        case Left():\n            return row",
    "    match event:\n        case Enrolled() | Left():\n            return row",
    FIRST + "\n        case _:\n            return row",
    FIRST + "\n        case other:\n            return row",
    FIRST + "\n        case Event():\n            return row",
    FIRST + "\n    return row",
    FIRST + "\n        case Left() if row.taken:\n            return row",
    "    if isinstance(event, Enrolled):\n        return row\n    return row",
    "    if isinstance(event, (Enrolled, Left)):\n        return row",
    "    if isinstance(event, Enrolled | Left):\n        return row",
    "    if isinstance(event, Enrolled):\n        return row\n    elif isinstance(event, Left):\n        return row",
    "    if isinstance(event, Enrolled):\n        return row\n    raise ValueError(event)",
    "    if isinstance(event, Enrolled):\n        return row\n    assert_never(event)",
    "    assert isinstance(event, Enrolled)\n    return row",
    "    if type(event) is Enrolled:\n        return row\n    else:\n        return row",
    "    if row.taken:\n        return row\n    while True:\n        row = replace(row, taken=row.taken - 1)",
    "    try:\n        return row\n    finally:\n        row = row",
    "    for _ in range(3):\n        return row",
]


@pytest.mark.parametrize("body", PARTIAL)
def test_a_fold_that_leaves_an_event_out_is_found(check: Check, body: str) -> None:
    """An error: it gives None at the first of those events."""
    found = [finding for finding in check(with_left(body)) if finding.code == "fold-not-total"]
    (finding,) = found
    assert finding.severity == "error"
    assert finding.problem == "seats takes Left, and has nothing for it: it ends without a return"
    assert line_of(finding) == "@school.projection"


@pytest.mark.parametrize("body", TOTAL)
def test_a_fold_that_has_something_for_each_event_is_left_alone(check: Check, body: str) -> None:
    """And one of which it is not certain."""
    assert check(with_left(body)) == []


def test_a_fold_that_may_delete_the_row_is_only_warned_of(check: Check) -> None:
    """Perhaps it is meant; said out loud it is no finding."""
    (finding,) = check(with_left(PARTIAL[0], "Seats | None"))
    assert (finding.code, finding.severity) == ("fold-not-total", "warning")
    assert "say `return None`" in finding.remedy
    assert check(with_left(f"{PARTIAL[0]}\n    return None", "Seats | None")) == []


def test_models_and_processes_have_to_be_total_as_well(check: Check) -> None:
    """Rejections and timeouts included."""
    source = """
class Leave(Command):
    course: CourseId
class Overdue(Timeout):
    course: CourseId
class Course(DecisionModel[CourseId]):
    def evolve(self, event: Enrolled | Left) -> Course:
        match event:
            case Left():
                return self
@school.command_handler
def leave(command: Leave, course: Course) -> Left:
    return Left(course=command.course)
@school.process_manager
class Ending(ProcessManager[CourseId]):
    def react(self, event: Enrolled | Overdue | CommandRejected[Leave]) -> Reaction[Ending]:
        match event:
            case Enrolled():
                return Reaction(self)
"""
    assert sorted(finding.problem for finding in check(source)) == [
        "Course.evolve takes Enrolled, and has nothing for it: it ends without a return",
        "Ending.react takes Overdue, LeaveRejected, and has nothing for it: it ends without a return",
    ]
    total = source.replace("case Enrolled():", "case Enrolled() | Overdue() | CommandRejected():")
    assert check(total.replace("case Left():", "case Left() | Enrolled():")) == []


def test_of_many_events_a_few_are_named(check: Check) -> None:
    """The message stays readable."""
    names = [f"Event{n}" for n in range(EVENTS_NAMED_MAX + 2)]
    classes = "".join(f"class {name}(Event):\n    course: CourseId\n" for name in names)
    source = f"""
{classes}
@school.projection
def seats(row: Seats, event: Enrolled | {" | ".join(names)}) -> Seats:
    if isinstance(event, Enrolled):
        return row
"""
    (finding,) = check(source)
    assert "Event4 and 2 more, and has nothing for it" in finding.problem


# ── speed, and what does not compile ─────────────────────────────────────────


def test_slices_of_which_each_folds_everything_are_found(check: Check) -> None:
    """With the reason; a key that can be told of the event is the way out."""
    source = """
class Attendance(ReadModel):
    student: Key[str]
@school.projection(partitions=4{})
def attendance(event: Enrolled) -> Attendance:
    return Attendance(student=event.course)
"""
    (finding,) = check(source.format(""))
    assert (finding.code, finding.severity) == ("every-slice-folds-all", "warning")
    assert finding.problem.startswith("Attendance is split into 4 slices, and only the row that attendance gives")
    assert (
        check(source.format(", key=lambda event: event.course").replace("(event: E", "(row: Attendance, event: E"))
        == []
    )
    assert check(source.format("").replace("partitions=4", "version=2")) == []


def test_slices_of_which_each_reads_what_all_find_are_found(check: Check) -> None:
    """With the columns; one slice finds its rows as quickly as there is."""
    source = """
class Seat(ReadModel):
    seat: Key[str]
    course: Indexed[str] = ""
@school.projection(where="course"{})
def seat(row: Seat, event: Enrolled) -> Seat:
    return row
"""
    (finding,) = check(source.format(", partitions=4"))
    assert (finding.code, finding.severity) == ("every-slice-finds-all", "warning")
    assert finding.problem.startswith("Seat is split into 4 slices, and seat finds rows by course: every slice reads")
    assert check(source.format("")) == []


def test_what_does_not_compile_is_one_finding(module: Callable[[str], ModuleType]) -> None:
    """At the function that the error names."""
    made = module("@school.command_handler\ndef again(command: Enrol, other: 'Nothing') -> Enrolled: ...\n")
    with pytest.raises(ConfigurationError) as error:
        application_model([made.school])
    finding = misfit(error.value, [made.school])
    assert (finding.code, finding.severity) == ("does-not-compile", "error")
    assert "names Nothing, which does not exist at run time" in finding.problem
    assert line_of(finding) == "@school.command_handler"


def test_findings_are_in_the_order_of_the_code(check: Check) -> None:
    """By line, whatever kind they are of."""
    found = check(folding("time.time() + hash('x')") + "class Leave(Command):\n    course: CourseId\n")
    lines = [finding.place.line for finding in found]
    assert len(found) == 3
    assert lines == sorted(lines)
