"""How one row came to be: the events that its projection folds into it, each with what it changed.

Read from the log page by page and folded by today's code, whatever the read store holds: the row before and the row
after are all that is kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from diptych.errors import Blocked, ConfigurationError, HistoryDiverged
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.pages import event_pages
from diptych.event_store.position import START
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.message import field_types
from diptych.read_side.batch import discarded, fold_steps, plan_steps
from diptych.read_side.decoding import decoded
from diptych.read_side.projection import KeyNotFound, Projection, Step, told
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import Key, ReadStore, Row
from diptych.read_side.refused_row import stored_row
from diptych.read_side.row_refusal import row_refusal
from diptych.read_side.slice import POISON

__all__ = ["Effect", "FieldChange", "RowChange", "RowHistories"]

Effect: TypeAlias = Literal["created", "changed", "unchanged", "removed", "discarded", "blocked", "waiting"]
"""What became of a row with an event."""


class FieldChange(msgspec.Struct, frozen=True):
    """One field of a row, before and after an event; before is None where the row came with it."""

    field: str
    before: Any
    after: Any


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    """One event that concerns a row, and what it did to it.

    Attributes:
        position: of the event.
        event: its name, as code of now calls it: "shop.OrderPlaced".
        recorded_at: when it was recorded.
        actor: who wanted it; None where nobody is known.
        reason: why; likewise.
        effect: "created", "changed" or "removed"; "unchanged", where the row is the same afterwards, or there is none
            still. "discarded": it was left out by hand. "blocked": it cannot be folded, `error` says why, and those
            behind it are "waiting".
        before: the row that it met; None where there was none.
        after: the row after it; None where there is none.
        changes: the fields that differ, in their order; of a row that came, all but the key; of one that went, none.
        expired_at: when the row that was there had expired, so that the event met none; None where it had not.
        error: why it cannot be folded; empty where it can.
    """

    position: int
    event: str
    recorded_at: datetime
    actor: str | None
    reason: str | None
    effect: Effect
    before: Any
    after: Any
    changes: tuple[FieldChange, ...]
    expired_at: datetime | None = None
    error: str = ""


class RowHistories:
    """Tells how rows came to be. Made by the application.

    Args:
        projections: that feed the read models.
        log: what they fold.
        history: reads it.
        read_stores: by read model, where what was discarded is kept.
    """

    def __init__(
        self,
        projections: Collection[Projection],
        log: EventLog,
        history: History,
        read_stores: Mapping[type, ReadStore],
    ) -> None:
        self._by_model = {projection.form.cls: projection for projection in projections}
        self._log = log
        self._history = history
        self._read_stores = read_stores

    @property
    def models(self) -> dict[str, type[Any]]:
        """The read models, by name: "school.Seats"."""
        return {projection.name: model for model, projection in self._by_model.items()}

    def key_types(self, model: type[Any]) -> dict[str, Any]:
        """The types of a read model's key fields, by name, in order.

        Raises:
            ConfigurationError: no projection feeds it.
        """
        types = field_types(model)
        return {name: types[name] for name in self._projection(model).form.key_fields}

    async def of(self, model: type[Any], /, *key: object, after: int = 0) -> AsyncGenerator[RowChange]:
        """The events up to now that concern one row, in order, each with what it did to it; may be none.

        Where the key is an identity that the events are tagged with, only the row's own events are read; else all that
        the projection folds. A page of events is kept at a time.

        Args:
            model: the read model.
            key: the values of the key, in the order of the key fields.
            after: leave out those up to this position; they are folded all the same.

        Raises:
            ConfigurationError: no projection feeds the read model, or it has another key.
            UnreadableEvent: an event cannot be read; `HistoryPruned` where its data were dropped.
            Blocked: the projection stops at an event, so that nothing can be told of those behind it.
            HistoryDiverged: after a failover, other events may be where those were that it told of.
        """
        projection = self._projection(model)
        discards = await self._read_stores[model].discards(projection.name)
        folding = _Folding(projection, projection.form.given_key(key), discards)
        query = projection.query_of([folding.key]) or projection.query
        async for page in self._pages(query):
            for recorded in page:
                change = self._change(folding, recorded)
                if change is not None and change.position > after:
                    yield change

    async def _pages(self, query: EventQuery) -> AsyncGenerator[Sequence[RecordedEvent]]:
        forks = self._log.forks
        async for page in event_pages(self._log, START, (await self._log.head()).position, query):
            if forks != self._log.forks:
                raise HistoryDiverged("what was told so far", "the history turned out to be another one; ask anew")
            yield page

    def _projection(self, model: type[Any]) -> Projection:
        found = self._by_model.get(model)
        if found is None:
            raise ConfigurationError(f"no projection of this application feeds {model.__name__}")
        return found

    def _change(self, folding: _Folding, recorded: RecordedEvent) -> RowChange | None:
        """What an event does to the row; None where it does not concern it."""
        projection = folding.projection
        planned = plan_steps(projection, decoded(self._history, [recorded], in_context=projection.takes_context))
        if planned.stopped:
            self._history.parts(recorded)  # it tells by itself why it cannot be read
            raise Blocked(projection.form.name, (), planned.stopped)
        steps = [step for step in planned.steps if step.key is None or step.key == folding.key]
        return folding.folded(self._history, recorded, steps) if steps else None


class _Folding:
    """One row, as it is after the events so far."""

    def __init__(self, projection: Projection, key: Key, discards: Collection[Any]) -> None:
        self.projection = projection
        self.key = key
        self._text = key_text(key)
        self._discards = discarded(discards)
        self._row: Row | None = None
        self._blocked = False

    def folded(self, history: History, recorded: RecordedEvent, steps: Sequence[Step]) -> RowChange | None:
        """Fold an event; None where it turns out that another row is meant.

        Raises:
            Blocked: it fails, and only the row that it creates would tell whose it is.
        """
        form, stored = self.projection.form, self._row
        before = None if stored is None else form.model(stored)
        expired_at = None
        if before is not None and form.has_expired(before, recorded.recorded_at):
            expired_at, before = form.expiry and form.expiry(before), None
        context, found = history.context(recorded), history.types.stored_as(recorded.type)
        effect, error = self._effect(steps, before)
        if not effect:
            return None
        after = None if self._row is None else form.model(self._row)
        if expired_at is not None and self._row is stored:
            after = None
        return RowChange(
            position=recorded.position,
            event=recorded.type if found is None else found.name,
            recorded_at=recorded.recorded_at,
            actor=context.actor,
            reason=context.reason,
            effect=effect,
            before=before,
            after=after,
            changes=_differences(form.key_fields, before, after),
            expired_at=expired_at,
            error=error,
        )

    def _effect(self, steps: Sequence[Step], before: Any) -> tuple[Effect | None, str]:
        """Fold the steps of one event into the row."""
        if (self._text, steps[0].position) in self._discards:
            return "discarded", ""
        form, loaded = self.projection.form, {} if self._row is None else {self.key: self._row}
        try:
            folded = fold_steps(self.projection, steps, loaded, (), ())
            if not folded.block and self.key not in folded.rows:
                return None, ""
            after = folded.rows.get(self.key)
            row = None if after is None else stored_row(self.projection.functions, form, after)
            reason = None if row is None else row_refusal(form.table, row)
            error = folded.block[0].error if folded.block else reason or ""
        except KeyNotFound as failed:
            raise Blocked(form.name, (), str(failed)) from failed
        except POISON as failed:
            row, error = None, told(failed)
        if self._blocked:
            return "waiting", ""
        if error:
            self._blocked = True
            return "blocked", error
        self._row = row
        if row is None:
            return "unchanged" if before is None else "removed", ""
        if before is None:
            return "created", ""
        return "unchanged" if form.model(row) == before else "changed", ""


def _differences(key_fields: Collection[str], before: Any, after: Any) -> tuple[FieldChange, ...]:
    if after is None:
        return ()
    names = [name for name in after.__struct_fields__ if name not in key_fields]
    pairs = [(name, getattr(before, name, None), getattr(after, name)) for name in names]
    return tuple(FieldChange(name, was, now) for name, was, now in pairs if before is None or was != now)
