"""The catalog of generations in PostgreSQL: which there are, which answers queries, and where their rows are.

Whoever changes what generations there are locks `diptych_projections` first, so that such changes follow each other,
while writers (who lock rows of `diptych_generations`) and readers go on.

A table cannot go as long as a snapshot may read it, and waiting for that would make everybody wait. So a generation is
dropped from the catalog at once, and its table some time later (`tidy`); the same goes for the views, which only
programs other than Diptych read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from diptych.adapters.postgres.connection import INDEXED, state_of
from diptych.adapters.postgres.grants import table_maker
from diptych.adapters.postgres.read_tables import (
    StoredTable,
    check_names,
    create_table,
    decode_table,
    encode_table,
    quoted,
)
from diptych.errors import ConfigurationError
from diptych.event_store.position import Place
from diptych.read_side.partitions import found_again, kept, reaches, split, taken_up, whole
from diptych.read_side.read_store import Generation, Table

if TYPE_CHECKING:
    from diptych.adapters.postgres.connection import Link

__all__ = ["Catalog", "begin", "generation_of", "key_hash", "write_settings"]

LOCK_WAIT_S = 5.0
"""How long a change waits for the locks of other transactions."""
TRANSACTION_IDLE_S_MAX = 10.0
"""How long a change may be silent: a process that was stopped in the middle must not hold up the others for longer."""
DROPPED_TABLE_KEPT_S = 120.0
"""How long a table stays when its generation is gone, for the snapshots that began before."""
TIDY_AGAIN_S = 5.0
"""When to look again for a table or view that somebody was just reading."""
TIDY_LOCK_WAIT_S = 0.05
"""How long a view or table is waited for meanwhile: everybody who reads it waits behind."""

_GENERATION = (
    "g.name, g.number, g.fingerprint, g.form, g.live, g.history_id, g.position, g.event_id, g.epoch, g.stopped, "
    "g.recorded_at, g.slice, g.slices, g.barrier, g.slices_next, g.kept_until"
)
SLICE_WIDTH = 16
"""Columns of that; where slices are selected, whether a key of the generation is blocked comes next."""
_IN_USE = frozenset({"55P03", "40P01", "2BP01"})
"""States that say a lock is held by others, or that others' views stand on this one."""
_NOT_OURS = frozenset({"25006", "42501"})
"""States that say this server or user changes nothing: others tidy up."""


def begin(*, durably: bool) -> str:
    """Begins a change: all that is right about it is said here, whatever the connection's settings.

    Its statements are few, and find what they change by keys: to plan each anew costs more than to run it.
    """
    settings = {
        "lock_timeout": round(LOCK_WAIT_S * 1_000),
        "idle_in_transaction_session_timeout": round(TRANSACTION_IDLE_S_MAX * 1_000),
        "synchronous_commit": "on" if durably else "off",
        "plan_cache_mode": "force_generic_plan",
    }
    sets = "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())
    return f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {sets}"


def write_settings() -> Mapping[str, str]:
    """Of connections that write: what `begin` says of changes that need not wait for the disk, for single statements.

    Behind a pooler that does not keep them, a statement would wait for the disk, and be right all the same.
    """
    return {
        **INDEXED,
        "default_transaction_read_only": "off",
        "lock_timeout": str(round(LOCK_WAIT_S * 1_000)),
        "plan_cache_mode": "force_generic_plan",
        "synchronous_commit": "off",
    }


