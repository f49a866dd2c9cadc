"""The hinge: the port of the event store. The contract is `testing/contracts/event_store.py`.

One history, one order, one append section. Everything that changes the history, and every outcome that claims to be
true of it, goes through `append`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.model_unions import ModelUnion, ModelUnions
from diptych.event_store.position import START, Place, Position
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.event_store.tagging import Tagging
from diptych.event_store.timestamp import to_microseconds

__all__ = [
    "AppendResult",
    "Appended",
    "ChainBroken",
    "Commit",
    "Conflicting",
    "Duplicate",
    "EventLog",
    "EventStore",
    "HistoryPart",
    "KeepsModels",
    "KeptOutcome",
    "KeptState",
    "ModelState",
    "ModelsChanged",
    "Pruned",
    "ReadResult",
    "Refused",
    "StoredSchema",
    "StoredState",
    "StoredType",
    "Taggable",
    "TypeFacts",
]

COMMIT_EVENTS_MAX = 1_000
"""Events of one commit."""
COMMIT_BYTES_MAX = 16 << 20
"""Bytes of data and metadata of one commit's events."""
EVENT_BYTES_MAX = 1 << 20
"""Bytes of one event's data."""
EVENT_TAGS_MAX = 1_000
"""Tags of one event."""
TAG_BYTES_MAX = 512
"""Bytes of one tag, in UTF-8."""
COMMAND_ID_CHARACTERS_MAX = 128
"""Characters of a command id."""
COMMIT_STATES_MAX = 10_000
"""States of decision models that one commit leaves; of `COMMIT_BYTES_MAX` in all."""
STATE_BYTES_MAX = 1 << 20
"""Bytes of one decision model's kept state."""
STATE_KEY_BYTES_MAX = 1_024
"""Bytes of what names one kept state among those of its model, in UTF-8."""


class ModelState(msgspec.Struct, frozen=True, gc=False):
    """What a decision model is after a commit, kept beside the history (rules 24 and 26).

    Attributes:
        model: its name, qualified by context: "shop.Product".
        key: which one of them, as text of its identities.
        fold: which code has folded it: a state that another fold has made is not this one's.
        data: the state, at most `STATE_BYTES_MAX`.
    """

    model: str
    key: str
    fold: str
    data: bytes


class KeptState(msgspec.Struct, frozen=True, gc=False):
    """A model's state, and up to where its events are folded: the last event of the commit that left it."""

    fold: str
    data: bytes
    position: Position


class StoredState(ModelState, frozen=True, gc=False):
    """What is kept of a decision model, and up to where its events are folded."""

    position: Position


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one command, to be made true or not as a whole.

    Attributes:
        events: at most `COMMIT_EVENTS_MAX`, of `COMMIT_BYTES_MAX` in all; may be empty.
        conditions: all have to hold.
        command_id: whose outcome this is; None appends without one.
        payload_hash: tells this payload from others under the same id.
        rejection: the rejection as JSON, where the command is refused.
        keep: whether the outcome is kept under the command id (G4).
        states: what models are after its events, each once, at most `COMMIT_STATES_MAX`, of `COMMIT_BYTES_MAX` in all;
            kept where it has any, in the same transaction (G1).
        models: the mark of the model unions under which it was decided, the same in all of a batch; empty where nobody
            decided.
    """

    events: tuple[NewEvent, ...] = ()
    conditions: tuple[AppendCondition, ...] = ()
    command_id: str | None = None
    payload_hash: bytes = b""
    rejection: bytes | None = None
    keep: bool = True
    states: tuple[ModelState, ...] = ()
    models: bytes = b""


class KeptOutcome(msgspec.Struct, frozen=True):
    """What the store remembers of a command.

    Attributes:
        place: where it was judged: the place of its last event or, without events, the head at that moment.
        event_count: how many events it appended, ending at that place.
        rejection: the rejection as JSON, where it was refused.
    """

    command_id: str
    payload_hash: bytes
    place: Place
    event_count: int
    rejection: bytes | None = None


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The commit holds: durable, with its events contiguous and ending at `place`.

    Attributes:
        place: of its last event or, without events, the head at which it was judged.
        recorded_at_us: microseconds since 1970 UTC, the same for all its events.
    """

    place: Place
    recorded_at_us: int


