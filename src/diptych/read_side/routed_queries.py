"""Queries of one history whose read models are in one read store, or in several.

a key, or a filter, of one read model ──▶ the bus of its store alone
a handler ──▶ a snapshot of each store that it touches

"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from diptych.messages.query import Query
from diptych.read_side.freshness import Requirement
from diptych.read_side.query_bus import Answer, Handle, ListedRows, QueryBus, QueryHandlers, ReadPanel
from diptych.read_side.query_context import QueryContext
from diptych.read_side.spanning_queries import SpanningQueryBus

__all__ = ["RoutedQueries"]

R = TypeVar("R")


class RoutedQueries:
    """Answers queries from the read models of one history, each where it is kept. Made by the application.

    A query that needs no handler is asked where its read model is and nowhere else, also where its rows are streamed:
    what waits for a store that hangs takes no turn from it, nor it from that.
    """

    def __init__(
        self, handlers: Mapping[type, Handle] | QueryHandlers, panels: Sequence[ReadPanel], models: Mapping[type, type]
    ) -> None:
        """Compile the ways.

        Args:
            handlers: by query.
            panels: of each store, at least one; each read model is in one of them.
            models: by query without a handler, the read model that answers it.
        """
        known = {model: None for panel in panels for model in panel.projections}
        self._handlers = handlers if isinstance(handlers, QueryHandlers) else QueryHandlers(handlers, known)
        self._models = models
        buses = [QueryBus(self._handlers, panel) for panel in panels]
        of_model = {model: bus for bus, panel in zip(buses, panels, strict=True) for model in panel.projections}
        self._alone = {query: of_model[model] for query, model in models.items() if model in of_model}
        self._only = buses[0] if len(buses) == 1 else None
        self._spanning = SpanningQueryBus(self._handlers, panels)

    def on(self, panels: Sequence[ReadPanel]) -> RoutedQueries:
        """The same queries, answered from other panels of the same read models."""
        return RoutedQueries(self._handlers, panels, self._models)

    async def answer(
        self, query: Query[R], requirement: Requirement, wait_s: float, context: QueryContext, by: Handle | None = None
    ) -> Answer[R]:
        """Answer a query; arguments and errors as of `QueryBus.answer`."""
        of_one = by is None or isinstance(by, ListedRows)
        alone = self._only or (self._alone.get(type(query)) if of_one else None)
        if alone is not None:
            return await alone.answer(query, requirement, wait_s, context, by)

        async def require(panel: ReadPanel) -> Requirement:
            del panel  # all are of one history
            return requirement

        return await self._spanning.answer(query, require, wait_s, context, by)
