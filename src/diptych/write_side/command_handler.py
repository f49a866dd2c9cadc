"""Command handlers: a function's signature says what it needs, and is compiled once, at start-up."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from diptych.errors import ConfigurationError, MissingService
from diptych.messages.annotations import Scope, members, parameter_types, subclasses, unwrap
from diptych.messages.command import Command, CommandContext
from diptych.messages.event import Event
from diptych.messages.identity import tag_name
from diptych.messages.message import field_types
from diptych.messages.registry import EventTypes
from diptych.messages.rejected import Rejected
from diptych.messages.tags import tag_reader
from diptych.write_side.decision_model import DecisionModel, ModelFold

__all__ = [
    "By",
    "CommandHandler",
    "Decided",
    "Declaration",
    "ModelKey",
    "command_of",
    "compile_handler",
    "decision_models",
    "published_events",
]

_PLAIN = (type(None), bool, int, float, str, bytes, Decimal, date, timedelta, Enum)
"""Types of defaults that are values and no services: a handler that has one may still be run again at will."""

ModelKey = tuple[ModelFold, tuple[str, ...]]
"""One model of one entity: what states are cached and conditions are made by."""


class By:
    """Names the command's fields that a model is folded for: `Annotated[Account, By("payer")]`."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields


class Declaration(NamedTuple):
    """A function that was declared a command handler, in which context, and the names around it."""

    context: str
    function: Callable[..., Any]
    scope: Scope
    idempotent: bool

    @property
    def name(self) -> str:
        """Where the function is, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


class Decided(msgspec.Struct, frozen=True):
    """What a handler said: events, or a refusal and perhaps a fact that goes with it."""

    events: Sequence[Event]
    rejected: Rejected | None = None


class _Binding(NamedTuple):
    """How one model parameter finds the entities it is folded for: each once; exactly one, unless `many`."""

    fold: ModelFold
    keys: Callable[[Command], Sequence[ModelKey]]
    many: bool


class CommandHandler:
    """A command handler, compiled.

    Attributes:
        name: where the function is, for messages.
        context: the name of the context that has it.
        command: the command class.
        command_name: its name, qualified by context: "school.Enrol".
        pure: synchronous and without services: it may be run again at will, and on pending state.
        idempotent: whether an impure one may be run again after a conflict.
        folds: the models that it is decided on, whichever they are of.
    """

    def __init__(
        self, declaration: Declaration, command: type[Command], arguments: Sequence[_Binding | Any], *, pure: bool
    ) -> None:
        self.name = declaration.name
        self.context = declaration.context
        self.command = command
        self.command_name = f"{declaration.context}.{command.__name__}"
        self.pure = pure
        self.idempotent = pure or declaration.idempotent
        self._function = declaration.function
        self._arguments = arguments
        self._bindings = [argument for argument in arguments if isinstance(argument, _Binding)]
        self.folds = [binding.fold for binding in self._bindings]

    def models(self, command: Command) -> Sequence[ModelKey]:
        """The models that a command is decided on, each once."""
        if len(self._bindings) == 1:
            return self._bindings[0].keys(command)
        return list(dict.fromkeys(key for binding in self._bindings for key in binding.keys(command)))

    def decide(self, command: Command, states: Mapping[ModelKey, Any], context: CommandContext) -> Decided:
        """Run a pure handler."""
        try:
            return Decided(_events(self._function(*self._call(command, states, context)), self.name))
        except Rejected as rejected:
            return _refused(rejected)

    async def decide_async(self, command: Command, states: Mapping[ModelKey, Any], context: CommandContext) -> Decided:
        """Run any handler; no lock or transaction is held meanwhile."""
        try:
            answer = self._function(*self._call(command, states, context))
            if inspect.isasyncgen(answer):
                answer = [event async for event in answer]
            elif inspect.isawaitable(answer):
                answer = await answer
            return Decided(_events(answer, self.name))
        except Rejected as rejected:
            return _refused(rejected)

    def _call(self, command: Command, states: Mapping[ModelKey, Any], context: CommandContext) -> list[Any]:
        values: list[Any] = [command]
        for argument in self._arguments:
            if isinstance(argument, _Binding):
                values.append(_bound(argument, command, states))
            else:
                values.append(context if argument is CommandContext else argument)
        return values


def _bound(binding: _Binding, command: Command, states: Mapping[ModelKey, Any]) -> Any:
    if binding.many:
        return {key[1][0]: states[key] for key in binding.keys(command)}
    (key,) = binding.keys(command)
    return states[key]


def _refused(rejected: Rejected) -> Decided:
    return Decided(() if rejected.record is None else (rejected.record,), rejected)


def _events(answer: Any, handler: str) -> Sequence[Event]:
    if answer is None:
        return ()
    if isinstance(answer, Event):
        return (answer,)
    events = tuple(answer) if isinstance(answer, collections.abc.Iterable) else (answer,)
    for event in events:
        if not isinstance(event, Event):
            raise TypeError(f"{handler} must give events, None, or an iterable of events, not {event!r}")
    return events


# ── compiling a signature ────────────────────────────────────────────────────


def command_of(declaration: Declaration) -> type[Command]:
    """The command class that a handler's first parameter is annotated with.

    Raises:
        ConfigurationError: it has no such parameter.
    """
    parameters = _parameters(declaration)
    if parameters:
        types = parameter_types(declaration.function, declaration.scope, declaration.name, only=parameters[:1])
        found, _ = unwrap(types.get(parameters[0]))
        if isinstance(found, type) and issubclass(found, Command):
            return found
    raise ConfigurationError(f"{declaration.name}: annotate the first parameter with the command that it handles")


def published_events(declaration: Declaration) -> tuple[Any, ...]:
    """The events in a handler's return annotation, iterables opened, a base class standing for its subclasses."""
    types = parameter_types(declaration.function, declaration.scope, declaration.name, only=["return"])
    return tuple(_opened(types.get("return")))


