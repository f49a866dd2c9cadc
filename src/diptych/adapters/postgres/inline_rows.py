"""Read models in the events' database, as the transaction of an append sees them. See the port.

All of it happens while the append section is held, for which others wait. So it waits for nobody itself: a checkpoint
that somebody else is moving is passed over, and the next append catches up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from diptych.adapters.postgres.connection import Link, PostgresUrl
from diptych.adapters.postgres.event_rows import EventRows
from diptych.adapters.postgres.matching_events import reading
from diptych.adapters.postgres.read_catalog import Catalog, generation_of
from diptych.adapters.postgres.read_loads import Loads
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.adapters.postgres.read_tables import Builds
from diptych.adapters.postgres.read_together import Together
from diptych.adapters.postgres.read_together import results as together
from diptych.adapters.postgres.read_writes import apply, apply_apart, plan, rows_refused
from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.read_side.inline_rows import Appending, InlineFold
from diptych.read_side.read_store import (
    BlockedKey,
    Discard,
    Generation,
    Key,
    ReadStore,
    Row,
    RowsAsked,
    SliceWrite,
    WriteResult,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["InlineStep"]

_TAKE_BACK = "ROLLBACK TO SAVEPOINT diptych_inline"
"""Nothing is written between the savepoint and the one write."""

_MAY_WRITE = """
    SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'UPDATE')
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'diptych_generations'
"""


class InlineStep:
    """What every append does to the read models in its database.

    Attributes:
        rows: the read store.
        catalog: its catalog.
        builds: its tables, as far as they are known.
        together: its usual statements.
        schema: that of the events, as SQL.
        events: reads their rows.
    """

    def __init__(self, url: PostgresUrl, rows: ReadStore, fold: InlineFold) -> None:
        """Remember where the rows are.

        Raises:
            ConfigurationError: that is another database than the one at this URL.
        """
        if not isinstance(rows, PostgresReadStore) or _databases(rows.url) != _databases(url):
            where = rows.url.shown if isinstance(rows, PostgresReadStore) else "no PostgreSQL"
            raise ConfigurationError(
                f"inline read models are in the database of the events, {url.shown}, and the read store is {where}: "
                "leave read_store= out, or name the same database"
            )
        self.rows = rows
        self._fold = fold
        self.catalog = Catalog(rows.url.quoted_schema, rows.url.schema)
        self.builds = Builds(rows.url.quoted_schema)
        self.together = Together(self.catalog)
        self.schema = url.quoted_schema
        self.events = EventRows()

    async def check(self, fetch: Callable[..., Awaitable[list[asyncpg.Record]]]) -> None:
        """Make sure that whoever appends here may write the rows; where there are none yet, the read store says so.

        Raises:
            ConfigurationError: that user may not.
        """
        found = await fetch(_MAY_WRITE, self.rows.url.schema)
        if found and not found[0][0]:
            raise ConfigurationError(
                f"inline read models are written by whoever appends, and that user may not write in the schema "
                f"{self.rows.url.schema}: make it a member of the role that projects, or leave inline= out"
            )

    async def run(self, link: Link, appending: Appending) -> None:
        """Fold what is appended, inside its transaction; or leave all rows as they were, and the events with it.

        Raises:
            asyncpg.PostgresError, OSError: the connection is lost, and the transaction with it.
        """
        await link.execute("SAVEPOINT diptych_inline")
        try:
            await self._fold.fold(_Rows(link, self), appending)
        except Exception as error:
            if link.is_closed():
                raise
            await link.execute(_TAKE_BACK)
            self._fold.failed(error)


def _databases(url: PostgresUrl) -> list[tuple[object, ...]]:
    """Hosts, ports and names of the databases that a URL leads to, whoever connects."""
    found: list[tuple[object, ...]] = []
    for dsn in url.dsns:
        parts = urlsplit(dsn)
        named = dict(parse_qsl(parts.query))
        host, port = named.get("host", parts.hostname), named.get("port", parts.port)
        found.append((host, str(port or ""), named.get("database", parts.path.strip("/"))))
    return found


class _Rows:
    def __init__(self, link: Link, step: InlineStep) -> None:
        self._link = link
        self._catalog = step.catalog
        self._builds = step.builds
        self._schema = step.schema
        self._events = step.events
        self._together = step.together
        self._loads = Loads(step.builds, link.fetch)

    async def generations(self, names: Collection[str]) -> Sequence[Generation]:
        select = self._catalog.select_generations("WHERE g.name = ANY($1::text[])")
        rows = await self._link.fetch(f"{select} FOR UPDATE OF g SKIP LOCKED", list(names))
        return [self._generation(row) for row in rows]

    def _generation(self, row: asyncpg.Record) -> Generation:
        known = self._builds.known(row[0], row[1])
        found = generation_of(row, None if known is None else known.form)
        self._builds.of(found)
        return found

    async def blocked(self, generation: Generation) -> Sequence[BlockedKey]:
        rows = await self._link.fetch(self._catalog.blocked, generation.name, generation.number)
        return [BlockedKey(generation.name, key, position, error, attempts) for key, position, error, attempts in rows]

    async def discards(self, name: str) -> Sequence[Discard]:
        rows = await self._link.fetch(self._catalog.discards, name)
        return [Discard(name, key, Position(position), *decided) for key, position, *decided in rows]

    async def load(self, asked: RowsAsked) -> Mapping[Key, Row]:
        (found,) = await self._loads.load([asked])
        return found

    async def expired(self, name: str, moment: datetime, limit: int, number: int) -> list[Key]:
        table = self._builds.known(name, number)
        if table is None or table.form.expires is None:
            return []
        return [table.codec.decode_key(row) for row in await self._link.fetch(table.select_expired, moment, limit)]

    async def event_id(self, position: Position) -> bytes | None:
        found: bytes | None = await self._link.fetchval(
            f"SELECT event_id FROM {self._schema}.events WHERE position = $1", position
        )
        return found

    async def events(self, query: EventQuery, after: Position, until: Position) -> Sequence[RecordedEvent]:
        found: dict[int, RecordedEvent] = {}
        for statement, arguments in reading(self._schema, query, after, until, until - after, backward=False):
            rows: Iterable[asyncpg.Record] = await self._link.fetch(statement, *arguments)
            found |= {row[2]: self._events.event(row) for row in rows if row[2] is not None}
        return [found[position] for position in sorted(found)]

    async def write(self, writes: Sequence[SliceWrite]) -> Sequence[WriteResult]:
        plans = [plan(write, self._builds) for write in writes]
        try:
            at_once = self._together.statement(plans)
            if at_once is not None:
                results, _ = together(plans, await self._link.fetch(at_once[0], *at_once[1]))
            else:
                results, _ = await apply(self._link, self._catalog, plans)
        except asyncpg.PostgresError as error:
            if not rows_refused(error):
                raise
            await self._link.execute(_TAKE_BACK)
            results, _ = await apply_apart(self._link, self._catalog, plans)
        return results
