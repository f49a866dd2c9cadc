"""Whether folds across partitions are commutative: events of several are merged in every order, the rows compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from math import comb
from random import Random
from typing import Any

from diptych.application import registration
from diptych.application.bounded_context import BoundedContext
from diptych.errors import ConfigurationError
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import encode
from diptych.messages.envelope import Envelope, event_context
from diptych.messages.event import Event
from diptych.messages.registry import EventTypes
from diptych.messages.unique_id import unique_bytes
from diptych.read_side.projection import Projection
from diptych.read_side.read_store import Key
from diptych.testing.difference import mapping_difference
from diptych.testing.in_memory_application import Fact
from diptych.testing.manual_clock import ManualClock
from diptych.testing.purity import fold_rows

__all__ = ["check_commutative"]

INTERLEAVINGS_MAX = 1_000
"""Orders that are tried; where there are more, so many of them by chance, always the same ones."""
SEED = 20_220_101
"""Where the chance begins."""


def check_commutative(*contexts: BoundedContext, partitions: Sequence[Sequence[Event]]) -> None:
    """Fold events of several partitions in every order in which they may be merged: the rows have to be the same.

    The events of one partition keep their order. Every projection that is declared `commutative=True` is folded; where
    there are more than `INTERLEAVINGS_MAX` orders, so many of them.

    Args:
        contexts: whose projections.
        partitions: the events of each partition.

    Raises:
        AssertionError: two orders give different rows; with both, and the order. Or a fold is not pure.
        ConfigurationError: no projection is declared commutative.
    """
    __tracebackhide__ = True
    for context in contexts:
        context.load()
    types = registration.event_types(contexts)
    projections = [found for found in registration.projections(contexts, types) if found.commutative]
    if not projections:
        raise ConfigurationError(f"no projection of {contexts!r} is declared commutative=True")
    facts = [_facts(events, types) for events in partitions]
    for projection in projections:
        _check(projection, facts)


def _check(projection: Projection, partitions: Sequence[Sequence[Fact]]) -> None:
    __tracebackhide__ = True
    expected: Mapping[Key, Any] | None = None
    for order in _interleavings([len(facts) for facts in partitions]):
        merged = _merged(partitions, order)
        rows = {key: row for key, row in fold_rows(projection, merged).items() if row is not None}
        if expected is None:
            expected = rows
        elif rows != expected:
            told = {repr(key): row for key, row in expected.items()}, {repr(key): row for key, row in rows.items()}
            listed = "\n".join(f"    {fact.event!r}" for fact in merged)
            difference = mapping_difference("the rows differ from those of one partition after the other", *told)
            raise AssertionError(
                f"{projection.name} is not commutative across partitions: "
                f"{difference or f'there are others: {sorted(told[1].keys() - told[0].keys())}'}\n"
                f"where the events come in this order:\n{listed}"
            )


def _facts(events: Iterable[Event], types: EventTypes) -> list[Fact]:
    """What one partition holds, a second apart."""
    clock, metadata = ManualClock(), encode(Envelope())
    facts: list[Fact] = []
    for position, event in enumerate(events, 1):
        found = types.of(type(event))
        data, settled = found.codec.settle(event)
        recorded = RecordedEvent(
            position=Position(position),
            event_id=unique_bytes(),
            type=found.name,
            version=found.version,
            data=data,
            tags=found.tags(settled),
            metadata=metadata,
            recorded_at=clock.now(),
        )
        context = event_context(position, recorded.event_id, recorded.recorded_at, Envelope())
        facts.append(Fact(recorded, settled, context))
        clock.advance(timedelta(seconds=1))
    return facts


def _merged(partitions: Sequence[Sequence[Fact]], order: Sequence[int]) -> list[Fact]:
    """The facts in an order of partitions, at the positions of the merged log."""
    left = [iter(facts) for facts in partitions]
    merged: list[Fact] = []
    for position, number in enumerate(order, 1):
        fact = next(left[number])
        known = fact.context
        context = event_context(position, fact.recorded.event_id, known.recorded_at, Envelope())
        merged.append(Fact(fact.recorded, fact.event, context))
    return merged


def _interleavings(lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Orders of the partitions' numbers, each as often as it has events; the first is one after the other."""
    first = [number for number, length in enumerate(lengths) for _ in range(length)]
    if _count(lengths) <= INTERLEAVINGS_MAX:
        yield from _all(list(lengths), [])
        return
    yield first
    chance = Random(SEED)  # noqa: S311  # orders, no secrets
    for _ in range(INTERLEAVINGS_MAX - 1):
        yield chance.sample(first, len(first))


def _count(lengths: Sequence[int]) -> int:
    count, total = 1, 0
    for length in lengths:
        total += length
        count *= comb(total, length)
    return count


def _all(left: list[int], begun: list[int]) -> Iterator[Sequence[int]]:
    if not any(left):
        yield list(begun)
        return
    for number, count in enumerate(left):
        if count:
            left[number] -= 1
            yield from _all(left, [*begun, number])
            left[number] += 1