def decision_models(declaration: Declaration) -> list[type]:
    """The decision models in a handler's signature."""
    types = parameter_types(declaration.function, declaration.scope, declaration.name)
    opened = [part for name, found in types.items() if name != "return" for part in (found, *typing.get_args(found))]
    bare = [unwrap(part)[0] for part in opened]
    return [found for found in bare if isinstance(found, type) and issubclass(found, DecisionModel)]


def _opened(annotation: Any) -> Iterable[Any]:
    bare, _ = unwrap(annotation)
    arguments = typing.get_args(bare)
    if arguments:
        for argument in arguments:
            yield from _opened(argument)
    elif isinstance(bare, type) and issubclass(bare, Event):
        # `-> Event` says nothing: it would publish what other contexts have.
        yield from (bare,) if bare is Event else subclasses(bare)


def compile_handler(
    declaration: Declaration,
    models: Callable[[type], ModelFold],
    services: Mapping[type[Any], object],
    types: EventTypes,
) -> CommandHandler:
    """Check a handler's signature and find out where each of its arguments comes from.

    Args:
        declaration: the function.
        models: the compiled form of a decision model.
        services: what the application offers, by type.
        types: the application's events, to check the ones published.

    Raises:
        ConfigurationError: a parameter cannot be bound; naming handler, parameter and remedy.
    """
    command = command_of(declaration)
    annotations = parameter_types(declaration.function, declaration.scope, declaration.name)
    if "return" not in annotations:
        raise ConfigurationError(
            f"{declaration.name}: annotate what it gives, `-> SomeEvent`, `-> Iterator[OneEvent | Another]` or "
            "`-> None`: events are known by it"
        )
    compiler = _SignatureCompiler(declaration, command, models, services)
    signature = inspect.signature(declaration.function).parameters
    arguments = [compiler.argument(name, annotations, signature[name]) for name in list(signature)[1:]]
    for event in published_events(declaration):
        types.of(event)
    function = declaration.function
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return CommandHandler(declaration, command, arguments, pure=not compiler.takes_services and not is_async)


def _parameters(declaration: Declaration) -> list[str]:
    kinds = inspect.Parameter
    return [
        name
        for name, parameter in inspect.signature(declaration.function).parameters.items()
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]


def _is_model(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, DecisionModel)


