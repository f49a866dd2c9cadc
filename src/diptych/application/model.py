"""What is known of an application without running it: its parts, and what leads from which to which.

Made of the compiled contexts; no store is opened, no service needed, and no function of the application is called.
"""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from importlib import import_module
from typing import Any, NamedTuple

from diptych.application.bounded_context import BoundedContext
from diptych.application.reached_code import Sources, reached
from diptych.application.wiring import Compiled, compile_contexts
from diptych.errors import ConfigurationError
from diptych.event_store.transactions import Transaction
from diptych.messages.annotations import kebab_case, members
from diptych.messages.command import Command
from diptych.messages.query import answer_type
from diptych.process_managers.process_events import CommandRejected, InstanceEvent, Timeout
from diptych.process_managers.process_manager import ProcessDeclaration
from diptych.read_side.projection import ProjectionDeclaration, projected_events, projected_model
from diptych.read_side.query_bus import QueryDeclaration, query_of
from diptych.read_side.read_model import ReadModel
from diptych.read_side.subscriber import SubscriberDeclaration, subscribed_events
from diptych.write_side.command_handler import Declaration, command_of, decision_models, published_events
from diptych.write_side.decision_model import ModelFold

__all__ = ["ApplicationModel", "Does", "Kind", "Link", "Part", "application_model", "sent_commands"]


class Kind(enum.StrEnum):
    """What a part is."""

    COMMAND = "command"
    DECISION_MODEL = "decision model"
    EVENT = "event"
    PROJECTION = "projection"
    SUBSCRIBER = "subscriber"
    PROCESS = "process"
    READ_MODEL = "read model"
    QUERY = "query"


class Does(enum.StrEnum):
    """What the source of a link does for its target."""

    INFORMS = "informs"
    """A decision model, a command's decider."""
    GIVES = "gives"
    """A command, an event."""
    CHANGES = "changes"
    """An event, a decision model."""
    REACHES = "reaches"
    """An event, a projection, subscriber or process."""
    FEEDS = "feeds"
    """A projection, a read model."""
    ANSWERS = "answers"
    """A read model, a query."""
    SENDS = "sends"
    """A process, a command."""


class Part(NamedTuple):
    """A message, or what stands between messages.

    Attributes:
        id: unique in the application, and the same for the same code.
        name: of the class or function.
        context: the name of its bounded context.
        declared: the class; of a projection or subscriber, the function.
        note: what matters beside the name, in a few words; may be empty.
    """

    id: str
    kind: Kind
    name: str
    context: str
    declared: Any
    note: str = ""


class Link(NamedTuple):
    """What leads from one part to another, both by id."""

    source: str
    target: str
    does: Does


class ApplicationModel(NamedTuple):
    """An application as it is written.

    Attributes:
        contexts: in the order in which they were given.
        parts: by kind, then context, then in the order of declaration.
        links: in the order of their sources.
        compiled: what runs.
    """

    contexts: tuple[BoundedContext, ...]
    parts: tuple[Part, ...]
    links: tuple[Link, ...]
    compiled: Compiled

    def of(self, kind: Kind) -> list[Part]:
        """The parts of a kind, in order."""
        return [part for part in self.parts if part.kind is kind]


_PLAIN = (type(None), bool, int, float, str, bytes, Decimal, date, timedelta, enum.Enum, Transaction)
"""What no service is an instance of."""


class _EveryService(Mapping[type[Any], object]):
    """Has whatever a handler may ask for as a service: who that is, is known when the application runs."""

    def __contains__(self, kind: object) -> bool:
        if not isinstance(kind, type) or issubclass(kind, _PLAIN):
            return False
        return import_module("diptych.adapters.connect").lender(kind) is None

    def __getitem__(self, kind: type[Any]) -> object:
        if kind not in self:
            raise KeyError(kind)
        return kind

    def __iter__(self) -> Iterator[type[Any]]:
        return iter(())

    def __len__(self) -> int:
        return 0


def application_model(contexts: Sequence[BoundedContext]) -> ApplicationModel:
    """Import the modules of contexts, compile what they declare, and list it.

    Raises:
        ConfigurationError: something in the contexts does not fit.
    """
    for context in contexts:
        context.load()
    compiled = compile_contexts(contexts, _EveryService())
    drawing = _Drawing(contexts, compiled)
    return ApplicationModel(tuple(contexts), tuple(drawing.parts), tuple(dict.fromkeys(drawing.links)), compiled)


