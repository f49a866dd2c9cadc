"""Writes of folded batches in PostgreSQL: rows and checkpoint of each slice together or not at all (G5).

Mostly that is one statement (`read_together`). Else one moves the checkpoints of all slices of a call, each only from
where its batch was folded; then each slice that moved has its rows changed by one statement, whatever their number.
Values are looked at before anything is sent, so that the server hardly ever refuses one. Where it does all the same,
everything is rolled back, and done once more with a savepoint for each slice, so that the one that fails leaves the
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import msgspec

from diptych.adapters.postgres.connection import state_of
from diptych.adapters.postgres.read_catalog import Catalog, generation_of, key_hash
from diptych.adapters.postgres.read_columns import Unstorable
from diptych.adapters.postgres.read_queries import search_vector
from diptych.adapters.postgres.read_tables import Builds, StoredTable
from diptych.event_store.position import Place
from diptych.read_side.read_store import (
    ColumnKind,
    Failed,
    Fenced,
    Generation,
    LeaseKey,
    SliceWrite,
    WriteResult,
    Written,
)

if TYPE_CHECKING:
    from diptych.adapters.postgres.connection import Link

__all__ = [
    "MOVED_PARAMETERS",
    "Planned",
    "Refused",
    "Versions",
    "apply",
    "apply_apart",
    "fences",
    "fit_together",
    "moving",
    "plan",
    "result_of",
    "rows_refused",
]

MOVED_PARAMETERS = 14
"""Of `moving`, and the channel on which others are told."""
UPSERT_ROWS_MAX = 10_000
"""Rows written by one statement …"""
UPSERT_BYTES_MAX = 32 << 20
"""… and about how many bytes of text in them."""

_TEXTS = frozenset({ColumnKind.TEXT, ColumnKind.DOCUMENT, ColumnKind.BYTES})
_REFUSED_CLASSES = frozenset({"21", "22", "23", "54"})
"""States of the server that say a value does not fit: data exceptions, constraints, limits."""

Versions = dict[LeaseKey, str]
"""Which version of each slice's row in the catalog is known."""


class Refused(Exception):
    """The server refuses a row; nothing of the transaction is left."""


class Planned(NamedTuple):
    """A write, with what is sent for it.

    Attributes:
        upserts: one array for each column; empty where there is no row.
        deletes: one array for each column of the key; empty where there is no key.
        reason: why it cannot be stored; empty where it can.
    """

    write: SliceWrite
    table: StoredTable | None = None
    upserts: Sequence[Sequence[Any]] = ()
    deletes: Sequence[Sequence[Any]] = ()
    reason: str = ""

    @property
    def place(self) -> LeaseKey:
        """Which slice it is of."""
        return self.write.generation.lease_key

    @property
    def moved(self) -> Generation:
        """The generation after it."""
        seen = self.write.generation
        return msgspec.structs.replace(
            seen,
            checkpoint=self.write.checkpoint,
            epoch=seen.epoch + self.write.by_hand,
            stopped=_storable(self.write.stopped),
            recorded_at=self.write.recorded_at or seen.recorded_at,
        )


def plan(write: SliceWrite, builds: Builds) -> Planned:
    """Look at every value, and lay the rows out by column."""
    table = builds.of(write.generation)
    if not write.upserts and not write.deletes:
        return Planned(write, table)
    if table is None:
        return Planned(write, reason="it has no table")
    codec = table.codec
    try:
        rows = codec.distinct(write.upserts)
        upserts: list[Sequence[Any]] = codec.arrays(rows) if rows else []
    except Unstorable as error:
        return Planned(write, table, reason=str(error))
    if rows and table.is_searchable:
        upserts.append([search_vector(codec.searched(row)) for row in rows])
    deletes = codec.key_arrays(write.deletes) if write.deletes else []
    return Planned(write, table, upserts, deletes if deletes and deletes[0] else ())


def rows_refused(error: asyncpg.PostgresError) -> bool:
    """Whether the server says that a value does not fit."""
    return state_of(error)[:2] in _REFUSED_CLASSES


async def apply(link: Link, catalog: Catalog, plans: Sequence[Planned]) -> tuple[list[WriteResult], Versions]:
    """Apply the writes inside a transaction, and answer each.

    Raises:
        asyncpg.PostgresError: `rows_refused` tells whether `apply_apart` would find which one it is.
    """
    results: dict[int, WriteResult] = {}
    versions: Versions = {}
    for turn in _turns(plans):
        good = [n for n in turn if not plans[n].reason]
        moved = await _move(link, catalog, [plans[n] for n in good]) if good else {}
        for n in good:
            results[n] = await _applied(link, catalog, plans[n], moved)
        for n in set(turn) - set(good):
            results[n] = await _refused(link, catalog, plans[n], plans[n].reason)
        versions |= {place: version for place, (_, version) in moved.items()}
    return [results[n] for n in range(len(plans))], versions


