"""A live query against plain Python: what a slow consumer sees are states in order, the last one included."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Application
from tests.watched import Add, All, CounterId, CounterOf, Note, counters

pytestmark = pytest.mark.anyio
T = TypeVar("T")
NAMES = "abc"
WAIT_S = 30
"""Seconds after which a test gives up."""

COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NAMES), st.integers(0, 3)),
        st.tuples(st.just("note"), st.integers(0, 3)),
    ),
    max_size=25,
)
PAUSES = st.lists(st.integers(0, 40), max_size=30)
"""Turns of the event loop that the consumer is busy for after each answer; then none."""


def states(commands: list[tuple[str, int]]) -> list[dict[str, int]]:
    """What the counters are, at first and after each command."""
    found: list[dict[str, int]] = [{}]
    for name, count in commands:
        now = dict(found[-1])
        if name in NAMES:
            now[name] = now.get(name, 0) + count
        found.append(now)
    return found


def without_repeats(values: list[T]) -> list[T]:
    """The values without those that are equal to the one before."""
    return [value for number, value in enumerate(values) if not number or value != values[number - 1]]


def is_subsequence(seen: list[T], of: list[T]) -> bool:
    """Whether those seen are all there, in that order; the last is the last."""
    rest = iter(of)
    return all(any(value == each for each in rest) for value in seen) and seen[-1] == of[-1]


async def collected(app: Application, query: CounterOf | All, pauses: list[int], end: object) -> list[object]:
    """What a consumer that is busy between answers sees, up to the last state."""
    seen: list[object] = []
    busy = iter(pauses)
    async with aclosing(app.subscribe(query)) as answers, asyncio.timeout(WAIT_S):
        async for answer in answers:
            seen.append(
                {row.counter: row.count for row in answer.value}
                if isinstance(answer.value, list)
                else answer.value and answer.value.count
            )
            if seen[-1] == end:
                return seen
            for _ in range(next(busy, 0)):
                await checkpoint()
    raise AssertionError("it has ended")


async def executed(app: Application, commands: list[tuple[str, int]]) -> None:
    for number, (name, count) in enumerate(commands):
        is_note = name not in NAMES
        await app.execute(Note(text=f"{number}") if is_note else Add(counter=CounterId(name), count=count))


async def run(store: str, commands: list[tuple[str, int]], pauses: list[int]) -> None:
    rows = states(commands)
    of_a = [row.get("a") for row in rows]
    async with Application(counters(), store=store) as app, asyncio.TaskGroup() as group:
        listing = group.create_task(collected(app, All(), pauses, rows[-1]))
        getting = group.create_task(collected(app, CounterOf(counter=CounterId("a")), pauses, of_a[-1]))
        group.create_task(executed(app, commands))
    listed: list[object] = listing.result()
    got: list[object] = getting.result()
    for seen, of in ((listed, list[object](rows)), (got, list[object](of_a))):
        assert seen == without_repeats(seen)
        assert is_subsequence(seen, of), (seen, of)


@settings(deadline=None, max_examples=40)
@given(COMMANDS, PAUSES)
def test_answers_are_states_in_order_and_the_last_one_is_the_last(
    commands: list[tuple[str, int]], pauses: list[int]
) -> None:
    """Whatever the commands, and however slow the consumer: none is missed for good, none is made up or goes back."""
    anyio.run(run, "memory:", commands, pauses)


@settings(deadline=None, max_examples=10)
@given(COMMANDS, PAUSES)
def test_they_are_on_sqlite_too(
    tmp_path_factory: pytest.TempPathFactory, commands: list[tuple[str, int]], pauses: list[int]
) -> None:
    """Where rows are written and read by threads."""
    folder = tmp_path_factory.mktemp("live")
    anyio.run(run, f"sqlite:{folder}/events.db", commands, pauses)
