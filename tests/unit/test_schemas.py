"""Schemas of event classes as stored facts: what they say, what reads what, and what opening a store makes of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest

from diptych import Application, BoundedContext, Event, EventContext, Identity, Untagged, Value
from diptych.errors import NewerHistory, SchemaChanged, TagsChanged
from diptych.event_store.event_store import Appended, Commit, EventStore, StoredSchema, StoredType, TypeFacts
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.message import MessageMeta
from diptych.messages.schema import described, differences, schema_fingerprint
from diptych.messages.tags import tag_reader
from diptych.messages.unique_id import unique_bytes

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)


class OrderId(Identity): ...


class Sku(Identity): ...


class BuyerId(Identity, formerly=["customer"]): ...


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Line(Value):
    sku: Sku
    count: int = 1
    parts: tuple[Line, ...] = ()


class Point(NamedTuple):
    x: int
    y: int = 0


class Address(TypedDict, total=False):
    street: str


@dataclass(frozen=True)
class Size:
    cm: int
    label: str = ""


class Cash(Value, tag=True):
    cents: int


class Card(Value, tag=True):
    owner: BuyerId


class Everything(Event):
    order: OrderId
    other: Untagged[OrderId]
    maybe: Annotated[BuyerId, msgspec.Meta(max_length=3)] | None = None
    lines: tuple[Line, ...] = ()
    by_sku: Mapping[Sku, Decimal] = {}
    pair: tuple[int, datetime] | None = None
    colour: Colour = Colour.RED
    word: Literal["a", 1] = "a"
    point: Point = Point(1)
    address: Address = {}
    size: Size = Size(1)
    paid: Cash | Card | None = None
    anything: Any = None
    many: frozenset[int | str] = frozenset()


def test_a_schema_says_what_json_may_say_and_where_tags_are() -> None:
    """Down to nested values, told by structure: no class has its name in it."""
    found = described(Everything)
    line = {
        "fields": {"sku": "str", "count": "int", "parts": {"list": {"again": 1}}},
        "required": ["sku"],
    }
    assert found.schema == {
        "fields": {
            "order": "str",
            "other": "str",
            "maybe": {"any_of": ["null", "str"]},
            "lines": {"list": line},
            "by_sku": {"map": ["str", "Decimal"]},
            "pair": {"any_of": ["null", {"tuple": ["int", "datetime"]}]},
            "colour": {"values": ["blue", "red"]},
            "word": {"values": [1, "a"]},
            "point": {"fields": {"x": "int", "y": "int"}, "required": ["x"], "array": ["x", "y"]},
            "address": {"fields": {"street": {"any_of": ["null", "str"]}}, "required": [], "sparse": True},
            "size": {"fields": {"cm": "int", "label": "str"}, "required": ["cm"]},
            "paid": {
                "any_of": [
                    "null",
                    {"fields": {"cents": "int"}, "kind": ["type", "Cash"], "required": ["cents"]},
                    {"fields": {"owner": "str"}, "kind": ["type", "Card"], "required": ["owner"]},
                ]
            },
            "anything": "any",
            "many": {"list": {"any_of": ["int", "str"]}},
        },
        "required": ["order", "other"],
    }
    assert found.tag_fields == (
        "by_sku{key}: sku",
        "lines[].sku: sku",
        "maybe: buyer",
        "order: order",
        "paid.owner: buyer",
    )
    names = {place.rpartition(": ")[2] for place in found.tag_fields}
    assert names == set(tag_reader(Everything).names)


def test_a_fingerprint_tells_schemas_and_places_apart() -> None:
    """Each counts; the order in which fields are written does not."""
    base = schema_fingerprint({"fields": {"a": "str", "b": "int"}, "required": []}, ["a: a"])
    assert base == schema_fingerprint({"required": [], "fields": {"b": "int", "a": "str"}}, ["a: a"])
    assert base != schema_fingerprint({"fields": {"a": "str", "b": "int"}, "required": ["a"]}, ["a: a"])
    assert base != schema_fingerprint({"fields": {"a": "str", "b": "int"}, "required": []}, ["b: a"])
    assert len(base) == 32


def made(fields: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, **keywords: Any) -> Any:
    """An event class with these fields."""
    namespace = {"__module__": __name__, "__annotations__": dict(fields), **(defaults or {})}
    return MessageMeta("OrderPlaced", (Event,), namespace, **keywords)


def schema(annotation: Any) -> Any:
    return described(made({"x": annotation})).schema


class Shorter(Value):
    sku: Sku
    parts: tuple[Shorter, ...] = ()


class Closed(Value, forbid_unknown_fields=True):
    sku: str


class Opened(Value):
    sku: str
    more: int = 0


READ = [
    (int, float, False),
    (float, int, True),
    (int | None, int, True),
    (int, int | None, False),
    (int | str, str | int, True),
    (str, Literal["a"], True),
    (int, Literal["a"], False),
    (Literal["a", "b"], Literal["a"], True),
    (Literal["a"], Literal["a", "b"], False),
    (Any, Line, True),
    (Line, Any, False),
    (list[int], tuple[int, ...], True),
    (tuple[int, int], tuple[int, int, int], False),
    (tuple[float, int], tuple[int, int], True),
    (dict[str, float], dict[str, int], True),
    (dict[int, str], dict[str, str], False),
    (dict[str, str], dict[int, str], True),
    (Decimal, int, True),
    (Decimal | None, float, True),
    (int, Decimal, False),
    (float, Decimal, False),
    (Decimal, str, False),
    (str, Decimal | None, False),
    (str | None, datetime | None, True),
    (str, int, False),
    (str, bytes, False),
    (Literal["a"] | None, Literal["a", None], True),  # noqa: PYI061 — the other way to write it
    (Literal["a", None], Literal["a"] | None, True),  # noqa: PYI061
    (str | int, Literal["a", 1], True),
    (Literal[1, 2], Literal[True], False),
    (list[int], tuple[int, int], True),
    (list[int], tuple[int, str], False),
    (tuple[int, int], list[int], False),
    (dict[str, Any], Line, True),
    (dict[str, int], Line, False),
    (dict[str, Any], Point, False),
    (Line, dict[str, Any], False),
    (datetime, str, False),
    (str, datetime, True),
    (Line, Shorter, True),
    (Cash | Card, Cash, True),
    (Card, Cash, False),
    (Line | None, Shorter | None, True),
]


@pytest.mark.parametrize(("reader", "written", "reads"), READ, ids=range(len(READ)))
def test_what_a_schema_reads(reader: Any, written: Any, *, reads: bool) -> None:
    """What is wider reads what is narrower, and never the other way round; at any depth."""
    found = differences(schema(reader), schema(written))
    assert (not found) is reads, found
    assert all(each.startswith("x") or " x" in each for each in found)


def test_fields_that_nothing_reads_are_lost_to_older_code_alone() -> None:
    """It may run on without them, unless it refuses what it does not know."""
    assert differences(schema(Shorter), schema(Line)) == ["the field x.count is gone"]
    assert differences(schema(Shorter), schema(Line), loses=True) == []
    assert differences(schema(Closed), schema(Opened), loses=True) == ["the field x.more is gone"]


def test_a_default_that_was_dropped_matters_where_a_field_may_be_lacking() -> None:
    """Whoever knows the field writes it, unless it leaves out defaults; whoever does not, cannot."""
    here, sparse = made({"x": int}), made({"x": int}, {"x": 1}, omit_defaults=True)
    told = ["the field x has no default any more"]
    assert differences(described(here).schema, described(made({"x": int}, {"x": 1})).schema) == told
    assert differences(described(here).schema, described(made({"x": int}, {"x": 1})).schema, lacks=False) == []
    assert differences(described(here).schema, described(sparse).schema, lacks=False) == told


def test_a_renamed_field_is_told_from_one_that_is_gone() -> None:
    """Where one of the same type is new."""
    before, now = made({"order": OrderId, "cents": int}), made({"order": OrderId, "pence": int}, {"pence": 0})
    (found,) = differences(described(now).schema, described(before).schema)
    assert found == "the field cents is gone, and pence is new: is that what it is called now?"


# ── when a store opens ───────────────────────────────────────────────────────


BASE = {"order": OrderId, "cents": int}


def shop(
    fields: Mapping[str, Any] = BASE, defaults: Mapping[str, Any] | None = None, **keywords: Any
) -> BoundedContext:
    return BoundedContext("shop", events=[made(fields, defaults, **keywords)])


async def store_one(store: EventStore) -> None:
    event = NewEvent(unique_bytes(), "shop.OrderPlaced", 1, b'{"order":"a","cents":1}', ("order:a",))
    (result,) = await store.append([Commit((event,))])
    assert isinstance(result, Appended)


@pytest.fixture
async def url(store_url: str) -> str:
    """A kept store in which `BASE` is stored once."""
    async with Application(shop(), store=store_url) as app:
        await store_one(app.partition().store)
    return store_url


async def facts(context: BoundedContext, url: str) -> TypeFacts:
    async with Application(context, store=url) as app:
        (stored,) = await app.partition().store.stored_types()
        assert stored.facts is not None
        return stored.facts


CHANGED = [
    ({"order": OrderId}, {}, "the field cents is gone"),
    ({"order": OrderId, "pence": int}, {}, "cents is gone, and pence is new"),
    ({"order": OrderId, "cents": str}, {}, "cents was int and is str"),
    ({**BASE, "note": str}, {}, "note is new and has no default"),
    ({**BASE, "note": str, "order_again": Untagged[OrderId]}, {"note": ""}, "order_again is new and has no default"),
]


@kept
@pytest.mark.parametrize(("fields", "defaults", "told"), CHANGED, ids=[told for *_, told in CHANGED])
async def test_another_schema_is_refused(
    url: str, fields: Mapping[str, Any], defaults: Mapping[str, Any], told: str
) -> None:
    """With what changed, what to do, and the upcaster to write; nothing is stored, and code of before goes on."""
    with pytest.raises(SchemaChanged, match=told) as changed:
        await Application(shop(fields, defaults), store=url).open()
    error = changed.value
    assert (error.type, error.version) == ("shop.OrderPlaced", 1)
    assert "version=2" in str(error)
    assert error.skeleton.startswith("@shop.upcaster(OrderPlaced, from_version=1)\ndef order_placed_from_1(")
    assert len((await facts(shop(), url)).schemas) == 1


@kept
async def test_a_field_with_a_default_may_come(url: str) -> None:
    """The store learns of it with the position, once; and code of before runs on beside it, and writes nothing."""
    newer = shop({**BASE, "note": str}, {"note": ""})
    found = await facts(newer, url)
    assert [each.since for each in found.schemas] == [0, 1]
    assert "note" in found.schemas[-1].schema["fields"]
    assert await facts(shop(), url) == found
    assert await facts(newer, url) == found


@kept
async def test_code_that_came_before_is_told_where_it_reads_no_longer(url: str) -> None:
    """Not that it has changed: newer code is to be run. It says from where on."""
    assert len((await facts(shop({"order": OrderId, "cents": int | None}), url)).schemas) == 2
    with pytest.raises(NewerHistory, match=r"newer code.*cents was int \| null and is int") as newer:
        await Application(shop(), store=url).open()
    assert (newer.value.type, newer.value.version, newer.value.position) == ("shop.OrderPlaced", 1, 1)


@kept
async def test_what_came_between_counts_too(url: str) -> None:
    """A field that had a default keeps one: events of before it came lack the field."""
    await facts(shop({**BASE, "note": str}, {"note": ""}), url)
    with pytest.raises(SchemaChanged, match="note has no default any more"):
        await Application(shop({**BASE, "note": str, "more": int}, {"more": 0}), store=url).open()


@kept
async def test_a_default_that_was_there_from_the_beginning_may_go(store_url: str) -> None:
    """Every event has the field; and older code reads what newer code stores, that always writes it as well."""
    older, newer = shop({**BASE, "note": str}, {"note": ""}), shop({**BASE, "note": str})
    async with Application(older, store=store_url) as app:
        event = NewEvent(unique_bytes(), "shop.OrderPlaced", 1, b'{"order":"a","cents":1,"note":""}', ("order:a",))
        await app.partition().store.append([Commit((event,))])
    for context in (newer, older, newer):
        assert len((await facts(context, store_url)).schemas) == 2


@kept
async def test_every_schema_that_is_kept_has_to_be_read(url: str) -> None:
    """A text reads decimals, and decimals read numbers; a text does not."""
    await facts(shop({**BASE, "cents": Decimal}), url)
    with pytest.raises(SchemaChanged, match="cents was int and is str"):
        await facts(shop({**BASE, "cents": str}), url)


def billing(fields: Mapping[str, Any]) -> BoundedContext:
    """A context of another application, with a class of its own for what it reads of the shop's orders."""
    context = BoundedContext("billing")
    placed: Any = made(fields, stored_as="shop.OrderPlaced")

    async def bill(events: Any) -> None: ...

    bill.__annotations__ = {"events": Sequence[tuple[placed, EventContext]], "return": None}
    context.subscriber(bill)
    return context


