"""Static checks: what is wrong with an application, told from its code alone.

A finding is only made where it is certain. What cannot be told from the code, nothing is said of.
"""

from __future__ import annotations

import inspect
import operator
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from diptych.application.bounded_context import BoundedContext
from diptych.application.hidden_inputs import hidden_input
from diptych.application.model import ApplicationModel, Does, Kind, sent_commands
from diptych.application.reached_code import Place, Sources, place_of, reached
from diptych.application.totality import unhandled
from diptych.errors import ConfigurationError
from diptych.messages.annotations import members, parameter_types, subclasses
from diptych.messages.command import Command
from diptych.messages.event import Event
from diptych.messages.query import Query, answer_type
from diptych.read_side.projection import ProjectionDeclaration, projected_events, projected_model
from diptych.read_side.query_bus import query_of
from diptych.write_side.command_handler import command_of, published_events

__all__ = ["Finding", "findings", "misfit"]

EVENTS_NAMED_MAX = 5
"""Event classes that one finding names; of more, it tells how many there are."""


class Finding(NamedTuple):
    """Something that is wrong, or may be.

    Attributes:
        code: which kind of finding it is; stays the same from version to version.
        severity: an error fails when it is run, sooner or later; a warning may be meant.
        place: where it is written.
        problem: what is wrong.
        remedy: what to do.
    """

    code: str
    severity: Literal["error", "warning"]
    place: Place
    problem: str
    remedy: str


class _Fold(NamedTuple):
    """A function that has to come to the same whenever it is run.

    Attributes:
        owner: the class whose method it is.
        what: what it does, in a word.
        events: what its event may be of; empty where it takes none.
        parameter: the name of that.
    """

    function: Callable[..., Any]
    owner: type | None
    what: Literal["decider", "evolve", "react", "projection", "key", "upcaster"]
    name: str
    events: Sequence[type[Event]] = ()
    parameter: str = ""


def findings(model: ApplicationModel) -> list[Finding]:
    """Everything that is wrong with an application, by place."""
    sources = Sources()
    found = [
        *_without_handler(model, sources),
        *_without_reader(model),
        *_hidden(model, sources),
        *_partial(model, sources),
        *_slow(model),
    ]
    return sorted(dict.fromkeys(found), key=operator.attrgetter("place", "code", "problem"))


def misfit(error: ConfigurationError, contexts: Sequence[BoundedContext]) -> Finding:
    """What an application is not compiled for, as a finding: at the function or class that the error names, if any."""
    told = str(error)
    declared: list[tuple[str, Any]] = []
    for context in contexts:
        by_name = (context.command_handlers, context.query_handlers, context.projections, context.subscribers)
        declared += [(declaration.name, declaration.function) for kind in by_name for declaration in kind]
        declared += [(declaration.name, declaration.function) for declaration in context.upcasters]
        declared += [(declaration.cls.__name__, declaration.cls) for declaration in context.process_managers]
    named = [(name, function) for name, function in declared if name in told]
    place = place_of(max(named, key=lambda found: len(found[0]))[1]) if named else Place("", 0)
    remedy = "the application does not open before this is mended; what else there is to find comes after it"
    return Finding("does-not-compile", "error", place, told, remedy)


# ── messages ─────────────────────────────────────────────────────────────────


def _without_handler(model: ApplicationModel, sources: Sources) -> Iterator[Finding]:
    homes = _homes(model)
    handled = model.compiled.handlers.keys() | model.compiled.query_handlers.keys() | _handled_elsewhere(homes)
    for base, what in ((Command, "command"), (Query, "query")):
        for cls in subclasses(base):
            if cls not in handled and _home(cls) in homes and len(subclasses(cls)) == 1:
                yield _unhandled(cls, what, place_of(cls), f"{cls.__name__} has no handler")
    for context in model.contexts:
        for process in context.process_managers:
            for command in sent_commands(process, sources):
                if command not in handled:
                    problem = f"{process.cls.__name__} sends {command.__name__}, which has no handler"
                    yield _unhandled(command, "command", place_of(process.cls.react), problem)


def _unhandled(cls: type, what: str, place: Place, problem: str) -> Finding:
    name = cls.__name__
    remedy = (
        f"write a @context.{what}_handler that takes a {name} first, in a module that its context lists; "
        "or check that context as well"
    )
    return Finding(f"{what}-without-handler", "error", place, problem, remedy)


