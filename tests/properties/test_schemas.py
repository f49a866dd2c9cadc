"""Schemas of whatever types: where one is said to read another, it reads every value that was written with it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Event
from diptych.messages.codec import Codec
from diptych.messages.message import MessageMeta
from diptych.messages.schema import described, differences

Typed = tuple[Any, st.SearchStrategy[Any]]
"""A type, and values of it as JSON has them."""
Pair = tuple[Any, Any, st.SearchStrategy[Any]]
"""A type that reads, one that was written, and values of the latter."""

words = st.sampled_from(["x", "y", "z"])
SCALARS: list[Typed] = [
    (int, st.integers(-9, 9)),
    (float, st.floats(0.25, 9, exclude_max=True)),
    (str, words),
    (bool, st.booleans()),
    (Any, st.one_of(st.none(), words, st.lists(words, max_size=1))),
    (Literal["x"], st.just("x")),
    (Literal["x", "y"], st.sampled_from(["x", "y"])),
    (Literal["y", "z"], st.sampled_from(["y", "z"])),
]
scalars = st.sampled_from(SCALARS)
pairs_of_scalars = st.builds(lambda reader, written: (reader[0], *written), scalars, scalars)


def of(origin: Any, *arguments: Any) -> Any:
    """A type with arguments that are not known before."""
    first, *others = arguments
    return origin[(first, *others) if others else first]


def nested(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        inner.map(lambda pair: (of(list, pair[0]), of(list, pair[1]), st.lists(pair[2], max_size=2))),
        inner.map(
            lambda pair: (of(dict, str, pair[0]), of(dict, str, pair[1]), st.dictionaries(words, pair[2], max_size=2))
        ),
        st.tuples(inner, st.booleans(), st.booleans()).map(lambda made: optional(*made)),
        st.tuples(inner, inner).map(
            lambda two: (
                of(tuple, two[0][0], two[1][0]),
                of(tuple, two[0][1], two[1][1]),
                st.tuples(two[0][2], two[1][2]).map(list),
            )
        ),
        st.dictionaries(st.sampled_from(["a", "b"]), st.tuples(inner, places, places), max_size=2).map(structs),
    )


def optional(pair: Pair, reading: bool, writing: bool) -> Pair:
    reader, written, values = pair
    return (
        reader | None if reading and reader is not Any else reader,
        written | None if writing and written is not Any else written,
        st.none() | values if writing else values,
    )


places = st.sampled_from(["missing", "required", "defaulted"])


def structs(fields: dict[str, tuple[Pair, str, str]]) -> Pair:
    """Two structs of these fields: each has them, or does not, with or without a default; which may be lacking."""
    made: list[Any] = []
    for which in (0, 1):
        held = [(name, field[0][which], field[1 + which]) for name, field in fields.items()]
        required = [(name, kind) for name, kind, place in held if place == "required"]
        defaulted = [(name, kind, msgspec.UNSET) for name, kind, place in held if place == "defaulted"]
        made.append(msgspec.defstruct("Made", [*required, *defaulted], kw_only=True))
    values: dict[str, Any] = {name: field[0][2] for name, field in fields.items()}
    there = {name: held for name, held in values.items() if fields[name][2] == "required"}
    lacking = {name: held for name, held in values.items() if fields[name][2] == "defaulted"}
    return made[0], made[1], st.fixed_dictionaries(there, optional=lacking)


pairs = pairs_of_scalars | nested(pairs_of_scalars) | nested(nested(pairs_of_scalars))


def event(held: Any) -> Any:
    return MessageMeta("Happened", (Event,), {"__module__": __name__, "__annotations__": {"x": held}})


@settings(max_examples=500, deadline=None)
@given(pairs, st.data())
def test_what_is_read_is_read(pair: Pair, data: st.DataObject) -> None:
    """Every value of one schema is decoded by the class of another that differs in nothing that counts."""
    reading, writing = event(pair[0]), event(pair[1])
    same = described(writing).schema
    assert differences(same, same) == []
    for loses in (False, True):
        if not differences(described(reading).schema, same, loses=loses):
            value = msgspec.json.encode({"x": data.draw(pair[2])})
            Codec(writing).decode(value)
            Codec(reading).decode(value)
