"""The way of a query before it is asked: through every middleware, the first one outermost, to the scopes it requires.

    asked ──▶ middleware ──▶ … ──▶ scopes ──▶ the query bus
                 ╰── who may see which rows: context.only(Order, customer=context.actor)

Whatever asks goes this way: a query and each of several at once, every answer of a live query, every page of a stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from diptych.errors import Blocked, Forbidden
from diptych.messages.codec import Codec
from diptych.messages.query import Query
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext

__all__ = ["NextQuery", "QueryMiddleware", "QueryWay"]

NextQuery: TypeAlias = Callable[[Query[Any], QueryContext], Awaitable[Answer[Any]]]
"""The rest of the way of a query, from inside a middleware."""
QueryMiddleware: TypeAlias = Callable[[Query[Any], QueryContext, NextQuery], Awaitable[Answer[Any]]]
"""Wraps the way of every query: `async def own(query, context, proceed): return await proceed(query, context)`."""


class QueryWay:
    """The way of the queries of one application.

    Args:
        middleware: the first outermost.
        requires: the scopes that queries require, by class.
    """

    def __init__(self, middleware: Sequence[QueryMiddleware], requires: Mapping[type, frozenset[str]]) -> None:
        self._middleware = tuple(middleware)
        self._requires = requires
        self._codecs: dict[type, Codec] = {}

    async def go(self, query: Query[Any], context: QueryContext, reach: NextQuery) -> Answer[Any]:
        """The answer that comes of it, once everyone has let the query through.

        Raises:
            Forbidden: the query requires a scope that the actor does not have.
            InvalidMessage: a field is of the wrong type.
        """
        if not self._middleware:
            return await self._reach(query, context, reach)
        codec = self._codecs.get(type(query))
        if codec is None:
            codec = self._codecs[type(query)] = Codec(type(query))

        async def innermost(reached: Query[Any], narrowed: QueryContext) -> Answer[Any]:
            return await self._reach(reached, narrowed, reach)

        proceed: NextQuery = innermost
        for middleware in reversed(self._middleware):
            proceed = _wrapped(middleware, proceed)
        return await proceed(codec.settle(query)[1], context)

    async def _reach(self, query: Query[Any], context: QueryContext, reach: NextQuery) -> Answer[Any]:
        """The answer to a query that every middleware let through."""
        required = self._requires.get(type(query))
        if required and not context.trusted and (missing := required - context.scopes):
            raise Forbidden(type(query).__name__, context.actor, sorted(missing))
        try:
            return await reach(query, context)
        except Blocked as blocked:
            if not context.rows:
                raise
            told = "an event could not be folded, of which whoever does not see all rows is told no more"
            raise Blocked(blocked.read_model, (), told) from blocked


def _wrapped(middleware: QueryMiddleware, proceed: NextQuery) -> NextQuery:
    async def wrapped(query: Query[Any], context: QueryContext) -> Answer[Any]:
        return await middleware(query, context, proceed)

    return wrapped
