"""Which events decision models fold, as the store knows it (rule 22).

Code that folds fewer events than newer code decides without what those say. So the union of the types that a model
takes is kept in the store, and only grows; a model that leaves some out on purpose says so with a higher `version=`.
Whoever finds types there that its own model does not fold goes on where there is no such event, and nowhere else: it
looks for them, and every condition names them.

What is kept has a *mark*, another one whenever it changes. A commit carries the mark under which it was decided, and
the append section compares: so nobody decides by fewer types than are kept when it is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from diptych.errors import NewerHistory
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.unique_id import unique_bytes

__all__ = ["NONE_KEPT", "ModelUnion", "ModelUnions", "OutgrownQuery", "joined", "lacking", "new_mark", "unions_to_keep"]

MARK_BYTES = 8
"""Bytes of a mark; none while nothing is kept."""


class ModelUnion(msgspec.Struct, frozen=True):
    """The events that a decision model folds.

    Attributes:
        name: of the model, qualified by the context whose handlers are decided on it: "shop.Order".
        version: the model's, by which code that folds fewer of them is told from older code.
        types: their stored names, former ones as well, sorted.
    """

    name: str
    version: int
    types: tuple[str, ...]


class ModelUnions(msgspec.Struct, frozen=True):
    """What a store keeps of models.

    Attributes:
        mark: another one whenever they change; empty while none are kept.
        models: by name.
    """

    mark: bytes
    models: tuple[ModelUnion, ...]

    def by_name(self) -> Mapping[str, ModelUnion]:
        """Each under its name."""
        return {model.name: model for model in self.models}


NONE_KEPT = ModelUnions(b"", ())
"""Of a store that no application has opened."""


def new_mark() -> bytes:
    """A mark that nothing has had."""
    return unique_bytes()[-MARK_BYTES:]


def joined(kept: ModelUnion | None, coded: ModelUnion) -> ModelUnion:
    """What is to be kept of a model once this code has come, in whichever order it and others do."""
    if kept is None or kept.version < coded.version:
        return coded
    if kept.version > coded.version:
        return kept
    return ModelUnion(kept.name, kept.version, tuple(sorted({*kept.types, *coded.types})))


def unions_to_keep(kept: ModelUnions, coded: Iterable[ModelUnion]) -> list[ModelUnion]:
    """What is to be kept where something else is, or nothing, once this code has come."""
    known = kept.by_name()
    found = [joined(known.get(union.name), union) for union in coded]
    return [union for union in found if union != known.get(union.name)]


def lacking(kept: ModelUnion | None, coded: ModelUnion) -> frozenset[str]:
    """The types that newer code's model folds, and this one's does not."""
    if kept is None or kept.version < coded.version:
        return frozenset()
    return frozenset(kept.types).difference(coded.types)


class OutgrownQuery(EventQuery, frozen=True):
    """The events of a model that newer code folds more of: those are in it as well, and can only be met, not folded.

    Attributes:
        beyond: their types, none of which is among those that are folded.
        union: what is kept of the model.
    """

    beyond: frozenset[str]
    union: ModelUnion

    @classmethod
    def of(cls, query: EventQuery, beyond: frozenset[str], union: ModelUnion) -> OutgrownQuery:
        """With the same items, the first one first, and one more for each set of tags."""
        tags = dict.fromkeys(item.tags for item in query.items)
        return cls((*query.items, *(QueryItem(beyond, each) for each in tags)), beyond, union)

    @property
    def only_beyond(self) -> EventQuery:
        """Those alone that cannot be folded."""
        return EventQuery(tuple(item for item in self.items if item.types == self.beyond))

    def check(self, events: Iterable[RecordedEvent]) -> None:
        """Make sure that none of these, which the query has found, is one that cannot be folded.

        Raises:
            NewerHistory: one is.
        """
        for event in events:
            if event.type in self.beyond:
                raise self._newer(event.type, event.version, event.position)

    def check_one(self, type: str, version: int, tags: Iterable[str], position: Position) -> None:
        """Make sure that an event, of which it is not known whether it is meant, can be folded or need not be.

        Raises:
            NewerHistory: it is meant and cannot.
        """
        if type in self.beyond and self.matches(type, frozenset(tags)):
            raise self._newer(type, version, position)

    def _newer(self, type: str, version: int, position: Position) -> NewerHistory:
        name, following = self.union.name, self.union.version + 1
        return NewerHistory(
            type,
            version,
            position,
            f"newer code's {name} folds it and this one's does not, so that nothing is decided here: run that code. "
            f"If this is the newer one, and leaves it out on purpose, say version={following} in the class statement "
            "of the model",
        )
