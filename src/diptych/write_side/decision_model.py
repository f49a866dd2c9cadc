"""Decision models: what a decision must know, as a fold of the events that matter to it.

A model scoped by one identity is what the field calls an aggregate; scoped by several, or by none, it is a dynamic
consistency boundary (Sara Pellegrini and Milan Savić, 2023).
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic

import msgspec
from typing_extensions import TypeVarTuple, Unpack, dataclass_transform

from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.position import START, Position
from diptych.event_store.stored_query import stored_query
from diptych.messages.annotations import evaluate, parameter_types, unwrap
from diptych.messages.event import Event, EventContext, event_classes
from diptych.messages.identity import Identity
from diptych.messages.message import MessageMeta, field_types, required_fields, scope_of
from diptych.messages.registry import EventTypes
from diptych.messages.tags import tag
from diptych.write_side.state_form import state_form

__all__ = ["DecisionModel", "Folded", "ModelFold", "folded_events"]

Ids = TypeVarTuple("Ids", default=Unpack[tuple[()]])


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class DecisionModel(msgspec.Struct, Generic[*Ids], metaclass=MessageMeta, frozen=True, kw_only=True):
    """What a decision must know. `DecisionModel[CourseId]` folds the events tagged with one course.

    Subclasses declare fields with defaults (the initial state) and `evolve(self, event)`, whose annotation says which
    events are folded; it may take `context: EventContext` as well. A field without default that is typed with one of
    the model's identities is filled with the one it is folded for. `DecisionModel[CourseId, StudentId]` folds events
    that carry both tags; a bare `DecisionModel`, all events of its types.

    `class Product(DecisionModel[ProductId], state_stored=True)` keeps its state with every commit that has an event of
    it; `snapshot_every=100` after a hundred events. Either spares folding from the first event.
    """


class Folded(msgspec.Struct, frozen=True, gc=False):
    """What a decision stands on: a model's state, of which events it is made, and up to where.

    Attributes:
        query: the events that are folded, by all the names with which they may be stored.
        state: the state after them.
        position: up to which it holds: that of the head its read covered, not that of its last event.
        pending: that of the last of its events that was not committed when it was folded; 0 where all were.
        unsaved: events folded since it was last kept.
    """

    query: EventQuery
    state: Any
    position: Position
    pending: Position = START
    unsaved: int = 0

    @property
    def item_now(self) -> QueryItem:
        """Those of them that code of now has stored, and the parts that are meant. For conditions it is not enough."""
        return self.query.items[0]


class ModelFold:
    """A decision model, compiled.

    Attributes:
        cls: the class.
        identities: the identity classes that scope it, may be empty.
        events: the event classes that it folds.
        takes_context: whether `evolve` asks for the `EventContext`.
        names: with which those may be stored, but for what they are only parts of.
        stored_names: all names that it looks for, former ones and those of what has become several events as well.
        splits: whether what it reads may be several events now, or none: only a part of it may be meant.
        form: how its states are kept; None where they are not.

    Raises:
        ConfigurationError: it cannot be folded as it is written; or its identities had too many names.
    """

    def __init__(self, cls: type[Any], types: EventTypes) -> None:
        self.cls = cls
        self.identities = _identities(cls)
        self.events, self.takes_context = _evolve_signature(cls)
        self._types, self._renamed = types, True
        self.names = frozenset(types.of(event).name for event in self.events)
        anyone = tuple(map(str, range(len(self.identities))))
        found = self.query(anyone)  # too many names are told now
        self.names, self._renamed = found.items[0].types, len(found.items) > 1
        self.stored_names = frozenset(name for item in found.items for name in item.types)
        self.splits = not types.splitting.isdisjoint(self.stored_names)
        self._identity_fields = _identity_fields(cls, self.identities)
        self.form = state_form(cls, self.events, types, found, partial(self.initial, anyone), timed=self.takes_context)
        self._evolve: Callable[..., Any] = cls.evolve

    @property
    def name(self) -> str:
        """The class name, for messages."""
        return self.cls.__name__

    def initial(self, ids: tuple[str, ...]) -> Any:
        """The state before any event, for the given identities."""
        return self.cls(**{name: ids[index] for name, index in self._identity_fields})

    def query(self, ids: tuple[str, ...]) -> EventQuery:
        """Which events are folded for the given identities."""
        tags = frozenset([tag(identity, value) for identity, value in zip(self.identities, ids, strict=True)])
        query = EventQuery((QueryItem(self.names, tags),))
        return stored_query(query, self._types) if self._renamed else query

    def evolve(self, state: Any, event: Event, context: EventContext | None) -> Any:
        """The state after an event. `context` is needed where `takes_context`.

        Raises:
            TypeError: `evolve` returned something else than the model.
        """
        following = self._evolve(state, event, context) if self.takes_context else self._evolve(state, event)
        if type(following) is not self.cls:
            raise TypeError(f"{self.name}.evolve must return a {self.name}, not {following!r} (for {event!r})")
        return following


def folded_events(cls: type[Any]) -> tuple[type[Event], ...]:
    """The event classes in the annotation of `evolve`, a base class standing for its subclasses."""
    return _evolve_signature(cls)[0]


def _identities(cls: type[Any]) -> tuple[type, ...]:
    for base in cls.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            if typing.get_origin(generic) is DecisionModel:
                where = sys.modules[base.__module__].__dict__
                found = tuple(
                    evaluate(argument, where, scope_of(base), cls.__name__) for argument in typing.get_args(generic)
                )
                return _check_identities(cls, found)
    return ()


def _check_identities(cls: type[Any], found: tuple[Any, ...]) -> tuple[type, ...]:
    for identity in found:
        if not (isinstance(identity, type) and issubclass(identity, Identity)):
            raise ConfigurationError(
                f"{cls.__name__} is scoped by {identity!r}, which is no Identity: DecisionModel[...] takes classes "
                "such as `class CourseId(Identity): ...`"
            )
    return found


def _evolve_signature(cls: type[Any]) -> tuple[tuple[type[Event], ...], bool]:
    evolve = getattr(cls, "evolve", None)
    if evolve is None:
        raise ConfigurationError(f"{cls.__name__} needs `def evolve(self, event: SomeEvent) -> {cls.__name__}`")
    parameters = list(inspect.signature(evolve).parameters)[1:]
    if not 1 <= len(parameters) <= 2:
        raise ConfigurationError(f"{cls.__name__}.evolve takes the event and, if it asks, the EventContext")
    owner = f"{cls.__name__}.evolve"
    types = parameter_types(evolve, scope_of(cls), owner, only=parameters)
    if parameters[0] not in types:
        raise ConfigurationError(f"{owner}: annotate `{parameters[0]}` with the events that it folds")
    if len(parameters) == 2 and types.get(parameters[1]) is not EventContext:
        raise ConfigurationError(f"{owner}: `{parameters[1]}` can only be an EventContext")
    return event_classes(types[parameters[0]], owner), len(parameters) == 2


def _identity_fields(cls: type[Any], identities: tuple[type, ...]) -> Iterable[tuple[str, int]]:
    types = field_types(cls)
    filled: list[tuple[str, int]] = []
    for name in sorted(required_fields(cls)):
        bare, _ = unwrap(types[name])
        if bare not in identities:
            raise ConfigurationError(
                f"{cls.__name__}.{name} needs a default (the initial state), or the type of one of the model's "
                "identities, to be filled with it"
            )
        filled.append((name, identities.index(bare)))
    return tuple(filled)
