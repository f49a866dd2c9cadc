"""A batch of events folded into the instances of a process: in memory, in order, and without doing anything.

What comes of it is one change for the process store: states, what is to go out, and what is not any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from diptych.event_store.position import START, Place
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.timestamp import to_microseconds
from diptych.failures import told, trace_of
from diptych.messages.codec import Codec, decode, encode
from diptych.messages.command import Command
from diptych.messages.envelope import Envelope
from diptych.messages.event import Event, EventContext
from diptych.messages.registry import EventTypes, MessageTypes
from diptych.process_managers.process_events import (
    CommandGiven,
    InstanceClosed,
    OutgoingDiscarded,
    OutgoingRetried,
    Timeout,
)
from diptych.process_managers.process_manager import Process, Reaction
from diptych.process_managers.process_store import Instance, Outgoing, ProcessChange, Resent

__all__ = ["Folded", "Given", "Outbox"]

REACTION_COMMANDS_MAX = 100
"""Commands that one reaction may send."""
REACTION_TIMEOUTS_MAX = 100
"""Timeouts that one reaction may set."""
STATE_BYTES_MAX = 1 << 20
"""Bytes of one instance's state as JSON."""
OUTGOING_BYTES_MAX = 1 << 20
"""Bytes of one command or timeout as JSON."""
PART_ORDINALS = 1_000
"""Ordinals of what goes out for each part of one stored event; its ids are made of them, so never to be changed."""

_IDS = UUID("0b0ed4f6-6b8b-5d1c-9f0c-4c1f6a4b7e55")
"""The namespace of the ids made here; never to be changed."""


class Given(NamedTuple):
    """An event as it is recorded, as its class reads it, and what is known beside."""

    recorded: RecordedEvent
    event: Event
    context: EventContext


