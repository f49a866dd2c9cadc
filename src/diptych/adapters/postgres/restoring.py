"""Parts of another store's history, written into one schema as they are.

No function in the database as for appends: nothing is decided, and a copy has no one to wait for. One transaction holds
the row of `history` from its first statement on, and the rows come by COPY.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import asyncpg
import msgspec

from diptych.adapters.postgres.connection import INDEXED, Link, PostgresUrl, transaction
from diptych.adapters.postgres.kept_outcomes import kept_outcome, select_outcomes
from diptych.adapters.postgres.known_types import keep_statement, kept_first, register_statement
from diptych.adapters.postgres.retagging import decode_tagging
from diptych.event_store.event_store import HistoryPart, KeptOutcome, StoredType
from diptych.event_store.position import Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.restoring import check_outcomes, check_part, check_places, refused
from diptych.event_store.timestamp import to_microseconds

__all__ = ["restore"]

RESTORE_S_MAX = 120.0
"""How long one part may take in all."""

_EVENT_COLUMNS = ("position", "recorded_at", "type", "version", "event_id", "data", "tags", "metadata")
_OUTCOME_COLUMNS = ("command_id", "payload_hash", "position", "event_count", "rejection")
_encode_tags = msgspec.json.Encoder().encode
_Row: TypeAlias = tuple[object, ...]


async def restore(link: Link, url: PostgresUrl, part: HistoryPart, *, lock_wait_s: float, channel: str) -> None:
    """Write a part in a transaction of its own. Past the limit, or cancelled, the connection is to be cut.

    Raises:
        HistoryDiverged: it does not go on where the store ends, or contradicts it or itself.
        TimeoutError: it took longer than `RESTORE_S_MAX`.
    """
    limit = asyncio.timeout(RESTORE_S_MAX)
    try:
        async with limit:
            await _restore(link, url, part, lock_wait_s, channel)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(f"a part was not written within RESTORE_S_MAX={RESTORE_S_MAX:g} s") from error


async def _restore(link: Link, url: PostgresUrl, part: HistoryPart, lock_wait_s: float, channel: str) -> None:
    try:
        async with transaction(link):
            await _Restoring(link, url, part).run(lock_wait_s, channel)
    except asyncpg.UniqueViolationError as error:
        raise refused(f"an event with the id of one of its events is stored already ({error})") from error


class _Restoring:
    """One part while it is written."""

    def __init__(self, link: Link, url: PostgresUrl, part: HistoryPart) -> None:
        self._link = link
        self._name = url.schema
        self._schema = url.quoted_schema
        self._part = part

    async def run(self, lock_wait_s: float, channel: str) -> None:
        schema, part = self._schema, self._part
        settings = {**INDEXED, "lock_timeout": str(max(1, round(lock_wait_s * 1_000)))}
        await self._link.execute("; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items()))
        await self._link.execute(
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )
        tag_count = await self._check()
        missing = check_outcomes(part, await self._kept())
        await self._register(part.types, lock_wait_s)
        if part.events:
            tag_count = await self._write_events(part.events, tag_count)
        await self._copy("outcomes", _OUTCOME_COLUMNS, map(_outcome_row, missing))
        await self._link.execute(
            f"UPDATE {schema}.history SET history_id = $1, position = $2, event_id = $3, "
            "recorded_at = greatest(recorded_at, $4), tag_count = $5, tagging = $6 WHERE one = 1",
            part.after.history_id,
            part.end.position,
            part.end.event_id,
            part.recorded_at_us,
            tag_count,
            part.tagging,
        )
        await self._link.execute("SELECT pg_notify($1, '')", channel)

    async def _check(self) -> int:
        """Lock the row of the history, and make sure that the part goes on there. How many tags there are."""
        schema, part = self._schema, self._part
        head = await self._link.fetchrow(
            "SELECT history_id, position, event_id, recorded_at, tag_count, tagging, unfinished "
            f"FROM {schema}.history WHERE one = 1 FOR NO KEY UPDATE"
        )
        assert head is not None, "the schema has no row of history: the store is damaged"
        place = Place(head["history_id"], Position(head["position"]), head["event_id"])
        has_outcomes = f"SELECT EXISTS (SELECT 1 FROM {schema}.outcomes)"
        empty = place.position == 0 and not await self._link.fetchval(has_outcomes)
        tagging = decode_tagging(head["tagging"], head["unfinished"])
        check_part(part, place, head["recorded_at"], tagging, empty=empty)
        if earlier := part.earlier_places():
            statement = (
                "SELECT e.position, e.event_id FROM unnest($1::bigint[]) AS u (position) CROSS JOIN LATERAL "
                f"(SELECT * FROM {schema}.events AS x WHERE x.position = u.position LIMIT 1) AS e"
            )
            rows = await self._link.fetch(statement, list(earlier))
            check_places(part, {Position(position): event_id for position, event_id in rows})
        return int(head["tag_count"])

    async def _kept(self) -> Mapping[str, KeptOutcome]:
        """What the store has under the part's command ids."""
        schema, part = self._schema, self._part
        if not part.outcomes:
            return {}
        rows = await self._link.fetch(select_outcomes(schema), [outcome.command_id for outcome in part.outcomes])
        return {row["command_id"]: kept_outcome(part.after.history_id, *row) for row in rows}

    async def _register(self, types: Sequence[StoredType], lock_wait_s: float) -> None:
        if types:
            await self._link.execute(
                register_statement(self._schema),
                [type.name for type in types],
                [type.version for type in types],
                [msgspec.json.encode(type.tag_names) for type in types],
                max(1, round(lock_wait_s * 1_000)),
            )
            await self._link.execute(
                keep_statement(self._schema), *kept_first(types), max(1, round(lock_wait_s * 1_000))
            )

    async def _write_events(self, events: Sequence[RecordedEvent], tag_count: int) -> int:
        """How many tags there are now."""
        types = await self._hold({(event.type, event.version) for event in events})
        tags = await self._tag_ids(list(dict.fromkeys(tag for event in events for tag in event.tags)))
        new = [(number, tag) for number, tag in enumerate((t for t, i in tags.items() if i is None), tag_count + 1)]
        await self._copy("tags", ("id", "tag"), new)
        ids = {**tags, **{tag: number for number, tag in new}}
        await self._copy("events", _EVENT_COLUMNS, (_event_row(event, types[event.type]) for event in events))
        tag_rows = ((ids[tag], event.position, types[event.type]) for event in events for tag in event.tags)
        await self._copy("event_tags", ("tag", "position", "type"), tag_rows)
        return tag_count + len(new)

    async def _hold(self, versions: Iterable[tuple[str, int]]) -> Mapping[str, int]:
        """Note that events are stored of these types and versions, which are registered; the ids of the types."""
        names, numbers = zip(*versions, strict=True)
        rows = await self._link.fetch(
            f"UPDATE {self._schema}.event_versions AS v SET held = true "
            f"FROM unnest($1::text[], $2::integer[]) AS u (name, version), {self._schema}.event_types AS t "
            "WHERE t.name = u.name AND v.type = t.id AND v.version = u.version RETURNING t.name, t.id",
            names,
            numbers,
        )
        return {name: type for name, type in rows}  # noqa: C416 - rows are records, no tuples

    async def _tag_ids(self, tags: Sequence[str]) -> Mapping[str, int | None]:
        """The id of each tag; None of those that are new."""
        rows = await self._link.fetch(
            "SELECT u.tag, k.id FROM unnest($1::text[]) AS u (tag) LEFT JOIN LATERAL "
            f"(SELECT t.id FROM {self._schema}.tags AS t WHERE t.tag = u.tag LIMIT 1) AS k ON true",
            tags,
        )
        return {tag: known for tag, known in rows}  # noqa: C416 - rows are records, no tuples

    async def _copy(self, table: str, columns: Sequence[str], rows: Iterable[_Row]) -> None:
        listed = list(rows)
        if listed:
            await self._link.copy_records_to_table(table, schema_name=self._name, columns=columns, records=listed)


def _event_row(event: RecordedEvent, type: int) -> _Row:
    return (
        event.position,
        to_microseconds(event.recorded_at),
        type,
        event.version,
        event.event_id,
        event.data,
        _encode_tags(event.tags),
        event.metadata,
    )


def _outcome_row(outcome: KeptOutcome) -> _Row:
    return (
        outcome.command_id,
        outcome.payload_hash,
        outcome.place.position,
        outcome.event_count,
        outcome.rejection,
    )
