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
from typing import Any, NamedTuple, TypeAlias

import msgspec

from diptych.errors import ConfigurationError, MissingService
from diptych.event_store.transactions import Lender, Transaction, TransactionLender
from diptych.messages.annotations import Scope, members, parameter_types, subclasses, unwrap
from diptych.messages.command import Command, CommandContext
from diptych.messages.event import Event
from diptych.messages.identity import tag_name
from diptych.messages.message import field_types
from diptych.messages.registry import EventTypes
from diptych.messages.rejected import Rejected
from diptych.messages.tags import tag_reader
from diptych.security import required_scopes
from diptych.write_side.decision_model import DecisionModel, ModelFold

__all__ = [
    "By",
    "CommandHandler",
    "Decided",
    "Declaration",
    "FindLender",
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


FindLender: TypeAlias = Callable[[Any], Lender | None]
"""Finds who makes a parameter of a type from the transaction's connection (`AsyncSession`); None where nobody does."""


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


_LENT = object()
"""Stands for the transaction among a handler's arguments."""


class CommandHandler:
    """A command handler, compiled.

    Attributes:
        name: where the function is, for messages.
        context: the name of the context that has it.
        command: the command class.
        command_name: its name, qualified by context: "school.Enrol".
        pure: synchronous, without services or transaction: it may be run again at will, and on pending state.
        tryable: whether all that it does can be taken back: it is pure, or only takes the transaction.
        idempotent: whether it may be run again after a conflict.
        is_async: whether it is `async def`.
        lender: makes the transaction that it takes; None where it takes none.
        folds: the models that it is decided on, whichever they are of.
        requires: the scopes that its caller has to have, all of them; mostly none.
    """

    def __init__(
        self,
        declaration: Declaration,
        command: type[Command],
        arguments: Sequence[_Binding | Any],
        *,
        is_async: bool,
        takes_services: bool,
        lender: Lender | None = None,
    ) -> None:
        self.name = declaration.name
        self.context = declaration.context
        self.command = command
        self.command_name = f"{declaration.context}.{command.__name__}"
        self.pure = not (is_async or takes_services or lender)
        self.tryable = self.pure or (lender is not None and not takes_services)
        self.idempotent = self.tryable or declaration.idempotent
        self.is_async = is_async
        self.lender = lender
        self.requires = required_scopes(declaration.function)
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
            return Decided(await self._awaited(self._call(command, states, context)))
        except Rejected as rejected:
            return _refused(rejected)

    def decide_in(
        self, connection: Any, command: Command, states: Mapping[ModelKey, Any], context: CommandContext
    ) -> Decided:
        """Run a synchronous handler that takes the transaction of this connection."""
        assert self.lender is not None
        try:
            with self.lender.lend(connection) as lent:
                events = _events(self._function(*self._call(command, states, context, lent)), self.name)
            return Decided(events)
        except Rejected as rejected:
            return _refused(rejected)

    async def decide_in_async(
        self, connection: Any, command: Command, states: Mapping[ModelKey, Any], context: CommandContext
    ) -> Decided:
        """Run an async one."""
        assert self.lender is not None
        try:
            async with self.lender.lend_async(connection) as lent:
                events = await self._awaited(self._call(command, states, context, lent))
            return Decided(events)
        except Rejected as rejected:
            return _refused(rejected)

    async def _awaited(self, values: Sequence[Any]) -> Sequence[Event]:
        answer = self._function(*values)
        if inspect.isasyncgen(answer):
            answer = [event async for event in answer]
        elif inspect.isawaitable(answer):
            answer = await answer
        return _events(answer, self.name)

    def _call(
        self, command: Command, states: Mapping[ModelKey, Any], context: CommandContext, lent: Any = None
    ) -> list[Any]:
        values: list[Any] = [command]
        for argument in self._arguments:
            if isinstance(argument, _Binding):
                values.append(_bound(argument, command, states))
            elif argument is _LENT:
                values.append(lent)
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
    find_lender: FindLender = lambda _: None,
) -> CommandHandler:
    """Check a handler's signature and find out where each of its arguments comes from.

    Args:
        declaration: the function.
        models: the compiled form of a decision model.
        services: what the application offers, by type.
        types: the application's events, to check the ones published.
        find_lender: finds who makes what else a handler may take from the transaction's connection.

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
    compiler = _SignatureCompiler(declaration, command, models, services, find_lender)
    signature = inspect.signature(declaration.function).parameters
    arguments = [compiler.argument(name, annotations, signature[name]) for name in list(signature)[1:]]
    for event in published_events(declaration):
        types.of(event)
    function = declaration.function
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return CommandHandler(
        declaration,
        command,
        arguments,
        is_async=is_async,
        takes_services=compiler.takes_services,
        lender=compiler.lender,
    )


def _parameters(declaration: Declaration) -> list[str]:
    kinds = inspect.Parameter
    return [
        name
        for name, parameter in inspect.signature(declaration.function).parameters.items()
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]


def _is_model(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, DecisionModel)


def _transaction_lender(found: Any) -> Lender | None:
    if found is Transaction:
        return TransactionLender(None)
    if typing.get_origin(found) is not Transaction:
        return None
    (named,) = typing.get_args(found)
    connection = typing.get_origin(named) or named
    return TransactionLender(connection if isinstance(connection, type) else None)


class _SignatureCompiler:
    """Binds the parameters of one handler."""

    def __init__(
        self,
        declaration: Declaration,
        command: type[Command],
        models: Callable[[type], ModelFold],
        services: Mapping[type[Any], object],
        find_lender: FindLender,
    ) -> None:
        self._name = declaration.name
        self._command = command
        self._models = models
        self._services = services
        self._fields = {name: unwrap(annotation)[0] for name, annotation in field_types(command).items()}
        self._find_lender = find_lender
        self.takes_services = False
        self.lender: Lender | None = None

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
        if (lender := _transaction_lender(bare) or self._find_lender(bare)) is not None:
            return self._lent(name, lender)
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

    def _lent(self, name: str, lender: Lender) -> Any:
        if self.lender is not None:
            raise self._error(name, "is the transaction once more", "take it in one form")
        self.lender = lender
        return _LENT

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
                self._remedy_without_field(fold, identity),
            )
        raise self._error(
            name,
            f"is a {fold.name}, and {self._command.__name__} has several fields of type {identity.__name__} "
            f"({', '.join(candidates)})",
            f'name the parameter like one of them, or say Annotated[{fold.name}, By("{candidates[0]}")]',
        )

    def _remedy_without_field(self, fold: ModelFold, identity: type) -> str:
        if len(fold.identities) == 1 and tag_name(identity) in tag_reader(self._command).names:
            mapping = f"Mapping[{identity.__name__}, {fold.name}]"
            return (
                f"it has some that may be missing, or be several: take {mapping}, with one model of each that is there"
            )
        return f"add a field of type {identity.__name__} to the command"

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
