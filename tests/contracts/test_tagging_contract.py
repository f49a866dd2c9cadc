"""The contract on facts and taggings is itself proven: whichever guarantee a store breaks, a test of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.clock import Clock
from diptych.event_store.event_store import (
    AppendResult,
    Commit,
    EventStore,
    HistoryPart,
    Pruned,
    StoredState,
    StoredType,
    TypeFacts,
)
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.tagging import Tagging
from diptych.testing.contracts.event_store_taggings import FactsContract, TaggingContract

Changes = Sequence[tuple[RecordedEvent, tuple[str, ...]]]


class AppendsByOldTags(MemoryEventStore):
    """Does not compare what it was opened under with what is there."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        self._opened_under = self._tagging.id
        return await super().append(commits, base)


class PrunesByOldTags(MemoryEventStore):
    """Prunes, whatever it was opened under."""

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        self._opened_under = self._tagging.id
        return await super().prune(type, after, until, limit)


class KeepsStatesByOldTags(MemoryEventStore):
    """Keeps states, whatever it was opened under."""

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        self._opened_under = self._tagging.id
        await super().keep_states(states, at)


class AppendsAfterTheWork(MemoryEventStore):
    """Goes on as soon as the work is done."""

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        await super().end_retag(tagging, types, unaffected)
        self._opened_under = tagging.id


class TellsOfNewTagsOnly(MemoryEventStore):
    """Gives the events other tags, by which they are not found."""

    async def write_tags(self, tagging: Tagging, changes: Changes) -> None:
        before = {tag: list(found) for tag, found in self._by_tag.items()}
        await super().write_tags(tagging, changes)
        self._by_tag.clear()
        self._by_tag.update(before)


class ChangesMore(MemoryEventStore):
    """Records the time at which an event was tagged."""

    async def write_tags(self, tagging: Tagging, changes: Changes) -> None:
        changed = [(msgspec.structs.replace(event, metadata=b'{"actor":"me"}'), tags) for event, tags in changes]
        await super().write_tags(tagging, changed)


class TwoAtOnce(MemoryEventStore):
    """Lets whoever began first go on beside whoever began last."""

    async def write_tags(self, tagging: Tagging, changes: Changes) -> None:
        del tagging
        await super().write_tags(self._tagging, changes)


class BeginsAnyway(MemoryEventStore):
    """Begins, whatever the caller knows."""

    async def begin_retag(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        del instead_of
        return await super().begin_retag(types, self._tagging)


class KeepsStates(MemoryEventStore):
    """Leaves kept states where they are."""

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        await super().end_retag(tagging, types, {model for model, _ in self._states})


class DropsAllStates(MemoryEventStore):
    """Drops more than it has to."""

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        await super().end_retag(tagging, types, ())


class OldNamesStay(MemoryEventStore):
    """Leaves the facts as they were."""

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        await super().end_retag(tagging, (), unaffected)


class NeverEnds(MemoryEventStore):
    """Stays as it was when the work began."""

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        await super().end_retag(tagging, types, unaffected)
        self._tagging = tagging


class CopyTaggedAnyhow(MemoryEventStore):
    """Takes parts however they are tagged."""

    async def restore(self, part: HistoryPart) -> None:
        self._tagging = Tagging(part.tagging)
        await super().restore(part)


class CopyUntouched(MemoryEventStore):
    """Does not take the tagging of its original."""

    async def restore(self, part: HistoryPart) -> None:
        await super().restore(part)
        self._tagging = Tagging()


class FactsOfTheFirst(MemoryEventStore):
    """Keeps the facts that were registered first."""

    async def register_types(self, types: Sequence[StoredType]) -> None:
        known = dict(self._facts)
        await super().register_types(types)
        self._facts |= known


class FactsFilledIn(MemoryEventStore):
    """Takes the facts that are registered for those of what is stored."""

    async def register_types(self, types: Sequence[StoredType]) -> None:
        await super().register_types(types)
        for type in types:
            if self._facts.get((type.name, type.version)) is None:
                self._facts[type.name, type.version] = type.facts


class FactsOfTheLast(MemoryEventStore):
    """Replaces facts that another has replaced."""

    async def keep_facts(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        for type, facts in zip(before, after, strict=True):
            self._facts[type.name, type.version] = facts


class FactsTogether(MemoryEventStore):
    """Replaces all, or none."""

    async def keep_facts(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        if all(self._facts.get((type.name, type.version)) == type.facts for type in before):
            await super().keep_facts(before, after)


BROKEN: Sequence[tuple[type[MemoryEventStore], str]] = [
    (AppendsByOldTags, "test_what_was_open_appends_nothing_any_more"),
    (AppendsAfterTheWork, "test_what_was_open_appends_nothing_any_more"),
    (PrunesByOldTags, "test_what_was_open_prunes_nothing_and_keeps_no_states_any_more"),
    (KeepsStatesByOldTags, "test_what_was_open_prunes_nothing_and_keeps_no_states_any_more"),
    (TellsOfNewTagsOnly, "test_tags_are_replaced_and_nothing_else"),
    (ChangesMore, "test_tags_are_replaced_and_nothing_else"),
    (TwoAtOnce, "test_work_that_was_left_is_begun_again"),
    (BeginsAnyway, "test_work_that_was_left_is_begun_again"),
    (KeepsStates, "test_the_end_makes_facts_true_and_drops_kept_states"),
    (DropsAllStates, "test_the_end_makes_facts_true_and_drops_kept_states"),
    (OldNamesStay, "test_the_end_makes_facts_true_and_drops_kept_states"),
    (NeverEnds, "test_tags_are_replaced_and_nothing_else"),
    (CopyTaggedAnyhow, "test_a_copy_is_tagged_as_its_original"),
    (CopyUntouched, "test_a_copy_is_tagged_as_its_original"),
    (FactsOfTheFirst, "test_facts_are_kept_with_the_first_event"),
    (FactsFilledIn, "test_facts_are_kept_with_the_first_event"),
    (FactsOfTheLast, "test_facts_are_replaced_where_they_are_as_before"),
    (FactsTogether, "test_facts_are_replaced_where_they_are_as_before"),
]
"""What is broken, and the test that has to notice."""


@pytest.mark.parametrize(("store_type", "noticed_by"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_store_fails_the_contract(store_type: type[MemoryEventStore], noticed_by: str) -> None:
    """Each broken guarantee is noticed by the test that is named for it."""

    class Contract(FactsContract, TaggingContract):
        shares_history = False

        @asynccontextmanager
        async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
            store = store_type(clock)
            yield lambda: store

    with pytest.raises(AssertionError):
        asyncio.run(getattr(Contract(), noticed_by)())
