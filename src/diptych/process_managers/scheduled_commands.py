"""The commands in time of one history: accepted for later, looked at, and cancelled.

Whatever becomes of one is the outcome that is kept under its id, so that a race (it is cancelled while it is being
executed) is decided where all others are: in the append section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from diptych.clock import Clock
from diptych.errors import CommandIdReused, InvalidMessage
from diptych.event_store.event_store import EventStore, KeptOutcome
from diptych.event_store.position import START
from diptych.event_store.timestamp import moment, to_microseconds
from diptych.messages.codec import decode, encode, to_plain
from diptych.messages.command import Command
from diptych.messages.rejected import Rejected
from diptych.messages.unique_id import unique_id
from diptych.process_managers.process_store import PRIORITY_MAX, PRIORITY_MIN, Outgoing, ProcessStore
from diptych.process_managers.reactions import OUTGOING_BYTES_MAX
from diptych.process_managers.scheduler import CANCELLED, REPLACED, SCHEDULED, AcceptedFrom, Scheduler, is_of, refuse
from diptych.security import Actor, actor_of, check_reason
from diptych.write_side.command_bus import Accepted, CommandBus, Sender
from diptych.write_side.idempotency import Receipt, check_command_id, check_payload

__all__ = ["CommandState", "CommandStatus", "Scheduled", "ScheduledCommands", "When"]

LIST_SCHEDULED_MAX = 1_000
"""Commands that one call lists."""
LOOKS_MAX = 2
"""How often one command is looked for: what has just left the one place is in the other."""

CommandState: TypeAlias = Literal["accepted", "running", "done", "rejected", "failed"]
"""How far a command is."""


class When(NamedTuple):
    """When a command is to be executed, as it was asked for; see `Application.schedule`."""

    at: datetime | None = None
    after: timedelta | None = None
    expires_at: datetime | None = None
    expires_after: timedelta | None = None
    priority: int = 0


class Scheduled(msgspec.Struct, frozen=True, kw_only=True):
    """A command that was accepted, durably.

    Attributes:
        command_id: the id that it is executed under; ask for its status with it, or cancel it.
        due_at: it is not executed before.
        expires_at: nor after, if that is said.
        priority: of what is due, the higher goes first.
        partition: the name of the partition that it is for; empty where there is only one.
    """

    command_id: str
    due_at: datetime
    expires_at: datetime | None = None
    priority: int = 0
    partition: str = ""


class CommandStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a command is.

    Attributes:
        command_id: its id.
        state: accepted, and waits; running, so that a worker has begun it; done, with a receipt; rejected, with a code;
            failed, so that it was given up, and waits for somebody.
        command: its name with its context; empty where only its outcome is known.
        data: its fields, as JSON reads them.
        actor: who wants it.
        due_at: when it is executed, or tried again; None where only its outcome is known.
        expires_at: after which it is not; None where it does not expire.
        priority: of what is due, the higher goes first.
        attempts: how often it has failed.
        failure: how it failed last.
        receipt: what it gave.
        code: of the rejection: the domain's, or "cancelled", "expired", "discarded" or "replaced".
        facts: of the rejection.
    """

    command_id: str
    state: CommandState
    command: str = ""
    data: Mapping[str, Any] = {}
    actor: str | None = None
    due_at: datetime | None = None
    expires_at: datetime | None = None
    priority: int = 0
    attempts: int = 0
    failure: str = ""
    receipt: Receipt | None = None
    code: str = ""
    facts: Mapping[str, Any] = {}