def key_hash(key: str) -> bytes:
    """A key as the index of blocked keys holds it, however long it is."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


class Catalog:
    """The catalog of one schema. What changes it runs inside a transaction that was begun with `begin`."""

    def __init__(self, schema: str, plain_schema: str) -> None:
        """Remember where it is: the schema's name as SQL, and as it is."""
        self.schema = schema
        self.channel = f"{plain_schema}_rows"
        self._plain_schema = plain_schema
        has_blocked = (
            f", EXISTS (SELECT FROM {schema}.diptych_blocked_keys AS b WHERE b.name = g.name AND b.number = g.number) "
            f"FROM {schema}.diptych_generations AS g"
        )
        self.live_slices = f"SELECT {_GENERATION}{has_blocked} WHERE g.name = $1 AND g.live ORDER BY g.slice"
        numbered = "WHERE g.name = $1 AND g.number = $2"
        self.numbered_slices = f"SELECT {_GENERATION}{has_blocked} {numbered} ORDER BY g.slice"
        self.slice = self.select_generations(f"{numbered} AND g.slice = $3")
        self.live_tables_named_in = self.select_generations(
            "WHERE g.live AND g.slice = 0 AND g.form IS NOT NULL AND position(lower(g.table_name) IN lower($1)) > 0"
        )
        blocked = f"SELECT b.key, b.position, b.error, b.attempts FROM {schema}.diptych_blocked_keys AS b"
        self.blocked = f"{blocked} WHERE b.name = $1 AND b.number = $2 ORDER BY b.position, b.key"
        self.live_blocked = (
            f"{blocked} JOIN {schema}.diptych_generations AS g USING (name, number) "
            "WHERE b.name = $1 AND g.live AND g.slice = 0 ORDER BY b.position, b.key"
        )
        self.discards = (
            f"SELECT key, position, actor, reason, decided_at FROM {schema}.diptych_discards WHERE name = $1 "
            "ORDER BY position, key"
        )
        self.retries = (
            f"SELECT position, actor, reason, decided_at FROM {schema}.diptych_retries "
            "WHERE name = $1 AND key_hash = $2 ORDER BY number DESC LIMIT $3"
        )
        self.trace = (
            f"SELECT trace FROM {schema}.diptych_blocked_keys WHERE name = $1 AND number = $2 AND key_hash = $3"
        )
        self.kept = (
            f"SELECT number FROM {schema}.diptych_generations "
            "WHERE name = $1 AND fingerprint = $2 AND kept_until IS NOT NULL ORDER BY number DESC LIMIT 1"
        )
        self._table_maker = table_maker(schema)
        self.versions = f"SELECT name, number, slice, xmin::text FROM {schema}.diptych_generations"

    def live_slices_and_row(self, table: StoredTable) -> str:
        """As `live_slices`, followed by a row of the table, whose key is in the parameters from $2 on, if that is live.

        The row is beside the first slice, with `true` before it.
        """
        return (
            f"SELECT s.*, r.* FROM ({self.live_slices}) AS s LEFT JOIN ({table.if_there(2)}) AS r "
            f"ON s.slice = 0 AND s.number = {table.number} ORDER BY s.slice"
        )

    def select_generations(self, condition: str = "") -> str:
        """Selects slices of generations, by name, number and slice."""
        select = f"SELECT {_GENERATION} FROM {self.schema}.diptych_generations AS g"
        return f"{select} {condition} ORDER BY g.name, g.number, g.slice"

    async def notify(self, link: Link) -> None:
        """Tell other processes, once this transaction is committed."""
        await link.execute("SELECT pg_notify($1, '')", self.channel)

    # ── changes ──────────────────────────────────────────────────────────────

    async def create_generation(
        self,
        link: Link,
        name: str,
        fingerprint: str,
        table: Table | None,
        checkpoint: Place,
        *,
        live: bool,
        anew: bool,
        slices: int,
    ) -> list[Generation]:
        """Make a generation, or find the one that a racer made; see the port.

        Raises:
            ConfigurationError: something else has the table's name, or PostgreSQL cannot have such a table.
        """
        others = await self._locked(link, name)
        found = found_again(others, fingerprint)
        if found and not anew:
            if found[0].kept_until is not None:
                found = taken_up(found)
                await self._set_states(link, found)
                await self.notify(link)
            return list(found)
        current = next((found[0] for found in others.values() if found[0].live), None)
        if table is not None:
            await self._check_name_is_free(link, name, table)
        if live and current is not None:
            await self._set_live(link, current, live=False)
        number = await link.fetchval(
            f"INSERT INTO {self.schema}.diptych_projections AS p (name, last_number) VALUES ($1, 1) "
            "ON CONFLICT (name) DO UPDATE SET last_number = p.last_number + 1 RETURNING last_number",
            name,
        )
        made = whole(Generation(name, number, fingerprint, table, live, checkpoint), slices)
        await self._insert(link, made)
        if table is not None:
            await self._become_table_maker(link)
            await create_table(link, StoredTable(table, name, number, self.schema))
        await self.notify(link)
        return made

    async def switch(self, link: Link, name: str, number: int, keep_s: float) -> bool:
        """Let a generation answer, keep the one that did, and drop the others; see the port."""
        builds = await self._locked(link, name)
        chosen = builds.pop(number, None)
        if chosen is None or chosen[0].live:
            return chosen is not None
        current = next((found for found in builds.values() if found[0].live), None)
        if current is not None and not reaches(chosen, current):
            return False
        if current is not None and keep_s > 0:
            del builds[current[0].number]
            until = await link.fetchval("SELECT clock_timestamp() + $1 * interval '1 second'", keep_s)
            await self._set_live(link, current[0], live=False)
            await self._set_states(link, kept(current, until))
        for other in builds.values():
            await self._drop(link, other[0])
        await self._set_live(link, chosen[0], live=True)
        await self.notify(link)
        return True

    async def drop_overdue(self, link: Link) -> None:
        """Remove what was kept until now; see the port."""
        overdue = await link.fetch(
            f"SELECT name, number FROM {self.schema}.diptych_generations "
            "WHERE kept_until <= clock_timestamp() AND slice = 0 ORDER BY name, number"
        )
        for name, number in overdue:
            build = (await self._locked(link, name)).get(number)
            if build is not None and build[0].kept_until is not None:  # it may have been taken up meanwhile
                await self._drop(link, build[0])
        if overdue:
            await self.notify(link)

    async def split(self, link: Link, name: str, number: int, slices: int | None) -> bool:
        """Split a generation into another number of slices, if all are at one place; see the port."""
        found = (await self._locked(link, name)).get(number, [])
        changed = split(found, slices) if found else found
        generations = f"{self.schema}.diptych_generations"
        if len(changed) != len(found):
            await link.execute(f"DELETE FROM {generations} WHERE name = $1 AND number = $2", name, number)
            await self._insert(link, changed)
        elif changed != found:
            await link.executemany(
                f"UPDATE {generations} SET epoch = $1, barrier = $2, slices_next = $3 "
                "WHERE name = $4 AND number = $5 AND slice = $6",
                [(each.epoch, each.barrier, each.slices_next, *each.lease_key) for each in changed],
            )
        if changed != found:
            await self.notify(link)
        return not changed or changed[0].barrier is None

    async def drop_generation(self, link: Link, name: str, number: int) -> None:
        """Remove a generation with all it holds; no error where it is gone."""
        builds = await self._locked(link, name)
        if number in builds:
            await self._drop(link, builds[number][0])
        await self.notify(link)

    async def _become_table_maker(self, link: Link) -> None:
        """Make what follows in this transaction the table maker's, if there is one: any of its members may drop it."""
        role = await link.fetchval(self._table_maker, self._plain_schema)
        if role is not None:
            await link.execute(f"SET LOCAL ROLE {quoted(role)}")

    async def _locked(self, link: Link, name: str) -> dict[int, list[Generation]]:
        """The generations of a name by number, each with its slices; nobody else changes them before this ends."""
        await link.execute(f"LOCK TABLE {self.schema}.diptych_projections IN SHARE ROW EXCLUSIVE MODE")
        builds: dict[int, list[Generation]] = {}
        for row in await link.fetch(f"{self.select_generations('WHERE g.name = $1')} FOR UPDATE", name):
            slice = generation_of(row)
            builds.setdefault(slice.number, []).append(slice)
        return builds

    async def _check_name_is_free(self, link: Link, name: str, table: Table) -> None:
        check_names(name, table)
        taken = await link.fetchval(
            f"SELECT name FROM {self.schema}.diptych_generations "
            "WHERE lower(table_name) = lower($1) AND name <> $2 LIMIT 1",
            table.name,
            name,
        )
        if taken is not None:
            raise ConfigurationError(
                f"{name} and {taken} would share the table {table.name} (case does not tell tables apart): rename one"
            )
        foreign = await link.fetchval(
            "SELECT count(*) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE n.nspname = $1 AND c.relname = $2 "
            f"AND NOT EXISTS (SELECT FROM {self.schema}.diptych_projections WHERE view_name = $2)",
            self._plain_schema,
            table.name,
        )
        if foreign or table.name.startswith("pg_"):
            why = "the schema holds something else of that name" if foreign else "PostgreSQL keeps pg_ for itself"
            raise ConfigurationError(f"the read model {name} cannot have a view {table.name} in PostgreSQL: {why}")

    async def _insert(self, link: Link, slices: Sequence[Generation]) -> None:
        await link.executemany(
            f"INSERT INTO {self.schema}.diptych_generations (name, number, slice, slices, fingerprint, table_name, "
            "form, live, history_id, position, event_id, epoch, stopped, recorded_at, barrier, slices_next, kept_until)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
            [
                (
                    *(made.name, made.number, made.slice, made.slices, made.fingerprint),
                    *(made.table and made.table.name, encode_table(made.table), made.live),
                    *(made.checkpoint.history_id, made.checkpoint.position, made.checkpoint.event_id),
                    *(made.epoch, made.stopped, made.recorded_at, made.barrier, made.slices_next, made.kept_until),
                )
                for made in slices
            ],
        )

    async def _set_live(self, link: Link, build: Generation, *, live: bool) -> None:
        await link.execute(
            f"UPDATE {self.schema}.diptych_generations SET live = $3, kept_until = NULL "
            "WHERE name = $1 AND number = $2",
            *(build.name, build.number, live),
        )

    async def _set_states(self, link: Link, slices: Sequence[Generation]) -> None:
        """Write until when slices are kept, and their epochs."""
        await link.executemany(
            f"UPDATE {self.schema}.diptych_generations SET kept_until = $1, epoch = $2 "
            "WHERE name = $3 AND number = $4 AND slice = $5",
            [(each.kept_until, each.epoch, *each.lease_key) for each in slices],
        )

    async def _drop(self, link: Link, build: Generation) -> None:
        place = build.name, build.number
        await link.execute(f"DELETE FROM {self.schema}.diptych_generations WHERE name = $1 AND number = $2", *place)
        await link.execute(f"DELETE FROM {self.schema}.diptych_blocked_keys WHERE name = $1 AND number = $2", *place)
        if build.table is not None:
            await link.execute(
                f"INSERT INTO {self.schema}.diptych_dropped_tables VALUES ($1, clock_timestamp())",
                StoredTable(build.table, *place, self.schema).plain_name,
            )

    # ── tidying up ───────────────────────────────────────────────────────────

    async def tidy(self, link: Link) -> float | None:
        """Let views show what is live, and drop the tables that nobody can be reading any more.

        In transactions of its own. Whoever reads is not waited for.

        Returns:
            After how many seconds there may be something to do again; None where there is nothing left.
        """
        stale = await self._stale_views(link)
        later = [TIDY_AGAIN_S for name in stale if not await self._tried(link, self._show, name)]
        dropped = await link.fetch(
            f"SELECT table_name, extract(epoch FROM clock_timestamp() - dropped_at)::double precision AS age "
            f"FROM {self.schema}.diptych_dropped_tables"
        )
        for table_name, age in dropped:
            if age < DROPPED_TABLE_KEPT_S:
                later.append(DROPPED_TABLE_KEPT_S - age)
            elif not await self._tried(link, self._drop_table, table_name):
                later.append(TIDY_AGAIN_S)
        return min(later, default=None)

    async def _stale_views(self, link: Link) -> Sequence[str]:
        rows = await link.fetch(
            f"SELECT p.name FROM {self.schema}.diptych_projections AS p "
            f"LEFT JOIN {self.schema}.diptych_generations AS g ON g.name = p.name AND g.live AND g.slice = 0 "
            "AND g.form IS NOT NULL WHERE p.view_number IS DISTINCT FROM g.number OR p.view_name <> g.table_name "
            "ORDER BY g.number NULLS FIRST"
        )
        return [name for (name,) in rows]

    async def _tried(self, link: Link, work: Any, name: str) -> bool:
        """Whether it was done, or is not for us to do; False where somebody is in the way."""
        await link.execute(begin(durably=False))
        try:
            wait = f"SET LOCAL lock_timeout = {round(TIDY_LOCK_WAIT_S * 1_000)}"
            await link.execute(f"{wait}; SET LOCAL client_min_messages = warning")
            await work(link, name)
        except asyncpg.PostgresError as error:
            await link.execute("ROLLBACK")
            if state_of(error) not in _IN_USE | _NOT_OURS:
                raise
            return state_of(error) in _NOT_OURS
        await link.execute("COMMIT")
        return True

    async def _show(self, link: Link, name: str) -> None:
        """Let the view of a projection show its live generation, or drop it where there is none."""
        (live, *_) = [*(build for build, *_ in (await self._locked(link, name)).values() if build.live), None]
        projections = f"{self.schema}.diptych_projections"
        (view_name,) = await link.fetchrow(f"SELECT view_name FROM {projections} WHERE name = $1", name) or (None,)
        table = None if live is None or live.table is None else live.table
        if view_name is not None and (table is None or table.name != view_name):
            await link.execute(f"DROP VIEW IF EXISTS {self.schema}.{quoted(view_name)}")
        number = None
        if table is not None and live is not None:
            number = live.number
            await self._create_view(link, StoredTable(table, name, number, self.schema))
        await link.execute(
            f"UPDATE {projections} SET view_name = $2, view_number = $3 WHERE name = $1",
            *(name, table and table.name, number),
        )

    async def _create_view(self, link: Link, table: StoredTable) -> None:
        """Replaced where its columns allow, which keeps what was granted on it and what others built on it."""
        await self._become_table_maker(link)
        await link.execute("SAVEPOINT replacing")
        try:
            await link.execute(f"CREATE OR REPLACE VIEW {table.view} AS {table.shown()}")
        except asyncpg.InvalidTableDefinitionError:
            await link.execute(f"ROLLBACK TO replacing; DROP VIEW {table.view}")
            await link.execute(f"CREATE VIEW {table.view} AS {table.shown()}")

    async def _drop_table(self, link: Link, table_name: str) -> None:
        await link.execute(f"DROP TABLE IF EXISTS {self.schema}.{quoted(table_name)}")
        await link.execute(f"DELETE FROM {self.schema}.diptych_dropped_tables WHERE table_name = $1", table_name)


def generation_of(row: asyncpg.Record, known: Table | None = None) -> Generation:
    """A slice from its row; the form is not read again where it is known."""
    name, number, fingerprint, form, live, history_id, position, event_id, epoch, stopped, recorded_at = row[:11]
    table = decode_table(form) if known is None else known
    place = Place(history_id, position, event_id)
    return Generation(name, number, fingerprint, table, live, place, epoch, stopped, recorded_at, *row[11:16])
