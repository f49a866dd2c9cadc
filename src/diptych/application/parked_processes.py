"""What is parked of processes: steps that cannot be taken, and commands and timeouts that were given up (G10)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from diptych.application.parked import (
    ByHand,
    Cursor,
    Dealt,
    Decision,
    Discarded,
    ParkedDetails,
    ParkedItem,
    at_hand,
    parked_id,
    position_in,
)
from diptych.application.parked_events import NEVER_EDITED, event_at, fields_of
from diptych.errors import ConfigurationError
from diptych.event_store.event_store import EventLog
from diptych.event_store.recorded_event import RecordedEvent
from diptych.failures import line_of
from diptych.messages.codec import decode
from diptych.process_managers.process_events import (
    InstanceRetried,
    OutgoingDiscarded,
    OutgoingRetried,
    StepRetried,
    StepSkipped,
)
from diptych.process_managers.stuck import HandEvent, StuckOutgoing, StuckProcesses, StuckStep

__all__ = ["ParkedOutgoing", "ParkedSteps"]


class ParkedSteps:
    """The blocked instances of processes, each with the event that it cannot react to. See `ParkedSource`.

    Args:
        stuck: finds them, and helps them on.
        log: has the events.
    """

    kinds: Collection[str] = ("step",)

    def __init__(self, stuck: StuckProcesses, log: EventLog) -> None:
        self._stuck = stuck
        self._log = log

    async def page(self, kinds: Collection[str], after: Cursor, limit: int) -> Sequence[tuple[Cursor, ParkedItem]]:
        """The next ones, by process and instance."""
        del kinds
        found = await self._stuck.steps((after[0], after[1]) if len(after) == 2 else None, limit)
        return [((step.process, step.instance.id), at_hand(await self._details(step))) for step in found]

    async def find(self, which: str) -> Sequence[ParkedDetails]:
        """The instances that are blocked at the event at the position in the id."""
        position = position_in(which)
        if position is None:
            return []
        recorded = await event_at(self._log, position)
        return [_step(step, recorded) for step in await self._stuck.steps_at(recorded)]

    async def retries(self, item: ParkedDetails, limit: int) -> Sequence[ByHand]:
        """The latest retries of the step, or of all that was stuck in its instance."""
        found = await self._stuck.retries(item.name, item.key)
        return [_by_hand(each) for each in found if _retries_step(each, item.position)][:limit]

    async def retry(self, item: ParkedDetails, edited: Mapping[str, Any] | None, by: Decision) -> Dealt:
        """Have the instance take the event again."""
        if edited is not None:
            raise ConfigurationError(f"{item.id} is an event that {item.name} takes: {NEVER_EDITED}")
        step = await self._again(item)
        return Dealt(id=item.id, position=await self._stuck.retry_step(step, by.actor, by.reason))

    async def discard(self, item: ParkedDetails, by: Decision) -> Dealt:
        """Have the instance leave the event out."""
        step = await self._again(item)
        return Dealt(id=item.id, position=await self._stuck.skip_step(step, by.actor, by.reason))

    async def discarded(self, after: Cursor, limit: int) -> Sequence[tuple[Cursor, Discarded]]:
        """What instances have left out, by when it was decided."""
        found = await self._stuck.discarded(StepSkipped, _position(after), limit)
        return [((str(each.context.position),), await self._left_out(each)) for each in found]

    async def _left_out(self, each: HandEvent) -> Discarded:
        assert isinstance(each.event, StepSkipped), "events of this class were asked for"
        recorded = await event_at(self._log, each.event.position)
        return _discarded("step", recorded.type, recorded.position, each)

    async def _again(self, item: ParkedDetails) -> StuckStep:
        for step in await self._stuck.steps_at(await event_at(self._log, item.position)):
            if parked_id("step", item.position, step.process, step.instance.id) == item.id:
                return step
        raise _gone(item)

    async def _details(self, step: StuckStep) -> ParkedDetails:
        return _step(step, await event_at(self._log, step.instance.blocked))


class ParkedOutgoing:
    """The commands and timeouts of processes that were given up. See `ParkedSource`, and `ParkedSteps`."""

    kinds: Collection[str] = ("command", "timeout")

    def __init__(self, stuck: StuckProcesses, log: EventLog) -> None:
        self._stuck = stuck
        self._log = log

    async def page(self, kinds: Collection[str], after: Cursor, limit: int) -> Sequence[tuple[Cursor, ParkedItem]]:
        """The next ones, by process, instance and id."""
        found: list[tuple[Cursor, ParkedItem]] = []
        place = (after[0], after[1], after[2]) if len(after) == 3 else None
        more = True
        while more and len(found) < limit:
            page = await self._stuck.outgoing(place, limit)
            more = len(page) == limit
            for stuck in page:
                place = (stuck.process, stuck.item.instance, stuck.item.id)
                if stuck.item.kind in kinds and len(found) < limit:
                    recorded = await event_at(self._log, stuck.item.position)
                    found.append((place, at_hand(_outgoing(stuck, recorded))))
        return found

    async def find(self, which: str) -> Sequence[ParkedDetails]:
        """What was given up of the reactions to the event at the position in the id."""
        position = position_in(which)
        if position is None:
            return []
        recorded = await event_at(self._log, position)
        return [_outgoing(stuck, recorded) for stuck in await self._stuck.outgoing_at(recorded)]

    async def retries(self, item: ParkedDetails, limit: int) -> Sequence[ByHand]:
        """The latest retries of the command, or of all that was stuck in its instance."""
        stuck = await self._again(item)
        found = await self._stuck.retries(item.name, item.key)
        return [_by_hand(each) for each in found if _retries_outgoing(each, stuck.item.id)][:limit]

    async def retry(self, item: ParkedDetails, edited: Mapping[str, Any] | None, by: Decision) -> Dealt:
        """Send it again."""
        stuck = await self._again(item)
        return Dealt(id=item.id, position=await self._stuck.resend(stuck, edited, by.actor, by.reason))

    async def discard(self, item: ParkedDetails, by: Decision) -> Dealt:
        """Send it no more."""
        stuck = await self._again(item)
        return Dealt(id=item.id, position=await self._stuck.drop(stuck, by.actor, by.reason))

    async def discarded(self, after: Cursor, limit: int) -> Sequence[tuple[Cursor, Discarded]]:
        """What goes out no more, by when it was decided."""
        found = await self._stuck.discarded(OutgoingDiscarded, _position(after), limit)
        return [((str(each.context.position),), _dropped(each)) for each in found]

    async def _again(self, item: ParkedDetails) -> StuckOutgoing:
        for stuck in await self._stuck.outgoing_at(await event_at(self._log, item.position)):
            if parked_id(item.kind, item.position, stuck.process, stuck.item.id) == item.id:
                return stuck
        raise _gone(item)


def _gone(item: ParkedDetails) -> ConfigurationError:
    return ConfigurationError(f"{item.id} is not parked any more")


def _step(step: StuckStep, recorded: RecordedEvent) -> ParkedDetails:
    instance = step.instance
    return ParkedDetails(
        id=parked_id("step", instance.blocked, step.process, instance.id),
        kind="step",
        type=recorded.type,
        name=step.process,
        key=instance.id,
        error=line_of(instance.failure),
        attempts=instance.attempts,
        since=recorded.recorded_at,
        position=instance.blocked,
        data=fields_of(recorded),
        trace=instance.trace,
    )


def _outgoing(stuck: StuckOutgoing, recorded: RecordedEvent) -> ParkedDetails:
    item = stuck.item
    return ParkedDetails(
        id=parked_id(item.kind, item.position, stuck.process, item.id),
        kind=item.kind,
        type=item.type,
        name=stuck.process,
        key=item.instance,
        error=line_of(item.failure),
        attempts=item.attempts,
        since=recorded.recorded_at,
        position=item.position,
        data=decode(item.data, dict[str, Any]),
        trace=item.trace,
    )


def _retries_step(each: HandEvent, position: int) -> bool:
    event = each.event
    late = isinstance(event, InstanceRetried) and each.context.position > position
    return late or (isinstance(event, StepRetried) and event.position == position)


def _retries_outgoing(each: HandEvent, outgoing: str) -> bool:
    event = each.event
    return isinstance(event, InstanceRetried) or (isinstance(event, OutgoingRetried) and event.outgoing == outgoing)


def _dropped(each: HandEvent) -> Discarded:
    assert isinstance(each.event, OutgoingDiscarded), "events of this class were asked for"
    return _discarded(each.event.kind, each.event.name, each.context.position, each)


def _by_hand(each: HandEvent) -> ByHand:
    reason: str = getattr(each.event, "reason", "")
    return ByHand(actor=each.context.actor, reason=reason, at=each.context.recorded_at)


def _discarded(kind: str, type: str, position: int, each: HandEvent) -> Discarded:
    return Discarded(kind=kind, type=type, name=each.process, key=each.instance, position=position, by=_by_hand(each))


def _position(after: Cursor) -> int:
    """The position behind which a page of events begins."""
    return int(after[0]) if len(after) == 1 and after[0].isdecimal() else 0
