"""The event store's contract is itself proven: whichever guarantee a store breaks, a test of the contract fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.clock import Clock
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import (
    Appended,
    AppendResult,
    ChainBroken,
    Commit,
    Conflicting,
    Duplicate,
    EventStore,
    HistoryPart,
    KeptOutcome,
    KeptState,
    Pruned,
    ReadResult,
    Refused,
    StoredState,
    StoredType,
)
from diptych.event_store.pending_positions import PendingPositions
from diptych.event_store.position import START, Place, Position
from diptych.event_store.restoring import refused
from diptych.messages.unique_id import unique_bytes
from diptych.testing.contracts.event_store import EventStoreContract
from diptych.testing.contracts.event_store_case import let_others_run


class LostAppend(MemoryEventStore):
    """Acknowledges the last commit of a batch without keeping it."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        if len(commits) < 2 or not commits[-1].events or commits[-1].conditions:
            return await super().append(commits, base)
        results = await super().append(commits[:-1], base)
        head = await self.head()
        position = Position(head.position + len(commits[-1].events))
        return [*results, Appended(Place(self.history_id, position, commits[-1].events[-1].event_id), 0)]


class SwallowedConflict(MemoryEventStore):
    """Says that a loser was appended."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        results = await super().append(commits, base)
        head = await self.head()
        return [Appended(head, 0) if isinstance(result, Conflicting) else result for result in results]


class OneConflictFailsAll(MemoryEventStore):
    """Judges a batch as one: where one commit conflicts, every commit does."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        for commit in commits:
            against = self._judge(commit, PendingPositions(len(self._events), base))
            if isinstance(against, Conflicting):
                return [against for _ in commits]
        return await super().append(commits, base)


class JudgedTogether(MemoryEventStore):
    """Judges every commit of a batch before it appends any."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        judged = [self._judge(commit, PendingPositions(len(self._events), base)) for commit in commits]
        results = [against or self._carry_out(commit) for against, commit in zip(judged, commits, strict=True)]
        self._watch.wake()
        return results


class LateCommit(MemoryEventStore):
    """Shows the first event of a batch one read later than those behind it."""

    late: int | None = None

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        head = len(self._events)
        results = await super().append(commits, base)
        if len(self._events) > head + 1:
            self.late = head + 1
        return results

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        result = await super().read(query, after, limit, until=until)
        late, self.late = self.late, None
        shown = [event for event in result.events if event.position != late]
        return msgspec.structs.replace(result, events=shown)


class ReorderedRead(MemoryEventStore):
    """Gives the last two events of a read in the wrong order."""

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        result = await super().read(query, after, limit, until=until)
        result.events[-2:] = result.events[-2:][::-1]
        return result


class ReorderedBackwardRead(MemoryEventStore):
    """Reads backward what comes forward."""

    async def read_backward(self, query: EventQuery, limit: int, *, before: Position | None = None) -> ReadResult:
        result = await super().read_backward(query, limit, before=before)
        return msgspec.structs.replace(result, events=result.events[::-1])


class HalfABatch(MemoryEventStore):
    """Lets readers in between two commits of a batch."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        if base is not None:
            return await super().append(commits, base)
        results: list[AppendResult] = []
        for commit in commits:
            results += await super().append([commit])
            await let_others_run()
        return results


class HalfACommit(MemoryEventStore):
    """Leaves the first event of a commit that conflicts in the history."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        results = await super().append(commits, base)
        for commit, result in zip(commits, results, strict=True):
            if isinstance(result, Conflicting) and len(commit.events) > 1:
                self._carry_out(Commit(commit.events[:1]))
        return results


class HeadFromAnotherSnapshot(MemoryEventStore):
    """Tells of a head that was read after the events."""

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        result = await super().read(query, after, limit, until=until)
        if result.more or until is not None:
            return result
        await let_others_run()
        return msgspec.structs.replace(result, through=Position(len(self._events)))


class NeverMore(MemoryEventStore):
    """Does not say that a limit cut the read short."""

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        result = await super().read(query, after, limit, until=until)
        return msgspec.structs.replace(result, more=False)


class DuplicatedCommand(MemoryEventStore):
    """Appends again what it knows already."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        results = await super().append(commits, base)
        for index, result in enumerate(results):
            if isinstance(result, Duplicate):
                again = msgspec.structs.replace(commits[index], command_id=None)
                (results[index],) = await super().append([again], base)
        return results


