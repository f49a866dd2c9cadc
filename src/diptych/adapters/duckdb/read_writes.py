"""What changes a read store's file. Everything here runs inside a write transaction, on the thread that writes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import duckdb
import msgspec

from diptych.adapters.duckdb.columns import encode_moment
from diptych.adapters.duckdb.read_tables import (
    StoredTable,
    create_table,
    drop_table,
    encode_table,
    hide_table,
    read_generations,
    show_table,
)
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError
from diptych.read_side.lease_shares import deal
from diptych.read_side.partitions import found_again, kept, reaches, split, taken_up, whole
from diptych.read_side.read_store import (
    Failed,
    Fenced,
    Generation,
    Leased,
    LeaseKey,
    SliceWrite,
    Table,
    WriteResult,
    Written,
)
from diptych.read_side.row_refusal import row_refusal

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from diptych.event_store.position import Place

__all__ = [
    "Changed",
    "RefusedByDatabase",
    "StoredTables",
    "apply",
    "create_generation",
    "drop_generation",
    "drop_overdue",
    "lease",
    "release",
    "split_generation",
    "switch",
]

StoredTables: TypeAlias = Callable[[Generation], StoredTable | None]
"""Finds the table of a generation; None for a subscriber."""


class Changed(NamedTuple):
    """Whether something became of it, and whether anything changed that others may wait for."""

    done: bool
    noted: bool


class RefusedByDatabase(Exception):
    """DuckDB refuses a row that nothing seemed wrong with; the transaction is over, and the slice to be tried alone."""


# ── slices ───────────────────────────────────────────────────────────────────


def apply(connection: DuckDBPyConnection, write: SliceWrite, tables: StoredTables) -> WriteResult:
    """Apply one slice's write all or nothing; others in this transaction are left as they are.

    DuckDB has no savepoints: what can be wrong with a row is looked for before anything is changed.

    Raises:
        RefusedByDatabase: something else is wrong with one.
    """
    stored = read_generations(connection, write.generation.name, write.generation.number)
    found = next((slice for slice in stored if slice.slice == write.generation.slice), None)
    if found is None or _fence(found) != _fence(write.generation):
        return Fenced()
    table = tables(found)
    for row in write.upserts:
        reason = "it has no table" if table is None else row_refusal(table.form, row)
        if reason is not None:
            return Failed(f"{found.name}: {reason}")
    if table is not None and (write.upserts or write.deletes):
        try:
            _change_rows(connection, write, table)
        except (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException) as error:
            raise RefusedByDatabase(f"{found.name}: a row is refused: {error}") from error
    _change_keys(connection, write)
    return Written(_move(connection, found, write))


def _fence(generation: Generation) -> tuple[Place, int]:
    return generation.checkpoint, generation.epoch


def _change_rows(connection: DuckDBPyConnection, write: SliceWrite, table: StoredTable) -> None:
    keys = [table.codec.encode_key(tuple(key)) for key in write.deletes if table.codec.may_have_row(tuple(key))]
    if keys:
        with connection.appender(table.raw_name, action="delete", key=table.compared_key) as appender:
            appender.append_rows(keys)
    if write.upserts:
        with connection.appender(table.raw_name, action="upsert") as appender:
            appender.append_rows(table.codec.encode(write.upserts))


def _move(connection: DuckDBPyConnection, found: Generation, write: SliceWrite) -> Generation:
    moved = msgspec.structs.replace(
        found,
        checkpoint=write.checkpoint,
        epoch=found.epoch + write.by_hand,
        stopped=_storable(write.stopped),
        recorded_at=write.recorded_at or found.recorded_at,
    )
    place = moved.checkpoint
    connection.execute(
        """UPDATE diptych.generations
        SET history_id = ?, position = ?, event_id = ?, epoch = ?, stopped = ?, recorded_at = ?
        WHERE name = ? AND number = ? AND slice = ?""",
        (
            *(place.history_id, place.position, place.event_id),
            *(moved.epoch, moved.stopped, encode_moment(moved.recorded_at)),
            *moved.lease_key,
        ),
    )
    return moved


def _change_keys(connection: DuckDBPyConnection, write: SliceWrite) -> None:
    name, number = write.generation.name, write.generation.number
    gone = [*write.unblock, *(found.key for found in write.block)]
    if gone:
        connection.execute(
            """DELETE FROM diptych.blocked_keys
            WHERE name = ? AND number = ? AND key IN (SELECT unnest(CAST(? AS VARCHAR[])))""",
            (name, number, gone),
        )
    for blocked in write.block:
        connection.execute(
            "INSERT INTO diptych.blocked_keys VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(name, number, blocked.key, blocked.position, _storable(blocked.error), blocked.attempts),
                _storable(blocked.trace),
            ),
        )
    for left_out in write.discard:
        key = (left_out.name, left_out.position, left_out.key)
        connection.execute(
            """INSERT INTO diptych.discards SELECT ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (
                SELECT 1 FROM diptych.discards WHERE name = ? AND position = ? AND key = ?
            )""",
            (*key, left_out.actor, left_out.reason, encode_moment(left_out.at), *key),
        )
    for retry in write.retried:
        connection.execute(
            "INSERT INTO diptych.retries (name, key, position, actor, reason, decided_at) VALUES (?, ?, ?, ?, ?, ?)",
            (retry.name, retry.key, retry.position, retry.actor, retry.reason, encode_moment(retry.at)),
        )


def _storable(text: str) -> str:
    """Text of an error may hold anything, and must never be why a key cannot be blocked."""
    return text.encode("utf-8", "backslashreplace").decode()


# ── leases ───────────────────────────────────────────────────────────────────


def lease(
    connection: DuckDBPyConnection, worker: str, wants: Mapping[str, Collection[LeaseKey]]
) -> tuple[Leased, Changed]:
    """What a worker holds from now on, and whether it gave anything up; `wants` is of every live worker."""
    rows = connection.execute("SELECT name, number, slice, epoch, last_holder FROM diptych.generations").fetchall()
    epochs: dict[LeaseKey, int] = {(name, number, slice): epoch for name, number, slice, epoch, _ in rows}
    holders: dict[LeaseKey, str | None] = {(name, number, slice): holder for name, number, slice, _, holder in rows}
    dealt = deal(worker, wants, holders)
    _give_up(connection, dealt.given_up)
    for key in dealt.taken:
        overtaken = holders[key] not in (None, worker)
        epochs[key] += overtaken
        connection.execute(
            """UPDATE diptych.generations SET epoch = ?, last_holder = ?
            WHERE name = ? AND number = ? AND slice = ?""",
            (epochs[key], worker, *key),
        )
    held = {key: epochs[key] for key in dealt.kept | dealt.taken}
    gone = frozenset(wants[worker]).difference(epochs)
    return Leased(held, dealt.surplus, gone), Changed(done=True, noted=bool(dealt.given_up))


def release(connection: DuckDBPyConnection, worker: str, keys: Collection[LeaseKey] | None) -> Changed:
    """Fence what a worker lets go of: what of these it holds, by default all."""
    rows = connection.execute(
        "SELECT name, number, slice FROM diptych.generations WHERE last_holder = ?", (worker,)
    ).fetchall()
    mine = [(name, number, slice) for name, number, slice in rows]
    gone = [key for key in mine if keys is None or key in keys]
    _give_up(connection, gone)
    return Changed(done=True, noted=bool(gone))


def _give_up(connection: DuckDBPyConnection, keys: Iterable[LeaseKey]) -> None:
    for key in keys:
        connection.execute(
            """UPDATE diptych.generations SET epoch = epoch + 1, last_holder = NULL
            WHERE name = ? AND number = ? AND slice = ?""",
            key,
        )


# ── generations ──────────────────────────────────────────────────────────────


def create_generation(
    connection: DuckDBPyConnection, wanted: Generation, *, anew: bool, slices: int
) -> tuple[list[Generation], Changed]:
    """Make a generation, or find the one that a racer made; its number is not given yet. See the port.

    Raises:
        ConfigurationError: another projection's table has that name, or DuckDB cannot have such a table.
    """
    others = _builds(connection, wanted.name)
    found = found_again(others, wanted.fingerprint)
    if found and not anew:
        was_kept = found[0].kept_until is not None
        if was_kept:
            found = taken_up(found)
            _set_states(connection, found)
        return list(found), Changed(done=was_kept, noted=was_kept)
    current = next((found[0] for found in others.values() if found[0].live), None)
    _check_name_is_free(connection, wanted.name, wanted.table)
    if wanted.live and current is not None:
        _hide(connection, current)
    number = _next_number(connection, wanted.name)
    made = whole(msgspec.structs.replace(wanted, number=number), slices)
    _insert(connection, made)
    if wanted.table is not None:
        stored = StoredTable(wanted.table, wanted.name, number)
        create_table(connection, stored)
        if wanted.live:
            show_table(connection, stored)
    return made, Changed(done=True, noted=True)


def _check_name_is_free(connection: DuckDBPyConnection, name: str, table: Table | None) -> None:
    if table is None:
        return
    taken = connection.execute(
        "SELECT name FROM diptych.generations WHERE lower(table_name) = lower(?) AND name <> ?", (table.name, name)
    ).fetchone()
    if taken is not None:
        raise ConfigurationError(
            f"{name} and {taken[0]} would share the table {table.name} (case does not tell tables apart): rename one"
        )


def _next_number(connection: DuckDBPyConnection, name: str) -> int:
    found = connection.execute(
        "UPDATE diptych.projections SET last_number = last_number + 1 WHERE name = ? RETURNING last_number", (name,)
    ).fetchall()
    if found:
        return int(found[0][0])
    connection.execute("INSERT INTO diptych.projections VALUES (?, 1)", (name,))
    return 1


def _builds(connection: DuckDBPyConnection, name: str, number: int | None = None) -> dict[int, list[Generation]]:
    """The generations of a name, or one of them, each with all its slices, by number."""
    builds: dict[int, list[Generation]] = {}
    for slice in read_generations(connection, name, number):
        builds.setdefault(slice.number, []).append(slice)
    return builds


def _insert(connection: DuckDBPyConnection, slices: Sequence[Generation]) -> None:
    for made in slices:
        place = made.checkpoint
        connection.execute(
            """INSERT INTO diptych.generations (name, number, slice, slices, fingerprint, table_name, form, live,
            history_id, position, event_id, epoch, stopped, recorded_at, barrier, slices_next, kept_until)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                *(made.name, made.number, made.slice, made.slices, made.fingerprint),
                *(made.table and made.table.name, encode_table(made.table), made.live),
                *(place.history_id, place.position, place.event_id),
                *(made.epoch, made.stopped, encode_moment(made.recorded_at), made.barrier, made.slices_next),
                encode_moment(made.kept_until),
            ),
        )