class Conflicting(msgspec.Struct, frozen=True):
    """A condition does not hold; nothing of the commit was done.

    Attributes:
        item: the condition's item.
        position: of one event that breaks it.
    """

    item: QueryItem
    position: Position


class ChainBroken(msgspec.Struct, frozen=True):
    """A condition names a pending position that did not come about; nothing of the commit was done."""


class Duplicate(msgspec.Struct, frozen=True):
    """An outcome is already kept under this command id; nothing was done. Compare the payload hashes."""

    outcome: KeptOutcome


class Refused(msgspec.Struct, frozen=True):
    """This commit can never be stored as it is (size, bytes, a duplicate event id); nothing of it was done."""

    reason: str


class ModelsChanged(msgspec.Struct, frozen=True):
    """Other model unions are kept than those under which the batch was decided; none of it was judged or done."""


AppendResult: TypeAlias = Appended | Conflicting | ChainBroken | Duplicate | Refused | ModelsChanged


class ReadResult(msgspec.Struct, frozen=True):
    """Events, and how far they tell.

    Attributes:
        events: ordered by position (backward reads: from the last), may be empty.
        through: forward reads: every matching event up to here, from the place asked, is in `events`. Where the
            limit did not cut the read short this is the head, else the last event's place. Backward reads: the head.
        more: whether the limit cut the read short.
    """

    events: list[RecordedEvent]
    through: Position
    more: bool


class StoredSchema(msgspec.Struct, frozen=True):
    """One schema by which events of a type and version are stored.

    Attributes:
        schema: plain JSON, see `messages/schema.py`.
        since: the head when it came; 0 where it was there before the first event of them.
    """

    schema: Any
    since: Position


class TypeFacts(msgspec.Struct, frozen=True):
    """What is stored of an event type and version beside its tag names.

    Attributes:
        schemas: by which events may be stored, each once, in the order in which they came.
        tag_fields: which places of the last one give which tags, sorted: "lines[].sku: sku".
    """

    schemas: tuple[StoredSchema, ...]
    tag_fields: tuple[str, ...]


class StoredType(msgspec.Struct, frozen=True):
    """An event type as the store knows it: its tag names are facts that code must keep (TagsChanged).

    Attributes:
        facts: its schemas and places of tags; None where it was stored before these were kept.
    """

    name: str
    version: int
    tag_names: tuple[str, ...]
    facts: TypeFacts | None = None


class Pruned(msgspec.Struct, frozen=True):
    """How far the data of a type's events were dropped by one call.

    Attributes:
        through: every event of the type up to here has none any more.
        events: how many had some before.
    """

    through: Position
    events: int


class HistoryPart(msgspec.Struct, frozen=True):
    """A part of one history.

    Attributes:
        after: the place that the copy has come to; position 0 begins one.
        events: the next ones in order, without gaps; may be empty.
        types: as the original knows them, of at least every type and version of the events.
        tagging: the id of the tagging of the original's events.
        outcomes: kept at places up to the last of the events, in any order; some may be in the copy already.
    """

    after: Place
    events: Sequence[RecordedEvent] = ()
    types: Sequence[StoredType] = ()
    outcomes: Sequence[KeptOutcome] = ()
    tagging: bytes = b""

    @property
    def end(self) -> Place:
        """The place that the copy comes to with it."""
        if not self.events:
            return self.after
        last = self.events[-1]
        return Place(self.after.history_id, last.position, last.event_id)

    @property
    def recorded_at_us(self) -> int:
        """When its last event was recorded, in microseconds since 1970 UTC; 0 without events."""
        return to_microseconds(self.events[-1].recorded_at) if self.events else 0

    def earlier_places(self) -> Mapping[Position, bytes]:
        """Where outcomes were judged before `after`, with the event id that has to be there: for the store to check."""
        places = (outcome.place for outcome in self.outcomes)
        return {place.position: place.event_id for place in places if START < place.position < self.after.position}