class ForgetsRejections(MemoryEventStore):
    """Keeps only the outcomes of commands that were not refused."""

    def _carry_out(self, commit: Commit) -> Appended:
        keep = commit.keep and commit.rejection is None
        return super()._carry_out(msgspec.structs.replace(commit, keep=keep))


class KeepsEverything(MemoryEventStore):
    """Keeps outcomes that it was told not to keep."""

    def _carry_out(self, commit: Commit) -> Appended:
        return super()._carry_out(msgspec.structs.replace(commit, keep=True))


class KeepsStatesOfLosers(MemoryEventStore):
    """Keeps what commits leave of decision models, appended or not."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        for commit in commits:
            for state in commit.states:
                self._states[state.model, state.key] = KeptState(state.fold, state.data, (await self.head()).position)
        return await super().append(commits, base)


class KeepsStatesWithoutEvents(MemoryEventStore):
    """Keeps what a commit leaves of decision models though no event has made it."""

    def _carry_out(self, commit: Commit) -> Appended:
        result = super()._carry_out(commit)
        for state in commit.states:
            self._states[state.model, state.key] = KeptState(state.fold, state.data, result.place.position)
        return result


class StatesOfTheWholeBatch(MemoryEventStore):
    """Says of every state of a batch that it is of its last event."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        results = await super().append(commits, base)
        head = await self.head()
        for key in [(state.model, state.key) for commit in commits for state in commit.states]:
            if (kept := self._states.get(key)) is not None:
                self._states[key] = msgspec.structs.replace(kept, position=head.position)
        return results


class KeepsTheFirstState(MemoryEventStore):
    """Does not replace what is kept of a decision model."""

    def _carry_out(self, commit: Commit) -> Appended:
        new = tuple(state for state in commit.states if (state.model, state.key) not in self._states)
        return super()._carry_out(msgspec.structs.replace(commit, states=new))


class StatesByKeyAlone(MemoryEventStore):
    """Takes models for each other."""

    def _carry_out(self, commit: Commit) -> Appended:
        same = tuple(msgspec.structs.replace(state, model="shop.Product") for state in commit.states)
        return super()._carry_out(msgspec.structs.replace(commit, states=same))


class ChangedConditions(MemoryEventStore):
    """Judges other conditions than it was given."""

    def _judge(self, commit: Commit, pending: PendingPositions) -> AppendResult | None:
        return super()._judge(self._changed(commit), pending)

    def _changed(self, commit: Commit) -> Commit:
        raise NotImplementedError


