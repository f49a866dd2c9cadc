"""The read store in PostgreSQL: one schema for all read models, for many processes on many machines.

A crash of the server may take the last transactions, which are folded again, but nothing that was changed by hand:
`synchronous_commit` is on for that alone. Neither parts rows from their checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from diptych.adapters.postgres.attempts import CHANGE_S_MAX, UnderWay, changed, read
from diptych.adapters.postgres.connection import (
    DRIVER_ERRORS,
    Connections,
    Link,
    PostgresUrl,
    failure,
    is_lost,
    parse_url,
    roll_back,
    was_not_sent,
)
from diptych.adapters.postgres.read_catalog import (
    TIDY_AGAIN_S,
    Catalog,
    begin,
    generation_of,
    key_hash,
    write_settings,
)
from diptych.adapters.postgres.read_changes import Changes
from diptych.adapters.postgres.read_columns import teach
from diptych.adapters.postgres.read_leases import lease, release
from diptych.adapters.postgres.read_loads import Loads
from diptych.adapters.postgres.read_snapshot import Snapshots, SnapshotTurn
from diptych.adapters.postgres.read_tables import Builds
from diptych.adapters.postgres.read_together import Together, results
from diptych.adapters.postgres.read_writes import Planned, Versions, apply, apply_apart, plan, rows_refused
from diptych.adapters.postgres.replica import SERVER_STATE, ServerState
from diptych.errors import ConfigurationError, NotGranted, StoreClosed, StoreUnavailable
from diptych.event_store.position import Position
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

if TYPE_CHECKING:
    from diptych.event_store.position import Place

__all__ = ["PostgresReadStore", "connect"]

WRITE_CONNECTIONS_MAX = 4
"""Connections of one process that write, or look at the catalog."""

T = TypeVar("T")

_log = logging.getLogger("diptych.postgres")


def connect(url: str) -> PostgresReadStore:
    """The read store for `postgresql://user@host/database?schema=diptych`; nothing is opened yet.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return PostgresReadStore(parse_url(url))


