"""What changes a read store's file. Everything here runs inside a write transaction."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from diptych.adapters.sqlite.columns import Unstorable, encode_moment
from diptych.adapters.sqlite.read_tables import (
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
from diptych.event_store.position import Place
from diptych.read_side.partitions import found_again, kept, reaches, split, taken_up, whole
from diptych.read_side.read_store import (
    Failed,
    Fenced,
    Generation,
    LeaseKey,
    SliceWrite,
    Table,
    WriteResult,
    Written,
)

__all__ = [
    "StoredTables",
    "apply",
    "create_generation",
    "drop_generation",
    "drop_overdue",
    "note_holder",
    "note_release",
    "split_generation",
    "switch",
]

StoredTables: TypeAlias = Callable[[Generation], StoredTable | None]
"""Finds the table of a generation; None for a subscriber."""

_FENCE = """UPDATE diptych_generations
    SET history_id = ?, position = ?, event_id = ?, epoch = ?, stopped = ?, recorded_at = ?
    WHERE name = ? AND number = ? AND slice = ? AND history_id = ? AND position = ? AND event_id = ? AND epoch = ?
    RETURNING live"""

_REFUSED_VALUES = (OverflowError, UnicodeEncodeError, sqlite3.IntegrityError, sqlite3.DataError)
"""How `sqlite3` and SQLite say that a value does not fit its column."""


# ── slices ───────────────────────────────────────────────────────────────────


def apply(connection: sqlite3.Connection, write: SliceWrite, tables: StoredTables) -> WriteResult:
    """Apply one slice's write all or nothing; others in this transaction are left as they are."""
    connection.execute("SAVEPOINT slice_write")
    try:
        result = _apply(connection, write, tables(write.generation))
    except Unstorable as error:
        result = Failed(f"{write.generation.name}: {error}")
        connection.execute("ROLLBACK TO slice_write")
    connection.execute("RELEASE slice_write")
    return result


def _apply(connection: sqlite3.Connection, write: SliceWrite, table: StoredTable | None) -> WriteResult:
    moved = _move(connection, write)
    if moved is None:
        return Fenced()
    if write.upserts or write.deletes:
        if table is None:
            raise Unstorable("it has no table")
        _change_rows(connection, write, table)
    if write.block or write.unblock or write.discard or write.retried:
        _change_keys(connection, write)
    return Written(moved)


def _move(connection: sqlite3.Connection, write: SliceWrite) -> Generation | None:
    """Compare and set the checkpoint and the epoch; None where they are not as expected."""
    seen, new = write.generation, write.checkpoint
    epoch, stopped = seen.epoch + write.by_hand, _storable(write.stopped)
    recorded_at = write.recorded_at or seen.recorded_at
    found = connection.execute(
        _FENCE,
        (
            *(new.history_id, new.position, new.event_id, epoch, stopped, encode_moment(recorded_at)),
            *(seen.name, seen.number, seen.slice),
            *(seen.checkpoint.history_id, seen.checkpoint.position, seen.checkpoint.event_id, seen.epoch),
        ),
    ).fetchall()
    if not found:
        return None
    live = bool(found[0][0])
    return msgspec.structs.replace(
        seen, checkpoint=new, epoch=epoch, stopped=stopped, live=live, recorded_at=recorded_at
    )


def _change_rows(connection: sqlite3.Connection, write: SliceWrite, table: StoredTable) -> None:
    if write.deletes:
        keys = [key for key in write.deletes if table.codec.may_have_row(key)]
        connection.executemany(table.delete, map(table.codec.encode_key, keys))
    if write.upserts:
        try:
            connection.executemany(table.upsert, table.codec.encode(write.upserts))
        except _REFUSED_VALUES as error:
            table.codec.explain(write.upserts)
            raise Unstorable(f"a row is refused: {error}") from error


