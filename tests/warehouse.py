"""A warehouse whose read models are folded in every way that there is, by folds that choke on some amounts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from hypothesis import strategies as st

from diptych import BoundedContext, Event, EventContext, Identity, Key, ReadModel, Value, replace

__all__ = [
    "POISON", "TOO_LARGE", "Blank", "Corrected", "Explicit", "Log", "Moved", "Packed", "Part", "PerPair", "PerPart",
    "Removed", "Sku", "Touched", "amounts", "choke", "events", "skus", "warehouse",
]  # fmt: skip

POISON = 13
"""An amount that every fold here chokes on."""
TOO_LARGE = 1 << 70
"""An amount that no integer column holds."""


class Sku(Identity): ...


class Part(Value):
    sku: Sku
    amount: int


class Moved(Event):
    sku: Sku
    other: Sku
    amount: int


class Packed(Event):
    sku: Sku
    parts: tuple[Part, ...]


class Removed(Event):
    sku: Sku


class Corrected(Event):
    sku: Sku
    amount: int


class Blank(ReadModel):
    sku: Key[Sku]
    count: int = 0
    amount: int = 0


class Explicit(ReadModel):
    sku: Key[Sku]
    opened: int
    moves: tuple[int, ...]


class Log(ReadModel):
    entry: Key[str]
    amount: int


class PerPart(ReadModel):
    sku: Key[Sku]
    parts: int = 0
    amount: int = 0


class PerPair(ReadModel):
    one: Key[str]
    two: Key[str]
    amount: int = 0


class Touched(ReadModel):
    sku: Key[Sku]
    times: int = 0
    last: int = 0
    at: datetime | None = None
    actor: str | None = None


def choke(amount: int) -> int:
    if amount == POISON:
        raise ValueError("poisoned")
    return amount


def both(event: Moved) -> Iterable[Sku]:
    return (event.sku, event.other, event.sku)


def pair(event: Moved) -> tuple[str, str]:
    return min(event.sku, event.other), max(event.sku, event.other)


def parts(event: Packed) -> Iterable[Part]:
    return event.parts


def warehouse(partitions: int = 1) -> BoundedContext:  # noqa: C901 — six folds, each a line or two
    """Six read models, each split into so many slices."""
    context = BoundedContext("warehouse", events=[Moved, Packed, Removed, Corrected])

    @context.projection(partitions=partitions)
    def blank(row: Blank, event: Moved | Corrected) -> Blank:
        amount = choke(event.amount)
        if isinstance(event, Corrected):
            return replace(row, amount=amount)
        return replace(row, count=row.count + 1, amount=row.amount + amount)

    @context.projection
    def removed(row: Blank | None, event: Removed) -> Blank | None:
        return None

    @context.projection(partitions=partitions)
    def explicit(row: Explicit | None, event: Moved | Removed) -> Explicit | None:
        if isinstance(event, Removed):
            return None
        if row is None:
            return Explicit(sku=event.sku, opened=choke(event.amount), moves=())
        return replace(row, moves=(*row.moves, choke(event.amount)))

    @context.projection(partitions=partitions)
    def log(event: Corrected, context: EventContext) -> Log:
        return Log(entry=f"{event.sku}/{event.amount % 3}", amount=event.amount)

    @context.projection(each=parts, partitions=partitions)
    def per_part(row: PerPart, event: Packed, part: Part) -> PerPart | None:
        if part.amount == 0:
            return None
        return replace(row, parts=row.parts + 1, amount=row.amount + choke(part.amount))

    @context.projection(key=pair, partitions=partitions)
    def per_pair(row: PerPair, event: Moved) -> PerPair:
        return replace(row, amount=row.amount + choke(event.amount))

    @context.projection(keys=both, partitions=partitions)
    def touched(row: Touched, event: Moved, context: EventContext) -> Touched:
        if event.amount == POISON and row.sku == event.other:
            raise ValueError("poisoned")
        return Touched(
            sku=row.sku, times=row.times + 1, last=context.position, at=context.recorded_at, actor=context.actor
        )

    return context


skus = st.sampled_from([Sku("a"), Sku("b"), Sku("c")])
amounts = st.sampled_from([0, 1, 2, 5, 7, POISON, TOO_LARGE, -TOO_LARGE])
events = st.one_of(
    st.builds(Moved, sku=skus, other=skus, amount=amounts),
    st.builds(Moved, sku=skus, other=skus, amount=st.integers(1, 9)),
    st.builds(Packed, sku=skus, parts=st.lists(st.builds(Part, sku=skus, amount=amounts), max_size=4).map(tuple)),
    st.builds(Removed, sku=skus),
    st.builds(Corrected, sku=skus, amount=amounts.filter(lambda amount: abs(amount) != TOO_LARGE)),
)
