"""The merged log is one order, whoever has put it together: histories grow, and processes look, as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.clock import SystemClock
from diptych.event_store import merged_log
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.merged_log import MergedLog
from diptych.event_store.position import START
from diptych.testing.contracts.event_store_case import append_one, event

READ_MAX = 1_000
HISTORIES, PROCESSES = 3, 3

append = st.tuples(st.just("append"), st.integers(0, HISTORIES - 1), st.integers(1, 3))
look = st.tuples(st.just("look"), st.integers(0, PROCESSES - 1), st.just(0))
together = st.tuples(st.just("look together"), st.just(0), st.just(0))


async def read(log: MergedLog) -> list[bytes]:
    """What one process sees, in order; its positions have no gaps."""
    found = await log.read(ALL_EVENTS, START, READ_MAX)
    assert [recorded.position for recorded in found.events] == list(range(1, len(found.events) + 1))
    return [recorded.event_id for recorded in found.events]


@settings(max_examples=60, deadline=None)
@given(st.lists(append | look | together, max_size=25), st.integers(1, 4))
def test_there_is_one_order(steps: Sequence[tuple[str, int, int]], kept: int) -> None:
    """What any process has read once stays the beginning of what all read later; in the end nothing is missing."""

    async def run() -> None:
        histories = [MemoryEventStore(SystemClock()) for _ in range(HISTORIES)]
        for store in histories:
            await store.open()
        order = MemoryEventStore(SystemClock())
        processes = [MergedLog(order, histories) for _ in range(PROCESSES)]
        for log in processes:
            await log.open()
        seen: list[bytes] = []
        for step, number, count in steps:
            if step == "append":
                await append_one(histories[number], *(event() for _ in range(count)))
                continue
            looking = [processes[number]] if step == "look" else processes
            await asyncio.gather(*(log.head() for log in looking))
            for log in looking:
                found = await read(log)
                assert found[: len(seen)] == seen
                seen = found
        await processes[0].head()
        everything = await read(processes[0])
        assert everything[: len(seen)] == seen
        for store in histories:
            own = [recorded.event_id for recorded in (await store.read(ALL_EVENTS, START, READ_MAX)).events]
            assert [each for each in everything if each in set(own)] == own
        assert len(everything) == sum([(await store.head()).position for store in histories])

    with patch.multiple(merged_log, EXTENTS_KEPT_MAX=kept, EXTENTS_PAGE_MAX=kept, PART_EVENTS=2):
        asyncio.run(run())
