"""What the crashing server serves: counters that are incremented, and a read model of them."""

from __future__ import annotations

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Key, Query, ReadModel, Rejected, replace

counting = BoundedContext("counting")


class CounterId(Identity): ...


class Increment(Command):
    counter: CounterId
    below: int | None = None


class Incremented(Event):
    counter: CounterId
    to: int


class Counter(DecisionModel[CounterId]):
    value: int = 0

    def evolve(self, event: Incremented) -> Counter:
        return replace(self, value=event.to)


@counting.command_handler
def increment(command: Increment, counter: Counter) -> Incremented:
    if command.below is not None and counter.value >= command.below:
        raise Rejected("full", value=counter.value)
    return Incremented(counter=command.counter, to=counter.value + 1)


class Count(ReadModel):
    counter: Key[CounterId]
    value: int = 0
    events: int = 0


@counting.projection
def count(row: Count, event: Incremented) -> Count:
    return replace(row, value=event.to, events=row.events + 1)


class CountOf(Query[Count | None]):
    counter: CounterId


totals = BoundedContext("totals")
"""Follows the counters of all partitions."""


class Total(ReadModel):
    name: Key[str]
    events: int = 0


@totals.projection(key=lambda event: "all", commutative=True)
def total(row: Total, event: Incremented) -> Total:
    return replace(row, events=row.events + 1)


class TotalOf(Query[Total | None]):
    name: str
