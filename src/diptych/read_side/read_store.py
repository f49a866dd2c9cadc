"""Where read models are kept: the port of the read store. The contract is `testing/contracts/read_store.py`.

A read model is a table; a projection folds events into it. Each build of it from the history is a *generation*, with a
table and a checkpoint of its own, so that a changed fold can be built beside the one that answers queries. Rows and
checkpoint change in one transaction (G5), and a snapshot shows the rows of every read model together with the
checkpoints they belong to (G8). A generation may be split by row key into *slices*, each with a checkpoint of its own;
each slice is worked on by one process at a time, which has it on lease.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import msgspec

from diptych.event_store.position import Place, Position

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "SQL_ROWS_MAX",
    "BlockedKey",
    "Column",
    "ColumnKind",
    "Comparison",
    "Discard",
    "Failed",
    "Fenced",
    "Filter",
    "Generation",
    "Key",
    "LeaseKey",
    "Leased",
    "Order",
    "ReadSnapshot",
    "ReadStore",
    "Retry",
    "Row",
    "RowsAsked",
    "SliceWrite",
    "Table",
    "WriteResult",
    "Written",
]

SQL_ROWS_MAX = 100_000
"""Rows of one statement of the user's SQL; more get `Overloaded`."""

Row: TypeAlias = tuple[Any, ...]
"""The values of one row, in the order of the table's columns."""

Key: TypeAlias = tuple[Any, ...]
"""The values of the key columns, in the order of `Table.key`."""


class ColumnKind(enum.Enum):
    """What a column holds. What is written reads back equal, and is ordered as Python orders it (None first)."""

    TEXT = "text"  # str, in code point order
    INTEGER = "integer"  # int of 64 bits, signed
    REAL = "real"  # float, not NaN
    BOOLEAN = "boolean"  # bool
    DECIMAL = "decimal"  # decimal.Decimal, finite: value exact, and its exponent kept ("40.0" is not written "40")
    DATETIME = "datetime"  # aware datetime, to the microsecond; reads back in UTC
    DATE = "date"  # dt.date
    DURATION = "duration"  # dt.timedelta
    BYTES = "bytes"  # bytes
    DOCUMENT = "document"  # str of JSON; kept as it is, neither filtered nor ordered by


class Column(msgspec.Struct, frozen=True):
    """One column. `indexed` ones are quick to filter and order by; `searchable` ones take part in `search`."""

    name: str
    kind: ColumnKind
    nullable: bool = False
    indexed: bool = False
    searchable: bool = False


