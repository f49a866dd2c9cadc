"""Every row of a read model, of one moment: what a query would be given whose handler asks for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from diptych.errors import Overloaded
from diptych.event_store.position import Token, said
from diptych.read_side.columnar_rows import told
from diptych.read_side.query_bus import Answer, Handled

if TYPE_CHECKING:
    from diptych.read_side.columnar_rows import RowSink
    from diptych.read_side.projection import Projection
    from diptych.read_side.query_context import QueryContext
    from diptych.read_side.read_store import Column
    from diptych.read_side.reader import Reader
    from diptych.read_side.snapshot_reader import SnapshotReader

__all__ = ["COPY_S_MAX", "ReadModelRows", "in_copy_time"]

COPY_PAGE_ROWS = 5_000
"""Rows of a read model that are read at once where all of them are taken."""
COPY_S_MAX = 1_800
"""Seconds for which all rows of a read model are read from one snapshot; past it, `Overloaded`."""

Ask: TypeAlias = Callable[[Handled], Awaitable[Answer[Any]]]
"""Has a handler answer from one snapshot."""


class ReadModelRows:
    """Every row of one read model, as one snapshot of its read store shows them; `ColumnarRows`.

    Rows that have expired are left out. Made by the application.
    """

    def __init__(self, projection: Projection, ask: Ask) -> None:
        self._projection = projection
        self._ask = ask

    @property
    def name(self) -> str:
        """The read model's, "school.Seats"."""
        return self._projection.name

    @property
    def columns(self) -> Sequence[Column]:
        """One for each field."""
        return self._projection.form.table.columns

    async def into(self, sink: RowSink) -> Mapping[str, str]:
        """Give a sink every row, by key; then tell what they show.

        `diptych.position` is up to where every event is in them; `diptych.token` says it as a consistency token.

        Raises:
            NotFresh: they are not there, or not as fresh as was asked for.
            Blocked: that was asked for, and events of a key cannot be folded; else `diptych.incomplete` tells it.
            HistoryDiverged: they are of another history.
            Overloaded: it takes longer than `COPY_S_MAX`, or too many snapshots are in use.
            StoreUnavailable: the read store does not answer, or keeps no snapshot for as long as it takes.
        """
        model = self._projection.form.cls

        async def copy(given: Reader, _: QueryContext) -> None:
            reader = cast("SnapshotReader", given)  # as a query bus of one panel hands out
            await sink.begin(await reader.count_stored(model))
            async with aclosing(reader.stored(model, COPY_PAGE_ROWS)) as pages:
                async for page in pages:
                    await sink.take(page)

        answer = await self._ask(copy)
        return told("read_model", self.name, self.columns, _shown(answer.shows, incomplete=answer.incomplete))


@asynccontextmanager
async def in_copy_time(_: QueryContext) -> AsyncGenerator[None]:
    """What may take `COPY_S_MAX`; past it, `Overloaded`."""
    limit = asyncio.timeout(COPY_S_MAX)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise Overloaded("COPY_S_MAX", COPY_S_MAX) from error
        raise


def _shown(tokens: Sequence[Token], *, incomplete: bool) -> dict[str, object]:
    (token,) = tokens
    return {
        "position": token.low,
        "position_high": token.high.position,  # where slices are at several places
        "token": said(tokens),
        "incomplete": incomplete,
    }