async def apply_apart(link: Link, catalog: Catalog, plans: Sequence[Planned]) -> tuple[list[WriteResult], Versions]:
    """As `apply`, each write within a savepoint of its own: what the server refuses of one leaves the others."""
    results: dict[int, WriteResult] = {}
    versions: Versions = {}
    for n in sorted(range(len(plans)), key=lambda n: plans[n].place):
        await link.execute("SAVEPOINT slice_write")
        try:
            (results[n],), known = await apply(link, catalog, [plans[n]])
        except asyncpg.PostgresError as error:
            if not rows_refused(error):
                raise
            await link.execute("ROLLBACK TO slice_write")
            results[n] = await _refused(link, catalog, plans[n], _reason(plans[n], error))
        else:
            versions |= known
        await link.execute("RELEASE slice_write")
    return [results[n] for n in range(len(plans))], versions


def _turns(plans: Sequence[Planned]) -> Iterable[list[int]]:
    """The writes, by number, so that none of one turn are of the same slice."""
    left = list(range(len(plans)))
    while left:
        seen = set[LeaseKey]()
        turn = [n for n in left if plans[n].place not in seen and not seen.add(plans[n].place)]  # type: ignore[func-returns-value]
        yield turn
        left = [n for n in left if n not in turn]


async def _move(link: Link, catalog: Catalog, plans: Sequence[Planned]) -> dict[LeaseKey, tuple[bool, str]]:
    """Compare and set checkpoints and epochs; whether each that moved is live, and its version in the catalog."""
    statement = f"{moving(catalog.schema)} SELECT name, number, slice, live, version, pg_notify($14, '') FROM moved"
    moved = await link.fetch(statement, *fences(plans), catalog.channel)
    return {(row[0], row[1], row[2]): (row[3], row[4]) for row in moved}


def fences(plans: Sequence[Planned]) -> list[list[Any]]:
    """The arguments of `moving`, but for the channel."""
    return list(map(list, zip(*map(_fence, plans), strict=True)))


def _fence(planned: Planned) -> tuple[Any, ...]:
    seen, new = planned.write.generation, planned.moved
    return (
        *seen.lease_key,
        *(seen.checkpoint.history_id, seen.checkpoint.position, seen.checkpoint.event_id),
        *(seen.epoch, new.checkpoint.history_id, new.checkpoint.position, new.checkpoint.event_id, new.epoch),
        *(new.stopped, new.recorded_at),
    )


def moving(schema: str) -> str:
    """Moves the checkpoints that are still where a batch was folded from; `moved` has them, by number from 1.

    Rows are locked in one order, so that two who write the same slices queue and never lock each other out.
    """
    return f"""
WITH asked AS (
    SELECT * FROM unnest(
        $1::text[], $2::integer[], $3::integer[], $4::bytea[], $5::bigint[], $6::bytea[], $7::bigint[],
        $8::bytea[], $9::bigint[], $10::bytea[], $11::bigint[], $12::text[], $13::timestamptz[]
    ) WITH ORDINALITY AS a (name, number, slice, history_id, position, event_id, epoch,
            new_history_id, new_position, new_event_id, new_epoch, stopped, recorded_at, ord)
), locked AS MATERIALIZED (
    SELECT g.name, g.number, g.slice FROM {schema}.diptych_generations AS g JOIN asked AS a USING (name, number, slice)
    ORDER BY g.name, g.number, g.slice FOR UPDATE OF g
), moved AS (
    UPDATE {schema}.diptych_generations AS g
    SET history_id = a.new_history_id, position = a.new_position, event_id = a.new_event_id, epoch = a.new_epoch,
        stopped = a.stopped, recorded_at = a.recorded_at
    FROM asked AS a JOIN locked AS l USING (name, number, slice)
    WHERE g.name = a.name AND g.number = a.number AND g.slice = a.slice AND g.history_id = a.history_id
        AND g.position = a.position AND g.event_id = a.event_id AND g.epoch = a.epoch
    RETURNING g.name, g.number, g.slice, g.live, g.xmin::text AS version, a.ord
)"""


async def _applied(
    link: Link, catalog: Catalog, planned: Planned, moved: dict[LeaseKey, tuple[bool, str]]
) -> WriteResult:
    if planned.place not in moved:
        return Fenced()
    table = planned.table
    if table is not None and planned.deletes:
        await link.execute(table.delete, *planned.deletes)
    if table is not None and planned.upserts:
        for rows in portions(table, planned.upserts):
            await link.execute(table.upsert, *(values[rows] for values in planned.upserts))
    write = planned.write
    if write.block or write.unblock or write.discard or write.retried:
        await _change_keys(link, catalog.schema, planned.write)
    live, _ = moved[planned.place]
    return result_of(planned, live)