# Without what is left at its default: a field that is added must not change the fingerprint of every fold.
class Table(msgspec.Struct, frozen=True, omit_defaults=True):
    """The form of one read model.

    Attributes:
        name: by which SQL finds the live generation, "school_seats"; letters, digits and underscores.
        columns: at least one, key columns included.
        key: names of the key columns, at least one, in order.
        expires: the DATETIME column that says when a row expires (None in it: never); None where rows do not.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    expires: str | None = None


class Generation(msgspec.Struct, frozen=True):
    """One slice of a build of a read model from the history; or the progress of a subscriber, which has no table.

    Where a read model is not split there is one slice, and this is the generation.

    Attributes:
        name: the projection's or subscriber's name, "school.Seats".
        number: from 1, never reused.
        fingerprint: of the fold's code and schema.
        table: its form; None for a subscriber.
        live: whether it answers queries.
        checkpoint: every event up to this place is folded, but for blocked keys and discards.
        epoch: goes up with each change by hand, and whenever a worker loses its lease on it; a writer that has not
            seen that is fenced.
        stopped: why nothing can be folded any more; empty while it goes on.
        recorded_at: when the event at the checkpoint was recorded, where rows expire: those that expire by then are
            gone, for folds and for queries. None at the beginning, and where rows do not expire.
        slice: which one this is, from 0; `partitions.slice_of` tells a key's.
        slices: of this generation, all in all.
        barrier: a position that no slice may go beyond, since the generation is split anew there; None: there is none.
        slices_next: how many slices there will be when all are at the barrier; 0 without one.
        kept_until: of one that answered until another was switched to: until when it is kept, by the store's clock, for
            whoever goes back to it. None: it answers, or is being built.
    """

    name: str
    number: int
    fingerprint: str
    table: Table | None
    live: bool
    checkpoint: Place
    epoch: int = 0
    stopped: str = ""
    recorded_at: dt.datetime | None = None
    slice: int = 0
    slices: int = 1
    barrier: Position | None = None
    slices_next: int = 0
    kept_until: dt.datetime | None = None

    @property
    def under_way(self) -> bool:
        """Whether it is being built, to answer when it has caught up."""
        return not self.live and self.kept_until is None

    @property
    def lease_key(self) -> LeaseKey:
        """As what it is leased."""
        return self.name, self.number, self.slice


class BlockedKey(msgspec.Struct, frozen=True):
    """A key whose events wait in the log since one of them could not be folded (G9).

    Attributes:
        name: the projection's name.
        key: the key's values as a JSON array.
        position: of the event that could not be folded.
        error: what the fold raised, with its place in the code.
        attempts: how often folding it has failed.
        trace: the stack trace. Kept with the key, and not read with the others: `ReadStore.trace` tells it.
    """

    name: str
    key: str
    position: Position
    error: str
    attempts: int = 1
    trace: str = ""


class Discard(msgspec.Struct, frozen=True):
    """A decision by hand that a key's fold leaves an event out; rebuilds honour it.

    Attributes:
        name: the projection's name.
        key: the key's values as a JSON array.
        position: of the event.
        actor: who decided; None where that was not kept.
        reason: why.
        at: when; None where that was not kept.
    """

    name: str
    key: str
    position: Position
    actor: str | None = None
    reason: str = ""
    at: dt.datetime | None = None


class Retry(msgspec.Struct, frozen=True):
    """That somebody had the events of a blocked key folded again, whatever came of it. Attributes as of `Discard`."""

    name: str
    key: str
    position: Position
    actor: str
    reason: str
    at: dt.datetime


class SliceWrite(msgspec.Struct, frozen=True):
    """What a folded batch changes in one slice of a generation, all or nothing.

    Attributes:
        generation: the slice as it was when the batch was folded: the stored one must have its checkpoint and epoch.
        checkpoint: the new one; may be the old one where something is changed by hand.
        upserts: whole rows; a row with the same key is replaced.
        deletes: keys; one that has no row is no error. Disjoint from the upserts.
        block: newly blocked keys.
        unblock: keys (as JSON arrays) that are blocked no more.
        discard: events to leave out from now on; one that is left out already stays as it was decided first.
        retried: what was tried again by hand; kept for good.
        stopped: the new reason why the slice cannot go on; empty where it can.
        by_hand: whether the epoch goes up, so that writers that do not know of this change are fenced.
        recorded_at: the new `Generation.recorded_at`; None leaves it as it is.
    """

    generation: Generation
    checkpoint: Place
    upserts: Sequence[Row] = ()
    deletes: Sequence[Key] = ()
    block: Sequence[BlockedKey] = ()
    unblock: Sequence[str] = ()
    discard: Sequence[Discard] = ()
    retried: Sequence[Retry] = ()
    stopped: str = ""
    by_hand: bool = False
    recorded_at: dt.datetime | None = None


class Written(msgspec.Struct, frozen=True):
    """Done; `generation` is the new state to go on from."""

    generation: Generation


class Fenced(msgspec.Struct, frozen=True):
    """Nothing done: someone else has moved this slice on. Load it anew."""


class Failed(msgspec.Struct, frozen=True):
    """Nothing done for this slice: a row cannot be stored (a number too large for its column, NaN …)."""

    reason: str


WriteResult: TypeAlias = Written | Fenced | Failed


LeaseKey: TypeAlias = tuple[str, int, int]
"""The name and number of a generation, and the slice of it, as what is leased."""


class Leased(msgspec.Struct, frozen=True):
    """What a worker holds.

    Attributes:
        epochs: what it holds, each with the epoch that the generation has now.
        surplus: what of it is more than its fair share: to be released as soon as no work on it is under way.
        gone: what it wanted and is not there any more.
    """

    epochs: Mapping[LeaseKey, int]
    surplus: frozenset[LeaseKey] = frozenset()
    gone: frozenset[LeaseKey] = frozenset()


class Comparison(enum.Enum):
    """How a filter compares a column with its value."""

    EQUAL = "="  # with None too
    AT_LEAST = ">="
    AT_MOST = "<="
    MORE_THAN = ">"
    LESS_THAN = "<"
    MORE_THAN_OR_NONE = "> or None"  # what has not expired
    ONE_OF = "in"  # the value is a tuple, may be empty (matches nothing)
    STARTS_WITH = "prefix"  # TEXT columns; case matters


class Filter(msgspec.Struct, frozen=True):
    """A condition on one column. But for EQUAL, ONE_OF and MORE_THAN_OR_NONE, None in the column never matches."""

    column: str
    comparison: Comparison
    value: Any


class Order(msgspec.Struct, frozen=True):
    """One column to order by. None comes first, or last when descending."""

    column: str
    descending: bool = False


_NO_MOMENTS: Mapping[str, dt.datetime] = MappingProxyType({})


class RowsAsked(NamedTuple):
    """Rows that a fold starts from: of these keys, in this generation."""

    generation: Generation
    keys: Sequence[Key]


class ReadSnapshot(Protocol):
    """One consistent, read-only view: rows, checkpoints and blocked keys of one moment. Not for concurrent use.

    Names are projection names ("school.Seats"); each method reads the live generation, or `number` where given.
    Reads of rows raise `StoreUnavailable` where there is no such generation (its first build may be under way), and
    `InvalidMessage` where a filter's value is none that its column can hold. They show expired rows as well: what is
    left out, and as of when, is for the caller to say, with a filter.
    """

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one, in order; empty where there is none.

        Args:
            name: the projection's.
            number: the generation's.
            expecting: keys whose rows are likely to be asked for next; a store may read them at once, or not.
        """
        ...

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept, see `ReadStore.switch`; empty where none is."""
        ...

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, ordered by position and key, may be empty; they go when it is dropped."""
        ...

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out."""
        ...

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in that order, at most `limit`.

        `order` must end in the whole key, so that it is total. `after` holds one value per order column: rows up to
        and including that place are left out (keyset pagination).
        """
        ...

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches."""
        ...

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word; the best first, ties by key.

        At most `limit` of those that every filter matches. Words are runs of letters and digits; case and accents do
        not matter. A text without a word finds nothing.
        """
        ...

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, the earliest first, ties by key, at most `limit`.

        Costs what it finds, however many rows there are; none where rows do not expire.
        """
        ...

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = _NO_MOMENTS,
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Rows of a read-only SQL statement over `Table.name`s, decoded by column name to (kind, nullable).

        The first `limit` of them: what comes behind is not fetched. `moments` are by projection name: a `Table.name`
        stands for its rows that have not expired then.

        Raises:
            ConfigurationError: this store has no SQL, the statement would write, or is wrong; with the reason.
        """
        ...