def split_generation(connection: DuckDBPyConnection, name: str, number: int, slices: int | None) -> Changed:
    """Split a generation into another number of slices, if all are at one place; see the port."""
    found = read_generations(connection, name, number)
    changed = split(found, slices) if found else found
    if len(changed) != len(found):
        connection.execute("DELETE FROM diptych.generations WHERE name = ? AND number = ?", (name, number))
        _insert(connection, changed)
    elif changed != found:
        for each in changed:
            connection.execute(
                """UPDATE diptych.generations SET epoch = ?, barrier = ?, slices_next = ?
                WHERE name = ? AND number = ? AND slice = ?""",
                (each.epoch, each.barrier, each.slices_next, *each.lease_key),
            )
    return Changed(done=not changed or changed[0].barrier is None, noted=changed != found)


def switch(connection: DuckDBPyConnection, name: str, number: int, keep_s: float) -> Changed:
    """Let a generation answer, keep the one that did, and drop the others; see the port."""
    builds = _builds(connection, name)
    chosen = builds.pop(number, None)
    if chosen is None or chosen[0].live:
        return Changed(done=chosen is not None, noted=False)
    current = next((found for found in builds.values() if found[0].live), None)
    if current is not None and not reaches(chosen, current):
        return Changed(done=False, noted=False)
    if current is not None and keep_s > 0:
        del builds[current[0].number]
        _hide(connection, current[0])
        _set_states(connection, kept(current, SystemClock().now() + dt.timedelta(seconds=keep_s)))
    for other in builds:
        drop_generation(connection, name, other)
    _set_live(connection, chosen[0], live=True)
    if chosen[0].table is not None:
        show_table(connection, StoredTable(chosen[0].table, name, number))
    return Changed(done=True, noted=True)


