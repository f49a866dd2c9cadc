"""Snapshots of a read store in PostgreSQL: read-only connections, each with one transaction for its lifetime (G8, G13).

A transaction is REPEATABLE READ, so that all of it sees one moment, that of its first statement; and READ ONLY before
anything of the user's runs in it. It ends by being rolled back, whatever happened. For that nobody waits: the same
message begins the next one, which sees nothing yet and holds nothing up, and is ended too where nobody comes for it
soon. Internal statements name the schema, so that no setting matters.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from diptych.adapters.postgres.connection import (
    DRIVER_ERRORS,
    Connections,
    Link,
    PostgresUrl,
    failure,
    is_lost,
    state_of,
)
from diptych.adapters.postgres.read_catalog import SLICE_WIDTH, Catalog, generation_of
from diptych.adapters.postgres.read_columns import teach
from diptych.adapters.postgres.read_queries import after_place, filtered, order_by, searched_words, where
from diptych.adapters.postgres.read_schema import READ_STORE_MIGRATIONS
from diptych.adapters.postgres.read_sql import decode_results, prepared
from diptych.adapters.postgres.read_tables import Builds, StoredTable
from diptych.errors import ConfigurationError, Overloaded, StoreClosed, StoreUnavailable
from diptych.read_side.read_store import SQL_ROWS_MAX, BlockedKey, ColumnKind, Filter, Generation, Key, Order, Row
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX, SnapshotTurns

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

__all__ = ["PostgresReadSnapshot", "SnapshotTurn", "Snapshots"]

SNAPSHOT_IDLE_S_MAX = 90
"""Seconds that a snapshot may be silent before the server ends it: it keeps old rows from being cleaned up."""
BEGUN_KEPT_S = 0.01
"""Seconds that a transaction which was begun behind a snapshot waits for the next one: a round trip less for each of
those that follow each other."""
BEGIN_ATTEMPTS_MAX = 2
"""How often a snapshot is begun where the connection is lost under it: a server that was restarted cuts all of them."""
READ_S_MAX = 10
"""Seconds that one read may run before the server stops it, with `Overloaded`."""
ANSWER_S_MAX = 5
"""Seconds beyond that in which the server has to answer at all."""

_PLAN_FREELY = (
    "SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on; SET LOCAL plan_cache_mode = force_custom_plan"
)
"""Before reads that may be of any kind. By default, connections find rows by index alone, so that a plan that was made
while a table was empty does not scan it when it has grown."""
_SERVERS_OWN = frozenset({"08", "40", "53", "57", "58", "F0", "XX"})
"""Classes of states that are not about a statement but about the server."""


def _begin(url: PostgresUrl) -> str:
    """Begins a snapshot; the first statement behind it takes it."""
    planning = "SET LOCAL jit = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; "
    return (
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "
        f"SET LOCAL statement_timeout = {round(READ_S_MAX * 1_000)}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {SNAPSHOT_IDLE_S_MAX * 1_000}; "
        f"{planning if url.pooled else ''}"
    )


class _Begun(NamedTuple):
    """A transaction that is begun, or being begun, for a snapshot to come."""

    lent: AbstractAsyncContextManager[Link]
    beginning: asyncio.Task[None]
    timer: asyncio.TimerHandle


class Snapshots:
    """Gives out at most `SNAPSHOTS_MAX` connections at a time, first come, first served."""

    def __init__(self, url: PostgresUrl, catalog: Catalog, builds: Builds) -> None:
        self.url = url
        self.catalog = catalog
        self.builds = builds
        self._connections = Connections(url, SNAPSHOTS_MAX, read_only=True, verify=self._verify)
        self._turns = SnapshotTurns()
        self._is_open = False
        self._kept: dict[Link, _Begun] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Take callers from now on."""
        self._turns = SnapshotTurns()
        self._connections.open()
        self._is_open = True

    async def close(self) -> None:
        """Let go of the idle connections, and of the others once they come back."""
        self._is_open = False
        for link in list(self._kept):
            self._end(link)
        if self._ending:
            await asyncio.wait(self._ending)
        await self._connections.close()

    async def take(self) -> tuple[Link, AbstractAsyncContextManager[Link]]:
        """A connection on which a view is begun, and what it is given back to.

        Raises:
            Overloaded: too many wait, or this one has waited too long.
            StoreUnavailable: the server cannot be reached.
        """
        self._check_open()
        await self._turns.take()
        try:
            self._check_open()
            return await self._begun()
        except BaseException:
            self._turns.give_back()
            raise

    def give_back(self, link: Link, lent: AbstractAsyncContextManager[Link], *, used_by_hand: bool) -> None:
        """End the view, which nobody waits for: who was cancelled, least of all, where the server hangs."""
        ending = self._start_ending(link, lent, used_by_hand=used_by_hand)
        ending.add_done_callback(lambda _: self._turns.give_back())

    def give_back_soon(self, link: Link, lent: AbstractAsyncContextManager[Link]) -> None:
        """End the view, and begin one for the next who comes; where nobody does, end that as well."""
        if self._is_open:
            loop = asyncio.get_running_loop()
            beginning = loop.create_task(self._begin(link, "ROLLBACK; "))
            self._kept[link] = _Begun(lent, beginning, loop.call_later(BEGUN_KEPT_S, self._end, link))
        else:
            _ = self._start_ending(link, lent, used_by_hand=False)
        self._turns.give_back()

    async def _begin(self, link: Link, ending: str = "") -> None:
        try:
            await link.execute(ending + _begin(self.url), timeout=ANSWER_S_MAX)
        except BaseException as error:
            link.terminate()  # whoever takes it finds that out
            if not ending or not isinstance(error, DRIVER_ERRORS):
                raise

    def _end(self, link: Link) -> None:
        kept = self._kept.pop(link)
        kept.timer.cancel()
        _ = self._start_ending(link, kept.lent, used_by_hand=False, behind=kept.beginning)

    def _start_ending(
        self,
        link: Link,
        lent: AbstractAsyncContextManager[Link],
        *,
        used_by_hand: bool,
        behind: asyncio.Task[None] | None = None,
    ) -> asyncio.Task[None]:
        ending = self._roll_back(link, lent, used_by_hand=used_by_hand, behind=behind)
        task = asyncio.get_running_loop().create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _roll_back(
        self,
        link: Link,
        lent: AbstractAsyncContextManager[Link],
        *,
        used_by_hand: bool,
        behind: asyncio.Task[None] | None,
    ) -> None:
        unlock = "; SELECT pg_advisory_unlock_all()" if used_by_hand else ""
        try:
            if behind is not None:
                await asyncio.wait((behind,))
            if not link.is_closed():
                await link.execute(f"ROLLBACK{unlock}", timeout=ANSWER_S_MAX)
        except DRIVER_ERRORS:
            link.terminate()  # a connection in doubt is not handed on
        finally:
            await lent.__aexit__(None, None, None)

    async def _begun(self) -> tuple[Link, AbstractAsyncContextManager[Link]]:
        for attempt in range(1, BEGIN_ATTEMPTS_MAX + 1):
            try:
                return await self._kept_begun() or await self._newly_begun()
            except DRIVER_ERRORS as error:
                if attempt == BEGIN_ATTEMPTS_MAX or not is_lost(error):
                    raise (failure(self.url, error) or error) from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _kept_begun(self) -> tuple[Link, AbstractAsyncContextManager[Link]] | None:
        """A connection on which one is begun already, and what it is given back to."""
        while self._kept:
            link, kept = self._kept.popitem()
            kept.timer.cancel()
            try:
                if not kept.beginning.done():
                    await asyncio.wait((kept.beginning,))
                if kept.timer.when() <= asyncio.get_running_loop().time():
                    await self._begin(link, "ROLLBACK; ")  # the loop stood still: it may be cut, and nobody was told
            except BaseException:
                _ = self._start_ending(link, kept.lent, used_by_hand=False, behind=kept.beginning)
                raise
            if not link.is_closed():
                return link, kept.lent
            await kept.lent.__aexit__(None, None, None)
        return None

    async def _newly_begun(self) -> tuple[Link, AbstractAsyncContextManager[Link]]:
        lent = self._connections.connection()
        link = await lent.__aenter__()
        try:
            await self._begin(link)
        except BaseException:
            await lent.__aexit__(None, None, None)
            raise
        return link, lent

    async def _verify(self, link: Link) -> None:
        await READ_STORE_MIGRATIONS.check(link, self.url)
        encoding = str(link.get_settings().server_encoding)
        if encoding != "UTF8":
            raise ConfigurationError(f"{self.url.shown} keeps text as {encoding}: make a database with ENCODING 'UTF8'")
        await teach(link)

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreClosed(f"the read store {self.url.shown} is not open")


