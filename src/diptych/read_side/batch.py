"""Folding a batch: group by row, read the rows once, fold in memory, write once.

The result does not depend on how the events were cut into batches (G6): rows are folded in event order, each step on
what the step before it left. A row that had expired when an event was recorded is none to that event, be it still
stored or not (rule 40).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from diptych.event_store.position import Place, Position
from diptych.failures import trace_of
from diptych.messages.event import Event, EventContext
from diptych.read_side.matching_rows import MatchingRows
from diptych.read_side.projection import KeyNotFound, Projection, Step, told
from diptych.read_side.read_model import RowForm, key_text
from diptych.read_side.read_store import BlockedKey, Discard, Generation, Key, Row, SliceWrite
from diptych.read_side.refused_row import RefusedRow, check_documents, check_row, stored_row

__all__ = [
    "DecodedEvent",
    "DecodedPart",
    "FoldedBatch",
    "Planned",
    "Reached",
    "discarded",
    "fold_steps",
    "keys_to_load",
    "plan_steps",
    "slice_write",
]

FOLD_ATTEMPTS_MAX = 2
"""How often an event is folded that cannot be: with its batch, and once more alone."""


class DecodedPart(NamedTuple):
    """One of the events that a stored event has become."""

    event: Event
    context: EventContext | None


class DecodedEvent(NamedTuple):
    """An event read from the history, decoded once for all projections.

    Attributes:
        event: None where it cannot be decoded, and `error` says why; or where there are `parts`.
        parts: what it has become, where that may be several events, or none. They are folded together, at one position.
    """

    position: Position
    event_id: bytes
    type: str
    event: Event | None
    context: EventContext | None
    error: str = ""
    parts: Sequence[DecodedPart] | None = None


class Reached(NamedTuple):
    """How far a batch comes: its last place, and when the event there was recorded, which is only known if needed."""

    place: Place
    recorded_at: datetime | None = None


class Planned(NamedTuple):
    """The steps of a batch, up to the event that the projection cannot go past, if there is one.

    Attributes:
        stopped: why it cannot go past it; empty where nothing is in the way.
        last: the last event before it, where it is stopped; None where that is the first of the batch.
    """

    steps: list[Step]
    stopped: str = ""
    last: DecodedEvent | None = None


class FoldedBatch(NamedTuple):
    """What a batch changes: the rows after it by key (None: deleted), and the keys it blocks."""

    rows: Mapping[Key, Any]
    block: list[BlockedKey]


def plan_steps(projection: Projection, events: Iterable[DecodedEvent]) -> Planned:
    """What a batch of events does to the rows of a projection, without doing it."""
    steps: list[Step] = []
    last: DecodedEvent | None = None
    for decoded in events:
        if decoded.type in projection.types:
            try:
                if decoded.event is not None:
                    steps += projection.steps(decoded.position, decoded.event, decoded.context)
                elif decoded.parts is not None:
                    steps += _steps_of_parts(projection, decoded.position, decoded.parts)
                else:
                    return Planned(steps, decoded.error, last)
            except KeyNotFound as error:
                return Planned(steps, str(error), last)
        last = decoded
    return Planned(steps)


def _steps_of_parts(projection: Projection, position: int, parts: Iterable[DecodedPart]) -> list[Step]:
    """What all the parts of one stored event do to the rows: all of it, or nothing where one of them raises."""
    return [
        step for part in parts for step in projection.steps(position, part.event, part.context, one_of_several=True)
    ]


def keys_to_load(steps: Iterable[Step], blocked: Collection[str]) -> list[Key]:
    """The keys whose rows the steps start from, each once."""
    keys = dict.fromkeys(step.key for step in steps if step.key is not None)
    return [key for key in keys if not blocked or key_text(key) not in blocked]


def fold_steps(
    projection: Projection,
    steps: Sequence[Step],
    loaded: Mapping[Key, Row],
    blocked: Collection[str],
    discards: Collection[tuple[str, int]],
    owns: Callable[[Key], bool] | None = None,
) -> FoldedBatch:
    """Fold the steps in order, leaving out discarded ones and those of blocked keys.

    `owns` tells which keys belong to the slice that is folded: rows that only their fold tells the key of are left out
    where they belong to another one. None: all are folded here.

    A step whose function raises is tried once more, alone; then its key is blocked from there on, with the row as it
    was before that event. So it is where the row that a step gives cannot be stored: also where a later step would
    mend it, or else the result would depend on how the events were cut into batches.

    Raises:
        KeyNotFound: a step failed of which only the row that it creates would tell the key.
    """
    form = projection.form
    row_before = _row_before if form.expiry is None else _unexpired_row_before
    matching = MatchingRows(form, steps, loaded) if projection.finds_rows else None
    rows: dict[Key, Any] = {}
    block: dict[str, BlockedKey] = {}
    begun: dict[Key, tuple[int, Any]] = {}  # rows as they were before the event whose parts are being folded
    for step in steps if matching is None else matching.expanded(steps):
        if (blocked or discards or block) and _is_left_out(step, step.key, blocked, discards, block):
            continue
        before = row_before(step, rows, loaded, form)
        if before is None and step.values is not None:
            continue  # what was found had expired
        if step.one_of_several and step.key is not None and begun.get(step.key, (0,))[0] != step.position:
            begun[step.key] = (step.position, before)
        try:
            key, after = _tried(step, before)
        except Exception as error:
            if step.key is None:
                raise KeyNotFound(f"{step.fold.name} at position {step.position}: {told(error)}") from error
            text = key_text(step.key)
            block[text] = BlockedKey(
                projection.name, text, Position(step.position), told(error), FOLD_ATTEMPTS_MAX, trace_of(error)
            )
            if step.key in rows and begun.get(step.key, (0,))[0] == step.position:
                rows[step.key] = begun[step.key][1]
            continue
        if step.key is None and (_is_left_out(step, key, blocked, discards, block) or not (owns is None or owns(key))):
            continue
        rows[key] = after
        if matching is not None:
            matching.changed(key, after)
    return FoldedBatch(rows, list(block.values()))


def slice_write(
    projection: Projection,
    generation: Generation,
    folded: FoldedBatch,
    loaded: Collection[Key],
    end: Reached,
    stopped: str = "",
    expired: Iterable[Key] = (),
) -> SliceWrite:
    """What the store is told of a folded batch; `expired` rows, but for those that it changes, are removed with it."""
    form = projection.form
    recorded_at = None if form.expiry is None else end.recorded_at
    rows = folded.rows if recorded_at is None else _without_expired(projection, folded, recorded_at)
    # A row whose key its fold told afterwards is not loaded, and may have replaced a stored one before it expired.
    deletes = [key for key, row in rows.items() if row is None and (key in loaded or folded.rows[key] is not None)]
    return SliceWrite(
        generation=generation,
        checkpoint=end.place,
        upserts=[stored_row(projection.functions, form, row) for row in rows.values() if row is not None],
        deletes=[*deletes, *(key for key in expired if key not in rows)],
        block=folded.block,
        stopped=stopped,
        recorded_at=recorded_at,
    )


def _without_expired(projection: Projection, folded: FoldedBatch, moment: datetime) -> Mapping[Key, Any]:
    """The rows, with None for what has expired when the batch ends: no later event and no query sees it.

    The replay of a blocked key folds events of before, so its row stays. What cannot be stored is refused all the same,
    or it would only be where batches are small.
    """
    form, blocked = projection.form, {found.key for found in folded.block}
    rows = dict(folded.rows)
    for key, row in folded.rows.items():
        if row is not None and form.has_expired(row, moment) and key_text(key) not in blocked:
            stored_row(projection.functions, form, row)
            rows[key] = None
    return rows


def discarded(discards: Iterable[Discard]) -> set[tuple[str, int]]:
    """Discards, to look steps up in."""
    return {(discard.key, int(discard.position)) for discard in discards}


def _is_left_out(
    step: Step,
    key: Key | None,
    blocked: Collection[str],
    discards: Collection[tuple[str, int]],
    block: Collection[str],
) -> bool:
    """Whether a step's key is blocked, by an earlier batch or by this one, or its event discarded."""
    if key is None:
        return False
    text = key_text(key)
    return text in blocked or text in block or (text, step.position) in discards


