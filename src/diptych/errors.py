"""The error tree: everything Diptych raises on purpose.

DiptychError
├── Rejected                 the domain says no (messages/rejected.py, since it may carry an event)
├── Forbidden                whoever wants this lacks a scope that it requires
├── MessageError             what was sent is no message that this application takes
│   ├── InvalidMessage         wrong or missing fields, unknown fields, bytes that are no JSON
│   │   ├── UnknownPartition     it names a partition that this application has not
│   │   └── SpansPartitions      it names two partitions, or none: a decision is made in one
│   ├── UnknownMessage         no such command or query here
│   ├── CommandIdReused        the same command id came with another payload
│   ├── NotPure                what would come of it cannot be said without doing it
│   ├── CannotShowPast         it cannot be answered as of the past moment that is asked for
│   │   └── PastTooLong          more would have to be folded for it than a named limit
│   └── QueryTooCostly         it asks a store for more rows than it may (read_side/query_limits.py)
├── InvalidEvent             a handler gave an event that cannot be stored
│   └── Unstorable             it is past a limit that every store has
├── Conflict                 others changed what the decision stood on, up to the retry limit
├── ContextChanged           what the decision stands on has changed (write_side/context_changed.py: it carries events)
├── TransactionMisused       a handler did with the transaction lent to it what is not its own
├── Unavailable              not now: the same call may succeed later
│   ├── Overloaded             a named limit on waiting work is reached
│   ├── StoreUnavailable       the store cannot be reached, is locked, or its disk is full
│   ├── TransactionAborted     the database ended a handler's transaction, since others were in the way
│   ├── OutcomeUnknown         the commit may or may not be durable: send the same command id again
│   ├── QueryTimedOut          the answer took longer than it may (read_side/query_limits.py)
│   ├── NotFresh               the answer asked for is not there yet, and the wait is over
│   ├── CannotOverlay          what rows lack of the history cannot be folded onto them for one answer
│   ├── Blocked                the answer touches a key whose projection is blocked
│   ├── NewerHistory           newer code has stored an event: ask a process that runs it (an UnreadableEvent, too)
│   └── Retagged               stored events are, or were, tagged anew under an open store (a HistoryError, too)
├── HistoryError             the stored history and this code, or this token, do not fit
│   ├── HistoryDiverged        a token, checkpoint or cursor is of another history
│   ├── NewerStore             the store was written by a newer Diptych
│   ├── UnreadableEvent        a stored event has no class that can read it
│   │   └── HistoryPruned      its data were dropped by `diptych prune`
│   ├── UnreadableState        the kept state of a state-stored model does not fit its class
│   ├── SchemaChanged          the code has another schema than a stored event type and version
│   └── TagsChanged            the code would tag a stored event type otherwise
├── StoreClosed              used before it was opened, or after it was closed
└── ConfigurationError       wrong in the code or the settings: found at start-up
    ├── MissingService         a handler takes a service that the application was not given
    └── NotGranted             the database refuses something to the role that the process is connected as

Only `Conflict` and `Unavailable` are worth retrying; with a command id a retry is always safe. After `ContextChanged`
look again first.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Blocked",
    "CannotOverlay",
    "CannotShowPast",
    "CommandIdReused",
    "ConfigurationError",
    "Conflict",
    "DiptychError",
    "Forbidden",
    "HistoryDiverged",
    "HistoryError",
    "HistoryPruned",
    "InvalidEvent",
    "InvalidMessage",
    "MessageError",
    "MissingService",
    "NewerHistory",
    "NewerStore",
    "NotFresh",
    "NotGranted",
    "NotPure",
    "OutcomeUnknown",
    "Overloaded",
    "PastTooLong",
    "Retagged",
    "SchemaChanged",
    "SpansPartitions",
    "StoreClosed",
    "StoreUnavailable",
    "TagsChanged",
    "TransactionAborted",
    "TransactionMisused",
    "Unavailable",
    "UnknownMessage",
    "UnknownPartition",
    "UnreadableEvent",
    "UnreadableState",
    "Unstorable",
]


class DiptychError(Exception):
    """The root of everything Diptych raises on purpose."""


class ConfigurationError(DiptychError):
    """Something in the code or the settings is wrong; the text names it and says what would mend it."""


class MissingService(ConfigurationError):
    """A handler or subscriber takes a parameter that is nothing which it could be but a service, and was not given.

    Attributes:
        handler: where the function is.
        parameter: the name of the parameter.
    """

    def __init__(self, handler: str, parameter: str, what: str, service: str) -> None:
        self.handler = handler
        self.parameter = parameter
        super().__init__(
            f"{handler}: parameter `{parameter}` {what}; pass it as Application(services={{{service}: ...}})"
        )


class NotGranted(ConfigurationError):
    """The database refuses something to the role that the process is connected as; nothing was done.

    Attributes:
        where: the store's URL, without its password.
        role: whom the process is connected as.
        refused: what, in the words of the database.
    """

    def __init__(self, where: str, role: str, refused: str, remedy: str = "") -> None:
        self.where = where
        self.role = role
        self.refused = refused
        remedy = remedy or (
            "connect as a user in the role that does this (--store and --read-store may name two users); "
            "`diptych migrate --grants` prints the roles"
        )
        super().__init__(f"{where}: {refused}, as {role}: {remedy}")


class StoreClosed(DiptychError):
    """The application or store is used before it was opened or after it was closed."""


class Forbidden(DiptychError):
    """Whoever wants this lacks a scope that it requires; nothing was done, and nothing is kept of it.

    Attributes:
        message: the name of the command's or query's type.
        actor: their name; None where nobody knows.
        missing: the scopes that they lack, sorted, at least one.
    """

    def __init__(self, message: str, actor: str | None, missing: Sequence[str]) -> None:
        self.message = message
        self.actor = actor
        self.missing = tuple(missing)
        who = "nobody was named who has it" if actor is None else f"{actor} does not have it"
        super().__init__(f"{message} requires {', '.join(missing)}: {who}; nothing was done")


# ── messages ─────────────────────────────────────────────────────────────────


class MessageError(DiptychError):
    """What was sent is no message that this application takes."""


class InvalidMessage(MessageError, ValueError):
    """A message has wrong, missing or unknown fields.

    Attributes:
        message: the name of the message type.
        problems: at least one pair of path (`$.lines[0].quantity`; `$` is the message) and text.
    """

    def __init__(self, message: str, problems: Sequence[tuple[str, str]]) -> None:
        self.message = message
        self.problems = tuple(problems)
        listed = "; ".join(f"{text} at {path}" for path, text in self.problems)
        super().__init__(f"{message} is invalid: {listed}")


class UnknownPartition(InvalidMessage):
    """A message names a partition that this application was not given a store for.

    Attributes:
        partition: its name.
    """

    def __init__(self, message: str, path: str, partition: str) -> None:
        self.partition = partition
        super().__init__(message, [(path, f"there is no partition {partition!r}")])


class SpansPartitions(InvalidMessage):
    """A message names several partitions, or none; what is decided or asked is decided or asked in one.

    Attributes:
        partitions: their names.
    """

    def __init__(self, message: str, path: str, partitions: Sequence[str]) -> None:
        self.partitions = tuple(partitions)
        named = " and ".join(map(repr, partitions)) or "none"
        super().__init__(message, [(path, f"one partition has to be named, and it names {named}")])


class UnknownMessage(MessageError, LookupError):
    """No command or query of this name is handled here.

    Attributes:
        kind: "command" or "query".
        name: the name asked for.
        close: up to three names that are close to it, the closest first, may be empty.
        remedy: what would answer it, where its class is known and no name can be misspelt; else empty.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        self.kind = kind
        self.name = name
        self.close = tuple(difflib.get_close_matches(name, list(known), n=3))
        self.remedy = remedy
        hint = f"; did you mean {' or '.join(self.close)}?" if self.close else ""
        text = f"no handler for {kind} {name}: {remedy}" if remedy else f"no {kind} named {name} is handled here{hint}"
        super().__init__(text)


