"""The query bus: from a query to its answer, all from one moment.

fresh enough? → snapshot → handler (or a key, or a filter) → value + token
▲                          │
└──── wait for the projection ◀── it touched a read model that is behind
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from diptych.errors import (
    Blocked,
    ConfigurationError,
    InvalidMessage,
    MissingService,
    Overloaded,
    StoreUnavailable,
    UnknownMessage,
)
from diptych.event_store.event_store import EventLog
from diptych.event_store.position import Place, Position, Token, said
from diptych.messages.annotations import Scope, members, parameter_types, subclasses, unwrap
from diptych.messages.codec import Codec
from diptych.messages.message import field_types
from diptych.messages.query import Query, answer_type
from diptych.read_side.freshness import Behind, Checks, Freshness, Requirement, check_wait
from diptych.read_side.overlay import Overlay
from diptych.read_side.projection import Projection
from diptych.read_side.query_source import Asking, QuerySource
from diptych.read_side.read_model import ReadModel
from diptych.read_side.read_store import ReadSnapshot
from diptych.read_side.reader import Page, Reader
from diptych.read_side.snapshot_reader import SnapshotReader

__all__ = [
    "HANDLER_S_MAX",
    "Answer",
    "Handle",
    "QueryBus",
    "QueryDeclaration",
    "QueryHandlers",
    "ReadPanel",
    "TellingReader",
    "compile_query_handlers",
    "handled",
    "query_of",
]

HANDLER_S_MAX = 60
"""Seconds that one run of a query handler may hold its snapshot; past it, `Overloaded`."""
LISTED_ROWS_MAX = 5_000
"""Rows that a query without handler lists; where more match it is refused rather than cut short."""

_ARGUMENTS = frozenset({"limit", "cursor", "order_by"})
"""What `Reader.page` takes by name for itself."""

R = TypeVar("R")
Handle = Callable[[Any, Reader], Awaitable[Any]]
"""A query and a reader to the answer."""


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
    """

    projections: Mapping[type, tuple[Projection, str]]
    store: EventLog
    source: QuerySource
    freshness: Freshness
    overlay: Overlay
    holds: Callable[[Position], Awaitable[Sequence[Place]]] | None = None

    def reader(self, snapshot: ReadSnapshot, checks: Checks) -> SnapshotReader:
        """What a handler reads a snapshot with: with what it lacks, where that is to be overlaid."""
        until = checks.requirement.overlay
        shown = snapshot if until is None else self.overlay.over(snapshot, until, checks)
        return SnapshotReader(shown, self.projections, checks)


class TellingReader(Reader, Protocol):
    """A reader that tells what it met."""

    @property
    def behind(self) -> Behind | None:
        """That something that was touched is behind, also where the handler caught it."""
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
            raise UnknownMessage("query", type(query).__name__, known, _remedy(type(query), self._models))
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

    async def answer(self, query: Query[R], requirement: Requirement, wait_s: float) -> Answer[R]:
        """Answer a query from one snapshot that meets the requirement.

        Raises:
            Overloaded: the handler takes longer than `HANDLER_S_MAX`, or too many snapshots are in use.
            NotFresh: it was not met within `wait_s` seconds.
            HistoryDiverged: a token, or rows that have to be fresh, are of what is not in the history any more.
            StoreUnavailable: neither the read store nor a replica answers.
            Blocked: strict, and a key that was touched is blocked.
            InvalidMessage: a field is of the wrong type, or a limit or cursor is none.
            UnknownMessage: nothing answers this query.
        """
        handle, settled = self._handlers.find(query)
        deadline = asyncio.get_running_loop().time() + check_wait(wait_s)
        missing: Behind | None = None
        asking = self._panel.source.asking(strict=requirement.strict)
        while True:
            async with self._panel.freshness.checks(requirement) as checks:
                try:
                    return await self._answer(asking, handle, settled, checks, missing)
                except Behind as behind:
                    missing = behind
                except (Blocked, StoreUnavailable) as error:
                    if not asking.refused(error):
                        raise
                    continue
            await self._panel.freshness.wait(missing, requirement, deadline, asking)

    async def _answer(
        self, asking: Asking, handle: Handle, query: Query[R], checks: Checks, missing: Behind | None
    ) -> Answer[R]:
        """One run of the handler, on one snapshot, which is not held for longer than the limit.

        What was missing the last time is looked at first, so that the handler does no work in vain.
        """
        limit = asyncio.timeout(HANDLER_S_MAX)
        try:
            async with limit, asking.snapshot() as snapshot:
                reader = self._panel.reader(snapshot, checks)
                if missing is not None:
                    await reader.check(missing)
                value = await handled(handle, query, reader)
                token = reader.token(self._panel.store.history_id)
                return Answer(value=value, shows=(token,), incomplete=reader.incomplete)
        except TimeoutError as error:
            if limit.expired():
                raise Overloaded("HANDLER_S_MAX", HANDLER_S_MAX) from error
            raise


