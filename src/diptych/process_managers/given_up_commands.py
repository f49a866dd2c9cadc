"""Scheduled commands that were given up: helped on one by one, with who and why.

What becomes of one stays the outcome that is kept under its id (G4): discarded, or replaced by another one. Who did
what is kept beside, in the process store, under names that no process has and nothing is sent of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from diptych.clock import Clock
from diptych.errors import ConfigurationError, InvalidMessage
from diptych.event_store.event_store import EventStore, KeptOutcome
from diptych.event_store.position import START
from diptych.event_store.timestamp import moment, to_microseconds
from diptych.messages.codec import Codec, decode, encode
from diptych.messages.command import Command
from diptych.messages.registry import MessageTypes
from diptych.messages.rejected import Rejected
from diptych.messages.unique_id import unique_id
from diptych.process_managers.process_store import Outgoing, ProcessStore
from diptych.process_managers.reactions import OUTGOING_BYTES_MAX
from diptych.process_managers.scheduler import DISCARDED, REPLACED, SCHEDULED, AcceptedFrom, Scheduler, is_of, refuse
from diptych.write_side.command_bus import Accepted, CommandBus
from diptych.write_side.idempotency import Receipt

__all__ = ["GivenUpCommands", "HandledCommand"]

_EDITED = UUID("6b0f3c52-8f2e-5c0e-9a53-7d1c5f3f0c11")
"""Under which the ids of edited commands are made."""
_RETRIED_BY_HAND, _DISCARDED_BY_HAND = "(scheduled, retried)", "(scheduled, discarded)"


class _By(msgspec.Struct, frozen=True):
    """Who did something to a command, and why."""

    actor: str
    reason: str


class HandledCommand(NamedTuple):
    """What was done to a command by hand.

    Attributes:
        command_id: its id; of one that was replaced, the one that it has now.
        name: of the command, with its context.
        actor: who did it.
        reason: why.
        at: when.
    """

    command_id: str
    name: str
    actor: str
    reason: str
    at: datetime


class GivenUpCommands:
    """The scheduled commands of one history that were given up. Made by the application.

    Args:
        scheduler: wakes whoever executes them.
        commands: checks them.
        types: the commands of the application.
        events: keeps their outcomes.
        store: where they wait.
        clock: tells the time.
        is_here: whether a command belongs to this history.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        commands: CommandBus,
        types: MessageTypes,
        events: EventStore,
        store: ProcessStore,
        clock: Clock,
        is_here: Callable[[Command], bool],
    ) -> None:
        self._scheduler = scheduler
        self._commands = commands
        self._types = types
        self._events = events
        self._store = store
        self._clock = clock
        self._is_here = is_here

    # ── what is there ────────────────────────────────────────────────────────

    async def page(self, after: str | None, limit: int) -> list[Outgoing]:
        """The first `limit` behind an id, by id."""
        return await self._store.dead(SCHEDULED, None if after is None else (after, after), limit)

    async def find(self, command_id: str) -> Outgoing | None:
        """The one of an id; None where it was not given up."""
        found = await self._store.find(SCHEDULED, [command_id])
        return found[0] if found and found[0].dead else None

    async def retries(self, command_id: str) -> list[HandledCommand]:
        """Who had one tried again, the latest first."""
        notes = await self._store.outgoing(_RETRIED_BY_HAND, command_id)
        return [_handled(note) for note in sorted(notes, key=lambda note: (note.due_us, note.id), reverse=True)]

    async def discarded(self, after: str | None, limit: int) -> list[HandledCommand]:
        """The first `limit` of all that were discarded, behind an id, by id."""
        return [_handled(note) for note in await self._store.waiting(_DISCARDED_BY_HAND, after, limit)]

    # ── by hand ──────────────────────────────────────────────────────────────

    async def retry(self, item: Outgoing, edited: Mapping[str, Any] | None, actor: str, reason: str) -> str:
        """Have one tried again, as if it had never been; with other fields where some are given.

        An edited command is another one, under an id of its own. What is kept under the id of before is then a
        rejection, "replaced", which names that: so neither is executed in place of the other, whatever crashes.

        Returns:
            The id that it is executed under.

        Raises:
            ConfigurationError: it has an outcome after all, was replaced, or belongs to another partition now.
            Forbidden: it requires a scope that whoever sent it did not have.
            InvalidMessage: a field is unknown, or of the wrong type.
            UnknownMessage: nobody handles the command any more.
        """
        accepted = None if edited is None else await self._edited(item, edited)
        if accepted is not None:
            command_id = await self._replaced(item, accepted, _By(actor, reason))
        else:
            command_id = await self._as_it_is(item, _By(actor, reason))
        self._scheduler.sender.wake()
        return command_id

    async def discard(self, item: Outgoing, actor: str, reason: str) -> None:
        """Have one rejected as "discarded", for good; an edit of it that was not finished, too.

        Raises:
            ConfigurationError: it took effect after all, or was replaced. It is not among the given up any more.
        """
        rejected = Rejected(DISCARDED, by=actor, reason=reason)
        kept = await refuse(self._events, item, rejected)
        if kept is not None and is_of(kept, item):
            before = await self._commands.heard(kept)
            if isinstance(before, Receipt):
                await self._store.drop(SCHEDULED, [item.id])
                raise ConfigurationError(
                    f"{_took_effect(item, kept)}: nothing is discarded, and it waits for nobody any more"
                )
            if before.code == REPLACED:
                await self._check_unfinished(item, before)
                other = _renamed(item, before.facts["command_id"])
                done = await refuse(self._events, other, rejected)
                if done is not None and not is_of(done, other):  # the edit was finished meanwhile, and executed
                    await self._check_unfinished(item, before)
        await self._note(_DISCARDED_BY_HAND, item.id, item.id, item, _By(actor, reason))
        await self._store.drop(SCHEDULED, [item.id])

    async def _as_it_is(self, item: Outgoing, by: _By) -> str:
        """Have one tried again under its id, unless that is kept as replaced: it would be taken out as rejected."""
        kept = await self._events.outcome(item.id)
        before = None if kept is None or not is_of(kept, item) else await self._commands.heard(kept)
        if isinstance(before, Rejected) and before.code == REPLACED:
            await self._check_unfinished(item, before)
            raise _unfinished(item, before)
        await self._note(_RETRIED_BY_HAND, unique_id(), item.id, item, by)
        await self._store.revive(SCHEDULED, [item.id], self._now_us())
        return item.id

    async def _check_unfinished(self, item: Outgoing, replaced: Rejected) -> None:
        """See whether the one that was to take its place is not there yet.

        Raises:
            ConfigurationError: it is, or was. The one of before is not among the given up any more.
        """
        command_id = replaced.facts["command_id"]
        if await self._store.find(SCHEDULED, [command_id]) or await self._events.outcome(command_id):
            await self._store.drop(SCHEDULED, [item.id])
            raise ConfigurationError(f"{item.type} {item.id} was replaced by {command_id} before: look at that one")

    async def _edited(self, item: Outgoing, fields: Mapping[str, Any]) -> Accepted | None:
        """The command with other fields, checked as one that is scheduled; None where they are what they were."""
        before = decode(item.data, dict[str, Any])
        command: Command = Codec(self._types.find(item.type)).decode(encode({**before, **fields}))
        if not self._is_here(command):
            raise ConfigurationError(
                f"with these fields, {item.type} belongs to another partition: schedule it there, and discard {item.id}"
            )
        accepted = await self._commands.accept(command, item.id, decode(item.metadata, AcceptedFrom).sender)
        if len(accepted.data) > OUTGOING_BYTES_MAX:
            raise InvalidMessage(accepted.name, [("$", f"scheduled, it has at most {OUTGOING_BYTES_MAX} bytes")])
        return None if decode(accepted.data, dict[str, Any]) == before else accepted

    async def _replaced(self, item: Outgoing, accepted: Accepted, by: _By) -> str:
        """Have another command wait in the place of one; the id of the other, which is made of the two.

        What is kept of the one decides which other it is, and the same edit again comes to the same.
        """
        command_id = str(uuid5(_EDITED, f"{item.id}\0{accepted.payload_hash.hex()}"))
        rejected = Rejected(REPLACED, by=by.actor, reason=by.reason, command_id=command_id)
        kept = await refuse(self._events, item, rejected)
        if kept is not None and not is_of(kept, item):  # its id is another one's, so it is decided beside
            kept = await refuse(self._events, _renamed(item, str(uuid5(_EDITED, item.id))), rejected)
        if kept is not None:
            before = await self._commands.heard(kept)
            if isinstance(before, Receipt):
                raise ConfigurationError(
                    f"{_took_effect(item, kept)}: retry it as it is, which does nothing more, or discard it"
                )
            if before.code != REPLACED:
                raise ConfigurationError(f"{item.type} {item.id} was rejected after all, as {before.code}: discard it")
            await self._check_unfinished(item, before)
            if before.facts["command_id"] != command_id:
                raise _unfinished(item, before)
        other = self._in_place_of(item, command_id, accepted)
        await self._store.add(SCHEDULED, [other])
        done = await self._events.outcome(command_id)
        if done is not None and not is_of(done, other):  # the edit was discarded before it was finished
            await self._store.drop(SCHEDULED, [command_id])
            raise ConfigurationError(f"{item.type} {item.id} was discarded meanwhile")
        await self._note(_RETRIED_BY_HAND, unique_id(), command_id, item, by)
        await self._store.drop(SCHEDULED, [item.id])
        return command_id

    def _in_place_of(self, item: Outgoing, command_id: str, accepted: Accepted) -> Outgoing:
        metadata = msgspec.structs.replace(
            decode(item.metadata, AcceptedFrom),
            payload_hash=accepted.payload_hash,
            accepted_us=self._now_us(),
        )
        return msgspec.structs.replace(
            _renamed(item, command_id),
            data=accepted.data,
            metadata=encode(metadata),
            due_us=self._now_us(),
            attempts=0,
            failure="",
            trace="",
            dead=False,
            begun=False,
        )

    async def _note(self, name: str, note_id: str, command_id: str, item: Outgoing, by: _By) -> None:
        """Keep who did it and why, for good. The first note of an id stays."""
        note = Outgoing(
            id=note_id,
            instance=command_id,
            kind="command",
            position=START,
            ordinal=0,
            due_us=self._now_us(),
            type=item.type,
            version=1,
            data=item.data,
            tags=(),
            metadata=encode(by),
            dead=True,
        )
        await self._store.add(name, [note])

    def _now_us(self) -> int:
        return to_microseconds(self._clock.now())


def _unfinished(item: Outgoing, replaced: Rejected) -> ConfigurationError:
    return ConfigurationError(
        f"{item.type} {item.id} was to be replaced by {replaced.facts['command_id']}, which was not finished: retry it "
        "with the same fields as then, or discard it"
    )


def _renamed(item: Outgoing, command_id: str) -> Outgoing:
    return msgspec.structs.replace(item, id=command_id, instance=command_id)


def _took_effect(item: Outgoing, kept: KeptOutcome) -> str:
    return f"{item.type} {item.id} has taken effect after all, at position {kept.place.position}"


def _handled(note: Outgoing) -> HandledCommand:
    by = decode(note.metadata, _By)
    return HandledCommand(note.instance, note.type, by.actor, by.reason, moment(note.due_us))