class CommandIdReused(MessageError):
    """The same command id came before with another payload; nothing was done.

    Attributes:
        command_id: the id in question.
    """

    def __init__(self, command_id: str) -> None:
        self.command_id = command_id
        super().__init__(
            f"command id {command_id!r} was used before for another command or payload; "
            "send a retry unchanged, and give a new command a new id"
        )


class NotPure(MessageError):
    """What would come of a command cannot be said without doing it: its handler is async or takes services.

    Attributes:
        command: the name of the command type.
        handler: where the function is.
    """

    def __init__(self, command: str, handler: str) -> None:
        self.command = command
        self.handler = handler
        super().__init__(
            f"{command} cannot be tried: {handler} is async or takes services, so that running it may do something "
            "outside; decide in a synchronous handler without services, and let a subscriber do the rest"
        )


class CannotShowPast(MessageError):
    """A query cannot be answered as of the past moment that is asked for; sent again it fails again.

    Attributes:
        reason: why, and what to do.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"this cannot be answered as of then: {reason}")


class PastTooLong(CannotShowPast):
    """More would have to be folded for an answer as of a past moment than a named limit.

    Attributes:
        limit_name: the name of the limit, as in the docs.
        limit: its value.
        read_model: the name of the read model that was being folded.
        reached: the position that was come to.
        wanted: the position of the moment that was asked for.
    """

    def __init__(self, limit_name: str, limit: int, read_model: str, reached: int, wanted: int) -> None:
        self.limit_name = limit_name
        self.limit = limit
        self.read_model = read_model
        self.reached = reached
        self.wanted = wanted
        super().__init__(
            f"{read_model} has come to position {reached} of {wanted} when {limit_name}={limit} was reached, which "
            f"would make about {limit * wanted // max(reached, 1)} in all; ask by key, where the key is an identity "
            "that the events are tagged with, or for an earlier moment, or of a read model that keeps what was"
        )


class InvalidEvent(DiptychError):
    """A handler gave an event that cannot be stored; nothing was done.

    Attributes:
        handler: the name of the handler.
        event: the name of the event class.
    """

    def __init__(self, handler: str, event: str, reason: str) -> None:
        self.handler = handler
        self.event = event
        super().__init__(f"{handler} gave an {event} that cannot be stored: {reason}")


class Unstorable(InvalidEvent):
    """A handler gave an event past a limit that every store has, mostly since the command was; nothing was done."""


# ── conflict ─────────────────────────────────────────────────────────────────


class Conflict(DiptychError):
    """What the decision stood on changed while it was made, as often as the limit allows.

    Attributes:
        command: the name of the command type.
        attempts: how often it was decided.
        position: the position of the event that the last attempt did not know.
    """

    def __init__(self, command: str, attempts: int, position: int) -> None:
        self.command = command
        self.attempts = attempts
        self.position = position
        super().__init__(
            f"{command} lost the race {attempts} times, the last time to the event at position {position}; "
            "nothing was done, send it again"
        )


class TransactionMisused(DiptychError):
    """A handler did with the transaction lent to it what is not its own, such as to end it.

    No event or outcome was stored, and whatever is still in the transaction is rolled back. What the handler has
    committed itself, where the database cannot refuse that, stays.
    """


# ── not now ──────────────────────────────────────────────────────────────────


class Unavailable(DiptychError):
    """Not now: the same call may succeed later."""


class Overloaded(Unavailable):
    """A named limit on waiting work is reached; nothing was done.

    Attributes:
        limit_name: the name of the limit, as in the docs.
        limit: its value.
    """

    def __init__(self, limit_name: str, limit: int) -> None:
        self.limit_name = limit_name
        self.limit = limit
        super().__init__(f"{limit_name}={limit} is reached; nothing was done, try again in a moment")


class StoreUnavailable(Unavailable):
    """The store cannot be reached, is locked past its limit, or its disk is full; nothing was done."""


class TransactionAborted(Unavailable):
    """The database ended the transaction of a handler, since others were in the way (a deadlock); nothing was done.

    Attributes:
        cause: in the words of the database.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"the database ended the handler's transaction: {cause}; nothing was done, send it again. Where it happens "
            "often, lock rows in one order everywhere"
        )