@kept
async def test_another_context_reads_what_it_needs_and_says_nothing_of_schemas(url: str) -> None:
    """Its class may have fewer fields; what it has, it has to read. The shop's code is as before beside it."""
    before = await facts(shop(), url)
    assert await facts(billing({"order": OrderId}), url) == before
    with pytest.raises(SchemaChanged, match="cents was int and is str"):
        await facts(billing({"order": OrderId, "cents": str}), url)
    await facts(shop({**BASE, "note": str}, {"note": ""}), url)
    assert len((await facts(billing({"order": OrderId}), url)).schemas) == 2


@kept
async def test_another_context_that_opens_between_is_not_taken_for_who_stores(store_url: str) -> None:
    """The facts are those of the code that stores the first event."""
    async with Application(shop(), store=store_url) as app, Application(billing({"order": OrderId}), store=store_url):
        await store_one(app.partition().store)
    assert (await facts(shop(), store_url)).schemas == (StoredSchema(described(made(BASE)).schema, Position(0)),)


@kept
async def test_a_store_of_before_takes_the_schemas_of_the_code(url: str) -> None:
    """Whose they are nobody can tell: they are noted as from that position on, and hold from then."""
    async with Application(BoundedContext("nothing"), store=url) as app:
        event = NewEvent(unique_bytes(), "old.Happened", 1, b"{}", ())
        await app.partition().store.append([Commit((event,))])

    old = BoundedContext("old", events=[MessageMeta("Happened", (Event,), {"__module__": __name__})])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    async with Application(old, store=url) as app:
        types = {type.name: type for type in await app.partition().store.stored_types()}
        found = types["old.Happened"].facts
        assert found is not None
        assert [each.since for each in found.schemas] == [2]


