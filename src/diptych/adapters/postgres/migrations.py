"""Numbered migrations: how a schema in PostgreSQL comes to be, and how it is known to be the one that the code needs.

Migrations of one schema run one after the other in one transaction, whoever asks, and as often as anybody asks: an
advisory lock makes callers queue, and the primary key of the table of migrations fences them.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from diptych.adapters.postgres.connection import (
    BEGIN,
    DRIVER_ERRORS,
    OWNERS,
    Link,
    PostgresUrl,
    connect,
    failure,
    is_missing_schema,
    say_goodbye,
    transaction,
)
from diptych.errors import ConfigurationError, NewerStore

__all__ = ["Migration", "Migrations"]

MIGRATE_S_MAX = 3_600.0
"""How long one migration may take, and how long others wait for it."""
LOCK_SPACE = 0x44507465
"""The first half of the advisory lock's key ("DPte"); the other half is made from the schema's name."""


class Migration(msgspec.Struct, frozen=True):
    """One step.

    Attributes:
        number: 1, 2, 3 …; some may be left out.
        name: what it does, in a few words.
        sql: statements, in which `{schema}` stands for the quoted name of the schema. A migration that was released is
            never changed.
    """

    number: int
    name: str
    sql: str


class Migrations(msgspec.Struct, frozen=True):
    """The steps to one kind of store.

    Attributes:
        store: what it is, "event store"; one schema may hold several kinds.
        steps: in order.
    """

    store: str
    steps: Sequence[Migration]

    @property
    def newest(self) -> int:
        """The number of the last step."""
        return self.steps[-1].number

    def sql(self, url: PostgresUrl) -> str:
        """All steps as one script for psql, for a schema that has none of them."""
        schema = url.quoted_schema
        parts = ["BEGIN;", f"CREATE SCHEMA IF NOT EXISTS {schema};", f"{_table(schema)};"]
        for step in self.steps:
            parts += [f"-- {self.store} {step.number}: {step.name}", _statements(step, schema)]
            parts.append(_note(schema, self.store, step) + ";")
        return "\n".join([*parts, "COMMIT;", ""])

    async def apply(self, url: PostgresUrl) -> list[Migration]:
        """Bring the schema to the newest step; safe to run twice, and by several at once.

        Returns:
            The steps that were missing, in order; empty where none was.

        Raises:
            NewerStore: a newer Diptych migrated it.
            StoreUnavailable: the server cannot be reached, or refuses; nothing was changed.
        """
        link = await connect(url)
        try:
            async with transaction(link):
                return await self._apply(link, url)
        except DRIVER_ERRORS as error:
            raise (failure(url, error, denied=OWNERS) or error) from error
        finally:
            await say_goodbye(link)

    async def _apply(self, link: Link, url: PostgresUrl) -> list[Migration]:
        schema = url.quoted_schema
        await link.execute("SET LOCAL client_min_messages = warning; SET LOCAL synchronous_commit = on")
        lock = "SELECT pg_advisory_xact_lock($1, hashtext($2))"
        await link.execute(lock, LOCK_SPACE, url.schema, timeout=MIGRATE_S_MAX)
        if not await link.fetchval("SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1", url.schema):
            await link.execute(f"CREATE SCHEMA {schema}")
        await link.execute(_table(schema))
        found = await self._found(link, url)
        missing = [step for step in self.steps if step.number > found]
        for step in missing:
            await link.execute(_statements(step, schema), timeout=MIGRATE_S_MAX)
            await link.execute(_note(schema, self.store, step))
        return missing

    async def check(self, link: Link, url: PostgresUrl) -> None:
        """Make sure that the schema is as this code needs it.

        Raises:
            NewerStore: a newer Diptych migrated it.
            ConfigurationError: it was never migrated, or not by this version.
        """
        try:
            async with transaction(link, f"{BEGIN} READ ONLY"):
                found = await self._found(link, url)
        except asyncpg.PostgresError as error:
            if not is_missing_schema(error):
                raise
            found = 0
        if found < self.newest:
            has = f"is at migration {found} of {self.newest}" if found else f"holds no {self.store} yet"
            raise ConfigurationError(
                f"the schema {url.schema} of {url.shown} {has}: run diptych migrate {self._flag} {url.shown!r}"
            )

    @property
    def _flag(self) -> str:
        return "--store … --read-store" if self.store == "read store" else "--store"

    async def _found(self, link: Link, url: PostgresUrl) -> int:
        statement = f"SELECT coalesce(max(number), 0) FROM {url.quoted_schema}.migrations WHERE store = $1"
        found = int(await link.fetchval(statement, self.store))
        if found > self.newest:
            raise NewerStore(f"the schema {url.schema} of {url.shown}", found, self.newest)
        return found


def _table(schema: str) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS {schema}.migrations (\n"
        "    store text NOT NULL,\n"
        "    number integer NOT NULL,\n"
        "    name text NOT NULL,\n"
        "    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),\n"
        "    PRIMARY KEY (store, number)\n"
        ")"
    )


def _statements(step: Migration, schema: str) -> str:
    return step.sql.replace("{schema}", schema).strip()


def _note(schema: str, store: str, step: Migration) -> str:
    return f"INSERT INTO {schema}.migrations (store, number, name) VALUES ('{store}', {step.number}, '{step.name}')"
