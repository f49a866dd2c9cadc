"""Compiling back: what code calls events, as what the store may hold of them (rule 21).

A type that was renamed is stored under its old names, too, an identity that was renamed is in old tags, and an event
may be a part of what is stored as another. Every query and condition is made of the names of now, and goes through here
once, so that no store knows of names that changed.
"""

from __future__ import annotations

from itertools import product

from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.messages.registry import EventTypes

__all__ = ["stored_query"]

STORED_ITEMS_MAX = 64
"""Items that one item may become: the former tags of each of its identities multiply, and what was split doubles."""


def stored_query(query: EventQuery, types: EventTypes) -> EventQuery:
    """The same events, by every name and tag with which they may be stored.

    And no others, but for the types that may have become several events or none: those are to be looked at, see
    `History.matching`. Of what one item becomes, the first has the names of the types alone, and the tags of now.

    Raises:
        ConfigurationError: the identities of one item had too many names.
    """
    return EventQuery(tuple(stored for item in query.items for stored in _stored_items(item, types)))


def _stored_items(item: QueryItem, types: EventTypes) -> list[QueryItem]:
    names = frozenset(stored for name in item.types for stored in types.stored_names(name))
    split = frozenset(stored for name in item.types for stored in types.split_names(name)) - names
    named = (names, split) if split else (names,)
    tags = [tuple(types.stored_tags(tag)) for tag in item.tags]
    count = len(named)
    for alternatives in tags:
        count *= len(alternatives)
    if count > STORED_ITEMS_MAX:
        raise ConfigurationError(
            f"events with the tags {sorted(item.tags)} may be stored with {count} sets of tags, by formerly= and "
            f"into=: at most STORED_ITEMS_MAX={STORED_ITEMS_MAX} are looked for"
        )
    return [QueryItem(stored, frozenset(chosen)) for stored in named for chosen in product(*tags)]