def _homes(model: ApplicationModel) -> set[tuple[str, str]]:
    """Where the contexts' own messages are: the scopes of what they declare, handle and publish."""
    found = {_home(part.declared) for part in model.parts if part.kind in (Kind.COMMAND, Kind.QUERY)}
    for context in model.contexts:
        declared = (context.command_handlers, context.query_handlers, context.projections, context.subscribers)
        found |= {_home(declaration.function) for kind in declared for declaration in kind}
        found |= {_home(declaration.cls) for declaration in context.process_managers}
        for handler in context.command_handlers:
            found |= {_home(cls) for cls in published_events(handler) if _is_own(model, cls, context)}
    return found


def _handled_elsewhere(homes: Collection[tuple[str, str]]) -> set[type]:
    """The commands and queries that some context handles which is imported, looked at or not."""
    distributions = {module.partition(".")[0] for module, _ in homes}
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in distributions]
    known = [found for module in modules for found in vars(module).values() if isinstance(found, BoundedContext)]
    handled: set[type] = set()
    fed: set[type] = set()
    for context in known:
        handled |= {command_of(found) for found in context.command_handlers}
        handled |= {query_of(found) for found in context.query_handlers}
        fed |= {projected_model(found) for found in context.projections}
    return handled | {query for query in subclasses(Query) if _home(query) in homes and _is_answered_by(query, fed)}


def _is_answered_by(query: type, fed: Collection[type]) -> bool:
    try:
        answer = answer_type(query)
    except ConfigurationError:
        return False
    return any(held in fed for part in members(answer) for held in (part, *typing.get_args(part)))


def _is_own(model: ApplicationModel, cls: type, context: BoundedContext) -> bool:
    return model.compiled.types.of(cls).context == context.name


def _home(declared: Any) -> tuple[str, str]:
    """A module, or a function in it; tests define messages in functions."""
    return declared.__module__, declared.__qualname__.rpartition("<locals>")[0]


def _without_reader(model: ApplicationModel) -> Iterator[Finding]:
    read = {link.source for link in model.links if link.does in (Does.CHANGES, Does.REACHES)}
    listed = {cls for context in model.contexts for cls in context.events}
    for part in model.of(Kind.EVENT):
        if part.id not in read and part.declared not in listed:
            yield Finding(
                "event-without-reader",
                "warning",
                place_of(part.declared),
                f"{part.name} is stored, and no decision model, projection, subscriber or process takes it",
                f"fold it; or, where it is kept for later or for others, say so: BoundedContext({part.context!r}, "
                f"events=[{part.name}])",
            )


# ── purity ───────────────────────────────────────────────────────────────────


def _hidden(model: ApplicationModel, sources: Sources) -> Iterator[Finding]:
    for fold in _folds(model):
        for named in reached(fold.function, sources, fold.owner):
            hidden = hidden_input(named, decides=fold.what == "decider")
            if hidden is not None:
                through = (
                    "" if named.written.function is fold.function else f", by {named.written.function.__qualname__},"
                )
                yield Finding(
                    hidden.code,
                    "error" if hidden.is_certain else "warning",
                    Place(named.written.file, named.line),
                    f"{fold.name}{through} names {named.text}, which {hidden.what}",
                    _REMEDIES[hidden.code, fold.what == "decider"],
                )


_REMEDIES = {
    ("reads-clock", True): "take `context: CommandContext`: its `now` is the time of the command, also where it is "
    "decided again",
    (
        "reads-clock",
        False,
    ): "take `context: EventContext`: its `recorded_at` is when the event was appended; or let the "
    "event carry the time",
    (
        "reads-chance",
        True,
    ): "it comes out otherwise where it is decided again: let the command carry it, or an identity "
    "be made by SomeId.new()",
    (
        "reads-chance",
        False,
    ): "it comes out otherwise with every rebuild: let the decider choose, and the event carry it",
    ("reaches-outside", True): "make the handler async, or let it take a service: such a handler is run once, and "
    "nothing waits for it",
    ("reaches-outside", False): "let a subscriber do it, or a process send a command; a fold is run again by every "
    "rebuild",
}