class _Drawing:
    """Collects parts, and then links."""

    def __init__(self, contexts: Sequence[BoundedContext], compiled: Compiled) -> None:
        self.parts: list[Part] = []
        self.links: list[Link] = []
        self._contexts = contexts
        self._compiled = compiled
        self._ids: dict[Any, str] = {}
        self._sources = Sources()
        kinds: tuple[Callable[[BoundedContext], None], ...] = (
            self._commands,
            self._decision_models,
            self._events,
            self._projections,
            self._subscribers,
            self._processes,
            self._read_models,
            self._queries,
        )
        for add in kinds:
            for context in contexts:
                add(context)
        for context in contexts:
            self._link(context)

    def _add(self, kind: Kind, context: str, declared: Any, note: str = "") -> None:
        if declared in self._ids:
            return
        name = declared.__name__
        taken = {part.id for part in self.parts}
        first = found = f"{kebab_case(kind).replace(' ', '-')}:{context}.{name}"
        number = 2
        while found in taken:
            found, number = f"{first}~{number}", number + 1
        self._ids[declared] = found
        self.parts.append(Part(found, kind, name, context, declared, note))

    def _join(self, source: Any, does: Does, target: Any) -> None:
        if source in self._ids and target in self._ids:
            self.links.append(Link(self._ids[source], self._ids[target], does))

    # ── parts ────────────────────────────────────────────────────────────────

    def _commands(self, context: BoundedContext) -> None:
        for declaration in context.command_handlers:
            command = command_of(declaration)
            scopes = self._compiled.handlers[command].requires
            self._add(Kind.COMMAND, context.name, command, f"needs {', '.join(sorted(scopes))}" if scopes else "")

    def _decision_models(self, context: BoundedContext) -> None:
        deciding = [self._compiled.handlers[command_of(found)] for found in context.command_handlers]
        for fold in [fold for handler in deciding for fold in handler.folds]:
            if self._home(fold) == context.name:
                of = ", ".join(identity.__name__ for identity in fold.identities)
                kept = "" if fold.form is None else ", kept"
                self._add(Kind.DECISION_MODEL, context.name, fold.cls, f"{f'by {of}' if of else 'of everything'}{kept}")

    def _home(self, fold: ModelFold) -> str:
        """Of the contexts that decide on a model, the one whose handlers stand beside it, or that has its events."""

        def nearness(context: BoundedContext) -> tuple[bool, int]:
            beside = any(found.function.__module__ == fold.cls.__module__ for found in context.command_handlers)
            return beside, sum(self._compiled.types.of(event).context == context.name for event in fold.events)

        def uses(context: BoundedContext) -> bool:
            return any(fold.cls in decision_models(found) for found in context.command_handlers)

        return max((context for context in self._contexts if uses(context)), key=nearness).name

    def _events(self, context: BoundedContext) -> None:
        known = {found.cls: found for found in self._compiled.types if found.context == context.name}
        for cls in sorted(known, key=self._order_of_events(context)):
            if not issubclass(cls, InstanceEvent):
                stored = known[cls].name
                renamed = "" if stored == f"{context.name}.{cls.__name__}" else f"as {stored}"
                self._add(Kind.EVENT, context.name, cls, "after a time" if issubclass(cls, Timeout) else renamed)

    def _order_of_events(self, context: BoundedContext) -> Callable[[type], tuple[int, str]]:
        given = [cls for declaration in context.command_handlers for cls in published_events(declaration)]
        order = {cls: index for index, cls in reversed(list(enumerate(given)))}
        return lambda cls: (order.get(cls, len(order)), cls.__qualname__)

    def _projections(self, context: BoundedContext) -> None:
        for declaration in context.projections:
            self._add(Kind.PROJECTION, context.name, declaration.function)

    def _subscribers(self, context: BoundedContext) -> None:
        for declaration in context.subscribers:
            self._add(Kind.SUBSCRIBER, context.name, declaration.function, "outside")

    def _processes(self, context: BoundedContext) -> None:
        for declaration in context.process_managers:
            retired = ", retired" if declaration.retired else ""
            heard = sum(issubclass(cls, CommandRejected) for cls in declaration.events)
            refusals = f", hears {heard} {'refusal' if heard == 1 else 'refusals'}" if heard else ""
            note = f"by {declaration.identity.__name__}{refusals}{retired}"
            self._add(Kind.PROCESS, context.name, declaration.cls, note)

    def _read_models(self, context: BoundedContext) -> None:
        for projection in self._compiled.projections:
            if projection.name.partition(".")[0] == context.name:
                slices = f", {projection.partitions} slices" if projection.partitions > 1 else ""
                expires = "" if projection.form.expiry is None else ", expires"
                note = f"by {', '.join(projection.form.key_fields)}{slices}{expires}"
                self._add(Kind.READ_MODEL, context.name, projection.form.cls, note)

    def _queries(self, context: BoundedContext) -> None:
        for query in self._compiled.query_handlers:
            if (self._compiled.queries.full_name(query) or "").partition(".")[0] == context.name:
                self._add(Kind.QUERY, context.name, query, _answer(query))

    # ── links ────────────────────────────────────────────────────────────────

    def _link(self, context: BoundedContext) -> None:
        for declaration in context.command_handlers:
            self._link_command(declaration)
        for projection in context.projections:
            self._link_projection(projection)
        for subscriber in context.subscribers:
            self._link_subscriber(subscriber)
        for process in context.process_managers:
            self._link_process(process)
        handlers = {query_of(handler): handler for handler in context.query_handlers}
        for part in self.parts:
            if part.kind is Kind.QUERY and part.context == context.name:
                self._link_query(part.declared, handlers.get(part.declared))

    def _link_command(self, declaration: Declaration) -> None:
        command = command_of(declaration)
        for event in published_events(declaration):
            self._join(command, Does.GIVES, event)
        for fold in self._compiled.handlers[command].folds:
            self._join(fold.cls, Does.INFORMS, command)
            for event in fold.events:
                self._join(event, Does.CHANGES, fold.cls)

    def _link_projection(self, declaration: ProjectionDeclaration) -> None:
        for event in projected_events(declaration):
            self._join(event, Does.REACHES, declaration.function)
        self._join(declaration.function, Does.FEEDS, projected_model(declaration))

    def _link_subscriber(self, declaration: SubscriberDeclaration) -> None:
        for event in subscribed_events(declaration):
            self._join(event, Does.REACHES, declaration.function)

    def _link_process(self, declaration: ProcessDeclaration) -> None:
        for event in declaration.events:
            if not issubclass(event, CommandRejected):
                self._join(event, Does.REACHES, declaration.cls)
        for command in sent_commands(declaration, self._sources):
            self._join(declaration.cls, Does.SENDS, command)

    def _link_query(self, query: type, declaration: QueryDeclaration | None) -> None:
        if declaration is None:
            found: Iterable[Any] = _held(answer_type(query))
        else:
            found = (named.target for named in reached(declaration.function, self._sources))
        for model in dict.fromkeys(each for each in found if isinstance(each, type) and issubclass(each, ReadModel)):
            self._join(model, Does.ANSWERS, query)


def sent_commands(declaration: ProcessDeclaration, sources: Sources) -> list[type[Command]]:
    """The commands that a process makes somewhere in the code of its `react`."""
    cls = declaration.cls
    named = [found for found in reached(cls.react, sources, cls) if found.is_called and isinstance(found.target, type)]
    return list(dict.fromkeys(found.target for found in named if issubclass(found.target, Command)))


def _answer(query: type) -> str:
    """What a query gives, as it is written, in short."""
    try:
        answer = answer_type(query)
    except (ConfigurationError, TypeError):
        return ""
    parts = [_short(member) for member in members(answer)]
    return "gives " + " | ".join(parts)


def _short(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    arguments = typing.get_args(annotation)
    name = str(getattr(typing.get_origin(annotation) or annotation, "__name__", inspect.formatannotation(annotation)))
    return f"{name}[{', '.join(_short(part) for part in arguments)}]" if arguments else name


def _held(annotation: Any) -> Iterable[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _held(part)
