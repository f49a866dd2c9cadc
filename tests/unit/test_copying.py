"""Copying a history: what the target may be, a source that goes on meanwhile, and what a comparison notices."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.errors import HistoryDiverged
from diptych.event_store import copying, pages
from diptych.event_store.copying import compare, copied_up_to, copy_history
from diptych.event_store.digest import Moved, digest
from diptych.event_store.event_store import (
    HistoryPart,
    KeptOutcome,
    KeptState,
    ModelState,
    StoredSchema,
    StoredState,
    StoredType,
    TypeFacts,
)
from diptych.event_store.model_unions import ModelUnion
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.tagging import UNTOUCHED
from diptych.testing.contracts.event_store_case import SettableClock, append_one, commit, event, history_of
from diptych.testing.contracts.event_store_copies import original, whole

pytestmark = pytest.mark.anyio


@contextmanager
def quietly(what: str) -> Generator[Moved]:
    yield lambda done, total: None


class WatchedStore(MemoryEventStore):
    """Notes how many events each part has."""

    def __init__(self, clock: SettableClock) -> None:
        super().__init__(clock)
        self.parts: list[int] = []

    async def restore(self, part: HistoryPart) -> None:
        self.parts.append(len(part.events))
        await super().restore(part)


async def opened_store() -> MemoryEventStore:
    store = MemoryEventStore(SettableClock())
    await store.open()
    return store


async def holding(part: HistoryPart) -> MemoryEventStore:
    store = await opened_store()
    await store.restore(part)
    return store


# ── the tags ─────────────────────────────────────────────────────────────────


async def test_a_source_that_is_being_tagged_anew_is_not_copied() -> None:
    """Some of its events have other tags than the rest. Nothing is written."""
    source, target = await holding(original()), await opened_store()
    await source.begin_retag([("A", 1)], UNTOUCHED)
    with pytest.raises(HistoryDiverged, match="being tagged anew"):
        await copy_history(source, target, quietly)
    assert (await target.head()).position == 0


async def test_a_source_that_was_tagged_anew_meanwhile_is_copied_from_the_beginning() -> None:
    """What was copied before may have the old tags: the copy says so, and does not go on."""
    source, target = await holding(original()), await opened_store()
    tagging = UNTOUCHED

    async def tag_anew() -> None:
        nonlocal tagging
        tagging = await source.begin_retag([("A", 1)], tagging)
        await source.end_retag(tagging, [], [])

    class TaggedMeanwhile(WatchedStore):
        async def restore(self, part: HistoryPart) -> None:
            await super().restore(part)
            if part.outcomes:
                await tag_anew()

    target = TaggedMeanwhile(SettableClock())
    await target.open()
    with pytest.raises(HistoryDiverged, match="were while they were copied"):
        await copy_history(source, target, quietly)
    assert (await target.head()).position == 5
    with pytest.raises(HistoryDiverged, match="not tagged alike.*Begin again with an empty store"):
        await copy_history(source, target, quietly)
    fresh = await opened_store()
    await copy_history(source, fresh, quietly)
    assert (await fresh.tagging()).id == tagging.id


# ── the target ───────────────────────────────────────────────────────────────


async def test_another_history_is_left_alone() -> None:
    """The error says what the target holds, and nothing of it is changed."""
    source, target = await holding(original()), await holding(original())
    before = await whole(target)
    with pytest.raises(HistoryDiverged, match=f"holds the history {target.history_id.hex()} with 5 events"):
        await copy_history(source, target, quietly)
    assert await whole(target) == before


async def test_a_target_with_outcomes_alone_is_not_empty() -> None:
    """A command that was refused before anything happened was answered all the same."""
    source, target = await holding(original()), await opened_store()
    await target.append([commit(command_id="mine", rejection=b"{}")])
    with pytest.raises(HistoryDiverged, match="with 0 events"):
        await copy_history(source, target, quietly)


async def test_a_target_that_went_on_is_no_copy() -> None:
    """Commands that were run on it are not lost to a copy that is run again."""
    source, target = await holding(original()), await opened_store()
    await copy_history(source, target, quietly)
    await append_one(target, event("Later"))
    with pytest.raises(HistoryDiverged, match="has come to position 6, the source only to 5: commands were run on it"):
        await copy_history(source, target, quietly)
    assert len(await history_of(target)) == 6


async def test_two_that_went_on_are_a_fork() -> None:
    """Neither can follow the other any more, whichever is longer."""
    source, target = await holding(original()), await opened_store()
    await copy_history(source, target, quietly)
    for store in (source, target, source):
        await append_one(store, event("Later"))
    with pytest.raises(HistoryDiverged, match="another event at position 6 than the source"):
        await copied_up_to(source, target)


async def test_a_history_without_events_is_copied() -> None:
    """It has an id, and may have outcomes."""
    source, target = await opened_store(), await opened_store()
    await source.append([commit(command_id="refused", rejection=b"{}")])
    at = await copy_history(source, target, quietly)
    assert (at.position, target.history_id) == (START, source.history_id)
    assert (await compare(source, target, at, quietly)).difference is None
    assert await whole(target) == await whole(source)


# ── a source that goes on ────────────────────────────────────────────────────


async def test_what_comes_meanwhile_is_copied_too() -> None:
    """Events and outcomes that come while a pass is under way are in the next one."""
    source, target = await holding(original()), await opened_store()
    came = iter(range(3))

    @contextmanager
    def disturbed(what: str) -> Generator[Moved]:
        if (number := next(came, None)) is not None:
            source._carry_out(commit(event("Late"), command_id=f"late-{number}"))
        yield lambda done, total: None

    at = await copy_history(source, target, disturbed)
    assert at == await source.head()
    assert at.position == 8
    assert await whole(target) == await whole(source)


async def test_a_source_that_never_rests_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many passes the copy ends where it is: a prefix, with the outcomes up to there."""
    monkeypatch.setattr(copying, "PASSES_MAX", 3)
    source, target = await holding(original()), await opened_store()

    @contextmanager
    def restless(what: str) -> Generator[Moved]:
        source._carry_out(commit(event("Late"), command_id=f"late-{len(source._events)}"))
        yield lambda done, total: None

    at = await copy_history(source, target, restless)
    assert at == await target.head()
    assert START < at.position < (await source.head()).position
    assert (await compare(source, target, at, quietly)).difference is None


