"""Slices do not show (rule 37): however rows are split, and split anew, nothing is lost and nothing repeated.

A history is folded by processes that come one after the other, each saying another number of slices, while those that
came before go on as long as they like. Each moves single slices by single batches, so that they are at different
places, at barriers, or fenced, when the next one comes. Rows and blocked keys have to be those of a naive fold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych import Event
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.registration import event_types, projections
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.messages.registry import EventTypes
from diptych.read_side import projector as projector_module
from diptych.read_side import slice as slice_module
from diptych.read_side.partitions import SLICES_MAX, slice_of
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import ReadStore
from tests.properties.test_batches import A, B, naive, shown, stored
from tests.warehouse import Moved, events, warehouse

Turns = Sequence[tuple[int, Sequence[tuple[int, int]]]]
"""For each process that comes: its number of slices, and who then moves which slice by a batch."""
ROUNDS_MAX = 1_000
"""Batches and splits of the last process, until all is folded."""

processes = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=12)),
    min_size=1,
    max_size=4,
)


async def came_and_went(store: EventLog, types: EventTypes, read_store: ReadStore, turns: Turns) -> Projector:
    """All processes at work; the last one, once everything is folded."""
    there: list[Projector] = []
    for slices, moves in turns:
        there.append(Projector(store, History(types), read_store, projections([warehouse(slices)], types)))
        await there[-1].open()
        for who, which in moves:
            mover = there[who % len(there)]
            slice = mover.slices[which % len(mover.slices)]
            await mover.advance([slice])
            await mover._split_late([slice])
    last = there[-1]
    for _ in range(ROUNDS_MAX):
        if not await last.advance(last.slices):
            if not any(slice.at_barrier for slice in last.slices):
                return last
            await last._split_late(last.slices)
    raise AssertionError("it does not come to an end")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_g6_slices_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and blocked keys are those of a naive fold, and in the end there are as many slices as were asked for."""
    monkeypatch.setattr(projector_module, "BATCH_EVENTS_MAX", 3)
    monkeypatch.setattr(projector_module, "BATCH_EVENTS_MIN", 3)
    monkeypatch.setattr(slice_module, "LOOK_AGAIN_S", 0.0)

    @settings(max_examples=60 if kind == "memory" else 10, deadline=None)
    @given(st.lists(events, max_size=30), processes)
    @example([Moved(sku=A, other=B, amount=1)] * 9, [(2, [(0, 0)]), (3, [(0, 1), (1, 0)]), (1, [])])
    @example([Moved(sku=A, other=B, amount=1)] * 9, [(2, [(0, 0)]), (1, [(0, 0), (1, 0), (0, 1), (0, 0)]), (2, [])])
    def holds(history: list[Event], turns: Turns) -> None:
        async def run() -> None:
            types = event_types([warehouse()])
            store = await stored(types, history)
            recorded = (await store.read(ALL_EVENTS, START, 1_000)).events
            expected = naive(history, [History(types).context(event) for event in recorded])
            with TemporaryDirectory() as folder:
                path = str(Path(folder, "rows.db"))
                read_store: ReadStore = MemoryReadStore() if kind == "memory" else SqliteReadStore(path)
                await read_store.open()
                try:
                    last = await came_and_went(store, types, read_store, turns)
                    assert {slice.generation.slices for slice in last.slices} == {turns[-1][0]}
                    assert await shown(store, last, read_store) == expected
                finally:
                    await read_store.close()

        asyncio.run(run())

    holds()


@given(st.text(max_size=20), st.integers(1, SLICES_MAX))
def test_every_key_has_a_slice(key: str, slices: int) -> None:
    """One that there is; and of two numbers of slices, keys that the finer one keeps together the coarser one does."""
    assert 0 <= slice_of(key, slices) < slices
    assert slice_of(key, slices) == slice_of(key, SLICES_MAX) * slices // SLICES_MAX


def test_the_slice_of_a_key_never_changes() -> None:
    """It is kept in stores: another hash would leave rows with nobody."""
    keys = ['["a"]', '["b"]', '["python", 3]', '["\u00e9"]', "[]"]
    assert [slice_of(key, SLICES_MAX) for key in keys] == SLICES_OF_KEYS


SLICES_OF_KEYS = [12, 85, 28, 157, 41]