class EventLog(Protocol):
    """One history, to be read and followed: what the read side needs of an event store.

    Positions are 1, 2, 3 … without gaps, and no reader ever sees n+1 before n (G2). All methods raise `StoreClosed`
    before it is open and after it is closed, and `StoreUnavailable` where it cannot be reached.
    """

    @property
    def history_id(self) -> bytes:
        """16 bytes that name the history, made with the store. Known once open."""
        ...

    @property
    def may_fork(self) -> bool:
        """Whether the history may turn out to be another one while this is open: on a server that can fail over."""
        ...

    @property
    def forks(self) -> int:
        """How often the history here turned out not to be the one that this instance had read, appended to or told of.

        A failover to a standby that lacked the last commits is the common case. The store goes on with what is there.
        Whoever keeps something of the history compares the number with the one that it had before it read: where they
        differ, what it keeps is verified, or forgotten. Always 0 in a store that refuses to go on instead.
        """
        ...

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        """Matching events after a position (and up to `until`, included), forward, at most `limit` of them."""
        ...

    async def head(self) -> Place:
        """The place of the last event; position 0 while there is none."""
        ...

    async def place_at(self, position: Position) -> Place | None:
        """The place at a position; None past the head."""
        ...

    async def wait_for_events(self, after: Position, timeout_s: float) -> bool:
        """Wait until the head is past a position. False when the time is over first.

        Woken without polling by appends through this instance; those of other processes are noticed within
        a named interval.
        """
        ...


class Taggable(Protocol):
    """Stored events can be tagged anew; nothing else of a history ever changes.

    Every implementation guarantees that whatever is changed by one call is durable when it returns, or not done.
    """

    async def tagging(self) -> Tagging:
        """How events are tagged now, which need not be as they were when this was opened."""
        ...

    async def begin_retag(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        """Keep everyone who has the store open from appending, and applications from opening.

        Args:
            types: the types and versions, at least one, whose events will be tagged anew.
            instead_of: how they are tagged, as far as the caller knows.

        Raises:
            Retagged: they are tagged otherwise by now.
            NotGranted: this role may not.
        """
        ...

    async def write_tags(self, tagging: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]) -> None:
        """Give events, as they are stored, other tags.

        Raises:
            Retagged: somebody else has begun meanwhile; nothing was written.
        """
        ...

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        """Make the tag names and facts of types true, and let applications open again.

        Kept states of decision models are dropped, since they may be of other events now; but for those of the models
        named as unaffected.

        Raises:
            Retagged: somebody else has begun meanwhile; nothing was changed.
        """
        ...


class KeepsModels(Protocol):
    """Which events decision models fold is kept beside the history, and compared where commits are judged."""

    async def stored_models(self) -> ModelUnions:
        """What is kept, as of one moment, and its mark."""
        ...

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        """Keep these, each in place of what is kept under its name, and make another mark; durable.

        From then on no commit that was decided under another mark is appended.

        Args:
            models: at least one, each name once.
            instead_of: the mark of what the caller knows.

        Returns:
            Whether it was done; not, where another mark is there by now.

        Raises:
            NotGranted: this role adds nothing to the history.
        """
        ...