class PostgresReadStore:
    """The read models of one schema. See the port."""

    def __init__(self, url: PostgresUrl) -> None:
        """Remember where it is: a database and a schema, which `migrate` has made."""
        self._url = url
        self._catalog = Catalog(url.quoted_schema, url.schema)
        self._builds = Builds(url.quoted_schema)
        self._snapshots = Snapshots(url, self._catalog, self._builds)
        self._together = Together(self._catalog)
        self._writing = Connections(
            url, WRITE_CONNECTIONS_MAX, read_only=False, verify=teach, planning=write_settings()
        )
        self._rows = partial(read, self._writing)
        self._loads = Loads(self._builds, self._rows)
        self._changes = Changes(url, self._catalog.channel, self._versions, self._writing.has)
        self._under_way = UnderWay()
        self._tidying: asyncio.TimerHandle | None = None
        self._is_open = False

    @property
    def durable(self) -> bool:
        """True."""
        return True

    async def open(self) -> None:
        """Connect, and make sure that the schema is as this code needs it.

        Raises:
            NewerStore: a newer Diptych migrated it.
            ConfigurationError: it was not migrated.
            StoreUnavailable: the server cannot be reached; with the reason.
        """
        if self._is_open:
            return
        self._snapshots.open()
        try:
            async with self._snapshots_turn():
                pass
            self._writing.open()
            await self._changes.open()
        except BaseException:
            await self._writing.close()
            await self._snapshots.close()
            raise
        self._is_open = True
        self._tidy_in(TIDY_AGAIN_S)  # what a process that died has left

    async def close(self) -> None:
        """Finish what is under way and let go of the connections."""
        self._is_open = False
        if self._tidying is not None:
            self._tidying.cancel()
        await self._under_way.end()
        await self._changes.close()
        await self._writing.close()
        await self._snapshots.close()

    # ── generations ──────────────────────────────────────────────────────────

    async def generations(self) -> list[Generation]:
        """Every slice of every generation, by name, number and slice."""
        self._check_open()
        return [generation_of(row) for row in await self._rows(self._catalog.select_generations())]

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
        """Make a generation, or return the one that a racer made. See the port.

        Raises:
            ConfigurationError: something else has a table or view of this name, or PostgreSQL cannot have such a table.
        """
        return await self._change_generations(
            lambda link: self._catalog.create_generation(
                link, name, fingerprint, table, checkpoint, live=live, anew=anew, slices=slices
            )
        )

    async def switch(self, name: str, number: int, *, keep_s: float = 0.0) -> bool:
        """Let a generation answer, keep the one that did, and drop the others. See the port."""
        return await self._change_generations(lambda link: self._catalog.switch(link, name, number, keep_s))

    async def drop_overdue(self) -> None:
        """Remove what was kept until now. See the port."""
        await self._change_generations(self._catalog.drop_overdue)

    async def split(self, name: str, number: int, slices: int | None = None) -> bool:
        """Split a generation into another number of slices, if all are at one place. See the port."""
        return await self._change_generations(lambda link: self._catalog.split(link, name, number, slices))

    async def drop_generation(self, name: str, number: int) -> None:
        """Remove a generation, if it is there."""
        await self._change_generations(lambda link: self._catalog.drop_generation(link, name, number))

    async def _change_generations(self, work: Callable[[Link], Awaitable[T]]) -> T:
        async def change() -> T:
            async def changed(link: Link) -> tuple[T, Versions]:
                result = await work(link)
                return result, _versions_of(await link.fetch(self._catalog.versions))

            result, versions = await self._transaction(changed, durably=True)
            self._changes.note(versions, whole=True)
            await self._tidy()
            return result

        return await self._finished(change())

    # ── writes ───────────────────────────────────────────────────────────────

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        """Apply each write all or nothing, all in one transaction. See the port."""
        self._check_open()
        return await self._finished(self._write(writes)) if writes else []

    async def _write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        plans = [plan(write, self._builds) for write in writes]
        with self._changes.writing(planned.place for planned in plans):
            results, versions = await self._write_planned(plans)
            if versions:
                self._changes.note(versions)
            return results

    async def _write_planned(self, plans: Sequence[Planned]) -> tuple[list[WriteResult], Versions]:
        durably = any(planned.write.by_hand for planned in plans)
        try:
            if (moved := await self._write_together(plans)) is not None:
                return results(plans, moved)
            return await self._transaction(lambda link: apply(link, self._catalog, plans), durably=durably)
        except asyncpg.PostgresError as error:
            if not rows_refused(error):
                raise
            return await self._transaction(lambda link: apply_apart(link, self._catalog, plans), durably=durably)

    async def _write_together(self, plans: Sequence[Planned]) -> Sequence[asyncpg.Record] | None:
        """What one statement moved; None where nothing was done, and the longer way is to be taken."""
        together = None if self._url.pooled else self._together.statement(plans)
        if together is None:
            return None
        try:
            return await self._tried(lambda link: self._at_once(link, *together))
        except ConfigurationError as error:
            # A generation that is gone may be so with its table, which the statement names before it finds that out.
            if isinstance(error.__cause__, asyncpg.UndefinedTableError):
                return None
            raise

    async def discards(self, name: str) -> list[Discard]:
        """The discards of a projection, by position and key."""
        self._check_open()
        rows = await self._rows(self._catalog.discards, name)
        return [Discard(name, key, Position(position), *decided) for key, position, *decided in rows]

    async def retries(self, name: str, key: str, limit: int) -> list[Retry]:
        """What was tried again by hand of one key, the latest first."""
        self._check_open()
        rows = await self._rows(self._catalog.retries, name, key_hash(key), limit)
        return [Retry(name, key, Position(position), *decided) for position, *decided in rows]

    async def trace(self, name: str, number: int, key: str) -> str:
        """The stack trace of a blocked key."""
        self._check_open()
        rows = await self._rows(self._catalog.trace, name, number, key_hash(key))
        return next((row["trace"] for row in rows), "")

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        """Ask for the lease of generations, and renew what is held. See the port."""
        return await self._finished(self._lease(worker, wanted, ttl_s))

    async def _lease(self, worker: str, wanted: Collection[LeaseKey], ttl_s: float) -> Leased:
        leased, told = await self._transaction(
            lambda link: lease(link, self._catalog, worker, wanted, ttl_s), durably=True
        )
        if told:
            self._changes.note({})
        return leased

    async def release(self, worker: str, keys: Collection[LeaseKey] | None = None) -> None:
        """Give up leases at once. See the port."""
        await self._finished(self._release(worker, keys))

    async def _release(self, worker: str, keys: Collection[LeaseKey] | None) -> None:
        await self._transaction(lambda link: release(link, self._catalog, worker, keys), durably=True)
        self._changes.note({})

    # ── reads ────────────────────────────────────────────────────────────────

    async def load(self, asked: Sequence[RowsAsked]) -> list[dict[Key, Row]]:
        """Rows to fold from. See the port.

        Each statement is a transaction of its own. What a crash of the server has taken, the fence notices too.
        """
        self._check_open()
        return await self._loads.load(asked)

    def snapshot(self) -> SnapshotTurn:
        """A view of this moment. See the port."""
        self._check_open()
        return self._snapshots_turn()

    @property
    def changes(self) -> int:
        """How many changes anyone noticed."""
        self._check_open()
        return self._changes.count

    def look(self) -> None:
        """Look whether something was written: an append of this process may have."""
        self._changes.look_soon()

    async def wait_for_change(self, seen: int, timeout_s: float) -> int:
        """Wait until something was written since `seen`. See the port.

        Writes of other processes are noticed by notification; where one is lost, within `CHANGES_POLL_S`, and while
        none can come, within `CHANGES_POLL_DEAF_S`.
        """
        self._check_open()
        return await self._changes.wait(seen, timeout_s)

    # ── replicas ─────────────────────────────────────────────────────────────

    @property
    def url(self) -> PostgresUrl:
        """Where it is."""
        return self._url

    async def server_state(self) -> ServerState:
        """Which server this is, and how far its log is written."""
        self._check_open()
        return ServerState(*(await self._rows(SERVER_STATE))[0])

    async def send_on(self) -> None:
        """Have what was committed go to the replicas at once.

        Commits that do not wait for the disk go there only when they are on it, which takes the server up to three
        times its `wal_writer_delay`; a commit that does wait takes them with it.

        Raises:
            StoreUnavailable: the server cannot be reached, or writes nothing itself.
        """
        self._check_open()
        try:
            async with self._writing.connection() as link:
                await link.execute(
                    "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; "
                    "SELECT pg_logical_emit_message(true, 'diptych', ''); COMMIT"  # else there is nothing to wait for
                )
        except DRIVER_ERRORS as error:
            raise (failure(self._url, error) or error) from error

    # ── transactions ─────────────────────────────────────────────────────────

    def _snapshots_turn(self) -> SnapshotTurn:
        return SnapshotTurn(self._snapshots)

    async def _versions(self) -> Versions:
        return _versions_of(await self._rows(self._catalog.versions))

    async def _transaction(self, work: Callable[[Link], Awaitable[T]], *, durably: bool) -> T:
        """The work in a transaction of its own; see `_tried`."""
        return await self._tried(lambda link: self._begun(link, work, durably=durably))

    async def _tried(self, change: Callable[[Link], Awaitable[T]]) -> T:
        try:
            return await changed(self._writing, change)
        except Exception:
            self._changes.look_soon()  # where it was done all the same, nobody else tells of it
            raise

    async def _begun(self, link: Link, work: Callable[[Link], Awaitable[T]], *, durably: bool) -> T:
        try:
            await link.execute(begin(durably=durably))
        except asyncpg.FeatureNotSupportedError as error:
            raise StoreUnavailable(
                f"{self._url.shown}: nothing was done: this server is a replica ({error}). Give the URL of the primary"
            ) from error
        try:
            result = await work(link)
        except Exception as error:
            await roll_back(link, error)
            raise
        with self._in_doubt():
            await link.execute("COMMIT")
        return result

    async def _at_once(self, link: Link, statement: str, arguments: Sequence[Any]) -> list[asyncpg.Record]:
        with self._in_doubt():
            return await link.fetch(statement, *arguments, timeout=CHANGE_S_MAX)

    @contextmanager
    def _in_doubt(self) -> Generator[None]:
        """While the server may or may not come to commit."""
        try:
            yield
        except DRIVER_ERRORS as error:
            if was_not_sent(error) or not is_lost(error):
                raise
            self._changes.look_soon()
            raise StoreUnavailable(
                f"{self._url.shown}: {error}; whether the last write holds shows when its generation is loaded anew"
            ) from error

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a change, which goes on where its caller is cancelled."""
        try:
            self._check_open()
        except StoreClosed:
            work.close()
            raise
        return await self._under_way.see_through(work)

    # ── tidying up ───────────────────────────────────────────────────────────

    def _tidy_in(self, seconds: float) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        self._tidying = asyncio.get_running_loop().call_later(seconds, self._tidy_now)

    def _tidy_now(self) -> None:
        if self._is_open:
            self._under_way.begin(self._tidy())

    async def _tidy(self) -> None:
        """Show what is live and remove what is gone, as far as nobody is in the way; and once more when that is due."""
        again: float | None = TIDY_AGAIN_S
        try:
            async with self._writing.connection() as link:
                again = await self._catalog.tidy(link)
        except StoreClosed:
            return
        except (NotGranted, StoreUnavailable, *DRIVER_ERRORS) as error:
            _log.warning("views and dropped tables wait %g s: %s", TIDY_AGAIN_S, error)
        if again is not None and self._is_open:
            self._tidy_in(again)

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreClosed(f"the read store {self._url.shown} is not open")


def _versions_of(rows: Sequence[asyncpg.Record]) -> Versions:
    return {(name, number, slice): version for name, number, slice, version in rows}
