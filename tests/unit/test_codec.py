"""The codec: what is stored reads back as it was decided on, and what could not is refused on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Generic, Optional, TypeVar

import msgspec
import pytest

from diptych import Command, Event, Identity, Value, replace
from diptych.errors import InvalidMessage
from diptych.messages.codec import Codec, decode

T = TypeVar("T")
NAIVE = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 — naive on purpose
AWARE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class CourseId(Identity): ...


class Stamp(Value):
    at: datetime


class Box(Value, Generic[T]):
    item: T


class Moments(Event):
    plain: datetime = AWARE
    optional: datetime | None = None
    typed_optional: Optional[datetime] = None  # noqa: UP045 — both spellings
    listed: list[datetime] = []
    fixed: tuple[datetime, int] | None = None
    keyed: dict[str, datetime] = {}
    mapped: Mapping[str, tuple[datetime | None, ...]] = {}
    annotated: Annotated[datetime, "why"] = AWARE
    nested: Stamp | None = None
    generic: Box[datetime] | None = None
    later: datetime | Later | None = None
    deep_later: Deep | None = None


class Deep(Value):
    held: tuple[datetime | Later, ...] = ()


class Later(Value):
    text: str = ""


class Text(Event):
    text: str = ""
    keyed: dict[str, int] = {}
    listed: list[list[str]] = []
    course: CourseId = CourseId("")


class Line(Value):
    sku: str
    quantity: int = 1
    price: Decimal = Decimal(0)


class Order(Command):
    order: str
    lines: tuple[Line, ...] = ()
    by_sku: Mapping[str, Line] = {}
    note: str | None = None
    tags: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    "event",
    [
        Moments(plain=NAIVE),
        Moments(optional=NAIVE),
        Moments(typed_optional=NAIVE),
        Moments(listed=[AWARE, NAIVE]),
        Moments(fixed=(NAIVE, 1)),
        Moments(keyed={"k": NAIVE}),
        Moments(mapped={"k": (None, NAIVE)}),
        Moments(annotated=NAIVE),
        Moments(nested=Stamp(at=NAIVE)),
        Moments(generic=Box(item=NAIVE)),
        Moments(later=NAIVE),
        Moments(deep_later=Deep(held=(NAIVE,))),
    ],
)
def test_a_naive_datetime_is_refused_wherever_it_is(event: Moments) -> None:
    """A time without a zone says no moment: it is refused before it is a fact."""
    with pytest.raises(InvalidMessage, match="timezone"):
        Codec(Moments).settle(event)


def test_aware_datetimes_keep_their_moment() -> None:
    """Times of any zone read back as the same moment, to the microsecond."""
    there = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    event = Moments(plain=there, listed=[there], later=there, nested=Stamp(at=there))
    data, settled = Codec(Moments).settle(event)
    assert settled == event
    assert Codec(Moments).decode(data) == event


def test_datetimes_of_classes_local_to_a_function_are_aware() -> None:
    """Where the class was written does not matter."""

    class Local(Value):
        at: datetime

    class Holds(Event):
        local: Local

    with pytest.raises(InvalidMessage, match="timezone"):
        Codec(Holds).settle(Holds(local=Local(at=NAIVE)))


@pytest.mark.parametrize(
    "event",
    [
        Text(text="a\0b"),
        Text(keyed={"\0": 1}),
        Text(listed=[["fine"], ["\0"]]),
        Text(course=CourseId("\0")),
        Text(text="\ud800"),
        Text(keyed={"\udfff": 1}),
        Text(listed=[["\udc80"]]),
        Text(course=CourseId("\ud83d")),
    ],
)
def test_text_that_no_store_keeps_is_refused(event: Text) -> None:
    """NUL and lone surrogates, in values and in keys."""
    with pytest.raises(InvalidMessage, match="NUL|surrogate"):
        Codec(Text).settle(event)


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "\\ud800", "\x01\x1f\x7f", "\u2028", "😀", '"\\'])
def test_text_that_looks_dangerous_is_kept(text: str) -> None:
    """A backslash before u0000 is text like any other."""
    event = Text(text=text, keyed={text: 1})
    assert Codec(Text).settle(event)[1] == event


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"text": 1}', "$.text"),
        (b'{"listed": [["a"], [1]]}', "$.listed[1][0]"),
        (b"[]", "$"),
        (b"{", "$"),
        (b"\xff", "$"),
        (b'{"text": "\\ud800"}', "$"),
    ],
)
def test_what_cannot_be_decoded_says_where(data: bytes, path: str) -> None:
    """The first problem and its path; the class is named."""
    with pytest.raises(InvalidMessage) as invalid:
        Codec(Text).decode(data)
    assert invalid.value.message == "Text"
    assert invalid.value.problems[0][0] == path
    with pytest.raises(InvalidMessage):
        decode(data, Text)


def test_unknown_fields_are_refused_in_commands_and_ignored_in_events() -> None:
    """A mistyped field of a command is heard of; an event of a newer process still reads."""
    with pytest.raises(InvalidMessage, match="oops"):
        Codec(Order).decode(b'{"order": "1", "oops": 1}')
    assert Codec(Text).decode(b'{"text": "a", "oops": 1}') == Text(text="a")


def test_what_json_cannot_say_is_refused() -> None:
    """A value that no encoder takes, or that is too deep for one, is an invalid message and no crash."""

    class Anything(Event):
        held: object = None

    with pytest.raises(InvalidMessage):
        Codec(Anything).settle(Anything(held=object()))
    nested: object = None
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidMessage, match="nested"):
        Codec(Anything).settle(Anything(held=nested))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_cannot_say_are_refused(number: float) -> None:
    """A float that JSON writes as null would read back as None, where the field allows it."""

    class Measured(Event):
        value: float | None

    with pytest.raises(InvalidMessage):
        Codec(Measured).settle(Measured(value=number))


# ── payload hashes ───────────────────────────────────────────────────────────


def payload(message: object, name: str = "shop.Order") -> bytes:
    return Codec(type(message)).payload_hash(name, message)


def test_equal_payloads_hash_alike() -> None:
    """The order of keys and of unordered elements does not matter."""
    one, two = Line(sku="1"), Line(sku="2")
    assert payload(Order(order="1", by_sku={"a": one, "b": two})) == payload(
        Order(order="1", by_sku={"b": two, "a": one})
    )
    many = [f"t{n}" for n in range(50)]
    assert payload(Order(order="1", tags=frozenset(many))) == payload(Order(order="1", tags=frozenset(reversed(many))))


@pytest.mark.parametrize(
    "other",
    [
        Order(order="2"),
        Order(order="1", note="x"),
        Order(order="1", lines=(Line(sku="a"),)),
        Order(order="1", lines=(Line(sku="a", quantity=2),)),
        Order(order="1", tags=frozenset({"a"})),
    ],
)
def test_other_payloads_hash_otherwise(other: Order) -> None:
    """Any field that differs tells, nested ones too."""
    assert payload(other) != payload(Order(order="1", lines=(Line(sku="a", quantity=3),)))
    assert payload(other) != payload(Order(order="1"))


def test_another_type_hashes_otherwise() -> None:
    """The same fields under another name are another payload."""
    assert payload(Order(order="1"), "shop.Order") != payload(Order(order="1"), "billing.Order")


def test_fields_added_later_keep_the_hash() -> None:
    """A retry that comes after a deployment hears its outcome: defaults are not part of what was sent, at any depth."""

    class Part(Value):
        sku: str

    class Old(Command):
        order: str
        parts: tuple[Part, ...] = ()
        keyed: Mapping[str, Part] = {}
        one: Part | None = None

    def newer() -> Command:
        class Part(Value):
            sku: str
            gift: bool = False
            marks: tuple[str, ...] = ()

        class New(Command):
            added: int = 7
            order: str
            parts: tuple[Part, ...] = ()
            keyed: Mapping[str, Part] = {}
            one: Part | None = None

        part = Part(sku="a")
        return New(order="1", parts=(part,), keyed={"k": part}, one=part)

    part = Part(sku="a")
    assert payload(Old(order="1", parts=(part,), keyed={"k": part}, one=part)) == payload(newer())


def test_a_field_added_to_a_nested_value_keeps_the_hash_of_all_that_is_beside_it() -> None:
    """Sets, renamed fields and values that are written as arrays hash as they did before."""

    class Part(Value, rename="camel"):
        first_sku: str

    class Pair(Value, array_like=True, tag="pair"):
        left: int
        right: int

    class Old(Command):
        part: Part
        pair: Pair
        sizes: frozenset[int]

    def newer() -> Command:
        class Part(Value, rename="camel"):
            first_sku: str
            gift: bool = False

        class Pair(Value, array_like=True, tag="pair"):
            left: int
            right: int
            note: str = ""

        class New(Command):
            part: Part
            pair: Pair
            sizes: frozenset[int]

        return New(part=Part(first_sku="a"), pair=Pair(left=1, right=2), sizes=frozenset({2, 10}))

    old = Old(part=Part(first_sku="a"), pair=Pair(left=1, right=2), sizes=frozenset({2, 10}))
    assert payload(old) == payload(newer())


def test_elements_without_an_order_of_their_own_have_a_hash() -> None:
    """A set of values, or of several kinds of them, is no reason to refuse a command."""

    class Seat(Value):
        row: int

    class Book(Command):
        seats: frozenset[Seat]

    class Mark(Command):
        marks: frozenset[int | str | None]

    one, two = Seat(row=1), Seat(row=2)
    assert payload(Book(seats=frozenset([one, two]))) == payload(Book(seats=frozenset([two, one])))
    assert payload(Book(seats=frozenset([one, two]))) != payload(Book(seats=frozenset([one])))
    assert payload(Mark(marks=frozenset([1, "a", None]))) == payload(Mark(marks=frozenset([None, "a", 1])))


def test_nested_values_of_two_kinds_hash_otherwise() -> None:
    """Of a union of tagged values, the tag is part of the payload."""

    class Card(Value, tag="card"):
        number: str

    class Cheque(Value, tag="cheque"):
        number: str

    class Pay(Command):
        by: Card | Cheque

    assert payload(Pay(by=Card(number="1"))) != payload(Pay(by=Cheque(number="1")))


def test_the_scheme_is_pinned() -> None:
    """Hashes are stored: what changes this value needs a new HASH_SCHEME, and to compare with both."""
    order = Order(order="1", lines=(Line(sku="a", quantity=2),), note="ä")
    assert payload(order).hex() == "78e277b7d78eea24a93dfe47ce094274"


# ── replace ──────────────────────────────────────────────────────────────────


def test_replace_copies_with_some_fields_changed() -> None:
    """The original stays; a field that does not exist is an error."""
    line = Line(sku="a")
    assert replace(line, quantity=3) == Line(sku="a", quantity=3)
    assert line == Line(sku="a")
    with pytest.raises(TypeError):
        replace(line, quantities=3)  # type: ignore[call-arg,unused-ignore]


def test_messages_are_immutable_and_keyword_only() -> None:
    """Values cannot change behind a fold's back, and positions of fields mean nothing."""
    line = Line(sku="a")
    with pytest.raises(AttributeError):
        line.quantity = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Line("a")  # type: ignore[call-arg]
    assert hash(line) == hash(Line(sku="a"))
    assert msgspec.json.encode(line) == b'{"sku":"a","quantity":1,"price":"0"}'
