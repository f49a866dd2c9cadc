"""Batches do not show (rule 33, G6), and nothing is skipped (G9).

A history is folded in batches of 1, 7 and 1,000, in memory and on SQLite, and by a few lines of plain Python that know
of one event at a time. Rows and blocked keys have to be the same in all of them: also where folds fail, where rows
cannot be stored, where rows come and go, and where one event concerns many rows or one row many times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych import Event, EventContext
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.registration import event_types, projections
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Commit, EventLog
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.codec import encode
from diptych.messages.envelope import Envelope
from diptych.messages.registry import EventTypes
from diptych.messages.unique_id import unique_bytes
from diptych.read_side import projector as projector_module
from diptych.read_side.projector import Projector
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import Order, ReadStore
from tests.warehouse import (
    POISON,
    TOO_LARGE,
    Blank,
    Corrected,
    Explicit,
    Log,
    Moved,
    Packed,
    Part,
    PerPair,
    PerPart,
    Removed,
    Sku,
    Touched,
    choke,
    events,
    warehouse,
)

ROWS_MAX = 10_000
# ── the same in plain Python, one event at a time ────────────────────────────


def naive(
    events: Sequence[Event], contexts: Sequence[EventContext]
) -> dict[str, tuple[dict[Any, Any], dict[str, int]]]:
    """Rows by key and positions of blocked keys, by read model."""
    folded: dict[str, tuple[dict[Any, Any], dict[str, int]]] = {}
    for model, fold in FOLDS.items():
        rows: dict[Any, Any] = {}
        blocked: dict[str, int] = {}
        for event, context in zip(events, contexts, strict=True):
            for key in dict.fromkeys(key for key, _ in fold(event)):
                if key_text(key) in blocked:
                    continue
                try:
                    after = rows.get(key)
                    for found, change in fold(event):
                        if found == key:
                            after = change(after, context)
                            check_storable(after)
                except (ValueError, OverflowError):
                    blocked[key_text(key)] = context.position
                else:
                    rows.pop(key, None)
                    if after is not None:
                        rows[key] = after
        folded[model] = (rows, blocked)
    return folded


def check_storable(row: Any) -> None:
    amount = getattr(row, "amount", 0) or getattr(row, "opened", 0)
    if not -(2**63) <= amount < 2**63:
        raise OverflowError


def of_blank(event: Event) -> list[Any]:
    def change(row: Blank | None, context: EventContext) -> Blank | None:
        row = row or Blank(sku=event.sku)  # type: ignore[attr-defined]
        match event:
            case Moved(amount=amount):
                return Blank(sku=row.sku, count=row.count + 1, amount=row.amount + choke(amount))
            case Corrected(amount=amount):
                return Blank(sku=row.sku, count=row.count, amount=choke(amount))
            case _:
                return None

    return [((event.sku,), change)] if isinstance(event, Moved | Corrected | Removed) else []


def of_explicit(event: Event) -> list[Any]:
    def change(row: Explicit | None, context: EventContext) -> Explicit | None:
        if not isinstance(event, Moved):
            return None
        amount = choke(event.amount)
        if row is None:
            return Explicit(sku=event.sku, opened=amount, moves=())
        return Explicit(sku=row.sku, opened=row.opened, moves=(*row.moves, amount))

    return [((event.sku,), change)] if isinstance(event, Moved | Removed) else []


def of_log(event: Event) -> list[Any]:
    if not isinstance(event, Corrected):
        return []
    entry = f"{event.sku}/{event.amount % 3}"
    return [((entry,), lambda row, context: Log(entry=entry, amount=event.amount))]


def of_parts(event: Event) -> list[Any]:
    def change(part: Part) -> Any:
        def changed(row: PerPart | None, context: EventContext) -> PerPart | None:
            row = row or PerPart(sku=part.sku)
            if part.amount == 0:
                return None
            return PerPart(sku=row.sku, parts=row.parts + 1, amount=row.amount + choke(part.amount))

        return changed

    return [((part.sku,), change(part)) for part in event.parts] if isinstance(event, Packed) else []


def of_pair(event: Event) -> list[Any]:
    if not isinstance(event, Moved):
        return []
    one, two = sorted((event.sku, event.other))

    def change(row: PerPair | None, context: EventContext) -> PerPair:
        return PerPair(one=one, two=two, amount=(row.amount if row else 0) + choke(event.amount))

    return [((one, two), change)]


def of_touched(event: Event) -> list[Any]:
    def change(sku: Sku) -> Any:
        def changed(row: Touched | None, context: EventContext) -> Touched:
            if choke(event.amount if sku == event.other else 0) == POISON:  # type: ignore[attr-defined]
                raise AssertionError
            times = (row.times if row else 0) + 1
            return Touched(sku=sku, times=times, last=context.position, at=context.recorded_at, actor=context.actor)

        return changed

    return (
        [((sku,), change(sku)) for sku in dict.fromkeys((event.sku, event.other))] if isinstance(event, Moved) else []
    )


FOLDS = {
    "Blank": of_blank,
    "Explicit": of_explicit,
    "Log": of_log,
    "PerPart": of_parts,
    "PerPair": of_pair,
    "Touched": of_touched,
}


# ── the projector ────────────────────────────────────────────────────────────


async def stored(types: EventTypes, events: Sequence[Event]) -> MemoryEventStore:
    store = MemoryEventStore(SystemClock())
    await store.open()
    for number, event in enumerate(events):
        await append(store, types, number, event)
    return store


async def append(store: MemoryEventStore, types: EventTypes, number: int, event: Event) -> None:
    """One more event, by an actor of that number."""
    found = types.of(type(event))
    metadata = encode(Envelope(actor=f"a{number}"))
    data, settled = found.codec.settle(event)
    new = NewEvent(unique_bytes(), found.name, found.version, data, found.tags(settled), metadata)
    await store.append([Commit((new,))])


async def projected(
    store: EventLog, types: EventTypes, read_store: ReadStore, batch: int
) -> dict[str, tuple[dict[Any, Any], dict[str, int]]]:
    """Rows by key and positions of blocked keys, by read model, folded in batches of one size."""
    kept = projector_module.BATCH_EVENTS_MAX, projector_module.BATCH_EVENTS_MIN
    projector_module.BATCH_EVENTS_MAX = projector_module.BATCH_EVENTS_MIN = batch
    await read_store.open()
    try:
        projector = Projector(store, History(types), read_store, projections([warehouse()], types))
        await projector.open()
        while await projector.advance(projector.slices):
            pass
        return await shown(store, projector, read_store)
    finally:
        await read_store.close()
        projector_module.BATCH_EVENTS_MAX, projector_module.BATCH_EVENTS_MIN = kept


async def shown(
    store: EventLog, projector: Projector, read_store: ReadStore
) -> dict[str, tuple[dict[Any, Any], dict[str, int]]]:
    """Rows by key and positions of blocked keys, by read model, once every slice has folded everything."""
    found = {}
    async with read_store.snapshot() as snapshot:
        for slice in projector.slices:
            assert not slice.stopped
            assert slice.position == (await store.head()).position
            form, name = slice.projection.form, slice.projection.name
            order = [Order(column) for column in form.table.key]
            models = [form.model(row) for row in await snapshot.find(name, (), order, ROWS_MAX)]
            blocked = {held.key: int(held.position) for held in await snapshot.blocked(name)}
            found[form.name] = ({form.key_of(model): model for model in models}, blocked)
    return found


A, B = Sku("a"), Sku("b")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_g6_batches_do_not_show(kind: str) -> None:
    """Batches of 1, 7 and 1,000 give the rows and the blocked keys that a naive fold gives."""

    @settings(max_examples=150 if kind == "memory" else 25, deadline=None)
    @given(st.lists(events, max_size=30))
    @example([Packed(sku=A, parts=(Part(sku=A, amount=1), Part(sku=B, amount=1), Part(sku=A, amount=POISON)))])
    @example([Moved(sku=A, other=B, amount=TOO_LARGE), Moved(sku=A, other=B, amount=-TOO_LARGE)])
    @example([Moved(sku=A, other=B, amount=POISON), Moved(sku=A, other=B, amount=TOO_LARGE)])
    @example([Moved(sku=A, other=B, amount=1), Removed(sku=A), Moved(sku=A, other=B, amount=2)])
    def holds(history: list[Event]) -> None:
        async def run() -> None:
            types = event_types([warehouse()])
            store = await stored(types, history)
            recorded = (await store.read(ALL_EVENTS, START, ROWS_MAX)).events
            expected = naive(history, [History(types).context(event) for event in recorded])
            for batch in (1, 7, 1_000):
                with TemporaryDirectory() as folder:
                    path = str(Path(folder, "rows.db"))
                    read_store: ReadStore = MemoryReadStore() if kind == "memory" else SqliteReadStore(path)
                    found = await projected(store, types, read_store, batch)
                for model, (rows, blocked) in expected.items():
                    assert found[model] == (rows, blocked), f"{model} in batches of {batch}"

        asyncio.run(run())

    holds()