class OutcomeUnknown(Unavailable):
    """The commit may or may not be durable; sending the same command with the same id tells which.

    Attributes:
        command_id: the id to send again.
        cause: what failed.
    """

    def __init__(self, command_id: str, cause: str) -> None:
        self.command_id = command_id
        self.cause = cause
        super().__init__(
            f"the outcome of command {command_id} is unknown ({cause}); "
            "send the same command with the same id again to learn it"
        )


class NotFresh(Unavailable):
    """The read models asked for did not reach the position asked for within the wait.

    Attributes:
        read_model: the name of one read model that is behind.
        wanted: the position that the answer had to cover.
        reached: the position that the read model covers.
        reason: why it is behind, where that is known.
    """

    def __init__(self, read_model: str, wanted: int, reached: int, reason: str = "") -> None:
        self.read_model = read_model
        self.wanted = wanted
        self.reached = reached
        self.reason = reason
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"{read_model} shows position {reached}, {wanted - reached} behind {wanted} as asked for{because}; "
            "ask again, or wait longer"
        )


class CannotOverlay(Unavailable):
    """An answer with `freshness="overlay"` touches rows onto which what they lack cannot be folded.

    Attributes:
        read_model: the name of the read model.
        reason: why not.
    """

    def __init__(self, read_model: str, reason: str) -> None:
        self.read_model = read_model
        self.reason = reason
        super().__init__(
            f"what {read_model} lacks of the history cannot be overlaid: {reason}; ask with freshness='latest', which "
            "waits for it to be projected"
        )


class Blocked(Unavailable):
    """A strict read touches a key that an event which cannot be folded blocks.

    Attributes:
        read_model: the name of the read model.
        keys: the blocked keys, as JSON arrays; empty where the whole projection has stopped.
    """

    def __init__(self, read_model: str, keys: Sequence[str], reason: str) -> None:
        self.read_model = read_model
        self.keys = tuple(keys)
        what = f"keys {', '.join(keys)} of {read_model} are blocked" if keys else f"{read_model} has stopped"
        super().__init__(f"{what}: {reason}; see `diptych parked list`")


