"""Identities: strings at run time, kinds to the checkers; and what msgspec makes of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping

import msgspec
import pytest

from diptych import Identity, Untagged, Value
from diptych.messages.identity import IdentityMeta, tag_name


class CourseId(Identity): ...


class HTTPRouteId(Identity): ...


class Id(Identity): ...


class UserName(Identity, tag="username"): ...


class Line(Value):
    course: CourseId
    teachers: tuple[CourseId, ...] = ()


class Everything(Value):
    plain: CourseId
    optional: CourseId | None = None
    listed: list[CourseId] = []
    keyed: Mapping[CourseId, int] = {}
    nested: dict[CourseId, tuple[Line, ...]] = {}
    unique: frozenset[CourseId] = frozenset()
    untagged: Untagged[CourseId] = CourseId("")


def test_an_identity_is_a_plain_str_at_run_time() -> None:
    """Nothing wraps the value: it is the very string, so comparing, hashing and pickling cost nothing."""
    value = "py" + "thon"
    identity = CourseId(value)
    assert identity is value
    assert type(identity) is str
    assert pickle.loads(pickle.dumps(identity)) == "python"


@pytest.mark.parametrize("value", [1, None, b"python", 1.5])
def test_an_identity_takes_nothing_but_a_str(value: object) -> None:
    """A number that is mistaken for an identity is refused where it is made, naming the kind."""
    with pytest.raises(TypeError, match=f"CourseId takes a str, not {type(value).__name__}"):
        CourseId(value)  # type: ignore[arg-type]


def test_new_identities_sort_by_time() -> None:
    """A fresh identity is a UUIDv7: later ones sort after earlier ones."""
    made = [CourseId.new() for _ in range(100)]
    assert made == sorted(set(made))


@pytest.mark.parametrize(
    ("identity", "name"), [(CourseId, "course"), (HTTPRouteId, "http-route"), (Id, "id"), (UserName, "username")]
)
def test_tag_names_follow_from_class_names(identity: type, name: str) -> None:
    """The tag name is the class name without `Id`, in kebab case, unless `tag=` says otherwise."""
    assert tag_name(identity) == name


@pytest.mark.parametrize("tag", ["a:b", "a b", "-", "ä:", "a/b"])
def test_tag_names_hold_no_separators(tag: str) -> None:
    """A tag is `name:value`, so a name with a colon could be read in two ways: it is refused."""
    with pytest.raises(TypeError, match="letters, digits, - and _ only"):
        IdentityMeta("BadId", (Identity,), {}, tag=tag)


def test_a_tag_name_is_not_inherited() -> None:
    """A kind of its own has a tag of its own."""

    class SpecialCourseId(CourseId): ...

    assert tag_name(SpecialCourseId) == "special-course"


# ── what msgspec makes of them: undocumented there, so pinned here ───────────


def test_msgspec_encodes_and_decodes_identities_as_str() -> None:
    """Wherever an identity stands, as a field, a key, an element, nested, it is a JSON string and back."""
    value = Everything(
        plain=CourseId("a"),
        optional=CourseId("b"),
        listed=[CourseId("c")],
        keyed={CourseId("d"): 1},
        nested={CourseId("e"): (Line(course=CourseId("f"), teachers=(CourseId("g"),)),)},
        unique=frozenset({CourseId("h")}),
        untagged=CourseId("i"),
    )
    data = msgspec.json.encode(value)
    assert json.loads(data) == {
        "plain": "a",
        "optional": "b",
        "listed": ["c"],
        "keyed": {"d": 1},
        "nested": {"e": [{"course": "f", "teachers": ["g"]}]},
        "unique": ["h"],
        "untagged": "i",
    }
    back = msgspec.json.decode(data, type=Everything)
    assert back == value
    assert type(back.plain) is type(next(iter(back.keyed))) is type(back.nested[CourseId("e")][0].course) is str


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"plain": 1}', "$.plain"),
        (b'{"plain": null}', "$.plain"),
        (b'{"plain": "a", "listed": [1]}', "$.listed"),
        (b'{"plain": "a", "nested": {"e": [{"course": 2}]}}', "course"),
    ],
)
def test_msgspec_refuses_what_is_no_str(data: bytes, path: str) -> None:
    """An identity is checked like a str: another type is refused with its path."""
    with pytest.raises(msgspec.ValidationError, match=r"Expected `str`") as refused:
        msgspec.json.decode(data, type=Everything)
    assert path in str(refused.value)


def test_msgspec_describes_identities_as_strings() -> None:
    """JSON Schema, and so OpenAPI, says string; keys of mappings included."""
    schema = msgspec.json.schema(Everything)
    described = schema["$defs"]["Everything"]["properties"]
    assert described["plain"] == {"type": "string"}
    assert described["optional"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert described["listed"]["items"] == {"type": "string"}
    assert described["keyed"]["additionalProperties"] == {"type": "integer"}


def test_msgspec_converts_identities() -> None:
    """`convert`, which path and query parameters go through, takes them for strings too."""
    assert msgspec.convert({"course": "a"}, Line) == Line(course=CourseId("a"))
    assert msgspec.convert("a", CourseId) == "a"
