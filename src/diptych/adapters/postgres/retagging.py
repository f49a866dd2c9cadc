"""Stored events that are tagged anew in one schema: each step one transaction that holds the row of `history`.

No function that runs as its owner, as for appends: whoever may not change tables may not do this.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from diptych.adapters.postgres.connection import (
    DRIVER_ERRORS,
    INDEXED,
    OWNERS,
    Connections,
    Link,
    PostgresUrl,
    failure,
    transaction,
)
from diptych.adapters.postgres.model_states import wait_for_pruning
from diptych.event_store.event_store import StoredType
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.stored_facts import encode_facts
from diptych.event_store.tagging import Tagging, check_tagging
from diptych.messages.unique_id import unique_bytes

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Retagging", "decode_tagging"]

RETAG_STEP_S_MAX = 120.0
"""How long one step may take in all."""

_encode = msgspec.json.Encoder().encode
_types_decoder = msgspec.json.Decoder(tuple[tuple[str, int], ...])


def decode_tagging(tagging: bytes, unfinished: bytes | None) -> Tagging:
    """How events are tagged, from the columns `tagging` and `unfinished` of `history`."""
    return Tagging(tagging, _types_decoder.decode(unfinished) if unfinished else ())


class Retagging:
    """Tags the events of one schema anew. Each step is durable, or not done.

    Raises, each step:
        Retagged: events are tagged otherwise than the caller knows; nothing was done.
        NotGranted: this role does not own the tables.
    """

    def __init__(self, url: PostgresUrl, writing: Connections, lock_wait_s: float) -> None:
        """Write with connections that append, and wait that long for others."""
        self._url = url
        self._writing = writing
        self._lock_wait_s = lock_wait_s

    async def tagging(self, fetch: Callable[..., Awaitable[list[asyncpg.Record]]]) -> Tagging:
        """How events are tagged now, read with `fetch`."""
        statement = f"SELECT tagging, unfinished FROM {self._url.quoted_schema}.history WHERE one = 1"
        ((tagging, unfinished),) = await fetch(statement)
        return decode_tagging(tagging, unfinished)

    async def begin(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        """Keep everyone from appending, where events are still tagged as the caller knows."""
        async with self._step() as step:
            return await step.begin(types, instead_of)

    async def write_tags(self, begun: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]) -> None:
        """Give events other tags, where nobody else has begun."""
        async with self._step() as step:
            await step.write_tags(begun, changes)

    async def end(self, begun: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        """Make tag names and facts true, and drop kept states but for those of the models named."""
        async with self._step() as step:
            await step.end(begun, types, unaffected)

    @asynccontextmanager
    async def _step(self) -> AsyncGenerator[_Step]:
        try:
            async with (
                self._writing.connection() as link,
                asyncio.timeout(RETAG_STEP_S_MAX),
                transaction(link),
            ):
                yield _Step(link, self._url.quoted_schema, self._lock_wait_s)
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error, denied=OWNERS) or error) from error


class _Step:
    """One step, inside a transaction."""

    def __init__(self, link: Link, schema: str, lock_wait_s: float) -> None:
        self._link = link
        self._schema = schema
        self._lock_wait_ms = max(1, round(lock_wait_s * 1_000))

    async def begin(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        await self._lock(instead_of)
        await wait_for_pruning(self._link, self._schema)
        begun = Tagging(unique_bytes(), tuple(types))
        await self._link.execute(
            f"UPDATE {self._schema}.history SET tagging = $1, unfinished = $2 WHERE one = 1",
            begun.id,
            _encode(begun.unfinished),
        )
        return begun

    async def write_tags(self, begun: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]) -> None:
        schema, tag_count = self._schema, (await self._lock(begun))["tag_count"]
        ids = await self._tag_ids({tag for event, tags in changes for tag in (*event.tags, *tags)}, tag_count)
        gone = [(ids[tag], event.position) for event, tags in changes for tag in set(event.tags) - set(tags)]
        new = [(ids[tag], event.position) for event, tags in changes for tag in set(tags) - set(event.tags)]
        await self._link.execute(
            f"DELETE FROM {schema}.event_tags AS t USING unnest($1::bigint[], $2::bigint[]) AS u (tag, position) "
            "WHERE t.tag = u.tag AND t.position = u.position",
            *_columns(gone),
        )
        await self._link.execute(
            f"INSERT INTO {schema}.event_tags (tag, position, type) SELECT u.tag, u.position, e.type "
            f"FROM unnest($1::bigint[], $2::bigint[]) AS u (tag, position) "
            f"JOIN {schema}.events AS e ON e.position = u.position",
            *_columns(new),
        )
        await self._link.execute(
            f"UPDATE {schema}.events AS e SET tags = u.tags "
            "FROM unnest($1::bigint[], $2::bytea[]) AS u (position, tags) WHERE e.position = u.position",
            *_columns([(event.position, _encode(tags)) for event, tags in changes]),
        )

    async def end(self, begun: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        await self._lock(begun)
        await self._link.executemany(
            f"UPDATE {self._schema}.event_versions AS v SET tag_names = $3, facts = $4 "
            f"FROM {self._schema}.event_types AS t WHERE t.name = $1 AND v.type = t.id AND v.version = $2",
            [(type.name, type.version, _encode(type.tag_names), encode_facts(type.facts)) for type in types],
        )
        await self._link.execute(
            f"DELETE FROM {self._schema}.model_states WHERE model <> ALL ($1::text[])", sorted(unaffected)
        )
        await self._link.execute(f"UPDATE {self._schema}.history SET unfinished = NULL WHERE one = 1")

    async def _lock(self, known: Tagging) -> asyncpg.Record:
        """Lock the row of the history, and make sure that events are tagged as is known."""
        settings = {**INDEXED, "lock_timeout": str(self._lock_wait_ms)}
        await self._link.execute("; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items()))
        await self._link.execute(
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )
        row = await self._link.fetchrow(
            f"SELECT tagging, tag_count FROM {self._schema}.history WHERE one = 1 FOR NO KEY UPDATE"
        )
        assert row is not None, "the schema has no row of history: the store is damaged"
        check_tagging(row["tagging"], known.id)
        return row

    async def _tag_ids(self, tags: Collection[str], count: int) -> Mapping[str, int]:
        """The id of each tag, made where it is missing."""
        rows = await self._link.fetch(
            "SELECT u.tag, k.id FROM unnest($1::text[]) AS u (tag) LEFT JOIN LATERAL "
            f"(SELECT t.id FROM {self._schema}.tags AS t WHERE t.tag = u.tag LIMIT 1) AS k ON true",
            sorted(tags),
        )
        ids = {tag: found for tag, found in rows if found is not None}
        new = [(count + number, tag) for number, tag in enumerate((tag for tag, found in rows if found is None), 1)]
        if new:
            await self._link.execute(
                f"INSERT INTO {self._schema}.tags (id, tag) SELECT * FROM unnest($1::bigint[], $2::text[])",
                *_columns(new),
            )
            await self._link.execute(
                f"UPDATE {self._schema}.history SET tag_count = $1 WHERE one = 1", count + len(new)
            )
        return ids | {tag: number for number, tag in new}


def _columns(rows: Sequence[tuple[object, object]]) -> tuple[list[object], list[object]]:
    return [first for first, _ in rows], [second for _, second in rows]