def _row_before(step: Step, rows: Mapping[Key, Any], loaded: Mapping[Key, Row], form: RowForm) -> Any:
    key = step.key
    if key is None:
        return None
    if key in rows:
        return rows[key]
    row = loaded.get(key)
    return None if row is None else form.model(row)


def _unexpired_row_before(step: Step, rows: Mapping[Key, Any], loaded: Mapping[Key, Row], form: RowForm) -> Any:
    """By the time that the log tells: whether the row is still stored depends on batches, and the clock on the day."""
    before = _row_before(step, rows, loaded, form)
    assert step.context is not None
    return None if before is not None and form.has_expired(before, step.context.recorded_at) else before


def _tried(step: Step, before: Any) -> tuple[Key, Any]:
    """As `_apply`, which is tried again where it raises; the stack trace is then that of the last attempt alone."""
    for _ in range(FOLD_ATTEMPTS_MAX - 1):
        try:
            return _apply(step, before)
        except Exception:  # noqa: BLE001, S112  # the user's fold failed: the last attempt tells of it
            continue
    return _apply(step, before)


def _apply(step: Step, before: Any) -> tuple[Key, Any]:
    """The step's key and the row after it. A row returned keeps its key."""
    after = step.fold.apply(before, step)
    form = step.fold.form
    if after is None:
        if step.key is None:
            raise KeyNotFound(f"{step.fold.name} returned None, and no field tells which row is meant")
        return step.key, None
    key = form.column_key_of(after)
    if step.key is not None and key != step.key:
        raise RefusedRow(
            f"{step.fold.name} returned a row with the key {key!r} for the row of {form.name} with "
            f"the key {key_text(step.key)}: to move a row, return None for the old key and a row for the new one, with "
            "keys="
        )
    check_row(step.fold.name, form, key, after)
    if step.values is not None:  # left to the write, one row's document would block all that the event has found
        check_documents(step.fold.name, form, after)
    return key, after
