"""The query bus: from a query to its answer, all from one moment.

fresh enough? → snapshot → handler (or a key, or a filter) → value + token
▲                          │
└──── wait for the projection ◀── it touched a read model that is behind
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from diptych.errors import (
    Blocked,
    ConfigurationError,
    MissingService,
    StoreUnavailable,
    UnknownMessage,
)
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import Place, Position, Token, said
from diptych.messages.annotations import Scope, parameter_types, subclasses, unwrap
from diptych.messages.codec import Codec
from diptych.messages.message import field_types
from diptych.messages.query import Query
from diptych.read_side.declared_queries import Listing, by_key, remedy, row_of
from diptych.read_side.freshness import Behind, Checks, Freshness, Requirement, check_wait
from diptych.read_side.overlay import Overlay
from diptych.read_side.projection import Projection
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_limits import RowCount, TimeLimit
from diptych.read_side.query_source import Asking, QuerySource
from diptych.read_side.read_store import ReadSnapshot
from diptych.read_side.reader import Reader
from diptych.read_side.snapshot_reader import SnapshotReader

__all__ = [
    "Answer",
    "Handle",
    "Handled",
    "ListedRows",
    "QueryBus",
    "QueryDeclaration",
    "QueryHandlers",
    "ReadPanel",
    "TellingReader",
    "answered",
    "compile_query_handlers",
    "handled",
    "query_of",
]

R = TypeVar("R")
Handle = Callable[[Any, Reader, QueryContext], Awaitable[Any]]
"""A query, a reader and who asks to the answer."""
Handled = Callable[[Reader, QueryContext], Awaitable[Any]]
"""A handler that has its query."""
RunLimit = Callable[[QueryContext], AbstractAsyncContextManager[None]]
"""Ends a run that takes too long."""


class ListedRows:
    """A handle that asks for nothing but rows of the one read model which the query lists, and of which there are few.

    So it waits for no other read store than that, and takes no turn from those that may.
    """

    def __init__(self, handle: Handle) -> None:
        """Remember the handle."""
        self._handle = handle

    def __call__(self, query: Any, reader: Reader, context: QueryContext) -> Awaitable[Any]:
        """What it gives."""
        return self._handle(query, reader, context)


class QueryDeclaration(NamedTuple):
    """A function that was declared a query handler, and the names around it."""

    function: Callable[..., Any]
    scope: Scope

    @property
    def name(self) -> str:
        """Where the function is, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


