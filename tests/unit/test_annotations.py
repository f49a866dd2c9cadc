"""Annotations as types: strings, local classes, aliases, quotes; and an error that says what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeAlias, Union

import pytest

from diptych import BoundedContext, Command, ConfigurationError, DecisionModel, Event, Identity, Query, Value, replace
from diptych.application.registration import event_types
from diptych.messages.annotations import (
    evaluate,
    kebab_case,
    mapped,
    members,
    parameter_types,
    scope_of_caller,
    snake_case,
    subclasses,
    unwrap,
)
from diptych.messages.event import event_classes
from diptych.messages.query import answer_type

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


class CourseId(Identity): ...


class SchoolEvent(Event):
    course: CourseId


class Opened(SchoolEvent): ...


class Closed(SchoolEvent):
    reason: str = ""


class ClosedForGood(Closed): ...


class Unrelated(Event): ...


Either: TypeAlias = Opened | Closed
Old = Union[Opened, Unrelated]  # noqa: UP007 — both spellings
Quoted: TypeAlias = "Opened | Unrelated"
Nested: TypeAlias = Either | Unrelated


@pytest.mark.parametrize(
    ("annotation", "classes"),
    [
        (Opened, (Opened,)),
        ("Opened", (Opened,)),
        (Either, (Opened, Closed, ClosedForGood)),
        ("Either", (Opened, Closed, ClosedForGood)),
        (Old, (Opened, Unrelated)),
        ("Old", (Opened, Unrelated)),
        ("Quoted", (Opened, Unrelated)),
        (Nested, (Opened, Closed, ClosedForGood, Unrelated)),
        (Annotated[Either, "why"], (Opened, Closed, ClosedForGood)),
        (SchoolEvent, (SchoolEvent, Opened, Closed, ClosedForGood)),
        (Opened | Opened, (Opened,)),
        (Closed | ClosedForGood, (Closed, ClosedForGood)),
    ],
)
def test_the_events_of_an_annotation(annotation: Any, classes: tuple[type, ...]) -> None:
    """Unions are opened, through any alias; a base class stands for its subclasses; each is named once."""
    assert event_classes(evaluate(annotation, globals(), {}, "here"), "here") == classes


@pytest.mark.parametrize("annotation", [int, Opened | None, Opened | int, Any, list[Opened], "not an annotation"])
def test_what_is_no_event_is_refused(annotation: Any) -> None:
    """A member that is no event is named, with who annotated it."""
    with pytest.raises(ConfigurationError, match="school.fold"):
        event_classes(annotation, "school.fold")


def test_local_classes_are_found() -> None:
    """Classes local to a function are found where the annotations are strings."""

    class Local(Event):
        course: CourseId

    class Model(DecisionModel[CourseId]):
        count: int = 0

        def evolve(self, event: Local) -> Model:
            return replace(self, count=self.count + 1)

    class Do(Command):
        course: CourseId

    context = BoundedContext("local")

    @context.command_handler
    def do(command: Do, model: Model) -> Local:
        return Local(course=command.course)

    assert [found.cls for found in event_types([context])] == [Local]


def test_names_of_an_enclosing_function_are_found() -> None:
    """What a function closes over counts, one level up too."""

    class Outer(Event): ...

    def inside() -> BoundedContext:
        context = BoundedContext("inner")

        class Do(Command): ...

        @context.command_handler
        def do(command: Do) -> Outer | None:
            return Outer()

        return context

    assert [found.cls for found in event_types([inside()])] == [Outer]


def test_a_name_only_for_type_checkers_says_so() -> None:
    """The error names who, what and the remedy, ruff's setting included."""

    class Do(Command): ...

    context = BoundedContext("checkers")

    @context.command_handler  # type: ignore[type-var]  # it is no event either
    def do(command: Do) -> OnlyForCheckers:
        raise NotImplementedError

    with pytest.raises(ConfigurationError) as wrong:
        event_types([context])
    text = str(wrong.value)
    assert "test_a_name_only_for_type_checkers_says_so.<locals>.do" in text
    assert "names OnlyForCheckers, which does not exist at run time" in text
    assert "TYPE_CHECKING" in text
    assert "runtime-evaluated-decorators" in text


def test_a_field_only_for_type_checkers_says_so() -> None:
    """The same for a message's field, before the first message is decoded."""

    class Priced(Event):
        price: OnlyForCheckers

    context = BoundedContext("checkers", events=[Priced])
    with pytest.raises(ConfigurationError, match=r"Priced\.price: .*names OnlyForCheckers.*TYPE_CHECKING"):
        event_types([context])