def _change_keys(connection: sqlite3.Connection, write: SliceWrite) -> None:
    name, number = write.generation.name, write.generation.number
    connection.executemany(
        "DELETE FROM diptych_blocked_keys WHERE name = ? AND number = ? AND key = ?",
        [(name, number, key) for key in write.unblock],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO diptych_blocked_keys (name, number, key, position, error, attempts, trace) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (name, number, found.key, found.position, _storable(found.error), found.attempts, _storable(found.trace))
            for found in write.block
        ],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO diptych_discards (name, position, key, actor, reason, decided_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [
            (found.name, found.position, found.key, found.actor, found.reason, encode_moment(found.at))
            for found in write.discard
        ],
    )
    connection.executemany(
        "INSERT INTO diptych_retries (name, key, position, actor, reason, decided_at) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (found.name, found.key, found.position, found.actor, found.reason, encode_moment(found.at))
            for found in write.retried
        ],
    )


def _storable(text: str) -> str:
    """Text of an error may hold anything, and must never be why a key cannot be blocked."""
    return text.encode("utf-8", "backslashreplace").decode()


# ── leases ───────────────────────────────────────────────────────────────────


def note_holder(connection: sqlite3.Connection, worker: str, keys: Iterable[LeaseKey]) -> dict[LeaseKey, int]:
    """Note who has taken these leases: the epochs of those that are there, raised where another did not release."""
    found = [
        (
            key,
            connection.execute(
                """UPDATE diptych_generations
                SET epoch = epoch + (last_holder IS NOT NULL AND last_holder <> ?), last_holder = ?
                WHERE name = ? AND number = ? AND slice = ? RETURNING epoch""",
                (worker, worker, *key),
            ).fetchall(),
        )
        for key in keys
    ]
    return {key: epoch for key, rows in found for (epoch,) in rows}


def note_release(connection: sqlite3.Connection, worker: str, keys: Iterable[LeaseKey]) -> None:
    """Fence what a worker has let go of, unless somebody else has taken it already, which has fenced it."""
    connection.executemany(
        """UPDATE diptych_generations SET epoch = epoch + 1, last_holder = NULL
        WHERE name = ? AND number = ? AND slice = ? AND (last_holder = ? OR last_holder IS NULL)""",
        [(*key, worker) for key in keys],
    )


# ── generations ──────────────────────────────────────────────────────────────


def create_generation(
    connection: sqlite3.Connection,
    name: str,
    fingerprint: str,
    table: Table | None,
    checkpoint: Place,
    *,
    live: bool,
    anew: bool,
    slices: int,
) -> list[Generation]:
    """Make a generation, or find the one that a racer made; see the port.

    Raises:
        ConfigurationError: another projection's table has that name, or SQLite cannot have such a table.
    """
    others = _builds(connection, name)
    found = found_again(others, fingerprint)
    if found and not anew:
        if found[0].kept_until is not None:
            found = taken_up(found)
            _set_states(connection, found)
        return list(found)
    current = next((found[0] for found in others.values() if found[0].live), None)
    _check_name_is_free(connection, name, table)
    if live and current is not None:
        _hide(connection, current)
    number = _next_number(connection, name)
    made = whole(Generation(name, number, fingerprint, table, live, checkpoint), slices)
    _insert(connection, made)
    if table is not None:
        stored = StoredTable(table, name, number)
        create_table(connection, stored)
        if live:
            show_table(connection, stored)
    return made


def _check_name_is_free(connection: sqlite3.Connection, name: str, table: Table | None) -> None:
    taken = connection.execute(
        "SELECT name FROM diptych_generations WHERE table_name = ? AND name <> ?", (table and table.name, name)
    ).fetchone()
    if table is not None and taken is not None:
        raise ConfigurationError(
            f"{name} and {taken[0]} would share the table {table.name} (case does not tell tables apart): rename one"
        )


def _next_number(connection: sqlite3.Connection, name: str) -> int:
    (number,) = connection.execute(
        """INSERT INTO diptych_projections (name, last_number) VALUES (?, 1)
        ON CONFLICT (name) DO UPDATE SET last_number = last_number + 1 RETURNING last_number""",
        (name,),
    ).fetchall()[0]
    return int(number)


def _builds(connection: sqlite3.Connection, name: str, number: int | None = None) -> dict[int, list[Generation]]:
    """The generations of a name, or one of them, each with all its slices, by number."""
    builds: dict[int, list[Generation]] = {}
    for slice in read_generations(connection, name, number):
        builds.setdefault(slice.number, []).append(slice)
    return builds