class ScheduledCommands:
    """The commands in time of one history. Made by the application.

    Args:
        scheduler: keeps them.
        commands: checks them.
        events: keeps their outcomes.
        store: where they wait.
        clock: tells the time.
    """

    def __init__(
        self, scheduler: Scheduler, commands: CommandBus, events: EventStore, store: ProcessStore, clock: Clock
    ) -> None:
        self._scheduler = scheduler
        self._commands = commands
        self._events = events
        self._store = store
        self._clock = clock

    # ── accepting ────────────────────────────────────────────────────────────

    async def accept(self, command: Command, command_id: str | None, sender: Sender, when: When) -> Scheduled:
        """Accept a command for later, durably; see `Application.schedule`."""
        now = self._clock.now()
        due_us, expires_us = _times(when, now)
        wanted_id = unique_id() if command_id is None else command_id
        accepted = await self._commands.accept(command, wanted_id, sender)
        if len(accepted.data) > OUTGOING_BYTES_MAX:
            raise InvalidMessage(accepted.name, [("$", f"scheduled, it has at most {OUTGOING_BYTES_MAX} bytes")])
        item = _outgoing(wanted_id, accepted, sender, _Times(to_microseconds(now), due_us, expires_us), when.priority)
        kept = None if command_id is None else await self._events.outcome(command_id)
        if kept is not None:
            check_payload(kept, accepted.payload_hash)
            return _scheduled(item)
        there = await self._scheduler.add(item)
        if decode(there.metadata, AcceptedFrom).payload_hash != accepted.payload_hash:
            raise CommandIdReused(wanted_id)
        return _scheduled(there)

    # ── what is known ────────────────────────────────────────────────────────

    async def list(
        self, *, after: str | None = None, failed: bool = False, limit: int = LIST_SCHEDULED_MAX
    ) -> Sequence[CommandStatus]:
        """What waits to be executed, by id: ids that were made here are in the order in which they were accepted.

        Args:
            after: the id of the last one of the page before; None for the first page.
            failed: only what was given up.
            limit: at most so many, up to `LIST_SCHEDULED_MAX`.
        """
        count = max(1, min(limit, LIST_SCHEDULED_MAX))
        if failed:
            found = await self._store.dead(SCHEDULED, None if after is None else (after, after), count)
        else:
            found = await self._store.waiting(SCHEDULED, after, count)
        return [_waiting(item) for item in found]

    async def status(self, command_id: str) -> CommandStatus | None:
        """How far a command is, scheduled or executed under an id; None where nothing is known of that id."""
        try:
            check_command_id(command_id)
        except InvalidMessage:
            return None
        for _ in range(LOOKS_MAX):
            kept = await self._events.outcome(command_id)
            found = await self._store.find(SCHEDULED, [command_id])
            if kept is not None and (not found or is_of(kept, found[0])):
                return await self._resolved(kept, found[0] if found else None)
            if found:
                return _waiting(found[0])
        return None

    async def _resolved(self, kept: KeptOutcome, item: Outgoing | None) -> CommandStatus:
        heard = await self._commands.heard(kept)
        known = CommandStatus(command_id=kept.command_id, state="done") if item is None else _waiting(item)
        if isinstance(heard, Receipt):
            return msgspec.structs.replace(known, state="done", receipt=heard)
        return msgspec.structs.replace(known, state="rejected", code=heard.code, facts=to_plain(heard.facts))

    # ── by hand ──────────────────────────────────────────────────────────────

    async def cancel(
        self, command_id: str, *, reason: str | None = None, actor: Actor | str | None = None
    ) -> CommandStatus | None:
        """Have a command that waits rejected as "cancelled", for good, unless it has taken effect before.

        One that is being executed at this moment is decided by whichever comes first.

        Args:
            command_id: its id.
            reason: why, in one line of 1 to 500 characters.
            actor: who cancels it.

        Returns:
            What has become of it: rejected with the code "cancelled"; or done, or rejected by the domain, where that
            was first. None where nothing is known of that id.

        Raises:
            InvalidMessage: the reason or the actor's name is none.
        """
        by = actor_of(actor).name
        rejected = Rejected(CANCELLED, by=by, reason=None if reason is None else check_reason(reason))
        found = await self._store.find(SCHEDULED, [command_id]) if await self.status(command_id) else []
        if found:
            kept = await refuse(self._events, found[0], rejected)
            if kept is None or (is_of(kept, found[0]) and not await self._was_to_be_replaced(kept)):
                await self._store.drop(SCHEDULED, [command_id])
                if not found[0].dead:
                    self._scheduler.dropped()
        return await self.status(command_id)

    async def _was_to_be_replaced(self, kept: KeptOutcome) -> bool:
        """Whether an edit was begun, of which perhaps nothing but what waits is known: somebody finishes it."""
        heard = await self._commands.heard(kept)
        return isinstance(heard, Rejected) and heard.code == REPLACED


