"""Rows found by what they hold are the same however a history is cut: into batches, into slices (rule 33, rule 37)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych import Event, EventContext
from diptych.adapters.connect import connect_read_store, default_read_store
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.application.registration import event_types, projections
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.messages.registry import EventTypes
from diptych.read_side import projector as projector_module
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import Order, ReadStore
from diptych.testing import ManualClock
from tests.catalogue import (
    KEYS,
    Bundled,
    Cleared,
    ItemId,
    Listed,
    Raise,
    Raised,
    Renamed,
    catalogue,
    happenings,
    row_after,
)
from tests.properties.test_batches import append
from tests.warehouse import POISON, TOO_LARGE

ROWS_MAX = 10_000
Folded = dict[str, tuple[dict[Any, Any], dict[str, int]]]
"""Rows by key and positions of blocked keys, by read model."""


def naive(events: Sequence[Event], contexts: Sequence[EventContext]) -> Folded:
    """Each row by itself, one event at a time; what has expired by the last event left out."""
    folded: Folded = {}
    for model, keys in KEYS.items():
        rows: dict[Any, Any] = {}
        blocked: dict[str, int] = {}
        for key in keys:
            row = None
            for event, context in zip(events, contexts, strict=True):
                try:
                    row = row_after(model, key, row, event, context)
                except (ValueError, OverflowError):
                    blocked[key_text(key)] = context.position
                    break
            if row is not None and not _has_expired(row, contexts):
                rows[key] = row
        folded[model] = (rows, blocked)
    return folded


def _has_expired(row: Any, contexts: Sequence[EventContext]) -> bool:
    until = getattr(row, "until", None)
    return until is not None and until <= contexts[-1].recorded_at


async def stored(types: EventTypes, events: Sequence[Event]) -> MemoryEventStore:
    clock = ManualClock()
    store = MemoryEventStore(clock)
    await store.open()
    for number, event in enumerate(events):
        await append(store, types, number, event)
        clock.advance(timedelta(seconds=1))
    return store


async def projected(store: EventLog, types: EventTypes, read_store: ReadStore, batch: int, slices: int) -> Folded:
    """What a projector comes to in batches of one size, each slice a batch in its turn."""
    kept = projector_module.BATCH_EVENTS_MAX, projector_module.BATCH_EVENTS_MIN
    projector_module.BATCH_EVENTS_MAX = projector_module.BATCH_EVENTS_MIN = batch
    try:
        projector = Projector(store, History(types), read_store, projections([catalogue(slices)], types))
        await projector.open()
        for slice in projector.slices:  # at different places: what one finds, the others may not have
            await projector.advance([slice])
        while await projector.advance(projector.slices):
            pass
        return await shown(store, projector, read_store)
    finally:
        for found in await read_store.generations():
            await read_store.drop_generation(found.name, found.number)
        projector_module.BATCH_EVENTS_MAX, projector_module.BATCH_EVENTS_MIN = kept


async def shown(store: EventLog, projector: Projector, read_store: ReadStore) -> Folded:
    folded: Folded = {}
    head = (await store.head()).position
    async with read_store.snapshot() as snapshot:
        for slice in projector.slices:
            assert not slice.stopped
            assert slice.position == head
            form, name = slice.projection.form, slice.projection.name
            recorded_at = slice.generation.recorded_at
            order = [Order(column) for column in form.table.key]
            rows = await snapshot.find(name, form.unexpired(recorded_at), order, ROWS_MAX)
            models = [form.model(row) for row in rows]
            blocked = {held.key: int(held.position) for held in await snapshot.blocked(name)}
            folded[form.name] = ({form.key_of(model): model for model in models}, blocked)
    return folded


A, B = ItemId("a"), ItemId("b")


def listed(item: ItemId, category: str, price: int = 1) -> Listed:
    return Listed(item=item, category=category, shelf=None, price=price)


@pytest.fixture
def read_url(store_url: str) -> str:
    """Beside the events of another store: only rows are kept there."""
    return default_read_store(store_url)


EXAMPLES = {"memory": 60, "sqlite": 20, "postgres": 8}


def test_g6_batches_and_slices_do_not_show_where_rows_are_found_by_what_they_hold(read_url: str) -> None:
    """Batches of 1, 7 and 1,000, folded by one slice or by three, give the rows and blocked keys of a naive fold."""

    @settings(max_examples=EXAMPLES[read_url.partition(":")[0].replace("postgresql", "postgres")], deadline=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
    @given(st.lists(happenings, min_size=1, max_size=20))
    @example([listed(A, "tea"), Renamed(old="tea", new="ink"), Raised(category="ink", amount=2)])
    @example([listed(A, "tea", 5), listed(B, "tea", 6), Raised(category="tea", amount=8), Renamed(old="tea", new="")])
    @example([listed(A, "tea", 5), Bundled(raises=tuple(Raise(category="tea", amount=n) for n in (1, 2, POISON - 8)))])
    @example([listed(A, "tea", 5), Raised(category="tea", amount=TOO_LARGE), Cleared(category="tea")])
    @example([listed(A, "tea"), Cleared(category="tea"), listed(A, "ink"), Raised(category="tea", amount=1)])
    def holds(history: list[Event]) -> None:
        async def run() -> None:
            types = event_types([catalogue()])
            store = await stored(types, history)
            recorded = (await store.read(ALL_EVENTS, START, ROWS_MAX)).events
            expected = naive(history, [History(types).context(event) for event in recorded])
            read_store = connect_read_store(read_url)
            await read_store.open()
            try:
                for batch, slices in ((1, 1), (7, 1), (1_000, 1), (1, 3), (7, 3)):
                    found = await projected(store, types, read_store, batch, slices)
                    for model, folded in expected.items():
                        assert found[model] == folded, f"{model} in batches of {batch}, {slices} slices"
            finally:
                await read_store.close()

        asyncio.run(run())

    holds()
