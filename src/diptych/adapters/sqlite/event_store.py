"""The event store in one SQLite file: durable, for one machine, shared by its processes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from diptych.adapters.sqlite import model_states, model_unions, retagging
from diptych.adapters.sqlite.append_section import AppendSection
from diptych.adapters.sqlite.connection import (
    LOCK_WAIT_S,
    CommitFailed,
    Failures,
    Synchronous,
    Writer,
    data_version,
    open_reader,
)
from diptych.adapters.sqlite.event_schema import EVENT_STORE_FORMAT, OWN_TABLES
from diptych.adapters.sqlite.inline_rows import InlineStep
from diptych.adapters.sqlite.kept_outcomes import kept_outcome, kept_outcomes
from diptych.adapters.sqlite.matching_events import EventRow, MatchingEvents
from diptych.adapters.sqlite.name_ids import NameIds
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.adapters.sqlite.restoring import register, restore
from diptych.adapters.sqlite.transactions import TakenBack, work_apart
from diptych.clock import Clock
from diptych.errors import ConfigurationError, OutcomeUnknown, StoreClosed, StoreUnavailable
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import (
    AppendResult,
    Commit,
    HistoryPart,
    KeptOutcome,
    KeptState,
    Pruned,
    ReadResult,
    StoredState,
    StoredType,
    TypeFacts,
)
from diptych.event_store.head_watch import HeadWatch
from diptych.event_store.model_unions import ModelUnion, ModelUnions
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.refusal import refusal
from diptych.event_store.tagging import Tagging
from diptych.event_store.timestamp import moment, to_microseconds
from diptych.event_store.transactions import Lending, Work
from diptych.messages.unique_id import unique_bytes
from diptych.read_side.inline_rows import InlineFold
from diptych.read_side.read_store import ReadStore

__all__ = ["SqliteEventStore", "connect"]

FOREIGN_POLL_S = 0.03
"""How often the file is asked for commits of other processes, only while somebody waits for events."""
READ_SLICE_EVENTS = 1_000
"""Events read at a stretch; between slices of a longer read the event loop gets its turn."""
TAG_LISTS_MAX = 10_000
"""Lists of tags kept decoded, since the events of one entity mostly carry the same."""


def connect(url: str, clock: Clock) -> SqliteEventStore:
    """The event store for `sqlite:<path>`; nothing is opened yet.

    `sqlite:<path>?own_tables=true` lets it make its tables in a file that has others already.

    Raises:
        ConfigurationError: there is no path, or it names no file.
    """
    given = url.partition(":")[2]
    path = given.removesuffix(OWN_TABLES)
    if not path or path == ":memory:":
        raise ConfigurationError(f"{url!r} names no file: write sqlite:shop.db, or memory: to keep nothing")
    return SqliteEventStore(path, clock, beside_tables=path != given)


class SqliteEventStore:
    """Keeps one history in one file."""

    def __init__(
        self,
        path: str,
        clock: Clock,
        *,
        synchronous: Synchronous = "FULL",
        lock_wait_s: float = LOCK_WAIT_S,
        beside_tables: bool = False,
    ) -> None:
        """Remember the settings.

        Args:
            path: of the file, made where it is missing (its folder is not). Files beside it begin with its name.
            clock: tells when events are recorded.
            synchronous: FULL: acknowledged means on disk. NORMAL: a power cut may take the last commits.
            lock_wait_s: how long an append waits for other processes before it raises `StoreUnavailable`.
            beside_tables: whether it may make its tables in a file that has others already.
        """
        self._path = path
        self._beside_tables = beside_tables
        self._clock = clock
        self._failures = Failures(path)
        self._writer = Writer(path, synchronous=synchronous, lock_wait_s=lock_wait_s)
        self._reading: _Reading | None = None
        self._history_id = b""
        self._section: AppendSection | None = None
        self._opened_under: bytes = b""
        self._watch = HeadWatch()
        self._poll: asyncio.TimerHandle | None = None
        self._rows: SqliteReadStore | None = None
        self._inline: InlineStep | None = None

    @property
    def durable(self) -> bool:
        """True: the history is in a file."""
        return True

    @property
    def may_fork(self) -> bool:
        """False."""
        return False

    @property
    def forks(self) -> int:
        """0: a file that was exchanged is not written to."""
        return 0

    @property
    def history_id(self) -> bytes:
        """16 bytes, made with the file."""
        self._open_reading()
        return self._history_id

    async def open(self) -> None:
        """Connect; make the tables where the file is new.

        Raises:
            NewerStore: a newer Diptych wrote it.
            ConfigurationError: the file belongs to something else.
            StoreUnavailable: it cannot be opened; with the reason.
        """
        if self._reading is not None:
            return
        await asyncio.to_thread(self._writer.open)
        try:
            self._history_id, tagged = await self._writer.run(self._prepare)
            reader = open_reader(self._path)
        except BaseException:
            await self._writer.close()
            raise
        self._opened_under = tagged
        self._section = AppendSection(self._history_id, tagged, self._inline)
        self._reading = _Reading(reader, self._history_id)

    async def close(self) -> None:
        """Finish what is under way and let go of the file. May be called twice."""
        reading, self._reading = self._reading, None
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if reading is not None:
            reading.close()
        await self._writer.close()  # last, so that it copies the write-ahead log into the file and removes it
        self._watch.wake()

    def _prepare(self, connection: sqlite3.Connection) -> tuple[bytes, bytes]:
        if EVENT_STORE_FORMAT.prepare(connection, self._path, beside_tables=self._beside_tables):
            connection.execute("INSERT INTO history (one, history_id) VALUES (1, ?)", (unique_bytes(),))
        history_id, tagged = connection.execute("SELECT history_id, tagging FROM history").fetchone()
        return bytes(history_id), bytes(tagged)

    # ── append ───────────────────────────────────────────────────────────────

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        """Judge and append commits one after the other in one durable transaction.

        Raises:
            OutcomeUnknown: the disk failed while committing; sending the same commits again tells.
        """
        self._open_reading()
        refusals = [refusal(commit) for commit in commits]
        try:
            try:
                return await self._append(commits, refusals, base, closely=False)
            except sqlite3.IntegrityError:
                return await self._append(commits, refusals, base, closely=True)
        except CommitFailed as error:
            ids = [commit.command_id for commit in commits if commit.command_id is not None]
            raise OutcomeUnknown(", ".join(ids) or "(none given)", str(error)) from error

    async def _append(
        self, commits: Sequence[Commit], refusals: Sequence[str | None], base: int | None, *, closely: bool
    ) -> list[AppendResult]:
        section = self._section
        assert section is not None

        def work(connection: sqlite3.Connection) -> list[AppendResult]:
            now_us = to_microseconds(self._clock.now())
            return section.run(connection, commits, refusals, base, now_us, closely=closely)

        return await self._writer.run(work, self._wake)

    # ── own tables ───────────────────────────────────────────────────────────

    @property
    def lending(self) -> Lending:
        """Connections of the standard library, inside the writer's transaction, on its thread."""
        return Lending("SQLite", sqlite3.Connection, awaits=False)

    async def transact(self, work: Work, lane: str = "") -> AppendResult:  # noqa: ARG002 - there is one connection
        """Do work in a transaction of the writer, and append what it comes to as the last statement.

        Nobody else writes meanwhile. So the work is to be short: past `TRANSACTION_S_MAX` it is rolled back.

        Raises:
            OutcomeUnknown: the disk failed while committing; sending the same command again tells.
            TransactionMisused: the work ended the transaction, or touched what is the store's.
            Overloaded: the work took too long.
        """
        self._open_reading()
        section = self._section
        assert section is not None

        def append(connection: sqlite3.Connection, commit: Commit) -> AppendResult:
            now_us = to_microseconds(self._clock.now())
            (result,) = section.run(connection, [commit], [refusal(commit)], None, now_us, closely=True)
            return result

        try:
            return await self._writer.run_apart(work_apart(work, append), self._wake)
        except TakenBack as taken_back:
            return taken_back.result
        except CommitFailed as error:
            raise OutcomeUnknown("(of the handler's transaction)", str(error)) from error

    def _wake(self, _: object) -> None:
        self._watch.wake()
        if self._rows is not None:
            self._rows.look()

    # ── read models in the same file ─────────────────────────────────────────

    def fold_inline(self, rows: ReadStore, fold: InlineFold) -> None:
        """Have every append move these read models on. See `FoldsInline`.

        Raises:
            ConfigurationError: the rows are in another file.
        """
        if not isinstance(rows, SqliteReadStore) or not _is_same(rows.path, self._path):
            where = f"sqlite:{rows.path}" if isinstance(rows, SqliteReadStore) else "no file of SQLite"
            raise ConfigurationError(
                f"inline read models are in the file of the events, {self._path}, and the read store is {where}: "
                "leave read_store= out, or name the same file"
            )
        self._rows = rows
        self._inline = InlineStep(fold, self._events_between)

    def _events_between(
        self, connection: sqlite3.Connection, query: EventQuery, after: Position, until: Position
    ) -> list[RecordedEvent]:
        events, _ = _Reading(connection, self._history_id).events(query, after, until, until - after, backward=False)
        return events

    # ── copies ───────────────────────────────────────────────────────────────

    async def restore(self, part: HistoryPart) -> None:
        """Write a part of another store's history as it is.

        Raises:
            HistoryDiverged: it does not go on where the file ends, or contradicts it or itself.
        """
        self._open_reading()
        try:
            await self._writer.run(lambda connection: restore(connection, part), lambda _: self._become(part))
        except CommitFailed as error:
            raise StoreUnavailable(f"{error}; whether the part was written shows when it is opened again") from error

    def _become(self, part: HistoryPart) -> None:
        """Go on as a copy of that history."""
        history_id = part.after.history_id
        tagged_alike = part.tagging == self._opened_under
        if (history_id != self._history_id or not tagged_alike) and self._reading is not None:
            self._history_id, self._opened_under = history_id, part.tagging
            self._section = AppendSection(history_id, part.tagging, self._inline)
            self._reading.history_id = history_id
        self._watch.wake()

    # ── read ─────────────────────────────────────────────────────────────────

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        """Matching events after a position, forward."""
        head = self._head().position
        through = head if until is None else min(until, head)
        events, more = await self._slices(query, after, through, limit, backward=False)
        if more:
            through = events[-1].position if events else after
        return ReadResult(events, through, more)

    async def read_backward(self, query: EventQuery, limit: int, *, before: Position | None = None) -> ReadResult:
        """Matching events before a position, the last first."""
        head = self._head().position
        last = head if before is None else min(before - 1, head)
        events, more = await self._slices(query, Position(0), last, limit, backward=True)
        return ReadResult(events, head, more)

    async def _slices(
        self, query: EventQuery, after: int, until: int, limit: int, *, backward: bool
    ) -> tuple[list[RecordedEvent], bool]:
        """What was committed when the read began never changes, so that reading it in slices shows."""
        events: list[RecordedEvent] = []
        while True:
            wanted = min(limit - len(events), READ_SLICE_EVENTS)
            with self._failures:
                found, more = self._open_reading().events(query, after, until, wanted, backward=backward)
            events += found
            if not more or len(events) >= limit:
                return events, more
            if backward:
                until = found[-1].position - 1
            else:
                after = found[-1].position
            await asyncio.sleep(0)  # noqa: TID251 - the others' turn, not a wait

    # ── places ───────────────────────────────────────────────────────────────

    async def head(self) -> Place:
        """The place of the last event."""
        return self._head()

    def _head(self) -> Place:
        reading = self._open_reading()
        with self._failures:
            return reading.head()

    async def place_at(self, position: Position) -> Place | None:
        """The place at a position; None past the head."""
        reading = self._open_reading()
        with self._failures:
            return reading.place_at(position)

    async def outcome(self, command_id: str) -> KeptOutcome | None:
        """What is kept under a command id."""
        reading = self._open_reading()
        with self._failures:
            return kept_outcome(reading.connection, self._history_id, command_id)

    async def model_state(self, model: str, key: str) -> KeptState | None:
        """What is kept of a decision model."""
        reading = self._open_reading()
        with self._failures:
            return model_states.model_state(reading.connection, model, key)

    async def model_states(self, after: tuple[str, str], limit: int) -> list[StoredState]:
        """What is kept of decision models, in pages."""
        reading = self._open_reading()
        with self._failures:
            return model_states.model_states(reading.connection, after, limit)

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        """Keep states that were folded from the history.

        Raises:
            HistoryDiverged: the file has another event where they were folded up to, or none.
            Retagged: events were tagged anew since this was opened, or are being.
        """
        self._open_reading()
        await self._writer.run(lambda connection: model_states.keep_states(connection, states, at, self._opened_under))

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        """Kept outcomes of the first command ids behind one."""
        reading = self._open_reading()
        with self._failures:
            return kept_outcomes(reading.connection, self._history_id, after, limit)

    async def wait_for_events(self, after: Position, timeout_s: float) -> bool:
        """Wait until the head is past a position; commits of other processes are noticed within `FOREIGN_POLL_S`."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._watch_file()  # before the look at the head, so that nothing falls between
            if self._head().position > after:
                return True
            if not await self._watch.wait(deadline - time.monotonic()):
                return False

    def _watch_file(self) -> None:
        if self._poll is None:
            with self._failures:
                self._look_again(data_version(self._open_reading().connection))

    def _look_again(self, seen: int) -> None:
        self._poll = asyncio.get_running_loop().call_later(FOREIGN_POLL_S, self._look_at_file, seen)

    def _look_at_file(self, seen: int) -> None:
        """Wake those who wait if anybody has committed since; go on while somebody waits."""
        self._poll = None
        if self._reading is None or not self._watch:
            return
        try:
            with self._failures:
                found = data_version(self._reading.connection)
        except StoreUnavailable as error:
            self._watch.fail(error)
            return
        if found != seen:
            self._watch.wake()
        self._look_again(found)

    # ── pruning ──────────────────────────────────────────────────────────────

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        """Drop the data of a type's events. The file keeps its size, and fills the room with later events."""
        self._open_reading()
        tagging = self._opened_under
        return await self._writer.run(
            lambda connection: model_states.prune(connection, type, after, until, limit, tagging=tagging)
        )

    async def horizons(self) -> Mapping[str, Position]:
        """Up to where events have no data any more, by stored type."""
        reading = self._open_reading()
        with self._failures:
            return model_states.horizons(reading.connection)

    # ── types ────────────────────────────────────────────────────────────────

    async def stored_types(self) -> list[StoredType]:
        """Types and versions that events are stored of, by name and version."""
        reading = self._open_reading()
        with self._failures:
            return retagging.stored_types(reading.connection)

    async def register_types(self, types: Sequence[StoredType]) -> None:
        """Remember tag names and facts; what is known of a type that events are stored of stays."""
        self._open_reading()
        await self._writer.run(lambda connection: register(connection, types))

    async def keep_facts(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        """Replace the facts of types that are still as before."""
        self._open_reading()
        await self._writer.run(lambda connection: retagging.keep_facts(connection, before, after))

    async def stored_models(self) -> ModelUnions:
        """What is kept of models."""
        reading = self._open_reading()
        with self._failures:
            return model_unions.stored_models(reading.connection)

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        """Keep these under another mark, where that one is still there."""
        self._open_reading()
        return await self._writer.run(lambda connection: model_unions.keep_models(connection, models, instead_of))

    async def tagging(self) -> Tagging:
        """How events are tagged now."""
        reading = self._open_reading()
        with self._failures:
            return retagging.tagging(reading.connection)

    async def begin_retag(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        """Keep everyone who has the file open from appending, and applications from opening."""
        self._open_reading()
        return await self._writer.run(lambda connection: retagging.begin_retag(connection, types, instead_of))

    async def write_tags(self, tagging: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]) -> None:
        """Give events other tags."""
        self._open_reading()
        await self._writer.run(lambda connection: retagging.write_tags(connection, tagging, changes))

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        """Make tag names and facts true, and drop kept states but for those of the models named."""
        self._open_reading()
        await self._writer.run(lambda connection: retagging.end_retag(connection, tagging, types, unaffected))

    def _open_reading(self) -> _Reading:
        if self._reading is None:
            raise StoreClosed(f"the event store {self._path} is not open")
        return self._reading


class _Reading:
    """The connection that reads; only ever used on the event loop, and with no cursor left open between calls."""

    def __init__(self, connection: sqlite3.Connection, history_id: bytes) -> None:
        self.connection = connection
        self.history_id = history_id
        self._names = NameIds(connection)
        self._matching = MatchingEvents(connection, self._names)
        self._tag_lists: dict[bytes, tuple[str, ...]] = {}
        self._moment = (0, moment(0))

    def close(self) -> None:
        self.connection.close()

    def head(self) -> Place:
        row = self.connection.execute("SELECT position, event_id FROM events ORDER BY position DESC LIMIT 1").fetchone()
        position, event_id = row or (0, NOWHERE)
        return Place(self.history_id, Position(position), event_id)

    def place_at(self, position: Position) -> Place | None:
        if position == 0:
            return Place(self.history_id, position, NOWHERE)
        row = self.connection.execute("SELECT event_id FROM events WHERE position = ?", (position,)).fetchone()
        return None if row is None else Place(self.history_id, position, row[0])

    def events(
        self, query: EventQuery, after: int, until: int, limit: int, *, backward: bool
    ) -> tuple[list[RecordedEvent], bool]:
        """At most `limit` matching events in (after, until], and whether there are more."""
        rows = self._matching.rows(query, after, until, limit + 1, backward=backward)
        return [self._event(row) for row in rows[:limit]], len(rows) > limit

    def _event(self, row: EventRow) -> RecordedEvent:
        position, type, version, recorded_at_us, event_id, data, tags, metadata = row
        tag_list = self._tag_lists.get(tags) or self._decode_tags(tags)
        if recorded_at_us != self._moment[0]:
            self._moment = (recorded_at_us, moment(recorded_at_us))
        name = self._names.type_name(type)
        return RecordedEvent(Position(position), event_id, name, version, data, tag_list, metadata, self._moment[1])

    def _decode_tags(self, tags: bytes) -> tuple[str, ...]:
        if len(self._tag_lists) >= TAG_LISTS_MAX:
            self._tag_lists.clear()
        decoded = self._tag_lists[tags] = _tags_decoder.decode(tags)
        return decoded


def _is_same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


_tags_decoder = msgspec.json.Decoder(tuple[str, ...])
