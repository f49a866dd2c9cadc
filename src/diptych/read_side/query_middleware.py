"""The way of a query before it is asked: through every middleware, the first one outermost, to the scopes it requires.

    asked ──▶ middleware ──▶ … ──▶ scopes ──▶ the query bus
                 ╰── who may see which rows: context.only(Order, customer=context.actor)

Whatever asks goes this way: a query and each of several at once, every answer of a live query, every page of a stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec.structs import replace

from diptych.errors import Blocked, Forbidden
from diptych.messages.codec import Codec
from diptych.messages.query import Query
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_limits import NO_LIMITS, QueryLimits

__all__ = ["NextQuery", "QueryMiddleware", "QueryWay", "told_less"]

NextQuery: TypeAlias = Callable[[Query[Any], QueryContext], Awaitable[Answer[Any]]]
"""The rest of the way of a query, from inside a middleware."""
QueryMiddleware: TypeAlias = Callable[[Query[Any], QueryContext, NextQuery], Awaitable[Answer[Any]]]
"""Wraps the way of every query: `async def own(query, context, proceed): return await proceed(query, context)`."""


class QueryWay:
    """The way of the queries of one application.

    Args:
        middleware: the first outermost.
        requires: the scopes that queries require, by class.
        declared: the limits that are declared of queries, by class.
        default: those of all others.
    """

    def __init__(
        self,
        middleware: Sequence[QueryMiddleware],
        requires: Mapping[type, frozenset[str]],
        declared: Mapping[type, QueryLimits],
        default: QueryLimits,
    ) -> None:
        self._middleware = tuple(middleware)
        self._requires = requires
        self._declared = declared
        self._default = default
        self._codecs: dict[type, Codec] = {}

    def limits_of(self, query: type, *, streamed: bool = False) -> QueryLimits:
        """What queries of a class may take, whoever asks them."""
        if streamed:
            return self._declared.get(query, NO_LIMITS).or_else(QueryLimits(seconds=self._default.seconds))
        declared = self._declared.get(query)
        return self._default if declared is None else declared.or_else(self._default)

    def most_of(self, queries: Iterable[type]) -> QueryLimits:
        """The most that any queries of these classes may take."""
        found = [self.limits_of(query) for query in queries]
        seconds, rows = [each.seconds or 0 for each in found], [each.rows or 0 for each in found]
        return QueryLimits(seconds=max(seconds), rows=max(rows))

    async def go(
        self, query: Query[Any], context: QueryContext, reach: NextQuery, *, streamed: bool = False
    ) -> Answer[Any]:
        """The answer that comes of it, once everyone has let the query through.

        Where it is `streamed`, rows cost as much as they like, unless somebody says something else of this query.

        Raises:
            Forbidden: the query requires a scope that the actor does not have.
            InvalidMessage: a field is of the wrong type.
        """
        if not self._middleware:
            return await self._reach(query, context, reach, streamed=streamed)
        codec = self._codecs.get(type(query))
        if codec is None:
            codec = self._codecs[type(query)] = Codec(type(query))

        async def innermost(reached: Query[Any], narrowed: QueryContext) -> Answer[Any]:
            return await self._reach(reached, narrowed, reach, streamed=streamed)

        proceed: NextQuery = innermost
        for middleware in reversed(self._middleware):
            proceed = _wrapped(middleware, proceed)
        return await proceed(codec.settle(query)[1], context)

    async def _reach(
        self, query: Query[Any], context: QueryContext, reach: NextQuery, *, streamed: bool
    ) -> Answer[Any]:
        """The answer to a query that every middleware let through."""
        required = self._requires.get(type(query))
        if required and not context.trusted and (missing := required - context.scopes):
            raise Forbidden(type(query).__name__, context.actor, sorted(missing))
        limits = self.limits_of(type(query), streamed=streamed).within(context.limits)
        context = replace(context, limits=limits, query=type(query).__name__)
        try:
            return await reach(query, context)
        except Blocked as blocked:
            if not context.rows:
                raise
            raise told_less(blocked) from blocked


def told_less(blocked: Blocked) -> Blocked:
    """What somebody is told of it from whom rows are hidden: why it could not be folded may be about any of them."""
    told = "an event could not be folded, of which whoever does not see all rows is told no more"
    return Blocked(blocked.read_model, (), told)


def _wrapped(middleware: QueryMiddleware, proceed: NextQuery) -> NextQuery:
    async def wrapped(query: Query[Any], context: QueryContext) -> Answer[Any]:
        return await middleware(query, context, proceed)

    return wrapped
