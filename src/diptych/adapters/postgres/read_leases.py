"""Leases of generations in PostgreSQL: who works on what, agreed upon in the catalog.

Whoever asks locks the table of workers, so that one asks after the other and all compute from the same facts. Time is
the server's, which all share. Leases are facts like any other: a lock of the server's would be lost with a connection,
and with every transaction behind a pooler.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from diptych.adapters.postgres.read_catalog import Catalog
from diptych.read_side.lease_shares import deal
from diptych.read_side.read_store import Leased, LeaseKey

if TYPE_CHECKING:
    from diptych.adapters.postgres.connection import Link

__all__ = ["lease", "release"]

_decoder = msgspec.json.Decoder(list[tuple[str, int, int]])


class _Facts(NamedTuple):
    """What is in the catalog: which workers are alive and what they want; each generation's epoch and last holder."""

    wants: dict[str, frozenset[LeaseKey]]
    epochs: dict[LeaseKey, int]
    last_holders: dict[LeaseKey, str | None]


async def lease(
    link: Link, catalog: Catalog, worker: str, wanted: Collection[LeaseKey], ttl_s: float
) -> tuple[Leased, bool]:
    """Ask for leases, inside a transaction; see the port. Also whether something was given up, which wakes others."""
    await _lock(link, catalog)
    facts = await _facts(link, catalog)
    wants = {**facts.wants, worker: frozenset(wanted)}
    dealt = deal(worker, wants, facts.last_holders)
    await _note_worker(link, catalog, worker, wanted, ttl_s)
    await _give_up(link, catalog, worker, dealt.given_up)
    taken = await _take(link, catalog, worker, dealt.taken)
    epochs = {key: facts.epochs[key] for key in dealt.kept} | taken
    return Leased(epochs, dealt.surplus, frozenset(wanted) - facts.epochs.keys()), bool(dealt.given_up)


async def release(link: Link, catalog: Catalog, worker: str, keys: Collection[LeaseKey] | None) -> None:
    """Give up leases, inside a transaction; see the port."""
    await _lock(link, catalog)
    if keys is None:
        await link.execute(f"DELETE FROM {catalog.schema}.diptych_workers WHERE name = $1", worker)
        keys = [key for key, holder in (await _facts(link, catalog)).last_holders.items() if holder == worker]
    await _give_up(link, catalog, worker, keys)


async def _lock(link: Link, catalog: Catalog) -> None:
    await link.execute(f"LOCK TABLE {catalog.schema}.diptych_workers IN SHARE ROW EXCLUSIVE MODE")


async def _facts(link: Link, catalog: Catalog) -> _Facts:
    """The facts; workers whose time is over are forgotten."""
    schema = catalog.schema
    await link.execute(f"DELETE FROM {schema}.diptych_workers WHERE alive_until <= clock_timestamp()")
    workers = await link.fetch(f"SELECT name, wanted FROM {schema}.diptych_workers")
    rows = await link.fetch(f"SELECT name, number, slice, epoch, last_holder FROM {schema}.diptych_generations")
    return _Facts(
        {name: frozenset(_decoder.decode(wanted)) for name, wanted in workers},
        {(name, number, slice): epoch for name, number, slice, epoch, _ in rows},
        {(name, number, slice): holder for name, number, slice, _, holder in rows},
    )


async def _note_worker(link: Link, catalog: Catalog, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> None:
    await link.execute(
        f"INSERT INTO {catalog.schema}.diptych_workers (name, wanted, alive_until) "
        "VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second') ON CONFLICT (name) "
        "DO UPDATE SET wanted = excluded.wanted, alive_until = excluded.alive_until",
        *(worker, msgspec.json.encode(sorted(wanted)).decode(), float(ttl_s)),
    )


async def _take(link: Link, catalog: Catalog, worker: str, keys: Iterable[LeaseKey]) -> dict[LeaseKey, int]:
    """The epochs of what is taken, raised where another did not release it; what is gone meanwhile is left out."""
    statement = (
        f"UPDATE {catalog.schema}.diptych_generations "
        "SET epoch = epoch + (last_holder IS NOT NULL AND last_holder <> $1)::integer, last_holder = $1 "
        "WHERE name = $2 AND number = $3 AND slice = $4 RETURNING epoch"
    )
    found = [(key, await link.fetchval(statement, worker, *key)) for key in sorted(keys)]
    return {key: epoch for key, epoch in found if epoch is not None}


async def _give_up(link: Link, catalog: Catalog, worker: str, keys: Collection[LeaseKey]) -> None:
    """Fence what a worker lets go of, and tell the others."""
    statement = (
        f"UPDATE {catalog.schema}.diptych_generations SET epoch = epoch + 1, last_holder = NULL "
        "WHERE name = $1 AND number = $2 AND slice = $3 AND last_holder = $4"
    )
    for key in sorted(keys):
        await link.execute(statement, *key, worker)
    if keys:
        await catalog.notify(link)
