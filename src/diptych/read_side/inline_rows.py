"""Inline read models: the port of rows that an append folds in its transaction.

The contract is `testing/contracts/inline.py`.

    append: judge ──▶ events ──▶ InlineFold.fold ──▶ rows + checkpoint ──▶ one commit

An event store in whose database rows can be gives each append's transaction to the fold, which says once what becomes
of it (`inline.py`). Where the database is not asked over a network nothing here waits: `at_once` runs it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from diptych.event_store.event_query import EventQuery
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.read_store import (
    BlockedKey,
    Discard,
    Generation,
    Key,
    ReadStore,
    Row,
    RowsAsked,
    SliceWrite,
    WriteResult,
)

__all__ = ["Appending", "FoldsInline", "InlineFold", "InlineRows", "at_once"]

T = TypeVar("T")


class Appending(NamedTuple):
    """What one batch appends, in its transaction.

    Attributes:
        before: the head before it.
        events: at least one, with their positions.
    """

    before: Place
    events: Sequence[RecordedEvent]

    @property
    def head(self) -> Place:
        """The head after it."""
        last = self.events[-1]
        return Place(self.before.history_id, last.position, last.event_id)


class InlineRows(Protocol):
    """The read models beside the events, in the transaction of an append.

    It reads what the transaction would commit, and nobody else changes that before it ends.
    """

    async def generations(self, names: Collection[str]) -> Sequence[Generation]:
        """Every slice of every generation of these projections."""
        ...

    async def blocked(self, generation: Generation) -> Sequence[BlockedKey]:
        """The blocked keys of a generation."""
        ...

    async def discards(self, name: str) -> Sequence[Discard]:
        """The discards of a projection."""
        ...

    async def load(self, asked: RowsAsked) -> Mapping[Key, Row]:
        """Rows to fold from; keys without a row are left out."""
        ...

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int) -> list[Key]:
        """The keys of rows that expire at a moment or before it, the earliest first; see `ReadSnapshot.expired`."""
        ...

    async def event_id(self, position: Position) -> bytes | None:
        """The id of the event at a position of at least 1; None where there is none."""
        ...

    async def events(self, query: EventQuery, after: Position, until: Position) -> Sequence[RecordedEvent]:
        """The events in (after, until] that match, in order."""
        ...

    async def write(self, writes: Sequence[SliceWrite]) -> Sequence[WriteResult]:
        """Apply each write all or nothing, fenced as those of `ReadStore.write` are, in the same transaction."""
        ...


class InlineFold(Protocol):
    """Moves the inline read models on."""

    async def fold(self, rows: InlineRows, appending: Appending) -> None:
        """Fold what is appended into whatever is at the head before it, or near; what is not is left as it is.

        It writes once, as the last thing it does. Whatever is raised here is no reason not to append: nothing of it is
        written, and `failed` told.
        """
        ...

    def failed(self, error: Exception) -> None:
        """Hear why nothing was folded."""
        ...


@runtime_checkable
class FoldsInline(Protocol):
    """An event store that can have rows in its database, and fold them with each append.

    Every implementation guarantees that the rows, their checkpoint and the events become durable together or not at
    all, and that no failure to fold keeps events from being appended.
    """

    def fold_inline(self, rows: ReadStore, fold: InlineFold) -> None:
        """Have every append move these read models on; before it is opened, and once at most.

        Raises:
            ConfigurationError: the rows are in another database.
        """
        ...


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What comes of work that awaits nothing which is not there."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise AssertionError("rows in this process are never waited for")