class Outbox:
    """Makes what goes out of a reaction: encoded, with ids that are the same however often it is made.

    Args:
        process: whose.
        commands: that are handled.
        types: the events of the application.
    """

    def __init__(self, process: Process, commands: MessageTypes, types: EventTypes) -> None:
        self._process = process
        self._commands = commands
        self._types = types
        self._codecs: dict[type[Command], Codec] = {}

    def of(self, instance: str, reaction: Reaction[Any], given: Given) -> list[Outgoing]:
        """What goes out of a reaction.

        Raises:
            TypeError: something in it is no command or timeout that this process may have.
            ValueError: a limit is passed, or a time is naive.
            InvalidMessage: a field is of the wrong type.
        """
        given_as = reaction.timeouts
        set_now = list(given_as.items()) if isinstance(given_as, Mapping) else list(given_as)
        _check_count("commands", len(reaction.commands), "REACTION_COMMANDS_MAX", REACTION_COMMANDS_MAX)
        _check_count("timeouts", len(set_now), "REACTION_TIMEOUTS_MAX", REACTION_TIMEOUTS_MAX)
        if reaction.ended and set_now:
            raise ValueError("an instance that ends hears no timeout: set none, or let it go on")
        first = given.context.ordinal * PART_ORDINALS
        found = [self._command(instance, command, n, given) for n, command in enumerate(reaction.commands, first)]
        timeouts = enumerate(set_now, first)
        return found + [self._timeout(instance, timeout, after, n, given) for n, (timeout, after) in timeouts]

    def by_hand(self, instance: str, given: Given) -> Outgoing:
        """The command that somebody has an instance send."""
        event = given.event
        assert isinstance(event, CommandGiven)
        return self._outgoing(
            instance, "command", 0, given, given.recorded.recorded_at, event.command, 1, event.data.encode(), ()
        )

    def resent(self, instance: str, given: Given) -> Resent:
        """What somebody has sent again: as it was under its id, or with other fields under one of this event."""
        event = given.event
        assert isinstance(event, OutgoingRetried)
        if event.data is None:
            return Resent(id=event.outgoing, as_id=event.outgoing)
        return Resent(
            id=event.outgoing,
            as_id=self._id(instance, "command", 0, given),
            data=event.data.encode(),
            metadata=self._envelope(given),
        )

    def edited(self, item: Outgoing, fields: Mapping[str, Any]) -> bytes | None:
        """A command's fields with some of them replaced, as they are sent; None where they are what they were.

        Raises:
            InvalidMessage: a field is unknown, or of the wrong type.
            UnknownMessage: nobody handles the command any more.
        """
        before = decode(item.data, dict[str, Any])
        command = self.command(item.type, encode({**before, **fields}))
        _, data = self.encoded(command)
        return None if decode(data, dict[str, Any]) == before else data

    def command(self, name: str, data: bytes) -> Command:
        """A command of its name and its fields; errors as of `edited`."""
        cls = self._commands.find(name)
        if cls not in self._codecs:
            self._codecs[cls] = Codec(cls)
        found: Command = self._codecs[cls].decode(data)
        return found

    def encoded(self, command: Command) -> tuple[str, bytes]:
        """The name of a command with its context, and its fields as they are sent.

        Raises:
            TypeError: it is none, or nobody handles it.
            InvalidMessage: a field is of the wrong type.
        """
        cls = type(command)
        if not isinstance(command, Command):
            raise TypeError(f"{command!r} is no command")
        name = self._commands.full_name(cls)
        if name is None:
            raise TypeError(f"{cls.__name__} has no command handler in this application")
        if cls not in self._codecs:
            self._codecs[cls] = Codec(cls)
        data, _ = self._codecs[cls].settle(command)
        return name, data

    def _command(self, instance: str, command: Command, ordinal: int, given: Given) -> Outgoing:
        name, data = self.encoded(command)
        return self._outgoing(instance, "command", ordinal, given, given.recorded.recorded_at, name, 1, data, ())

    def _timeout(
        self, instance: str, timeout: Timeout, after: timedelta | datetime, ordinal: int, given: Given
    ) -> Outgoing:
        if type(timeout) not in self._process.timeouts:
            raise TypeError(f"{timeout!r} is no Timeout in the annotation of {self._process.cls.__name__}.react")
        found = self._types.of(type(timeout))
        data, settled = found.codec.settle(timeout)
        tags = found.tags(settled)
        if self._process.named_by(tags) != [instance]:
            raise ValueError(f"{timeout!r} is for another instance than {instance!r}, which sets it")
        due = given.recorded.recorded_at + after if isinstance(after, timedelta) else after
        if due.tzinfo is None:
            raise ValueError(f"{timeout!r} is set for {due}, a time without a time zone")
        return self._outgoing(instance, "timeout", ordinal, given, due, found.name, found.version, data, tags)

    def _outgoing(
        self,
        instance: str,
        kind: Any,
        ordinal: int,
        given: Given,
        due: datetime,
        type: str,
        version: int,
        data: bytes,
        tags: tuple[str, ...],
    ) -> Outgoing:
        _check_count(f"bytes of {type}", len(data), "OUTGOING_BYTES_MAX", OUTGOING_BYTES_MAX)
        return Outgoing(
            id=self._id(instance, kind, ordinal, given),
            instance=instance,
            kind=kind,
            position=given.recorded.position,
            ordinal=ordinal,
            due_us=to_microseconds(due),
            type=type,
            version=version,
            data=data,
            tags=tags,
            metadata=self._envelope(given),
        )

    def _id(self, instance: str, kind: str, ordinal: int, given: Given) -> str:
        """The same however often the event is reacted to."""
        made_of = (self._process.name, instance, given.context.event_id, kind, str(ordinal))
        return str(uuid5(_IDS, "\0".join(made_of)))

    def _envelope(self, given: Given) -> bytes:
        caused = given.context
        return encode(
            Envelope(
                correlation_id=caused.correlation_id,
                causation_id=caused.event_id,
                actor=f"process:{self._process.name}",
                traceparent=caused.traceparent,
            )
        )


