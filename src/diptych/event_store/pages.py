"""A whole history in pages: what goes through it from the first event to the last needs little memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import EventLog, EventStore, KeptOutcome, StoredState
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent

__all__ = ["event_bytes", "event_pages", "outcome_pages", "state_pages"]

FIRST_PAGE_EVENTS = 100
"""Events, outcomes or states read at once while nothing is known of their size."""
PAGE_EVENTS_MAX = 2_000
"""Events read at once."""
PAGE_OUTCOMES_MAX = 2_000
"""Outcomes read at once."""
PAGE_STATES_MAX = 2_000
"""States of decision models read at once."""
PAGE_BYTES_MAX = 8 << 20
"""Bytes that a page should have: behind one that has more, the next is shorter."""


async def event_pages(
    store: EventLog, after: Position, until: Position, query: EventQuery = ALL_EVENTS
) -> AsyncIterator[Sequence[RecordedEvent]]:
    """The events in (after, until] that match, in order, in pages that are not empty."""
    limit = FIRST_PAGE_EVENTS
    while after < until:
        events = (await store.read(query, after, limit, until=until)).events
        if not events:
            return
        yield events
        after = events[-1].position
        limit = _next_limit(limit, sum(map(event_bytes, events)), PAGE_EVENTS_MAX)


async def outcome_pages(store: EventStore, until: Position) -> AsyncIterator[Sequence[KeptOutcome]]:
    """The outcomes that were judged at places up to a position, by command id; pages may be empty."""
    after, limit = "", FIRST_PAGE_EVENTS
    while page := await store.outcomes(after, limit):
        yield [kept for kept in page if kept.place.position <= until]
        after = page[-1].command_id
        limit = _next_limit(limit, sum(len(kept.rejection or b"") for kept in page), PAGE_OUTCOMES_MAX)


async def state_pages(store: EventStore, until: Position) -> AsyncIterator[Sequence[StoredState]]:
    """What is kept of decision models at places up to a position, by model and key; pages may be empty."""
    after, limit = ("", ""), FIRST_PAGE_EVENTS
    while page := await store.model_states(after, limit):
        yield [state for state in page if state.position <= until]
        after = (page[-1].model, page[-1].key)
        limit = _next_limit(limit, sum(len(state.data) for state in page), PAGE_STATES_MAX)


def event_bytes(event: RecordedEvent) -> int:
    """About how many bytes an event has."""
    return len(event.data) + len(event.metadata)


def _next_limit(limit: int, size: int, limit_max: int) -> int:
    """Twice as many at most, and no more than should fit."""
    return max(1, min(2 * limit, limit * PAGE_BYTES_MAX // max(size, 1), limit_max))