def _insert(connection: sqlite3.Connection, slices: Iterable[Generation]) -> None:
    connection.executemany(
        """INSERT INTO diptych_generations (name, number, slice, slices, fingerprint, table_name, form, live,
        history_id, position, event_id, epoch, stopped, recorded_at, barrier, slices_next, kept_until)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            (
                *(made.name, made.number, made.slice, made.slices, made.fingerprint),
                *(made.table and made.table.name, encode_table(made.table), made.live),
                *(made.checkpoint.history_id, made.checkpoint.position, made.checkpoint.event_id),
                *(made.epoch, made.stopped, encode_moment(made.recorded_at), made.barrier, made.slices_next),
                encode_moment(made.kept_until),
            )
            for made in slices
        ],
    )


def split_generation(connection: sqlite3.Connection, name: str, number: int, slices: int | None) -> bool:
    """Split a generation into another number of slices, if all are at one place; see the port."""
    found = read_generations(connection, name, number)
    changed = split(found, slices) if found else found
    if len(changed) != len(found):
        connection.execute("DELETE FROM diptych_generations WHERE name = ? AND number = ?", (name, number))
        _insert(connection, changed)
    elif changed != found:
        connection.executemany(
            """UPDATE diptych_generations SET epoch = ?, barrier = ?, slices_next = ?
            WHERE name = ? AND number = ? AND slice = ?""",
            [(each.epoch, each.barrier, each.slices_next, *each.lease_key) for each in changed],
        )
    return not changed or changed[0].barrier is None


def switch(connection: sqlite3.Connection, name: str, number: int, keep_s: float) -> bool:
    """Let a generation answer, keep the one that did, and drop the others; see the port."""
    builds = _builds(connection, name)
    chosen = builds.pop(number, None)
    if chosen is None or chosen[0].live:
        return chosen is not None
    current = next((found for found in builds.values() if found[0].live), None)
    if current is not None and not reaches(chosen, current):
        return False
    if current is not None and keep_s > 0:
        del builds[current[0].number]
        _hide(connection, current[0])
        _set_states(connection, kept(current, SystemClock().now() + dt.timedelta(seconds=keep_s)))
    for other in builds:
        drop_generation(connection, name, other)
    _show(connection, chosen[0])
    return True


def drop_overdue(connection: sqlite3.Connection) -> None:
    """Remove what was kept until now; see the port."""
    overdue = connection.execute(
        "SELECT name, number FROM diptych_generations WHERE kept_until <= ? AND slice = 0",
        (encode_moment(SystemClock().now()),),
    ).fetchall()
    for name, number in overdue:
        drop_generation(connection, name, number)


def drop_generation(connection: sqlite3.Connection, name: str, number: int) -> None:
    """Remove a generation with all it holds; no error where it is gone."""
    for build, *_ in _builds(connection, name, number).values():
        if build.live:
            _hide(connection, build)
        if build.table is not None:
            drop_table(connection, StoredTable(build.table, name, number))
    connection.execute("DELETE FROM diptych_generations WHERE name = ? AND number = ?", (name, number))
    connection.execute("DELETE FROM diptych_blocked_keys WHERE name = ? AND number = ?", (name, number))


def _show(connection: sqlite3.Connection, build: Generation) -> None:
    _set_live(connection, build, live=True)
    if build.table is not None:
        show_table(connection, StoredTable(build.table, build.name, build.number))


def _hide(connection: sqlite3.Connection, build: Generation) -> None:
    _set_live(connection, build, live=False)
    if build.table is not None:
        hide_table(connection, StoredTable(build.table, build.name, build.number))


def _set_live(connection: sqlite3.Connection, build: Generation, *, live: bool) -> None:
    connection.execute(
        "UPDATE diptych_generations SET live = ?, kept_until = NULL WHERE name = ? AND number = ?",
        (live, build.name, build.number),
    )


def _set_states(connection: sqlite3.Connection, slices: Iterable[Generation]) -> None:
    """Write until when slices are kept, and their epochs."""
    connection.executemany(
        "UPDATE diptych_generations SET kept_until = ?, epoch = ? WHERE name = ? AND number = ? AND slice = ?",
        [(encode_moment(each.kept_until), each.epoch, *each.lease_key) for each in slices],
    )
