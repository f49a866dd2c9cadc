"""The read store on Valkey: rows in the memory of a server that many processes share, for answers with low latency.

A row is a hash; sorted sets hold the keys, and the values of what is indexed, in order. What a write changes, it
changes with the checkpoint, in one script, which nothing else runs beside. What the server forgets when it ends without
having written it down is folded again: checkpoint and rows go together, and come back together.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec

from diptych.adapters.valkey import catalog as changes_of
from diptych.adapters.valkey.catalog import Catalog, Change
from diptych.adapters.valkey.changes import Changes
from diptych.adapters.valkey.connection import Connections, parse_url
from diptych.adapters.valkey.framing import Taken
from diptych.adapters.valkey.read_snapshot import PAGE_ROWS, Answer, ValkeyReadSnapshot
from diptych.adapters.valkey.read_writes import batches, written
from diptych.adapters.valkey.rows import table_rows
from diptych.adapters.valkey.scripts import CATALOG, CHANGE, READ, SWEEP, WRITE
from diptych.clock import pause
from diptych.errors import NewerStore, StoreClosed, StoreUnavailable
from diptych.read_side.partitions import found_again
from diptych.read_side.read_store import (
    Discard,
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
)
from diptych.read_side.snapshot_turns import SnapshotTurns

if TYPE_CHECKING:
    from diptych.event_store.position import Place

__all__ = ["ValkeyReadStore", "connect", "shown"]

SNAPSHOT_S_MAX = 120
"""Seconds for which the server keeps what a snapshot shows; a query handler may take less."""
ENDED_S = 0.05
"""Seconds after which the server is told of snapshots that are over, unless it is asked something before."""
CHANGES_TRIED_MAX = 100
"""Times that a change of the catalog is tried again since others have changed it meanwhile."""
SWEEPS_MAX = 20
"""Goes at removing what was dropped, before others have their turn."""
FORMAT = 1
"""The version of how all of this is kept."""

T = TypeVar("T")


def connect(url: str) -> ValkeyReadStore:
    """The store for `valkey://user:password@host:port/database?prefix=shop`, not opened yet.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return ValkeyReadStore(url)


