"""The catalog where it is kept: read, changed as a transaction, and watched."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from diptych.adapters.opensearch.catalog import FORMAT, Catalog, packed, unpacked
from diptych.adapters.opensearch.cluster import Cluster
from diptych.adapters.opensearch.row_queries import index_of
from diptych.clock import pause
from diptych.errors import NewerStore, StoreUnavailable
from diptych.read_side.change_count import ChangeCount

__all__ = ["CatalogDocument", "Changed", "Held"]

FOREIGN_CHANGES_EVERY_S = 0.25
"""How often other processes' writes are looked for in OpenSearch while someone waits for a change."""
CATALOG_ATTEMPTS_MAX = 50
"""How often a change of the catalog is tried again where somebody else was quicker."""
CATALOG_PAUSE_S_MAX = 0.05
"""Seconds between two such tries, at most."""

T = TypeVar("T")


class Held(NamedTuple):
    """The catalog as it was read."""

    body: str
    seq_no: int
    primary_term: int


class Changed(NamedTuple):
    """The catalog after a change, and that as it is stored."""

    catalog: Catalog
    held: Held


class CatalogDocument:
    """The one document; and how many of its changes were noticed here."""

    def __init__(self, cluster: Cluster) -> None:
        self.index = f"{cluster.address.prefix}-catalog"
        self.noticed = ChangeCount(cluster.address.shown)
        self._cluster = cluster
        self._path = cluster.document(self.index, "catalog")
        self._turn = asyncio.Lock()
        self._last_change = 0
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make it where there is none.

        Raises:
            NewerStore: a newer Diptych wrote it.
            StoreUnavailable: the cluster cannot be reached, or refuses.
        """
        status, made = await self._cluster.request("PUT", f"/{self.index}", index_of(None), expect=(400,))
        if status == 400 and made["error"]["type"] != "resource_already_exists_exception":
            raise self._cluster.unavailable(f"its catalog cannot be made: {made['error']['reason']}")
        first = {"body": packed(Catalog()), "format": FORMAT, "changes": 0}
        await self._cluster.request("PUT", self._path, first, expect=(409,), op_type="create")
        _, answer = await self._cluster.request("GET", self._path)
        if answer["_source"]["format"] > FORMAT:
            raise NewerStore(self._cluster.address.shown, answer["_source"]["format"], FORMAT)
        self._last_change = answer["_source"]["changes"]

    async def close(self) -> None:
        """Look no more; those who wait hear of it."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        self.noticed.close()

    async def read(self) -> Catalog:
        """The catalog as it is now."""
        found: Catalog = unpacked((await self._held()).body, Catalog)
        return found

    async def now(self) -> dt.datetime:
        """What time it is in the cluster, in whole milliseconds."""
        return await self._cluster.now(self.index)

    async def _held(self) -> Held:
        status, answer = await self._cluster.request("GET", self._path, expect=(404,))
        if status == 404:
            raise self._cluster.unavailable("its catalog is gone: build the read models anew under another prefix")
        self._notice(answer["_source"]["changes"])
        return Held(answer["_source"]["body"], answer["_seq_no"], answer["_primary_term"])

    async def change(self, work: Callable[[Catalog], Awaitable[T]]) -> T:
        """Do work on the catalog as one transaction: again where somebody else has changed it meanwhile."""
        return (await self.change_held(work, None))[0]

    async def change_held(self, work: Callable[[Catalog], Awaitable[T]], held: Held | None) -> tuple[T, Changed]:
        """The same, beginning with the catalog as the caller has it, to save reading it.

        Raises:
            StoreUnavailable: also where an answer was lost; whether the change holds shows when it is read.
        """
        self._cluster.check_open()
        async with self._turn:
            for attempt in range(CATALOG_ATTEMPTS_MAX):
                if attempt:
                    await pause(random.uniform(0, CATALOG_PAUSE_S_MAX))  # noqa: S311 - it only parts those who meet
                held = held or await self._held()
                catalog: Catalog = unpacked(held.body, Catalog)
                answer = await work(catalog)
                stored = await self._store(catalog, held)
                if stored is not None:
                    return answer, Changed(catalog, stored)
                held = None
        raise self._cluster.unavailable(f"others changed its catalog {CATALOG_ATTEMPTS_MAX} times meanwhile")

    async def _store(self, catalog: Catalog, held: Held) -> Held | None:
        """Replace the catalog; None where it is not any more what was held."""
        body = packed(catalog)
        if body == held.body:
            return held
        status, answer = await self._cluster.request(
            "PUT",
            self._path,
            {"body": body, "format": FORMAT, "changes": catalog.changes},
            expect=(409,),
            if_seq_no=held.seq_no,
            if_primary_term=held.primary_term,
        )
        if status == 409:
            return None
        self._notice(catalog.changes)
        return Held(body, answer["_seq_no"], answer["_primary_term"])

    # ── changes ──────────────────────────────────────────────────────────────

    async def wait(self, seen: int, timeout_s: float) -> int:
        """How many changes were noticed, once it is another number than `seen` or the time is over."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="changes in OpenSearch")
        return await self.noticed.wait(seen, timeout_s)

    def _notice(self, changes: int) -> None:
        """Count a change, if this is one, and wake who waits for it."""
        if changes > self._last_change:
            self._last_change = changes
            self.noticed.note()

    async def _look(self) -> None:
        """Look for what other processes have written as long as somebody waits."""
        while True:
            await pause(FOREIGN_CHANGES_EVERY_S)
            if not self.noticed.waiting:
                return
            try:
                _, answer = await self._cluster.request("GET", self._path, _source_includes="changes")
                self._notice(answer["_source"]["changes"])
            except StoreUnavailable:
                self.noticed.wake()  # their own looks at the store say what is wrong