class IgnoresTagOnlyConditions(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        kept = tuple(c for c in commit.conditions if c.item.types or not c.item.tags)
        return msgspec.structs.replace(commit, conditions=kept)


class IgnoresTypeOnlyConditions(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        kept = tuple(c for c in commit.conditions if c.item.tags or not c.item.types)
        return msgspec.structs.replace(commit, conditions=kept)


class IgnoresConditionsOnEverything(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        kept = tuple(c for c in commit.conditions if c.item.tags or c.item.types)
        return msgspec.structs.replace(commit, conditions=kept)


class IgnoresTypesBesideTags(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        coarse = [
            msgspec.structs.replace(c, item=msgspec.structs.replace(c.item, types=frozenset())) if c.item.tags else c
            for c in commit.conditions
        ]
        return msgspec.structs.replace(commit, conditions=tuple(coarse))


class IgnoresConditionsOfEmptyCommits(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        return commit if commit.events else msgspec.structs.replace(commit, conditions=())


class MergesConditionsAtTheEarliest(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        return merged(commit, min)


class MergesConditionsAtTheLatest(ChangedConditions):
    def _changed(self, commit: Commit) -> Commit:
        return merged(commit, max)


def merged(commit: Commit, choose: Callable[[Sequence[Position]], Position]) -> Commit:
    afters = [condition.after for condition in commit.conditions]
    changed = tuple(msgspec.structs.replace(c, after=choose(afters)) for c in commit.conditions)
    return msgspec.structs.replace(commit, conditions=changed)


class IgnoresBrokenChains(MemoryEventStore):
    """Judges a pending position by whatever is there now."""

    def _judge(self, commit: Commit, pending: PendingPositions) -> AppendResult | None:
        result = super()._judge(commit, pending)
        if isinstance(result, ChainBroken):
            return super()._judge(commit, PendingPositions(10_000, None))
        return result


class ChainsBreakTooEasily(MemoryEventStore):
    """Takes every pending position for broken."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        return await super().append(commits)


class TakesEventIdsTwice(MemoryEventStore):
    """Appends an event whose id is in the history."""

    def _judge(self, commit: Commit, pending: PendingPositions) -> AppendResult | None:
        self._event_ids.clear()
        return super()._judge(commit, pending)


class RefusalFailsAll(MemoryEventStore):
    """Refuses a whole batch for one commit's sake."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        for commit in commits:
            against = self._judge(commit, PendingPositions(len(self._events), base))
            if isinstance(against, Refused):
                return [against for _ in commits]
        return await super().append(commits, base)


class TimeRunsBackwards(MemoryEventStore):
    """Believes the clock."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        self._recorded_at_us = 0
        return await super().append(commits, base)


class NewHistoryOnOpening(MemoryEventStore):
    """Names its history anew each time."""

    async def open(self) -> None:
        await super().open()
        self._history_id = unique_bytes()


class NeverWakes(MemoryEventStore):
    """Gives up waiting at once."""

    async def wait_for_events(self, after: Position, timeout_s: float) -> bool:
        return await super().wait_for_events(after, 0.0)


class AnswersWhenClosed(MemoryEventStore):
    """Goes on telling its head after it was closed."""

    async def head(self) -> Place:
        return self._place(len(self._events))


class TagNamesChangeUnderEvents(MemoryEventStore):
    """Replaces the tag names of types that events are stored of."""

    async def register_types(self, types: Sequence[StoredType]) -> None:
        self._tag_names.update({(type.name, type.version): type.tag_names for type in types})


# ── copies ───────────────────────────────────────────────────────────────────


class OutcomesAsTheyCame(MemoryEventStore):
    """Gives outcomes in the order in which they were kept."""

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        ids = [command_id for command_id in self._outcomes if command_id > after]
        return [self._outcomes[command_id] for command_id in ids[:limit]]


class OutcomesFromTheLast(MemoryEventStore):
    """Begins a page with the outcome that the last one ended with."""

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        ids = sorted(command_id for command_id in self._outcomes if command_id >= after)
        return [self._outcomes[command_id] for command_id in ids[:limit]]


class OutcomesWithoutRefusals(MemoryEventStore):
    """Leaves out commands that were refused."""

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        return [kept for kept in await super().outcomes(after, limit) if kept.rejection is None]


class CopyUnderItsOwnId(MemoryEventStore):
    """Goes on under the id that it was made with."""

    async def restore(self, part: HistoryPart) -> None:
        own = self._history_id
        await super().restore(part)
        self._history_id = own


class ChangedParts(MemoryEventStore):
    """Writes other parts than it was given."""

    async def restore(self, part: HistoryPart) -> None:
        await super().restore(self._changed(part))

    def _changed(self, part: HistoryPart) -> HistoryPart:
        raise NotImplementedError


class CopyRecordedNow(ChangedParts):
    def _changed(self, part: HistoryPart) -> HistoryPart:
        now = self._clock.now()
        return msgspec.structs.replace(part, events=[msgspec.structs.replace(e, recorded_at=now) for e in part.events])


class CopyWithoutOutcomes(ChangedParts):
    def _changed(self, part: HistoryPart) -> HistoryPart:
        return msgspec.structs.replace(part, outcomes=())


class CopyWithoutMetadata(ChangedParts):
    def _changed(self, part: HistoryPart) -> HistoryPart:
        return msgspec.structs.replace(part, events=[msgspec.structs.replace(e, metadata=b"{}") for e in part.events])


class CopyThatFindsNothing(MemoryEventStore):
    """Leaves the events of a part out of what tags are found by."""

    async def restore(self, part: HistoryPart) -> None:
        await super().restore(part)
        self._by_tag.clear()


class CopyThatTakesEventIdsAgain(MemoryEventStore):
    """Does not know the ids of events that it did not append."""

    async def restore(self, part: HistoryPart) -> None:
        await super().restore(part)
        self._event_ids.clear()


class CopyWhoseTimeRunsBackwards(MemoryEventStore):
    """Goes on by its own clock alone."""

    async def restore(self, part: HistoryPart) -> None:
        await super().restore(part)
        self._recorded_at_us = 0


class CopyIntoWhatIsThere(MemoryEventStore):
    """Forgets what it held."""

    async def restore(self, part: HistoryPart) -> None:
        if part.after.history_id != self._history_id:
            self._events.clear()
            self._outcomes.clear()
        await super().restore(part)


class CopyBesideOutcomes(MemoryEventStore):
    """Takes itself for empty while it has outcomes alone."""

    async def restore(self, part: HistoryPart) -> None:
        if not self._events and self._history_id != part.after.history_id:
            kept, self._outcomes = self._outcomes, {}
            await super().restore(part)
            self._outcomes = kept | self._outcomes
        else:
            await super().restore(part)


class CopyFromAnyPlace(MemoryEventStore):
    """Takes every part for the next one."""

    async def restore(self, part: HistoryPart) -> None:
        if part.after.position > START and self._history_id == part.after.history_id:
            part = msgspec.structs.replace(part, after=self._place(len(self._events)))
            events = [
                msgspec.structs.replace(event, position=Position(len(self._events) + number))
                for number, event in enumerate(part.events, 1)
            ]
            part = msgspec.structs.replace(part, events=events)
        await super().restore(part)


class HalfAPart(MemoryEventStore):
    """Writes the events of a part before it looks at the outcomes."""

    async def restore(self, part: HistoryPart) -> None:
        await super().restore(msgspec.structs.replace(part, outcomes=()))
        await super().restore(HistoryPart(part.end, outcomes=part.outcomes, tagging=part.tagging))


class LastOutcomeWins(MemoryEventStore):
    """Replaces an outcome that it keeps."""

    async def restore(self, part: HistoryPart) -> None:
        for outcome in part.outcomes:
            self._outcomes.pop(outcome.command_id, None)
        await super().restore(part)


class FirstOutcomeWins(MemoryEventStore):
    """Leaves an outcome that it keeps as it is, whatever comes."""

    async def restore(self, part: HistoryPart) -> None:
        new = {outcome.command_id: outcome for outcome in part.outcomes if outcome.command_id not in self._outcomes}
        await super().restore(msgspec.structs.replace(part, outcomes=list(new.values())))


class EveryOutcomeOnce(MemoryEventStore):
    """Refuses a part with an outcome that it keeps already."""

    async def restore(self, part: HistoryPart) -> None:
        if any(outcome.command_id in self._outcomes for outcome in part.outcomes):
            raise refused("once is enough")
        await super().restore(part)


class NothingIsNoCopy(MemoryEventStore):
    """Does nothing where there is nothing to write."""

    async def restore(self, part: HistoryPart) -> None:
        if part.events or part.outcomes:
            await super().restore(part)


class RegisteredTypesStay(MemoryEventStore):
    """Keeps the tag names that it knew before it became a copy."""

    async def restore(self, part: HistoryPart) -> None:
        known = dict(self._tag_names)
        await super().restore(part)
        self._tag_names |= known


class PrunedWhole(MemoryEventStore):
    """Drops the metadata with the data."""

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        found = await super().prune(type, after, until, limit)
        self._events = [one if one.data else msgspec.structs.replace(one, metadata=b"") for one in self._events]
        return found


class PrunedFurther(MemoryEventStore):
    """Drops the data of the next event as well."""

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        found = await super().prune(type, after, Position(until + 1), limit)
        return msgspec.structs.replace(found, through=min(until, found.through))


class HorizonGoesBack(MemoryEventStore):
    """Takes the last one for the furthest."""

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        self._horizons.pop(type, None)
        return await super().prune(type, after, until, limit)


class HorizonComesLast(MemoryEventStore):
    """Says that there is a horizon once everything is done."""

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        found = await super().prune(type, after, until, limit)
        if found.through < until:
            del self._horizons[type]
        return found


class FoldedWins(MemoryEventStore):
    """Keeps what was folded, whatever is kept."""

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        for state in states:
            self._states.pop((state.model, state.key), None)
        await super().keep_states(states, at)


class FoldedAnywhere(MemoryEventStore):
    """Does not ask of which history it was folded."""

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        await super().keep_states(states, await self.head())


class StatesAsTheyCame(MemoryEventStore):
    """Lists states in the order in which they were kept."""

    async def model_states(self, after: tuple[str, str], limit: int) -> list[StoredState]:
        names = list(self._states)
        begin = names.index(after) + 1 if after in names else 0
        found = [(name, self._states[name]) for name in names[begin : begin + limit]]
        return [StoredState(*name, kept.fold, kept.data, position=kept.position) for name, kept in found]


BROKEN = [
    (PrunedWhole, "test_pruned_events_keep_everything_but_their_data"),
    (PrunedFurther, "test_pruned_events_keep_everything_but_their_data"),
    (HorizonGoesBack, "test_the_horizon_is_known_before_the_last_page_and_never_goes_back"),
    (HorizonComesLast, "test_the_horizon_is_known_before_the_last_page_and_never_goes_back"),
    (FoldedWins, "test_what_was_folded_beside_commits_is_kept_where_nothing_later_is"),
    (FoldedAnywhere, "test_what_was_folded_from_another_history_is_not_kept"),
    (StatesAsTheyCame, "test_all_states_are_listed_in_pages"),
    (LostAppend, "test_a_reader_never_sees_half_a_batch_nor_a_gap"),
    (SwallowedConflict, "test_a_stale_commit_leaves_its_neighbours_alone"),
    (OneConflictFailsAll, "test_a_stale_commit_leaves_its_neighbours_alone"),
    (JudgedTogether, "test_a_later_commit_of_a_batch_sees_the_earlier_ones"),
    (LateCommit, "test_a_reader_never_sees_half_a_batch_nor_a_gap"),
    (ReorderedRead, "test_a_forward_read_gives_what_matches_in_order"),
    (ReorderedBackwardRead, "test_a_backward_read_gives_what_matches_from_the_last"),
    (HalfABatch, "test_a_reader_never_sees_half_a_batch_nor_a_gap"),
    (HalfACommit, "test_a_stale_commit_leaves_its_neighbours_alone"),
    (HeadFromAnotherSnapshot, "test_a_reader_never_sees_half_a_batch_nor_a_gap"),
    (NeverMore, "test_reading_on_from_through_misses_nothing"),
    (DuplicatedCommand, "test_a_command_id_has_one_effect"),
    (ForgetsRejections, "test_a_rejection_is_kept_where_asked"),
    (KeepsEverything, "test_a_rejection_is_kept_where_asked"),
    (KeepsStatesOfLosers, "test_what_is_not_appended_leaves_no_state"),
    (KeepsStatesWithoutEvents, "test_an_outcome_without_events_leaves_no_state"),
    (StatesOfTheWholeBatch, "test_of_one_batch_the_last_state_counts"),
    (KeepsTheFirstState, "test_a_state_is_kept_with_the_events_that_made_it"),
    (StatesByKeyAlone, "test_a_state_is_kept_with_the_events_that_made_it"),
    (IgnoresTagOnlyConditions, "test_a_condition_breaks_on_a_later_match_only"),
    (IgnoresTypeOnlyConditions, "test_a_condition_breaks_on_a_later_match_only"),
    (IgnoresConditionsOnEverything, "test_a_condition_on_everything_breaks_on_any_event"),
    (IgnoresTypesBesideTags, "test_a_condition_breaks_on_a_later_match_only"),
    (IgnoresConditionsOfEmptyCommits, "test_a_commit_without_events_is_judged_at_the_head"),
    (MergesConditionsAtTheEarliest, "test_each_condition_is_judged_after_its_own_position"),
    (MergesConditionsAtTheLatest, "test_each_condition_is_judged_after_its_own_position"),
    (IgnoresBrokenChains, "test_a_chain_breaks_whatever_took_the_pending_position"),
    (ChainsBreakTooEasily, "test_a_chain_is_appended_whole"),
    (TakesEventIdsTwice, "test_a_stored_event_id_refuses_its_commit_alone"),
    (RefusalFailsAll, "test_a_stored_event_id_refuses_its_commit_alone"),
    (TimeRunsBackwards, "test_recorded_time_never_runs_backwards"),
    (NewHistoryOnOpening, "test_the_history_keeps_its_id_and_its_events"),
    (NeverWakes, "test_an_append_wakes_those_who_wait"),
    (AnswersWhenClosed, "test_a_closed_store_says_so"),
    (TagNamesChangeUnderEvents, "test_tag_names_are_facts_once_an_event_is_stored"),
    (OutcomesAsTheyCame, "test_outcomes_come_in_the_order_of_their_ids"),
    (OutcomesFromTheLast, "test_outcomes_come_in_the_order_of_their_ids"),
    (OutcomesWithoutRefusals, "test_outcomes_come_in_the_order_of_their_ids"),
    (CopyUnderItsOwnId, "test_a_copy_is_the_same_history"),
    (CopyRecordedNow, "test_a_copy_is_the_same_history"),
    (CopyWithoutOutcomes, "test_a_copy_is_the_same_history"),
    (CopyWithoutMetadata, "test_a_copy_is_the_same_history"),
    (CopyThatFindsNothing, "test_events_of_a_copy_are_found_by_type_and_tag"),
    (CopyThatTakesEventIdsAgain, "test_a_copy_goes_on_as_the_original_would"),
    (CopyWhoseTimeRunsBackwards, "test_a_copy_goes_on_as_the_original_would"),
    (CopyIntoWhatIsThere, "test_only_an_empty_store_becomes_a_copy"),
    (CopyBesideOutcomes, "test_only_an_empty_store_becomes_a_copy"),
    (CopyFromAnyPlace, "test_a_part_goes_on_where_the_copy_ends"),
    (HalfAPart, "test_a_part_that_contradicts_itself_is_refused"),
    (LastOutcomeWins, "test_a_kept_outcome_is_never_replaced"),
    (FirstOutcomeWins, "test_a_kept_outcome_is_never_replaced"),
    (EveryOutcomeOnce, "test_outcomes_may_come_again"),
    (NothingIsNoCopy, "test_a_part_without_anything_makes_a_copy"),
    (RegisteredTypesStay, "test_types_are_facts_only_in_a_copy"),
]
"""What is broken, and the test that has to notice."""


def contract_over(store_type: type[MemoryEventStore]) -> EventStoreContract:
    class Contract(EventStoreContract):
        shares_history = False

        @asynccontextmanager
        async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
            store = store_type(clock)
            yield lambda: store

    return Contract()


def failing_tests(contract: EventStoreContract) -> list[str]:
    """Names of the contract's tests that end in an AssertionError; any other error comes out."""
    failed: list[str] = []
    for name in dir(contract):
        if name.startswith("test_"):
            try:
                asyncio.run(getattr(contract, name)())
            except AssertionError:
                failed.append(name)
    return failed


def test_the_contract_has_no_objection_to_the_store_that_the_broken_ones_derive_from() -> None:
    """What the broken stores fail on is what they break, and nothing else."""
    assert failing_tests(contract_over(MemoryEventStore)) == []


@pytest.mark.parametrize(("store_type", "noticed_by"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_store_fails_the_contract(store_type: type[MemoryEventStore], noticed_by: str) -> None:
    """Each broken guarantee is noticed by the test that is named for it."""
    assert noticed_by in failing_tests(contract_over(store_type))