def shown(url: str) -> str:
    """The URL without its password.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return parse_url(url).shown


class ValkeyReadStore:
    """Read models on one server, under one prefix. See the port."""

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        self._origin = secrets.token_hex(8).encode()
        self._connections: Connections | None = None
        self._changes: Changes | None = None
        self._turns = SnapshotTurns()
        self._tables: dict[str, Table] = {}
        self._snapshots = 0
        self._ended: list[bytes] = []
        self._ending: asyncio.Task[None] | None = None
        self._unswept = True

    @property
    def durable(self) -> bool:
        """True."""
        return True

    async def open(self) -> None:
        """Connect, and look whether the server is one that rows may be kept in. See the port.

        Raises:
            ConfigurationError: it may throw rows away (`maxmemory-policy`), is a cluster, or too old.
        """
        if self._connections is not None:
            return
        connections = Connections(self._url)
        try:
            await connections.open()
            about = f"{self._url.prefix}:store"
            await connections.command("HSETNX", about, "run", await connections.run_id())
            await connections.command("HSETNX", about, "format", FORMAT)
            found = int(await connections.command("HGET", about, "format"))
            if found > FORMAT:
                raise NewerStore(f"the read store {self._url.shown}", found, FORMAT)
            changes = Changes(connections, self._origin, self._sweep)
            await changes.open()
        except BaseException:
            await connections.close()
            raise
        self._connections, self._changes, self._turns = connections, changes, SnapshotTurns()

    async def close(self) -> None:
        """Let go of the server; those who wait hear of it."""
        connections, self._connections = self._connections, None
        changes, self._changes = self._changes, None
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.cancel()
            await asyncio.wait([ending])
        if changes is not None:
            await changes.close()
        if connections is not None:
            await connections.close()

    def _opened(self) -> Connections:
        if self._connections is None:
            raise StoreClosed(f"the read store {self._url.shown} is not open")
        return self._connections

    def _noticed(self) -> Changes:
        if self._changes is None:
            raise StoreClosed(f"the read store {self._url.shown} is not open")
        return self._changes

    # ── generations ──────────────────────────────────────────────────────────

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        return list((await self._catalog()).slices.values())

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

        def make(catalog: Catalog) -> tuple[list[Generation], Change | None]:
            found = found_again(catalog.of(name), fingerprint)
            if found and not anew:
                return (list(found), None) if found[0].kept_until is None else changes_of.taking_up(found)
            return changes_of.creation(catalog, name, fingerprint, table, checkpoint, live=live, slices=slices)

        return await self._change(make, name)

    async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        """Let a generation answer, keep the one that did, and drop the others. See the port."""
        self._unswept = True
        return await self._change(lambda catalog: changes_of.switch(catalog, name, number, keep_s), name)

    async def drop_overdue(self) -> None:
        """Remove what was kept until now; rows go a little later."""
        self._unswept = True
        await self._change(lambda catalog: (None, changes_of.overdue(catalog)))

    async def split(self, name: str, number: int, slices: int | None = None) -> bool:
        """Split a generation into another number of slices, if all are at one place. See the port."""
        return await self._change(lambda catalog: changes_of.splitting(catalog, name, number, slices), name)

    async def drop_generation(self, name: str, number: int) -> None:
        """Remove a generation, if it is there; its rows go a little later."""
        self._unswept = True
        await self._change(lambda catalog: (None, changes_of.drop(catalog, name, number)), name)

    async def _catalog(self, name: str | None = None) -> Catalog:
        return Catalog(await self._opened().run(CATALOG, [None if name is None else name.encode()]))

    async def _change(self, change_of: Callable[[Catalog], tuple[T, Change | None]], name: str | None = None) -> T:
        """Change the catalog as it is now; of one name, or all of it."""
        connections = self._opened()
        for _ in range(CHANGES_TRIED_MAX):
            catalog = await self._catalog(name)
            result, change = change_of(catalog)
            if change is None:
                return result
            (done,) = await connections.run(CHANGE, change.arguments(catalog.version, self._origin))
            if done is not None:
                if change.tell:
                    self._tell()
                return result
        raise StoreUnavailable(
            f"the read store {self._url.shown}: others changed it CHANGES_TRIED_MAX={CHANGES_TRIED_MAX} times while "
            "this was tried; nothing was done, try again"
        )

    def _tell(self) -> None:
        if self._changes is not None:
            self._changes.noticed.note()

    async def _sweep(self) -> None:
        """Remove rows of what was dropped, some at once, as far as no snapshot shows them."""
        connections = self._connections
        if connections is None or not self._unswept:
            return
        for _ in range(SWEEPS_MAX):
            (left,) = await connections.run(SWEEP, ())
            if left != b"1":
                self._unswept = left is not None
                return

    # ── writes ───────────────────────────────────────────────────────────────

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        """Apply each write all or nothing, all in one script unless there are too many rows. See the port."""
        connections = self._opened()
        results: list[WriteResult] = []
        for batch in batches(writes):
            texts = [text for each in batch for text in each.texts]
            run = connections.run_durably if any(each.write.by_hand for each in batch) else connections.run
            count = b"%d" % sum(each.refusal is None for each in batch)
            results += written(batch, await run(WRITE, [self._origin, count, *texts]) if texts else [])
            self._tell()
        return results

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key."""
        found = await self._opened().command("HVALS", f"{self._url.prefix}:discards:{name}")
        discards = [msgspec.json.decode(text, type=Discard) for text in found]
        return sorted(discards, key=lambda discard: (discard.position, discard.key))

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key, the latest first."""
        found = await self._opened().command("LRANGE", f"{self._url.prefix}:retries:{name}:{key}", -limit, -1)
        return [msgspec.json.decode(text, type=Retry) for text in reversed(found)]

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace of a blocked key."""
        found = await self._opened().command("HGET", f"{self._url.prefix}:traces:{name}:{number}", key)
        return "" if found is None else bytes(found).decode()

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Ask for the lease of generations, and renew what is held. See the port."""
        run = await self._opened().run_id()
        return await self._change(lambda catalog: changes_of.lease(catalog, worker, wanted, ttl_s, run))

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Give up leases at once. See the port."""
        await self._change(lambda catalog: (None, changes_of.release(catalog, worker, keys)))

    # ── reads ────────────────────────────────────────────────────────────────

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from. See the port."""
        return [await self._load(of, keys) for of, keys in asked]

    async def _load(self, of: Generation, keys: Sequence[Key]) -> dict[Key, Row]:
        connections = self._opened()
        if of.table is None:
            return {}
        table = table_rows(of.table)
        given = {table.stored_key(key): tuple(key) for key in keys if table.may_have_row(key)}
        stored, found = list(given), dict[Key, Row]()
        for begin in range(0, len(stored), PAGE_ROWS):
            page = stored[begin : begin + PAGE_ROWS]
            texts = [b"rows", b"%d" % len(page), *page]
            answer = await self._read(connections, None, of.name, b"%d" % of.number, texts)
            for key in page:
                answer.found.text()
                fields = answer.found.list()
                if fields:
                    found[given[key]] = table.row(fields)
        return found

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[ValkeyReadSnapshot, None]:
        """A view of the moment of its first read. See the port."""
        connections = self._opened()
        await self._turns.take()
        members: list[bytes] = []

        async def ask(since: bytes | None, name: str, number: bytes | None, operations: Sequence[bytes]) -> Answer:
            begin = since is None
            answer = await self._read(connections, since, name, number, operations, begin=begin)
            if answer.member is not None:
                members.append(answer.member)
            return answer

        try:
            self._opened()
            yield ValkeyReadSnapshot(ask, self._tables)
        finally:
            self._turns.give_back()
            self._ended += members
            if self._ended and self._ending is None and self._connections is not None:
                self._ending = asyncio.get_running_loop().create_task(self._end(), name="diptych valkey snapshots")

    async def _end(self) -> None:
        """Tell the server which snapshots are over, if no read does so before."""
        try:
            await pause(ENDED_S)
            ended, self._ended = self._ended, []
            if ended and self._connections is not None:
                await self._connections.command("ZREM", f"{self._url.prefix}:snapshots", *ended)
        except StoreUnavailable:
            pass  # it forgets them by itself, past SNAPSHOT_S_MAX
        finally:
            self._ending = None

    async def _read(
        self,
        connections: Connections,
        since: bytes | None,
        name: str,
        number: bytes | None,
        operations: Sequence[bytes],
        *,
        begin: bool = False,
    ) -> Answer:
        """Read one generation, together with what has changed since a change; `begin` keeps it from now on."""
        ended, self._ended = self._ended, []
        self._snapshots += begin
        member = b"%b-%d" % (self._origin, self._snapshots) if begin else None
        age_us = b"%d" % (SNAPSHOT_S_MAX * 1_000_000)
        texts = [member, age_us, b"%d" % len(ended), *ended, since, name.encode(), number, *operations]
        taken = Taken(await connections.run(READ, texts))
        change = taken.maybe()
        if change is None:
            raise StoreUnavailable(
                f"the read store {self._url.shown} does not know any more what a snapshot of it showed: it is older "
                f"than SNAPSHOT_S_MAX={SNAPSHOT_S_MAX} s, much has changed since, or the server has lost it; ask again"
            )
        known, live, kept_one, read_one = (taken.maybe() for _ in range(4))
        return Answer(change, known, live, kept_one, read_one, taken.list(), taken)

    @property
    def changes(self) -> int:
        """How many changes were noticed."""
        return self._noticed().noticed.count

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`. See the port."""
        return await self._noticed().noticed.wait(seen, timeout_s)
