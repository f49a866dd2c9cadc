"""The event store's contract: how commits are judged, and what becomes of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

from diptych.event_store.event_store import (
    COMMAND_ID_CHARACTERS_MAX,
    COMMIT_BYTES_MAX,
    COMMIT_EVENTS_MAX,
    EVENT_BYTES_MAX,
    EVENT_TAGS_MAX,
    TAG_BYTES_MAX,
    Appended,
    Commit,
    Conflicting,
    Duplicate,
    EventStore,
    KeptOutcome,
    Refused,
)
from diptych.event_store.position import NOWHERE, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.timestamp import to_microseconds
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
    let_others_run,
    matching,
    positions,
)

__all__ = ["AppendContract"]

RACERS = 8
"""Callers that race in a test of concurrency."""
ROUNDS = 10
"""What each of them wants to get done."""
ATTEMPTS_MAX = 10 * RACERS * ROUNDS
"""Tries of one caller in a race in which every other one may win each round first."""


class AppendContract(EventStoreCase):
    """Commits are judged one after the other, at the head, and each gets its own answer."""

    async def test_positions_are_contiguous_from_1(self) -> None:
        """Events of commits of any size, in batches of any size, take 1, 2, 3 … in order."""
        async with self.store() as store:
            first, second, third = await store.append(
                [commit(event("A"), event("B")), commit(), commit(event("C"), event("D"), event("E"))]
            )
            fourth = await append_one(store, event("F"))
            places = [expect(Appended, result).place.position for result in (first, second, third)]
            assert [*places, fourth.place.position] == [2, 2, 5, 6]
            assert [recorded.type for recorded in await history_of(store)] == list("ABCDEF")

    async def test_what_is_appended_reads_back_equal(self) -> None:
        """Id, type, version, data, tags in their order, and metadata come back as they were given."""
        async with self.store() as store:
            given = [
                NewEvent(unique_bytes(), "Größe-✓", 7, '{"name":"Zoë 🙂"}'.encode(), ("b:2", "a:ü"), b'{"actor":"x"}'),
                NewEvent(b"\xff" * 16, "Plain", 1, b"", (), b""),
                NewEvent(b"\x00\x01" * 8, 'Quo"ted', 2, b"\xff\xfe not text", ('tag:"\\', "tag:"), b"{}"),
            ]
            await append_one(store, *given)
            got = await history_of(store)
            assert [NewEvent(e.event_id, e.type, e.version, e.data, e.tags, e.metadata) for e in got] == given

    async def test_an_empty_batch_does_nothing(self) -> None:
        """No commit, no result, no event."""
        async with self.store() as store:
            assert await store.append([]) == []
            assert await history_of(store) == []

    async def test_a_stale_commit_leaves_its_neighbours_alone(self) -> None:
        """[stale, valid] on one tag is one conflict and one append, and [valid, stale] likewise."""
        async with self.store() as store:
            await append_one(store, event("Opened", "a"))
            stale = commit(event("Lost", "a"), event("Lost"), conditions=[condition(0, tags={"a"})])
            results = await store.append(
                [stale, commit(event("Won", "a"), conditions=[condition(1, tags={"a"})]), stale]
            )
            assert expect(Conflicting, results[0]).position == 1
            assert expect(Appended, results[1]).place.position == 2
            expect(Conflicting, results[2])
            assert [recorded.type for recorded in await history_of(store)] == ["Opened", "Won"]

    async def test_a_later_commit_of_a_batch_sees_the_earlier_ones(self) -> None:
        """Of two commits that were decided on the same state of one tag, the second is a conflict."""
        async with self.store() as store:
            decided = [commit(event("Taken", "seat:1"), conditions=[condition(0, tags={"seat:1"})]) for _ in range(3)]
            other = commit(event("Taken", "seat:2"), conditions=[condition(0, tags={"seat:2"})])
            results = await store.append([*decided, other])
            expect(Appended, results[0])
            assert [expect(Conflicting, result).position for result in results[1:3]] == [1, 1]
            assert expect(Appended, results[3]).place.position == 2

    async def test_each_condition_is_judged_after_its_own_position(self) -> None:
        """Conditions are never merged: not at the earliest `after` of them, nor at the latest."""
        async with self.store() as store:
            await append_one(store, event("Opened", "a"), event("Opened", "b"), event("Changed", "b"))
            both_known = [condition(1, tags={"a"}), condition(3, tags={"b"})]
            b_is_stale = [condition(3, tags={"a"}), condition(2, tags={"b"})]
            a_is_stale = [condition(3, {"Changed"}), condition(0, {"Opened"}, {"a"})]
            results = await store.append(
                [
                    commit(conditions=both_known),
                    commit(conditions=both_known[::-1]),
                    commit(conditions=b_is_stale),
                    commit(conditions=b_is_stale[::-1]),
                    commit(conditions=a_is_stale),
                ]
            )
            expect(Appended, results[0])
            expect(Appended, results[1])
            assert expect(Conflicting, results[2]) == Conflicting(item(tags={"b"}), Position(3))
            assert expect(Conflicting, results[3]) == Conflicting(item(tags={"b"}), Position(3))
            assert expect(Conflicting, results[4]) == Conflicting(item({"Opened"}, {"a"}), Position(1))

    async def test_a_commit_without_events_is_judged_at_the_head(self) -> None:
        """It conflicts like any other; where it holds, its place is the head at that moment."""
        async with self.store() as store:
            before, first, between, stale = await store.append(
                [
                    commit(conditions=[condition(0)]),
                    commit(event("A", "a")),
                    commit(conditions=[condition(0, tags={"b"})]),
                    commit(conditions=[condition(0, tags={"a"})]),
                ]
            )
            assert expect(Appended, before).place.event_id == NOWHERE
            assert expect(Appended, before).place.position == 0
            assert expect(Appended, between).place == expect(Appended, first).place
            expect(Conflicting, stale)

    # ── outcomes ─────────────────────────────────────────────────────────────

    async def test_a_command_id_has_one_effect(self) -> None:
        """The same id again, with the same or another payload, changes nothing and is told the kept outcome."""
        async with self.store() as store:
            (first,) = await store.append([commit(event(), event(), command_id="c-1", payload_hash=b"h")])
            kept = KeptOutcome("c-1", b"h", expect(Appended, first).place, 2)
            await append_one(store, event())
            again = await store.append(
                [
                    commit(event(), command_id="c-1", payload_hash=b"h"),
                    commit(event(), command_id="c-1", payload_hash=b"other"),
                    commit(command_id="c-1", payload_hash=b"h", rejection=b"{}", keep=False),
                    commit(event("New"), command_id="c-2"),
                ]
            )
            assert [expect(Duplicate, result).outcome for result in again[:3]] == [kept] * 3
            assert expect(Appended, again[3]).place.position == 4
            assert await store.outcome("c-1") == kept

    async def test_a_command_id_has_one_effect_within_a_batch(self) -> None:
        """The second commit of one id in a batch is a duplicate of the first."""
        async with self.store() as store:
            first, second, other = await store.append(
                [
                    commit(event(), command_id="c-1", payload_hash=b"1"),
                    commit(event(), command_id="c-1", payload_hash=b"2"),
                    commit(event(), command_id="c-2"),
                ]
            )
            assert expect(Duplicate, second).outcome == KeptOutcome("c-1", b"1", expect(Appended, first).place, 1)
            assert expect(Appended, other).place.position == 2

    async def test_a_duplicate_wins_over_all_else(self) -> None:
        """Sent again, a commit is a duplicate even where its conditions no longer hold or its event ids are taken."""
        async with self.store() as store:
            decided = commit(event("A", "a"), conditions=[condition(0, tags={"a"})], command_id="c-1")
            (first,) = await store.append([decided])
            expect(Appended, first)
            broken_chain = commit(event(), conditions=[condition(9)], command_id="c-1")
            too_large = commit(event(data=b"x" * (EVENT_BYTES_MAX + 1)), command_id="c-1")
            for result in await store.append([decided, broken_chain, too_large]):
                assert expect(Duplicate, result).outcome.place == expect(Appended, first).place
            assert len(await history_of(store)) == 1

    async def test_a_rejection_is_kept_where_asked(self) -> None:
        """A rejection is an outcome like any other; one that is not to be kept leaves nothing."""
        async with self.store() as store:
            await append_one(store, event())
            results = await store.append(
                [
                    commit(command_id="c-1", payload_hash=b"h", rejection=b'{"code":"full"}'),
                    commit(command_id="c-2", payload_hash=b"h", rejection=b'{"code":"full"}', keep=False),
                    commit(event("Refusal"), command_id="c-3", rejection=b'{"code":"noted"}'),
                ]
            )
            places = [expect(Appended, result).place for result in results]
            assert [place.position for place in places] == [1, 1, 2]
            assert await store.outcome("c-1") == KeptOutcome("c-1", b"h", places[0], 0, b'{"code":"full"}')
            assert await store.outcome("c-2") is None
            assert await store.outcome("c-3") == KeptOutcome("c-3", b"", places[2], 1, b'{"code":"noted"}')
            (later,) = await store.append([commit(event(), command_id="c-2", payload_hash=b"other")])
            expect(Appended, later)

    async def test_only_what_holds_is_kept(self) -> None:
        """A conflict or a refusal leaves no outcome: the same id may try again."""
        async with self.store() as store:
            await append_one(store, event("A", "a"))
            stale = commit(event(), conditions=[condition(0, tags={"a"})], command_id="c-1")
            refused = commit(event("A\0"), command_id="c-2")
            results = await store.append([stale, refused])
            expect(Conflicting, results[0])
            expect(Refused, results[1])
            assert await store.outcome("c-1") is None
            assert await store.outcome("c-2") is None
            for result in await store.append([commit(event(), command_id="c-1"), commit(event(), command_id="c-2")]):
                expect(Appended, result)

    async def test_an_outcome_that_was_never_kept_is_none(self) -> None:
        """Asking for unknown ids, storable or not, gives None."""
        async with self.store() as store:
            assert [await store.outcome(id_) for id_ in ("unknown", "", "\ud800", "nul\0")] == [None] * 4

    # ── refusals ─────────────────────────────────────────────────────────────

    async def test_a_stored_event_id_refuses_its_commit_alone(self) -> None:
        """An event id that is in the history, in the batch or twice in the commit refuses that commit and no other."""
        async with self.store() as store:
            stored, twice = event("Stored"), event("Twice")
            await append_one(store, stored)
            results = await store.append(
                [
                    commit(event("A"), command_id="a"),
                    commit(event("Lost"), stored, command_id="lost"),
                    commit(twice),
                    commit(event("Lost"), twice),
                    commit(*[event("Lost")] * 2),
                    commit(event("B"), conditions=[condition(1, {"Lost"})], command_id="b"),
                ]
            )
            kinds = [type(result) for result in results]
            assert kinds == [Appended, Refused, Appended, Refused, Refused, Appended]
            assert [recorded.type for recorded in await history_of(store)] == ["Stored", "A", "Twice", "B"]
            assert await matching(store, item({"Lost"})) == []
            assert await store.outcome("lost") is None
            assert (await store.outcome("b")) == KeptOutcome("b", b"", expect(Appended, results[5]).place, 1)

    async def test_a_conflict_comes_before_a_taken_event_id(self) -> None:
        """A commit that is stale and whose event id is taken may be decided again: it is a conflict."""
        async with self.store() as store:
            taken = event("A", "a")
            await append_one(store, taken)
            both = commit(taken, conditions=[condition(0, tags={"a"})])
            conflict, refused, again = await store.append([both, commit(taken), both])
            expect(Conflicting, conflict)
            expect(Refused, refused)
            expect(Conflicting, again)

    async def test_the_limits_are_kept_to_the_last_byte(self) -> None:
        """What is at a limit is appended; what is one past it is refused, and nothing of it is done."""
        async with self.store() as store:
            for allowed in at_the_limits(0):
                (result,) = await store.append([allowed])
                expect(Appended, result)
            head = await store.head()
            results = await store.append([*at_the_limits(1), commit(event("Fine"))])
            for result in results[:-1]:
                assert expect(Refused, result).reason
            assert expect(Appended, results[-1]).place.position == head.position + 1

    async def test_text_that_a_store_cannot_hold_is_refused(self) -> None:
        """NUL, lone surrogates, a tag given twice, a strange version or event id refuse their commit alone."""
        async with self.store() as store:
            bad = [
                commit(event("A\0")),
                commit(event("A\ud800")),
                commit(event("A", "tag:\0")),
                commit(event("A", "tag:\udfff")),
                commit(event("A", "tag:1", "tag:1")),
                commit(event("A", data=b"\0")),
                commit(event("A", version=0)),
                commit(NewEvent(b"short", "A", 1, b"{}")),
                commit(event("A"), command_id="nul\0"),
                commit(event("A"), command_id="surrogate\ud800"),
                commit(event("A"), command_id=""),
            ]
            results = await store.append([*bad, commit(event("Fine", "tag:1"))])
            for result in results[:-1]:
                assert expect(Refused, result).reason
            expect(Appended, results[-1])
            assert [recorded.type for recorded in await history_of(store)] == ["Fine"]

    # ── time and concurrency ─────────────────────────────────────────────────

    async def test_recorded_time_never_runs_backwards(self) -> None:
        """Events carry the clock's time, or the time of the event before where the clock went back."""
        clock = SettableClock()
        noon = clock.now()
        async with self.store(clock) as store:
            appended = await append_one(store, event(), event())
            for seconds in (0.000_001, -3600, 1800, 1800.5):
                clock.move(seconds)
                await append_one(store, event())
            recorded_at = [recorded.recorded_at for recorded in await history_of(store)]
            tick = timedelta(microseconds=1)
            half = timedelta(seconds=0.5)
            assert recorded_at == [noon, noon, noon + tick, noon + tick, noon + tick, noon + tick + half]
            assert appended.recorded_at_us == to_microseconds(noon)
            assert all(moment.utcoffset() == timedelta(0) for moment in recorded_at)

    async def test_concurrent_appends_equal_some_serial_order(self) -> None:
        """Callers that count one tag up, deciding again on conflict, never count a number twice or leave one out."""
        async with self.two_stores() as (one, other):
            await asyncio.gather(*(count_up(one if racer % 2 else other) for racer in range(RACERS)))
            counted = [recorded.data for recorded in await history_of(one)]
            assert counted == [b"%d" % number for number in range(1, RACERS * ROUNDS + 1)]

    async def test_a_reader_never_sees_half_a_batch_nor_a_gap(self) -> None:
        """While batches are appended, every read shows whole batches, without gaps, and as far as it says."""
        async with self.two_stores() as (writing, reading):
            batch_size = 5
            writer = asyncio.create_task(append_batches(writing, batch_size))
            seen = 0
            while not writer.done():
                await let_others_run()
                for store in (reading, writing):
                    shown = len(await history_of(store))
                    assert shown % batch_size == 0, "half a batch shows"
                    assert shown >= seen, "what showed before is gone"
                    seen = shown
            await writer
            assert len(await history_of(reading)) == ROUNDS * batch_size

    async def test_two_instances_judge_by_one_history(self) -> None:
        """Events, outcomes and event ids of one instance count in the other, in either direction."""
        async with self.two_stores() as (one, other):
            taken = event("Taken", "seat:1")
            (first,) = await one.append([commit(taken, command_id="c-1")])
            duplicate, conflict, refused, fine = await other.append(
                [
                    commit(event(), command_id="c-1"),
                    commit(event(), conditions=[condition(0, {"Taken"}, {"seat:1"})]),
                    commit(taken),
                    commit(event("Paid", "seat:1"), conditions=[condition(1, tags={"seat:1"})]),
                ]
            )
            assert expect(Duplicate, duplicate).outcome.place == expect(Appended, first).place
            expect(Conflicting, conflict)
            expect(Refused, refused)
            assert expect(Appended, fine).place.position == 2
            (stale,) = await one.append([commit(event(), conditions=[condition(1, tags={"seat:1"})])])
            assert expect(Conflicting, stale).position == 2
            assert positions(await history_of(one)) == [1, 2]


