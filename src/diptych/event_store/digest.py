"""One figure for everything that a history is, and what differs where two of them differ.

SHA-256 over MessagePack arrays, one after the other: a headline, the events in the order of their positions, the types
that they are of by name and version, the kept outcomes by command id. What a store makes of it to find it again, ids
of tags and indexes, is not part of the history.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

import msgspec

from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore, KeptOutcome, KeptState, StoredType
from diptych.event_store.model_unions import unions_to_keep
from diptych.event_store.pages import event_pages, outcome_pages, state_pages
from diptych.event_store.position import START, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.timestamp import to_microseconds

__all__ = ["HistoryDigest", "Moved", "differing_model", "differing_state", "digest", "first_difference"]

DIGEST_SCHEME = "diptych history 1"
"""Changes whenever the same history would have another digest."""
Moved: TypeAlias = Callable[[int, int | None], object]
"""Told how much is done, and of how much in all where that is known."""
_encode = msgspec.msgpack.Encoder().encode


class HistoryDigest(msgspec.Struct, frozen=True):
    """What a history is, up to a position.

    Attributes:
        sha256: hexadecimal.
        events: how many.
        outcomes: how many were judged at places up to the position.
    """

    sha256: str
    events: int
    outcomes: int


async def digest(store: EventStore, until: Position, moved: Moved) -> HistoryDigest:
    """Read the history up to a position, and every outcome judged up to there. Memory stays flat.

    `moved` is told of events.
    """
    seen = hashlib.sha256(_encode((DIGEST_SCHEME, store.history_id, until)))
    held: set[tuple[str, int]] = set()
    events = outcomes = 0
    async for page in event_pages(store, START, until):
        seen.update(b"".join([_encode(_event_fields(event)) for event in page]))
        held.update((event.type, event.version) for event in page)
        events += len(page)
        moved(events, until)
    seen.update(b"".join(_encode(_type_fields(type)) for type in await _types(store, held)))
    async for kept in outcome_pages(store, until):
        seen.update(b"".join([_encode(_outcome_fields(outcome)) for outcome in kept]))
        outcomes += len(kept)
    return HistoryDigest(seen.hexdigest(), events, outcomes)


async def _types(store: EventStore, held: set[tuple[str, int]]) -> list[StoredType]:
    found = [type for type in await store.stored_types() if (type.name, type.version) in held]
    return sorted(found, key=lambda type: (type.name, type.version))


def _event_fields(event: RecordedEvent) -> Sequence[object]:
    return (
        event.position,
        event.event_id,
        event.type,
        event.version,
        event.data,
        event.tags,
        event.metadata,
        to_microseconds(event.recorded_at),
    )


def _type_fields(type: StoredType) -> Sequence[object]:
    return type.name, type.version, type.tag_names


def _outcome_fields(outcome: KeptOutcome) -> Sequence[object]:
    place = outcome.place
    return (
        outcome.command_id,
        outcome.payload_hash,
        place.position,
        place.event_id,
        outcome.event_count,
        outcome.rejection,
    )


# ── what differs ─────────────────────────────────────────────────────────────


async def first_difference(source: EventStore, target: EventStore, until: Position) -> str | None:
    """What differs first between two histories up to a position, in words; None where nothing does."""
    if source.history_id != target.history_id:
        return f"the history ids differ: {source.history_id.hex()} and {target.history_id.hex()}"
    held: set[tuple[str, int]] = set()
    return (
        await _differing_event(source, target, until, held)
        or await _differing_type(source, target, held)
        or await _differing_outcome(source, target, until)
    )


async def _differing_event(
    source: EventStore, target: EventStore, until: Position, held: set[tuple[str, int]]
) -> str | None:
    """Notes of which types and versions the events are that do not differ."""
    async for page in event_pages(source, START, until):
        last = page[-1].position
        beside = await target.read(ALL_EVENTS, Position(page[0].position - 1), len(page), until=last)
        for here, there in zip(page, beside.events, strict=False):
            if here != there:
                names = [name for name in here.__struct_fields__ if getattr(here, name) != getattr(there, name)]
                return f"the event at position {here.position} differs in {', '.join(names)}"
        if len(beside.events) < len(page):
            return f"the target lacks events from position {page[len(beside.events)].position}"
        held.update((event.type, event.version) for event in page)
    return None


async def _differing_type(source: EventStore, target: EventStore, held: set[tuple[str, int]]) -> str | None:
    """Types of later events, which one of them may have alone, are no difference."""
    ours, theirs = [
        {(type.name, type.version): type.tag_names for type in await _types(store, held)} for store in (source, target)
    ]
    for name, version in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get((name, version)), theirs.get((name, version))
        type = f"the event type {name} (version {version})"
        if here is None or there is None:
            return f"only the {'source' if there is None else 'target'} knows that it holds events of {type}"
        if here != there:
            return f"{type} was registered with other tags"
    return None


async def _differing_outcome(source: EventStore, target: EventStore, until: Position) -> str | None:
    ours, theirs = _each_outcome(source, until), _each_outcome(target, until)
    while True:
        here, there = await anext(ours, None), await anext(theirs, None)
        if here is None and there is None:
            return None
        if here == there:
            continue
        if there is None or (here is not None and here.command_id < there.command_id):
            assert here is not None
            return f"only the source keeps an outcome of command {here.command_id!r}"
        if here is None or there.command_id < here.command_id:
            return f"only the target keeps an outcome of command {there.command_id!r}"
        return f"the outcomes of command {here.command_id!r} differ"


async def differing_state(source: EventStore, target: EventStore, until: Position) -> str | None:
    """What differs first between what two stores keep of decision models up to a position; None where nothing does.

    One that has changed behind the position in either of them is left out.
    """
    async for page in state_pages(source, until):
        for state in page:
            there = await target.model_state(state.model, state.key)
            if there is None:
                return f"only the source keeps a state of {state.model} {state.key}"
            if there.position <= until and there != KeptState(state.fold, state.data, state.position):
                return f"the states of {state.model} {state.key} differ"
    return None


async def differing_model(source: EventStore, target: EventStore) -> str | None:
    """What the target lacks first of what the source keeps of which events models fold; None where nothing."""
    lacking = unions_to_keep(await target.stored_models(), (await source.stored_models()).models)
    return f"the target lacks what is kept of the events that the model {lacking[0].name} folds" if lacking else None


async def _each_outcome(store: EventStore, until: Position) -> AsyncIterator[KeptOutcome]:
    async for page in outcome_pages(store, until):
        for kept in page:
            yield kept