class _SignatureCompiler:
    """Binds the parameters of one handler."""

    def __init__(
        self,
        declaration: Declaration,
        command: type[Command],
        models: Callable[[type], ModelFold],
        services: Mapping[type[Any], object],
    ) -> None:
        self._name = declaration.name
        self._command = command
        self._models = models
        self._services = services
        self._fields = {name: unwrap(annotation)[0] for name, annotation in field_types(command).items()}
        self.takes_services = False

    def argument(self, name: str, annotations: Mapping[str, Any], parameter: inspect.Parameter) -> Any:
        """Where the value of a parameter comes from: a binding, the command's context, a service or its default."""
        if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            raise self._error(name, "cannot be given by position", "write it as a plain parameter, without `*`")
        if name not in annotations:
            raise self._error(name, "has no annotation", "say which model, service or context it takes")
        bare, marks = unwrap(annotations[name])
        if bare is CommandContext:
            return CommandContext
        if _is_model(bare):
            by = next((mark for mark in marks if isinstance(mark, By)), None)
            return self._one(name, self._models(bare), by)
        if typing.get_origin(bare) is collections.abc.Mapping and _is_model(typing.get_args(bare)[1]):
            return self._many(name, *typing.get_args(bare))
        for member in members(bare):
            if member in self._services:
                self.takes_services = True
                return self._services[member]
        if parameter.default is not inspect.Parameter.empty:
            self.takes_services |= not isinstance(parameter.default, _PLAIN)
            return parameter.default
        model = next((part for part in typing.get_args(bare) if _is_model(part)), None)
        if model is not None:
            identities = ", ".join(kind.__name__ for kind in self._models(model).identities)
            remedy = f"to fold several of a model, say Mapping[{identities}, {model.__name__}]"
            raise self._error(name, f"is a {bare}", remedy)
        offered = ", ".join(service.__name__ for service in self._services) or "none"
        kind = getattr(bare, "__name__", str(bare))
        what = f"is a {kind}, which is no decision model and no service (offered: {offered})"
        raise MissingService(self._name, name, what, kind)

    def _one(self, name: str, fold: ModelFold, by: By | None) -> _Binding:
        fields = self._named_by(name, fold, by) if by else [self._field(name, fold, kind) for kind in fold.identities]
        if not fields:
            return _Binding(fold, lambda command: ((fold, ()),), many=False)
        if len(fields) == 1:
            read_one: Callable[[Command], str] = attrgetter(fields[0])
            return _Binding(fold, lambda command: ((fold, (read_one(command),)),), many=False)
        read = attrgetter(*fields)
        return _Binding(fold, lambda command: ((fold, read(command)),), many=False)

    def _named_by(self, name: str, fold: ModelFold, by: By) -> list[str]:
        for field in by.fields:
            if field not in self._fields:
                raise self._error(name, f"is bound by {field!r}", f"{self._command.__name__} has no such field")
        if [self._fields[field] for field in by.fields] != list(fold.identities):
            wanted = ", ".join(kind.__name__ for kind in fold.identities)
            raise self._error(name, f"is bound by {by.fields}", f"{fold.name} is scoped by ({wanted}), in this order")
        return list(by.fields)

    def _field(self, name: str, fold: ModelFold, identity: type) -> str:
        candidates = [field for field, kind in self._fields.items() if kind is identity]
        if len(candidates) == 1:
            return candidates[0]
        named = [field for field in candidates if field in (name, f"{name}_id")]
        if len(named) == 1:
            return named[0]
        if not candidates:
            raise self._error(
                name,
                f"is a {fold.name}, scoped by {identity.__name__}, and {self._command.__name__} has no such field",
                f"add a field of type {identity.__name__} to the command",
            )
        raise self._error(
            name,
            f"is a {fold.name}, and {self._command.__name__} has several fields of type {identity.__name__} "
            f"({', '.join(candidates)})",
            f'name the parameter like one of them, or say Annotated[{fold.name}, By("{candidates[0]}")]',
        )

    def _many(self, name: str, identity: Any, model: Any) -> _Binding:
        fold = self._models(model)
        if fold.identities != (identity,):
            raise self._error(
                name,
                f"maps {identity.__name__} to {fold.name}",
                f"{fold.name} must be a DecisionModel[{identity.__name__}]",
            )
        reader = tag_reader(self._command)
        if tag_name(identity) not in reader.names:
            raise self._error(
                name,
                f"maps {identity.__name__}, and {self._command.__name__} holds none",
                f"add a field of type {identity.__name__}, or one that contains such",
            )
        prefix = f"{tag_name(identity)}:"

        def keys(command: Command) -> list[ModelKey]:
            return [(fold, (found.removeprefix(prefix),)) for found in reader.read(command) if found.startswith(prefix)]

        return _Binding(fold, keys, many=True)

    def _error(self, parameter: str, what: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"{self._name}: parameter `{parameter}` {what}; {remedy}")
