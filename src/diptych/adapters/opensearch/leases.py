"""Leases in the catalog. A worker is given up once nothing was seen of it for its time.

No clock tells that to all: each node of a cluster has its own, and those of workers are never compared. Each worker
judges by its own how long ago it first saw another's last sign. So a lease may hold longer than its time, by as much as
the next one needs to ask, and never shorter.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from msgspec.structs import replace

from diptych.adapters.opensearch.catalog import Build, Catalog, Worker
from diptych.read_side.lease_shares import deal
from diptych.read_side.read_store import Leased, LeaseKey

__all__ = ["Beats", "release"]


class _Beat(NamedTuple):
    """A worker's last sign, and when it was first seen here."""

    beat: int
    at: float


class Beats:
    """When this process has seen the last sign of each worker."""

    def __init__(self) -> None:
        self._seen: dict[str, _Beat] = {}

    def lease(self, catalog: Catalog, worker: str, wanted: Collection[LeaseKey], ttl_s: float, now: float) -> Leased:
        """Deal out what is free. See the port; `now` is of this process's own clock, in seconds."""
        alive = {name: found for name, found in catalog.workers.items() if self._is_alive(name, found, now)}
        catalog.workers = {**alive, worker: Worker(sorted(wanted), catalog.take_number(), ttl_s)}
        holders = _holders(catalog)
        dealt = deal(worker, {name: found.wanted for name, found in catalog.workers.items()}, holders)
        _give_up(catalog, dealt.given_up)
        for key in dealt.taken:
            _change_holder(catalog, key, worker, overtaken=holders[key] not in (None, worker))
        epochs = {key: _build(catalog, key).slices[key[2]].epoch for key in dealt.kept | dealt.taken}
        self._seen = {name: self._beat(name, found, now) for name, found in catalog.workers.items()}
        return Leased(epochs, dealt.surplus, frozenset(wanted).difference(holders))

    def _beat(self, name: str, worker: Worker, now: float) -> _Beat:
        seen = self._seen.get(name)
        return seen if seen is not None and seen.beat == worker.beat else _Beat(worker.beat, now)

    def _is_alive(self, name: str, worker: Worker, now: float) -> bool:
        seen = self._seen.get(name)
        return seen is None or seen.beat != worker.beat or now - seen.at < worker.ttl_s


def release(catalog: Catalog, worker: str, keys: Collection[LeaseKey] | None) -> None:
    """Give up leases of a worker. See the port."""
    if keys is None:
        catalog.workers.pop(worker, None)
    mine = [key for key, holder in _holders(catalog).items() if holder == worker]
    _give_up(catalog, [key for key in mine if keys is None or key in keys])


def _holders(catalog: Catalog) -> dict[LeaseKey, str | None]:
    return {
        slice.lease_key: holder
        for build in catalog.builds
        for slice, holder in zip(build.slices, build.holders, strict=True)
    }


def _build(catalog: Catalog, key: LeaseKey) -> Build:
    build = catalog.build(key[0], key[1])
    assert build is not None
    return build


def _give_up(catalog: Catalog, keys: Collection[LeaseKey]) -> None:
    for key in keys:
        _change_holder(catalog, key, None, overtaken=True)
    catalog.changes += bool(keys)


def _change_holder(catalog: Catalog, key: LeaseKey, worker: str | None, *, overtaken: bool) -> None:
    build = _build(catalog, key)
    build.holders[key[2]] = worker
    if overtaken:
        build.give_up(key[2])
        build.slices[key[2]] = replace(build.slices[key[2]], epoch=build.slices[key[2]].epoch + 1)
