"""The append section over SQLite: judges the commits of one batch and writes what holds, inside one transaction.

Judging comes first and needs SQL only where memory cannot say at once that nothing matches; then everything that holds
is written, one statement for each table. Two surprises end the transaction and have it begun again with a closer look
at every commit: a command id or an event id that turns out to be in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from diptych.adapters.sqlite.kept_outcomes import kept_outcome
from diptych.adapters.sqlite.matching_events import MatchingEvents
from diptych.adapters.sqlite.name_ids import NameIds
from diptych.adapters.sqlite.recent_positions import RecentPositions
from diptych.errors import HistoryDiverged
from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_store import (
    Appended,
    AppendResult,
    ChainBroken,
    Commit,
    Conflicting,
    Duplicate,
    KeptOutcome,
    ModelsChanged,
    Refused,
)
from diptych.event_store.pending_positions import PendingPositions
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.event_store.tagging import check_tagging
from diptych.event_store.timestamp import moment
from diptych.read_side.inline_rows import Appending

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "HOLD_VERSION",
    "INSERT_EVENT",
    "INSERT_EVENT_TAG",
    "INSERT_OUTCOME",
    "AppendSection",
    "add_type",
]

INSERT_EVENT = (
    "INSERT INTO events (position, type, version, recorded_at, event_id, data, tags, metadata) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
KEEP_STATE = """
    INSERT INTO model_states (model, key, fold, data, position) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (model, key) DO UPDATE SET fold = excluded.fold, data = excluded.data, position = excluded.position
"""
INSERT_EVENT_TAG = "INSERT INTO event_tags (tag, position, type) VALUES (?, ?, ?)"
INSERT_OUTCOME = (
    "INSERT INTO outcomes (command_id, payload_hash, position, event_count, rejection) VALUES (?, ?, ?, ?, ?)"
)
HOLD_VERSION = """
    INSERT INTO event_versions (type, version, held) VALUES (?, ?, 1)
    ON CONFLICT (type, version) DO UPDATE SET held = 1