class Folded:
    """The instances that a batch concerns, and what the batch makes of them."""

    def __init__(self, process: Process, outbox: Outbox, instances: Iterable[Instance]) -> None:
        self._process = process
        self._outbox = outbox
        self._known = {instance.id: instance for instance in instances}
        self._changed: dict[str, Instance] = {}
        self._added: dict[str, list[Outgoing]] = {}
        self._emptied: set[str] = set()
        self._timeless: set[str] = set()
        self._revived: set[str] = set()
        self._resent: dict[str, Resent | None] = {}  # None: it is discarded
        self._attempts: dict[str, tuple[int, int]] = {}
        self._states: dict[str, Any] = {}

    def find(self, instance: str) -> Instance | None:
        """An instance as it is now."""
        return self._known.get(instance)

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to be kept but the checkpoint."""
        return bool(self._changed or self._added or self._revived or self._resent)

    @property
    def added(self) -> list[Outgoing]:
        """What is to go out, by instance."""
        return [item for items in self._added.values() for item in items]

    def change(self, epoch: int, after: Place, checkpoint: Place, fingerprint: str, now_us: int) -> ProcessChange:
        """All of it, for the store. Commands are due at once, also where the store's clock is ahead of ours."""
        return ProcessChange(
            process=self._process.name,
            epoch=epoch,
            after=after,
            checkpoint=checkpoint,
            fingerprint=fingerprint,
            emptied=self._emptied,
            dropped_timeouts=self._timeless,
            discarded=[found for found, resent in self._resent.items() if resent is None],
            resent=[resent for resent in self._resent.values() if resent is not None],
            revived=self._revived,
            revived_due_us=now_us,
            instances=list(self._changed.values()),
            added=[_not_later(item, now_us) for item in self.added],
        )

    # ── folding ──────────────────────────────────────────────────────────────

    def take(self, instance: str, given: Given) -> Exception | None:
        """Let an instance react to an event, unless it is blocked, has ended, or does not begin with it.

        Returns:
            Why it is blocked from now on.
        """
        known = self._known.get(instance)
        if known is None and type(given.event) not in self._process.starts:
            return None
        if known is not None and (known.ended or known.blocked):
            return None
        try:
            self._react(instance, known, given)
        except Exception as error:  # noqa: BLE001  # the user's code failed: kept with the instance, which waits
            self._block(instance, known, given, error)
            return error
        return None

    def take_together(self, instance: str, parts: Sequence[Given]) -> None:
        """Let an instance react to the parts of one stored event: to all of them, or else it is blocked before them.

        It goes on from a position, so none of them may be left done.
        """
        known, state = self._known.get(instance), self._states.get(instance)
        count = len(self._added.get(instance, ()))
        for given in parts:
            error = self.take(instance, given)
            if error is not None:
                self._states.pop(instance, None)
                if state is not None:
                    self._states[instance] = state
                del self._added.get(instance, [])[count:]
                self._block(instance, known, given, error)
                return

    def _react(self, instance: str, known: Instance | None, given: Given) -> None:
        state = self._state(instance, known)
        reaction = self._process.react(state, given.event, given.context)
        going_out = self._outbox.of(instance, reaction, given)
        data, settled = self._process.codec.settle(reaction.state)
        _check_count("bytes of state", len(data), "STATE_BYTES_MAX", STATE_BYTES_MAX)
        self._note(instance, known, given, state=data, ended=reaction.ended)
        self._states[instance] = settled
        if reaction.ended:
            self._drop_timeouts(instance)
        if going_out:
            self._added.setdefault(instance, []).extend(going_out)

    def _state(self, instance: str, known: Instance | None) -> Any:
        if instance in self._states:
            return self._states[instance]
        return self._process.initial(instance) if known is None else self._process.codec.decode(known.state)

    def _block(self, instance: str, known: Instance | None, given: Given, error: Exception) -> None:
        """Keep its state as it was before the event, which it has to take first when it goes on."""
        state = self._state_before(instance) if known is None else known.state
        position, at_us = given.recorded.position, to_microseconds(given.recorded.recorded_at)
        before = known or Instance(
            id=instance, state=state, started=position, started_at_us=at_us, last=START, last_at_us=at_us
        )
        tried_at, attempts = self._attempts.get(instance, (START, 0))
        self._put(
            msgspec.structs.replace(
                before,
                blocked=position,
                failure=told(error),
                attempts=attempts + 1 if tried_at == position else 1,
                trace=trace_of(error),
            )
        )

    def _state_before(self, instance: str) -> bytes:
        return self._process.codec.settle(self._process.initial(instance))[0]

    def _note(self, instance: str, known: Instance | None, given: Given, *, state: bytes, ended: bool) -> None:
        position, at_us = given.recorded.position, to_microseconds(given.recorded.recorded_at)
        started, started_at_us = (position, at_us) if known is None else (known.started, known.started_at_us)
        self._put(
            Instance(
                id=instance,
                state=state,
                started=started,
                started_at_us=started_at_us,
                last=position,
                last_at_us=at_us,
                ended=ended,
            )
        )

    def _put(self, instance: Instance) -> None:
        self._known[instance.id] = self._changed[instance.id] = instance

    def _drop_timeouts(self, instance: str) -> None:
        self._timeless.add(instance)
        added = self._added.get(instance)
        if added:
            self._added[instance] = [item for item in added if item.kind != "timeout"]

    # ── by hand ──────────────────────────────────────────────────────────────

    def unblock(self, instance: str) -> None:
        """Let a blocked instance take events again, beginning with the one that blocked it."""
        known = self._known[instance]
        self._attempts[instance] = (known.blocked, known.attempts)
        self._put(msgspec.structs.replace(known, blocked=START, failure="", attempts=0, trace=""))

    def is_blocked_at(self, instance: str, position: int) -> bool:
        """Whether it is this event that an instance could not react to."""
        known = self._known.get(instance)
        return known is not None and bool(known.blocked) and known.blocked == position

    def resend(self, instance: str, given: Given) -> None:
        """One that was given up is due again; of several that say something of it, the first holds."""
        assert isinstance(given.event, OutgoingRetried)
        self._resent.setdefault(given.event.outgoing, self._outbox.resent(instance, given))

    def discard(self, given: Given) -> None:
        """One that was given up goes out no more."""
        assert isinstance(given.event, OutgoingDiscarded)
        self._resent.setdefault(given.event.outgoing, None)

    def revive(self, instance: str) -> None:
        """What was given up is due again."""
        if instance in self._known:
            self._revived.add(instance)

    def close(self, instance: str, given: Given) -> None:
        """End an instance, with all that waits."""
        known, event = self._known.get(instance), given.event
        assert isinstance(event, InstanceClosed)
        if known is None or known.ended:
            return
        self._note(instance, known, given, state=known.state, ended=True)
        self._put(msgspec.structs.replace(self._known[instance], failure=f"closed by hand: {event.reason}"))
        self._emptied.add(instance)
        self._added.pop(instance, None)

    def give(self, instance: str, given: Given) -> None:
        """Have an instance send a command."""
        if instance in self._known:
            self._added.setdefault(instance, []).append(self._outbox.by_hand(instance, given))


def _not_later(item: Outgoing, now_us: int) -> Outgoing:
    early = item.kind == "timeout" or item.due_us <= now_us
    return item if early else msgspec.structs.replace(item, due_us=now_us)


def _check_count(what: str, count: int, limit_name: str, limit: int) -> None:
    if count > limit:
        raise ValueError(f"{count:,} {what} are more than {limit_name}={limit:,}")
