"""What a commit leaves of decision models whose states are kept: found when it is decided, appended with its events."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, product

from diptych.errors import InvalidMessage, Unstorable
from diptych.event_store.event_store import COMMIT_BYTES_MAX, COMMIT_STATES_MAX, STATE_BYTES_MAX, ModelState
from diptych.event_store.model_unions import OutgrownQuery
from diptych.event_store.position import Position
from diptych.messages.identity import tag_name
from diptych.write_side.command_handler import ModelKey
from diptych.write_side.decision_model import Folded, ModelFold
from diptych.write_side.model_cache import RecentEvent

__all__ = ["StateKeeping", "after", "due_snapshots", "kept"]

_logger = logging.getLogger(__name__)


class StateKeeping:
    """Which models a commit's events change, of those whose states are kept."""

    def __init__(self, folds: Iterable[ModelFold]) -> None:
        """Made of all models of a command bus.

        Attributes:
            keeps_any: whether any model's states are kept.
        """
        folds = [fold for fold in folds if fold.form is not None]
        self.keeps_any = bool(folds)
        self._by_type: dict[str, list[tuple[ModelFold, tuple[str, ...]]]] = {}
        for fold in folds:
            if fold.form is not None and fold.form.every is None:
                prefixes = tuple(f"{tag_name(identity)}:" for identity in fold.identities)
                for name in fold.names:
                    self._by_type.setdefault(name, []).append((fold, prefixes))

    def touched(self, events: Iterable[RecentEvent]) -> Sequence[ModelKey]:
        """The state-stored models that these events match, each once; not all, where they are too many to be kept."""
        found: dict[ModelKey, None] = {}
        for recent in events:
            for fold, prefixes in self._by_type.get(recent.type, ()):
                ids = [[tag[len(prefix) :] for tag in recent.new.tags if tag.startswith(prefix)] for prefix in prefixes]
                room = COMMIT_STATES_MAX + 1 - len(found)
                found.update(((fold, each), None) for each in islice(product(*ids), room))
        return list(found)


def due_snapshots(stands: Mapping[ModelKey, Folded], count: int) -> dict[ModelKey, Folded]:
    """Those of the models that so many more events may make due for a snapshot."""
    return {
        (fold, ids): folded
        for (fold, ids), folded in stands.items()
        if fold.form is not None and fold.form.every is not None and folded.unsaved + count >= fold.form.every
    }


def after(key: ModelKey, before: Folded, events: Iterable[RecentEvent]) -> Folded:
    """A model after events that are about to be appended; its position stays that of the state before them.

    Raises:
        NewerHistory: one of them is folded by newer code's model, and not by this one's.
    """
    fold, query, state, unsaved = key[0], before.query, before.state, before.unsaved
    for recent in events:
        if before.item_now.matches(recent.type, recent.new.tags):
            state = fold.evolve(state, recent.event, None)
            unsaved += 1
        elif isinstance(query, OutgrownQuery):
            query.check_one(recent.type, recent.new.version, recent.new.tags, Position(before.position + 1))
    return Folded(before.query, state, before.position, before.pending, unsaved)


def kept(handler: str, left: Mapping[ModelKey, Folded]) -> tuple[ModelState, ...]:
    """These states as a commit carries them.

    A snapshot that cannot be kept, or for which there is no room beside the others, is left out: nothing needs it.

    Raises:
        Unstorable: one that is needed cannot be kept.
    """
    states: list[ModelState] = []
    room = COMMIT_BYTES_MAX
    for (fold, ids), folded in left.items():
        assert fold.form is not None
        try:
            state = fold.form.kept(ids, folded.state)
            if len(state.data) > STATE_BYTES_MAX:
                raise InvalidMessage(
                    fold.form.model, [("$", f"{len(state.data)} bytes, more than STATE_BYTES_MAX={STATE_BYTES_MAX}")]
                )
        except InvalidMessage as error:
            if fold.form.every is None:
                raise Unstorable(handler, f"state of {fold.form.model}", str(error)) from error
            if not fold.form.unfit:
                fold.form.unfit = True
                _logger.warning("%s: no snapshot is taken, models are folded from their events: %s", fold.name, error)
        else:
            if fold.form.every is None or len(state.data) <= room:
                states.append(state)
                room -= len(state.data)
    return tuple(states)