def at_the_limits(past: int) -> list[Commit]:
    """Commits that are each at one limit, or so much past it."""
    return [
        commit(*(event("Many") for _ in range(COMMIT_EVENTS_MAX + past))),
        commit(event("Large", data=b"1" * (EVENT_BYTES_MAX + past))),
        commit(*events_of(COMMIT_BYTES_MAX + past)),
        commit(NewEvent(unique_bytes(), "Large", 1, b"{}", (), b"1" * (EVENT_BYTES_MAX + past))),
        commit(event("Tagged", *(f"tag:{number}" for number in range(EVENT_TAGS_MAX + past)))),
        commit(event("Long", "a" * (TAG_BYTES_MAX + past))),
        commit(event("Long", "é" * (TAG_BYTES_MAX // 2) + "a" * past)),
        commit(event("Named"), command_id="i" * (COMMAND_ID_CHARACTERS_MAX + past)),
        commit(command_id=f"large-{past}", rejection=b"1" * (EVENT_BYTES_MAX + past)),
    ]


def events_of(size: int) -> Iterable[NewEvent]:
    """Events that have so many bytes in all, in their data and metadata."""
    while size:
        share = min(size, EVENT_BYTES_MAX)
        size -= share
        metadata = b"{}"[:share]
        yield NewEvent(unique_bytes(), "Large", 1, b"1" * (share - len(metadata)), (), metadata)


async def count_up(store: EventStore) -> None:
    """Append the next number so many times, deciding again whenever another caller was first."""
    done = 0
    for _ in range(ATTEMPTS_MAX):
        head = (await store.head()).position
        await let_others_run()
        (result,) = await store.append(
            [commit(event("Counted", "counter", data=b"%d" % (head + 1)), conditions=[condition(head, {"Counted"})])]
        )
        done += isinstance(result, Appended)
        if done == ROUNDS:
            return
    raise AssertionError(f"{ATTEMPTS_MAX} attempts were not enough, though somebody has to win every round")


async def append_batches(store: EventStore, size: int) -> None:
    """Append batches of so many commits of one event."""
    for _ in range(ROUNDS):
        await let_others_run()
        for result in await store.append([commit(event()) for _ in range(size)]):
            expect(Appended, result)
