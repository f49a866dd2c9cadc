"""What is parked of commands in time: those that were given up (G4)."""

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
)
from diptych.errors import ConfigurationError
from diptych.event_store.timestamp import moment
from diptych.failures import line_of
from diptych.messages.codec import decode
from diptych.process_managers.given_up_commands import GivenUpCommands, HandledCommand
from diptych.process_managers.process_store import Outgoing
from diptych.process_managers.scheduler import SCHEDULED, AcceptedFrom

__all__ = ["ParkedScheduled"]

_KIND = "scheduled"


class ParkedScheduled:
    """The scheduled commands that were given up. See `ParkedSource`.

    Args:
        given_up: finds them, and helps them on.
    """

    kinds: Collection[str] = (_KIND,)

    def __init__(self, given_up: GivenUpCommands) -> None:
        self._given_up = given_up

    async def page(self, kinds: Collection[str], after: Cursor, limit: int) -> Sequence[tuple[Cursor, ParkedItem]]:
        """The next ones, by id."""
        del kinds
        found = await self._given_up.page(_behind(after), limit)
        return [((item.id,), at_hand(_details(item))) for item in found]

    async def find(self, which: str) -> Sequence[ParkedDetails]:
        """The one of a command id."""
        found = await self._given_up.find(which)
        return [] if found is None else [_details(found)]

    async def retries(self, item: ParkedDetails, limit: int) -> Sequence[ByHand]:
        """The latest retries of the command; of one that replaces another, the edit is among them."""
        return [_by_hand(each) for each in (await self._given_up.retries(item.key))[:limit]]

    async def retry(self, item: ParkedDetails, edited: Mapping[str, Any] | None, by: Decision) -> Dealt:
        """Have it executed again, as soon as a worker has room."""
        command_id = await self._given_up.retry(await self._again(item), edited, by.actor, by.reason)
        return Dealt(id=item.id, command_id=command_id)

    async def discard(self, item: ParkedDetails, by: Decision) -> Dealt:
        """Have it rejected as discarded."""
        await self._given_up.discard(await self._again(item), by.actor, by.reason)
        return Dealt(id=item.id, command_id=item.key)

    async def discarded(self, after: Cursor, limit: int) -> Sequence[tuple[Cursor, Discarded]]:
        """What was discarded, by id."""
        return [
            (
                (each.command_id,),
                Discarded(
                    kind=_KIND, type=each.name, name=SCHEDULED, key=each.command_id, position=0, by=_by_hand(each)
                ),
            )
            for each in await self._given_up.discarded(_behind(after), limit)
        ]

    async def _again(self, item: ParkedDetails) -> Outgoing:
        found = await self._given_up.find(item.key)
        if found is None:
            raise ConfigurationError(f"{item.id} is not parked any more")
        return found


def _details(item: Outgoing) -> ParkedDetails:
    return ParkedDetails(
        id=f"{_KIND}-{item.id}",
        kind=_KIND,
        type=item.type,
        name=SCHEDULED,
        key=item.id,
        error=line_of(item.failure),
        attempts=item.attempts,
        since=moment(decode(item.metadata, AcceptedFrom).accepted_us or item.due_us),
        position=0,
        data=decode(item.data, dict[str, Any]),
        trace=item.trace,
    )


def _by_hand(each: HandledCommand) -> ByHand:
    return ByHand(actor=each.actor, reason=each.reason, at=each.at)


def _behind(after: Cursor) -> str | None:
    """The id behind which a page begins."""
    return after[0] if len(after) == 1 else None
