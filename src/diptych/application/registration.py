"""From declarations to compiled parts: what the contexts have, checked against each other.

An event belongs to the context that publishes it: the one whose handlers return it, or that lists it. One that is only
folded belongs to the context that folds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from diptych.application.bounded_context import BoundedContext
from diptych.errors import ConfigurationError
from diptych.event_store.transactions import Lender
from diptych.messages.command import Command
from diptych.messages.event import Event
from diptych.messages.registry import EventType, EventTypes
from diptych.process_managers.process_manager import Process, compile_process
from diptych.read_side.projection import Projection, compile_projections, projected_events
from diptych.read_side.query_bus import query_of
from diptych.read_side.query_limits import NO_LIMITS, QueryLimits, declared_limits
from diptych.read_side.subscriber import Subscriber, compile_subscriber, subscribed_events
from diptych.security import required_scopes
from diptych.write_side.command_handler import (
    CommandHandler,
    Declaration,
    command_of,
    compile_handler,
    decision_models,
    published_events,
)
from diptych.write_side.decision_model import ModelFold, folded_events

__all__ = [
    "check_decisions",
    "check_requirements",
    "command_handlers",
    "decided_models",
    "event_types",
    "handled_commands",
    "handled_queries",
    "processes",
    "projections",
    "query_limits",
    "query_scopes",
    "subscribers",
]


def event_types(contexts: Sequence[BoundedContext]) -> EventTypes:
    """Every event class of the contexts, with its stored name.

    Raises:
        ConfigurationError: it cannot be told which of two contexts an event belongs to; or an upcaster leads nowhere.
    """
    upcasters = [declaration for context in contexts for declaration in context.upcasters]
    published = [(context, set(_published(context))) for context in contexts]
    folded = [(context, set(_folded(context))) for context in contexts]
    found: dict[type[Event], EventType] = {}
    every = {cls for _, events in published + folded for cls in events}
    for cls in sorted(every, key=lambda cls: cls.__qualname__):
        if cls is not Event:
            publishing = [context for context, events in published if cls in events]
            owners = publishing or [context for context, events in folded if cls in events]
            mine = [declaration for declaration in upcasters if declaration.event is cls]
            found[cls] = EventType(cls, _owner(cls, owners).name, mine, folded_only=not publishing)
    types = EventTypes(found.values())
    for declaration in upcasters:
        types.of(declaration.event)
    return types


def _owner(cls: type[Event], owners: Sequence[BoundedContext]) -> BoundedContext:
    if len(owners) > 1 and cls.__options__.name is None:
        names = ", ".join(context.name for context in owners)
        raise ConfigurationError(
            f"{cls.__name__} could belong to several contexts ({names}): list it in BoundedContext(events=[...]) of "
            'one of them and let only that one publish it, or name it with stored_as="context.Name"'
        )
    return owners[0]


def _published(context: BoundedContext) -> Iterable[type[Event]]:
    yield from context.events
    for declaration in context.command_handlers:
        yield from published_events(declaration)
    for process in context.process_managers:
        yield from process.published


def _folded(context: BoundedContext) -> Iterable[type[Event]]:
    for handler in context.command_handlers:
        for model in decision_models(handler):
            yield from folded_events(model)
    for projection in context.projections:
        yield from projected_events(projection)
    for subscriber in context.subscribers:
        yield from subscribed_events(subscriber)
    for process in context.process_managers:
        yield from process.events


def command_handlers(
    contexts: Sequence[BoundedContext], services: Mapping[type[Any], object], types: EventTypes
) -> dict[type[Command], CommandHandler]:
    """The compiled handler of each command.

    Raises:
        ConfigurationError: a command has two handlers, or a parameter cannot be bound.
    """
    folds: dict[type, ModelFold] = {}

    def fold(model: type) -> ModelFold:
        if model not in folds:
            folds[model] = ModelFold(model, types)
        return folds[model]

    found: dict[type[Command], CommandHandler] = {}
    for context in contexts:
        for declaration in context.command_handlers:
            handler = compile_handler(declaration, fold, services, types, _lender)
            other = found.setdefault(handler.command, handler)
            if other is not handler:
                raise ConfigurationError(f"{handler.command.__name__} has two handlers: {other.name}, {handler.name}")
    _check_kept(folds.values())
    return found


def decided_models(contexts: Sequence[BoundedContext], types: EventTypes) -> list[tuple[str, ModelFold]]:
    """The compiled decision models, each with the contexts whose handlers are decided on it; no service is needed.

    Raises:
        ConfigurationError: one of them cannot be folded.
    """
    found = {(c.name, model): None for c in contexts for each in c.command_handlers for model in decision_models(each)}
    folds = {model: ModelFold(model, types) for _, model in found}
    return [(context, folds[model]) for context, model in found]


def _check_kept(folds: Iterable[ModelFold]) -> None:
    """Make sure that no two models' states would be kept under one name."""
    kept: dict[str, ModelFold] = {}
    for fold in folds:
        if fold.form is not None and (other := kept.setdefault(fold.form.model, fold)) is not fold:
            raise ConfigurationError(
                f"the states of two decision models would be kept as {fold.form.model}: rename {fold.cls.__module__}."
                f"{fold.cls.__qualname__} or {other.cls.__module__}.{other.cls.__qualname__}"
            )


