"""Projections, queries and subscribers as they are compiled: every form, and what is told where one does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import pytest

from diptych import (
    BoundedContext,
    ConfigurationError,
    Event,
    EventContext,
    Identity,
    Indexed,
    Key,
    Query,
    Reader,
    ReadModel,
    Searchable,
    Value,
)
from diptych.application.registration import event_types, projections, subscribers
from diptych.read_side.projection import KeyNotFound, MissingRow, Projection
from diptych.read_side.query_bus import compile_query_handlers

CONTEXT = EventContext(position=7, event_id="e", recorded_at=datetime(2026, 1, 1, tzinfo=UTC))


class Sku(Identity): ...


class Line(Value):
    sku: Sku
    day: str = ""


class Day(Value):
    day: str


class Sold(Event):
    sku: Sku
    day: str = ""
    lines: tuple[Line, ...] = ()


class Other(Event):
    text: str = ""


class Sales(ReadModel):
    sku: Key[Sku]
    units: int = 0


class Daily(ReadModel):
    day: Key[str]
    sku: Key[Sku]
    units: int = 0


class Strict(ReadModel):
    sku: Key[Sku]
    units: int


class SalesOf(Query[Sales | None]):
    sku: Sku


def context() -> BoundedContext:
    return BoundedContext("shop", events=[Sold, Other])


def compiled(function: Any, **options: Any) -> Projection:
    made = context()
    (made.projection(**options) if options else made.projection)(function)
    (found,) = projections([made], event_types([made]))
    return found


def keys(projection: Projection, event: Event) -> list[object]:
    return [step.key for step in projection.steps(7, event, CONTEXT)]


def sold(*lines: tuple[str, str], sku: str = "a", day: str = "mon") -> Sold:
    return Sold(sku=Sku(sku), day=day, lines=tuple(Line(sku=Sku(sku), day=day) for sku, day in lines))


# ── the row that an event means ──────────────────────────────────────────────


def test_the_row_is_found_by_fields_named_like_the_key() -> None:
    """In the order of the key, from the event, or from its part first."""

    def sales(row: Sales, event: Sold) -> Sales: ...

    def daily(row: Daily, event: Sold) -> Daily: ...

    def mixed(row: Daily, event: Sold, part: Line) -> Daily: ...

    assert keys(compiled(sales), sold()) == [("a",)]
    assert keys(compiled(daily), sold()) == [("mon", "a")]
    by_part = compiled(mixed, each=lambda event: event.lines)
    assert keys(by_part, sold(("b", "tue"), ("b", "tue"))) == [("tue", "b"), ("tue", "b")]
    assert keys(by_part, sold()) == []


def test_a_key_the_part_lacks_is_taken_from_the_event() -> None:
    """`each` may give plain parts: their rows are found by the event's fields."""

    def daily(row: Daily, event: Sold, part: Day) -> Daily: ...

    by_part = compiled(daily, each=lambda event: [Day(day="x"), Day(day="y")])
    assert keys(by_part, sold()) == [("x", "a"), ("y", "a")]


def test_keys_may_be_computed() -> None:
    """`key=` of the event or the part, a tuple where it is composite; `keys=` fans out, each key once."""

    def daily(row: Daily, event: Sold) -> Daily: ...

    def part(row: Daily, event: Sold, part: Line) -> Daily: ...

    assert keys(compiled(daily, key=lambda event: ("fri", event.sku)), sold()) == [("fri", "a")]
    by_part = compiled(part, each=lambda event: event.lines, key=lambda line: ("sun", line.sku))
    assert keys(by_part, sold(("b", ""), ("c", ""))) == [("sun", "b"), ("sun", "c")]
    fan_out = compiled(daily, keys=lambda event: [("x", "1"), ("y", "2"), ("x", "1")])
    assert keys(fan_out, sold()) == [("x", "1"), ("y", "2")]


def test_events_that_are_not_folded_concern_no_row() -> None:
    """A projection is asked about its own events only."""

    def sales(row: Sales, event: Sold) -> Sales: ...

    projection = compiled(sales)
    assert projection.types == {"shop.Sold"}
    assert keys(projection, Other()) == []