"""
_StateRow: TypeAlias = tuple[str, str, str, bytes, Position]
_OutcomeRow: TypeAlias = tuple[str, bytes, Position, int, bytes | None]
_encode_tags = msgspec.json.Encoder().encode


class AppendSection:
    """What the writer knows from one batch to the next; none of it is trusted before the head was read again."""

    def __init__(
        self, history_id: bytes, tagging: bytes, inline: Callable[[sqlite3.Connection, Appending], None] | None = None
    ) -> None:
        """Know nothing yet of what is in the file, but how its events are tagged, and what else an append does."""
        self._inline = inline
        self._history_id = history_id
        self._tagging = tagging
        self._names: NameIds | None = None
        self._held: set[tuple[str, int]] = set()
        self._known = Place(history_id, Position(0), NOWHERE)
        self._recent = RecentPositions(0)
        self._written: _Batch | None = None

    def run(
        self,
        connection: sqlite3.Connection,
        commits: Sequence[Commit],
        refusals: Sequence[str | None],
        base: int | None,
        now_us: int,
        *,
        closely: bool,
    ) -> list[AppendResult]:
        """Judge and write one batch.

        Args:
            connection: inside a write transaction.
            commits: in order.
            refusals: why a commit cannot be stored at all, one for each.
            base: the head that the caller knew, if it says so.
            now_us: the clock, in microseconds since 1970.
            closely: look every command id and event id up beforehand.

        Raises:
            sqlite3.IntegrityError: one of them is in the store already: run again, closely.
            HistoryDiverged: the file's content is no longer what was written to it.
            Retagged: its events were tagged anew, or are being.
        """
        if self._names is None:
            self._names = NameIds(connection)
        head, recorded_at_us, models = self._look_at_head(connection)
        if commits and commits[0].models and commits[0].models != models:
            return [ModelsChanged()] * len(commits)
        batch = _Batch(connection, self._names, self._recent, head, max(now_us, recorded_at_us), self._held)
        results = batch.judge(commits, refusals, base, closely=closely)
        batch.write()
        if self._inline is not None and batch.head != head:
            self._inline(connection, batch.appending())
        self._written = batch
        return results

    def _look_at_head(self, connection: sqlite3.Connection) -> tuple[Place, int, bytes]:
        row = connection.execute(
            "SELECT h.tagging, h.models, e.position, e.event_id, e.recorded_at FROM history AS h "
            "LEFT JOIN events AS e ON e.position = (SELECT max(position) FROM events)"
        ).fetchone()
        check_tagging(row[0], self._tagging)
        position, event_id, recorded_at_us = row[2:] if row[2] else (0, NOWHERE, 0)
        head = Place(self._history_id, Position(position), event_id)
        written, self._written = self._written, None
        if written is not None and written.head == head:
            self._take_in(written)
        elif head != self._known:
            self._catch_up(connection, head)
        self._known = head
        return head, recorded_at_us, row[1]

    def _take_in(self, written: _Batch) -> None:
        """The last batch is in the file: what it learned is true."""
        assert self._names is not None
        self._names.remember_tags(written.new_tags)
        self._held |= written.new_versions
        self._recent.take_in(written.pending)

    def _catch_up(self, connection: sqlite3.Connection, head: Place) -> None:
        """Others have written since: what was known must still be there, or the file was replaced or became a copy."""
        (history_id,) = connection.execute("SELECT history_id FROM history").fetchone()
        event_id: bytes | None = NOWHERE
        if position := self._known.position:
            row = connection.execute("SELECT event_id FROM events WHERE position = ?", (position,)).fetchone()
            event_id = row[0] if row else None
        try:
            self._known.check(history_id, event_id, "what this process last wrote or read")
        except HistoryDiverged:
            self._names = None
            self._held.clear()
            raise
        self._recent = RecentPositions(head.position)


class _Batch:
    """One batch while it is judged and written."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        names: NameIds,
        recent: RecentPositions,
        head: Place,
        recorded_at_us: int,
        held: set[tuple[str, int]],
    ) -> None:
        self._connection = connection
        self._names = names
        self._matching = MatchingEvents(connection, names)
        self._recent = recent
        self._start = head
        self._recorded_at_us = recorded_at_us
        self._held = held
        self._events: list[NewEvent] = []
        self._event_ids: set[bytes] = set()
        self._outcomes: dict[str, _OutcomeRow] = {}
        self._states: dict[tuple[str, str], _StateRow] = {}
        self.head = head
        self.pending = RecentPositions(head.position)
        self.new_tags: dict[str, int] = {}
        self.new_versions: set[tuple[str, int]] = set()

    # ── judging ──────────────────────────────────────────────────────────────

    def judge(
        self, commits: Sequence[Commit], refusals: Sequence[str | None], base: int | None, *, closely: bool
    ) -> list[AppendResult]:
        positions = PendingPositions(self._start.position, base)
        results: list[AppendResult] = []
        for commit, refusal in zip(commits, refusals, strict=True):
            result = self._objection(commit, refusal, positions, closely=closely)
            if result is None:
                result = self._accept(commit)
                positions.note(len(commit.events), appended=True)
            else:
                positions.note(len(commit.events), appended=False)
            results.append(result)
        return results

    def _objection(
        self, commit: Commit, refusal: str | None, positions: PendingPositions, *, closely: bool
    ) -> AppendResult | None:
        """What stands against the commit; None where nothing does."""
        command_id = commit.command_id
        if command_id is not None and command_id in self._outcomes:
            return Duplicate(self._outcome_of_batch(command_id))
        against: AppendResult | None = Refused(refusal) if refusal is not None else None
        if against is None and commit.conditions:
            against = self._condition_objection(commit.conditions, positions)
        if against is None and closely:
            against = self._event_id_objection(commit)
        # A duplicate wins over all else. Where nothing is against the commit and its outcome is to be kept, keeping it
        # will find the duplicate out.
        if command_id is not None and (against is not None or closely or not commit.keep):
            kept = kept_outcome(self._connection, self._start.history_id, command_id)
            return against if kept is None else Duplicate(kept)
        return against

    def _outcome_of_batch(self, command_id: str) -> KeptOutcome:
        _, payload_hash, position, event_count, rejection = self._outcomes[command_id]
        start = self._start
        place = start
        if position > start.position:
            place = Place(start.history_id, position, self._events[position - start.position - 1].event_id)
        return KeptOutcome(command_id, payload_hash, place, event_count, rejection)

    def _event_id_objection(self, commit: Commit) -> Refused | None:
        for event in commit.events:
            statement = "SELECT 1 FROM events WHERE event_id = ?"
            if (
                event.event_id in self._event_ids
                or self._connection.execute(statement, (event.event_id,)).fetchone() is not None
            ):
                return Refused(f"event {event.type!r}: an event with the id {event.event_id.hex()} is stored already")
        return None

    def _condition_objection(
        self, conditions: Sequence[AppendCondition], positions: PendingPositions
    ) -> ChainBroken | Conflicting | None:
        for condition in conditions:
            if not positions.came_about(condition.after):
                return ChainBroken()
        for condition in conditions:
            item, after = condition.item, condition.after
            if not self._recent.has_none(item, after) and (found := self._matching.first_after(item, after)):
                return Conflicting(item, Position(found))
            if not self.pending.has_none(item, max(after, self._start.position)) and (
                found := self._pending_after(condition)
            ):
                return Conflicting(item, Position(found))
        return None

    def _pending_after(self, condition: AppendCondition) -> int | None:
        start = self._start.position
        for index in range(max(condition.after - start, 0), len(self._events)):
            event = self._events[index]
            if condition.item.matches(event.type, event.tags):
                return start + index + 1
        return None

    def _accept(self, commit: Commit) -> Appended:
        events = commit.events
        if events:
            for event in events:
                self.pending.note(event)
                self._event_ids.add(event.event_id)
            self._events += events
            self.head = Place(self._start.history_id, Position(self.pending.head), events[-1].event_id)
            for state in commit.states:
                key = state.model, state.key
                self._states[key] = (*key, state.fold, state.data, self.head.position)
        if commit.keep and commit.command_id is not None:
            self._outcomes[commit.command_id] = (
                commit.command_id,
                commit.payload_hash,
                self.head.position,
                len(events),
                commit.rejection,
            )
        return Appended(self.head, self._recorded_at_us)

    # ── writing ──────────────────────────────────────────────────────────────

    def appending(self) -> Appending:
        """What is appended, as it will be read."""
        recorded_at = moment(self._recorded_at_us)
        return Appending(
            self._start,
            [
                RecordedEvent(
                    Position(position),
                    event.event_id,
                    event.type,
                    event.version,
                    event.data,
                    event.tags,
                    event.metadata,
                    recorded_at,
                )
                for position, event in enumerate(self._events, self._start.position + 1)
            ],
        )

    def write(self) -> None:
        if self._events:
            self._write_events()
        if self._outcomes:
            self._connection.executemany(INSERT_OUTCOME, self._outcomes.values())
        if self._states:
            self._connection.executemany(KEEP_STATE, self._states.values())

    def _write_events(self) -> None:
        types = self._type_ids()
        tag_id = self._tag_id
        recorded_at_us = self._recorded_at_us
        rows: list[tuple[object, ...]] = []
        tag_rows: list[tuple[int, int, int]] = []
        for position, event in enumerate(self._events, self._start.position + 1):
            type, tags = types[event.type], event.tags
            tag_rows += [(tag_id(tag), position, type) for tag in tags]
            rows.append(
                (
                    position,
                    type,
                    event.version,
                    recorded_at_us,
                    event.event_id,
                    event.data,
                    _encode_tags(tags),
                    event.metadata,
                )
            )
        if self.new_tags:
            self._connection.executemany("INSERT INTO tags (tag, id) VALUES (?, ?)", self.new_tags.items())
        self._connection.executemany(INSERT_EVENT, rows)
        self._connection.executemany(INSERT_EVENT_TAG, tag_rows)

    def _type_ids(self) -> dict[str, int]:
        """Ids of the types in the batch, made where they are missing; new versions are marked as held."""
        versions = {(event.type, event.version) for event in self._events}
        # Each name once: looked up again, one that was made here would be remembered, and may yet be taken back.
        types = {
            name: self._names.type(name) or add_type(self._connection, name) for name in {name for name, _ in versions}
        }
        self.new_versions = versions - self._held
        if self.new_versions:
            self._connection.executemany(HOLD_VERSION, [(types[name], version) for name, version in self.new_versions])
        return types

    def _tag_id(self, tag: str) -> int:
        found = self._names.tag(tag) or self.new_tags.get(tag)
        if found is None:
            found = self.new_tags[tag] = self._first_new_tag_id + len(self.new_tags)
        return found

    @cached_property
    def _first_new_tag_id(self) -> int:
        return int(self._connection.execute("SELECT coalesce(max(id), 0) + 1 FROM tags").fetchone()[0])


def add_type(connection: sqlite3.Connection, name: str) -> int:
    """Give an event type that the file does not know an id."""
    return int(connection.execute("INSERT INTO event_types (name) VALUES (?) RETURNING id", (name,)).fetchone()[0])
