"""Removes what nobody finds any more: replaced rows, dropped generations, notes that others have followed.

Not before every snapshot that may show it is too old to be read. No clocks are compared and no snapshots registered: a
process remembers the catalog of a moment, and what had ended by then is shown by older snapshots only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from diptych.adapters.opensearch.catalog import Build, Catalog
from diptych.adapters.opensearch.catalog_document import CatalogDocument
from diptych.adapters.opensearch.cluster import Cluster
from diptych.adapters.opensearch.notes import Notes
from diptych.adapters.opensearch.read_snapshot import SNAPSHOT_S_MAX
from diptych.adapters.opensearch.row_queries import ended
from diptych.adapters.opensearch.row_writes import remove_ended, settle

__all__ = ["Removal"]

REMOVED_AFTER_S = 2 * SNAPSHOT_S_MAX
"""Seconds that replaced rows and dropped generations are kept in OpenSearch for snapshots, at least."""
VOID_MAX = 1_000
"""Void writes of a generation in OpenSearch that are remembered; past it, the older half is taken out of its rows."""


class _Sample(NamedTuple):
    """The catalog at a moment, or somewhat later."""

    catalog: Catalog
    at: float


class Removal:
    """Looks now and then, as part of a write."""

    def __init__(self, cluster: Cluster, document: CatalogDocument, notes: Notes, now: Callable[[], float]) -> None:
        """`now` tells seconds, by the clock that snapshots tell their age by."""
        self._cluster = cluster
        self._document = document
        self._notes = notes
        self._now = now
        self._sample: _Sample | None = None

    async def look(self) -> None:
        """If the last time is long enough ago: remove what had ended by then, and remember what has ended by now."""
        now, old = self._now(), self._sample
        if old is None or now - old.at > REMOVED_AFTER_S:
            self._sample = _Sample(await self._document.read(), now)
            if old is not None:
                await self._remove(old.catalog)

    async def _remove(self, old: Catalog) -> None:
        for index in old.unused:
            await self._cluster.request("DELETE", f"/{index}", expect=(404,))
        await self._notes.remove(old.spent)
        for build in old.builds:
            if build.index:
                await self._remove_rows(build, old.last)

        async def forget(catalog: Catalog) -> None:
            catalog.unused = [index for index in catalog.unused if index not in old.unused]
            catalog.spent = [note for note in catalog.spent if note not in old.spent]

        if old.unused or old.spent:
            await self._document.change(forget)

    async def _remove_rows(self, build: Build, last: int) -> None:
        never = [{"terms": {"from": build.void}}] if build.void else []
        query = {"bool": {"should": [ended(build, last), *never], "minimum_should_match": 1}}
        await remove_ended(self._cluster, build.index, query)
        if len(build.void) > VOID_MAX:
            await self._forget(build, build.void[: len(build.void) // 2])

    async def _forget(self, build: Build, void: Sequence[int]) -> None:
        await settle(self._cluster, build.index, void)

        async def forget(catalog: Catalog) -> None:
            current = catalog.build(build.name, build.number)
            if current is not None:
                current.void = [number for number in current.void if number not in void]

        await self._document.change(forget)