class EventStore(EventLog, Taggable, KeepsModels, Protocol):
    """Keeps one history.

    Every implementation guarantees

    - positions 1, 2, 3 … without gaps, in commit order, and no reader ever sees n+1 before n (G2);
    - a commit's events and outcome, all or nothing, durable when `append` returns (G1, G11);
    - the conditions of every commit judged exactly, in the section that assigns its positions (G3).

    It need not order batches of two callers in the order of their calls.
    """

    @property
    def durable(self) -> bool:
        """Whether the history outlives the process."""
        ...

    async def open(self) -> None:
        """Connect; make or upgrade the store's own tables where they are missing.

        Raises:
            NewerStore: a newer Diptych wrote it.
            StoreUnavailable: it cannot be opened; with the reason.
        """
        ...

    async def close(self) -> None:
        """Finish what is under way and let go. May be called twice."""
        ...

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        """Judge and append commits one after the other in one durable transaction; answer each on its own.

        A later commit sees what the earlier ones of the batch appended. With `base`, the head that the caller
        knows, a condition's `after` may lie beyond it: it then names a *pending* position, the place that an earlier
        event of this batch takes if the history still ends at `base` and every commit before was appended as
        decided. Where that did not come about, the answer is `ChainBroken`, whatever is at that position now.
        Without `base`, an `after` beyond the head is `ChainBroken` too. Where other model unions are kept than those
        under which the batch was decided, the answer to each commit is `ModelsChanged`.

        Returns:
            One result per commit, in order.

        Raises:
            OutcomeUnknown: the connection or disk failed while committing; sending the same commits again tells.
            HistoryDiverged: this is not the history any more that this instance knew when it was called. Nothing was
                judged or done.
            Retagged: events were tagged anew since it was opened, or are being. Nothing was judged or done.
        """
        ...

    async def read_backward(self, query: EventQuery, limit: int, *, before: Position | None = None) -> ReadResult:
        """Matching events before a position (by default from the head), the last first, at most `limit` of them."""
        ...

    async def outcome(self, command_id: str) -> KeptOutcome | None:
        """What is kept under a command id."""
        ...

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        """Everything that is kept, in pages: of the command ids behind one, the first `limit`, at least 1, in order.

        The order is that of their code points; `""` is before the first. One that is kept while pages are read is in
        a later page, or in none.
        """
        ...

    async def model_state(self, model: str, key: str) -> KeptState | None:
        """What is kept of a decision model: the state that the last commit to carry one has left."""
        ...

    async def model_states(self, after: tuple[str, str], limit: int) -> list[StoredState]:
        """All that is kept of decision models, in pages: the first `limit`, at least 1, by model and key behind these.

        The order is that of their code points; `("", "")` is before the first.
        """
        ...

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        """Keep states that were folded from the history, not made by a commit: durable, all or none.

        One that is kept already at the same position, or a later one, stays; one that another fold has made does not.

        Args:
            states: each once, at positions up to `at`; of the limits of `Commit`.
            at: what they were folded up to.

        Raises:
            HistoryDiverged: the history has another event there, or none; nothing was done.
            Retagged: events were tagged anew since it was opened, or are being; nothing was done.
        """
        ...

    async def stored_types(self) -> list[StoredType]:
        """Every event type and version that the store holds events of, with the tag names it was registered with."""
        ...

    async def register_types(self, types: Sequence[StoredType]) -> None:
        """Remember the tag names and facts of types; replaces those of types that no event is stored of.

        Where events are stored of a type, tag names that were never registered are filled in, and facts are not.
        """
        ...

    async def keep_facts(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        """Replace the facts of types, each where they are still those of before; others are left as they are.

        Raises:
            NotGranted: this role adds nothing to the history.
        """
        ...

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        """Drop the data of the next `limit`, at least 1, events of a stored type in (after, until]; durable.

        Position, id, type, tags, metadata and time stay (rule 19). `until` becomes the type's horizon with the first
        call, before anything is dropped, or together with it; a horizon never goes back.

        Args:
            type: its stored name.
            after: how far calls before have come.
            until: up to the head.
            limit: how many are gone through in one transaction.

        Raises:
            Retagged: events were tagged anew since it was opened, or are being; nothing was done. What has no data
                cannot be tagged anew.
        """
        ...

    async def horizons(self) -> Mapping[str, Position]:
        """Up to where events have no data any more, by stored type; those that were never pruned are not in it."""
        ...

    async def restore(self, part: HistoryPart) -> None:
        """Write a part of another store's history as it is, ids, positions and times included; durable, or not at all.

        For copies, never for commands: nothing is decided or judged here. A store that is empty (neither events nor
        outcomes) takes the history id and tagging of the part that begins at position 0; from then on, and only if
        nothing was appended to it meanwhile, it takes what follows. Types of the part are facts afterwards. Outcomes
        that are kept already, and are equal, are left as they are.

        Raises:
            HistoryDiverged: the part does not go on where the store ends, or contradicts it or itself; nothing of
                it was written.
            StoreUnavailable: the store cannot be reached; whether the part was written shows at the head, and by
                the outcomes.
        """
        ...