class Answer(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """What a query gives, together with what it shows.

    Attributes:
        value: the answer.
        shows: from which position on, and up to which, a history is in it: of each partition that it is from.
        incomplete: whether events of a blocked key are missing from it; a strict read raises `Blocked` instead.
    """

    value: R
    shows: tuple[Token, ...]
    incomplete: bool = False

    @property
    def token(self) -> str:
        """The consistency token: give it to a later `query(after=...)`, which then never shows less."""
        return said(self.shows)


class ReadPanel(NamedTuple):
    """The read models of one history, as queries meet them.

    Attributes:
        projections: by read model, with the fingerprint of this process's code.
        store: the history that they are folded from.
        source: where queries are asked.
        freshness: tells how fresh the rows are, and waits for them.
        overlay: folds what they lack onto them.
        holds: of a log that is merged from histories, tells up to where it holds each, at a position of its own.
        serving_old: whether rows of other code are shown where none of this code answer.
    """

    projections: Mapping[type, tuple[Projection, str]]
    store: EventLog
    source: QuerySource
    freshness: Freshness
    overlay: Overlay
    holds: Callable[[Position], Awaitable[Sequence[Place]]] | None = None
    serving_old: bool = False

    def reader(self, snapshot: ReadSnapshot, checks: Checks) -> SnapshotReader:
        """What a handler reads a snapshot with: with what it lacks, where that is to be overlaid."""
        until = checks.requirement.overlay
        shown = snapshot if until is None else self.overlay.over(snapshot, until, checks)
        return SnapshotReader(shown, self.projections, checks, serving_old=self.serving_old)


class TellingReader(Reader, Protocol):
    """A reader that tells what it met."""

    @property
    def behind(self) -> Behind | None:
        """That something that was touched is behind, also where the handler caught it."""
        ...

    @property
    def incomplete(self) -> bool:
        """Whether something that was touched waits behind a blocked key."""
        ...

    async def shown(self) -> tuple[Token, ...]:
        """What was touched so far shows of each history; nothing where nothing was."""
        ...

    def narrowed(self, context: QueryContext, counted: RowCount | None = None) -> TellingReader:
        """The same reader for whoever sees no other rows than the context says; all of it is shared.

        What is read counts towards the limits of the context, and of the reader that is narrowed; or towards `counted`.
        """
        ...


class QueryHandlers:
    """The compiled handler of each query."""

    def __init__(self, handlers: Mapping[type, Handle], models: Mapping[type, object]) -> None:
        self._handlers = handlers
        self._codecs = {query: Codec(query) for query in handlers}
        self._models = models

    def find(self, query: Query[R]) -> tuple[Handle, Query[R]]:
        """The query's handler, and the query as its codec settles it.

        Raises:
            InvalidMessage: a field is of the wrong type.
            UnknownMessage: nothing answers this query.
        """
        handle = self._handlers.get(type(query))
        if handle is None:
            known = [found.__name__ for found in self._handlers]
            raise UnknownMessage("query", type(query).__name__, known, remedy(type(query), self._models))
        return handle, self._codecs[type(query)].settle(query)[1]


class QueryBus:
    """Answers queries from the read models of one history. Made by the application."""

    def __init__(self, handlers: Mapping[type, Handle] | QueryHandlers, panel: ReadPanel) -> None:
        found = handlers if isinstance(handlers, QueryHandlers) else QueryHandlers(handlers, panel.projections)
        self._handlers = found
        self._panel = panel

    def on(self, panel: ReadPanel) -> QueryBus:
        """The same queries, answered from another panel of the same read models."""
        return QueryBus(self._handlers, panel)

    async def answer(
        self,
        query: Query[R],
        requirement: Requirement,
        wait_s: float,
        context: QueryContext,
        by: Handle | None = None,
    ) -> Answer[R]:
        """Answer a query from one snapshot that meets the requirement.

        Args:
            query: what is asked.
            requirement: what the read models that it touches have to show.
            wait_s: for how long to wait for that.
            context: who asks, and which rows they see.
            by: what answers, instead of the query's own handler.

        Raises:
            QueryTimedOut: one run of the handler takes longer than it may.
            QueryTooCostly: it asks for more rows than it may.
            Overloaded: too many snapshots are in use.
            NotFresh: it was not met within `wait_s` seconds.
            HistoryDiverged: a token, or rows that have to be fresh, are of what is not in the history any more.
            StoreUnavailable: neither the read store nor a replica answers.
            Blocked: strict, and a key that was touched is blocked.
            InvalidMessage: a field is of the wrong type, or a limit or cursor is none.
            UnknownMessage: nothing answers this query.
        """
        handle, settled = self._handlers.find(query)
        return await answered(self._panel, partial(by or handle, settled), requirement, wait_s, context)


def _as_allowed(context: QueryContext) -> TimeLimit:
    return TimeLimit(context.query, context.limits.seconds)


async def answered(
    panel: ReadPanel,
    handle: Handled,
    requirement: Requirement,
    wait_s: float,
    context: QueryContext,
    limit: RunLimit = _as_allowed,
) -> Answer[Any]:
    """What a handler gives of one snapshot of a panel that meets the requirement. Errors as of `QueryBus.answer`.

    It is run again where a read model that it touches is behind, or a replica is gone.
    """
    deadline = asyncio.get_running_loop().time() + check_wait(wait_s)
    missing: Behind | None = None
    asking = panel.source.asking(strict=requirement.strict)
    while True:
        async with panel.freshness.checks(requirement) as checks:
            try:
                async with limit(context):
                    return await _run(panel, asking, handle, context, checks, missing)
            except Behind as behind:
                missing = behind
            except (Blocked, StoreUnavailable) as error:
                if not asking.refused(error):
                    raise
                continue
        await panel.freshness.wait(missing, requirement, deadline, asking)


async def _run(
    panel: ReadPanel, asking: Asking, handle: Handled, context: QueryContext, checks: Checks, missing: Behind | None
) -> Answer[Any]:
    """One run of the handler, on one snapshot.

    What was missing the last time is looked at first, so that the handler does no work in vain.
    """
    async with asking.snapshot() as snapshot:
        reader = panel.reader(snapshot, checks)
        if missing is not None:
            await reader.check(missing)
        value = await handled(handle, reader, context)
        token = reader.token(panel.store.history_id)
        return Answer(value=value, shows=(token,), incomplete=reader.incomplete)


async def handled(handle: Handled, reader: TellingReader, context: QueryContext) -> Any:
    """What the handler gives; `Behind` where it met a read model that is, whatever it made of that itself."""
    try:
        value = await handle(reader.narrowed(context), context)
    except Exception:
        if reader.behind is None:
            raise
        value = None
    if reader.behind is not None:
        raise reader.behind
    return value


# ── compiling ────────────────────────────────────────────────────────────────


def query_of(declaration: QueryDeclaration) -> type[Query[Any]]:
    """The query class that a handler's first parameter is annotated with.

    Raises:
        ConfigurationError: it has no such parameter.
    """
    parameters = list(inspect.signature(declaration.function).parameters)
    if parameters:
        types = parameter_types(declaration.function, declaration.scope, declaration.name, only=parameters[:1])
        found, _ = unwrap(types.get(parameters[0]))
        if isinstance(found, type) and issubclass(found, Query):
            return found
    raise ConfigurationError(f"{declaration.name}: annotate the first parameter with the query that it answers")


def compile_query_handlers(
    declarations: Sequence[QueryDeclaration],
    projections: Sequence[Projection],
    services: Mapping[type[Any], object],
) -> tuple[dict[type, Handle], dict[type, Projection]]:
    """The handlers declared, and one for each query whose answer is a row or a list of a read model.

    The queries that need no handler are given again, each with the projection whose read model answers it.

    Raises:
        ConfigurationError: a parameter cannot be bound, a query is handled twice, or one has no handler and needs one.
    """
    handlers: dict[type, Handle] = {}
    for declaration in declarations:
        query = query_of(declaration)
        if query in handlers:
            raise ConfigurationError(f"{declaration.name}: {query.__name__} has a handler already")
        handlers[query] = _declared(declaration, services)
    by_model = {projection.form.cls: projection for projection in projections}
    answered: dict[type, Projection] = {}
    for query in subclasses(Query):
        if query not in handlers and (found := row_of(query, by_model)) is not None:
            projection, shown = found
            answered[query] = projection
            if shown.form == "row":
                handlers[query] = by_key(query, projection)
            elif shown.form == "list" or "cursor" in field_types(query):
                handlers[query] = Listing(query, projection.form, paged=shown.form == "page")
    return handlers, answered


def _declared(declaration: QueryDeclaration, services: Mapping[type[Any], object]) -> Handle:
    function = declaration.function
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{declaration.name}: a query handler is an `async def`")
    types = parameter_types(function, declaration.scope, declaration.name)
    bound: dict[str, object] = {}
    reader_name = context_name = ""
    for name in list(inspect.signature(function).parameters)[1:]:
        wanted, _ = unwrap(types.get(name))
        if wanted is Reader:
            reader_name = name
        elif wanted is QueryContext:
            context_name = name
        elif wanted in services:
            bound[name] = services[wanted]
        else:
            service = getattr(wanted, "__name__", "...")
            raise MissingService(
                declaration.name, name, "is neither the Reader, the QueryContext nor a service", service
            )

    async def handle(query: Any, reader: Reader, context: QueryContext) -> Any:
        given = {name: value for name, value in ((reader_name, reader), (context_name, context)) if name}
        return await function(query, **bound, **given)

    return handle
