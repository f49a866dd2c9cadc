"""Streams of rows: a list of any length, a page at a time, from one snapshot for as long as that may be held.

    the consumer wants rows ──▶ a page ──▶ every middleware ──▶ the moment, which holds a snapshot ──▶ its next rows
                                                                   ╰── too old: another goes on behind the last key

Nothing is read before it is wanted, and nothing but the page under way is in memory. The snapshot is let go of at its
greatest age by the task that holds it, whether or not the consumer comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

from msgspec.structs import replace

from diptych.errors import InvalidMessage, Overloaded, StoreClosed
from diptych.event_store.position import Token, said
from diptych.messages.query import Query
from diptych.read_side.declared_queries import Listing
from diptych.read_side.query_bus import Answer, Handle, ListedRows, TellingReader
from diptych.read_side.query_context import QueryContext, VisibleRows
from diptych.read_side.query_limits import NO_LIMITS, RowCount, TimeLimit
from diptych.read_side.query_middleware import NextQuery
from diptych.read_side.reader import Reader

__all__ = ["STREAMS_MAX", "STREAM_SNAPSHOT_S_MAX", "RowStream", "RowStreams"]

STREAM_PAGE_ROWS = 500
"""Rows of a stream that are read at once."""
STREAM_SNAPSHOT_S_MAX = 30
"""Seconds for which a stream holds one snapshot; what comes then is read from another one, behind the last key."""
STREAMS_MAX = 8
"""Streams of one application that hold a snapshot at once; more get `Overloaded`."""

T = TypeVar("T")
Ask = Callable[[Query[Any], QueryContext, Handle, Sequence[Token] | None], Awaitable[Answer[Any]]]
"""Has a handle answer a query; at least as of these tokens, or as fresh as was asked for where there are none."""
Go = Callable[[Query[Any], NextQuery], Awaitable[Answer[Any]]]
"""Takes a query through every middleware."""


class _Rows(NamedTuple):
    """One page of a moment, and where the next one begins; None: nowhere."""

    answer: Answer[list[Any]]
    next: str | None


class _Wanted(NamedTuple):
    """A page that is wanted: behind which row, how many, how long that may take, and what counts them."""

    cursor: str | None
    rows: int
    seconds: float | None
    counted: RowCount


class RowStreams:
    """The streams of an open application.

    Args:
        handlers: by query; those that list rows can be streamed.
    """

    def __init__(self, handlers: Mapping[type, Handle]) -> None:
        self._handlers = handlers
        self._open: set[_Moment] = set()
        self._closed = False

    def __len__(self) -> int:
        """How many snapshots are held."""
        return len(self._open)

    def lists(self, query: type) -> bool:
        """Whether queries of a class can be streamed."""
        found = self._handlers.get(query)
        return isinstance(found, Listing) and not found.paged

    def listing(self, query: Query[Any]) -> Listing:
        """What lists the rows of a query.

        Raises:
            InvalidMessage: it is no list of rows, or has a handler of its own.
        """
        found = self._handlers.get(type(query))
        if isinstance(found, Listing) and not found.paged:
            return found
        problem = "only the rows of a Query[list[M]] without a handler can be streamed; ask for it as one answer"
        raise InvalidMessage(type(query).__name__, [("$", problem)])

    def begin(self, moment: _Moment) -> None:
        """Note that a moment holds a snapshot, until it is over.

        Raises:
            Overloaded: too many do.
            StoreClosed: the application is being closed.
        """
        if self._closed:
            raise StoreClosed("the application is being closed")
        if len(self._open) >= STREAMS_MAX:
            raise Overloaded("STREAMS_MAX", STREAMS_MAX)
        self._open.add(moment)
        moment.begin().add_done_callback(lambda _: self._open.discard(moment))

    async def close(self) -> None:
        """Let go of every snapshot; whoever wants more rows hears that it is closed."""
        self._closed = True
        for moment in tuple(self._open):
            await moment.end()


class _Moment:
    """One snapshot, held by a task that reads the next page from it when one is wanted.

    Attributes:
        query: whose rows are listed.
        rows: which of them may be seen.
    """

    def __init__(
        self, ask: Ask, listing: Listing, query: Query[Any], context: QueryContext, after: Sequence[Token] | None
    ) -> None:
        self.query = query
        self.rows: VisibleRows = context.rows
        self._ask = ask
        self._listing = listing
        self._context = context
        self._after = after
        self._wanted: asyncio.Queue[_Wanted] = asyncio.Queue(1)
        self._current: _Wanted | None = None
        self._given: asyncio.Future[_Rows]
        self._task: asyncio.Task[Answer[Any]]

    def begin(self) -> asyncio.Task[Answer[Any]]:
        """Take the snapshot, when the first page is wanted."""
        asked = self._ask(self.query, self._context, ListedRows(self._hold), self._after)
        self._task = asyncio.get_running_loop().create_task(_awaited(asked), name="diptych stream of rows")
        return self._task

    async def page(self, wanted: _Wanted) -> _Rows | None:
        """A page; None where the snapshot is too old by now."""
        self._given = asyncio.get_running_loop().create_future()
        if not self._task.done():
            self._wanted.put_nowait(wanted)
            await asyncio.wait((self._given, self._task), return_when=asyncio.FIRST_COMPLETED)
        if self._given.done():
            return self._given.result()
        if self._task.cancelled():
            raise StoreClosed("the application was closed while rows were streamed")
        self._task.result()
        return None

    async def judged(self) -> None:
        """Wait until it is over, and what it rests on was found in the history.

        Raises:
            HistoryDiverged: it was not.
        """
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.result()

    async def end(self) -> None:
        """Let go of the snapshot."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # heard, or told already

    async def _hold(self, query: Any, reader: Reader, context: QueryContext) -> None:
        """Read pages until nobody may want any more. What is run again goes on with the page that was wanted."""
        ends_at = asyncio.get_running_loop().time() + STREAM_SNAPSHOT_S_MAX
        while True:
            if self._current is None:
                try:
                    async with asyncio.timeout_at(ends_at):
                        self._current = await self._wanted.get()
                except TimeoutError:
                    return
            wanted = self._current
            telling = cast("TellingReader", reader)  # as the query buses hand out
            async with TimeLimit(context.query, wanted.seconds):
                counting = telling.narrowed(context, wanted.counted)
                page = await self._listing.page(query, counting, wanted.rows, wanted.cursor)
            answer = Answer(value=page.items, shows=await telling.shown(), incomplete=telling.incomplete)
            self._current = None
            if not self._given.done():
                self._given.set_result(_Rows(answer, page.next))
            if page.next is None:
                return


