"""Writes of slices, as the script that applies them takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from diptych.adapters.valkey.catalog import build_name, place_text, rest_text
from diptych.adapters.valkey.rows import TableRows, table_rows
from diptych.read_side.read_store import Failed, Fenced, Generation, SliceWrite, WriteResult, Written
from diptych.read_side.row_refusal import row_refusal

__all__ = ["SCRIPT_ROWS_MAX", "Prepared", "batches", "written"]

SCRIPT_ROWS_MAX = 5_000
"""Rows that are changed by one script, during which the server does nothing else; those of one slice stay together."""

_encode = msgspec.json.encode


class Prepared(NamedTuple):
    """A write, made ready.

    Attributes:
        write: what was asked for.
        changed: the slice as it is to be.
        texts: for the script; none where it is refused.
        refusal: why nothing can be done.
    """

    write: SliceWrite
    changed: Generation
    texts: Sequence[bytes | None]
    refusal: str | None


def batches(writes: Sequence[SliceWrite]) -> Iterator[list[Prepared]]:
    """The writes, in their order, as many together as one script takes."""
    batch: list[Prepared] = []
    rows = 0
    for write in writes:
        count = len(write.upserts) + len(write.deletes)
        if batch and rows + count > SCRIPT_ROWS_MAX:
            yield batch
            batch, rows = [], 0
        batch.append(_prepared(write))
        rows += count
    if batch:
        yield batch


def written(batch: Sequence[Prepared], answers: Sequence[bytes | None]) -> list[WriteResult]:
    """What became of each write, from what the script gives for those that were not refused."""
    given = iter(answers)
    return [Failed(each.refusal) if each.refusal is not None else _result(each.changed, next(given)) for each in batch]


def _result(changed: Generation, live: bytes | None) -> WriteResult:
    if live is None:
        return Fenced()
    is_live = int(live) == changed.number
    return Written(replace(changed, live=is_live, kept_until=None if is_live else changed.kept_until))


def _prepared(write: SliceWrite) -> Prepared:
    seen = write.generation
    changed = replace(
        seen,
        checkpoint=write.checkpoint,
        epoch=seen.epoch + write.by_hand,
        stopped=_storable(write.stopped),
        recorded_at=write.recorded_at or seen.recorded_at,
    )
    refusal = _refusal(write)
    return Prepared(write, changed, () if refusal else list(_texts(write, changed)), refusal)


def _refusal(write: SliceWrite) -> str | None:
    table, name = write.generation.table, write.generation.name
    if table is None:
        return f"{name}: it has no table" if write.upserts else None
    reason = next((reason for row in write.upserts if (reason := row_refusal(table, row)) is not None), None)
    return None if reason is None else f"{name}: {reason}"


def _texts(write: SliceWrite, changed: Generation) -> Iterator[bytes | None]:
    seen = write.generation
    yield from (seen.name.encode(), build_name(seen.name, seen.number), b"%d" % seen.slice)
    yield from (seen.fingerprint.encode(), place_text(seen.checkpoint), b"%d" % seen.epoch)
    yield from (place_text(changed.checkpoint), b"%d" % changed.epoch, rest_text(changed))
    if seen.table is None:
        yield from (b"0", b"0")
    else:
        yield from _row_texts(write, table_rows(seen.table))
    yield b"%d" % len(write.unblock)
    yield from map(str.encode, write.unblock)
    yield b"%d" % len(write.block)
    for blocked in write.block:
        kept = replace(blocked, error=_storable(blocked.error), trace="")
        yield from (blocked.key.encode(), _encode(kept), _storable(blocked.trace).encode())
    yield b"%d" % len(write.discard)
    for discard in write.discard:
        yield from (_encode((discard.position, discard.key)), _encode(discard))
    yield b"%d" % len(write.retried)
    for retry in write.retried:
        yield from (retry.key.encode(), _encode(retry))


def _row_texts(write: SliceWrite, table: TableRows) -> Iterator[bytes]:
    deletes = [table.stored_key(key) for key in write.deletes if table.may_have_row(key)]
    yield b"%d" % len(deletes)
    yield from deletes
    yield b"%d" % len(write.upserts)
    for row in write.upserts:
        yield from table.stored(row)


def _storable(text: str) -> str:
    """Text of an error may hold anything, and must never be why a key cannot be blocked."""
    return text.encode("utf-8", "backslashreplace").decode()
