"""What people decide by hand and what is blocked: notes, which are replaced and never changed.

A note is a document that the catalog names; a change of it is another document, and the catalog then names that one.
So it takes effect with the change of the catalog that names it, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from diptych.adapters.opensearch.catalog import Build, Catalog, packed, unpacked
from diptych.adapters.opensearch.cluster import Cluster
from diptych.messages.unique_id import unique_id
from diptych.read_side.read_store import BlockedKey, Discard, Retry, SliceWrite

__all__ = ["Decisions", "KeptBlocked", "Notes"]

NOTES_CACHED = 64
"""Notes that a process keeps at hand."""

T = TypeVar("T")


class KeptBlocked(msgspec.Struct, frozen=True):
    """A blocked key without its trace, and the note of that; empty: it has none."""

    key: BlockedKey
    trace: str


class Decisions(msgspec.Struct, frozen=True):
    """What was decided by hand about one projection."""

    discards: list[Discard] = []
    retries: list[Retry] = []


class Notes:
    """The notes of one store."""

    def __init__(self, cluster: Cluster, index: str) -> None:
        self._cluster = cluster
        self._index = index
        self._at_hand: dict[str, str] = {}

    async def blocked(self, build: Build) -> list[KeptBlocked]:
        """The blocked keys of a generation."""
        return await self._read(build.blocked, list[KeptBlocked]) if build.blocked else []

    async def decisions(self, catalog: Catalog, name: str) -> Decisions:
        """What was decided about a projection."""
        note = catalog.decisions.get(name)
        return Decisions() if note is None else await self._read(note, Decisions)

    async def trace(self, build: Build, key: str) -> str:
        """The stack trace of a blocked key."""
        note = next((kept.trace for kept in await self.blocked(build) if kept.key.key == key), "")
        return await self._read(note, str) if note else ""

    async def apply(self, catalog: Catalog, build: Build, write: SliceWrite) -> None:
        """Note what a write says of blocked keys and decisions; the catalog names it."""
        if write.block or write.unblock:
            await self._block(catalog, build, write)
        if write.discard or write.retried:
            await self._decide(catalog, build.name, write)

    async def _block(self, catalog: Catalog, build: Build, write: SliceWrite) -> None:
        old = {kept.key.key: kept for kept in await self.blocked(build)}
        changed = {found.key for found in write.block}.union(write.unblock)
        kept = [found for key, found in old.items() if key not in changed]
        for found in write.block:
            trace = await self._write(found.trace) if found.trace else ""
            kept.append(KeptBlocked(replace(found, trace=""), trace))
        catalog.spent += [found.trace for key, found in old.items() if key in changed and found.trace]
        catalog.spent += [build.blocked] if build.blocked else []
        build.blocked = await self._write(kept) if kept else ""

    async def _decide(self, catalog: Catalog, name: str, write: SliceWrite) -> None:
        old = await self.decisions(catalog, name)
        found = {(discard.position, discard.key): discard for discard in (*write.discard[::-1], *old.discards)}
        discards = [discard for _, discard in sorted(found.items(), key=lambda entry: entry[0])]
        catalog.spent += [catalog.decisions[name]] if name in catalog.decisions else []
        catalog.decisions[name] = await self._write(Decisions(discards, [*old.retries, *write.retried]))

    async def _write(self, value: Any) -> str:
        note, text = f"note-{unique_id()}", packed(value)
        await self._cluster.request("PUT", self._cluster.document(self._index, note), {"body": text})
        return self._keep(note, text)

    async def _read(self, note: str, kind: type[T]) -> T:
        text = self._at_hand.get(note)
        if text is None:
            _, answer = await self._cluster.request("GET", self._cluster.document(self._index, note))
            text = answer["_source"]["body"]
            self._keep(note, text)
        found: T = unpacked(text, kind)
        return found

    def _keep(self, note: str, text: str) -> str:
        while len(self._at_hand) >= NOTES_CACHED:
            del self._at_hand[next(iter(self._at_hand))]
        self._at_hand[note] = text
        return note

    async def remove(self, spent: Sequence[str]) -> None:
        """Delete notes that nobody finds any more."""
        for note in spent:
            await self._cluster.request("DELETE", self._cluster.document(self._index, note), expect=(404,))
