"""Whatever a message holds reads back as it was, or is refused; equal payloads hash alike, others do not."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Literal
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Command, Event, Identity, Value
from diptych.errors import InvalidMessage
from diptych.messages.codec import Codec, encode_canonical, to_plain


class CourseId(Identity): ...


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(Value, tag="leaf"):
    text: str = ""
    when: datetime | None = None


class Branch(Value, tag="branch"):
    leaves: tuple[Leaf | Branch, ...] = ()


class Everything(Event):
    text: str
    number: int
    real: float
    flag: bool
    money: Decimal
    moment: datetime
    day: date
    length: timedelta
    raw: bytes
    id: UUID
    colour: Colour
    choice: Literal["a", "b"]
    course: CourseId
    optional: str | None
    many: tuple[int, ...]
    keyed: Mapping[str, Decimal | None]
    unique: frozenset[str]
    tree: Branch | Leaf


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
"""Text that every store keeps."""
wild = st.text(max_size=20)
"""Any text that Python can hold, NUL and lone surrogates included."""
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 — the strategy adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC) | zones,
)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
lengths = st.timedeltas(min_value=timedelta(days=-999_999), max_value=timedelta(days=999_999))
trees = st.recursive(
    st.builds(Leaf, text=texts, when=st.none() | moments),
    lambda inner: st.builds(Branch, leaves=st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)
everything = st.builds(
    Everything,
    text=texts,
    number=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    money=decimals,
    moment=moments,
    day=st.dates(),
    length=lengths,
    raw=st.binary(max_size=20),
    id=st.uuids(),
    colour=st.sampled_from(Colour),
    choice=st.sampled_from(["a", "b"]),
    course=texts.map(CourseId),
    optional=st.none() | texts,
    many=st.lists(st.integers(-9, 9), max_size=4).map(tuple),
    keyed=st.dictionaries(texts, st.none() | decimals, max_size=3),
    unique=st.frozensets(texts, max_size=3),
    tree=trees,
)
CODEC = Codec(Everything)


@settings(max_examples=300, deadline=None)
@given(everything)
def test_messages_read_back_equal(event: Everything) -> None:
    """What is settled equals what was given, to the last digit, and settles to the same bytes again."""
    data, settled = CODEC.settle(event)
    assert settled == event
    assert settled.money.as_tuple() == event.money.as_tuple()
    assert settled.moment.utcoffset() is not None
    again, _ = CODEC.settle(settled)
    assert CODEC.decode(again) == event
    assert b"\0" not in data


class Text(Event):
    text: str
    keyed: Mapping[str, tuple[str, ...]] = {}


@settings(max_examples=500, deadline=None)
@given(st.builds(Text, text=wild, keyed=st.dictionaries(wild, st.lists(wild, max_size=2).map(tuple), max_size=2)))
def test_text_is_kept_or_refused(event: Text) -> None:
    """Refused exactly where a text holds NUL or a lone surrogate; never changed."""
    held = [event.text, *event.keyed, *(text for texts in event.keyed.values() for text in texts)]
    storable = not any("\0" in text or any("\ud800" <= mark <= "\udfff" for mark in text) for text in held)
    try:
        data, settled = Codec(Text).settle(event)
    except InvalidMessage:
        assert not storable
    else:
        assert storable
        assert settled == event
        assert b"\0" not in data


class Part(Value):
    name: str = ""
    count: int = 0


class Send(Command):
    name: str
    note: str | None = None
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    keyed: Mapping[str, Part] = {}
    unique: frozenset[int] = frozenset()


names = st.sampled_from(["", "a", "b", "ab"])
part_values = st.builds(Part, name=names, count=st.integers(0, 2))
sends = st.builds(
    Send,
    name=names,
    note=st.none() | names,
    part=st.none() | part_values,
    parts=st.lists(part_values, max_size=2).map(tuple),
    keyed=st.dictionaries(names, part_values, max_size=2),
    unique=st.frozensets(st.integers(0, 3)),
)


@settings(max_examples=500, deadline=None)
@given(sends, sends)
def test_payload_hashes_tell_payloads_apart(one: Send, other: Send) -> None:
    """Equal commands hash alike, also after a round trip; different ones do not."""
    codec = Codec(Send)
    assert (codec.payload_hash("x", one) == codec.payload_hash("x", other)) == (one == other)
    assert codec.payload_hash("x", codec.settle(one)[1]) == codec.payload_hash("x", one)
    assert codec.payload_hash("x", one) != codec.payload_hash("y", one)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(texts, st.integers() | texts | st.none(), max_size=6))
def test_canonical_bytes_do_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    """The same mapping, filled in another order, gives the same bytes."""
    assert encode_canonical(value) == encode_canonical(dict(reversed(value.items())))


@settings(max_examples=200, deadline=None)
@given(everything)
def test_plain_values_are_what_json_says(event: Everything) -> None:
    """A plain form made again from itself stays the same: facts of a refusal read alike the first time and later."""
    plain = to_plain(event)
    assert to_plain(plain) == plain