# ── batches ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("bytes_max", "sizes"), [(1_000, [5]), (20, [2, 2, 1]), (1, [1, 1, 1, 1, 1])])
async def test_a_transaction_has_a_limit_in_bytes(
    bytes_max: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many events as fit; one that is larger goes alone."""
    monkeypatch.setattr(copying, "BATCH_BYTES_MAX", bytes_max)
    source, target = await opened_store(), WatchedStore(SettableClock())
    await target.open()
    await append_one(source, *(event(data=b"8 bytes!") for _ in range(5)))
    await copy_history(source, target, quietly)
    assert target.parts == [0, *sizes]
    assert await whole(target) == await whole(source)


async def test_pages_follow_the_size_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin small, grow by doubling up to the limit, and shrink behind one with too many bytes."""
    monkeypatch.setattr(pages, "FIRST_PAGE_EVENTS", 2)
    monkeypatch.setattr(pages, "PAGE_EVENTS_MAX", 6)
    monkeypatch.setattr(pages, "PAGE_BYTES_MAX", 100)
    store = await opened_store()
    small = [event(data=b"1") for _ in range(12)]
    large = [event(data=b"1" * 48) for _ in range(9)]
    await append_one(store, *small, *large)
    sizes = [len(page) async for page in pages.event_pages(store, START, Position(21))]
    assert sizes == [2, 4, 6, 6, 2, 1]


# ── comparing ────────────────────────────────────────────────────────────────


def changed(**changes: Any) -> Callable[[MemoryEventStore], None]:
    """Change the third event."""

    def change(store: MemoryEventStore) -> None:
        store._events[2] = msgspec.structs.replace(store._events[2], **changes)

    return change


def changed_outcome(**changes: Any) -> Callable[[MemoryEventStore], None]:
    """Change the first outcome."""

    def change(store: MemoryEventStore) -> None:
        store._outcomes["c-1"] = msgspec.structs.replace(store._outcomes["c-1"], **changes)

    return change


def lost(store: MemoryEventStore) -> None:
    del store._events[4:]


def added(store: MemoryEventStore) -> None:
    store._outcomes["b"] = msgspec.structs.replace(store._outcomes["c-1"], command_id="b")


def retagged(store: MemoryEventStore) -> None:
    store._tag_names["Opened", 1] = ("b",)


TIME = original().events[2].recorded_at + timedelta(microseconds=1)
DAMAGES = [
    (changed(event_id=b"\1" * 16), "event at position 3 differs in event_id"),
    (changed(type="Openee"), "event at position 3 differs in type"),
    (changed(version=2), "event at position 3 differs in version"),
    (changed(data=b"\xff\xfe not texs"), "event at position 3 differs in data"),
    (changed(tags=("a:1",)), "event at position 3 differs in tags"),
    (changed(metadata=b"{ }"), "event at position 3 differs in metadata"),
    (changed(recorded_at=TIME), "event at position 3 differs in recorded_at"),
    (lost, "the target lacks events from position 5"),
    (retagged, "the event type Opened (version 1) was registered with other tags"),
    (changed_outcome(payload_hash=b"\1hash"), "the outcomes of command 'c-1' differ"),
    (changed_outcome(event_count=1), "the outcomes of command 'c-1' differ"),
    (changed_outcome(rejection=b"{}"), "the outcomes of command 'c-1' differ"),
    (lambda store: store._outcomes.pop("c-2"), "only the source keeps an outcome of command 'c-2'"),
    (added, "only the target keeps an outcome of command 'b'"),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
async def test_whatever_differs_is_noticed_and_named(number: int) -> None:
    """A digest covers all that a history is; the comparison says what differs first."""
    damage, told = DAMAGES[number]
    source, target = await holding(original()), await opened_store()
    at = await copy_history(source, target, quietly)
    assert (await compare(source, target, at, quietly)).difference is None
    damage(target)
    compared = await compare(source, target, at, quietly)
    assert compared.source.sha256 != compared.target.sha256
    assert compared.difference is not None
    assert told in compared.difference


async def test_a_target_that_goes_on_while_it_is_compared_is_noticed() -> None:
    """Equal up to a place is not the same where the target alone is past it; a copy that is ahead of it is."""
    source, target = await holding(original()), await opened_store()
    at = await copy_history(source, target, quietly)
    await append_one(source, event("Later"))
    await copy_history(source, target, quietly)
    assert (await compare(source, target, at, quietly)).difference is None
    await append_one(target, event("Later"))
    compared = await compare(source, target, at, quietly)
    assert compared.source == compared.target
    assert compared.difference == "the target has gone on to position 7, where the source is not"


async def test_a_digest_stays_what_it_was() -> None:
    """Of the same history it is the same in every version: `DIGEST_SCHEME` changes with it."""
    store = await opened_store()
    place = Place(b"h" * 16, START, NOWHERE)
    recorded = datetime(2024, 2, 29, 12, tzinfo=UTC)
    first = RecordedEvent(Position(1), b"e" * 16, "A", 1, b"{}", ("a:1", "b:ü"), b'{"actor":"x"}', recorded)
    kept = KeptOutcome("c-1", b"hash", Place(b"h" * 16, Position(1), b"e" * 16), 1, b"{}")
    await store.restore(HistoryPart(place, [first], [StoredType("A", 1, ("a", "b"))], [kept]))
    told = await digest(store, Position(1), lambda done, total: None)
    assert told.sha256 == "1867f69d5354a1a8acbdc15d06a80772801fe1a3b887c9e42b81cfb6f326d9dc"


async def test_a_digest_is_of_the_history_not_of_the_way_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of any size give the same; another position, or another history, gives another."""
    part = original()
    store = await holding(part)
    told: list[tuple[int, int | None]] = []
    whole_digest = await digest(store, Position(5), lambda done, total: told.append((done, total)))
    assert (whole_digest.events, whole_digest.outcomes, told) == (5, 4, [(5, 5)])
    for name in ("FIRST_PAGE_EVENTS", "PAGE_EVENTS_MAX", "PAGE_OUTCOMES_MAX"):
        monkeypatch.setattr(pages, name, 1)
    assert await digest(store, Position(5), lambda done, total: None) == whole_digest
    earlier = await digest(store, Position(4), lambda done, total: None)
    assert (earlier.events, earlier.outcomes) == (4, 3)
    assert earlier.sha256 != whole_digest.sha256
    renamed = msgspec.structs.replace(part.after, history_id=b"\1" * 16)
    outcomes = [
        msgspec.structs.replace(kept, place=msgspec.structs.replace(kept.place, history_id=b"\1" * 16))
        for kept in part.outcomes
    ]
    other = await holding(msgspec.structs.replace(part, after=renamed, outcomes=outcomes))
    assert (await digest(other, Position(5), lambda done, total: None)).sha256 != whole_digest.sha256


# ── states of models, and horizons ───────────────────────────────────────────


async def with_states() -> MemoryEventStore:
    """A store whose every event has left a state."""
    store = await opened_store()
    for number in range(1, 4):
        state = ModelState("shop.Product", str(number), "fold", b"[%d]" % number)
        await store.append([commit(event("A" if number < 3 else "B"), states=[state])])
    return store


async def test_states_and_horizons_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits into a page; what was pruned stays so, and up to where it was is known."""
    monkeypatch.setattr(pages, "FIRST_PAGE_EVENTS", 1)
    source, target = await with_states(), await opened_store()
    await source.prune("A", START, Position(2), 10)
    at = await copy_history(source, target, quietly)
    assert await target.model_states(("", ""), 10) == await source.model_states(("", ""), 10)
    assert await target.horizons() == {"A": Position(2)}
    assert await history_of(target) == await history_of(source)
    assert (await compare(source, target, at, quietly)).difference is None


async def test_a_state_that_differs_is_noticed_and_one_that_went_on_is_not() -> None:
    """It is no part of the history; but what is pruned lives on in it alone."""
    source, target = await with_states(), await opened_store()
    at = await copy_history(source, target, quietly)
    target._states["shop.Product", "2"] = KeptState("fold", b"[0]", Position(2))
    assert (await compare(source, target, at, quietly)).difference == "the states of shop.Product 2 differ"
    del target._states["shop.Product", "2"]
    assert (await compare(source, target, at, quietly)).difference == "only the source keeps a state of shop.Product 2"
    target._states["shop.Product", "2"] = KeptState("fold", b"[0]", Position(4))
    assert (await compare(source, target, at, quietly)).difference is None


async def test_what_is_pruned_meanwhile_is_not_pruned_in_a_copy_without_the_states() -> None:
    """They were kept ahead of the horizon, when the copy had those of before already."""

    class PrunedMeanwhile(MemoryEventStore):
        async def model_states(self, after: tuple[str, str], limit: int) -> list[StoredState]:
            page = await super().model_states(after, limit)
            if not page and not await self.horizons():
                await self.keep_states([StoredState("shop.Late", "1", "fold", b"[1]", position=Position(2))], at)
                await self.prune("A", START, Position(2), 10)
            return page

    source, target = PrunedMeanwhile(SettableClock()), await opened_store()
    await source.open()
    await append_one(source, event("A"), event("A"))
    at = await source.head()
    await copy_history(source, target, quietly)
    assert [bool(found.data) for found in await history_of(target)] == [True, True]
    await copy_history(source, target, quietly)
    assert (await compare(source, target, at, quietly)).difference is None
    assert await target.model_state("shop.Late", "1") is not None


async def test_schemas_that_come_later_are_copied() -> None:
    """Code that knows but the first one is told by the copy what the source would tell it."""
    source, target = await opened_store(), await opened_store()
    first, later = (StoredSchema("int", Position(0)), StoredSchema("float", Position(1)))
    await source.register_types([StoredType("A", 1, (), TypeFacts((first,), ()))])
    await append_one(source, event("A"))
    await copy_history(source, target, quietly)
    await source.keep_facts(await source.stored_types(), [TypeFacts((first, later), ())])
    await copy_history(source, target, quietly)
    assert await target.stored_types() == await source.stored_types()


# ── which events models fold ─────────────────────────────────────────────────


async def test_what_is_kept_of_models_is_copied() -> None:
    """Else an older process would decide on the copy without the events that only newer code folds."""
    source, target = await holding(original()), await opened_store()
    order = ModelUnion("shop.Order", 1, ("A", "B"))
    await source.keep_models([order], b"")
    await copy_history(source, target, quietly)
    assert (await target.stored_models()).models == (order,)
    mark = (await target.stored_models()).mark
    await copy_history(source, target, quietly)
    assert (await target.stored_models()).mark == mark, "nothing was new"


async def test_what_is_kept_of_models_in_both_is_joined() -> None:
    """An application was opened on the copy already; neither one's events are forgotten, and a higher version wins."""
    source, target = await holding(original()), await opened_store()
    here = [ModelUnion("shop.Order", 1, ("A",)), ModelUnion("shop.Stock", 2, ("A",))]
    there = [ModelUnion("shop.Order", 1, ("B",)), ModelUnion("shop.Stock", 1, ("B",)), ModelUnion("shop.New", 1, ())]
    await source.keep_models(here, b"")
    await target.keep_models(there, b"")
    await copy_history(source, target, quietly)
    assert (await target.stored_models()).models == (there[2], ModelUnion("shop.Order", 1, ("A", "B")), here[1])


async def test_a_comparison_notices_that_something_is_not_kept_of_models() -> None:
    """What the target keeps beyond is no difference: its own application may have brought it."""
    source, target = await holding(original()), await opened_store()
    at = await copy_history(source, target, quietly)
    await target.keep_models([ModelUnion("shop.Stock", 1, ("A",))], b"")
    assert (await compare(source, target, at, quietly)).difference is None
    await source.keep_models([ModelUnion("shop.Order", 1, ("A",))], b"")
    found = await compare(source, target, at, quietly)
    assert found.difference == "the target lacks what is kept of the events that the model shop.Order folds"