async def handled(handle: Handle, query: Query[Any], reader: TellingReader) -> Any:
    """What the handler gives; `Behind` where it met a read model that is, whatever it made of that itself."""
    try:
        value = await handle(query, reader)
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
        if query not in handlers and (found := _row_of(query, by_model)) is not None:
            answered[query], is_row = found
            handlers[query] = _by_key(query, found[0]) if is_row else _by_filter(query, found[0])
    return handlers, answered


def _declared(declaration: QueryDeclaration, services: Mapping[type[Any], object]) -> Handle:
    function = declaration.function
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{declaration.name}: a query handler is an `async def`")
    types = parameter_types(function, declaration.scope, declaration.name)
    bound: dict[str, object] = {}
    reader_name = ""
    for name in list(inspect.signature(function).parameters)[1:]:
        wanted, _ = unwrap(types.get(name))
        if wanted is Reader:
            reader_name = name
        elif wanted in services:
            bound[name] = services[wanted]
        else:
            service = getattr(wanted, "__name__", "...")
            raise MissingService(declaration.name, name, "is neither the Reader nor a service", service)

    async def handle(query: Any, reader: Reader) -> Any:
        return await function(query, **bound, **({reader_name: reader} if reader_name else {}))

    return handle


def _row_of(query: type, by_model: Mapping[type, Projection]) -> tuple[Projection, bool] | None:
    """The read model that a query without handler answers with: one row (True), or a list (False)."""
    try:
        answer = answer_type(query)
    except (ConfigurationError, SyntaxError, TypeError):
        return None  # a query of someone else: asking it raises what is wrong with it
    found = _shown(answer)
    return (by_model[found[0]], found[1]) if found is not None and found[0] in by_model else None


def _shown(answer: Any) -> tuple[type[ReadModel], bool] | None:
    """The read model in the answer types `M | None`, of one row (True), and `list[M]` (False)."""
    either = members(answer)
    is_row = type(None) in either and len(either) == 2
    held = either if is_row else typing.get_args(answer) if typing.get_origin(answer) is list else ()
    model = next((each for each in held if isinstance(each, type) and issubclass(each, ReadModel)), None)
    return None if model is None else (model, is_row)


def _remedy(query: type, models: Mapping[type, object]) -> str:
    """What would make a query answered that is not."""
    try:
        answer = answer_type(query)
    except (ConfigurationError, SyntaxError, TypeError) as error:
        return str(error)
    found = _shown(answer)
    if found is None:
        return (
            f"write `@context.query_handler async def handler(query: {query.__name__}, read: Reader) -> "
            f"{inspect.formatannotation(answer)}`, in a module that its context lists"
        )
    if found[0] not in models:
        return (
            f"no projection of this application feeds {found[0].__name__}: write one in a module that its context "
            "lists, or a @context.query_handler"
        )
    return "it was defined after the application was opened: define it in a module that its context lists"


def _name(query: type) -> str:
    return f"{query.__module__}.{query.__qualname__}"


def _by_key(query: type, projection: Projection) -> Handle:
    form = projection.form
    fields = tuple(field_types(query))
    if set(fields) != set(form.key_fields):
        raise ConfigurationError(
            f"{_name(query)} has no handler, and its fields ({', '.join(fields)}) are not the key of {form.name} "
            f"({', '.join(form.key_fields)}): write a @query_handler, or name its fields like the key"
        )

    async def handle(query: Any, reader: Reader) -> ReadModel | None:
        return await reader.get(form.cls, *(getattr(query, name) for name in form.key_fields))

    return handle


def _by_filter(query: type, projection: Projection) -> Handle:
    form = projection.form
    fields = tuple(field_types(query))
    unknown = [name for name in fields if name not in form.columns]
    if unknown:
        raise ConfigurationError(
            f"{_name(query)} has no handler, and its field {unknown[0]!r} is no column of {form.name} "
            f"({', '.join(form.columns)}): write a @query_handler, or name its fields like columns"
        )
    taken = [name for name in fields if name in _ARGUMENTS]
    if taken:
        raise ConfigurationError(
            f"{_name(query)} has no handler, and its field {taken[0]!r} is named like an argument of Reader.page, "
            "which cannot filter by it: rename the column and the field, or write a @query_handler that asks with "
            "Reader.sql"
        )
    optional = {name for name in fields if not form.columns[name].nullable}

    async def handle(query: Any, reader: Reader) -> list[Any]:
        given = {name: getattr(query, name) for name in fields}
        where = {name: value for name, value in given.items() if value is not None or name not in optional}
        page: Page[Any] = await reader.page(form.cls, limit=LISTED_ROWS_MAX, **where)  # pyright: ignore[reportArgumentType] — columns only
        if page.next is not None:
            problem = f"more than {LISTED_ROWS_MAX} rows match; narrow it, or page it in a handler"
            raise InvalidMessage(type(query).__name__, [("$", problem)])
        return page.items

    return handle
