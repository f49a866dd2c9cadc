"""The collector of field errors agrees with the decoder, whatever it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych import Command, Value
from diptych.entrypoints.http.field_errors import DEPTH_MAX, field_errors
from tests.http_library import Ask, Count, Lend, Remark

T = TypeVar("T")


class Circle(Value, tag="circle", forbid_unknown_fields=True):
    radius: Annotated[float, msgspec.Meta(gt=0)]


class Square(Value, tag="square", rename="camel"):
    side_length: int


class Pair(Value, Generic[T]):
    first: T
    second: T


class Tree(Value):
    name: str
    children: "tuple[Tree, ...]" = ()


class Draw(Command):
    shape: Circle | Square
    shapes: Mapping[str, Circle | Square | None] = msgspec.field(default_factory=dict)
    pair: Pair[int] | None = None
    corner: tuple[int, str] = (0, "")
    words: Annotated[frozenset[str], msgspec.Meta(max_length=2)] = frozenset()
    counts: dict[int, int] = msgspec.field(default_factory=dict)
    mixed: list[int | str | Remark] | None = None
    tree: Tree | None = None


NAMES = ["shape", "type", "radius", "sideLength", "shapes", "pair", "first", "second", "corner", "words", "counts"]
NAMES += ["mixed", "tree", "name", "children", "page", "text", "book", "reader", "fee", "remarks", "until", "circle"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "circle", "square", "1", "1.5", "2026-01-31", "x", "science"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["circle", "square", "oval"]),
        "radius": SCALARS,
        "sideLength": SCALARS,
        "extra": SCALARS,
    },
)
DRAWINGS = st.fixed_dictionaries(
    {"shape": SHAPES},
    optional={
        "shapes": st.dictionaries(st.sampled_from(["a", "b c"]), SHAPES | SCALARS, max_size=2) | VALUES,
        "pair": st.fixed_dictionaries({"first": SCALARS}, optional={"second": SCALARS}),
        "corner": st.lists(SCALARS, max_size=3),
        "words": st.lists(SCALARS, max_size=4),
        "counts": st.dictionaries(st.sampled_from(["1", "x"]), SCALARS, max_size=2),
        "mixed": st.lists(st.fixed_dictionaries({}, optional={"page": SCALARS}) | SCALARS, max_size=3),
        "tree": VALUES,
        "other": SCALARS,
    },
)
ASKS = st.fixed_dictionaries({"shelf": SCALARS, "marks": st.lists(SCALARS, max_size=4)})


def decodes(data: bytes, cls: type) -> bool:
    try:
        msgspec.json.decode(data, type=cls)
    except msgspec.ValidationError:
        return False
    return True


@given(value=st.one_of(DRAWINGS, ASKS, VALUES), cls=st.sampled_from([Draw, Lend, Ask, Count]))
def test_it_finds_an_error_where_the_decoder_refuses_and_only_there(value: Any, cls: type) -> None:
    """There are field errors exactly if the message does not decode; each has a path of its own or another text."""
    data = msgspec.json.encode(value)
    errors = field_errors(data, cls)
    assert (not errors) == decodes(data, cls)
    assert len(set(errors)) == len(errors)
    assert all(error.path.startswith("$") and error.message for error in errors)


@given(value=DRAWINGS)
def test_mending_what_it_names_mends_the_message(value: dict[str, Any]) -> None:
    """Fields of a message that it does not name are right: without those it names, the others decode."""
    errors = field_errors(msgspec.json.encode(value), Draw)
    named = {error.path.removeprefix("$.").partition(".")[0].partition("[")[0] for error in errors}
    kept = {name: held for name, held in value.items() if name not in named}
    kept.setdefault("shape", {"type": "circle", "radius": 1})
    assert decodes(msgspec.json.encode(kept), Draw)


@pytest.mark.parametrize(
    ("drawing", "paths"),
    [
        ({"shape": {"type": "oval"}}, ["$.shape.type"]),
        ({"shape": {"radius": 1}}, ["$.shape"]),
        ({"shape": {"type": "circle", "radius": 0, "r": 1}}, ["$.shape.radius", "$.shape.r"]),
        ({"shape": {"type": "square", "side_length": 1}}, ["$.shape.sideLength", "$.shape.side_length"]),
        ({"shape": {"type": "square", "sideLength": 1}, "shapes": {"b c": 1, "d": {"type": "circle"}}},
         ['$.shapes["b c"]', "$.shapes.d.radius"]),
        ({"shape": {"type": "square", "sideLength": 1}, "pair": {"first": "a"}},
         ["$.pair.first", "$.pair.second"]),
        ({"shape": {"type": "square", "sideLength": 1}, "corner": ["a", 1]}, ["$.corner[0]", "$.corner[1]"]),
        ({"shape": {"type": "square", "sideLength": 1}, "corner": [1]}, ["$.corner"]),
        ({"shape": {"type": "square", "sideLength": 1}, "words": ["a", 1, "b"]}, ["$.words", "$.words[1]"]),
        ({"shape": {"type": "square", "sideLength": 1}, "counts": {"x": 1, "2": "y"}}, ["$.counts", '$.counts["2"]']),
        ({"shape": {"type": "square", "sideLength": 1}, "mixed": [1, {"page": 0, "x": 1}, None]},
         ["$.mixed[1].page", "$.mixed[1].x", "$.mixed[2]"]),
    ],
)  # fmt: skip
def test_it_descends_into_what_is_nested(drawing: Any, paths: list[str]) -> None:
    """Unions by their tag, generics, mappings, fixed tuples and sets are taken apart; lengths are judged as well."""
    assert [error.path for error in field_errors(msgspec.json.encode(drawing), Draw)] == paths


def test_depth_has_an_end() -> None:
    """Past a named depth a part is judged as a whole: one error, and no recursion without end."""
    tree: Any = {"name": 1}
    for _ in range(DEPTH_MAX * 2):
        tree = {"name": "x", "children": [tree]}
    errors = field_errors(msgspec.json.encode({"shape": {"type": "square", "sideLength": 1}, "tree": tree}), Draw)
    assert len(errors) == 1
    assert errors[0].path == "$.tree" + ".children[0]" * (DEPTH_MAX * 2) + ".name"