@pytest.mark.parametrize("found", [None, (), ("a", "b"), ("a", None), 1, b"a", ["a"]])
def test_a_key_that_is_none_names_function_and_position(found: object) -> None:
    """Too few or too many parts, None, or another type than the column's."""

    def sales(row: Sales, event: Sold) -> Sales: ...

    for options in ({"key": lambda event: found}, {"keys": lambda event: [found]}):
        with pytest.raises(KeyNotFound, match=r"<locals>\.sales: the key of the event at position 7"):
            compiled(sales, **options).steps(7, sold(), CONTEXT)


def test_a_key_function_that_fails_tells_where() -> None:
    """With the line of the user's code."""

    def key(event: Sold) -> str:
        raise LookupError("nothing there")

    def sales(row: Sales, event: Sold) -> Sales: ...

    with pytest.raises(KeyNotFound, match=r"LookupError: nothing there \(key, line \d+ of test_projection\.py\)"):
        compiled(sales, key=key).steps(7, sold(), CONTEXT)


def test_a_key_function_may_take_the_context() -> None:
    """What needs two arguments takes it; a default, or a function of which nothing is known, is left alone."""

    def with_default(event: Sold, sep: str = "/") -> str:
        return f"{event.sku}{sep}"

    def sales(row: Sales, event: Sold) -> Sales: ...

    for key, expected, takes_context in (
        (lambda event, context: f"{event.sku}{context.position}", "a7", True),
        (lambda event: event.sku, "a", False),
        (with_default, "a/", False),
        (attrgetter("sku"), "a", False),
    ):
        projection = compiled(sales, key=key)
        (step,) = projection.steps(7, sold(), CONTEXT)
        assert (step.key, projection.takes_context) == ((expected,), takes_context)


def test_an_event_concerns_a_limited_number_of_rows() -> None:
    """More than `KEYS_PER_EVENT_MAX` is a mistake that is said."""

    def sales(row: Sales, event: Sold) -> Sales: ...

    with pytest.raises(KeyNotFound, match="10001 rows; 10000 is the limit"):
        compiled(sales, keys=lambda event: [f"{n}" for n in range(10_001)]).steps(7, sold(), CONTEXT)


# ── the form of the row parameter ────────────────────────────────────────────


def test_the_form_of_the_row_parameter_decides() -> None:
    """Created, blank where there is none, or explicit; with the context if it asks."""

    def creates(event: Sold, context: EventContext) -> Sales:
        return Sales(sku=event.sku, units=context.position)

    def blank(row: Sales, event: Sold) -> Sales:
        return Sales(sku=row.sku, units=row.units + 1)

    def explicit(row: Sales | None, event: Sold, context: EventContext) -> Sales | None:
        return Sales(sku=event.sku, units=-1) if row is None else None

    present = Sales(sku=Sku("a"), units=5)
    for function, absent_gives, present_gives in [
        (creates, Sales(sku=Sku("a"), units=7), Sales(sku=Sku("a"), units=7)),
        (blank, Sales(sku=Sku("a"), units=1), Sales(sku=Sku("a"), units=6)),
        (explicit, Sales(sku=Sku("a"), units=-1), None),
    ]:
        (step,) = compiled(function).steps(7, sold(), CONTEXT)
        assert step.fold.apply(None, step) == absent_gives
        assert step.fold.apply(present, step) == present_gives


def test_a_blank_row_that_cannot_be_made_is_missing() -> None:
    """A field without default says so, with the three remedies."""

    def strict(row: Strict, event: Sold) -> Strict:
        return row

    (step,) = compiled(strict).steps(7, sold(), CONTEXT)
    with pytest.raises(MissingRow, match=r"Strict has no row \('a',\).*earlier event.*defaults.*row: Strict \| None"):
        step.fold.apply(None, step)


def test_a_fold_that_gives_something_else_is_named() -> None:
    """A row of another read model, or no row at all."""

    def sales(row: Sales, event: Sold) -> Any:
        return Strict(sku=event.sku, units=1)

    (step,) = compiled(sales).steps(7, sold(), CONTEXT)
    with pytest.raises(TypeError, match=r"sales must return a Sales or None, not Strict"):
        step.fold.apply(None, step)


# ── what does not fit ────────────────────────────────────────────────────────


class NoKey(ReadModel):
    units: int = 0


class OptionalKey(ReadModel):
    sku: Key[Sku | None]


class DocumentKey(ReadModel):
    sku: Key[tuple[str, ...]]


class IndexedDocument(ReadModel):
    sku: Key[Sku]
    held: Indexed[dict[str, int]] = {}


