"""Pruning: the data of old events are dropped where nobody folds them any more (rule 19).

Position, id, type, tags and time stay, so that order, conditions, tokens and outcomes know no difference. What is lost
is what the events said: so it is refused while anything could come to ask.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import TYPE_CHECKING

import msgspec

from diptych.errors import ConfigurationError, HistoryDiverged
from diptych.event_store.digest import Moved
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.event_store import EventStore, StoredState
from diptych.event_store.history import History
from diptych.event_store.position import START, Place, Position
from diptych.messages.event import Event
from diptych.messages.identity import tag_name
from diptych.write_side.decision_model import Folded, ModelFold
from diptych.write_side.known_models import CodedModels
from diptych.write_side.left_states import kept
from diptych.write_side.state_form import key_of

if TYPE_CHECKING:
    from diptych.event_store.recorded_event import RecordedEvent
    from diptych.write_side.command_handler import ModelKey

__all__ = ["PruneReport", "Pruning"]

PRUNE_PAGE_EVENTS = 1_000
"""Events of a type that are gone through in one transaction."""
KNOWN_MODELS_MAX = 10_000
"""Models of which is known up to where they are kept; past it all are looked up again."""
STATES_MAX = 16
"""States of models that are kept in one transaction: as many of the largest as a commit may carry."""
FOLD_PAGE_EVENTS = 1_000
"""Events of one model that are read at once."""


class PruneReport(msgspec.Struct, frozen=True):
    """What was done, or would be.

    Attributes:
        until: the position up to which it was done.
        pruned: by stored type, how many events had data until then.
        states: how many state-stored models nobody had changed since they were made so; their states are kept now.
    """

    until: Position
    pruned: Mapping[str, int]
    states: int


class Pruning:
    """Prunes one history. Made by the application.

    Args:
        store: the history.
        history: reads it.
        models: that are folded from its events, each with the context whose handlers are decided on it.
        followers: what else folds them, with the stored names of those: all in the application, in whichever order
            of them it does.
    """

    def __init__(
        self,
        store: EventStore,
        history: History,
        models: Sequence[tuple[str, ModelFold]],
        followers: Sequence[tuple[str, frozenset[str]]],
    ) -> None:
        self._store = store
        self._history = history
        self._models = {fold: fold.stored_names for _, fold in models}
        self._coded = CodedModels(models)
        self._followers = followers

    async def prune(
        self, *events: type[Event], before: datetime, dry_run: bool = False, moved: Moved | None = None
    ) -> PruneReport:
        """Drop the data of all events of these classes that were recorded before a time.

        First every state-stored model that they have gone into is kept, where it is not yet. It may be stopped at any
        time, and run again.

        Args:
            events: the classes, at least one.
            before: a time with its zone.
            dry_run: count only.
            moved: told how many positions are gone through, of how many: once to look, and once for each stored name.

        Raises:
            ConfigurationError: something folds them that has to begin with the first event: an event-sourced model,
                with snapshots or without, a process, a projection, or a subscriber; with what.
                Or newer code's model folds more than the state-stored one of this code.
            NotGranted: this role changes nothing of the history.
            HistoryDiverged: the history has turned out to be another one meanwhile.
        """
        if before.tzinfo is None:
            raise ConfigurationError("before= has no time zone: write datetime.now(UTC), or the like")
        types = self._checked(events)
        at = await self._last_before(before)
        forks, counts = self._store.forks, dict.fromkeys(types, 0)
        moved = moved or (lambda done, of: None)
        if dry_run:
            async for recorded in self._of(types, at.position):
                counts[recorded.type] += bool(recorded.data)
                moved(recorded.position, at.position)
            return PruneReport(at.position, counts, 0)
        await self._check_known(types)  # after the place: whatever is up to it was registered before
        whole = at.position * (1 + len(types))
        states = await self._keep_states(types, at, lambda done, _: moved(done, whole))
        for number, name in enumerate(types, 1):
            after = START
            while after < at.position:
                if self._store.forks != forks:
                    raise HistoryDiverged(
                        "what was to be pruned", "a server with another history took over; run it again"
                    )
                page = await self._store.prune(name, after, at.position, PRUNE_PAGE_EVENTS)
                after = page.through
                counts[name] += page.events
                moved(number * at.position + after, whole)
        return PruneReport(at.position, counts, states)

    # ── may it be ────────────────────────────────────────────────────────────

    def _checked(self, events: Sequence[type[Event]]) -> list[str]:
        """The names under which these may be stored."""
        if not events:
            raise ConfigurationError("name the events to be pruned, at least one")
        types = self._history.types
        names = [name for cls in events for name in types.stored_names(types.of(cls).name)]
        found = sorted(set(self._folding(set(names))))
        if found:
            raise ConfigurationError(
                f"{', '.join(cls.__name__ for cls in events)} cannot be pruned while something is made of all of them: "
                f"{'; '.join(found)}. Models may be state-stored; what else is there has to fold them no more"
            )
        return list(dict.fromkeys(names))

    def _folding(self, names: set[str]) -> Iterator[str]:
        """What folds any of these from the first event on."""
        for fold, types in self._models.items():
            if not _is_stored(fold) and not names.isdisjoint(types):
                kind = "event-sourced" if fold.form is None else "event-sourced, with snapshots"
                yield f"the model {fold.name} ({kind})"
        for follower, types in self._followers:
            if not names.isdisjoint(types):
                yield follower

    async def _check_known(self, types: Iterable[str]) -> None:
        """Make sure that the states which are going to be kept are all that newer code would make of these events.

        Raises:
            ConfigurationError: they are not.
        """
        names = set(types)
        for fold, found in self._coded.outgrown(await self._store.stored_models()).items():
            if _is_stored(fold) and not names.isdisjoint(self._models[fold]):
                raise ConfigurationError(f"nothing was pruned: {found.told}")

    async def _last_before(self, moment: datetime) -> Place:
        """The place of the last event that was recorded before a time: times never run backwards."""
        low, high = 0, int((await self._store.head()).position)
        while low < high:
            middle = (low + high + 1) // 2
            (found,) = (await self._store.read(ALL_EVENTS, Position(middle - 1), 1)).events
            low, high = (middle, high) if found.recorded_at < moment else (low, middle - 1)
        place = await self._store.place_at(Position(low))
        assert place is not None, "it is up to the head"
        return place

    # ── state-stored models ──────────────────────────────────────────────────

    async def _keep_states(self, types: Sequence[str], at: Place, moved: Moved) -> int:
        """Keep what these events have made of state-stored models, where no commit has; how many were missing.

        A model that became state-stored, and that nothing has happened to since, has no state yet (decision 0033).
        """
        missing: dict[ModelKey, Folded] = {}
        until: dict[ModelKey, int] = {}
        count = 0
        async for recorded in self._of(types, at.position):
            for key in self._touched(recorded):
                if key not in until:
                    if len(until) >= KNOWN_MODELS_MAX:
                        until.clear()
                    until[key] = await self._kept_until(key)
                if until[key] < recorded.position and key not in missing:
                    missing[key] = await self._fold(key, at.position)
            if len(missing) >= STATES_MAX:
                until |= dict.fromkeys(missing, int(at.position))
                count += await self._keep(missing, at)
            moved(recorded.position, at.position)
        return count + await self._keep(missing, at)

    async def _keep(self, missing: dict[ModelKey, Folded], at: Place) -> int:
        states = [
            StoredState(state.model, state.key, state.fold, state.data, position=at.position)
            for state in kept("diptych prune", missing)
        ]
        missing.clear()
        await self._store.keep_states(states, at)
        return len(states)

    def _touched(self, recorded: RecordedEvent) -> Iterator[ModelKey]:
        """The state-stored models that an event has gone into."""
        tags = sorted(self._history.types.tags_now(recorded.tags))
        for fold, types in self._models.items():
            if _is_stored(fold) and recorded.type in types:
                kinds = (f"{tag_name(identity)}:" for identity in fold.identities)
                for ids in product(*([tag[len(kind) :] for tag in tags if tag.startswith(kind)] for kind in kinds)):
                    yield fold, ids

    async def _kept_until(self, key: ModelKey) -> int:
        """Up to where its state is kept; -1 where none is."""
        fold, ids = key
        assert fold.form is not None, "it is state-stored"
        found = await self._store.model_state(fold.form.model, key_of(ids))
        return found.position if found is not None and found.fold == fold.form.fold else -1

    async def _fold(self, key: ModelKey, until: Position) -> Folded:
        fold, ids = key
        assert fold.form is not None, "it is state-stored"
        query, state, more = fold.query(ids), None, True
        after = START
        found = await self._store.model_state(fold.form.model, key_of(ids))
        if found is not None and (state := fold.form.state(ids, found)) is not None:
            after = found.position
        state = fold.initial(ids) if state is None else state
        while more:
            page = await self._store.read(query, after, FOLD_PAGE_EVENTS, until=until)
            for recorded in page.events:
                for _, event in self._history.matching(recorded, query.items[0]):
                    state = fold.evolve(state, event, None)
            after, more = page.through, page.more
        return Folded(query, state, until)

    async def _of(self, types: Iterable[str], until: Position) -> AsyncIterator[RecordedEvent]:
        """Events of stored types, in order."""
        query, after, more = EventQuery((QueryItem(frozenset(types)),)), START, True
        while more:
            page = await self._store.read(query, after, FOLD_PAGE_EVENTS, until=until)
            for recorded in page.events:
                yield recorded
            after, more = page.through, page.more


def _is_stored(fold: ModelFold) -> bool:
    return fold.form is not None and fold.form.every is None