def _lender(kind: Any) -> Lender | None:
    found: Lender | None = import_module("diptych.adapters.connect").lender(kind)
    return found


def handled_commands(contexts: Sequence[BoundedContext]) -> Iterable[tuple[str, type]]:
    """The commands of each context, with its name."""
    for context in contexts:
        for declaration in context.command_handlers:
            yield context.name, command_of(declaration)


def projections(contexts: Sequence[BoundedContext], types: EventTypes) -> list[Projection]:
    """The compiled projections of all contexts.

    Raises:
        ConfigurationError: a signature does not fit, two contexts feed one read model, or two read models would be kept
            under one name.
    """
    found: dict[type, Projection] = {}
    kept: dict[str, Projection] = {}
    for context in contexts:
        for projection in compile_projections(context.name, context.projections, types):
            other = found.setdefault(projection.form.cls, projection)
            if other is not projection:
                raise ConfigurationError(
                    f"{projection.form.name} is fed by two contexts ({other.name}, {projection.name}): give each its "
                    "own read model"
                )
            for name in (projection.name, projection.form.table.name):
                _check_name(name, projection, kept.setdefault(name, projection))
    return list(found.values())


def subscribers(
    contexts: Sequence[BoundedContext],
    services: Mapping[type[Any], object],
    types: EventTypes,
    projections: Iterable[Projection],
) -> list[Subscriber]:
    """The compiled subscribers of all contexts.

    Raises:
        ConfigurationError: a signature does not fit, or the progress of two would be kept under one name.
    """
    kept: dict[str, object] = {projection.name: projection for projection in projections}
    found: list[Subscriber] = []
    for context in contexts:
        for declaration in context.subscribers:
            subscriber = compile_subscriber(context.name, declaration, services, types)
            _check_name(subscriber.name, subscriber, kept.setdefault(subscriber.name, subscriber))
            found.append(subscriber)
    return found


def processes(contexts: Sequence[BoundedContext], types: EventTypes, handled: Iterable[type[Command]]) -> list[Process]:
    """The compiled processes of all contexts.

    Raises:
        ConfigurationError: a signature does not fit, or two processes of a context have one name.
    """
    handled = set(handled)
    found: dict[str, Process] = {}
    for context in contexts:
        for declaration in context.process_managers:
            process = compile_process(declaration, types, handled)
            if found.setdefault(process.name, process) is not process:
                raise ConfigurationError(f"two processes would both be kept under {process.name!r}: rename one of them")
    return list(found.values())


