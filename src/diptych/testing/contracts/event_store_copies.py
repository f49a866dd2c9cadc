"""The event store's contract: a copy is the same history, and goes on as the original would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import msgspec

from diptych.errors import HistoryDiverged
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import (
    Appended,
    Conflicting,
    Duplicate,
    EventStore,
    HistoryPart,
    KeptOutcome,
    Refused,
    StoredType,
)
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.messages.unique_id import unique_bytes
from diptych.testing.contracts.event_store_case import (
    EventStoreCase,
    SettableClock,
    append_one,
    commit,
    condition,
    event,
    expect,
    history_of,
    item,
    opened,
)

__all__ = ["CopyContract", "original", "whole"]

KEPT_MAX = 1_000_000
"""More outcomes than any test keeps."""


class CopyContract(EventStoreCase):
    """`outcomes` gives all that is kept; `restore` takes what goes on where the copy ends, and nothing else."""

    # ── reading outcomes ─────────────────────────────────────────────────────

    async def test_outcomes_come_in_the_order_of_their_ids(self) -> None:
        """Every outcome is in one page, as it is kept; the order is that of code points, whatever the language."""
        async with self.store() as store:
            ids = ["b", "B", "a-1", "a", "ä", "10", "9", "z", "😀", "\uffff"]
            refused = commit(command_id="refused", rejection=b'{"code":"no"}', payload_hash=b"\x00\xff")
            assert await store.outcomes("", 10) == []
            await store.append([refused, *(commit(event(), event(), command_id=id_) for id_ in ids)])
            await store.append([commit(event(), command_id="untold", keep=False)])
            everything = await store.outcomes("", KEPT_MAX)
            assert [kept.command_id for kept in everything] == sorted([*ids, "refused"])
            assert everything == [await store.outcome(kept.command_id) for kept in everything]
            pages, after = list[KeptOutcome](), ""
            while page := await store.outcomes(after, 3):
                assert len(page) <= 3
                assert page[0].command_id > after
                pages += page
                after = page[-1].command_id
            assert pages == everything

    # ── restoring ────────────────────────────────────────────────────────────

    async def test_a_copy_is_the_same_history(self) -> None:
        """Id, events to the byte, places, outcomes and types of the original; also for who opens it later."""
        async with self.history(SettableClock()) as connect:
            part = original()
            async with opened(connect()) as store:
                own_id = store.history_id
                await take(store, cut(part, 0, 2, outcomes=False))
                await take(store, cut(part, 2, 5, outcomes=False))
                await take(store, cut(part, 5, 5, outcomes=True))
                await check_is(store, part)
                assert store.history_id == part.after.history_id != own_id
            async with opened(connect()) as again:
                await check_is(again, part)

    async def test_events_of_a_copy_are_found_by_type_and_tag(self) -> None:
        """Types and tags match in the copy as in the original, those that several parts share too."""
        async with self.store() as store:
            part = original()
            await take(store, cut(part, 0, 3, outcomes=False))
            await take(store, cut(part, 3, 5, outcomes=True))
            for asked in (item({"Opened"}), item(tags={"a:1"}), item({"Moved"}, {"a:1", "b:ü"}), item({"Unheard"})):
                expected = [e.position for e in part.events if asked.matches(e.type, e.tags)]
                found = await store.read(EventQuery((asked,)), START, 10)
                assert [recorded.position for recorded in found.events] == expected
                backward = await store.read_backward(EventQuery((asked,)), 10)
                assert [recorded.position for recorded in backward.events] == expected[::-1]

    async def test_a_copy_goes_on_as_the_original_would(self) -> None:
        """Positions, conditions, command ids, event ids, types and times hold across the parts and what is appended."""
        async with self.store() as store:
            part = original()
            await take(store, part)
            taken = NewEvent(part.events[1].event_id, "Moved", 1, b"{}")
            duplicate, conflict, refused, fine = await store.append(
                [
                    commit(event(), command_id="c-1", payload_hash=b"other"),
                    commit(event(), conditions=[condition(3, {"Moved"}, {"a:1"})]),
                    commit(taken),
                    commit(event("Opened", "a:1", "new"), conditions=[condition(5, tags={"a:1"})], command_id="c-9"),
                ]
            )
            assert expect(Duplicate, duplicate).outcome == part.outcomes[0]
            assert expect(Conflicting, conflict).position == 4
            expect(Refused, refused)
            appended = expect(Appended, fine)
            assert (appended.place.history_id, appended.place.position) == (part.after.history_id, 6)
            assert appended.recorded_at_us >= part.recorded_at_us
            await store.register_types([StoredType("Opened", 1, ("changed",)), StoredType("Moved", 2, ())])
            assert await store.stored_types() == list(part.types)
            found = await store.read(EventQuery((item(tags={"a:1"}), item({"Moved"}, {"b:ü"}))), START, 10)
            assert [recorded.position for recorded in found.events] == [1, 2, 4, 6]

    async def test_a_store_that_appended_is_copied_on(self) -> None:
        """A copy that another one follows: what was read here is what is restored there."""
        async with self.store() as store, self.store() as copy:
            await store.register_types([StoredType("A", 1, ("a",))])
            await store.append([commit(command_id="early", rejection=b"{}"), commit(event("A", "a:1"), command_id="c")])
            part = await whole(store)
            await take(copy, part)
            await check_is(copy, part)
            (again,) = await copy.append([commit(event(), command_id="early")])
            assert expect(Duplicate, again).outcome.place == Place(store.history_id, START, NOWHERE)

    async def test_outcomes_may_come_again(self) -> None:
        """Those that are kept already stay as they are, beside new ones: an interrupted copy begins with them anew."""
        async with self.store() as store:
            part = original()
            await take(store, cut(part, 0, 5, outcomes=False))
            await take(store, msgspec.structs.replace(cut(part, 5, 5, outcomes=True), outcomes=part.outcomes[:2]))
            await take(store, cut(part, 5, 5, outcomes=True))
            await check_is(store, part)

    async def test_a_part_without_anything_makes_a_copy(self) -> None:
        """An empty store comes to be a copy of a history without events, any number of times, and goes on as that."""
        async with self.store() as store:
            begin = Place(unique_bytes(), START, NOWHERE)
            for _ in range(2):
                await take(store, HistoryPart(begin))
                assert await store.head() == begin
            await take(store, HistoryPart(Place(unique_bytes(), START, NOWHERE)))  # it is empty all the same
            assert (await append_one(store, event())).place.history_id == store.history_id != begin.history_id

    async def test_types_are_facts_only_in_a_copy(self) -> None:
        """What was registered before an empty store became a copy yields to how the original registered it."""
        async with self.store() as store:
            await store.register_types([StoredType("Opened", 1, ("of another code",)), StoredType("Gone", 1, ("x",))])
            part = original()
            await take(store, part)
            assert await store.stored_types() == list(part.types)

    # ── refusing ─────────────────────────────────────────────────────────────

    async def test_only_an_empty_store_becomes_a_copy(self) -> None:
        """One that holds an event, or a kept outcome alone, of another history refuses and stays what it is."""
        for first in (commit(event("Mine"), command_id="mine"), commit(command_id="mine", rejection=b"{}")):
            async with self.store() as store:
                await store.append([first])
                await check_refuses(store, original())
                kept = expect(Duplicate, (await store.append([commit(command_id="mine")]))[0])
                assert kept.outcome.place == await store.head()

    async def test_a_part_goes_on_where_the_copy_ends(self) -> None:
        """One of earlier or later events is refused, as is one of what the history came to be elsewhere."""
        async with self.store() as store:
            part = original()
            await check_refuses(store, cut(part, 2, 3, outcomes=False))
            await take(store, cut(part, 0, 3, outcomes=False))
            for first, last in ((0, 3), (0, 5), (2, 5), (4, 5)):
                await check_refuses(store, cut(part, first, last, outcomes=False))
            elsewhere = msgspec.structs.replace(part.events[2], event_id=unique_bytes())
            forked = msgspec.structs.replace(part, events=[*part.events[:2], elsewhere, *part.events[3:]])
            await check_refuses(store, cut(forked, 3, 5, outcomes=False))
            await append_one(store, event("Mine"))
            await check_refuses(store, cut(part, 3, 5, outcomes=False))

    async def test_a_part_that_contradicts_itself_is_refused(self) -> None:
        """Gaps, order, times, ids that come twice, unregistered types, outcomes of other places: nothing is written."""
        async with self.store() as store:
            part = original()
            await take(store, cut(part, 0, 2, outcomes=False))
            rest = cut(part, 2, 5, outcomes=True)
            third, fourth, fifth = rest.events
            early = msgspec.structs.replace(third, recorded_at=part.events[1].recorded_at - timedelta(microseconds=1))
            earlier = msgspec.structs.replace(fifth, recorded_at=third.recorded_at - timedelta(microseconds=1))
            stored = msgspec.structs.replace(fourth, event_id=part.events[0].event_id)
            twice = msgspec.structs.replace(fourth, event_id=third.event_id)
            for events in (
                [third, fifth],
                [third, fifth, fourth],
                [early, fourth, fifth],
                [third, fourth, earlier],
                [third, stored, fifth],
                [third, twice, fifth],
            ):
                await check_refuses(store, msgspec.structs.replace(rest, events=events, outcomes=()))
            await check_refuses(store, msgspec.structs.replace(rest, types=rest.types[:1]))
            for wrong in misplaced(part):
                await check_refuses(store, msgspec.structs.replace(rest, outcomes=[*part.outcomes, wrong]))
            await take(store, rest)
            await check_is(store, part)

    async def test_a_kept_outcome_is_never_replaced(self) -> None:
        """Another outcome under a command id that has one is refused, whatever differs, and within one part too."""
        async with self.store() as store:
            part = original()
            await take(store, part)
            first = part.outcomes[0]
            others = [
                msgspec.structs.replace(first, payload_hash=b"other"),
                msgspec.structs.replace(first, event_count=1),
                msgspec.structs.replace(first, rejection=b"{}"),
                msgspec.structs.replace(first, place=part.outcomes[1].place),
            ]
            for other in others:
                await check_refuses(store, HistoryPart(part.end, outcomes=[*part.outcomes, other]))
            new = KeptOutcome("new", b"1", part.end, 0)
            twice = [new, msgspec.structs.replace(new, payload_hash=b"2")]
            await check_refuses(store, HistoryPart(part.end, outcomes=twice))

    async def test_who_knew_the_empty_store_hears_of_the_copy(self) -> None:
        """An instance that was open before the store became a copy appends nothing under the id that it knew."""
        async with self.two_stores() as (copying, other):
            if copying is other:
                return
            await other.head()
            part = original()
            await take(copying, part)
            await check_diverged(lambda: other.append([commit(event("Under the old id"))]))
            await check_is(copying, part)


# ── a history to copy ────────────────────────────────────────────────────────


def original() -> HistoryPart:
    """A whole history: five events of three types, recorded in the future, and outcomes of every kind."""
    history_id = unique_bytes()
    clock = SettableClock()
    clock.move(1_000_000)
    events: list[RecordedEvent] = []

    def add(type: str, version: int, data: bytes, *tags: str) -> None:
        clock.move(len(events) % 2 and 0.000_001)
        number = Position(len(events) + 1)
        metadata = b'{"actor":"\xc3\xbc"}'
        events.append(RecordedEvent(number, unique_bytes(), type, version, data, tags, metadata, clock.time))

    add("Opened", 1, b'{"a":1}', "a:1")
    add("Moved", 1, '{"name":"Zoë 🙂"}'.encode(), "b:ü", "a:1")
    add("Opened", 1, b"\xff\xfe not text", "a:2")
    add("Moved", 2, b"", "a:1", 'c:"\\')
    add("Größe-✓", 7, b"{}")

    def kept(command_id: str, position: int, event_count: int, rejection: bytes | None = None) -> KeptOutcome:
        event_id = events[position - 1].event_id if position else NOWHERE
        return KeptOutcome(
            command_id, b"\x00hash", Place(history_id, Position(position), event_id), event_count, rejection
        )

    types = [
        StoredType("Größe-✓", 7, ()),
        StoredType("Moved", 1, ("b", "a")),
        StoredType("Moved", 2, ("a", "c")),
        StoredType("Opened", 1, ("a",)),
    ]
    outcomes = [kept("c-1", 2, 2), kept("c-2", 5, 1), kept("early", 0, 0, b'{"code":"no"}'), kept("ü", 3, 0, b"{}")]
    return HistoryPart(Place(history_id, START, NOWHERE), events, sorted(types, key=_by_name), outcomes)


def _by_name(type: StoredType) -> tuple[str, int]:
    return type.name, type.version


def cut(part: HistoryPart, first: int, last: int, *, outcomes: bool) -> HistoryPart:
    """The events after one position, up to another, with all outcomes or none."""
    event_id = part.events[first - 1].event_id if first else NOWHERE
    after = Place(part.after.history_id, Position(first), event_id)
    return HistoryPart(after, part.events[first:last], part.types, part.outcomes if outcomes else ())


def misplaced(part: HistoryPart) -> list[KeptOutcome]:
    """Outcomes that this history cannot have."""
    history_id = part.after.history_id
    first, last = part.events[0].event_id, part.events[4].event_id
    return [
        KeptOutcome("x", b"", Place(unique_bytes(), Position(5), last), 1),
        KeptOutcome("x", b"", Place(history_id, Position(6), unique_bytes()), 1),
        KeptOutcome("x", b"", Place(history_id, Position(4), last), 1),
        KeptOutcome("x", b"", Place(history_id, Position(2), first), 1),
        KeptOutcome("x", b"", Place(history_id, Position(1), last), 1),
        KeptOutcome("x", b"", Place(history_id, START, first), 0),
        KeptOutcome("x", b"", Place(history_id, Position(1), first), 2),
    ]


async def whole(store: EventStore) -> HistoryPart:
    """What a store holds, as one part."""
    begin = Place(store.history_id, START, NOWHERE)
    outcomes = await store.outcomes("", KEPT_MAX)
    return HistoryPart(begin, await history_of(store), await store.stored_types(), outcomes)


async def check_is(store: EventStore, part: HistoryPart) -> None:
    """The store holds exactly this history."""
    held = await whole(store)
    assert held.after == part.after
    assert list(held.events) == list(part.events)
    assert list(held.outcomes) == sorted(part.outcomes, key=lambda kept: kept.command_id)
    assert sorted(held.types, key=_by_name) == list(part.types)
    assert await store.head() == part.end
    places = [await store.place_at(recorded.position) for recorded in part.events]
    assert [place and place.event_id for place in places] == [recorded.event_id for recorded in part.events]
    kept = [await store.outcome(outcome.command_id) for outcome in part.outcomes]
    assert kept == list(part.outcomes)


async def take(store: EventStore, part: HistoryPart) -> None:
    """The store has to take the part."""
    try:
        await store.restore(part)
    except HistoryDiverged as error:
        raise AssertionError(f"a part that fits was refused: {error}") from error


async def check_refuses(store: EventStore, part: HistoryPart) -> None:
    """The store does not take the part, and is as it was."""
    before = await whole(store)
    await check_diverged(lambda: store.restore(part))
    assert await whole(store) == before


async def check_diverged(call: Callable[[], Awaitable[Sequence[object] | None]]) -> None:
    """The call has to raise HistoryDiverged."""
    try:
        await call()
    except HistoryDiverged:
        return
    raise AssertionError("what is of another history was taken")