# ── history ──────────────────────────────────────────────────────────────────


class HistoryError(DiptychError):
    """The stored history and this code, or this token, do not fit."""


class HistoryDiverged(HistoryError):
    """A token, checkpoint or cursor belongs to another history than the store's.

    A restored backup, a copied file or a failover can fork a history. It is never followed across the fork.

    Attributes:
        what: what carried the other history.
        reason: how that shows.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} belongs to another history: {reason}")


class NewerStore(HistoryError):
    """The store was written by a newer Diptych than this one.

    Attributes:
        found: the schema version in the store.
        known: the newest one that this Diptych reads.
    """

    def __init__(self, where: str, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(
            f"{where} has schema version {found}, this Diptych knows up to {known}: upgrade Diptych; "
            "nothing was read or changed"
        )


class UnreadableEvent(HistoryError):
    """A stored event has no class that can read it.

    Attributes:
        type: the stored name of the event type.
        version: its stored version.
        position: its position in the history.
        reason: why, and what to do.
        skeleton: the upcaster that would read it, to be filled in; empty where none would.
    """

    def __init__(self, type: str, version: int, position: int, reason: str, skeleton: str = "") -> None:
        self.type = type
        self.version = version
        self.position = position
        self.reason = reason
        self.skeleton = skeleton
        told = f"{reason}: {' '.join(skeleton.split())}" if skeleton else reason  # an error is one line
        super().__init__(f"the event at position {position} is a stored {type} (version {version}): {told}")


class NewerHistory(UnreadableEvent, Unavailable):
    """Newer code has stored an event that has to be read, or that only its model folds: ask a process that runs it."""


class HistoryPruned(UnreadableEvent):
    """A stored event has to be folded whose data were dropped (`diptych prune`): nobody can read it again."""


class UnreadableState(HistoryError):
    """The state that is kept of a state-stored model does not fit its class of today.

    Attributes:
        model: its name, qualified by context.
        key: which one of them, as a JSON array of its identities.
        position: up to which it is folded.
        reason: why.
    """

    def __init__(self, model: str, key: str, position: int, reason: str) -> None:
        self.model = model
        self.key = key
        self.position = position
        self.reason = reason
        super().__init__(
            f"the state of {model} {key}, kept at position {position}, cannot be read: {reason}. Give new fields a "
            "default and keep the types of old ones; or drop state_stored, and it is folded from its events again"
        )


class SchemaChanged(HistoryError):
    """The code has an event type and version with another schema than the store, by which events of it are stored.

    Attributes:
        type: the stored name of the event type.
        version: of it.
        changes: what does not fit, each in words.
        skeleton: the upcaster to be written for it, once the class has the next version.
    """

    def __init__(self, type: str, version: int, changes: Sequence[str], skeleton: str) -> None:
        self.type = type
        self.version = version
        self.changes = tuple(changes)
        self.skeleton = skeleton
        super().__init__(
            f"events of {type} (version {version}) are stored with another schema than the code's: "
            f"{'; '.join(changes)}. Keep what was, or say version={version + 1} and write the upcaster that leads from "
            f"one to the other (SchemaChanged.skeleton):\n{skeleton}"
        )


class TagsChanged(HistoryError):
    """The code would tag an event type otherwise than the events of that type in the store are tagged.

    Attributes:
        type: the stored name of the event type.
        stored: the tag names in the store; where those are the same, the fields and the tags that they give.
        coded: the tag names that the code would give; likewise.
        part: the stored name of the event that those have become in part; empty where they stay one event.
    """

    def __init__(self, type: str, version: int, stored: Sequence[str], coded: Sequence[str], *, part: str = "") -> None:
        self.type = type
        self.stored = tuple(stored)
        self.coded = tuple(coded)
        self.part = part
        super().__init__(
            f"stored events of {type} (version {version}) are tagged {list(stored)}, and {part}, which they become in "
            f"part, {list(coded)}: nobody would find it by what they are not tagged with. Let the part keep their "
            "identities, mark the others Untagged, or tag what is stored anew, with `diptych retag`"
            if part
            else f"stored events of {type} (version {version}) are tagged {list(stored)}, the code would tag them "
            f"{list(coded)}: decisions over old events would miss some. Keep what the fields' identities were "
            "(Identity tag=, formerly=, Untagged); or stop what writes to the store, and tag the stored events anew: "
            "diptych retag"
        )


class Retagged(HistoryError, Unavailable):
    """The events of a store are being tagged anew, or were since it was opened: nothing was judged or appended.

    Whoever has it open decides by tags that are no longer those of the stored events.
    """
