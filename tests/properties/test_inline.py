"""Inline rows are those that the projector gives (G6): whatever is appended at once, by whom, and whatever fails.

A history is appended in batches of any size; some by code that folds nothing, some where the fold fails at the end of
its work, and in between the projector has a turn. Rows and blocked keys have to be those of a few lines of plain
Python.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych import Event
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.registration import event_types, projections
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Appended, Commit, EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.codec import encode
from diptych.messages.envelope import Envelope
from diptych.messages.registry import EventTypes
from diptych.messages.unique_id import unique_bytes
from diptych.read_side import inline as inline_module
from diptych.read_side.inline import Inline
from diptych.read_side.inline_rows import Appending, InlineRows
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import ReadStore
from tests.properties.test_batches import ROWS_MAX, naive, shown
from tests.warehouse import POISON, TOO_LARGE, Moved, Packed, Part, Removed, Sku, events, warehouse

INLINE, ELSEWHERE, FAILING, PROJECTED = "inline", "elsewhere", "failing", "projected"
Step: TypeAlias = tuple[str, list[Event]]
A, B = Sku("a"), Sku("b")


class Choking:
    """The inline fold, which fails at the end of its work when it is told to."""

    def __init__(self, inline: Inline) -> None:
        self.inline = inline
        self.fails = False

    async def fold(self, rows: InlineRows, appending: Appending) -> None:
        await self.inline.fold(rows, appending)
        if self.fails:
            raise RuntimeError("at the end of its work")

    def failed(self, error: Exception) -> None:
        assert self.fails, error


@asynccontextmanager
async def stores(kind: str) -> AsyncGenerator[tuple[EventStore, EventStore, ReadStore]]:
    """An event store, another on the same history, and the read store in its database; none is open."""
    if kind == "memory":
        store = MemoryEventStore(SystemClock())
        yield store, store, MemoryReadStore()
        return
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "events.db"))
        yield SqliteEventStore(path, SystemClock()), SqliteEventStore(path, SystemClock()), SqliteReadStore(path)


def commits(types: EventTypes, events: Sequence[Event]) -> list[Commit]:
    found = [(types.of(type(event)), event) for event in events]
    settled = [(of, *of.codec.settle(event)) for of, event in found]
    metadata = encode(Envelope(actor="ada"))
    return [
        Commit((NewEvent(unique_bytes(), of.name, of.version, data, of.tags(event), metadata),))
        for of, data, event in settled
    ]


async def follows(store: EventStore, other: EventStore, rows: ReadStore, history: list[Step]) -> None:
    types = event_types([warehouse()])
    folds = projections([warehouse()], types)
    projector = Projector(store, History(types), rows, folds)
    fold = Choking(Inline(History(types), {each: projector.generations.fingerprint(each) for each in folds}))
    store.fold_inline(rows, fold)  # type: ignore[attr-defined]
    for each in (store, other, rows):
        await each.open()
    await projector.open()
    for how, batch in history:
        fold.fails = how == FAILING
        if how == ELSEWHERE and store is other:
            fold.fails = True
        where = other if how == ELSEWHERE else store
        assert all(isinstance(found, Appended) for found in await where.append(commits(types, batch)))
        if how == PROJECTED:
            while await projector.advance(projector.slices):
                pass
    if all(how == INLINE for how, _ in history):
        head = await store.head()
        assert {each.checkpoint for each in await rows.generations()} == {head}, "the appends have folded all"
    for name in fold.inline.names:
        await projector.reloaded(name)
    while await projector.advance(projector.slices):
        pass
    recorded = (await store.read(ALL_EVENTS, START, ROWS_MAX)).events
    everything = [event for _, batch in history for event in batch]
    expected = naive(everything, [History(types).context(event) for event in recorded])
    found = await shown(store, projector, rows)
    for model, result in expected.items():
        assert found[model] == result, model
    for each in (rows, other, store):
        await each.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_g6_inline_rows_are_those_of_the_projector(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the inline fold has to catch up, and where it is too far behind to."""
    monkeypatch.setattr(inline_module, "CATCH_UP_EVENTS_MAX", 3)

    @settings(max_examples=100 if kind == "memory" else 20, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([INLINE, INLINE, INLINE, ELSEWHERE, FAILING, PROJECTED]), st.lists(events, max_size=5)
            ),
            max_size=8,
        )
    )
    @example([(INLINE, [Moved(sku=A, other=B, amount=POISON), Moved(sku=A, other=B, amount=TOO_LARGE)])])
    @example([(ELSEWHERE, [Moved(sku=A, other=B, amount=1)] * 3), (INLINE, [Removed(sku=A)])])
    @example([(FAILING, [Moved(sku=A, other=B, amount=1)]), (INLINE, [Moved(sku=A, other=B, amount=2)])])
    @example([(INLINE, [Packed(sku=A, parts=(Part(sku=A, amount=1), Part(sku=A, amount=POISON)))])])
    def holds(history: list[Step]) -> None:
        async def run() -> None:
            async with stores(kind) as (store, other, rows):
                await follows(store, other, rows, history)

        asyncio.run(run())

    holds()
