"""Events of one type as rows: a column for each field, as code of now has them, behind what the store knows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from diptych.errors import ConfigurationError, HistoryDiverged, InvalidMessage
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.position import Position
from diptych.event_store.stored_query import stored_query
from diptych.messages.annotations import members
from diptych.messages.message import field_types
from diptych.read_side.columnar_rows import told
from diptych.read_side.read_model import conversion_of
from diptych.read_side.read_store import Column, ColumnKind
from diptych.read_side.row_refusal import value_refusal

if TYPE_CHECKING:
    from diptych.event_store.event_store import EventLog
    from diptych.event_store.history import History
    from diptych.event_store.recorded_event import RecordedEvent
    from diptych.messages.event import Event, EventContext
    from diptych.read_side.columnar_rows import RowSink
    from diptych.read_side.read_store import Row

__all__ = ["EventRows"]

PAGE_EVENTS = 1_000
"""Stored events that are read at once where they become rows."""

_KNOWN: Mapping[str, ColumnKind] = {
    "position": ColumnKind.INTEGER,
    "ordinal": ColumnKind.INTEGER,
    "recorded_at": ColumnKind.DATETIME,
    "event_id": ColumnKind.TEXT,
    "command_id": ColumnKind.TEXT,
    "correlation_id": ColumnKind.TEXT,
    "causation_id": ColumnKind.TEXT,
    "actor": ColumnKind.TEXT,
    "reason": ColumnKind.TEXT,
}
"""What columns tell of an event beside its fields, by `EventContext`'s names."""


class EventRows:
    """The events of one type, up to where the history is when they are read; `ColumnarRows`.

    The columns `_position`, `_ordinal` (of a part of what is stored as one event), `_recorded_at`, `_event_id`,
    `_command_id`, `_correlation_id`, `_causation_id`, `_actor` and `_reason` come first, then one for each field.
    Older versions are upcast. Of an event whose data were pruned the fields are None. Made by the application.

    Args:
        event: the class.
        log: where they are.
        history: reads them.
        after: begins behind this position.

    Raises:
        ConfigurationError: the application has no such event, or a field has the name of another column.
    """

    def __init__(self, event: type[Event], log: EventLog, history: History, after: int = 0) -> None:
        self._type = history.types.of(event)
        self._log = log
        self._history = history
        self._after = Position(after)
        types = field_types(event)
        known = tuple(Column(f"_{name}", kind, nullable=True) for name, kind in _KNOWN.items())
        taken = {column.name for column in known} & set(types)
        if taken:
            raise ConfigurationError(
                f"{event.__name__}.{min(taken)} has the name of a column that every event has: rename the field, or "
                "export the events in their general form, where fields are JSON"
            )
        self._fields = tuple(
            Column(name, conversion_of(of).kind, nullable=type(None) in members(of)) for name, of in types.items()
        )
        self._writes = [(attrgetter(name), conversion_of(of).write) for name, of in types.items()]
        self._columns = (*known, *self._fields)

    @property
    def name(self) -> str:
        """The type's, "school.Enrolled"."""
        return self._type.name

    @property
    def columns(self) -> Sequence[Column]:
        """What is known of each event, then its fields."""
        return self._columns

    async def into(self, sink: RowSink) -> Mapping[str, str]:
        """Give a sink every event, by position; then tell which they are.

        `diptych.position` is up to where they are all there, `diptych.after` behind which; `diptych.pruned` how many
        have no fields any more.

        Raises:
            UnreadableEvent: one cannot be read as this code's class; `HistoryPruned`: or as which parts.
            InvalidMessage: a field has a value that no column holds.
            HistoryDiverged: after a failover, other events are where those were that it gave.
        """
        head, forks = await self._log.head(), self._log.forks
        query = EventQuery((QueryItem(types=frozenset((self.name,))),))
        asked, after, more, pruned = stored_query(query, self._history.types), self._after, True, 0
        await sink.begin(None)
        while more:
            found = await self._log.read(asked, after, PAGE_EVENTS, until=head.position)
            if self._log.forks != forks:
                raise HistoryDiverged("what was read so far", "the history turned out to be another one; read it anew")
            pruned += sum(self._is_pruned(recorded) for recorded in found.events)
            await sink.take([row for recorded in found.events for row in self._rows(recorded, query)])
            after, more = found.through, found.more
        facts = {"position": head.position, "after": self._after, "version": self._type.version, "pruned": pruned}
        return told("event", self.name, self.columns, facts)

    def _is_pruned(self, recorded: RecordedEvent) -> bool:
        return not recorded.data and not self._history.splits(recorded)

    def _rows(self, recorded: RecordedEvent, wanted: EventQuery) -> list[Row]:
        if self._is_pruned(recorded):
            context = self._history.context(recorded)
            return [(*_known(context), *(None for _ in self._fields))]
        found = self._history.matching(recorded, wanted)
        return [
            (*_known(self._history.context(recorded, ordinal)), *self._values(recorded, event))
            for ordinal, event in found
        ]

    def _values(self, recorded: RecordedEvent, event: Event) -> list[Any]:
        values = [_written(get(event), write) for get, write in self._writes]
        for column, value in zip(self._fields, values, strict=True):
            reason = value_refusal(column, value)
            if reason is not None:
                where = f"of the event at position {recorded.position}, the {reason}"
                remedy = "export the events in their general form, where fields are JSON"
                raise InvalidMessage(self.name, [(f"$.{column.name}", f"{where}; {remedy}")])
        return values


def _known(context: EventContext) -> tuple[Any, ...]:
    return tuple(getattr(context, name) for name in _KNOWN)


def _written(value: Any, write: Callable[[Any], Any] | None) -> Any:
    return value if write is None or value is None else write(value)
