"""What a command bus remembers: the states of models, and the tail of the history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from diptych import BoundedContext, DecisionModel, Event, EventContext, Identity
from diptych.application.registration import event_types
from diptych.event_store.event_store import Appended
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.timestamp import to_microseconds
from diptych.messages.envelope import Envelope
from diptych.messages.unique_id import unique_bytes
from diptych.write_side import model_cache
from diptych.write_side.command_handler import ModelKey
from diptych.write_side.decision_model import Folded, ModelFold
from diptych.write_side.model_cache import ModelCache, RecentEvent, Tail

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class CourseId(Identity): ...


class Happened(Event):
    course: CourseId
    number: int = 0


class Other(Event):
    course: CourseId


class Numbers(DecisionModel[CourseId]):
    seen: tuple[int, ...] = ()

    def evolve(self, event: Happened) -> Numbers:
        return Numbers(seen=(*self.seen, event.number))


class Positions(DecisionModel[CourseId]):
    seen: tuple[tuple[int, datetime], ...] = ()

    def evolve(self, event: Happened, context: EventContext) -> Positions:
        return Positions(seen=(*self.seen, (context.position, context.recorded_at)))


class All(DecisionModel):
    count: int = 0

    def evolve(self, event: Happened | Other) -> All:
        return All(count=self.count + 1)


TYPES = event_types([BoundedContext("school", events=[Happened, Other])])
FOLDS: dict[type, ModelFold] = {model: ModelFold(model, TYPES) for model in (Numbers, Positions, All)}


def key(model: type, *ids: str) -> ModelKey:
    return FOLDS[model], ids


def initial(model: type, *ids: str, at: int = 0) -> Folded:
    fold = FOLDS[model]
    return Folded(fold.query(ids), fold.initial(ids), Position(at))


def recent(event: Any) -> RecentEvent:
    found = TYPES.of(type(event))
    new = NewEvent(unique_bytes(), found.name, 1, found.codec.settle(event)[0], found.tags(event))
    return RecentEvent(event, found.name, new, Envelope())


def happened(*numbers: int, course: str = "a") -> list[RecentEvent]:
    return [recent(Happened(course=CourseId(course), number=number)) for number in numbers]


def appended(*commits: list[RecentEvent]) -> list[tuple[Appended, list[RecentEvent]]]:
    place = Place(b"", Position(0), b"")
    return [(Appended(place, to_microseconds(NOW)), events) for events in commits]


def seen(tail: Tail, course: str = "a", *, at: int = 0, pending: bool = False) -> tuple[int, ...]:
    folded = tail.fold(key(Numbers, course), initial(Numbers, course, at=at), pending=pending)
    assert folded is not None
    return tuple(folded.state.seen)


# ── states ───────────────────────────────────────────────────────────────────


def test_the_least_recently_used_state_goes_first() -> None:
    """The cache is bounded; what was asked for lately stays."""
    cache = ModelCache(2)
    for course in ("a", "b"):
        cache.put(key(Numbers, course), initial(Numbers, course))
    assert cache.get(key(Numbers, "a")) is not None
    cache.put(key(Numbers, "c"), initial(Numbers, "c"))
    assert [cache.get(key(Numbers, course)) is not None for course in ("a", "b", "c")] == [True, False, True]


def test_an_older_state_never_replaces_a_newer_one() -> None:
    """A slow read that comes late does not set a model back."""
    cache = ModelCache()
    cache.put(key(Numbers, "a"), initial(Numbers, "a", at=7))
    cache.put(key(Numbers, "a"), initial(Numbers, "a", at=3))
    known = cache.get(key(Numbers, "a"))
    assert known is not None
    assert known.position == 7
    cache.put(key(Numbers, "a"), initial(Numbers, "a", at=9))
    assert cache.get(key(Numbers, "a")).position == 9  # type: ignore[union-attr]


# ── the tail ─────────────────────────────────────────────────────────────────


def test_a_state_is_brought_up_to_date_by_its_own_events() -> None:
    """Other entities, other types, and events before its position are left out."""
    tail = Tail(Position(10))
    tail.confirm(appended(happened(1, 2), happened(9, course="b"), [recent(Other(course=CourseId("a")))], happened(3)))
    assert (tail.start, tail.committed, tail.end) == (10, 15, 15)
    assert seen(tail, at=10) == (1, 2, 3)
    assert seen(tail, at=11) == (2, 3)
    assert seen(tail, at=14) == (3,)
    assert seen(tail, "b", at=10) == (9,)
    assert tail.fold(key(All), initial(All, at=10), pending=False) == Folded(
        FOLDS[All].query(()), All(count=5), Position(15), unsaved=5
    )


@pytest.mark.parametrize("at", [0, 9, 15, 99])
def test_a_state_that_the_tail_does_not_reach_stays_as_it_is(at: int) -> None:
    """Older than its start, at its end, or beyond: nothing is folded."""
    tail = Tail(Position(10))
    tail.confirm(appended(happened(1, 2, 3, 4, 5)))
    state = initial(Numbers, "a", at=at)
    assert tail.fold(key(Numbers, "a"), state, pending=True) is state


def test_pending_events_are_seen_only_where_asked_for() -> None:
    """And not at all where a model needs to know when they were recorded."""
    tail = Tail(Position(0))
    tail.confirm(appended(happened(1)))
    tail.add_pending(happened(2))
    assert seen(tail) == (1,)
    assert seen(tail, pending=True) == (1, 2)
    assert tail.fold(key(Positions, "a"), initial(Positions, "a"), pending=True) is None
    committed = tail.fold(key(Positions, "a"), initial(Positions, "a"), pending=False)
    assert committed is not None
    assert committed.state.seen == ((1, NOW),)
    other = tail.fold(key(Positions, "b"), initial(Positions, "b"), pending=True)
    assert other is not None
    assert other.position == 2


def test_what_did_not_come_about_is_dropped() -> None:
    """Of the pending events only the appended ones stay, at the positions that they were given."""
    tail = Tail(Position(0))
    first, second, third = happened(1), happened(2, 3), happened(4)
    for events in (first, second, third):
        tail.add_pending(events)
    tail.confirm(appended(first, third))
    assert (tail.end, seen(tail)) == (2, (1, 4))
    assert seen(tail, at=1) == (4,)
    assert not tail.knows_of(initial(Numbers, "b").item_now)
    assert tail.knows_of(initial(Numbers, "a").item_now)


def test_a_restart_forgets() -> None:
    """After an event of another process the tail begins anew behind it."""
    tail = Tail(Position(0))
    tail.confirm(appended(happened(1)))
    tail.add_pending(happened(2))
    tail.restart(Position(7))
    assert (tail.start, tail.committed, tail.end) == (7, 7, 7)
    assert not tail.knows_of(initial(Numbers, "a").item_now)
    tail.confirm(appended(happened(3)))
    assert seen(tail, at=7) == (3,)


@pytest.mark.parametrize("limit", ["TAIL_EVENTS_MAX", "TAIL_BYTES_MAX"])
def test_g12_the_tail_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """By events and by bytes, whatever the size of a batch; what is left is contiguous and ends at the head."""
    monkeypatch.setattr(model_cache, limit, 10 if limit == "TAIL_EVENTS_MAX" else 250)
    tail, number = Tail(Position(0)), 0
    for size in [1] * 30 + [100, 3, 50, 1, 1]:
        tail.confirm(appended(happened(*range(number, number + size))))
        number += size
        kept = tail.end - tail.start
        assert tail.end == number
        assert kept <= 10
        assert seen(tail, at=tail.start) == tuple(range(number - kept, number))


def test_one_event_too_large_for_the_tail_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail may be empty; it then begins at the head."""
    monkeypatch.setattr(model_cache, "TAIL_BYTES_MAX", 1)
    tail = Tail(Position(0))
    tail.confirm(appended(happened(1)))
    assert (tail.start, tail.end) == (1, 1)