class SnapshotTurn:
    """One snapshot's lifetime, as an async context manager."""

    __slots__ = ("_lent", "_pool", "_snapshot")

    def __init__(self, pool: Snapshots) -> None:
        self._pool = pool
        self._snapshot: PostgresReadSnapshot | None = None
        self._lent: AbstractAsyncContextManager[Link] | None = None

    async def __aenter__(self) -> PostgresReadSnapshot:
        """Take a connection."""
        link, self._lent = await self._pool.take()
        self._snapshot = PostgresReadSnapshot(link, self._pool)
        return self._snapshot

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        assert self._snapshot is not None
        assert self._lent is not None
        self._snapshot.is_over = True
        link, used_by_hand = self._snapshot.connection, self._snapshot.used_by_hand
        in_doubt = isinstance(error, (StoreUnavailable, *DRIVER_ERRORS)) or not isinstance(error, (Exception, NoneType))
        if used_by_hand or in_doubt:
            self._pool.give_back(link, self._lent, used_by_hand=used_by_hand)
        else:
            self._pool.give_back_soon(link, self._lent)


# ── reads ────────────────────────────────────────────────────────────────────


class PostgresReadSnapshot:
    """One moment of the database. See the port.

    Attributes:
        connection: the read-only connection itself.
        used_by_hand: whether SQL written by hand ran on it.
        is_over: whether the connection is given back.
    """

    def __init__(self, link: Link, pool: Snapshots) -> None:
        self.connection = link
        self.used_by_hand = self.is_over = False
        self._turn = asyncio.Lock()  # a handler may ask for several things at once, and there is one connection
        self._catalog = pool.catalog
        self._builds = pool.builds
        self._url = pool.url
        self._live: dict[str, StoredTable] = {}
        self._there: set[tuple[str, int | None]] = set()
        self._expected: dict[str, tuple[Key, dict[Key, Row]]] = {}
        self._has_read = False
        self._knows_all = False
        self._unblocked: set[tuple[str, int | None]] = set()
        self._plans_freely = False

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one. See the port.

        One row that is expected is read in the same statement, from the table that was live when last seen.
        """
        if number is not None:
            rows = await self._fetch(self._catalog.numbered_slices, name, number)
        else:
            rows = await self._slices_and_row(name, expecting) or await self._fetch(self._catalog.live_slices, name)
        if not rows:
            return ()
        known = self._builds.known(name, rows[0][1])
        first = generation_of(rows[0], None if known is None else known.form)
        self._there.add((name, first.number))
        table = self._builds.of(first)
        if first.live and table is not None:
            self._live[name] = table
            self._builds.note_live(name, table)
        if not rows[0][SLICE_WIDTH]:
            self._unblocked |= {(name, first.number), *([(name, None)] if first.live else [])}
        return (first, *(generation_of(row, first.table) for row in rows[1:]))

    async def _slices_and_row(self, name: str, keys: Sequence[Key]) -> list[asyncpg.Record]:
        """The slices, with the row of the only key, which is kept; nothing where that is not to be had, or in vain.

        Only at first: where the table that was live is gone, the transaction is over, and begins anew.
        """
        table = self._builds.last_live(name)
        if table is None or len(keys) != 1 or len(keys[0]) != len(table.form.key) or self._has_read:
            return []
        given = table.codec.key_arrays(keys)
        if not given[0]:
            return []
        try:
            rows = await self._fetch(self._catalog.live_slices_and_row(table), name, *(values[0] for values in given))
        except ConfigurationError as error:
            if not isinstance(error.__cause__, asyncpg.UndefinedTableError):
                raise
            self._builds.note_live(name, None)
            await self._run(f"ROLLBACK; {_begin(self._url)}")
            return []
        if rows and rows[0][1] == table.number:
            place = SLICE_WIDTH + 1
            there = rows[0][place]
            self._expected[name] = keys[0], table.codec.by_key([rows[0][place + 1 :]] if there else ())
        return rows

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept. See the port."""
        found = await self._fetch(self._catalog.kept, name, fingerprint)
        return await self.slices(name, found[0]["number"]) if found else ()

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, by position."""
        if (name, number) in self._unblocked:
            return []
        if number is None:
            rows = await self._fetch(self._catalog.live_blocked, name)
        else:
            rows = await self._fetch(self._catalog.blocked, name, number)
        return [BlockedKey(name, key, position, error, attempts) for key, position, error, attempts in rows]

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out.

        Rows of a numbered generation that was read before say in the same statement that it is there still; it is
        looked for only where there are none.
        """
        expected = self._expected.get(name) if number is None else None
        if expected is not None and [expected[0]] == keys:
            return dict(expected[1])
        guessed = None if number is None or (name, number) in self._there else self._builds.known(name, number)
        table = guessed or await self._table(name, number)
        codec = table.codec
        arrays = codec.key_arrays(keys)
        if not arrays[0]:
            await self._table(name, number)
            return {}
        one = len(arrays[0]) == 1
        select = table.select_one if one else table.select_many
        given = [values[0] for values in arrays] if one else arrays
        if guessed is None:
            rows = await self._rows(table, select, *given)
        else:
            rows = await self._rows(table, f"{select}{' AND' if one else ' WHERE'} {table.is_there}", *given)
            if not rows:
                await self._table(name, number)
            self._there.add((name, number))
        return codec.by_key(rows)

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in order. See the port."""
        table = await self._table(name, number)
        conditions = [filtered(table, wanted) for wanted in filters]
        if after is not None:
            conditions.append(after_place(table, order, after))
        condition, given = where(conditions, first=2)
        await self._plan_freely()
        text = f"{table.select}{condition} ORDER BY {order_by(table, order)} LIMIT $1"
        return [table.codec.decode(row) for row in await self._rows(table, text, limit, *given)]

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches."""
        table = await self._table(name, number)
        condition, given = where(filtered(table, wanted) for wanted in filters)
        await self._plan_freely()
        ((count,),) = await self._rows(table, f"SELECT count(*) FROM {table.name} AS t{condition}", *given)
        return int(count)

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word. See the port."""
        table = await self._table(name, number)
        condition, given = where([filtered(table, wanted) for wanted in filters], first=3)
        words = searched_words(text)
        if not words or not table.is_searchable:
            return []
        await self._plan_freely()
        matches = 't."__words" @@ CAST($1::text AS tsquery)'
        keys = ", ".join(f"t.{part}" for part in table.key.split(", "))
        statement = (
            f"{table.select}{f'{condition} AND' if condition else ' WHERE'} {matches} "
            f'ORDER BY ts_rank(t."__words", CAST($1::text AS tsquery), 2) DESC, {keys} LIMIT $2'
        )
        return [table.codec.decode(row) for row in await self._rows(table, statement, words, limit, *given)]

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, in that order. See the port."""
        table = await self._table(name, number)
        if table.form.expires is None:
            return []
        rows = await self._rows(table, table.select_expired, moment, limit)
        return [table.codec.decode_key(row) for row in rows]

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = MappingProxyType({}),
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Rows of the user's SQL, decoded; columns that are not asked for are left out. See the port.

        A decimal reads back with an exponent above zero where `<name>__exponent` is selected too.
        """
        if "\0" in statement or statement.encode("utf-8", "ignore").decode() != statement:
            raise ConfigurationError(f"this SQL cannot be run: {statement!a} holds NUL or a lone surrogate")
        tables = {name: await self._table(name, None) for name in moments}
        for row in await self._fetch(self._catalog.live_tables_named_in, statement):
            table = self._builds.of(generation_of(row))
            assert table is not None
            tables[table.of] = table
        text, given = prepared(statement, parameters, list(tables.values()), moments)
        names, found = await self._run_by_hand(text, given, limit)
        return decode_results(names, found, columns)

    # ── how ──────────────────────────────────────────────────────────────────

    async def _run_by_hand(self, text: str, given: Sequence[Any], limit: int) -> tuple[list[str], list[asyncpg.Record]]:
        """Run a statement, and take back whatever settings it changed; the snapshot goes on."""
        async with self._turn:
            self._check_open()
            return await self._run_alone_by_hand(text, given, limit)

    async def _run_alone_by_hand(
        self, text: str, given: Sequence[Any], limit: int
    ) -> tuple[list[str], list[asyncpg.Record]]:
        self.used_by_hand = True
        link, timeout = self.connection, READ_S_MAX + ANSWER_S_MAX
        settings = f"{_PLAN_FREELY}; SET LOCAL search_path = {self._catalog.schema}; SAVEPOINT by_hand"
        try:
            await link.execute(settings, timeout=timeout)
            try:
                statement = await link.prepare(text, timeout=timeout)
                names = [attribute.name for attribute in statement.get_attributes()]
                cursor = await statement.cursor(*given, timeout=timeout)
                found = await cursor.fetch(limit, timeout=timeout)
            except asyncpg.PostgresError:
                await link.execute("ROLLBACK TO by_hand", timeout=ANSWER_S_MAX)
                raise
            await link.execute("ROLLBACK TO by_hand", timeout=ANSWER_S_MAX)
        except DRIVER_ERRORS as error:
            raise self._explained(error) from error
        return names, found

    def _explained(self, error: BaseException) -> BaseException:
        """What is wrong with the user's SQL; failures of the server, and of its limits, as they are."""
        if isinstance(error, asyncpg.QueryCanceledError):
            return Overloaded("READ_S_MAX", READ_S_MAX)
        state = state_of(error)
        if not state or state[:2] in _SERVERS_OWN:
            return failure(self._url, error) or error
        return ConfigurationError(f"this SQL cannot be run: {error} (read models take one SELECT, or WITH … SELECT)")

    async def _table(self, name: str, number: int | None) -> StoredTable:
        table = self._live.get(name) if number is None else await self._numbered_table(name, number)
        if table is not None:
            return table
        slices = await self.slices(name, number)
        table = self._builds.of(slices[0]) if slices else None
        if table is None:
            which = "live generation" if number is None else f"generation {number}"
            raise StoreUnavailable(f"{name} has no {which} with a table here; is its first build still under way?")
        return table

    async def _numbered_table(self, name: str, number: int) -> StoredTable | None:
        """The table of a generation whose form is known; the tables of those that are gone stay for a while."""
        if not self._knows_all and (name, number) not in self._there:
            self._there |= {(row["name"], row["number"]) for row in await self._fetch(self._catalog.versions)}
            self._knows_all = True
        return self._builds.known(name, number) if (name, number) in self._there else None

    async def _plan_freely(self) -> None:
        if not self._plans_freely:
            await self._run(_PLAN_FREELY)
            self._plans_freely = True

    async def _run(self, statements: str) -> None:
        async with self._turn:
            self._check_open()
            try:
                await self.connection.execute(statements, timeout=ANSWER_S_MAX)
            except DRIVER_ERRORS as error:
                raise (failure(self._url, error) or error) from error

    def _check_open(self) -> None:
        """What a caller has begun and not waited for must not run on a connection that is somebody else's by now."""
        if self.is_over:
            raise StoreUnavailable("this snapshot is over: whoever asked for it has not waited for all that they read")

    async def _rows(self, table: StoredTable, statement: str, *given: Any) -> list[asyncpg.Record]:
        """Rows of a generation; its table is gone where it was replaced long ago for everybody else."""
        try:
            return await self._fetch(statement, *given)
        except ConfigurationError as error:
            if isinstance(error.__cause__, asyncpg.UndefinedTableError):
                raise StoreUnavailable(
                    f"{table.of}: generation {table.number} was replaced while this snapshot was open; ask again"
                ) from error
            raise

    async def _fetch(self, statement: str, *given: Any) -> list[asyncpg.Record]:
        self._has_read = True
        async with self._turn:
            self._check_open()
            try:
                return await self.connection.fetch(statement, *given, timeout=READ_S_MAX + ANSWER_S_MAX)
            except asyncpg.QueryCanceledError as error:
                raise Overloaded("READ_S_MAX", READ_S_MAX) from error
            except DRIVER_ERRORS as error:
                raise (failure(self._url, error) or error) from error