def _folds(model: ApplicationModel) -> Iterator[_Fold]:
    """Everything that has to be pure, each function once."""
    compiled = model.compiled
    for part in model.of(Kind.DECISION_MODEL):
        events = next(
            fold.events for each in compiled.handlers.values() for fold in each.folds if fold.cls is part.declared
        )
        yield _Fold(
            part.declared.evolve, part.declared, "evolve", f"{part.name}.evolve", events, _second(part.declared.evolve)
        )
    for context in model.contexts:
        for handler in context.command_handlers:
            found = next(each for each in compiled.handlers.values() if each.name == handler.name)
            if found.pure:
                yield _Fold(handler.function, None, "decider", handler.function.__name__)
        for projection in context.projections:
            yield from _functions(projection)
        for process in context.process_managers:
            react = process.cls.react
            yield _Fold(react, process.cls, "react", f"{process.cls.__name__}.react", process.events, _second(react))
        for upcaster in context.upcasters:
            yield _Fold(upcaster.function, None, "upcaster", f"the upcaster {upcaster.name.rpartition('.')[2]}")


def _functions(projection: ProjectionDeclaration) -> Iterator[_Fold]:
    name = projection.function.__name__
    events, parameter = projected_events(projection), _event_parameter(projection)
    yield _Fold(projection.function, None, "projection", name, events, parameter)
    for option in ("key", "keys", "each"):
        function = getattr(projection, option)
        if function is not None:
            yield _Fold(function, None, "key", f"{option}= of {name}")


def _second(method: Callable[..., Any]) -> str:
    return list(inspect.signature(method).parameters)[1]


def _event_parameter(declaration: ProjectionDeclaration) -> str:
    types = parameter_types(declaration.function, declaration.scope, declaration.name)
    taken = [name for name in inspect.signature(declaration.function).parameters if _is_event(types.get(name))]
    return taken[0]


def _is_event(annotation: Any) -> bool:
    return any(isinstance(each, type) and issubclass(each, Event) for each in members(annotation))


# ── totality ─────────────────────────────────────────────────────────────────


def _partial(model: ApplicationModel, sources: Sources) -> Iterator[Finding]:
    for fold in _folds(model):
        if not fold.events or (written := sources.written(fold.function, fold.owner)) is None:
            continue
        left_out = unhandled(written, fold.parameter, fold.events)
        if left_out:
            names = ", ".join(cls.__name__ for cls in left_out[:EVENTS_NAMED_MAX])
            more = f" and {len(left_out) - EVENTS_NAMED_MAX} more" if len(left_out) > EVENTS_NAMED_MAX else ""
            deletes = _may_give_none(fold)
            yield Finding(
                "fold-not-total",
                "warning" if deletes else "error",
                place_of(fold.function),
                f"{fold.name} takes {names}{more}, and has nothing for it: it ends without a return",
                "it gives None then, which deletes the row: add a case; where that is meant, say `return None`"
                if deletes
                else "add a case for it (`return self`, or the row, where nothing changes), or leave it out of the "
                "annotation",
            )


def _may_give_none(fold: _Fold) -> bool:
    if fold.what != "projection":
        return False
    returns = fold.function.__annotations__.get("return")
    return "None" in returns if isinstance(returns, str) else type(None) in members(returns)


# ── speed ────────────────────────────────────────────────────────────────────


def _slow(model: ApplicationModel) -> Iterator[Finding]:
    """Folds that have no fast way, with the reason."""
    for projection in model.compiled.projections:
        if projection.partitions == 1:
            continue
        split = f"{projection.form.name} is split into {projection.partitions} slices, and"
        for fold in projection.told_by_row:
            yield Finding(
                "every-slice-folds-all",
                "warning",
                place_of(fold),
                f"{split} only the row that {fold.__name__} gives tells its key: every slice folds every event, and "
                "throws away what is not its own",
                "name fields of the event like the key fields, or compute the key with key=function",
            )
        for fold, columns in projection.finding:
            yield Finding(
                "every-slice-finds-all",
                "warning",
                place_of(fold),
                f"{split} {fold.__name__} finds rows by {', '.join(columns)}: every slice reads all that an event "
                "finds, and throws away what is not its own",
                "leave partitions= out, unless other events are most of the work; or let the event carry the keys, and "
                "say keys=function",
            )