def _times(when: When, now: datetime) -> tuple[int, int]:
    """When a command is due, and when it expires: microseconds since 1970 UTC; 0 where it does not.

    Raises:
        InvalidMessage: a time is naive or out of range, two are given for one, or the priority is none.
    """
    if not PRIORITY_MIN <= when.priority <= PRIORITY_MAX:
        raise _refused("priority", f"it is {PRIORITY_MIN} to {PRIORITY_MAX}")
    due = _time("at", when.at, "after", when.after, now) or now
    expires = _time("expires_at", when.expires_at, "expires_after", when.expires_after, max(due, now))
    if expires is not None and expires <= max(due, now):
        raise _refused("expires_at", "it would expire before it is due")
    return to_microseconds(due), 0 if expires is None else to_microseconds(expires)


def _time(
    at_name: str, at: datetime | None, after_name: str, after: timedelta | None, since: datetime
) -> datetime | None:
    if at is not None and after is not None:
        raise _refused(after_name, f"{at_name} and {after_name}: give one of them")
    if at is not None and at.utcoffset() is None:
        raise _refused(at_name, f"{at} has no time zone: write datetime(..., tzinfo=UTC)")
    try:
        if at is not None:
            return at.astimezone(UTC)
        return None if after is None else since + after
    except OverflowError:
        raise _refused(at_name if after is None else after_name, "that is no time that a clock shows") from None


def _refused(argument: str, problem: str) -> InvalidMessage:
    return InvalidMessage("schedule", [(argument, problem)])


class _Times(NamedTuple):
    accepted_us: int
    due_us: int
    expires_us: int


def _outgoing(command_id: str, accepted: Accepted, sender: Sender, times: _Times, priority: int) -> Outgoing:
    accepted_from = AcceptedFrom(
        payload_hash=accepted.payload_hash,
        accepted_us=times.accepted_us,
        actor=sender.actor,
        reason=sender.reason,
        scopes=sender.scopes,
        trusted=sender.trusted,
        correlation_id=sender.correlation_id,
        causation_id=sender.causation_id,
        traceparent=sender.traceparent,
    )
    return Outgoing(
        id=command_id,
        instance=command_id,  # so that none waits for another
        kind="command",
        position=START,
        ordinal=0,
        due_us=times.due_us,
        type=accepted.name,
        version=1,
        data=accepted.data,
        tags=(),
        metadata=encode(accepted_from),
        priority=priority,
        expires_us=times.expires_us,
    )


def _scheduled(item: Outgoing) -> Scheduled:
    return Scheduled(
        command_id=item.id,
        due_at=moment(item.due_us),
        expires_at=moment(item.expires_us) if item.expires_us else None,
        priority=item.priority,
    )


def _waiting(item: Outgoing) -> CommandStatus:
    return CommandStatus(
        command_id=item.id,
        state="failed" if item.dead else "running" if item.begun else "accepted",
        command=item.type,
        data=decode(item.data, dict[str, Any]),
        actor=decode(item.metadata, AcceptedFrom).actor,
        due_at=moment(item.due_us),
        expires_at=moment(item.expires_us) if item.expires_us else None,
        priority=item.priority,
        attempts=item.attempts,
        failure=item.failure,
    )
