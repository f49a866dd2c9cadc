"""Batches on their way into the append section of PostgreSQL, and its answers on their way back.

What the batch alone tells is worked out here, before the section is entered: which commits have one command id, which
items match which of its events. What depends on the history is judged there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from diptych.adapters.postgres.append_function import (
    APPENDED,
    BROKEN,
    CONFLICT,
    KEPT,
    PARAMETERS,
    REFUSED,
    REPEATED,
)
from diptych.adapters.postgres.kept_outcomes import kept_outcome
from diptych.event_store.event_query import QueryItem
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
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.refusal import is_storable
from diptych.event_store.timestamp import moment
from diptych.read_side.inline_rows import Appending

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Batch", "append_and_keep_statement", "append_statement"]

ANY_AFTER = (1 << 63) - 1
"""Where no condition is, none is stale."""

_STATE_PARAMETERS: Mapping[str, str] = {
    "state_commits": "integer[]",
    "state_models": "text[]",
    "state_keys": "text[]",
    "state_folds": "text[]",
    "state_datas": "bytea[]",
}
"""What is kept of decision models, and of which commits, counted from 1."""

_AS_TEXT = frozenset(
    name
    for name, kind in (*PARAMETERS.items(), *_STATE_PARAMETERS.items())
    if kind in {"integer[]", "bigint[]", "boolean[]"}
)
"""Arrays that go as text: the driver looks at every element of an array several times, at a text not at all."""

_encode_tags = msgspec.json.Encoder().encode
_EventRow: TypeAlias = tuple[int, bytes, int, int, bytes, bytes, bytes]
_Hits: TypeAlias = dict[int, int]
"""By item: which event of a commit is the last that it matches, from 1."""


def append_statement(schema: str) -> str:
    """The call of the section, its parameters in the order of `Batch.arguments`.

    Their types are said, so that no function of the same name but another signature is ever taken for it.
    """
    return f"SELECT * FROM {schema}.append({_placeholders(PARAMETERS)})"


def append_and_keep_statement(schema: str) -> str:
    """The same call, and in one statement with it what the commits that it appends leave of decision models.

    Behind the parameters of the call come those of `Batch.state_arguments`.
    """
    states = _placeholders(_STATE_PARAMETERS, len(PARAMETERS) + 1)
    counts = _placeholders({"event_counts": PARAMETERS["event_counts"]}, list(PARAMETERS).index("event_counts") + 1)
    return f"""
        WITH answer AS MATERIALIZED ({append_statement(schema)}),
        appended AS (
            SELECT u.number, u.code, a.head + sum(u.events) FILTER (WHERE u.code = {APPENDED}) OVER (ORDER BY u.number)
                AS position
            FROM answer AS a CROSS JOIN LATERAL (
                SELECT c.number, c.events, coalesce(a.codes[c.number], {APPENDED}) AS code
                FROM unnest({counts}) WITH ORDINALITY AS c (events, number)
            ) AS u
            WHERE NOT a.diverged
        ),
        kept AS (
            INSERT INTO {schema}.model_states (model, key, fold, data, position)
            SELECT DISTINCT ON (s.model, s.key) s.model, s.key, s.fold, s.data, c.position
            FROM unnest({states}) AS s (number, model, key, fold, data)
            JOIN appended AS c ON c.number = s.number AND c.code = {APPENDED}
            ORDER BY s.model, s.key, s.number DESC
            ON CONFLICT (model, key) DO UPDATE
            SET fold = excluded.fold, data = excluded.data, position = excluded.position
        )
        SELECT * FROM answer
    """


def _placeholders(parameters: Mapping[str, str], first: int = 1) -> str:
    return ", ".join(
        f"${number}::{'text::' if name in _AS_TEXT else ''}{kind}"
        for number, (name, kind) in enumerate(parameters.items(), first)
    )


class Batch:
    """One batch, in the form in which the section takes it."""

    def __init__(self, commits: Sequence[Commit], refusals: Sequence[str | None], base: int | None) -> None:
        """Work out what the batch alone tells.

        Args:
            commits: in order, at least one.
            refusals: why a commit cannot be stored at all, one for each.
            base: the head that the caller knew, if it says so.
        """
        self._commits = commits
        self._refusals = refusals
        self._items = _Items(commits)
        self._new_versions: set[tuple[str, int]] = set()
        self._columns: dict[str, Any] = {"base": base, "refused": [refusal is not None for refusal in refusals]}
        self._add_commits()
        self._add_conditions()
        self._add_hits(base)
        self._add_events()

    def arguments(
        self,
        known: Place,
        tagging: bytes,
        held: set[tuple[str, int]],
        *,
        now_us: int | None,
        closely: bool,
        lock_wait_s: float,
        channel: str,
    ) -> list[Any]:
        """The arguments of `append_statement`.

        Args:
            known: the last place in the history that this process knows to be there.
            tagging: the id of the tagging that it goes by.
            held: types and versions that this process knows events to be stored of.
            now_us: microseconds since 1970; None takes the server's time.
            closely: whether to look every event id up beforehand.
            lock_wait_s: how long to wait for other processes.
            channel: on which to tell that there are events.
        """
        told = {
            "known_position": known.position,
            "known_event": known.event_id,
            "known_history": known.history_id + tagging + self._commits[0].models,
            "now_us": now_us,
            "closely": closely,
            "lock_wait_ms": max(1, round(lock_wait_s * 1_000)),
            "new_versions": not self._new_versions <= held,
            "channel": channel,
        }
        columns = self._columns
        return [
            told[name] if name in told else _as_text(columns[name]) if name in _AS_TEXT else columns[name]
            for name in PARAMETERS
        ]

    def results_where_models_changed(self, answer: asyncpg.Record) -> tuple[list[AppendResult], Place]:
        """One result for each commit, none of which was judged, and the place of the last event."""
        place = Place(answer["history_id"], Position(answer["head"]), answer["head_event"])
        return [ModelsChanged()] * len(self._commits), place

    @property
    def has_states(self) -> bool:
        """Whether any of its commits leaves something of a decision model."""
        return any(commit.states for commit in self._commits)

    def state_arguments(self) -> list[Any]:
        """What `append_and_keep_statement` takes behind the arguments of `append_statement`."""
        states = [
            (number, state.model, state.key, state.fold, state.data)
            for number, (commit, refusal) in enumerate(zip(self._commits, self._refusals, strict=True), 1)
            if commit.events and refusal is None
            for state in commit.states
        ]
        numbers, *columns = zip(*states, strict=True) if states else [()] * len(_STATE_PARAMETERS)
        return [_as_text(numbers), *columns]

    # ── going ────────────────────────────────────────────────────────────────

    def _add_commits(self) -> None:
        commits = self._commits
        ids = [
            commit.command_id if commit.command_id is not None and is_storable(commit.command_id) else None
            for commit in commits
        ]
        first: dict[str, int] = {}
        ends: list[int] = []
        for commit, refusal in zip(commits, self._refusals, strict=True):
            ends.append((ends[-1] if ends else 0) + (len(commit.events) if refusal is None else 0))
        self._columns |= {
            "event_ends": ends,
            "keeps_any": any(commit.keep and id_ is not None for commit, id_ in zip(commits, ids, strict=True)),
            "twins": [0 if id_ is None else first.setdefault(id_, number) for number, id_ in enumerate(ids, 1)],
            "command_ids": ids if first else [],
            "keeps": [commit.keep for commit in commits],
            "event_counts": [len(commit.events) for commit in commits],
            "payload_hashes": [commit.payload_hash for commit in commits],
            "rejections": [
                None if refusal else commit.rejection for commit, refusal in zip(commits, self._refusals, strict=True)
            ],
        }

    def _add_conditions(self) -> None:
        afters: list[int] = []
        ends: list[int] = []
        for commit in self._commits:
            afters += [condition.after for condition in commit.conditions]
            ends.append(len(afters))
        self._columns |= {
            "condition_items": self._items.of_conditions,
            "condition_afters": afters,
            "condition_ends": ends,
            "least_after": min(afters, default=ANY_AFTER),
            "greatest_after": max(afters, default=0),
            **self._items.columns(),
        }

    def _add_hits(self, base: int | None) -> None:
        """Follow the batch as if nothing stood against any commit; what its own events say against one shows."""
        items: list[int] = []
        offsets: list[int] = []
        ends: list[int] = []
        last_of_items: dict[int, int] = {}
        twins = [twin for twin in self._columns["twins"] if twin]
        smooth = len(set(twins)) == len(twins) and not any(self._columns["refused"])
        alone = len(self._commits) == 1
        pending = ANY_AFTER >> 1 if base is None else base
        of_conditions = iter(self._items.of_conditions)
        for commit in self._commits:
            for condition in commit.conditions:
                after, item = condition.after, next(of_conditions)
                smooth = smooth and after <= pending and last_of_items.get(item, 0) <= after
            if not alone:
                hits = self._items.hits(commit)
                items += hits
                offsets += hits.values()
                last_of_items.update((item, pending + offset) for item, offset in hits.items())
            pending += len(commit.events)
            ends.append(len(items))
        self._columns |= {"hit_items": items, "hit_offsets": offsets, "hit_ends": ends, "smooth": smooth}

    def _add_events(self) -> None:
        types, tags = _Numbers(), _Numbers()
        rows: list[_EventRow] = []
        tag_rows: list[tuple[int, int]] = []
        for number, (commit, refusal) in enumerate(zip(self._commits, self._refusals, strict=True), 1):
            if refusal is not None:
                continue
            for event in commit.events:
                self._new_versions.add((event.type, event.version))
                rows.append(
                    (
                        number,
                        event.event_id,
                        types[event.type],
                        event.version,
                        event.data,
                        _encode_tags(event.tags),
                        event.metadata,
                    )
                )
                tag_rows += [(len(rows), tags[tag]) for tag in event.tags]
        clashes = _clashes(rows) if len(self._commits) > 1 else []
        self._columns["smooth"] = self._columns["smooth"] and not clashes
        self._fill(("clash_commits", "clash_others"), clashes)
        self._fill(("tag_events", "tag_names"), tag_rows)
        self._fill(
            ("event_commits", "event_ids", "event_types", "versions", "datas", "tag_lists", "metadatas"),
            rows,
        )
        self._columns |= {"types": list(types), "tags": list(tags)}

    def _fill(self, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        columns: Iterable[Sequence[object]] = zip(*rows, strict=True) if rows else [()] * len(names)
        self._columns.update(zip(names, columns, strict=True))

    def command_ids(self) -> str:
        """The command ids, for a message."""
        ids = [commit.command_id for commit in self._commits if commit.command_id is not None]
        return ", ".join(ids) or "(none given)"

    # ── coming back ──────────────────────────────────────────────────────────

    def held_by(self, results: Sequence[AppendResult]) -> set[tuple[str, int]]:
        """Types and versions that events are stored of, now that these are the results."""
        return {
            (event.type, event.version)
            for commit, result in zip(self._commits, results, strict=True)
            if isinstance(result, Appended)
            for event in commit.events
        }

    def results(self, answer: asyncpg.Record) -> tuple[list[AppendResult], Place]:
        """One result for each commit, and the place of the last event after them."""
        history_id, recorded_at_us = answer["history_id"], answer["recorded_at"]
        place = Place(history_id, Position(answer["head"]), answer["head_event"])
        results: list[AppendResult] = []
        kept = _kept(answer)
        objections = self._objections(answer)
        for number, commit in enumerate(self._commits, 1):
            code, detail, item = next(objections)
            if code == APPENDED:
                if events := commit.events:
                    place = Place(history_id, Position(place.position + len(events)), events[-1].event_id)
                results.append(Appended(place, recorded_at_us))
            elif code == CONFLICT:
                results.append(Conflicting(self._items.listed[item - 1], Position(detail)))
            elif code == BROKEN:
                results.append(ChainBroken())
            elif code == REFUSED:
                results.append(Refused(self._refusals[number - 1] or ""))
            elif code == KEPT:
                assert commit.command_id is not None
                results.append(Duplicate(kept_outcome(history_id, commit.command_id, *kept[number])))
            elif code == REPEATED:
                results.append(Duplicate(self._outcome_in_batch(detail, results)))
            else:
                results.append(Refused("an event with the id of one of its events is stored already"))
        return results, place

    def appending(self, answer: asyncpg.Record, results: Sequence[AppendResult]) -> Appending:
        """What was appended, as it will be read, where these are the results."""
        before = Place(answer["history_id"], Position(answer["head"]), answer["head_event"])
        recorded_at, position = moment(answer["recorded_at"]), before.position
        events: list[RecordedEvent] = []
        for commit, result in zip(self._commits, results, strict=True):
            for event in commit.events if isinstance(result, Appended) else ():
                position = Position(position + 1)
                told = event.event_id, event.type, event.version, event.data, event.tags, event.metadata
                events.append(RecordedEvent(position, *told, recorded_at))
        return Appending(before, events)

    def _objections(self, answer: asyncpg.Record) -> Iterator[tuple[int, int, int]]:
        """Code, detail and item of each commit."""
        if answer["all_appended"]:
            return iter([(APPENDED, 0, 0)] * len(self._commits))
        return zip(answer["codes"], answer["details"], answer["items"], strict=True)

    def _outcome_in_batch(self, number: int, results: Sequence[AppendResult]) -> KeptOutcome:
        commit, result = self._commits[number - 1], results[number - 1]
        assert isinstance(result, Appended)
        assert commit.command_id is not None
        return KeptOutcome(commit.command_id, commit.payload_hash, result.place, len(commit.events), commit.rejection)


class _Items:
    """The distinct items of a batch's conditions, numbered from 1; 0 stands for those that can never match."""

    def __init__(self, commits: Iterable[Commit]) -> None:
        self.listed: list[QueryItem] = []
        self.of_conditions: list[int] = []
        self._by_tag: defaultdict[str, list[int]] = defaultdict(list)
        self._by_type: defaultdict[str, list[int]] = defaultdict(list)
        self._of_all: list[int] = []
        numbers: dict[QueryItem, int] = {}
        for commit in commits:
            for condition in commit.conditions:
                number = numbers.get(condition.item)
                if number is None:
                    number = numbers[condition.item] = self._add(condition.item)
                self.of_conditions.append(number)

    def _add(self, item: QueryItem) -> int:
        """The item's number."""
        if not all(map(is_storable, item.tags)) or (item.types and not any(map(is_storable, item.types))):
            return 0
        self.listed.append(item)
        number = len(self.listed)
        if item.tags:
            self._by_tag[next(iter(item.tags))].append(number)
        elif item.types:
            for type in item.types:
                self._by_type[type].append(number)
        else:
            self._of_all.append(number)
        return number

    def hits(self, commit: Commit) -> _Hits:
        """Which items match an event of the commit."""
        hits: _Hits = {}
        for offset, event in enumerate(commit.events, 1):
            for number in self._of_all:
                hits[number] = offset
            for number in self._by_type.get(event.type, ()):
                hits[number] = offset
            for tag in event.tags:
                for number in self._by_tag.get(tag, ()):
                    if self.listed[number - 1].matches(event.type, event.tags):
                        hits[number] = offset
        return hits

    def columns(self) -> dict[str, Any]:
        tags: list[str] = []
        types: list[str] = []
        tag_bounds, type_bounds = [0], [0]
        for item in self.listed:
            tags += item.tags
            types += filter(is_storable, item.types)
            tag_bounds.append(len(tags))
            type_bounds.append(len(types))
        return {
            "item_tags": tags,
            "item_tag_bounds": tag_bounds,
            "item_types": types,
            "item_type_bounds": type_bounds,
        }


