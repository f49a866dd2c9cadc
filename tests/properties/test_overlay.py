"""Overlaid answers are those that the projector will give (rule 36): whatever is projected, by whatever read.

A history is projected up to anywhere, each slice on its own, and read with what it lacks; beside it the same is
projected to its end. Where events cannot be folded, an overlaid read shows the same rows or refuses, never others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Event, at_least
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.registration import event_types, projections
from diptych.clock import SystemClock
from diptych.errors import Blocked, CannotOverlay
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.messages.registry import EventTypes
from diptych.read_side.freshness import Freshness
from diptych.read_side.overlay import Overlay
from diptych.read_side.projector import Projector
from diptych.read_side.query_bus import ReadPanel
from diptych.read_side.query_context import query_context
from diptych.read_side.query_source import ReadStoreSource
from diptych.read_side.read_store import ReadStore
from diptych.read_side.snapshot_reader import SnapshotReader
from diptych.security import actor_of
from tests.properties.test_batches import append, stored
from tests.warehouse import Blank, Explicit, Log, PerPair, PerPart, Touched, events, warehouse

SKUS = ("a", "b", "c")
ROWS_MAX = 20
Read = Callable[[SnapshotReader], Awaitable[Any]]


async def paged(reader: SnapshotReader) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    while len(found) < ROWS_MAX:
        page = await reader.page(PerPair, order_by="-amount", limit=2, cursor=cursor)
        found += page.items
        cursor = page.next
        if cursor is None:
            break
    return found


READS: dict[str, Read] = {
    "get": lambda reader: reader.get(Blank, "a"),
    "get another": lambda reader: reader.get(Explicit, "b"),
    "get many": lambda reader: reader.get_many(Explicit, SKUS),
    "get told by the fold": lambda reader: reader.get_many(Log, [f"{sku}/{rest}" for sku in SKUS for rest in range(3)]),
    "get by part": lambda reader: reader.get_many(PerPart, SKUS),
    "get by pair": lambda reader: reader.get(PerPair, "a", "b"),
    "get by keys": lambda reader: reader.get_many(Touched, SKUS),
    "find": lambda reader: reader.find(Blank, order_by="-amount,count"),
    "find some": lambda reader: reader.find(Touched, times=at_least(2), order_by="-last", limit=2),
    "find documents": lambda reader: reader.find(Explicit),
    "find the least": lambda reader: reader.find(PerPair, order_by="amount", limit=1),
    "page": paged,
    "count": lambda reader: reader.count(PerPart),
    "count some": lambda reader: reader.count(Blank, amount=at_least(3)),
}


class World:
    """One history, projected into two read stores."""

    def __init__(self, store: MemoryEventStore, types: EventTypes, partitions: int) -> None:
        self.store = store
        self.history = History(types)
        self.folds = projections([warehouse(partitions)], types)

    async def projector(self, read_store: ReadStore) -> Projector:
        await read_store.open()
        projector = Projector(self.store, self.history, read_store, self.folds)
        await projector.open()
        return projector

    async def answers(self, read_store: ReadStore, names: Sequence[str], *, overlaid: bool) -> list[Any]:
        """What each read gives, one after the other on one snapshot; the error's class where it is refused."""
        freshness = Freshness(self.store, SystemClock())
        overlay = Overlay(self.store, self.history, read_store, self.folds)
        by_model = {fold.form.cls: (fold, fold.fingerprint() if read_store.durable else "") for fold in self.folds}
        panel = ReadPanel(by_model, self.store, ReadStoreSource(read_store), freshness, overlay)
        requirement = await (freshness.overlay() if overlaid else freshness.latest())
        found: list[Any] = []
        async with freshness.checks(requirement) as checks, read_store.snapshot() as snapshot:
            reader = panel.reader(snapshot, checks).narrowed(query_context(actor_of(None), SystemClock().now()))
            for name in names:
                try:
                    found.append(await READS[name](reader))
                except (Blocked, CannotOverlay) as error:
                    found.append(type(error))
            token = reader.token(self.store.history_id)
        assert not found or token.low == token.high.position == len(self.store._events), "it shows all of the history"
        return found


def refused(answer: Any) -> bool:
    return answer is Blocked or answer is CannotOverlay


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_an_overlaid_answer_is_what_will_be_projected(kind: str) -> None:
    """By key, by filter, in order, in pages and counted; also of slices, and where folds choke."""

    @settings(max_examples=100 if kind == "memory" else 12, deadline=None)
    @given(
        st.lists(events, min_size=1, max_size=24),
        st.lists(st.integers(0, 24), min_size=1, max_size=8),
        st.permutations(sorted(READS)),
        st.sampled_from([1, 3]),
    )
    def holds(history: list[Event], cuts: list[int], reads: list[str], partitions: int) -> None:
        async def run(folder: str) -> None:
            types = event_types([warehouse()])
            world = World(await stored(types, ()), types, partitions)
            some, whole = (
                MemoryReadStore() if kind == "memory" else SqliteReadStore(str(Path(folder, name)))
                for name in ("some.db", "whole.db")
            )
            projector, to_the_end = await world.projector(some), await world.projector(whole)
            for number, event in enumerate(history):
                await append(world.store, types, number, event)
            for number, slice in enumerate(projector.slices):  # each up to where its turn says
                until = Position(min(cuts[number % len(cuts)], len(history)))
                while slice.position < until and await projector.advance([slice], until):
                    pass
            while await to_the_end.advance(to_the_end.slices):
                pass
            expected = await world.answers(whole, reads, overlaid=False)
            found = await world.answers(some, reads, overlaid=True)
            for name, right, overlaid in zip(reads, expected, found, strict=True):
                if refused(right):
                    assert refused(overlaid), f"{name}: a row that cannot be folded was shown"
                elif not refused(overlaid):
                    assert overlaid == right, name
                else:
                    assert any(map(refused, await world.answers(whole, sorted(READS), overlaid=False))), name
            await some.close()
            await whole.close()

        with TemporaryDirectory() as folder:
            asyncio.run(run(folder))

    holds()
