"""Queries over names that changed: whichever name an event was stored with, matched as under those of now."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import BoundedContext, Event, Identity
from diptych.application.registration import event_types
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.stored_query import stored_query


class CustomerId(Identity, formerly=["cust", "client"]): ...


class ShopId(Identity, formerly=["store"]): ...


class OrderPlaced(Event, formerly=["OrderCreated", "sales.OrderMade"]):
    customer: CustomerId
    shop: ShopId


TYPES = event_types([BoundedContext("shop", events=[OrderPlaced])])
TYPE_NAMES = {
    "shop.OrderPlaced": ["shop.OrderPlaced", "shop.OrderCreated", "sales.OrderMade"],
    "shop.Other": ["shop.Other"],
}
TAG_NAMES = {"customer": ["customer", "cust", "client"], "shop": ["shop", "store"], "other": ["other"]}
tags_now = st.frozensets(st.tuples(st.sampled_from(sorted(TAG_NAMES)), st.sampled_from(["1", "2", "a:b"])), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    items=st.lists(st.tuples(st.frozensets(st.sampled_from(sorted(TYPE_NAMES))), tags_now), max_size=2),
    type=st.sampled_from(sorted(TYPE_NAMES)),
    tags=tags_now,
    data=st.data(),
)
def test_a_query_matches_stored_names_exactly_where_it_matches_those_of_now(
    items: list[tuple[frozenset[str], frozenset[tuple[str, str]]]],
    type: str,
    tags: frozenset[tuple[str, str]],
    data: st.DataObject,
) -> None:
    """Whichever of its names each part of an event was stored with: no more, and no less."""
    query = EventQuery(
        tuple(QueryItem(types, frozenset(f"{kind}:{value}" for kind, value in wanted)) for types, wanted in items)
    )
    stored_type = data.draw(st.sampled_from(TYPE_NAMES[type]))
    stored_tags = [f"{data.draw(st.sampled_from(TAG_NAMES[kind]))}:{value}" for kind, value in sorted(tags)]
    expected = query.matches(type, [f"{kind}:{value}" for kind, value in tags])
    assert stored_query(query, TYPES).matches(stored_type, stored_tags) == expected
