"""The part of the event store's contract on what is stored of types, and on events that are tagged anew (rule 20)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from diptych.errors import HistoryDiverged, Retagged
from diptych.event_store.event_store import (
    Appended,
    EventStore,
    HistoryPart,
    KeptState,
    ModelState,
    StoredSchema,
    StoredState,
    StoredType,
    TypeFacts,
)
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.tagging import UNTOUCHED, Tagging
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
    matching,
    opened,
)

__all__ = ["FactsContract", "TaggingContract"]

A = ("A", 1)


def facts(*fields: str, since: int = 0) -> TypeFacts:
    """What is stored of a type with these fields, each an identity."""
    schema = {"fields": dict.fromkeys(fields, "str"), "required": sorted(fields)}
    return TypeFacts((StoredSchema(schema, Position(since)),), tuple(f"{name}: {name}" for name in sorted(fields)))


class FactsContract(EventStoreCase):
    """What is stored of types beside their tag names."""

    async def test_facts_are_kept_with_the_first_event(self) -> None:
        """They may be replaced by registering until an event is stored, and are not filled in after."""
        async with self.two_stores() as (store, other):
            await store.register_types([StoredType("A", 1, ("a",), facts("a"))])
            await store.register_types([StoredType("A", 1, ("a",), facts("a", "b"))])
            await append_one(store, event("A"), event("Unregistered"))
            await other.register_types([StoredType("A", 1, ("a",), facts("c"))])
            await other.register_types([StoredType("Unregistered", 1, ("u",), facts("u"))])
            assert await other.stored_types() == [
                StoredType("A", 1, ("a",), facts("a", "b")),
                StoredType("Unregistered", 1, ("u",), None),
            ]

    async def test_facts_are_replaced_where_they_are_as_before(self) -> None:
        """Of each type by itself; where another has replaced them meanwhile, nothing is done, and nothing is said."""
        async with self.two_stores() as (store, other):
            await store.register_types([StoredType(name, 1, ("a",), facts("a")) for name in ("A", "B", "C")])
            await append_one(store, *(event(name, version=version) for name in "ABC" for version in (1, 2)))
            before = {(type.name, type.version): type for type in await store.stored_types()}
            await other.keep_facts([before["A", 1], before["B", 2]], [facts("b"), facts("b", since=6)])
            assert {(type.name, type.version): type.facts for type in await store.stored_types()} == {
                ("A", 1): facts("b"),
                ("A", 2): None,
                ("B", 1): facts("a"),
                ("B", 2): facts("b", since=6),
                ("C", 1): facts("a"),
                ("C", 2): None,
            }
            late = [before["A", 1], before["C", 1], before["B", 2]]
            await store.keep_facts(late, [facts("late"), facts("c"), facts("late")])
            found = {(type.name, type.version): type.facts for type in await other.stored_types()}
            assert (found["A", 1], found["C", 1], found["B", 2]) == (facts("b"), facts("c"), facts("b", since=6))


class TaggingContract(EventStoreCase):
    """Tags, of all that is stored, may be replaced, while nobody appends."""

    async def test_tags_are_replaced_and_nothing_else(self) -> None:
        """Events are found by the new tags alone, with their type; all else of them is as it was."""
        async with self.two_stores() as (store, other):
            assert await store.tagging() == UNTOUCHED
            await append_one(store, event("A", "x:1", "y:1"), event("B", "x:1"), event("A", "x:2"), event("A"))
            before = await history_of(store)
            begun = await store.begin_retag([A], UNTOUCHED)
            assert (len(begun.id), begun.unfinished) == (16, (A,))
            tags = [("y:1", "z:1"), ("z:1", "z:2"), ("x:1",)]
            changes = list(zip([before[0], before[2], before[3]], tags, strict=True))
            await store.write_tags(begun, changes[:2])
            await store.write_tags(begun, changes[2:])
            assert await other.tagging() == begun
            await store.end_retag(begun, [], [])
            assert await other.tagging() == Tagging(begun.id)
            now = await history_of(other)
            assert [set(found.tags) for found in now] == [{"y:1", "z:1"}, {"x:1"}, {"z:1", "z:2"}, {"x:1"}]
            assert [_untagged(found) for found in now] == [_untagged(found) for found in before]
            for reading in (store, other):
                assert await matching(reading, item(tags=["x:1"])) == [2, 4]
                assert await matching(reading, item(types=["A"], tags=["x:1"])) == [4]
                assert await matching(reading, item(tags=["x:2"])) == []
                assert await matching(reading, item(tags=["z:1"])) == [1, 3]
                assert await matching(reading, item(tags=["z:1", "y:1"])) == [1]
                assert await matching(reading, item(types=["A"])) == [1, 3, 4]

    async def test_what_was_open_appends_nothing_any_more(self) -> None:
        """From the beginning of the work on, and after it: it was decided by other tags. Reading goes on."""
        async with self.two_stores() as (store, other):
            await append_one(other, event("A", "x:1"))
            found = (await history_of(store))[-1]
            begun = await store.begin_retag([A], UNTOUCHED)
            state = ModelState("shop.Product", "1", "a", b"1")
            for refusing in (store, other):
                await expect_retagged(partial(append_one, refusing, event("B")))
                await expect_retagged(partial(refusing.append, [commit(command_id="c-1")]))
                await expect_retagged(partial(refusing.append, [commit(event(), states=[state])]))
            await store.write_tags(begun, [(found, ("y:1",))])
            await store.end_retag(begun, [], [])
            for refusing in (store, other):
                unseen = commit(event("A", "x:1"), conditions=[condition(1, ["A"], ["x:1"])])
                await expect_retagged(partial(refusing.append, [unseen]))
                assert (await refusing.head()).position == 1
            assert await store.outcome("c-1") is None

    async def test_what_was_open_prunes_nothing_and_keeps_no_states_any_more(self) -> None:
        """What has no data could not be tagged anew, and what was folded by other tags is none of anybody's."""
        async with self.history(SettableClock()) as connect:
            async with opened(connect()) as store:
                await append_one(store, event("A", "x:1"))
                at, found = await store.head(), await history_of(store)
                folded = StoredState("shop.Product", "1", "f", b"1", position=at.position)
                begun = await store.begin_retag([A], UNTOUCHED)
                for _ in ("while it lasts", "afterwards"):
                    await expect_retagged(lambda: store.prune("A", START, at.position, 10))
                    await expect_retagged(lambda: store.keep_states([folded], at))
                    assert (await history_of(store), await store.horizons()) == (found, {})
                    assert await store.model_state("shop.Product", "1") is None
                    if (await store.tagging()).unfinished:
                        await store.end_retag(begun, [], [])
            async with opened(connect()) as store:
                await store.keep_states([folded], await store.head())
                assert (await store.prune("A", START, at.position, 10)).events == 1

    async def test_what_is_opened_after_it_judges_by_the_new_tags(self) -> None:
        """Conditions find what has the tag now, and not what had it; new and old tags go together."""
        async with self.history(SettableClock()) as connect:
            async with opened(connect()) as store:
                await append_one(store, event("A", "x:1"), event("A", "x:2"))
                stored = await history_of(store)
                assert len(stored) == 2
                first, second = stored
                begun = await store.begin_retag([A], UNTOUCHED)
                await store.write_tags(begun, [(first, ("z:1",)), (second, ("x:1",))])
                await store.end_retag(begun, [], [])
            async with opened(connect()) as store:
                results = await store.append(
                    [
                        commit(event("A", "z:1"), conditions=[condition(0, ["A"], ["z:1"])]),
                        commit(event("A", "z:1"), conditions=[condition(1, ["A"], ["x:1"])]),
                        commit(event("A", "z:1", "new:1"), conditions=[condition(0, ["A"], ["x:2"])]),
                        commit(event("A", "z:1"), conditions=[condition(2, ["A"], ["z:1"])]),
                    ]
                )
                assert [type(result).__name__ for result in results] == [
                    "Conflicting",
                    "Conflicting",
                    "Appended",
                    "Conflicting",
                ]
                assert await matching(store, item(tags=["z:1"])) == [1, 3]

    async def test_work_that_was_left_is_begun_again(self) -> None:
        """Whoever begins last goes on alone; the other one, and who does not know of it, is refused."""
        async with self.two_stores() as (store, other):
            await append_one(store, event("A", "x:1"))
            found = (await history_of(store))[-1]
            left = await store.begin_retag([A], UNTOUCHED)
            await expect_retagged(lambda: other.begin_retag([A], UNTOUCHED))
            begun = await other.begin_retag([A, ("B", 2)], await other.tagging())
            assert begun.id != left.id
            assert (await store.tagging()).unfinished == (A, ("B", 2))
            await expect_retagged(lambda: store.write_tags(left, [(found, ("y:1",))]))
            await expect_retagged(lambda: store.end_retag(left, [], []))
            await other.write_tags(begun, [(found, ("z:1",))])
            assert await matching(store, item(tags=["y:1"])) == []
            await other.end_retag(begun, [], [])
            assert (await store.tagging()).unfinished == ()

    async def test_the_end_makes_facts_true_and_drops_kept_states(self) -> None:
        """Tag names and facts of the types named; states of every model but those that are said to be unaffected."""
        async with self.store() as store:
            await store.register_types([StoredType(name, 1, ("x",), facts("x")) for name in ("A", "B")])
            kept = [ModelState(model, "1", "f", b"1") for model in ("shop.Product", "shop.Till", "other.Gone")]
            (result,) = await store.append([commit(event("A"), event("B"), states=kept)])
            expect(Appended, result)
            begun = await store.begin_retag([A], UNTOUCHED)
            await store.end_retag(begun, [StoredType("A", 1, ("y",), facts("y"))], {"shop.Till"})
            assert await store.stored_types() == [
                StoredType("A", 1, ("y",), facts("y")),
                StoredType("B", 1, ("x",), facts("x")),
            ]
            assert await store.model_state("shop.Product", "1") is None
            assert await store.model_state("other.Gone", "1") is None
            assert await store.model_state("shop.Till", "1") == KeptState("f", b"1", Position(2))

    async def test_a_copy_is_tagged_as_its_original(self) -> None:
        """It takes its tagging with the first part, and then nothing that is tagged otherwise."""
        async with self.store() as store, self.store() as copy:
            await append_one(store, event("A", "x:1"), event("A", "x:2"))
            begun = await store.begin_retag([A], UNTOUCHED)
            await store.end_retag(begun, [], [])
            events, types = await history_of(store), await store.stored_types()
            begin = Place(store.history_id, START, NOWHERE)
            await copy.restore(HistoryPart(begin, events[:1], types, tagging=begun.id))
            assert await copy.tagging() == Tagging(begun.id)
            at = await copy.head()
            for tagging in (b"", unique_bytes()):
                await expect_refused(copy, HistoryPart(at, events[1:], types, tagging=tagging))
            await copy.restore(HistoryPart(at, events[1:], types, tagging=begun.id))
            await append_one(copy, event("A", "x:3"))
            await copy.begin_retag([A], Tagging(begun.id))
            await expect_refused(copy, HistoryPart(await copy.head(), tagging=begun.id))

    async def test_a_copy_that_holds_nothing_yet_takes_another_tagging(self) -> None:
        """Its original was tagged anew before anything was copied: from then on it goes by that one."""
        async with self.store() as store, self.store() as copy:
            await append_one(store, event("A", "x:1"))
            begin = Place(store.history_id, START, NOWHERE)
            await copy.restore(HistoryPart(begin))
            begun = await store.begin_retag([A], UNTOUCHED)
            await store.end_retag(begun, [], [])
            part = HistoryPart(begin, await history_of(store), await store.stored_types(), tagging=begun.id)
            await copy.restore(part)
            await append_one(copy, event("A", "x:2"))
            assert (await copy.prune("A", START, Position(1), 10)).events == 1

    async def test_appends_that_meet_the_beginning_are_done_or_refused(self) -> None:
        """Whatever is appended at the same moment: what was acknowledged is there, and before the work began."""
        async with self.two_stores() as (store, other):
            appends = [asyncio.create_task(other.append([commit(event("A", "x:1"))])) for _ in range(5)]
            begun = await store.begin_retag([A], UNTOUCHED)
            head = (await store.head()).position
            answers = await asyncio.gather(*appends, return_exceptions=True)
            done = [answer for answer in answers if isinstance(answer, list)]
            assert all(isinstance(answer, list | Retagged) for answer in answers)
            assert (await other.head()).position == head == len(done)
            await store.end_retag(begun, [], [])


def _untagged(recorded: RecordedEvent) -> RecordedEvent:
    return msgspec.structs.replace(recorded, tags=())


async def expect_retagged(call: Callable[[], Awaitable[object]]) -> None:
    """The call has to raise Retagged."""
    try:
        result = await call()
    except Retagged:
        return
    raise AssertionError(f"by another tagging it answered {result!r}")


async def expect_refused(store: EventStore, part: HistoryPart) -> None:
    """The part has to be refused for its tagging."""
    try:
        await store.restore(part)
    except HistoryDiverged as error:
        reason = str(error)
    else:
        raise AssertionError("it took a part that is tagged otherwise")
    assert "not tagged alike" in reason
