"""The read store on OpenSearch: one catalog document, and an index of rows for each generation.

OpenSearch has no transactions over several documents and no snapshots. Both are made of what it has, the atomic change
of one document as it was read: see `catalog.py`. A write takes five requests beside reading the catalog:

    take a number ──▶ find what it replaces ──▶ write rows, refresh ──▶ publish: checkpoint and number, in the catalog

Whatever ends between two of them, before the last nothing has happened and after it all has.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from diptych.adapters.opensearch.catalog import Build, Catalog
from diptych.adapters.opensearch.catalog_document import CatalogDocument
from diptych.adapters.opensearch.cluster import Address, Cluster, read_address
from diptych.adapters.opensearch.columns import RowCodec
from diptych.adapters.opensearch.leases import Beats, release
from diptych.adapters.opensearch.notes import Notes
from diptych.adapters.opensearch.read_snapshot import OpenSearchSnapshot
from diptych.adapters.opensearch.removal import Removal
from diptych.adapters.opensearch.row_queries import index_of
from diptych.adapters.opensearch.row_writes import Begun, write_rows
from diptych.messages.unique_id import unique_id
from diptych.read_side.partitions import found_again, kept, reaches, split, taken_up, whole
from diptych.read_side.read_store import (
    Discard,
    Failed,
    Fenced,
    Generation,
    Key,
    Leased,
    LeaseKey,
    Retry,
    Row,
    RowsAsked,
    SliceWrite,
    Table,
    WriteResult,
    Written,
)
from diptych.read_side.snapshot_turns import SnapshotTurns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx2

    from diptych.event_store.position import Place

__all__ = ["OpenSearchReadStore", "connect", "shown"]


def connect(url: str, transport: httpx2.AsyncBaseTransport | None = None) -> OpenSearchReadStore:
    """The store for `opensearch://user:password@host:9200?prefix=diptych`, not opened yet.

    `opensearch+http://` is without TLS; `?ca=` names a file of certificates to trust.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return OpenSearchReadStore(read_address(url), transport)