def result_of(planned: Planned, live: bool | None) -> WriteResult:  # noqa: FBT001 — a column
    """What became of a write that moved a slice, which is live or not; None where it did not move."""
    return Fenced() if live is None else Written(msgspec.structs.replace(planned.moved, live=live))


def portions(table: StoredTable, arrays: Sequence[Sequence[Any]]) -> Sequence[slice]:
    """Rows that one statement takes; the server refuses a message of more than a gigabyte."""
    rows = len(arrays[0])
    count = max(-(-rows // UPSERT_ROWS_MAX), -(-_size(table, arrays) // UPSERT_BYTES_MAX), 1)
    step = -(-rows // count)
    return [slice(begin, begin + step) for begin in range(0, rows, step)]


def fit_together(plans: Sequence[Planned]) -> bool:
    """Whether one statement takes the rows of all of them."""
    size = 0
    for planned in plans:
        if planned.table is not None and planned.upserts:
            if len(planned.upserts[0]) > UPSERT_ROWS_MAX:
                return False
            size += _size(planned.table, planned.upserts)
    return size <= UPSERT_BYTES_MAX


def _size(table: StoredTable, arrays: Sequence[Sequence[Any]]) -> int:
    """About how many bytes of text are in them."""
    texts = [values for column, values in zip(table.form.columns, arrays, strict=False) if column.kind in _TEXTS]
    return sum(len(value) for values in texts for value in values if value is not None)


async def _change_keys(link: Link, schema: str, write: SliceWrite) -> None:
    name, number = write.generation.name, write.generation.number
    if write.unblock:
        await link.execute(
            f"DELETE FROM {schema}.diptych_blocked_keys "
            "WHERE name = $1 AND number = $2 AND key_hash = ANY($3::bytea[])",
            *(name, number, list(map(key_hash, write.unblock))),
        )
    if write.block:
        await link.executemany(
            f"INSERT INTO {schema}.diptych_blocked_keys (name, number, key_hash, key, position, error, attempts, "
            "trace) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name, number, key_hash) "
            "DO UPDATE SET position = excluded.position, error = excluded.error, attempts = excluded.attempts, "
            "trace = excluded.trace",
            [
                (name, number, key_hash(b.key), b.key, b.position, _storable(b.error), b.attempts, _storable(b.trace))
                for b in write.block
            ],
        )
    if write.discard:
        await link.executemany(
            f"INSERT INTO {schema}.diptych_discards (name, position, key_hash, key, actor, reason, decided_at) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            [(d.name, d.position, key_hash(d.key), d.key, d.actor, d.reason, d.at) for d in write.discard],
        )
    if write.retried:
        await link.executemany(
            f"INSERT INTO {schema}.diptych_retries (name, position, key_hash, key, actor, reason, decided_at) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [(r.name, r.position, key_hash(r.key), r.key, r.actor, r.reason, r.at) for r in write.retried],
        )


async def _refused(link: Link, catalog: Catalog, planned: Planned, reason: str) -> WriteResult:
    """Fenced where it is stale, whatever else is wrong with it."""
    row = await link.fetchrow(catalog.slice, *planned.place)
    stored, seen = None if row is None else generation_of(row), planned.write.generation
    if stored is None or _fence_of(stored) != _fence_of(seen):
        return Fenced()
    return Failed(f"{seen.name}: {reason}")


def _fence_of(generation: Generation) -> tuple[Place, int]:
    return generation.checkpoint, generation.epoch


def _reason(planned: Planned, error: asyncpg.PostgresError) -> str:
    """What the server says, and which value it is most likely about, since it does not say: the longest it may be."""
    reason = f"a row is refused: {error}"
    if planned.table is None or not planned.upserts:
        return reason
    codec = planned.table.codec
    form = codec.table
    of_form = state_of(error).startswith("22")  # of a document: all else was looked at
    lengths = [
        (_length(row[n]), column.name, row)
        for row in planned.write.upserts
        for n, column in enumerate(form.columns)
        if (column.kind is ColumnKind.DOCUMENT) == of_form
        and (of_form or column.indexed or column.searchable or column.name in form.key)
    ]
    if not lengths:
        return reason
    length, name, row = max(lengths, key=lambda found: found[0])
    return f"{reason} (column {name}, {length} bytes, {codec.named(row)})"


def _length(value: Any) -> int:
    return len(value) if isinstance(value, bytes) else len(str(value).encode())


def _storable(text: str) -> str:
    """Text of an error may hold anything, and must never be why a key cannot be blocked."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
