"""The event store in PostgreSQL: durable, for many processes on many machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

import asyncpg
import msgspec

from diptych.adapters.postgres import model_states
from diptych.adapters.postgres.append_function import WRONG_ISOLATION
from diptych.adapters.postgres.append_section import Batch, append_and_keep_statement, append_statement
from diptych.adapters.postgres.attempts import UnderWay, changed, read
from diptych.adapters.postgres.connection import (
    BEGIN,
    DRIVER_ERRORS,
    INDEXED,
    OWNERS,
    Connections,
    Link,
    PostgresUrl,
    failure,
    is_lost,
    parse_url,
    roll_back,
    state_of,
    transaction,
    was_not_sent,
)
from diptych.adapters.postgres.culprits import find_culprits
from diptych.adapters.postgres.event_schema import EVENT_STORE_MIGRATIONS
from diptych.adapters.postgres.event_slices import EventSlices
from diptych.adapters.postgres.event_watch import EventWatch
from diptych.adapters.postgres.inline_rows import InlineStep
from diptych.adapters.postgres.kept_outcomes import kept_outcome, select_outcome, select_page
from diptych.adapters.postgres.known_history import Known, KnownHistory
from diptych.adapters.postgres.known_types import TypeRegister
from diptych.adapters.postgres.model_unions import ModelRegister
from diptych.adapters.postgres.read_ahead import ReadAhead
from diptych.adapters.postgres.read_columns import teach
from diptych.adapters.postgres.restoring import restore
from diptych.adapters.postgres.retagging import Retagging
from diptych.adapters.postgres.transactions import APPEND_PAUSE_S_MAX, Lanes
from diptych.adapters.postgres.types_and_tags import TypesAndTags
from diptych.clock import Clock, SystemClock
from diptych.errors import (
    ConfigurationError,
    HistoryDiverged,
    OutcomeUnknown,
    StoreClosed,
    StoreUnavailable,
)
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import (
    Appended,
    AppendResult,
    Commit,
    HistoryPart,
    KeptOutcome,
    KeptState,
    Pruned,
    ReadResult,
    Refused,
    StoredState,
)
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.refusal import is_storable, refusal
from diptych.event_store.tagging import retagged
from diptych.event_store.timestamp import to_microseconds
from diptych.event_store.transactions import Lending, Work
from diptych.read_side.inline_rows import InlineFold
from diptych.read_side.read_store import ReadStore

__all__ = ["PostgresEventStore", "connect"]

READ_CONNECTIONS_MAX = 4
"""Connections of one process that read."""
APPEND_CONNECTIONS = 1
"""Connections of one process that append: batches of one process follow each other anyway."""
LOCK_WAIT_S = 5.0
"""How long an append waits for other processes before it gives up with `StoreUnavailable`."""
APPEND_S_MAX = 60.0
"""How long an append may take in all; past it, its outcome is unknown."""


_BEGIN_TO_FOLD = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '{APPEND_PAUSE_S_MAX}s'"
)
"""Begins a transaction that appends, and folds what was appended before others may append."""


def connect(url: str, clock: Clock) -> PostgresEventStore:
    """The event store for `postgresql://user@host/database?schema=diptych`; nothing is opened yet.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return PostgresEventStore(parse_url(url), clock)


T = TypeVar("T")


