"""Which events may change a row: told by tags where they tell all of them, and else not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from diptych import BoundedContext, Event, Identity, Key, ReadModel, Untagged, Value
from diptych.application.registration import event_types, projections
from diptych.event_store.event_query import QueryItem
from diptych.read_side.projection import Projection


class OrderId(Identity, formerly=["ord"]): ...


class SkuId(Identity): ...


class Line(Value):
    sku: SkuId


class Placed(Event):
    order: OrderId
    name: str
    lines: tuple[Line, ...]
    earlier: Untagged[OrderId]


class Shipped(Event, formerly=["Sent"]):
    order: OrderId
    sku: SkuId


class OtherLine(Value):
    """Its order need not be the one that the event is tagged with."""

    order: Untagged[OrderId]
    sku: Untagged[SkuId]


class Summary(ReadModel):
    order: Key[OrderId]


class Named(ReadModel):
    name: Key[str]


class Earlier(ReadModel):
    earlier: Key[OrderId]


class OfLine(ReadModel):
    order: Key[OrderId]
    sku: Key[SkuId]


class OfSku(ReadModel):
    sku: Key[SkuId]


def lines_of(event: Placed) -> tuple[Line, ...]:
    return event.lines


def order_of(event: Placed) -> str:
    return event.order


def orders_of(event: Placed) -> tuple[str, ...]:
    return (event.order,)


def compiled(declare: Callable[[BoundedContext], object]) -> Projection:
    context = BoundedContext("shop", events=[Placed, Shipped])
    declare(context)
    (found,) = projections([context], event_types([context]))
    return found


def summary(row: Summary, event: Placed | Shipped) -> Summary:
    return row


def placed_only(row: Summary, event: Placed) -> Summary:
    return row


def creates(event: Placed) -> Summary:
    return Summary(order=event.order)


def creates_of_line(event: Placed) -> OfLine:
    return OfLine(order=event.order, sku=SkuId("any"))


def named(row: Named, event: Placed) -> Named:
    return row


def earlier(row: Earlier, event: Placed) -> Earlier:
    return row


def of_line(row: OfLine, event: Placed, line: Line) -> OfLine:
    return row


def others_of(event: Placed) -> tuple[OtherLine, ...]:
    return tuple(OtherLine(order=event.earlier, sku=line.sku) for line in event.lines)


def of_other_line(row: OfLine, event: Placed, line: OtherLine) -> OfLine:
    return row


def of_shipped(row: OfLine, event: Shipped) -> OfLine:
    return row


def of_sku(row: OfSku, event: Placed, line: Line) -> OfSku:
    return row


PLACED, SHIPPED = frozenset({"shop.Placed"}), frozenset({"shop.Shipped", "shop.Sent"})


def items(types: frozenset[str], *tags: str) -> set[QueryItem]:
    return {QueryItem(types, frozenset(tags))}


@pytest.mark.parametrize(
    ("declare", "key", "expected"),
    [
        (lambda c: c.projection(creates), ("o1",), items(PLACED, "order:o1") | items(PLACED, "ord:o1")),
        (
            lambda c: c.projection(summary),
            ("o1",),
            items(PLACED | SHIPPED, "order:o1") | items(PLACED | SHIPPED, "ord:o1"),
        ),
        (
            lambda c: c.projection(each=lines_of)(of_line),
            ("o1", "s1"),
            items(PLACED, "order:o1") | items(PLACED, "ord:o1"),
        ),
        (
            lambda c: c.projection(of_shipped),
            ("o1", "s1"),
            items(SHIPPED, "order:o1", "sku:s1") | items(SHIPPED, "ord:o1", "sku:s1"),
        ),
    ],
    ids=["one field", "several events, names of before", "of event and part", "two fields"],
)
def test_tags_tell_them(declare: Callable[[BoundedContext], object], key: Any, expected: set[QueryItem]) -> None:
    """Where each event has an identity field that is the key, or part of it; by all names of before."""
    query = compiled(declare).query_of([key])
    assert query is not None
    assert set(query.items) == expected


@pytest.mark.parametrize(
    "declare",
    [
        lambda c: c.projection(named),
        lambda c: c.projection(earlier),
        lambda c: c.projection(key=order_of)(placed_only),
        lambda c: c.projection(keys=orders_of)(placed_only),
        lambda c: c.projection(each=lines_of)(of_sku),
        lambda c: c.projection(each=others_of)(of_other_line),
        lambda c: c.projection(creates_of_line),
    ],
    ids=[
        "no identity",
        "untagged",
        "computed",
        "several",
        "of a part",
        "of a part, and so named in the event",
        "told by the fold",
    ],
)
def test_tags_do_not_tell_them(declare: Callable[[BoundedContext], object]) -> None:
    """Where the key is no identity, untagged, computed, of a part alone, or told by the fold: any event may."""
    assert compiled(declare).query_of([("a", "b")]) is None