class SearchableNumber(ReadModel):
    sku: Key[Sku]
    units: Searchable[int] = 0


class Underscored(ReadModel):
    sku: Key[Sku]
    two__words: int = 0


class ByDay(ReadModel):
    month: Key[str]


class NumberKey(ReadModel):
    sku: Key[int]


def no_model(event: Sold) -> None: ...
def no_parameter() -> Sales: ...
def no_event(row: Sales) -> Sales: ...
def no_annotation(row: Sales, event) -> Sales: ...  # type: ignore[no-untyped-def]
def no_event_type(row: Sales, event: int) -> Sales: ...
def not_a_context(row: Sales, event: Sold, when: datetime) -> Sales: ...
def too_many(row: Sales, event: Sold, context: EventContext, more: int) -> Sales: ...
def no_key(row: NoKey, event: Sold) -> NoKey: ...
def optional_key(row: OptionalKey, event: Sold) -> OptionalKey: ...
def document_key(row: DocumentKey, event: Sold) -> DocumentKey: ...
def indexed_document(row: IndexedDocument, event: Sold) -> IndexedDocument: ...
def searchable_number(row: SearchableNumber, event: Sold) -> SearchableNumber: ...
def underscored(row: Underscored, event: Sold) -> Underscored: ...
def no_key_field(row: ByDay, event: Sold) -> ByDay: ...
def other_type(row: NumberKey, event: Sold) -> NumberKey: ...
def keyword_only(row: Sales, *, event: Sold) -> Sales: ...
def variable(row: Sales, *event: Sold) -> Sales: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_model, "no_model: annotate the row it takes, or the row it returns"),
        (no_parameter, r"no_parameter: a projection takes \(row, event\)"),
        (no_event, r"no_event: a projection takes \(row, event\)"),
        (no_annotation, "no_annotation: annotate `event` with the events that it folds"),
        (no_event_type, "no_event_type: <class 'int'> is no Event"),
        (not_a_context, "not_a_context: a projection takes .* context: EventContext"),
        (too_many, "too_many: a projection takes"),
        (no_key, r"NoKey has no key: .*Key\[\.\.\.\]"),
        (optional_key, "OptionalKey.sku is a Key and cannot be None"),
        (document_key, "DocumentKey.sku is kept as a document, .* give it a plain type"),
        (indexed_document, "IndexedDocument.held is kept as a document"),
        (searchable_number, "SearchableNumber.units is Searchable: its type must be str"),
        (underscored, "Underscored.two__words: column names hold no double"),
        (no_key_field, "no_key_field: Sold has no field 'month' to find the row of ByDay by; .*key=function"),
        (other_type, "other_type: Sold.sku is no integer .*NumberKey.sku.* key=function"),
        (keyword_only, r"keyword_only: .*without `\*`"),
        (variable, r"variable: .*without `\*`"),
    ],
)
def test_what_does_not_fit_is_told_with_its_remedy(function: Callable[..., Any], text: str) -> None:
    """At start-up, naming function, parameter or column, and what to do."""
    with pytest.raises(ConfigurationError, match=text):
        compiled(function)


def test_two_functions_for_one_event_are_refused() -> None:
    """Their order would matter, so they have to be one; a base class counts as its subclasses."""

    class Special(Sold): ...

    def first(row: Sales, event: Sold) -> Sales: ...

    def second(row: Sales, event: Special) -> Sales: ...

    made = BoundedContext("shop", events=[Special])
    made.projection(first)
    made.projection(second)
    with pytest.raises(ConfigurationError, match="second and .*first both fold Special into Sales"):
        projections([made], event_types([made]))


@pytest.mark.parametrize("options", [{"key": str, "keys": list}, {"each": list, "keys": list}])
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any]) -> None:
    """`keys=` is a form of its own."""

    def sales(row: Sales, event: Sold) -> Sales: ...

    def part(row: Sales, event: Sold, part: Line) -> Sales: ...

    with pytest.raises(ConfigurationError, match="keys= goes with neither key= nor each="):
        compiled(part if "each" in options else sales, **options)


def test_a_part_has_to_be_taken() -> None:
    """With `each` the fold takes the part after the event."""

    def sales(row: Sales, event: Sold) -> Sales: ...

    with pytest.raises(ConfigurationError, match=r"a projection takes \(row, event, part\)"):
        compiled(sales, each=lambda event: event.lines)