class PostgresEventStore(TypesAndTags):
    """Keeps one history in one schema."""

    def __init__(self, url: PostgresUrl, clock: Clock, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        """Remember the settings.

        Args:
            url: of the database and schema, which `migrate` has made.
            clock: tells when events are recorded; for the `SystemClock` the server's stands in, which all share.
            lock_wait_s: how long an append waits for other processes before it raises `StoreUnavailable`.
        """
        self._url = url
        self._clock = None if isinstance(clock, SystemClock) else clock
        self._lock_wait_s = lock_wait_s
        self._schema = url.quoted_schema
        self._channel = f"{url.schema}_events"
        self._reading = Connections(
            url, READ_CONNECTIONS_MAX, read_only=True, verify=self._verify_reader, planning=_PLANNED_ONCE
        )
        self._fetch = partial(read, self._reading)
        self._writing = Connections(url, APPEND_CONNECTIONS, read_only=False, verify=self._verify_writer)
        self._lanes = Lanes(url, self._verify_writer)
        self._append_statement = append_statement(self._schema)
        self._append_and_keep_statement = append_and_keep_statement(self._schema)
        self._types = TypeRegister(url, self._fetch, self._writing, lock_wait_s)
        self._models = ModelRegister(url, self._fetch, self._writing, lock_wait_s)
        self._retagging = Retagging(url, self._writing, lock_wait_s)
        self._known = KnownHistory(url.shown)
        self._held: set[tuple[str, int]] = set()
        self._opened_under = b""
        self._is_open = False
        self._under_way = UnderWay()
        self._watch = EventWatch(url, self._channel, self._known, self._look_at_head, self._is_ours)
        self._slices = EventSlices(self._schema, self._fetch, self._known, self._watch)
        self._ahead = ReadAhead(self._read, self._known)
        self._inline: InlineStep | None = None

    @property
    def durable(self) -> bool:
        """True: the history is in a database."""
        return True

    @property
    def history_id(self) -> bytes:
        """16 bytes, made with the schema."""
        self._check_open()
        return self._known.history_id

    @property
    def may_fork(self) -> bool:
        """True."""
        return True

    @property
    def forks(self) -> int:
        """How often another history was found here, by a new connection or an append."""
        return self._known.forks

    async def open(self) -> None:
        """Connect, and make sure that the schema is as this code needs it.

        Raises:
            NewerStore: a newer Diptych migrated it.
            ConfigurationError: it was not migrated; or this user may not write inline read models.
            StoreUnavailable: the server cannot be reached; with the reason.
        """
        if self._is_open:
            return
        self._known.forget()
        self._held.clear()
        self._reading.open()
        try:
            await self._look_at_head(opening=True)
            if self._inline is not None:
                await self._inline.check(self._fetch)
        except BaseException:
            await self._reading.close()
            raise
        self._writing.open()
        self._is_open = True

    async def close(self) -> None:
        """Finish what is under way and let go of the connections. May be called twice."""
        self._is_open = False
        await self._under_way.end()
        await self._watch.close()
        await self._ahead.close()
        await self._lanes.close()
        await self._writing.close()
        await self._reading.close()

    async def _verify_reader(self, link: Link) -> None:
        await EVENT_STORE_MIGRATIONS.check(link, self._url)
        await self._verify(self._reading, link)

    async def _verify_writer(self, link: Link) -> None:
        await self._verify(self._writing, link)
        if self._inline is not None:
            await teach(link)

    async def _verify(self, connections: Connections, link: Link) -> None:
        """What this process knows must still be there, or another history is at this address.

        Raises:
            StoreUnavailable: the server is a replica that may still come to it.
        """
        known = self._known.now
        if not known.place.history_id:
            return
        statement = (
            "SELECT h.history_id, h.position, h.event_id, e.event_id, pg_catalog.pg_is_in_recovery() "
            f"FROM {self._schema}.history AS h "
            f"LEFT JOIN {self._schema}.events AS e ON e.position = $1 WHERE h.one = 1"
        )
        (row,) = await connections.rows_on(link, statement, (known.place.position,))
        head, found, follows = Place(row[0], Position(row[1]), row[2]), row[3], row[4]
        if follows and head.history_id == known.place.history_id and head.position < known.place.position:
            raise StoreUnavailable(
                f"{self._url.shown}: nothing was done: this replica is at position {head.position}, "
                f"{known.place.position} is known here. Send it again, once it has caught up or to the primary"
            )
        self._compare(known, head, found)

    def _compare(self, known: Known, head: Place, found: bytes | None) -> HistoryDiverged | None:
        """How what was known differs from what is there, with which the store then goes on; see `forks`."""
        error = self._known.difference(known, head, found)
        if error is not None:
            self._held.clear()
            self._reading.cut_idle()
            self._writing.cut_idle()
            self._lanes.cut_idle()
            self._watch.wake()
        return error

    def _is_ours(self, backend: int) -> bool:
        """Whether it is at the other end of a connection that appends here."""
        return self._writing.has(backend) or self._lanes.has(backend)

    # ── append ───────────────────────────────────────────────────────────────

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        """Judge and append commits one after the other in one durable transaction. Cancelling it cancels no commit.

        Raises:
            OutcomeUnknown: the connection was lost while the server may have committed.
            HistoryDiverged: the history no longer holds what this process knew to be there. Said once: `forks` tells.
        """
        self._check_open()
        if not commits:
            return []
        return await self._under_way.see_through(self._append(commits, base, self._known.now))

    async def _append(self, commits: Sequence[Commit], base: Position | None, known: Known) -> list[AppendResult]:
        refusals = [refusal(commit) for commit in commits]
        batch = Batch(commits, refusals, base)
        try:
            async with self._writing.connection() as link:
                try:
                    return await self._send(link, batch, known, closely=False)
                except asyncpg.UniqueViolationError:
                    return await self._send(link, batch, known, closely=True)
                except (asyncpg.PostgresError, asyncpg.DataError) as error:
                    if not _is_of_data(error):
                        raise
                    judged = [msgspec.structs.replace(commit, conditions=()) for commit in commits]
                    refusals = await find_culprits(refusals, partial(self._try_out, link, judged, refusals, known))
                    return await self._send(link, Batch(commits, refusals, base), known, closely=True)
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error) or error) from error

    async def _send(self, link: Link, batch: Batch, known: Known, *, closely: bool) -> list[AppendResult]:
        try:
            if self._inline is None:
                statement, arguments = self._call(batch, known, closely=closely)
                (answer,) = await self._writing.rows_on(link, statement, arguments, timeout_s=APPEND_S_MAX)
                results, end = self._judged(batch, answer, known)
            else:
                results, end = await self._send_and_fold(self._inline, link, batch, known, closely=closely)
        except DRIVER_ERRORS as error:
            if state_of(error) == WRONG_ISOLATION:
                raise ConfigurationError(
                    f"{self._url.shown}: {error}. The pooler passes a default on; set it where it comes from: "
                    "ALTER DATABASE … SET default_transaction_isolation = 'read committed'"
                ) from error
            if is_lost(error) and not was_not_sent(error):
                self._watch.wake()  # where it was done all the same, nobody else tells of it
                raise OutcomeUnknown(batch.command_ids(), str(error) or type(error).__name__) from error
            raise
        self._learn(batch, results, end, known)
        return results

    async def _send_and_fold(
        self, inline: InlineStep, link: Link, batch: Batch, known: Known, *, closely: bool
    ) -> tuple[list[AppendResult], Place]:
        """Append and fold in one transaction, which holds the append section up to its end."""
        statement, arguments = self._call(batch, known, closely=closely)
        async with transaction(link, _BEGIN_TO_FOLD):
            (answer,) = await link.fetch(statement, *arguments, timeout=APPEND_S_MAX)
            results, end = self._judged(batch, answer, known)
            await self._fold(inline, link, batch, answer, results)
        return results, end

    @staticmethod
    async def _fold(
        inline: InlineStep, link: Link, batch: Batch, answer: asyncpg.Record, results: Sequence[AppendResult]
    ) -> None:
        if not answer["diverged"]:
            appending = batch.appending(answer, results)
            if appending.events:
                await inline.run(link, appending)

    def fold_inline(self, rows: ReadStore, fold: InlineFold) -> None:
        """Have every append move these read models on. See `FoldsInline`.

        Raises:
            ConfigurationError: the rows are in another database.
        """
        self._inline = InlineStep(self._url, rows, fold)

    def _judged(self, batch: Batch, answer: asyncpg.Record, known: Known) -> tuple[list[AppendResult], Place]:
        """The section's answers, and where the history then ends.

        Raises:
            HistoryDiverged: it is not the history that was known; nothing was judged.
            Retagged: its events are not tagged as they were when this was opened; nothing was judged.
        """
        if answer["diverged"]:
            head = Place(answer["history_id"], Position(answer["head"]), answer["head_event"])
            difference = self._compare(known, head, answer["known_found"])
            if difference is not None:
                raise difference
            if answer["all_appended"]:  # the section compares the same, and the tagging, and the models
                raise retagged()
            return batch.results_where_models_changed(answer)
        return batch.results(answer)

    def _learn(self, batch: Batch, results: Sequence[AppendResult], end: Place, known: Known) -> None:
        """Take note of what is committed."""
        self._known.learn(end, known.forks)
        if known.forks == self.forks:
            self._held |= batch.held_by(results)
        self._watch.wake()
        if self._inline is not None:
            self._inline.rows.look()

    def _call(self, batch: Batch, known: Known, *, closely: bool) -> tuple[str, list[object]]:
        """The statement that appends a batch, and its arguments."""
        arguments = batch.arguments(
            known.place,
            self._opened_under,
            self._held,
            now_us=None if self._clock is None else to_microseconds(self._clock.now()),
            closely=closely,
            lock_wait_s=self._lock_wait_s,
            channel=self._channel,
        )
        if batch.has_states:
            return self._append_and_keep_statement, arguments + batch.state_arguments()
        return self._append_statement, arguments

    async def _try_out(
        self, link: Link, commits: Sequence[Commit], refusals: Sequence[str | None], known: Known, part: Sequence[int]
    ) -> str | None:
        """What the database has against storing some of these; None where it has nothing."""
        batch = Batch([commits[number] for number in part], [refusals[number] for number in part], None)
        statement, arguments = self._call(batch, known, closely=True)
        failed: Exception | None = None
        await link.execute(BEGIN)
        try:
            await link.fetch(statement, *arguments, timeout=APPEND_S_MAX)
        except DRIVER_ERRORS as error:
            failed = error
        await roll_back(link, failed)
        if failed is not None and not _is_of_data(failed):
            raise failed
        return None if failed is None else f"the database cannot store it: {failed}"

    # ── own tables ───────────────────────────────────────────────────────────

    @property
    def lending(self) -> Lending:
        """Connections of asyncpg's, inside a transaction of READ COMMITTED."""
        return Lending("PostgreSQL", asyncpg.Connection, awaits=True)

    async def transact(self, work: Work, lane: str = "") -> AppendResult:
        """Do work in a transaction, and append what it comes to as the last statement. Cancelling it cancels nothing.

        The append section is entered by the last statement, so that nobody waits for the work.

        Raises:
            TransactionAborted: a deadlock, or the like.
            TransactionMisused: the work ended the transaction, or went on after a statement had failed.
            Overloaded: the work took longer than `TRANSACTION_S_MAX`.
            OutcomeUnknown: the connection was lost while the server may have committed.
        """
        self._check_open()
        return await self._under_way.see_through(self._transact(work, lane, self._known.now))

    async def _transact(self, work: Work, lane: str, known: Known) -> AppendResult:
        learned: list[tuple[Batch, list[AppendResult], Place]] = []

        async def append(link: Link, commit: Commit) -> AppendResult:
            batch = Batch([commit], [refusal(commit)], None)
            statement, arguments = self._call(batch, known, closely=True)
            try:
                (answer,) = await link.fetch(statement, *arguments, timeout=APPEND_S_MAX)
            except DRIVER_ERRORS as error:
                if _is_of_data(error):
                    return Refused(f"the database cannot store it: {error}")
                raise (failure(self._url, error) or error) from error
            results, end = self._judged(batch, answer, known)
            if self._inline is not None:
                await self._fold(self._inline, link, batch, answer, results)
            learned.append((batch, results, end))
            return results[0]

        try:
            result = await self._lanes.run(lane, work, append)
        except OutcomeUnknown:
            self._watch.wake()  # where it was done all the same, nobody else tells of it
            raise
        if isinstance(result, Appended):
            self._learn(*learned[0], known)
        return result

    # ── copies ───────────────────────────────────────────────────────────────

    async def restore(self, part: HistoryPart) -> None:
        """Write a part of another store's history as it is.

        Raises:
            HistoryDiverged: it does not go on where the store ends, or contradicts it or itself.
        """
        self._check_open()
        try:
            async with self._writing.connection() as link:
                await restore(link, self._url, part, lock_wait_s=self._lock_wait_s, channel=self._channel)
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error, denied=OWNERS) or error) from error
        self._known.forget()  # an empty store has taken the name of what it is a copy of
        self._opened_under = part.tagging
        self._known.learn(part.end, self._known.forks)
        self._watch.wake()

    # ── read ─────────────────────────────────────────────────────────────────

    async def read(
        self, query: EventQuery, after: Position, limit: int, *, until: Position | None = None
    ) -> ReadResult:
        """Matching events after a position, forward."""
        self._check_open()
        return await self._ahead.page(query, after, until, limit)

    async def _read(self, query: EventQuery, after: int, until: int | None, limit: int) -> ReadResult:
        events, head, more = await self._slices.through(query, after, until, limit, backward=False)
        through = head if until is None else min(until, head)
        if more:
            through = events[-1].position if events else after
        return ReadResult(events, Position(through), more)

    async def read_backward(self, query: EventQuery, limit: int, *, before: Position | None = None) -> ReadResult:
        """Matching events before a position, the last first."""
        self._check_open()
        until = None if before is None else before - 1
        events, head, more = await self._slices.through(query, START, until, limit, backward=True)
        return ReadResult(events, Position(head), more)

    # ── places ───────────────────────────────────────────────────────────────

    async def head(self) -> Place:
        """The place of the last event."""
        self._check_open()
        return await self._look_at_head()

    async def _look_at_head(self, *, opening: bool = False) -> Place:
        statement = f"SELECT history_id, position, event_id, tagging FROM {self._schema}.history WHERE one = 1"
        forks = self.forks
        ((history_id, position, event_id, tagging),) = await self._fetch(statement)
        if opening:
            self._opened_under = tagging
        place = Place(history_id, Position(position), event_id)
        self._known.learn(place, forks)
        return place

    async def place_at(self, position: Position) -> Place | None:
        """The place at a position; None past the head."""
        self._check_open()
        if position == 0:
            return Place(self._known.history_id, position, NOWHERE)
        forks = self.forks
        rows = await self._fetch(f"SELECT event_id FROM {self._schema}.events WHERE position = $1", position)
        if not rows:
            return None
        place = Place(self._known.history_id, position, rows[0][0])
        self._known.learn(place, forks)  # whoever was told so relies on it
        return place

    async def outcome(self, command_id: str) -> KeptOutcome | None:
        """What is kept under a command id."""
        self._check_open()
        if not is_storable(command_id):
            return None
        rows = await self._fetch(select_outcome(self._schema), command_id)
        return kept_outcome(self._known.history_id, *rows[0]) if rows else None

    async def outcomes(self, after: str, limit: int) -> list[KeptOutcome]:
        """Kept outcomes of the first command ids behind one."""
        self._check_open()
        rows = await self._fetch(select_page(self._schema), after, limit)
        return [kept_outcome(self._known.history_id, *row) for row in rows]

    async def model_state(self, model: str, key: str) -> KeptState | None:
        """What is kept of a decision model."""
        self._check_open()
        rows = await self._fetch(model_states.select_state(self._schema), model, key)
        return KeptState(*rows[0]) if rows else None

    async def model_states(self, after: tuple[str, str], limit: int) -> list[StoredState]:
        """What is kept of decision models, in pages."""
        self._check_open()
        rows = await self._fetch(model_states.select_page(self._schema), *after, limit)
        return [StoredState(model, key, fold, data, position=position) for model, key, fold, data, position in rows]

    async def keep_states(self, states: Sequence[StoredState], at: Place) -> None:
        """Keep states that were folded from the history.

        Raises:
            HistoryDiverged: the schema has another event where they were folded up to, or none.
            Retagged: events were tagged anew since this was opened, or are being.
        """
        self._check_open()
        await self._under_way.see_through(
            changed(
                self._writing, lambda link: model_states.keep_states(link, self._schema, states, at, self._opened_under)
            )
        )

    # ── pruning ──────────────────────────────────────────────────────────────

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        """Drop the data of a type's events.

        Raises:
            NotGranted: this role changes nothing of the history.
        """
        self._check_open()
        try:
            async with self._writing.connection() as link:
                return await model_states.prune(
                    link, self._schema, type, after, until, limit, tagging=self._opened_under
                )
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error, denied=OWNERS) or error) from error

    async def horizons(self) -> Mapping[str, Position]:
        """Up to where events have no data any more, by stored type."""
        self._check_open()
        rows = await self._fetch(model_states.select_horizons(self._schema))
        return {type: Position(position) for type, position in rows}

    # ── waiting ──────────────────────────────────────────────────────────────

    async def wait_for_events(self, after: Position, timeout_s: float) -> bool:
        """Wait until the head is past a position; not for longer than until the history turns out to be another.

        Commits of other processes are noticed by notification; where one is lost, within `POLL_S`, and while none can
        come, within `POLL_DEAF_S`.
        """
        self._check_open()
        return await self._watch.wait(after, timeout_s, self._check_open)

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreClosed(f"the event store {self._url.shown} is not open")


_PLANNED_ONCE = {**INDEXED, "plan_cache_mode": "force_generic_plan"}
"""A read has one good plan, whatever its parameters; making it for each call takes longer than the read."""


def _is_of_data(error: BaseException) -> bool:
    """Whether what was to be stored is at fault, not the server: values, limits."""
    return isinstance(error, asyncpg.DataError) or state_of(error)[:2] in {"22", "23", "54"}