def shown(url: str) -> str:
    """The URL without its password.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return read_address(url).shown


class OpenSearchReadStore:
    """The read models of one prefix. See the port.

    Args:
        monotonic: seconds, for leases and for how long snapshots can be read.
    """

    def __init__(
        self,
        address: Address,
        transport: httpx2.AsyncBaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = Cluster(address, transport)
        self._monotonic = monotonic
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._turns = SnapshotTurns()
        self._document = CatalogDocument(self._cluster)
        self._notes = Notes(self._cluster, self._document.index)
        self._removal = Removal(self._cluster, self._document, self._notes, self._monotonic)
        self._beats = Beats()

    @property
    def durable(self) -> bool:
        """True: what is acknowledged is on the disks of the cluster."""
        return True

    async def open(self) -> None:
        """Connect, and make the catalog where there is none. See the port."""
        if self._cluster.is_open:
            return
        self._begin_anew()
        self._cluster.open()
        try:
            await self._document.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of all connections; those who wait for a change hear of it."""
        await self._document.close()
        await self._cluster.close()

    # ── generations ──────────────────────────────────────────────────────────

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        catalog = await self._document.read()
        builds = sorted(catalog.builds, key=lambda build: (build.name, build.number))
        return [generation for build in builds for generation in build.generations]

    async def create_generation(
        self,
        name: str,
        fingerprint: str,
        table: Table | None,
        checkpoint: Place,
        *,
        live: bool,
        anew: bool = False,
        slices: int = 1,
    ) -> list[Generation]:
        """Make a generation, or return the one that a racer made. See the port."""

        async def find(catalog: Catalog) -> Build | None:
            slices = {build.number: build.slices for build in catalog.builds if build.name == name}
            same = () if anew else found_again(slices, fingerprint)
            there = catalog.build(name, same[0].number) if same else None
            if there is not None and there.kept_until is not None:
                there.overtake(taken_up(there.slices))
                catalog.changes += 1
            return there

        there = await self._document.change(find)
        if there is not None:
            return there.generations
        index = await self._make_index(name, table)

        async def make(catalog: Catalog) -> Build:
            there = await find(catalog)
            if there is not None:
                return there
            current = catalog.build(name, None)
            if live and current is not None:
                current.set_live(live=False)
            number = catalog.last_numbers[name] = catalog.last_numbers.get(name, 0) + 1
            made = whole(Generation(name, number, fingerprint, None, live, checkpoint), slices)
            build = Build(index, table, made, [None] * slices)
            catalog.builds.append(build)
            catalog.changes += 1
            return build

        build = await self._document.change(make)
        if index and build.index != index:  # somebody else was quicker
            await self._cluster.request("DELETE", f"/{index}", expect=(404,))
        return build.generations

    async def _make_index(self, name: str, table: Table | None) -> str:
        """A new index for the rows of a table; its name says whose they are."""
        if table is None:
            return ""
        plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:100]
        index = f"{self._cluster.address.prefix}-{plain}-{unique_id()}"
        await self._cluster.request("PUT", f"/{index}", index_of(RowCodec(table)))
        return index

    async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        """Let a generation answer, keep the one that did, and drop the others. See the port."""
        until = await self._document.now() + dt.timedelta(milliseconds=int(keep_s * 1000)) if keep_s > 0 else None

        async def work(catalog: Catalog) -> bool:
            chosen, current = catalog.build(name, number), catalog.build(name, None)
            if chosen is None or chosen is current:
                return chosen is not None
            if current is not None and not reaches(chosen.slices, current.slices):
                return False
            for build in [build for build in catalog.builds if build.name == name and build is not chosen]:
                if build is current and until is not None:
                    build.overtake(kept(build.slices, until))
                else:
                    await self._drop(catalog, build)
            chosen.set_live(live=True)
            catalog.changes += 1
            return True

        return await self._document.change(work)

    async def drop_overdue(self) -> None:
        """Remove what was kept until now. See the port."""
        ends = [build.kept_until for build in (await self._document.read()).builds if build.kept_until is not None]
        if not ends:
            return
        now = await self._document.now()

        async def work(catalog: Catalog) -> None:
            for build in catalog.builds[:]:
                if build.kept_until is not None and build.kept_until <= now:
                    await self._drop(catalog, build)
                    catalog.changes += 1

        if min(ends) <= now:
            await self._document.change(work)

    async def split(self, name: str, number: int, slices: int | None = None) -> bool:
        """Split a generation into another number of slices, if all are at one place. See the port."""

        async def work(catalog: Catalog) -> bool:
            build = catalog.build(name, number)
            if build is None:
                return True
            changed = split(build.slices, slices)
            if changed != build.slices:
                if len(changed) != len(build.slices):
                    build.holders = [None] * len(changed)
                build.overtake(changed)
                catalog.changes += 1
            return changed[0].barrier is None

        return await self._document.change(work)

    async def drop_generation(self, name: str, number: int) -> None:
        """Remove a generation, if it is there. See the port."""

        async def work(catalog: Catalog) -> None:
            build = catalog.build(name, number)
            if build is not None:
                await self._drop(catalog, build)
                catalog.changes += 1

        await self._document.change(work)

    async def _drop(self, catalog: Catalog, build: Build) -> None:
        """Take a generation out. What it is made of is removed when no snapshot shows it any more."""
        catalog.builds.remove(build)
        catalog.unused += [build.index] if build.index else []
        catalog.spent += [found.trace for found in await self._notes.blocked(build) if found.trace]
        catalog.spent += [build.blocked] if build.blocked else []

    # ── writes ───────────────────────────────────────────────────────────────

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        """Apply each write all or nothing, and publish all that hold at once. See the port."""
        self._cluster.check_open()
        await self._removal.look()

        async def begin(catalog: Catalog) -> dict[int, Begun | Fenced | Failed]:
            return {n: answer for n, write in enumerate(writes) if (answer := _begin(catalog, write)) is not None}

        began, (catalog, held) = await self._document.change_held(begin, None)
        begun = {n: each for n, each in began.items() if isinstance(each, Begun)}
        refused = await write_rows(self._cluster, catalog, list(begun.values()))

        async def publish(catalog: Catalog) -> list[WriteResult]:
            results: list[WriteResult] = []
            for n, write in enumerate(writes):
                answer = began.get(n)
                if isinstance(answer, (Fenced, Failed)):
                    results.append(answer)
                else:
                    results.append(await self._publish(catalog, write, answer, refused))
            catalog.changes += any(isinstance(result, Written) for result in results)
            return results

        return (await self._document.change_held(publish, held))[0]

    async def _publish(
        self, catalog: Catalog, write: SliceWrite, begun: Begun | None, refused: dict[int, Fenced | Failed]
    ) -> WriteResult:
        """Let a write show, with its checkpoint, if nobody has overtaken it and nothing was refused."""
        build = _unfenced(catalog, write)
        if build is None:
            return Fenced()
        if begun is not None:
            entry = (begun.number, write.generation.slice)
            if entry not in build.writing:
                return Fenced()
            build.writing.remove(entry)
            if begun.number in refused:
                build.void.append(begun.number)
                return refused[begun.number]
            assert build.table is not None
            build.long = sorted({*build.long, *RowCodec(build.table).long_columns(write.upserts)})
        await self._notes.apply(catalog, build, write)
        stored = build.slices[write.generation.slice]
        build.slices[stored.slice] = replace(
            stored,
            checkpoint=write.checkpoint,
            stopped=write.stopped,
            epoch=stored.epoch + write.by_hand,
            recorded_at=write.recorded_at or stored.recorded_at,
        )
        return Written(build.generations[stored.slice])

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key."""
        return (await self._notes.decisions(await self._document.read(), name)).discards

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key, the latest first."""
        made = (await self._notes.decisions(await self._document.read(), name)).retries
        return [retry for retry in reversed(made) if retry.key == key][:limit]

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace of a blocked key."""
        build = (await self._document.read()).build(name, number)
        return "" if build is None else await self._notes.trace(build, key)

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Ask for the lease of generations, and renew what is held. See the port, and `leases.py` for whose clock."""

        async def work(catalog: Catalog) -> Leased:
            return self._beats.lease(catalog, worker, wanted, ttl_s, self._monotonic())

        return await self._document.change(work)

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Give up leases at once. See the port."""

        async def work(catalog: Catalog) -> None:
            release(catalog, worker, keys)

        await self._document.change(work)

    # ── reads ────────────────────────────────────────────────────────────────

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from. See the port."""
        snapshot = await self._snapshot()
        return [await snapshot.get_many(of.name, keys, of.number) for of, keys in asked]

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[OpenSearchSnapshot, None]:
        """A view of this moment. See the port."""
        self._cluster.check_open()
        await self._turns.take()
        try:
            yield await self._snapshot()
        finally:
            self._turns.give_back()

    async def _snapshot(self) -> OpenSearchSnapshot:
        since = self._monotonic()
        return OpenSearchSnapshot(
            self._cluster, self._notes, await self._document.read(), lambda: self._monotonic() - since
        )

    @property
    def changes(self) -> int:
        """How many changes anyone noticed."""
        self._cluster.check_open()
        return self._document.noticed.count

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`. See the port."""
        self._cluster.check_open()
        return await self._document.wait(seen, timeout_s)


def _begin(catalog: Catalog, write: SliceWrite) -> Begun | Fenced | Failed | None:
    """The number of a write, or why it has none; None where it needs none, since no row changes."""
    build = _unfenced(catalog, write)
    if build is None:
        return Fenced()
    codec = None if build.table is None else RowCodec(build.table)
    for row in write.upserts:
        reason = "it has no table" if codec is None else codec.refusal(row)
        if reason is not None:
            return Failed(f"{build.name}: {reason}")
    if codec is None or not (write.upserts or write.deletes):
        return None
    slice = write.generation.slice
    build.give_up(slice)
    number = catalog.take_number()
    build.writing.append((number, slice))
    return Begun(number, build, write)


def _unfenced(catalog: Catalog, write: SliceWrite) -> Build | None:
    """The generation that a write is about; None where its slice was moved on by somebody else, or is gone."""
    expected = write.generation
    build = catalog.build(expected.name, expected.number)
    if build is None or expected.slice >= len(build.slices):
        return None
    stored = build.slices[expected.slice]
    return build if (stored.checkpoint, stored.epoch) == (expected.checkpoint, expected.epoch) else None
