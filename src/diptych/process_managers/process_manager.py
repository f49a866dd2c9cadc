"""Process managers: a fold of events into what is to be done next, over as long as it takes.

`react` is a pure function of (state, event): it gives the new state, commands to send and timeouts to set. Whatever
does something (sending, waiting) is done by others, from what was kept together with the state (Gregor Hohpe and Bobby
Woolf, Enterprise Integration Patterns, 2003, "Process Manager"; Hector Garcia-Molina and Kenneth Salem, Sagas, 1987).
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from typing_extensions import dataclass_transform

from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.stored_query import stored_query
from diptych.messages.annotations import evaluate, members, parameter_types, unwrap
from diptych.messages.codec import Codec
from diptych.messages.command import Command
from diptych.messages.event import Event, EventContext, event_classes
from diptych.messages.identity import Identity, former_tag_names, tag_name
from diptych.messages.message import MessageMeta, field_types, required_fields, scope_of
from diptych.messages.registry import EventTypes
from diptych.messages.tags import tag
from diptych.process_managers.process_events import (
    CommandGiven,
    CommandRejected,
    InstanceClosed,
    InstanceEvent,
    InstanceRetried,
    OutgoingDiscarded,
    OutgoingRetried,
    StepRetried,
    StepSkipped,
    Timeout,
    event_of_process,
)

__all__ = ["Process", "ProcessDeclaration", "ProcessManager", "Reaction", "compile_process"]

IdentityT = TypeVar("IdentityT", bound=Identity)
S_co = TypeVar("S_co", covariant=True)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class ProcessManager(msgspec.Struct, Generic[IdentityT], metaclass=MessageMeta, frozen=True, kw_only=True):
    """A process of one identity: `ProcessManager[OrderId]` has an instance for each order.

    Subclasses declare fields with defaults (the state at first) and `react(self, event) -> Reaction[Self]`, whose
    annotation says which events reach it; it may take `context: EventContext` as well. A field without default that is
    typed with the identity is filled with that of the instance. An event reaches the instances that it is tagged with.
    """


class Reaction(msgspec.Struct, Generic[S_co], frozen=True):
    """What an instance makes of an event.

    Attributes:
        state: the new one.
        commands: to send, one after the other, each once whatever happens (G10).
        timeouts: to hear later, each with a time, or a duration from when the event was recorded. None is ever
            cancelled, but by the end: the state decides whether one still matters.
        ended: whether this is all: the instance takes no more events, and its timeouts are dropped.
    """

    state: S_co
    commands: Sequence[Command] = ()
    timeouts: Mapping[Timeout, timedelta | datetime] | Sequence[tuple[Timeout, timedelta | datetime]] = ()
    ended: bool = False


def _is_process_manager(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, ProcessManager)


class _ByHand(NamedTuple):
    """The events of what is done to instances of a process by hand."""

    retried: type[InstanceRetried]
    closed: type[InstanceClosed]
    given: type[CommandGiven]
    step_retried: type[StepRetried]
    step_skipped: type[StepSkipped]
    outgoing_retried: type[OutgoingRetried]
    outgoing_discarded: type[OutgoingDiscarded]


_BY_HAND: tuple[type[InstanceEvent], ...] = (
    InstanceRetried,
    InstanceClosed,
    CommandGiven,
    StepRetried,
    StepSkipped,
    OutgoingRetried,
    OutgoingDiscarded,
)
"""What each of `_ByHand` is a class of, in its order."""


class ProcessDeclaration:
    """A class that was declared a process manager, in which context, and from where it begins.

    Attributes:
        name: of the process, qualified by context: "bank.Transferring".
        cls: the class.
        from_beginning: whether a process that is new follows the history from its first event on.
        retired: whether it takes no events any more.
    """

    def __init__(
        self,
        context: str,
        cls: type[Any],
        starts: Iterable[type[Event]] | None,
        *,
        from_beginning: bool,
        retired: bool = False,
    ) -> None:
        if not _is_process_manager(cls):
            raise ConfigurationError(f"{cls!r} is no process manager: write `class Shipping(ProcessManager[OrderId])`")
        self.name = f"{context}.{cls.__name__}"
        self.cls: type[Any] = cls
        self.starts = None if starts is None else tuple(starts)
        self.from_beginning = from_beginning
        self.retired = retired

    @cached_property
    def identity(self) -> type[Identity]:
        """The identity of its instances.

        Raises:
            ConfigurationError: the class does not say which.
        """
        for base in self.cls.__mro__:
            for generic in base.__dict__.get("__orig_bases__", ()):
                if typing.get_origin(generic) is ProcessManager:
                    where = sys.modules[base.__module__].__dict__
                    (given,) = typing.get_args(generic)
                    found = evaluate(given, where, scope_of(base), self.cls.__name__)
                    if isinstance(found, type) and issubclass(found, Identity) and found is not Identity:
                        return found
                    raise self._no_identity(f"is of {given!r}, which is no Identity")
        raise self._no_identity("does not say of which identity it is")

    def _no_identity(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"the process manager {self.cls.__name__} {what}: write `class {self.cls.__name__}(ProcessManager[OrderId])"
            "`, where `class OrderId(Identity): ...` is a field of its events"
        )

    @cached_property
    def events(self) -> tuple[type[Event], ...]:
        """The event classes in the annotation of `react`; for `CommandRejected[Ship]` the one of this process."""
        owner, annotation, _ = _react_signature(self.cls)
        found: dict[type[Event], None] = {}
        for member in members(annotation):
            if typing.get_origin(member) is CommandRejected:
                (command,) = typing.get_args(member)
                found[self._rejection(command, owner)] = None
            elif member is CommandRejected:
                raise ConfigurationError(f"{owner}: say of which command, as in CommandRejected[Ship]")
            else:
                found.update(dict.fromkeys(event_classes(member, owner)))
        return tuple(cls for cls in found if cls not in (Event, Timeout))

    @cached_property
    def rejections(self) -> dict[type[Command], type[CommandRejected[Any]]]:
        """The event of each command whose rejection comes back; filled by `events`."""
        return {}

    @cached_property
    def by_hand(self) -> _ByHand:
        """The events of what is done by hand."""
        return _ByHand(*map(self._event, _BY_HAND))

    def _rejection(self, command: Any, owner: str) -> type[Event]:
        if not (isinstance(command, type) and issubclass(command, Command) and command is not Command):
            raise ConfigurationError(f"{owner}: CommandRejected[{command!r}] names no command")
        if command not in self.rejections:
            name = f"{command.__name__}Rejected"
            self.rejections[command] = event_of_process(
                CommandRejected, name, f"{self.name}.{name}", self.identity, command
            )
        return self.rejections[command]

    def _event(self, base: type[Any]) -> type[Any]:
        return event_of_process(base, base.__name__, f"{self.name}.{base.__name__}", self.identity)

    @property
    def published(self) -> tuple[type[Event], ...]:
        """The events that the process itself brings about."""
        own = [cls for cls in self.events if issubclass(cls, Timeout | CommandRejected)]
        return (*own, *self.by_hand)


class Process:
    """A process manager, compiled.

    Attributes:
        name: qualified by context: "bank.Transferring".
        cls: the class.
        identity: of its instances.
        query: the events that reach it, as they may be stored.
        wanted: which those are, by names of now.
        starts: the event classes that may begin an instance.
        takes_context: whether `react` asks for the `EventContext`.
        rejections: the event of each command whose rejection comes back.
        by_hand: the events of what is done to an instance by hand.
        timeouts: the classes that it may set.
        codec: of its state.
        from_beginning: whether it follows the history from its first event on, where it is new.
        retired: whether it takes no events, and sends nothing, any more.
    """

    def __init__(self, declaration: ProcessDeclaration, types: EventTypes) -> None:
        self.name = declaration.name
        self.cls: type[Any] = declaration.cls
        self.identity = declaration.identity
        _, _, self.takes_context = _react_signature(self.cls)
        self.rejections: Mapping[type[Command], type[CommandRejected[Any]]] = declaration.rejections
        self.by_hand = declaration.by_hand
        self.timeouts = frozenset(cls for cls in declaration.events if issubclass(cls, Timeout))
        self.starts = _starts(declaration)
        self.codec = Codec(self.cls)
        self.from_beginning = declaration.from_beginning
        self.retired = declaration.retired
        followed = (*declaration.events, *self.by_hand)
        self._names = frozenset(types.of(cls).name for cls in followed)
        self._types = types
        self.wanted = QueryItem(self._names)
        self.query = stored_query(EventQuery((self.wanted,)), types)
        prefixes = (tag_name(self.identity), *former_tag_names(self.identity))
        self._prefixes = tuple(f"{prefix}:" for prefix in prefixes)
        self._filled = _identity_fields(self.cls, self.identity)
        self._react: Callable[..., Any] = self.cls.react

    def initial(self, instance: str) -> Any:
        """The state of an instance before its first event."""
        return self.cls(**dict.fromkeys(self._filled, instance))

    def named_by(self, tags: Iterable[str]) -> list[str]:
        """The instances that an event with these tags is for, each once."""
        named = [(tag, prefix) for tag in tags for prefix in self._prefixes if tag.startswith(prefix)]
        return list(dict.fromkeys(tag.removeprefix(prefix) for tag, prefix in named))

    def wanted_by(self, instance: str) -> EventQuery:
        """The events that reach one instance, by names and tags of now."""
        return EventQuery((QueryItem(self._names, frozenset((tag(self.identity, instance),))),))

    def of_instance(self, instance: str) -> EventQuery:
        """The events that reach one instance, as they may be stored."""
        return stored_query(self.wanted_by(instance), self._types)

    def done_by_hand(self, *classes: type[InstanceEvent], instance: str | None = None) -> EventQuery:
        """Events of what was done by hand: of these classes of `by_hand`, to one instance or to any."""
        names = frozenset(self._types.of(cls).name for cls in classes)
        tags = frozenset() if instance is None else frozenset((tag(self.identity, instance),))
        return stored_query(EventQuery((QueryItem(names, tags),)), self._types)

    def react(self, state: Any, event: Event, context: EventContext) -> Reaction[Any]:
        """What an instance makes of an event.

        Raises:
            TypeError: it gave something else than a reaction with its own state.
        """
        reaction = self._react(state, event, context) if self.takes_context else self._react(state, event)
        if not isinstance(reaction, Reaction):
            raise TypeError(f"{self.cls.__name__}.react must return a Reaction, not {reaction!r}")
        found: Reaction[Any] = reaction
        if type(found.state) is not self.cls:
            raise TypeError(f"the state in a Reaction of {self.cls.__name__} is {found.state!r}, of another class")
        return found


def compile_process(declaration: ProcessDeclaration, types: EventTypes, handled: Iterable[type[Command]]) -> Process:
    """Check a process manager against the events and commands of the application.

    Raises:
        ConfigurationError: something does not fit; naming the class and the remedy.
    """
    name, identity, handled = declaration.cls.__name__, declaration.identity, set(handled)
    for command in [command for _, command in _rejected(declaration) if command not in handled]:
        raise ConfigurationError(f"{name}.react takes CommandRejected[{command.__name__}], a command without a handler")
    for event in declaration.events:
        if tag_name(identity) not in types.of(event).tag_names:
            raise ConfigurationError(
                f"{name}.react takes {event.__name__}, which names no {identity.__name__}: it could reach no instance. "
                f"Add a field of that type, which is not Untagged"
            )
    return Process(declaration, types)


def _rejected(declaration: ProcessDeclaration) -> list[tuple[type[Event], type[Command]]]:
    events = set(declaration.events)
    return [(event, command) for command, event in declaration.rejections.items() if event in events]


def _starts(declaration: ProcessDeclaration) -> frozenset[type[Event]]:
    name = declaration.cls.__name__
    facts = frozenset(cls for cls in declaration.events if not issubclass(cls, Timeout | CommandRejected))
    if declaration.starts is None:
        if not facts:
            raise ConfigurationError(f"{name}: no event begins it; name one in the annotation of {name}.react")
        return facts
    found = frozenset(cls for named in declaration.starts for cls in event_classes(named, f"starts= of {name}"))
    for cls in found - facts:
        raise ConfigurationError(
            f"starts= of {name} names {cls.__name__}, which is "
            + ("of the process itself" if issubclass(cls, Timeout) else f"not in the annotation of {name}.react")
        )
    if not found:
        raise ConfigurationError(f"starts= of {name} is empty: name the events that may begin an instance")
    return found


def _react_signature(cls: type[Any]) -> tuple[str, Any, bool]:
    """Where `react` is, for messages; the annotation of its event; whether it takes the context."""
    react = getattr(cls, "react", None)
    owner = f"{cls.__name__}.react"
    if react is None:
        raise ConfigurationError(
            f"{cls.__name__} needs `def react(self, event: SomeEvent) -> Reaction[{cls.__name__}]`"
        )
    if inspect.iscoroutinefunction(react) or inspect.isgeneratorfunction(react):
        raise ConfigurationError(f"{owner} is a plain function that returns a Reaction: it does nothing, commands do")
    parameters = list(inspect.signature(react).parameters)[1:]
    if not 1 <= len(parameters) <= 2:
        raise ConfigurationError(f"{owner} takes the event and, if it asks, the EventContext")
    types = parameter_types(react, scope_of(cls), owner, only=parameters)
    if parameters[0] not in types:
        raise ConfigurationError(f"{owner}: annotate `{parameters[0]}` with the events that reach it")
    if len(parameters) == 2 and types.get(parameters[1]) is not EventContext:
        raise ConfigurationError(f"{owner}: `{parameters[1]}` can only be an EventContext")
    return owner, types[parameters[0]], len(parameters) == 2


def _identity_fields(cls: type[Any], identity: type[Identity]) -> list[str]:
    types = field_types(cls)
    filled = sorted(required_fields(cls))
    for name in filled:
        if unwrap(types[name])[0] is not identity:
            raise ConfigurationError(
                f"{cls.__name__}.{name} needs a default (the state at first), or the type {identity.__name__}, to be "
                "filled with the identity of the instance"
            )
    return filled