# ── queries ──────────────────────────────────────────────────────────────────


class Unanswered(Query[int]): ...


class WrongKey(Query["Misfit | None"]):
    sku: Sku
    day: str


class WrongColumn(Query["list[Misfits]"]):
    colour: str


class Misfit(ReadModel):
    sku: Key[Sku]


class Misfits(ReadModel):
    sku: Key[Sku]


def misfit(row: Misfit, event: Sold) -> Misfit: ...
def misfits(row: Misfits, event: Sold) -> Misfits: ...
async def no_query() -> int: ...
async def not_a_query(query: int) -> int: ...
def not_async(query: Unanswered, read: Reader) -> int: ...
async def unknown_service(query: Unanswered, read: Reader, mailer: Line) -> int: ...
async def unannotated(query: Unanswered, read) -> int: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_query, "no_query: annotate the first parameter with the query"),
        (not_a_query, "not_a_query: annotate the first parameter with the query"),
        (not_async, "not_async: a query handler is an `async def`"),
        (
            unknown_service,
            r"unknown_service: parameter `mailer` is neither the Reader, the QueryContext nor a service; .*services=",
        ),
        (unannotated, "unannotated: parameter `read` is neither the Reader, the QueryContext nor a service"),
    ],
)
def test_query_handlers_that_do_not_fit_are_told(function: Any, text: str) -> None:
    """Naming handler, parameter and remedy."""
    made = context()
    made.query_handler(function)
    with pytest.raises(ConfigurationError, match=text):
        compile_query_handlers(made.query_handlers, [], {})


def test_a_query_is_answered_once() -> None:
    """Two handlers of one query are refused."""

    async def one(query: Unanswered) -> int: ...

    async def two(query: Unanswered) -> int: ...

    made = context()
    made.query_handler(one)
    made.query_handler(two)
    with pytest.raises(ConfigurationError, match="two: Unanswered has a handler already"):
        compile_query_handlers(made.query_handlers, [], {})


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (misfit, r"WrongKey has no handler, and its fields \(sku, day\) are not the key of Misfit \(sku\)"),
        (misfits, r"WrongColumn has no handler, and its field 'colour' is no column of Misfits \(sku\)"),
    ],
)
def test_queries_without_handler_have_to_fit_their_read_model(function: Any, text: str) -> None:
    """Fields that are no key, or no columns, need a handler: said at start-up."""
    with pytest.raises(ConfigurationError, match=text):
        compile_query_handlers([], [compiled(function)], {})


# ── subscribers ──────────────────────────────────────────────────────────────


async def no_batch() -> None: ...
async def one_event(event: Sold) -> None: ...
async def no_context(events: Sequence[Sold]) -> None: ...
async def a_list(events: list[tuple[Sold, EventContext]]) -> None: ...
async def no_subscribed_event(events: Sequence[tuple[int, EventContext]]) -> None: ...
async def subscriber_service(events: Sequence[tuple[Sold, EventContext]], mailer: Line) -> None: ...
def plain(events: Sequence[tuple[Sold, EventContext]]) -> None: ...


FORM = r"annotated Sequence\[tuple\[SomeEvent, EventContext\]\]"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_batch, f"no_batch: .*{FORM}"),
        (one_event, f"one_event: .*{FORM}"),
        (no_context, f"no_context: .*{FORM}"),
        (a_list, f"a_list: .*{FORM}"),
        (no_subscribed_event, "no_subscribed_event: <class 'int'> is no Event"),
        (subscriber_service, "subscriber_service: parameter `mailer` is no service; .*services="),
        (plain, "plain: a subscriber is an `async def`"),
    ],
)
def test_subscribers_that_do_not_fit_are_told(function: Any, text: str) -> None:
    """Naming subscriber, parameter and remedy."""
    made = context()
    made.subscriber(function)
    with pytest.raises(ConfigurationError, match=text):
        subscribers([made], {}, event_types([made]), [])


def test_each_of_a_generator_is_taken_whole() -> None:
    """`each` and `keys` may be generators."""

    def parts(event: Sold) -> Iterable[Line]:
        yield from event.lines

    def daily(row: Daily, event: Sold, part: Line) -> Daily: ...

    assert keys(compiled(daily, each=parts), sold(("b", "x"), ("c", "y"))) == [("x", "b"), ("y", "c")]
