"""Tags: read from whatever an event's fields hold, and nothing that could be one is left out silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, NamedTuple, Optional, TypeAlias, TypedDict, TypeVar

import msgspec
import pytest

from diptych import ConfigurationError, Event, Identity, Untagged, Value
from diptych.messages.tags import tag, tag_reader

T = TypeVar("T")


class CourseId(Identity): ...


class StudentId(Identity): ...


class UserName(Identity, tag="username"): ...


class Line(Value):
    course: CourseId
    quantity: int = 1


class Note(Value):
    text: str = ""


class Node(Value):
    course: CourseId
    children: tuple[Node, ...] = ()


class Box(Value, Generic[T]):
    item: T
    more: tuple[T, ...] = ()


class CourseBox(Box[CourseId]):
    label: str = ""


class Boxed(Value, Generic[T]):
    box: Box[T]


class Pair(NamedTuple):
    course: CourseId
    number: int


class Partial(TypedDict, total=False):
    course: CourseId


@dataclass(frozen=True)
class Place:
    course: CourseId


class Ping(Value, tag="ping"):
    course: CourseId


class Pong(Value, tag="pong"):
    student: StudentId


class Quiet(Value, tag="quiet"):
    text: str = ""


Course: TypeAlias = "CourseId | None"
PYTHON, RUST, C = CourseId("python"), CourseId("rust"), CourseId("c")
ADA = StudentId("ada")


class Plain(Event):
    course: CourseId
    student: StudentId
    by: UserName
    other: str = "course:no"


class Collections(Event):
    optional: CourseId | None = None
    typed_optional: Optional[CourseId] = None  # noqa: UP045 — both spellings
    listed: list[CourseId] = []
    sequence: Sequence[CourseId] = ()
    pair: tuple[CourseId, int, StudentId] | None = None
    unique: frozenset[StudentId] = frozenset()
    by_key: Mapping[CourseId, int] = {}
    by_value: Mapping[str, CourseId] = {}
    deep: dict[str, list[tuple[Line, ...]]] = {}
    aliased: Course = None
    annotated: Annotated[CourseId, "what it is"] = C


class Nested(Event):
    line: Line
    lines: tuple[Line, ...] = ()
    note: Note | None = None
    node: Node | None = None


class Generics(Event):
    box: Box[CourseId]
    boxed: Boxed[StudentId] | None = None
    derived: CourseBox | None = None


class Records(Event):
    pair: Pair
    place: Place
    partial: Partial


class Unions(Event):
    either: Ping | Pong | Quiet


class Split(Event):
    course: CourseId
    into: tuple[Split, ...] = ()
    note: Note | None = None


class OptedOut(Event):
    plain: Untagged[CourseId]
    optional: Untagged[CourseId] | None = None
    inside: Untagged[CourseId | None] = None
    listed: tuple[Untagged[CourseId], ...] = ()
    keyed: Mapping[str, Untagged[CourseId]] = {}
    mixed: Untagged[CourseId] | int = 0
    many: Untagged[CourseId | int] | bool = False
    line: Untagged[Line] | None = None


class Forward(Event):
    listed: list["Later"] = []
    optional: Optional["Later"] = None


class Later(Value):
    course: CourseId


def test_tags_are_the_identities_of_the_fields() -> None:
    """One tag for each identity, in order of the fields; a string that looks like a tag is none."""
    reader = tag_reader(Plain)
    event = Plain(course=PYTHON, student=ADA, by=UserName("ada:x"), other="course:no")
    assert reader.read(event) == ("course:python", "student:ada", "username:ada:x")
    assert reader.names == ("course", "student", "username")
    assert tag(UserName, "ada") == "username:ada"


@pytest.mark.parametrize(
    ("event", "tags"),
    [
        (Collections(), ("course:c",)),
        (Collections(optional=PYTHON), ("course:python", "course:c")),
        (Collections(typed_optional=PYTHON), ("course:python", "course:c")),
        (Collections(listed=[PYTHON, RUST]), ("course:python", "course:rust", "course:c")),
        (Collections(sequence=[PYTHON]), ("course:python", "course:c")),
        (Collections(pair=(PYTHON, 7, ADA)), ("course:python", "student:ada", "course:c")),
        (Collections(unique=frozenset({ADA})), ("student:ada", "course:c")),
        (Collections(by_key={PYTHON: 1}), ("course:python", "course:c")),
        (Collections(by_value={"course:no": PYTHON}), ("course:python", "course:c")),
        (Collections(deep={"k": [(Line(course=PYTHON),)]}), ("course:python", "course:c")),
        (Collections(aliased=PYTHON), ("course:python", "course:c")),
    ],
)
def test_tags_are_found_in_collections(event: Collections, tags: tuple[str, ...]) -> None:
    """Optional, listed, keyed, as part of a pair, or deep inside: an identity tags the event."""
    assert tag_reader(Collections).read(event) == tags


def test_each_tag_is_given_once() -> None:
    """An identity that occurs twice is one tag."""
    event = Collections(optional=PYTHON, listed=[PYTHON, PYTHON], annotated=PYTHON)
    assert tag_reader(Collections).read(event) == ("course:python",)


def test_tags_are_found_in_nested_values() -> None:
    """Values are walked, recursive ones to their end."""
    node = Node(course=RUST, children=(Node(course=C, children=(Node(course=CourseId("deep")),)),))
    event = Nested(line=Line(course=PYTHON), lines=(Line(course=RUST),), node=node, note=Note())
    assert tag_reader(Nested).read(event) == ("course:python", "course:rust", "course:c", "course:deep")


def test_type_parameters_are_filled_in() -> None:
    """`Box[CourseId]` holds an identity as well as a field of that type does, also by inheritance."""
    reader = tag_reader(Generics)
    event = Generics(
        box=Box(item=PYTHON, more=(RUST,)),
        boxed=Boxed(box=Box(item=ADA)),
        derived=CourseBox(item=C),
    )
    assert reader.read(event) == ("course:python", "course:rust", "student:ada", "course:c")


def test_named_tuples_dataclasses_and_typed_dicts_are_walked() -> None:
    """What msgspec decodes beside structs can hold identities too."""
    event = Records(pair=Pair(PYTHON, 1), place=Place(RUST), partial={})
    assert tag_reader(Records).read(event) == ("course:python", "course:rust")
    assert tag_reader(Records).read(msgspec.structs.replace(event, partial={"course": C}))[-1] == "course:c"


def test_of_a_union_of_values_the_one_that_is_there_counts() -> None:
    """Tagged values can be told apart at run time; one without identities gives no tag."""
    read = tag_reader(Unions).read
    assert read(Unions(either=Ping(course=PYTHON))) == ("course:python",)
    assert read(Unions(either=Pong(student=ADA))) == ("student:ada",)
    assert read(Unions(either=Quiet())) == ()


def test_untagged_opts_out_wherever_it_is_written() -> None:
    """`Untagged[...]` counts inside and outside of unions and collections."""
    reader = tag_reader(OptedOut)
    event = OptedOut(
        plain=PYTHON,
        optional=PYTHON,
        inside=PYTHON,
        listed=(PYTHON,),
        keyed={"k": PYTHON},
        line=Line(course=PYTHON),
    )
    assert reader.names == ()
    assert reader.read(event) == ()


def test_names_in_quotes_are_found() -> None:
    """A quoted name inside an annotation means its class."""
    later = Later(course=PYTHON)
    assert tag_reader(Forward).read(Forward(listed=[later])) == ("course:python",)
    assert tag_reader(Forward).read(Forward(optional=later)) == ("course:python",)


class IdentityOrNumber(Event):
    who: CourseId | int


class TwoIdentities(Event):
    who: CourseId | StudentId


class IdentityOrMany(Event):
    who: CourseId | tuple[CourseId, ...]


class IdentityOrValue(Event):
    who: CourseId | Note


@pytest.mark.parametrize("cls", [IdentityOrNumber, TwoIdentities, IdentityOrMany, IdentityOrValue])
def test_unions_that_cannot_be_told_apart_are_refused(cls: type) -> None:
    """At run time an identity is a str, so a mixed union is refused, naming field and remedies."""
    with pytest.raises(ConfigurationError, match=rf"{cls.__name__}\.who: .*own field, or mark it Untagged"):
        tag_reader(cls)


def test_tag_names_tell_every_place_that_can_give_a_tag() -> None:
    """A second field of a kind is seen in the names, so that opting it out later is noticed."""

    class Transferred(Event):
        source: CourseId
        target: CourseId

    class Opted(Event):
        source: CourseId
        target: Untagged[CourseId]

    assert tag_reader(Transferred).names == ("course", "course")
    assert tag_reader(Opted).names == ("course",)


def test_an_event_that_holds_others_of_its_own_class_carries_their_tags() -> None:
    """Its one identity is named once, and found in every part."""
    event = Split(course=C, into=(Split(course=PYTHON), Split(course=C, into=(Split(course=RUST),))))
    assert tag_reader(Split).read(event) == ("course:c", "course:python", "course:rust")
