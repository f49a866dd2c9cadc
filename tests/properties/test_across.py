"""Neither batches nor slices show in rows across partitions (rules 33, 37 and 38, G6).

Events come into several histories, and are taken in whenever somebody looks. Rows and blocked keys are those of a naive
fold in the order that is kept, whoever reads it, and however little of it a process keeps in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Event
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.application.registration import event_types
from diptych.clock import SystemClock
from diptych.event_store import merged_log
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.history import History
from diptych.event_store.merged_log import MergedLog
from diptych.event_store.position import START
from diptych.messages.registry import EventTypes
from diptych.read_side import projector as projector_module
from diptych.read_side import slice as slice_module
from tests.properties.test_batches import append, naive, projected, shown
from tests.properties.test_slices import Turns, came_and_went, processes
from tests.warehouse import events, warehouse

HISTORIES = 3
READ_MAX = 1_000


class Come(NamedTuple):
    """An event that comes into one of the histories, and whether somebody looks then."""

    history: int
    event: Event
    looked: bool


come = st.lists(st.builds(Come, st.integers(0, HISTORIES - 1), events, st.booleans()), max_size=30)


class Merged:
    """Histories, and the order in which their events were taken in."""

    def __init__(self) -> None:
        self._histories = [MemoryEventStore(SystemClock()) for _ in range(HISTORIES)]
        self._order = MemoryEventStore(SystemClock())

    async def filled(self, types: EventTypes, course: Sequence[Come]) -> Sequence[Event]:
        """All the events, in the order that is kept."""
        for store in self._histories:
            await store.open()
        looking = await self.log()
        for number, each in enumerate(course):
            await append(self._histories[each.history], types, number, each.event)
            if each.looked:
                await looking.head()
        await looking.head()
        found = (await looking.read(ALL_EVENTS, START, READ_MAX)).events
        assert len(found) == len(course)
        return [History(types).event(recorded) for recorded in found]

    async def log(self) -> MergedLog:
        """What another process sees of it."""
        log = MergedLog(self._order, self._histories)
        await log.open()
        return log


def test_g6_batches_do_not_show_across_partitions() -> None:
    """Batches of 1, 7 and 1,000 of the merged log give what a naive fold of it gives."""

    @settings(max_examples=60, deadline=None)
    @given(come, st.integers(1, 4))
    def holds(course: list[Come], kept: int) -> None:
        async def run() -> None:
            types, merged = event_types([warehouse()]), Merged()
            history = await merged.filled(types, course)
            recorded = (await (await merged.log()).read(ALL_EVENTS, START, READ_MAX)).events
            expected = naive(history, [History(types).context(event) for event in recorded])
            for batch in (1, 7, 1_000):
                assert await projected(await merged.log(), types, MemoryReadStore(), batch) == expected

        with patch.multiple(
            merged_log, EXTENTS_KEPT_MAX=kept, EXTENTS_PAGE_MAX=kept, PART_EVENTS=kept, WINDOW_POSITIONS_MAX=2 * kept
        ):
            asyncio.run(run())

    holds()


def test_g6_slices_do_not_show_across_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows across are split, and split anew, by processes that come one after the other."""
    monkeypatch.setattr(projector_module, "BATCH_EVENTS_MAX", 3)
    monkeypatch.setattr(projector_module, "BATCH_EVENTS_MIN", 3)
    monkeypatch.setattr(slice_module, "LOOK_AGAIN_S", 0.0)

    @settings(max_examples=40, deadline=None)
    @given(come, processes, st.integers(1, 4))
    def holds(course: list[Come], turns: Turns, kept: int) -> None:
        async def run() -> None:
            types, merged, read_store = event_types([warehouse()]), Merged(), MemoryReadStore()
            history = await merged.filled(types, course)
            log = await merged.log()
            recorded = (await log.read(ALL_EVENTS, START, READ_MAX)).events
            expected = naive(history, [History(types).context(event) for event in recorded])
            await read_store.open()
            last = await came_and_went(log, types, read_store, turns)
            assert await shown(log, last, read_store) == expected

        with patch.multiple(merged_log, EXTENTS_KEPT_MAX=kept, EXTENTS_PAGE_MAX=kept, PART_EVENTS=kept):
            asyncio.run(run())

    holds()