def _check_name(name: str, mine: object, other: object) -> None:
    if other is not mine:
        raise ConfigurationError(
            f"two read models or subscribers would both be kept under {name!r}, by context and name: rename one of them"
        )


def handled_queries(
    contexts: Sequence[BoundedContext], queries: Iterable[type], models: Mapping[type, Projection]
) -> Iterable[tuple[str, type]]:
    """The queries with the name of their context: that of the handler, or of the read model that answers."""
    declared = {query_of(handler): context.name for context in contexts for handler in context.query_handlers}
    for query in queries:
        name = declared.get(query)
        yield name if name is not None else models[query].name.partition(".")[0], query


def query_scopes(contexts: Sequence[BoundedContext], queries: Iterable[type]) -> dict[type, frozenset[str]]:
    """The scopes that each query requires that requires any: by its class, and by its handler."""
    declared = {query_of(handler): handler.function for context in contexts for handler in context.query_handlers}
    found = {
        query: required_scopes(query) | (required_scopes(declared[query]) if query in declared else frozenset())
        for query in queries
    }
    return {query: scopes for query, scopes in found.items() if scopes}


def query_limits(contexts: Sequence[BoundedContext], queries: Iterable[type]) -> dict[type, QueryLimits]:
    """The limits of each query that any are declared of: what its class and its handler both allow."""
    declared = {query_of(handler): handler.function for context in contexts for handler in context.query_handlers}
    found = {query: declared_limits(query).within(declared_limits(declared.get(query))) for query in queries}
    return {query: limits for query, limits in found.items() if limits != NO_LIMITS}


def check_requirements(contexts: Sequence[BoundedContext]) -> None:
    """Make sure that `requires` and `limited` stand where they are heard: anywhere else they would guard nothing.

    Raises:
        ConfigurationError: it stands on something else.
    """
    for context in contexts:
        declared = (context.projections, context.subscribers, context.upcasters)
        functions: list[Any] = [found.function for kind in declared for found in kind]
        functions += [process.cls.react for process in context.process_managers]
        functions += [model.evolve for found in context.command_handlers for model in _models_of(found)]
        for function in functions:
            if required_scopes(function):
                name = f"{function.__module__}.{function.__qualname__}"
                raise ConfigurationError(
                    f"{name}: @requires is for handlers of commands and queries, and for queries; this is none"
                )
        for function in [*functions, *(found.function for found in context.command_handlers)]:
            if declared_limits(function) != NO_LIMITS:
                name = f"{function.__module__}.{function.__qualname__}"
                raise ConfigurationError(f"{name}: @limited is for queries, and for handlers of queries; this is none")


def _models_of(declaration: Declaration) -> Iterable[Any]:
    return (model for model in decision_models(declaration) if hasattr(model, "evolve"))


def check_decisions(contexts: Sequence[BoundedContext], types: EventTypes) -> None:
    """Make sure that no decision needs or makes events of another context than its own, and no upcaster.

    Raises:
        ConfigurationError: one does; naming handler, event and both contexts.
    """
    for context in contexts:
        for upcaster in context.upcasters:
            for cls in upcaster.into or ():
                _check_own(upcaster.name, "makes", cls, types.of(upcaster.event).context, types)
        for handler in context.command_handlers:
            for cls in published_events(handler):
                _check_own(handler.name, "gives", cls, context.name, types)
            for model in decision_models(handler):
                for cls in folded_events(model):
                    _check_own(handler.name, f"decides on {model.__name__}, which folds", cls, context.name, types)


def _check_own(handler: str, does: str, cls: type, context: str, types: EventTypes) -> None:
    owner = types.of(cls).context
    if owner != context:
        raise ConfigurationError(
            f"{handler} {does} {cls.__name__} of the partition {owner!r}: a decision is made in one partition, and an "
            f"event is read in one, here {context!r}. Let a subscriber bring what happened there over as a command"
        )
