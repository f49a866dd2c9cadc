"""Parts of a history on their way into a copy: when a store takes one.

A copy is the same history: its id, positions, event ids and times are those of the original. So a part is never judged
as a commit is; it goes on exactly where the copy ends, or is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from diptych.errors import HistoryDiverged
from diptych.event_store.event_store import HistoryPart, KeptOutcome
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.tagging import Tagging
from diptych.event_store.timestamp import to_microseconds

__all__ = ["check_folded", "check_outcomes", "check_part", "check_places", "refused"]


def check_part(part: HistoryPart, head: Place, recorded_at_us: int, tagging: Tagging, *, empty: bool) -> None:
    """What every store checks before it takes a part; `check_places` and `check_outcomes` come beside it.

    Args:
        part: what is to be taken.
        head: of the store.
        recorded_at_us: when the last event of the store was recorded; 0 without events.
        tagging: of the store's events.
        empty: whether the store has neither events nor outcomes: only then may it come to be another history.

    Raises:
        HistoryDiverged: the part does not go on where the store ends, or contradicts itself.
    """
    _check_follows(part, head, empty=empty)
    if tagging.unfinished or (tagging.id != part.tagging and not (empty and part.after.position == START)):
        raise refused(
            "the events here and those of the part are not tagged alike: one of them was tagged anew (diptych retag). "
            "Begin again with an empty store"
        )
    _check_events(part, recorded_at_us)
    earlier = part.earlier_places()
    for outcome in part.outcomes:
        place = outcome.place
        if place.history_id != part.after.history_id or not 0 <= outcome.event_count <= place.position:
            raise refused(f"the outcome of command {outcome.command_id!r} is none of this history")
        if place.position not in earlier and place.event_id != _event_id_at(part, place.position):
            raise _misplaced(outcome.command_id, place.position)


def check_places(part: HistoryPart, found: Mapping[Position, bytes]) -> None:
    """Compare `earlier_places` with the event ids that the store has there.

    Raises:
        HistoryDiverged: another event is at a place at which an outcome was judged.
    """
    earlier = part.earlier_places()
    for outcome in part.outcomes:
        place = outcome.place
        if place.position in earlier and found.get(place.position) != place.event_id:
            raise _misplaced(outcome.command_id, place.position)


def check_outcomes(part: HistoryPart, kept: Mapping[str, KeptOutcome]) -> list[KeptOutcome]:
    """The outcomes that the store does not have yet.

    Args:
        part: what is to be taken.
        kept: by command id, those of the part's command ids that the store has.

    Raises:
        HistoryDiverged: one that it has is another one, or the part has two for one command id.
    """
    missing: dict[str, KeptOutcome] = {}
    for outcome in part.outcomes:
        known = kept.get(outcome.command_id) or missing.get(outcome.command_id)
        if known is not None and known != outcome:
            raise refused(f"the store keeps another outcome of command {outcome.command_id!r}")
        if known is None:
            missing[outcome.command_id] = outcome
    return list(missing.values())


def check_folded(at: Place, found: Place | None) -> None:
    """Compare the place up to which states were folded with what the store has there.

    Raises:
        HistoryDiverged: it has another event there, or none.
    """
    if found != at:
        raise HistoryDiverged("what was folded", f"it goes up to position {at.position}, where the store differs")


def refused(reason: str) -> HistoryDiverged:
    """The error for a part that is not taken."""
    return HistoryDiverged("the part to be restored", f"{reason}; nothing of it was written")


def _check_follows(part: HistoryPart, head: Place, *, empty: bool) -> None:
    after = part.after
    if empty and after.position == START and after.event_id == NOWHERE:
        return
    if head.history_id != after.history_id:
        raise refused(
            f"the store holds {head.position} events of the history {head.history_id.hex()}, "
            f"the part is of {after.history_id.hex()}; only an empty store becomes a copy"
        )
    if head.position != after.position:
        raise refused(f"the store ends at position {head.position}, the part goes on after {after.position}")
    if head.event_id != after.event_id:
        raise refused(f"another event is at position {head.position}, the last of the store")


def _check_events(part: HistoryPart, recorded_at_us: int) -> None:
    events = part.events
    if not events:
        return
    if [event.position for event in events] != list(range(part.after.position + 1, part.end.position + 1)):
        raise refused("its positions have gaps, or are out of order")
    if len({event.event_id for event in events}) < len(events):
        raise refused("two of its events have the same id")
    backwards = any(later.recorded_at < earlier.recorded_at for earlier, later in pairwise(events))
    if backwards or to_microseconds(events[0].recorded_at) < recorded_at_us:
        raise refused("the times of its events run backwards")
    unknown = {(event.type, event.version) for event in events} - {(type.name, type.version) for type in part.types}
    if unknown:
        raise refused(f"it does not say how {sorted(unknown)} were registered")


def _event_id_at(part: HistoryPart, position: Position) -> bytes | None:
    index = position - part.after.position
    if position == START:
        return NOWHERE
    if index == 0:
        return part.after.event_id
    return part.events[index - 1].event_id if index <= len(part.events) else None


def _misplaced(command_id: str, position: Position) -> HistoryDiverged:
    return refused(f"another event, or none, is at position {position}, where command {command_id!r} was judged")