class ReadStore(Protocol):
    """Keeps read models.

    Every implementation guarantees that rows and checkpoint change together or not at all, that a write from a stale
    checkpoint or epoch changes nothing (`Fenced`), and that a snapshot is consistent. It need not survive the loss of
    its last transactions on a power cut (they are folded again), but for what was changed by hand. All methods raise
    `StoreClosed` before `open` and after `close`, and `StoreUnavailable` where the store cannot be reached.
    """

    @property
    def durable(self) -> bool:
        """Whether the rows outlive the process."""
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

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        ...

    async def create_generation(
        self,
        name: str,
        fingerprint: str,
        table: Table | None,
        checkpoint: Place,
        *,
        live: bool,
        anew: bool = False,
        slices: int = 1,
    ) -> list[Generation]:
        """Make a new generation and its empty table. With `live`, any live one of that name is live no more.

        Safe to race, unless `anew`: where a generation of this name and fingerprint exists, the live one or else the
        newest is returned, with the slices that it has. Where that was kept (`switch`) it is taken up: it is one that
        is being built from now on, from where it is, and its epochs go up.

        Args:
            name: the projection's name, "school.Seats".
            fingerprint: of the fold's code and schema.
            table: the form of its rows; None for a subscriber.
            checkpoint: where every slice begins.
            live: whether it answers queries.
            anew: whether to make one in any case.
            slices: into how many it is split, 1 to `partitions.SLICES_MAX`.
        """
        ...

    async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        """Let a generation answer the queries, and drop all others of that name, in one transaction.

        The one that answered until then is kept for `keep_s` seconds by the store's clock, if that is more than 0: its
        epochs go up, so that whoever writes to it learns of it, and goes on. Where the chosen one answers already,
        nothing is done.

        Returns:
            Whether it answers. False, and nothing done, while any key shows less in it than in the live one
            (`partitions.reaches`), or where it is gone.
        """
        ...

    async def drop_overdue(self) -> None:
        """Remove every generation that was kept until a time that has passed, with its table."""
        ...

    async def split(self, name: str, number: int, slices: int | None = None) -> bool:
        """Split a generation into another number of slices, in one transaction; nothing is lost and nothing repeated.

        Where all its slices are at one place, they are replaced: the new ones begin there, held by nobody, with an
        epoch above all of theirs. Otherwise the furthest of these places becomes the barrier of all, and their epochs
        go up, so that whoever writes learns of it; ask again, without a number, when all have come there. A number
        that it has already takes a barrier away, and so does a slice that has stopped, which would hold up the others.
        Wakes who waits for a change, unless there was nothing to change.

        Returns:
            Whether there is no barrier now; True as well where the generation is gone.
        """
        ...

    async def drop_generation(self, name: str, number: int) -> None:
        """Remove a generation with its table; no error where it is gone."""
        ...

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        """Apply each write all or nothing, in one transaction where it can; answer each on its own.

        Changes by hand (`by_hand`) are durable when this returns.
        """
        ...

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key, whatever the generation."""
        ...

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key of a projection, the latest first, whatever the generation."""
        ...

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace that is kept with a blocked key of a generation; empty where there is none."""
        ...

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Ask for the lease of generations, and renew what is held, in one transaction.

        A lease is held by one worker at a time, until `ttl_s` seconds from now by the store's clock; workers are
        forgotten past their time. What the worker holds and does not want any more is given up. It gets what is free
        up to its fair share (`lease_shares.deal`); what a live worker holds is never taken from it, it is told of its
        surplus. Where the worker that held a generation last is another one and has not released it, the epoch goes
        up, so that what that one still writes is fenced.

        A store for the processes of one machine may use locks of the operating system instead, which never run out
        while their holder is there, and go to whoever comes first.

        Args:
            worker: a name that no other process, and no later run of this one, has.
            wanted: names, numbers and slices; may be empty.
            ttl_s: seconds for which the lease is valid unless it is renewed.
        """
        ...

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Give up leases at once: those of `keys` that the worker holds; by default all, and forget the worker.

        Their epochs go up: the worker can write nothing there any more. Wakes who waits for a change.
        """
        ...

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from, for each that was asked; keys without a row are left out.

        As they are now, each maybe of another moment: what is folded from them is fenced when it is written, so that
        nothing comes of rows that somebody else has changed since the generation was written or loaded here.
        """
        ...

    def snapshot(self) -> AbstractAsyncContextManager[ReadSnapshot]:
        """A view of one moment: of this one, of that of its first read, or of one between.

        At most a named number at once; more wait for their turn.

        Raises:
            Overloaded: too many are waiting.
        """
        ...

    @property
    def changes(self) -> int:
        """How many changes were noticed, to wait from; what a later snapshot does not show has not been counted."""
        ...

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`, a number of `changes` (0: since it was opened).

        Returns the number of now; `seen` itself when the time is over first. Woken without polling by writes
        through this instance; those of other processes are noticed within a named interval.
        """
        ...