async def _awaited(asked: Awaitable[Answer[Any]]) -> Answer[Any]:
    return await asked


class RowStream(Generic[T]):
    """The rows of a query, one after the other: `async for row in app.stream(query)`.

    Close it where it is not read to its end (`async with app.stream(query) as rows`); else it holds its snapshot until
    that is too old.

    Attributes:
        snapshots: from how many moments the rows so far are: 1 unless it took longer than a snapshot may be held.
        incomplete: whether events of a blocked key are missing from the rows so far.
        shows: from which position on, and up to which, a history is in the last page.
    """

    def __init__(self, streams: RowStreams, query: Query[list[T]], go: Go, ask: Ask) -> None:
        self.snapshots = 0
        self.incomplete = False
        self.shows: tuple[Token, ...] = ()
        self._streams = streams
        self._query = query
        self._go = go
        self._ask = ask
        self._moment: _Moment | None = None
        self._page: list[T] = []
        self._at = 0
        self._cursor: str | None = None
        self._left = streams.listing(query).limit_of(query)
        self._counted = RowCount(type(query).__name__, None)
        self._over = False

    @property
    def token(self) -> str:
        """The consistency token of the last page; empty before the first."""
        return said(self.shows)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while self._at >= len(self._page):
            page = await self.next_page()
            if page is None:
                raise StopAsyncIteration
            self._page, self._at = page, 0
        self._at += 1
        return self._page[self._at - 1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def next_page(self) -> list[T] | None:
        """The next rows, at most `STREAM_PAGE_ROWS`, may be empty; None after the last. Errors as of `answer`."""
        if self._over:
            return None
        found: list[_Rows] = []

        async def reach(query: Query[Any], context: QueryContext) -> Answer[Any]:
            found.append(await self._read(query, context))
            return found[-1].answer

        try:
            answer = await self._go(self._query, reach)
            if self._moment is not None and found and found[-1].next is None:
                await self._moment.judged()
        except BaseException:
            await self.aclose()
            raise
        rows: list[T] = answer.value
        self.shows, self.incomplete = answer.shows, self.incomplete or answer.incomplete
        self._cursor = found[-1].next if found else None
        self._left = None if self._left is None else self._left - len(rows)
        if self._cursor is None or self._left == 0:
            await self.aclose()
        return rows

    async def aclose(self) -> None:
        """Let go of the snapshot. May be called twice."""
        self._over = True
        moment, self._moment = self._moment, None
        if moment is not None:
            await moment.end()

    async def _read(self, query: Query[Any], context: QueryContext) -> _Rows:
        rows = STREAM_PAGE_ROWS if self._left is None else min(STREAM_PAGE_ROWS, self._left)
        counted = self._counted = RowCount(context.query, context.limits.rows, taken=self._counted.taken)
        wanted = _Wanted(self._cursor, rows, context.limits.seconds, counted)
        moment = self._moment
        if moment is not None and moment.query == query and dict(moment.rows) == dict(context.rows):
            page = await moment.page(wanted)
            if page is not None:
                return page
        if moment is not None:
            await moment.end()
        moment = self._moment = None
        held = replace(context, limits=NO_LIMITS)  # those are for pages
        moment = _Moment(self._ask, self._streams.listing(query), query, held, self.shows or None)
        self._streams.begin(moment)
        self._moment = moment
        page = await moment.page(wanted)
        if page is None:
            raise Overloaded("STREAM_SNAPSHOT_S_MAX", STREAM_SNAPSHOT_S_MAX)
        self.snapshots += 1
        return page