def drop_overdue(connection: DuckDBPyConnection) -> Changed:
    """Remove what was kept until now; see the port."""
    overdue = connection.execute(
        "SELECT name, number FROM diptych.generations WHERE kept_until <= ? AND slice = 0",
        (encode_moment(SystemClock().now()),),
    ).fetchall()
    for name, number in overdue:
        drop_generation(connection, name, number)
    return Changed(done=bool(overdue), noted=bool(overdue))


def drop_generation(connection: DuckDBPyConnection, name: str, number: int) -> Changed:
    """Remove a generation with all it holds; no error where it is gone."""
    builds = _builds(connection, name, number)
    for build, *_ in builds.values():
        if build.live:
            _hide(connection, build)
        if build.table is not None:
            drop_table(connection, StoredTable(build.table, name, number))
    connection.execute("DELETE FROM diptych.generations WHERE name = ? AND number = ?", (name, number))
    connection.execute("DELETE FROM diptych.blocked_keys WHERE name = ? AND number = ?", (name, number))
    return Changed(done=bool(builds), noted=bool(builds))


def _hide(connection: DuckDBPyConnection, build: Generation) -> None:
    _set_live(connection, build, live=False)
    if build.table is not None:
        hide_table(connection, StoredTable(build.table, build.name, build.number))


def _set_live(connection: DuckDBPyConnection, build: Generation, *, live: bool) -> None:
    connection.execute(
        "UPDATE diptych.generations SET live = ?, kept_until = NULL WHERE name = ? AND number = ?",
        (live, build.name, build.number),
    )


def _set_states(connection: DuckDBPyConnection, slices: Iterable[Generation]) -> None:
    """Write until when slices are kept, and their epochs."""
    for each in slices:
        connection.execute(
            "UPDATE diptych.generations SET kept_until = ?, epoch = ? WHERE name = ? AND number = ? AND slice = ?",
            (encode_moment(each.kept_until), each.epoch, *each.lease_key),
        )