def _as_text(values: Sequence[int]) -> str:
    """Numbers, or truth values, as PostgreSQL reads an array of them."""
    return f"{{{str(list(values))[1:-1]}}}"


class _Numbers(dict[str, int]):
    """Numbers names as they come, from 1."""

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self) + 1
        return number


def _clashes(rows: Sequence[_EventRow]) -> list[tuple[int, int]]:
    """Pairs of commits, the later first, that have an event of the same id."""
    if len({row[1] for row in rows}) == len(rows):
        return []
    seen: defaultdict[bytes, list[int]] = defaultdict(list)
    clashes: list[tuple[int, int]] = []
    for number, event_id, *_ in rows:
        clashes += [(number, other) for other in seen[event_id]]
        seen[event_id].append(number)
    return clashes


_KEPT_COLUMNS = ("kept_hashes", "kept_positions", "kept_counts", "kept_rejections", "kept_events")


def _kept(answer: asyncpg.Record) -> dict[int, tuple[bytes, int, int, bytes | None, bytes | None]]:
    """What the section met of kept outcomes, by commit."""
    numbers: list[int] | None = answer["kept_commits"]
    if numbers is None:
        return {}
    return dict(zip(numbers, zip(*(answer[name] for name in _KEPT_COLUMNS), strict=True), strict=True))
