"""Queries over several read stores, of one history or several: each read model is asked where it is.

The answer tells what it shows of each history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from copy import copy
from functools import partial
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import msgspec

from diptych.errors import Blocked, ConfigurationError, StoreUnavailable
from diptych.event_store.position import NOWHERE, START, Place, Token
from diptych.messages.query import Query
from diptych.read_side.freshness import Behind, Requirement, check_wait
from diptych.read_side.query_bus import Answer, Handle, Handled, ListedRows, QueryHandlers, ReadPanel, handled
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_limits import RowCount, TimeLimit
from diptych.read_side.query_source import Asking
from diptych.read_side.read_model import ReadModel
from diptych.read_side.reader import Page
from diptych.read_side.snapshot_reader import SnapshotReader
from diptych.read_side.snapshot_turns import SnapshotTurns

__all__ = ["SpanningQueryBus"]

SPANNING_ANSWERS_MAX = 6
"""Answers from several read stores at once, in one process: fewer than there are snapshots of each, beside those that
streams hold, so that those that wait for a store that hangs leave room in the others."""

M = TypeVar("M", bound=ReadModel)
R = TypeVar("R")
S = TypeVar("S", bound=msgspec.Struct)
Require = Callable[[ReadPanel], Awaitable[Requirement]]
"""What an answer has to show of a history, told when it is first touched."""


class _Visit(NamedTuple):
    """What one query has to do with one read store, over all its runs."""

    panel: ReadPanel
    requirement: Requirement
    asking: Asking


class SpanningQueryBus:
    """Answers queries from read models in several read stores. Made by the application.

    Of each store that a query touches it sees one snapshot; those of two stores are of two moments, and the token of
    their history spans both.

    Attributes:
        panels: where each read model is asked for.
    """

    def __init__(self, handlers: Mapping[type, Handle] | QueryHandlers, panels: Sequence[ReadPanel]) -> None:
        self.panels = {model: panel for panel in panels for model in panel.projections}
        found = handlers if isinstance(handlers, QueryHandlers) else QueryHandlers(handlers, self.panels)
        self._handlers = found
        self._first = panels[0]
        self._turns = SnapshotTurns(SPANNING_ANSWERS_MAX)

    def on(self, panels: Sequence[ReadPanel]) -> SpanningQueryBus:
        """The same queries, answered from other panels of the same read models."""
        return SpanningQueryBus(self._handlers, panels)

    async def answer(
        self, query: Query[R], require: Require, wait_s: float, context: QueryContext, by: Handle | None = None
    ) -> Answer[R]:
        """Answer a query; arguments and errors as of `QueryBus.answer`."""
        handle, settled = self._handlers.find(query)
        deadline = asyncio.get_running_loop().time() + check_wait(wait_s)
        visits: dict[int, _Visit] = {}
        missing: Behind | None = None
        while True:
            reader = SpanningReader(self.panels, visits, require)
            try:
                handled_by = partial(by or handle, settled)
                if isinstance(by, ListedRows):
                    return await self._answer(handled_by, context, reader, missing)
                return await self._in_turn(handled_by, context, reader, missing)
            except Behind as behind:
                visit = visits[id(self.panels[behind.projection.form.cls])]
                await visit.panel.freshness.wait(behind, visit.requirement, deadline, visit.asking)
                missing = behind
            except (Blocked, StoreUnavailable) as error:
                if reader.refused is None or not reader.refused.asking.refused(error):
                    raise

    async def _in_turn(
        self, handle: Handled, context: QueryContext, reader: SpanningReader, missing: Behind | None
    ) -> Answer[Any]:
        """One run, of fewer at once than have a snapshot of every store: none holds one and waits for another."""
        await self._turns.take()
        try:
            return await self._answer(handle, context, reader, missing)
        finally:
            self._turns.give_back()

    async def _answer(
        self, handle: Handled, context: QueryContext, reader: SpanningReader, missing: Behind | None
    ) -> Answer[Any]:
        async with TimeLimit(context.query, context.limits.seconds), reader:
            if missing is not None:
                await reader.check(missing)
            value = await handled(handle, reader, context)
            shown = await reader.shown() or (_nothing_of(self._first),)
            return Answer(value=value, shows=shown, incomplete=reader.incomplete)


def _nothing_of(panel: ReadPanel) -> Token:
    return Token(START, Place(panel.store.history_id, START, NOWHERE))


async def _merged_from(panel: ReadPanel, token: Token) -> Sequence[Token]:
    """What a token of a merged log is in the histories that it is merged from."""
    if panel.holds is None:
        return ()
    highs = await panel.holds(token.high.position)
    lows = highs if token.low == token.high.position else await panel.holds(token.low)
    low = {place.history_id: place.position for place in lows}
    return [Token(low.get(place.history_id, START), place) for place in highs]


class SpanningReader:
    """Implements `Reader` over snapshots of several read stores, each opened when it is first touched."""

    def __init__(self, panels: Mapping[type, ReadPanel], visits: dict[int, _Visit], require: Require) -> None:
        self._refused: list[_Visit] = []
        self.context: QueryContext | None = None
        self.counted: RowCount | None = None
        self._panels = panels
        self._visits = visits
        self._require = require
        self._readers: dict[int, SnapshotReader] = {}
        self._snapshots = AsyncExitStack()
        self._turn = asyncio.Lock()  # a handler may ask for several things at once, of one snapshot of each store

    async def __aenter__(self) -> None:
        await self._snapshots.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._snapshots.__aexit__(kind, error, trace)

    @property
    def behind(self) -> Behind | None:
        """See `TellingReader.behind`."""
        return next((reader.behind for reader in self._readers.values() if reader.behind is not None), None)

    @property
    def refused(self) -> _Visit | None:
        """Where the last error came from, if one did."""
        return self._refused[-1] if self._refused else None

    def narrowed(self, context: QueryContext, counted: RowCount | None = None) -> SpanningReader:
        """See `SnapshotReader.narrowed`."""
        found = copy(self)
        found.context = context
        found.counted = counted or RowCount(context.query, context.limits.rows, self.counted)
        return found

    @property
    def incomplete(self) -> bool:
        """Whether something that was touched waits behind a blocked key."""
        return any(reader.incomplete for reader in self._readers.values())

    async def shown(self) -> tuple[Token, ...]:
        """What the answer shows of each history that was touched, or that one which was is merged from."""
        found: dict[bytes, Token] = {}
        for place, reader in self._readers.items():
            panel = self._visits[place].panel
            token = reader.token(panel.store.history_id)
            for each in (token, *await _merged_from(panel, token)):
                other = found.get(each.high.history_id, each)
                high = max(each.high, other.high, key=attrgetter("position"))
                found[high.history_id] = Token(min(each.low, other.low), high)
        return tuple(found.values())

    async def check(self, missing: Behind) -> None:
        """See `SnapshotReader.check`."""
        await self._at(missing.projection.form.cls, lambda reader: reader.check(missing))

    # ── Reader ───────────────────────────────────────────────────────────────

    async def get(self, model: type[M], /, *key: object) -> M | None:
        """See `Reader.get`."""
        return await self._of(model, lambda reader: reader.get(model, *key))

    async def get_many(self, model: type[M], keys: Sequence[object], /) -> dict[Any, M]:
        """See `Reader.get_many`."""
        return await self._of(model, lambda reader: reader.get_many(model, keys))

    async def find(self, model: type[M], /, *, order_by: str = "", limit: int = 100, **where: object) -> list[M]:
        """See `Reader.find`."""
        return await self._of(model, lambda reader: reader.find(model, order_by=order_by, limit=limit, **where))

    async def page(
        self, model: type[M], /, *, order_by: str = "", limit: int = 100, cursor: str | None = None, **where: object
    ) -> Page[M]:
        """See `Reader.page`."""
        return await self._of(
            model, lambda reader: reader.page(model, order_by=order_by, limit=limit, cursor=cursor, **where)
        )

    async def count(self, model: type[M], /, **where: object) -> int:
        """See `Reader.count`."""
        return await self._of(model, lambda reader: reader.count(model, **where))

    async def search(self, model: type[M], text: str, /, *, limit: int = 100) -> list[M]:
        """See `Reader.search`."""
        return await self._of(model, lambda reader: reader.search(model, text, limit=limit))

    async def sql(
        self, result: type[S], statement: str, /, *parameters: object, touches: Sequence[type[ReadModel]]
    ) -> list[S]:
        """See `Reader.sql`; all that it touches is in one read store.

        Raises:
            ConfigurationError: it touches read models of two, or none.
        """
        panels = {id(self._panel(model)) for model in touches}
        if len(panels) != 1:
            named = ", ".join(model.__name__ for model in touches) or "none"
            raise ConfigurationError(f"one SQL statement reads the read models of one read store; it touches {named}")
        return await self._of(touches[0], lambda reader: reader.sql(result, statement, *parameters, touches=touches))

    # ── where ────────────────────────────────────────────────────────────────

    def _panel(self, model: type[ReadModel]) -> ReadPanel:
        found = self._panels.get(model)
        if found is None:
            raise ConfigurationError(f"no projection of this application feeds {model.__name__}")
        return found

    async def _of(self, model: type[ReadModel], ask: Callable[[SnapshotReader], Awaitable[R]]) -> R:
        context, counted = self.context, self.counted
        assert context is not None, "a reader is narrowed before anything is read with it"
        return await self._at(model, lambda reader: ask(reader.narrowed(context, counted)))

    async def _at(self, model: type[ReadModel], ask: Callable[[SnapshotReader], Awaitable[R]]) -> R:
        panel = self._panel(model)
        async with self._turn:
            visit = await self._visit(panel)
            try:
                reader = await self._reader(visit)
            except (Blocked, StoreUnavailable):
                self._refused.append(visit)
                raise
        try:
            return await ask(reader)
        except (Blocked, StoreUnavailable):
            self._refused.append(visit)
            raise

    async def _visit(self, panel: ReadPanel) -> _Visit:
        found = self._visits.get(id(panel))
        if found is None:
            requirement = await self._require(panel)
            found = _Visit(panel, requirement, panel.source.asking(strict=requirement.strict))
            self._visits[id(panel)] = found
        return found

    async def _reader(self, visit: _Visit) -> SnapshotReader:
        place = id(visit.panel)
        if place not in self._readers:
            panel = visit.panel
            checks = await self._snapshots.enter_async_context(panel.freshness.checks(visit.requirement))
            snapshot = await self._snapshots.enter_async_context(visit.asking.snapshot())
            self._readers[place] = panel.reader(snapshot, checks)
        return self._readers[place]