@pytest.mark.parametrize("annotation", ["Opened |", "Opened.missing", "1 | Opened | 2", "Opened['x']", "1 / 0"])
def test_an_annotation_that_cannot_be_evaluated_says_so(annotation: str) -> None:
    """Whatever else is wrong in an annotation is a configuration error that names it, and no bare TypeError."""
    with pytest.raises(ConfigurationError) as wrong:
        evaluate(annotation, globals(), {}, "school.fold")
    assert "school.fold" in str(wrong.value)
    assert repr(annotation) in str(wrong.value)


def test_modules_without_future_annotations_work() -> None:
    """Annotations that are objects, with quotes inside for what is defined later."""
    source = """
from typing import Optional
from diptych import *
from diptych.application.registration import event_types, command_handlers, projections
from diptych.messages.tags import tag_reader
from diptych.messages.codec import Codec
class CourseId(Identity): ...
class Happened(Event):
    line: Optional["Line"] = None
    lines: list["Line"] = []
    either: "Line | None" = None
class Line(Value):
    course: CourseId
class Do(Command):
    course: CourseId
class Model(DecisionModel[CourseId]):
    def evolve(self, event: Happened) -> "Model":
        return self
class Row(ReadModel):
    course: Key[CourseId]
context = BoundedContext("plain")
@context.command_handler
def do(command: Do, model: Model) -> "Happened | None": ...
@context.projection(each=lambda event: event.lines)
def rows(row: Row, event: Happened, line: "Line") -> Row:
    return row
types = event_types([context])
command_handlers([context], {}, types)
projections([context], types)
line = Line(course=CourseId("a"))
assert tag_reader(Happened).read(Happened(lines=[line])) == ("course:a",)
assert tag_reader(Happened).read(Happened(line=line)) == ("course:a",)
assert Codec(Happened).settle(Happened(either=line))[1] == Happened(either=line)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_the_answer_of_a_query_is_found() -> None:
    """Through subclasses, and as a string; a query that does not say is told so."""

    class Base(Query["Sequence[int] | None"]): ...

    class Derived(Base):
        extra: int = 0

    class Silent(Query): ...  # type: ignore[type-arg]

    assert answer_type(Derived) == Sequence[int] | None
    with pytest.raises(ConfigurationError, match=r"class Silent\(Query\[int\]\)"):
        answer_type(Silent)


def test_parameter_types_leave_out_what_is_not_annotated() -> None:
    """Only what is annotated, and only what is asked for, is evaluated."""

    def function(first: CourseId, second, *, third: OnlyForCheckers = None) -> Opened:  # type: ignore[no-untyped-def, assignment]  # noqa: RUF013
        raise NotImplementedError

    assert parameter_types(function, {}, "f", only=["first", "second", "return"]) == {
        "first": CourseId,
        "return": Opened,
    }


def test_scopes_are_empty_at_the_top_level_of_a_module() -> None:
    """Only local names have to be remembered."""

    def caller() -> dict[str, Any]:
        own = 1
        return dict(called(own))

    def called(own: int) -> Any:
        return scope_of_caller()

    assert caller() == {"own": 1, "called": called}


def test_members_and_marks() -> None:
    """Unions are opened and marks are kept apart."""
    assert members(Optional[int]) == (int, type(None))  # noqa: UP045
    assert members(Annotated[int | str, "x"]) == (int, str)
    assert unwrap(Annotated[Annotated[int, "a"], "b"]) == (int, ("a", "b"))
    assert subclasses(Closed) == (Closed, ClosedForGood)


def test_parts_of_annotations_are_changed_and_the_rest_is_kept() -> None:
    """Marks, literals and what does not change stay as they are."""

    def to_str(part: Any) -> Any:
        return str if part is int else part

    assert mapped(dict[int, tuple[int | None, ...]], to_str) == dict[str, tuple[str | None, ...]]
    assert mapped(Annotated[list[int], "int"], to_str) == Annotated[list[str], "int"]
    assert mapped(Literal["int", 1], to_str) == Literal["int", 1]
    assert mapped(Optional[int], to_str) == Optional[str]  # noqa: UP045
    kept = dict[str, bytes | None]
    assert mapped(kept, to_str) is kept


@pytest.mark.parametrize(
    ("name", "kebab"),
    [("CourseId", "course-id"), ("HTTPCall", "http-call"), ("A", "a"), ("V2Event", "v2-event"), ("lower", "lower")],
)
def test_names_in_other_cases(name: str, kebab: str) -> None:
    """Runs of capitals stay together."""
    assert kebab_case(name) == kebab
    assert snake_case(name) == kebab.replace("-", "_")


def test_a_recursive_value_decodes() -> None:
    """A class may name itself, wherever it is written."""

    class Tree(Value):
        name: str
        children: tuple[Tree, ...] = ()

    class Planted(Event):
        tree: Tree

    (found,) = event_types([BoundedContext("trees", events=[Planted])])
    planted = Planted(tree=Tree(name="a", children=(Tree(name="b"),)))
    assert found.codec.settle(planted)[1] == planted