@kept
async def test_other_fields_that_give_the_same_tags_are_refused(store_url: str) -> None:
    """Where the names are the same, the places are told."""
    async with Application(shop({"one": OrderId, "two": Untagged[OrderId]}), store=store_url) as app:
        await store_one(app.partition().store)
    with pytest.raises(TagsChanged, match="diptych retag") as tags:
        await Application(shop({"one": Untagged[OrderId], "two": OrderId}), store=store_url).open()
    assert (tags.value.stored, tags.value.coded) == (("one: order",), ("two: order",))


@kept
async def test_a_renamed_identity_is_in_its_old_places(store_url: str) -> None:
    """With `formerly=`, the places are those that they were."""

    class CustomerId(Identity, tag="customer"): ...

    async with Application(shop({"by": CustomerId}), store=store_url) as app:
        await store_one(app.partition().store)
    assert (await facts(shop({"by": BuyerId}), store_url)).tag_fields == ("by: customer",)


@kept
async def test_nothing_is_written_where_nothing_is_new(url: str) -> None:
    """An opening reads what is stored once, and leaves it."""
    async with Application(shop(), store=url) as app:
        store = app.partition().store
        before = await store.stored_types()
        calls: list[str] = []

        class Watched:
            def __getattr__(self, name: str) -> Any:
                calls.append(name)
                return getattr(store, name)

        await app.partition().history.register(Watched(), {"shop"})  # pyright: ignore[reportArgumentType]
        assert calls == ["tagging", "register_types", "stored_types"]
        assert await store.stored_types() == before
        assert isinstance(before[0], StoredType)
