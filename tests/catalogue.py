"""A catalogue whose events change the rows that they find by what those hold (`where=`), by folds that choke."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from diptych import BoundedContext, Event, EventContext, ExpiresAt, Identity, Indexed, Key, ReadModel, Value, replace
from tests.warehouse import POISON, TOO_LARGE

__all__ = [
    "Bundled", "Cleared", "Delisted", "Entry", "Item", "ItemId", "Listed", "Moved", "Offer", "Raise", "Raised",
    "Renamed", "catalogue", "happenings", "row_after",
]  # fmt: skip

OFFERED = timedelta(seconds=5)
"""How long an offer is one."""


class ItemId(Identity): ...


class Raise(Value):
    category: str
    amount: int


class Listed(Event):
    item: ItemId
    category: str
    shelf: int | None
    price: int


class Delisted(Event):
    item: ItemId


class Renamed(Event):
    old: str
    new: str


class Raised(Event):
    category: str
    amount: int


class Moved(Event):
    category: str
    shelf: int | None
    to: int | None


class Cleared(Event):
    category: str


class Bundled(Event):
    raises: tuple[Raise, ...]


class Item(ReadModel):
    item: Key[ItemId]
    category: Indexed[str] = ""
    shelf: int | None = None
    price: int = 0


class Entry(ReadModel):
    entry: Key[str]
    category: Indexed[str]
    price: int


class Offer(ReadModel):
    category: Key[str]
    item: Key[ItemId]
    price: int = 0
    until: ExpiresAt[datetime | None] = None


def raised(price: int, amount: int) -> int:
    if price + amount == POISON:
        raise ValueError("poisoned")
    return price + amount


def raises(event: Bundled) -> Iterable[Raise]:
    return event.raises


def catalogue(partitions: int = 1) -> BoundedContext:
    """Three read models, each split into so many slices."""
    context = BoundedContext("catalogue", events=[Listed, Delisted, Renamed, Raised, Moved, Cleared, Bundled])

    @context.projection(partitions=partitions)
    def listed(row: Item, event: Listed) -> Item:
        return Item(item=row.item, category=event.category, shelf=event.shelf, price=raised(0, event.price))

    @context.projection
    def delisted(row: Item | None, event: Delisted) -> Item | None:
        return None

    @context.projection(where={"category": "old"})
    def renamed(row: Item, event: Renamed) -> Item:
        return replace(row, category=event.new)

    @context.projection(where="category")
    def item_raised(row: Item, event: Raised | Cleared) -> Item | None:
        return None if isinstance(event, Cleared) else replace(row, price=raised(row.price, event.amount))

    @context.projection(where={"shelf": "shelf", "category": "category"})
    def moved(row: Item, event: Moved) -> Item:
        return replace(row, shelf=event.to)

    @context.projection(each=raises, where="category")
    def bundled(row: Item, event: Bundled, part: Raise) -> Item:
        return replace(row, price=raised(row.price, part.amount))

    @context.projection(partitions=partitions)
    def entered(event: Listed) -> Entry:
        return Entry(entry=f"{event.item}/{event.price % 2}", category=event.category, price=event.price)

    @context.projection(where="category")
    def entry_raised(row: Entry, event: Raised, context: EventContext) -> Entry | None:
        return None if raised(row.price, event.amount) == 0 else replace(row, price=row.price + event.amount)

    @context.projection(partitions=partitions)
    def offered(row: Offer, event: Listed, context: EventContext) -> Offer:
        return replace(row, price=row.price + event.price, until=context.recorded_at + OFFERED)

    @context.projection(where="category")
    def offers_raised(row: Offer, event: Raised) -> Offer:
        return replace(row, price=raised(row.price, event.amount))

    return context


ITEMS = [ItemId("a"), ItemId("b"), ItemId("c"), ItemId("d")]
CATEGORIES = ["tea", "ink", ""]

items, categories = st.sampled_from(ITEMS), st.sampled_from([*CATEGORIES, "tea"])
shelves = st.sampled_from([None, 1, 2])
prices = st.integers(1, 9)
amounts = st.one_of(prices, st.sampled_from([POISON, TOO_LARGE, 0, -1]))
happenings = st.one_of(
    st.builds(Listed, item=items, category=categories, shelf=shelves, price=prices),
    st.builds(Listed, item=items, category=categories, shelf=shelves, price=prices),
    st.builds(Raised, category=categories, amount=amounts),
    st.builds(Renamed, old=categories, new=categories),
    st.builds(Moved, category=categories, shelf=shelves, to=shelves),
    st.builds(Bundled, raises=st.lists(st.builds(Raise, category=categories, amount=amounts), max_size=3).map(tuple)),
    st.builds(Delisted, item=items),
    st.builds(Cleared, category=categories),
)


# ── the same in plain Python: each row by itself, one event at a time ────────

KEYS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "Item": [(item,) for item in ITEMS],
    "Entry": [(f"{item}/{odd}",) for item in ITEMS for odd in (0, 1)],
    "Offer": [(category, item) for category in CATEGORIES for item in ITEMS],
}
"""Every row that there may be."""


def row_after(model: str, key: tuple[Any, ...], row: Any, event: Event, context: EventContext) -> Any:
    """The row of a key after an event."""
    after = _AFTER[model](key, row, event, context)
    if after is not None and not -(2**63) <= after.price < 2**63:
        raise OverflowError
    return after


def _item(key: tuple[Any, ...], row: Item | None, event: Event, context: EventContext) -> Item | None:
    match event:
        case Listed(item=item) if item == key[0]:
            return Item(item=item, category=event.category, shelf=event.shelf, price=raised(0, event.price))
        case Delisted(item=item) if item == key[0]:
            return None
        case Renamed() if row is not None and row.category == event.old:
            return replace(row, category=event.new)
        case Raised() if row is not None and row.category == event.category:
            return replace(row, price=raised(row.price, event.amount))
        case Cleared() if row is not None and row.category == event.category:
            return None
        case Moved() if row is not None and (row.category, row.shelf) == (event.category, event.shelf):
            return replace(row, shelf=event.to)
        case Bundled():
            for part in event.raises:
                if row is not None and row.category == part.category:
                    row = row_after("Item", key, row, Raised(category=part.category, amount=part.amount), context)
        case _:
            pass
    return row


def _entry(key: tuple[Any, ...], row: Entry | None, event: Event, context: EventContext) -> Entry | None:
    match event:
        case Listed() if f"{event.item}/{event.price % 2}" == key[0]:
            return Entry(entry=key[0], category=event.category, price=event.price)
        case Raised() if row is not None and row.category == event.category:
            price = raised(row.price, event.amount)
            return None if price == 0 else replace(row, price=price)
        case _:
            pass
    return row


def _offer(key: tuple[Any, ...], row: Offer | None, event: Event, context: EventContext) -> Offer | None:
    if row is not None and row.until is not None and row.until <= context.recorded_at:
        row = None
    match event:
        case Listed() if (event.category, event.item) == key:
            price = (row.price if row else 0) + event.price
            return Offer(category=key[0], item=event.item, price=price, until=context.recorded_at + OFFERED)
        case Raised() if row is not None and row.category == event.category:
            return replace(row, price=raised(row.price, event.amount))
        case _:
            pass
    return row


_AFTER: Mapping[str, Any] = {"Item": _item, "Entry": _entry, "Offer": _offer}
