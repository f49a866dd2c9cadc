"""Tags of whatever values: those of a naive walk over what the fields hold, each once, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Event, Identity, Untagged, Value
from diptych.event_store.event_query import QueryItem
from diptych.messages.codec import Codec
from diptych.messages.tags import tag, tag_reader


class CourseId(Identity): ...


class StudentId(Identity): ...


class Line(Value):
    course: CourseId
    hidden: Untagged[StudentId]
    student: StudentId | None = None
    note: str = ""


class Tree(Value):
    lines: tuple[Line, ...] = ()
    children: tuple[Tree, ...] = ()


class Happened(Event):
    course: CourseId
    text: str
    optional: StudentId | None
    listed: list[CourseId]
    pair: tuple[CourseId, str, StudentId]
    keyed: Mapping[CourseId, Line]
    deep: dict[str, list[tuple[StudentId, ...]]]
    tree: Tree
    hidden: Untagged[CourseId] | None


ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
courses, students = ids.map(CourseId), ids.map(StudentId)
lines = st.builds(Line, course=courses, hidden=students, student=st.none() | students, note=ids)
trees = st.recursive(
    st.builds(Tree, lines=st.lists(lines, max_size=2).map(tuple)),
    lambda inner: st.builds(Tree, lines=st.lists(lines, max_size=2).map(tuple), children=st.lists(inner).map(tuple)),
    max_leaves=4,
)
happened = st.builds(
    Happened,
    course=courses,
    text=ids,
    optional=st.none() | students,
    listed=st.lists(courses, max_size=3),
    pair=st.tuples(courses, ids, students),
    keyed=st.dictionaries(courses, lines, max_size=2),
    deep=st.dictionaries(ids, st.lists(st.lists(students, max_size=2).map(tuple), max_size=2), max_size=2),
    tree=trees,
    hidden=st.none() | courses,
)


def of_line(line: Line) -> Iterator[str]:
    yield f"course:{line.course}"
    if line.student is not None:
        yield f"student:{line.student}"


def of_tree(tree: Tree) -> Iterator[str]:
    for line in tree.lines:
        yield from of_line(line)
    for child in tree.children:
        yield from of_tree(child)


def naive(event: Happened) -> Iterator[str]:
    yield f"course:{event.course}"
    if event.optional is not None:
        yield f"student:{event.optional}"
    yield from (f"course:{course}" for course in event.listed)
    yield from (f"course:{event.pair[0]}", f"student:{event.pair[2]}")
    for course, line in event.keyed.items():
        yield f"course:{course}"
        yield from of_line(line)
    for held in event.deep.values():
        yield from (f"student:{student}" for students in held for student in students)
    yield from of_tree(event.tree)


@settings(max_examples=300, deadline=None)
@given(happened)
def test_tags_are_those_of_a_naive_walk(event: Happened) -> None:
    """Before and after a round trip through the codec."""
    reader = tag_reader(Happened)
    expected = tuple(dict.fromkeys(naive(event)))
    assert reader.read(event) == expected
    settled: Any = Codec(Happened).settle(event)[1]
    assert reader.read(settled) == expected


@settings(max_examples=300, deadline=None)
@given(st.tuples(st.sampled_from([CourseId, StudentId]), ids), st.tuples(st.sampled_from([CourseId, StudentId]), ids))
def test_tags_of_two_identities_differ(one: tuple[type, str], other: tuple[type, str]) -> None:
    """Whatever the values hold, colons included: no two identities share a tag."""
    assert (tag(*one) == tag(*other)) == (one == other)


@settings(max_examples=300, deadline=None)
@given(happened, st.frozensets(st.sampled_from(["course:a", "course:b", "student:a"]), max_size=2))
def test_an_item_matches_by_its_tags(event: Happened, tags: frozenset[str]) -> None:
    """Exactly where the event carries all of them."""
    carried = set(naive(event))
    assert QueryItem(frozenset(), tags).matches("x", tag_reader(Happened).read(event)) == (tags <= carried)
