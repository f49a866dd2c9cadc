"""The read panel of an application: what is asked of it, by whom, and how fresh the answers are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, TypedDict, TypeVar, Unpack, cast

from msgspec.structs import replace

from diptych.application.partitions import Asked, Partitions
from diptych.errors import Blocked, DiptychError, InvalidMessage
from diptych.event_store.position import Token, read_tokens
from diptych.messages.query import Query
from diptych.read_side.freshness import WAIT_S, HowFresh
from diptych.read_side.live_queries import LiveQueries, Touches
from diptych.read_side.query_bus import Answer, Handle, QueryHandlers, TellingReader
from diptych.read_side.query_context import QueryContext, query_context
from diptych.read_side.query_limits import NO_LIMITS, QueryLimits, TimeLimit
from diptych.read_side.query_middleware import NextQuery, QueryWay, told_less
from diptych.read_side.reader import Reader
from diptych.read_side.row_streams import RowStream, RowStreams
from diptych.security import Actor, actor_of
from diptych.write_side.idempotency import Receipt

__all__ = ["QUERIES_TOGETHER_MAX", "HowAsked", "QueryPanel", "shown_tokens"]

QUERIES_TOGETHER_MAX = 100
"""Queries that are asked together."""

R = TypeVar("R")
T = TypeVar("T")


class HowAsked(TypedDict, total=False):
    """What every way to ask takes by keyword; `QueryPanel.answer` says what each is, and what holds without it."""

    actor: Actor | str | None
    after: Receipt | Answer[Any] | str | None
    freshness: HowFresh
    within_s: float | None
    as_of: Receipt | Answer[Any] | str | datetime | None
    wait_s: float
    limits: QueryLimits | None


class QueryPanel:
    """What an `Application` answers: one query, several, and a query again and again."""

    _live: LiveQueries
    _handlers: QueryHandlers
    _streams: RowStreams
    _way: QueryWay

    def _opened(self) -> Partitions:
        raise NotImplementedError

    def now(self) -> datetime:
        """The time by the application's clock, aware, in UTC."""
        raise NotImplementedError

    async def query(self, query: Query[R], /, **how: Unpack[HowAsked]) -> R:
        """Ask a query; see `answer`, which gives the token as well, for what is taken by keyword."""
        return (await self.answer(query, **how)).value

    async def answer(
        self,
        query: Query[R],
        /,
        *,
        actor: Actor | str | None = None,
        after: Receipt | Answer[Any] | str | None = None,
        freshness: HowFresh = "eventual",
        within_s: float | None = None,
        as_of: Receipt | Answer[Any] | str | datetime | None = None,
        wait_s: float = WAIT_S,
        limits: QueryLimits | None = None,
    ) -> Answer[R]:
        """Ask a query; the value, and what it shows, are of one moment.

        Args:
            query: what is asked.
            actor: who asks; a name alone has no scopes.
            after: a receipt, answer or token: the answer shows at least that.
            freshness: "latest" shows everything that is in the history when it is asked, and waits for its projection;
                "overlay" the same without a wait: what rows lack is folded onto them for this answer.
            within_s: the answer lacks nothing that is older than so many seconds.
            as_of: a receipt, answer or token, or an aware datetime: the answer shows its read models as they stood
                then, every event up to there and none behind it. They are folded for it, by the code of today.
            wait_s: for how long to wait for it, 0 to 60 seconds.
            limits: how long the query may take, that wait aside, and how many rows it may ask for: less than its
                author, or the application, allows, since more is as good as none.

        Raises:
            Forbidden: it requires a scope that the actor does not have.
            QueryTimedOut: it takes longer than it may.
            QueryTooCostly: it asks for more rows than it may.
            NotFresh: it is not there within `wait_s`; an older answer is never given.
            CannotOverlay: rows lack too much, or what the answer touches only the store can find.
            Blocked: what was asked for waits behind an event that cannot be folded.
            HistoryDiverged: the token is of another history.
            CannotShowPast: `as_of` is no one moment, or its answer no fold of the log; `PastTooLong` where that is too
                much.
            HistoryPruned: events that would have to be folded for `as_of` have no data any more.
        """
        asked = _asked(after, freshness, within_s, as_of)
        return await self._answer(query, actor_of(actor), asked, wait_s, limits)

    async def query_many(self, queries: Sequence[Query[Any]], /, **how: Unpack[HowAsked]) -> list[Any]:
        """Ask several queries of one moment; see `answer_many`, which gives the token as well."""
        return (await self.answer_many(queries, **how)).value

    async def answer_many(
        self,
        queries: Sequence[Query[Any]],
        /,
        *,
        actor: Actor | str | None = None,
        after: Receipt | Answer[Any] | str | None = None,
        freshness: HowFresh = "eventual",
        within_s: float | None = None,
        as_of: Receipt | Answer[Any] | str | datetime | None = None,
        wait_s: float = WAIT_S,
        limits: QueryLimits | None = None,
    ) -> Answer[list[Any]]:
        """Ask several queries at once: one snapshot, one token, and one wait for all that they touch.

        Each goes through the middlewares by itself. The first that fails is the error of all. Each has the limits of
        its own, and all together those of the one that may take most, or `limits`, where they are less. Arguments and
        errors are those of `answer`.

        Raises:
            InvalidMessage: there are more than `QUERIES_TOGETHER_MAX`.
            SpansPartitions: they name several partitions.
        """
        asked, who, wanted = _asked(after, freshness, within_s, as_of), actor_of(actor), tuple(queries)
        if not 1 <= len(wanted) <= QUERIES_TOGETHER_MAX:
            raise InvalidMessage("query_many", [("$", f"1 to QUERIES_TOGETHER_MAX={QUERIES_TOGETHER_MAX} queries")])
        partitions = self._opened()
        partitions.check_together(wanted)
        hides = False

        async def each(first: Query[Any], reader: Reader, context: QueryContext) -> list[Any]:
            telling = cast("TellingReader", reader)  # as the query buses hand out

            async def reach(query: Query[Any], narrowed: QueryContext) -> Answer[Any]:
                nonlocal hides
                hides = hides or bool(narrowed.rows)
                partitions.check_together((first, query))
                handle, settled = self._handlers.find(query)
                async with TimeLimit(narrowed.query, narrowed.limits.seconds):
                    value = await handle(settled, telling.narrowed(narrowed), narrowed)
                return Answer(value=value, shows=await telling.shown(), incomplete=telling.incomplete)

            alone = replace(
                context, limits=limits or NO_LIMITS, query=""
            )  # what the caller asks for holds for each, too
            found: list[Any] = []
            for query in wanted:
                try:
                    found.append((await self._way.go(query, alone, reach)).value)
                except DiptychError as error:
                    error.add_note(f"It was query {len(found)} of those asked together, from 0.")
                    raise
            return found

        most = self._way.most_of([type(query) for query in wanted]).within(limits or NO_LIMITS)
        context = replace(query_context(who, self.now(), most), query="query_many")
        try:
            found = await partitions.answer(wanted[0], asked._replace(by=each), wait_s, context)
        except Blocked as blocked:  # what is waited for is all of theirs, outside of the middlewares
            if not hides:
                raise
            raise told_less(blocked) from blocked
        return cast("Answer[list[Any]]", found)

    def stream(
        self,
        query: Query[list[T]],
        /,
        *,
        actor: Actor | str | None = None,
        after: Receipt | Answer[Any] | str | None = None,
        freshness: HowFresh = "eventual",
        within_s: float | None = None,
        wait_s: float = WAIT_S,
        limits: QueryLimits | None = None,
    ) -> RowStream[T]:
        """Ask for the rows of a query one after the other, however many: `async for row in app.stream(query)`.

        Rows are read when they are asked for, a page at a time, each of which goes through the middlewares as an answer
        with a list. They are of one snapshot for `STREAM_SNAPSHOT_S_MAX` seconds; then it goes on from a newer one,
        behind the last key, which `snapshots` of the stream tells. No row comes twice, unless it is moved in the
        order meanwhile. Limits of time hold for each page, and not for whoever reads on slowly; those of rows for the
        whole stream, where its author or caller states them: what the application allows by itself is for answers that
        are held in memory.

        Args:
            query: a `Query[list[M]]` without a handler.
            actor: as in `answer`.
            after: as in `answer`.
            freshness: as in `answer`.
            within_s: as in `answer`.
            wait_s: as in `answer`.
            limits: as in `answer`; see above.

        Raises:
            InvalidMessage: the query is none that can be streamed.
            Overloaded: `STREAMS_MAX` streams hold a snapshot.
            DiptychError: while it is read, whatever `answer` raises.
        """
        partitions, asked, who = self._opened(), _asked(after, freshness, within_s, None), actor_of(actor)

        async def ask(
            reached: Query[Any], context: QueryContext, by: Handle, shown: Sequence[Token] | None
        ) -> Answer[Any]:
            fresh = asked if shown is None else Asked(shown)
            return await partitions.answer(reached, fresh._replace(by=by), wait_s, context)

        async def go(wanted: Query[Any], reach: NextQuery) -> Answer[Any]:
            return await self._way.go(wanted, query_context(who, self.now(), limits), reach, streamed=True)

        return RowStream(self._streams, query, go, ask)

    def can_be_streamed(self, query: type[Query[Any]]) -> bool:
        """Whether `stream` takes queries of a class."""
        self._opened()
        return self._streams.lists(query)

    def subscribe(
        self,
        query: Query[R],
        /,
        *,
        actor: Actor | str | None = None,
        after: Receipt | Answer[Any] | str | None = None,
        wait_s: float = WAIT_S,
    ) -> AsyncGenerator[Answer[R]]:
        """Ask a query, and again after each change that can affect its answer: `async for answer in app.subscribe(…)`.

        The first answer comes at once, every other one when it differs from the last; their tokens never go back.
        Whatever changes between two steps of the loop is one answer, computed when it is asked for. Rows that expire
        are changes, too. What waits behind an event that cannot be folded is left out, which `incomplete` says. While
        a store cannot be reached there is no answer, for five minutes at most. It ends when the application is closed.

        Args:
            query: what is asked.
            actor: who asks; every answer goes through the middlewares, with the scopes that are given here.
            after: a receipt, answer or token: the first answer shows at least that; the last one's goes on from there.
            wait_s: for how long to wait for that, 0 to 60 seconds.

        Raises:
            Forbidden: it requires a scope that the actor does not have.
            NotFresh: what `after` tells is not there within `wait_s`.
            HistoryDiverged: the token, or the last answer, is of another history.
            Overloaded: there are too many subscriptions in this process.
        """
        self._opened()
        return self._live.subscribe(query, actor_of(actor), shown_tokens(after), wait_s)

    async def _again(
        self, query: Query[Any], actor: Actor, touches: Touches, after: Sequence[Token] | None, wait_s: float
    ) -> Answer[Any]:
        """One answer of a live query."""
        return await self._answer(query, actor, Asked(after, touches=touches), wait_s)

    async def _answer(
        self, query: Query[R], actor: Actor, asked: Asked, wait_s: float, limits: QueryLimits | None = None
    ) -> Answer[R]:
        partitions = self._opened()

        async def reach(reached: Query[Any], context: QueryContext) -> Answer[Any]:
            return await partitions.answer(reached, asked, wait_s, context)

        return await self._way.go(query, query_context(actor, self.now(), limits), reach)


def _asked(
    after: Receipt | Answer[Any] | str | None,
    freshness: HowFresh,
    within_s: float | None,
    as_of: Receipt | Answer[Any] | str | datetime | None,
) -> Asked:
    if (after is not None) + (freshness != "eventual") + (within_s is not None) + (as_of is not None) > 1:
        raise InvalidMessage("query", [("$", "after, freshness, within_s and as_of: give one of them")])
    moment = as_of if isinstance(as_of, datetime) else shown_tokens(as_of)
    return Asked(shown_tokens(after), freshness, within_s, moment)


def shown_tokens(shown: Receipt | Answer[Any] | str | None) -> list[Token] | None:
    """The tokens of what was shown, or done."""
    return None if shown is None else read_tokens(shown if isinstance(shown, str) else shown.token)
