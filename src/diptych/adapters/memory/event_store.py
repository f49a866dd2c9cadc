"""The event store in memory: the smallest correct one, to read first, and for tests and first steps.

A list of events, and beside it, for every tag and every type, the ascending list of positions where it occurs. Nothing
here awaits between looking and changing, and an event loop runs one thing at a time: that is the append section.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from diptych.adapters.memory.inline_rows import InlineStep
from diptych.adapters.memory.own_tables import OwnTables, own_tables_in
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.clock import Clock
from diptych.errors import ConfigurationError, StoreClosed
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import (
    Appended,
    AppendResult,
    ChainBroken,
    Commit,
    Conflicting,
    Duplicate,
    HistoryPart,
    KeptOutcome,
    KeptState,
    ModelsChanged,
    Pruned,
    ReadResult,
    Refused,
    StoredState,
    StoredType,
    TypeFacts,
)
from diptych.event_store.head_watch import HeadWatch
from diptych.event_store.model_unions import NONE_KEPT, ModelUnion, ModelUnions, new_mark
from diptych.event_store.pending_positions import PendingPositions
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.refusal import refusal
from diptych.event_store.restoring import check_folded, check_outcomes, check_part, check_places, refused
from diptych.event_store.tagging import UNTOUCHED, Tagging, check_tagging
from diptych.event_store.timestamp import moment, to_microseconds
from diptych.event_store.transactions import Lending, Work
from diptych.messages.unique_id import unique_bytes
from diptych.read_side.inline_rows import Appending, InlineFold
from diptych.read_side.read_store import ReadStore

__all__ = ["MemoryEventStore", "MemoryEventStoreBesideTables", "connect"]


def connect(url: str, clock: Clock) -> MemoryEventStore:
    """A new, empty store for `memory:`.

    `memory:?own_tables=<name>` lends handlers SQLite's database in memory of that name, `file:/<name>?vfs=memdb`.

    Raises:
        ConfigurationError: something else follows the colon; stores in memory have no names.
    """
    name = own_tables_in(url)
    return MemoryEventStore(clock) if name is None else MemoryEventStoreBesideTables(clock, OwnTables(name))


class MemoryEventStore:
    """Keeps one history while it lives; closing and opening it again loses nothing."""

    def __init__(self, clock: Clock) -> None:
        """Make an empty history. `clock` tells when events are recorded."""
        self._clock = clock
        self._history_id = unique_bytes()
        self._open = False
        self._events: list[RecordedEvent] = []
        self._recorded_at_us = 0
        self._event_ids: set[bytes] = set()
        self._by_tag: defaultdict[str, list[int]] = defaultdict(list)
        self._by_type: defaultdict[str, list[int]] = defaultdict(list)
        self._outcomes: dict[str, KeptOutcome] = {}
        self._states: dict[tuple[str, str], KeptState] = {}
        self._horizons: dict[str, Position] = {}
        self._tag_names: dict[tuple[str, int], tuple[str, ...]] = {}
        self._facts: dict[tuple[str, int], TypeFacts | None] = {}
        self._models = NONE_KEPT
        self._tagging = UNTOUCHED
        self._opened_under = b""
        self._held_types: set[tuple[str, int]] = set()
        self._watch = HeadWatch()
        self._inline: InlineStep | None = None

    @property
    def durable(self) -> bool:
        """False: the history ends with the process."""
        return False

    @property
    def may_fork(self) -> bool:
        """False."""
        return False

    @property
    def forks(self) -> int:
        """0: nobody else has it."""
        return 0

    @property
    def history_id(self) -> bytes:
        """16 bytes, made with the store."""
        self._check_open()
        return self._history_id

    async def open(self) -> None:
        """Take calls from now on."""
        if not self._open:
            self._opened_under = self._tagging.id
        self._open = True

    async def close(self) -> None:
        """Take no more calls. The events stay, should it be opened again."""
        self._open = False
        self._watch.wake()

    # ── append ───────────────────────────────────────────────────────────────

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        """Judge and append commits one after the other."""
        self._check_open()
        pending = self._begin_append(base)
        before = len(self._events)
        results: list[AppendResult] = []
        for commit in commits:
            result = self._judge(commit, pending) or self._carry_out(commit)
            pending.note(len(commit.events), appended=isinstance(result, Appended))
            results.append(result)
        self._appended(before)
        return results

    def _appended(self, before: int) -> None:
        if self._inline is not None and len(self._events) > before:
            self._inline(Appending(self._place(before), self._events[before:]))
        self._watch.wake()

    def fold_inline(self, rows: ReadStore, fold: InlineFold) -> None:
        """Have every append move these read models on. See `FoldsInline`.

        Raises:
            ConfigurationError: the rows are not in memory.
        """
        if not isinstance(rows, MemoryReadStore):
            raise ConfigurationError(
                "inline read models are where the events are, in memory, and the read store is not: leave read_store= "
                "out, or keep the events in its database"
            )
        self._inline = InlineStep(fold, rows, self)

    def _begin_append(self, base: Position | None = None) -> PendingPositions:
        check_tagging(self._tagging.id, self._opened_under)
        self._recorded_at_us = max(self._recorded_at_us, to_microseconds(self._clock.now()))
        return PendingPositions(len(self._events), base)

    def _judge(self, commit: Commit, pending: PendingPositions) -> AppendResult | None:
        """What stands against the commit; None where nothing does."""
        if commit.models and commit.models != self._models.mark:
            return ModelsChanged()
        if commit.command_id is not None and (kept := self._outcomes.get(commit.command_id)) is not None:
            return Duplicate(kept)
        if reason := refusal(commit):
            return Refused(reason)
        if not all(pending.came_about(condition.after) for condition in commit.conditions):
            return ChainBroken()
        for condition in commit.conditions:
            for position in self._matching(condition.item, condition.after, len(self._events)):
                return Conflicting(condition.item, Position(position))
        for event in commit.events:
            if event.event_id in self._event_ids:
                return Refused(f"event {event.type!r}: an event with the id {event.event_id.hex()} is stored already")
        return None

    def _carry_out(self, commit: Commit) -> Appended:
        recorded_at = moment(self._recorded_at_us)
        for event in commit.events:
            position = Position(len(self._events) + 1)
            self._add(
                RecordedEvent(
                    position,
                    event.event_id,
                    event.type,
                    event.version,
                    event.data,
                    event.tags,
                    event.metadata,
                    recorded_at,
                )
            )
        place = self._place(len(self._events))
        if commit.keep and commit.command_id is not None:
            self._outcomes[commit.command_id] = KeptOutcome(
                commit.command_id, commit.payload_hash, place, len(commit.events), commit.rejection
            )
        if commit.events:
            for state in commit.states:
                self._states[state.model, state.key] = KeptState(state.fold, state.data, place.position)
        return Appended(place, self._recorded_at_us)

    def _add(self, event: RecordedEvent) -> None:
        self._events.append(event)
        self._event_ids.add(event.event_id)
        self._held_types.add((event.type, event.version))
        self._by_type[event.type].append(event.position)
        for tag in event.tags:
            self._by_tag[tag].append(event.position)

    # ── copies ───────────────────────────────────────────────────────────────

    async def restore(self, part: HistoryPart) -> None:
        """Write a part of another store's history as it is, or raise and do nothing."""
        self._check_open()
        last_us = to_microseconds(self._events[-1].recorded_at) if self._events else 0
        empty = not self._events and not self._outcomes
        check_part(part, self._place(len(self._events)), last_us, self._tagging, empty=empty)
        check_places(part, {position: self._place(position).event_id for position in part.earlier_places()})
        missing = check_outcomes(part, self._outcomes)
        for event in part.events:
            if event.event_id in self._event_ids:
                raise refused(f"an event with the id {event.event_id.hex()} is stored already")
        self._history_id = part.after.history_id
        self._tagging = Tagging(part.tagging)
        self._opened_under = part.tagging
        self._recorded_at_us = max(self._recorded_at_us, part.recorded_at_us)
        await self.register_types(part.types)
        for event in part.events:
            self._add(event)
        self._outcomes |= {outcome.command_id: outcome for outcome in missing}
        self._watch.wake()

    # ── read ─────────────────────────────────────────────────────────────────

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        """Matching events after a position, forward."""
        self._check_open()
        through = Position(len(self._events) if until is None else min(until, len(self._events)))
        events, more = self._take(self._matching_any(query, after, through), limit)
        if more:
            through = events[-1].position if events else after
        return ReadResult(events, through, more)

    async def read_backward(self, query: EventQuery, limit: int, *, before: Position | None = None) -> ReadResult:
        """Matching events before a position, the last first."""
        self._check_open()
        head = len(self._events)
        last = head if before is None else min(before - 1, head)
        events, more = self._take(self._matching_any(query, 0, last, backward=True), limit)
        return ReadResult(events, Position(head), more)

    def _take(self, positions: Iterator[int], limit: int) -> tuple[list[RecordedEvent], bool]:
        events: list[RecordedEvent] = []
        for position in positions:
            if len(events) == limit:
                return events, True
            events.append(self._events[position - 1])
        return events, False

    def _matching_any(self, query: EventQuery, after: int, until: int, *, backward: bool = False) -> Iterator[int]:
        found = [self._matching(item, after, until, backward=backward) for item in query.items]
        return _each_once(heapq.merge(*found, reverse=backward))

    def _matching(self, item: QueryItem, after: int, until: int, *, backward: bool = False) -> Iterator[int]:
        """Positions in (after, until] of the events that the item matches, in order."""
        if item.tags:
            rarest = min((self._by_tag.get(tag, []) for tag in item.tags), key=len)
            between = _between(rarest, after, until, backward=backward)
            return (p for p in between if item.matches(self._events[p - 1].type, self._events[p - 1].tags))
        if item.types:
            lists = (self._by_type.get(type, []) for type in item.types)
            return heapq.merge(*(_between(p, after, until, backward=backward) for p in lists), reverse=backward)
        return iter(range(until, after, -1) if backward else range(after + 1, until + 1))

    # ── places ───────────────────────────────────────────────────────────────

    async def head(self) -> Place:
        """The place of the last event."""
        self._check_open()
        return self._place(len(self._events))

    async def place_at(self, position: Position) -> Place | None:
        """The place at a position; None past the head."""
        self._check_open()
        return self._place(position) if 0 <= position <= len(self._events) else None

    async def outcome(self, command_id: str) -> KeptOutcome | None:
        """What is kept under a command id."""
        self._check_open()
        return self._outcomes.get(command_id)

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        """Kept outcomes of the first command ids behind one."""
        self._check_open()
        ids = heapq.nsmallest(limit, (command_id for command_id in self._outcomes if command_id > after))
        return [self._outcomes[command_id] for command_id in ids]

    async def wait_for_events(self, after: Position, timeout_s: float) -> bool:
        """Wait until the head is past a position."""
        self._check_open()
        deadline = time.monotonic() + timeout_s
        while len(self._events) <= after:
            if not await self._watch.wait(deadline - time.monotonic()):
                return False
            self._check_open()
        return True

    # ── states ───────────────────────────────────────────────────────────────

    async def model_state(self, model: str, key: str) -> KeptState | None:
        """What is kept of a decision model."""
        self._check_open()
        return self._states.get((model, key))

    async def model_states(self, after: tuple[str, str], limit: int) -> list[StoredState]:
        """What is kept of decision models, in pages."""
        self._check_open()
        names = heapq.nsmallest(limit, (name for name in self._states if name > after))
        found = [(name, self._states[name]) for name in names]
        return [StoredState(*name, kept.fold, kept.data, position=kept.position) for name, kept in found]

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        """Keep states that were folded from the history."""
        check_folded(at, await self.place_at(at.position))
        check_tagging(self._tagging.id, self._opened_under)
        for state in states:
            name = (state.model, state.key)
            kept = self._states.get(name)
            if kept is None or kept.position < state.position or kept.fold != state.fold:
                self._states[name] = KeptState(state.fold, state.data, state.position)

    # ── pruning ──────────────────────────────────────────────────────────────

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        """Drop the data of a type's events."""
        self._check_open()
        check_tagging(self._tagging.id, self._opened_under)
        positions = list(islice(_between(self._by_type.get(type, []), after, until), limit))
        self._horizons[type] = max(until, self._horizons.get(type, until))
        whole = [position for position in positions if self._events[position - 1].data]
        for position in whole:
            self._events[position - 1] = msgspec.structs.replace(self._events[position - 1], data=b"")
        return Pruned(Position(positions[-1]) if len(positions) == limit else until, len(whole))

    async def horizons(self) -> Mapping[str, Position]:
        """Up to where events have no data any more, by stored type."""
        self._check_open()
        return dict(self._horizons)

    # ── types ────────────────────────────────────────────────────────────────

    async def stored_types(self) -> list[StoredType]:
        """Types and versions that events are stored of, by name and version."""
        self._check_open()
        held = sorted(self._held_types)
        return [StoredType(*each, self._tag_names.get(each, ()), self._facts.get(each)) for each in held]

    async def register_types(self, types: Sequence[StoredType]) -> None:
        """Remember tag names and facts; what is known of a type that events are stored of stays."""
        self._check_open()
        for type in types:
            if (type.name, type.version) in self._held_types:
                self._tag_names.setdefault((type.name, type.version), type.tag_names)
            else:
                self._tag_names[type.name, type.version] = type.tag_names
                self._facts[type.name, type.version] = type.facts

    async def keep_facts(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        """Replace the facts of types that are still as before."""
        self._check_open()
        for type, facts in zip(before, after, strict=True):
            if self._facts.get((type.name, type.version)) == type.facts:
                self._facts[type.name, type.version] = facts

    async def stored_models(self) -> ModelUnions:
        """What is kept of models."""
        self._check_open()
        return self._models

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        """Keep these under another mark, where that one is still there."""
        self._check_open()
        if self._models.mark != instead_of:
            return False
        kept = {**self._models.by_name(), **{model.name: model for model in models}}
        self._models = ModelUnions(new_mark(), tuple(kept[name] for name in sorted(kept)))
        return True

    # ── tags anew ────────────────────────────────────────────────────────────

    async def tagging(self) -> Tagging:
        """How events are tagged now."""
        self._check_open()
        return self._tagging

    async def begin_retag(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        """Keep this store from appending until it is opened again, and applications from opening."""
        self._check_open()
        check_tagging(self._tagging.id, instead_of.id)
        self._tagging = Tagging(unique_bytes(), tuple(types))
        return self._tagging

    async def write_tags(self, tagging: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]) -> None:
        """Give events other tags."""
        self._check_open()
        check_tagging(self._tagging.id, tagging.id)
        for event, tags in changes:
            for gone in set(event.tags) - set(tags):
                self._by_tag[gone].remove(event.position)
            for new in set(tags) - set(event.tags):
                insort(self._by_tag[new], event.position)
            self._events[event.position - 1] = msgspec.structs.replace(event, tags=tags)

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        """Make tag names and facts true, and drop kept states but for those of the models named."""
        self._check_open()
        check_tagging(self._tagging.id, tagging.id)
        for type in types:
            self._tag_names[type.name, type.version] = type.tag_names
            self._facts[type.name, type.version] = type.facts
        self._states = {key: state for key, state in self._states.items() if key[0] in unaffected}
        self._tagging = Tagging(tagging.id)

    def _place(self, position: int) -> Place:
        event_id = self._events[position - 1].event_id if position else NOWHERE
        return Place(self._history_id, Position(position), event_id)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosed("the event store in memory is not open")


class MemoryEventStoreBesideTables(MemoryEventStore):
    """Keeps a history, and lends its handlers a database in memory for tables of their own."""

    def __init__(self, clock: Clock, tables: OwnTables) -> None:
        """Make an empty history. `tables` is the database that is lent."""
        super().__init__(clock)
        self._tables = tables

    @property
    def lending(self) -> Lending:
        """Connections of the standard library, on a thread."""
        return self._tables.lending

    async def open(self) -> None:
        """Take calls from now on.

        Raises:
            StoreUnavailable: this Python's SQLite shares no database in memory.
        """
        self._tables.open()
        await super().open()

    async def close(self) -> None:
        """Take no more calls, and wait for handlers under way. Events stay, and tables that others have open."""
        await super().close()
        await self._tables.close()

    async def transact(self, work: Work, lane: str = "") -> AppendResult:  # noqa: ARG002 - there is one connection
        """Do work in a transaction of the tables, append what it comes to, and commit; others append meanwhile.

        Raises:
            StoreUnavailable: another connection to the tables stays in the way; nothing was done.
            TransactionMisused: the work ended the transaction.
            Overloaded: the work took too long.
        """
        self._check_open()
        return await self._tables.transact(work, self._append_beside)

    def _append_beside(self, commit: Commit, commit_tables: Callable[[], object]) -> AppendResult:
        if result := self._judge(commit, self._begin_append()):
            return result
        commit_tables()
        before = len(self._events)
        appended = self._carry_out(commit)
        self._appended(before)
        return appended


def _between(positions: Sequence[int], after: int, until: int, *, backward: bool = False) -> Iterator[int]:
    span = range(bisect_right(positions, after), bisect_right(positions, until))
    return map(positions.__getitem__, reversed(span) if backward else span)


def _each_once(positions: Iterable[int]) -> Iterator[int]:
    """Leave out repetitions; the positions come in order."""
    last = 0
    for position in positions:
        if position != last:
            yield position
        last = position
