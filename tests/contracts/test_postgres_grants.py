"""What the roles of `diptych migrate --grants` may and may not do: each tries, by hand, on its own connection (G13)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from diptych import Application
from diptych.adapters.connect import Port, default_read_store, grants_sql
from diptych.adapters.postgres import read_store as postgres_read_store
from diptych.adapters.postgres.append_function import CONTRADICTORY, PARAMETERS
from diptych.adapters.postgres.append_section import Batch, append_statement
from diptych.adapters.postgres.connection import Link, parse_url
from diptych.adapters.postgres.deployment import migrate
from diptych.adapters.postgres.event_store import connect
from diptych.adapters.postgres.grants import Role, role_name
from diptych.adapters.postgres.known_types import register_statement
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.application.registration import decided_models, event_types
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, NotGranted
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import StoredType
from diptych.event_store.model_unions import ModelUnion
from diptych.event_store.position import START
from diptych.event_store.timestamp import to_microseconds
from diptych.testing.contracts.event_store_case import append_one, commit, event, history_of, opened
from diptych.testing.contracts.read_store_cases import ARTICLES, NAME, SEATS, build, create, rows_of, write
from diptych.write_side.known_models import KnownModels
from tests import outgrown_orders
from tests.faults.counting import CounterId, Increment, counting
from tests.postgres_server import (
    GIVEN,
    ROLE_PREFIX,
    ROLES,
    as_role,
    by_hand,
    grant,
    login,
    make_login,
    new_database,
    new_granted_read_store,
    new_granted_store,
    new_granted_stores,
    new_read_store,
    new_store,
    remove_at_exit,
    run,
    url_as,
    with_parameter,
)

pytestmark = pytest.mark.anyio

DENIED = "42501"
TRIED = {
    "SELECT": "SELECT 1 FROM {name} LIMIT 1",
    "INSERT": "INSERT INTO {name} DEFAULT VALUES",
    "UPDATE": "UPDATE {name} SET {column} = {column}",
    "LOCK": "SELECT 1 FROM {name} FOR UPDATE",
    "DELETE": "DELETE FROM {name}",
    "TRUNCATE": "TRUNCATE {name}",
    "ALTER": "ALTER {kind} {name} RENAME TO renamed",
    "DROP": "DROP {kind} {name} CASCADE",
}
"""What is tried with every table and view of both schemas."""
CHANGED = "SELECT INSERT UPDATE LOCK DELETE"
ALL = f"{CHANGED} TRUNCATE ALTER DROP"
HISTORY = (
    "migrations",
    "history",
    "event_types",
    "event_versions",
    "events",
    "tags",
    "event_tags",
    "horizons",
    "model_unions",
)
SHOWN = (
    "diptych_projections",
    "diptych_generations",
    "diptych_blocked_keys",
    "diptych_discards",
    "diptych_retries",
    "diptych_dropped_tables",
)
PROCESSES = ("processes", "process_instances", "process_outgoing")
ALLOWED: Mapping[Role, Mapping[str, str]] = {
    "writer": {
        **dict.fromkeys((*HISTORY, *PROCESSES, "outcomes"), "SELECT"),
        "process_outgoing": CHANGED,  # where what it schedules waits
        "model_states": "SELECT INSERT UPDATE LOCK",
    },
    "reader": dict.fromkeys(
        (*HISTORY, *PROCESSES, *SHOWN, "read migrations", "counting_count", "counting_count__g1"), "SELECT"
    ),
    "projector": {
        **dict.fromkeys((*HISTORY, "read migrations"), "SELECT"),
        "processes": "SELECT INSERT UPDATE LOCK",
        "process_instances": "SELECT INSERT UPDATE LOCK",
        "process_outgoing": "SELECT INSERT UPDATE LOCK DELETE",
        "diptych_projections": "SELECT INSERT UPDATE LOCK",
        "diptych_generations": CHANGED,
        "diptych_blocked_keys": CHANGED,
        "diptych_discards": "SELECT INSERT",
        "diptych_retries": "SELECT INSERT",
        "diptych_workers": CHANGED,
        "diptych_dropped_tables": "SELECT INSERT DELETE",
        "counting_count__g1": ALL,
        "counting_count": ALL.replace(" TRUNCATE", ""),  # a view has nothing to truncate
    },
}
"""All that each role may do with any table or view."""


async def refusal(link: Link, statement: str, *arguments: object) -> str:
    """The state with which the server refuses a statement, which is undone; empty where it does not."""
    trial = link.transaction()
    await trial.start()
    try:
        await link.execute(statement, *arguments)
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)
    finally:
        await trial.rollback()
    return ""


@pytest.fixture
async def stores() -> str:
    """The event store's URL: with an event, and rows of it beside it, made by users in the roles."""
    url = await new_granted_stores()
    read_url = as_role(default_read_store(url), "projector")
    async with Application(counting, store=as_role(url, "writer"), read_store=read_url) as app:
        await app.execute(Increment(counter=CounterId("a")), command_id="1")
        await app.projected()
    return url


async def relations(url: str) -> dict[str, dict[str, str]]:
    """Every table and view of both schemas: how it is written, what it is, and its first column."""
    schema, read_schema = parse_url(url).schema, parse_url(default_read_store(url)).schema
    async with by_hand(url) as link:
        rows = await link.fetch(
            "SELECT n.nspname, c.relname, c.relkind::text, a.attname FROM pg_class AS c "
            "JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1 "
            "WHERE c.relkind IN ('r', 'v') AND n.nspname = ANY($1::text[])",
            [schema, read_schema],
        )
    return {
        f"read {name}" if (space, name) == (read_schema, "migrations") else name: {
            "name": f'"{space}"."{name}"',
            "kind": "TABLE" if kind == "r" else "VIEW",
            "column": f'"{column}"',
        }
        for space, name, kind, column in rows
    }


@pytest.mark.parametrize("role", ROLES)
async def test_g13_a_role_may_do_what_it_does_and_nothing_else(stores: str, role: Role) -> None:
    """Every statement is tried on every table and view there is; what is not refused is what is named here."""
    allowed: dict[str, str] = {}
    found = await relations(stores)
    assert {"events", "outcomes", "diptych_workers", "counting_count__g1", "counting_count"} <= found.keys()
    async with by_hand(as_role(stores, role)) as link:
        for name, relation in found.items():
            states = {verb: await refusal(link, text.format(**relation)) for verb, text in TRIED.items()}
            if verbs := " ".join(verb for verb, state in states.items() if state not in {DENIED, "42809"}):
                allowed[name] = verbs
    assert allowed == ALLOWED[role]


@pytest.mark.parametrize("role", ROLES)
async def test_g13_a_role_makes_and_changes_nothing_beside_the_tables(stores: str, role: Role) -> None:
    """Schemas, functions, databases, roles and rights are the owner's; only the projector makes tables, of rows."""
    schema, read_schema = parse_url(stores).schema, parse_url(default_read_store(stores)).schema
    statements = [
        f"CREATE TABLE {schema}.mine (a integer)",
        f"CREATE FUNCTION {schema}.mine() RETURNS integer LANGUAGE sql RETURN 1",
        f"ALTER FUNCTION {schema}.append SECURITY INVOKER",
        f"DROP FUNCTION {schema}.append",
        f"DROP SCHEMA {schema} CASCADE",
        f"DROP SCHEMA {read_schema} CASCADE",
        f"ALTER SCHEMA {schema} RENAME TO mine",
        f"ALTER TABLE {schema}.events DISABLE TRIGGER ALL",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        *(f"SET ROLE {role_name(ROLE_PREFIX, other)}" for other in ROLES if other != role),
    ]
    made = await refusal_of_all(as_role(stores, role), statements)
    assert {statement: state for statement, state in made.items() if state != DENIED} == {}
    rows = f"CREATE TABLE {read_schema}.mine (a integer)"
    made = await refusal_of_all(as_role(stores, role), [rows])
    assert made == {rows: "" if role == "projector" else DENIED}


async def refusal_of_all(url: str, statements: list[str]) -> dict[str, str]:
    async with by_hand(url) as link:
        return {statement: await refusal(link, statement) for statement in statements}


@pytest.mark.parametrize("role", ROLES)
async def test_g13_only_the_writer_adds_to_the_history(stores: str, role: Role) -> None:
    """Reader and projector call neither of its functions; the writer can."""
    schema = parse_url(stores).quoted_schema
    store = connect(as_role(stores, "writer"), SystemClock())
    async with opened(store), by_hand(as_role(stores, role)) as link:
        _, arguments = store._call(Batch([commit(event("Forged"))], [None], None), store._known.now, closely=False)
        states = [
            await refusal(link, append_statement(schema), *arguments),
            await refusal(link, register_statement(schema), ["Forged"], [1], [b"[]"], 1_000),
        ]
        assert states == (["", ""] if role == "writer" else [DENIED, DENIED])


async def test_g13_nobody_adds_to_the_history_who_was_not_granted_it() -> None:
    """What runs as its owner is not for everybody: not even before there are roles, for whoever sees the schema."""
    url = await new_store()
    schema = parse_url(url).quoted_schema
    nobody = f"{ROLE_PREFIX}_nobody"
    async with by_hand(url) as link:
        await make_login(link, nobody)
        await link.execute(f'GRANT USAGE ON SCHEMA {schema} TO "{nobody}"')
    async with by_hand(url_as(url, nobody)) as link:
        call = register_statement(schema)
        assert await refusal(link, call, ["Forged"], [1], [b"[]"], 1_000) == DENIED
        store = connect(url, SystemClock())
        async with opened(store):
            _, arguments = store._call(Batch([commit(event("Forged"))], [None], None), store._known.now, closely=False)
            assert await refusal(link, append_statement(schema), *arguments) == DENIED


async def test_g13_the_section_runs_nothing_of_its_callers() -> None:
    """It runs as its owner: a caller's own functions and operators, first on the caller's path, are not found by it."""
    url = await new_granted_store()
    trap = f"trap_of_{parse_url(url).schema}"
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$"
    await run(url, f'CREATE SCHEMA {trap} AUTHORIZATION "{login("writer")}"')
    store = connect(as_role(url, "writer"), SystemClock())
    async with opened(store), by_hand(as_role(url, "writer")) as link:
        for signature in ("cardinality(integer[]) RETURNS integer", "unnest(text[]) RETURNS SETOF text"):
            await link.execute(f"CREATE FUNCTION {trap}.{signature} {body}")
        await link.execute(f"SET search_path = {trap}, pg_temp, pg_catalog")
        _, arguments = store._call(Batch([commit(event("A", "a"))], [None], None), store._known.now, closely=False)
        schema = parse_url(url).quoted_schema
        await link.execute(append_statement(schema), *arguments)
        await link.execute(register_statement(schema), ["B"], [1], [b"[]"], 1_000)
        assert [recorded.type for recorded in await history_of(store)] == ["A"]


async def test_g13_a_function_of_the_same_name_is_not_taken_for_the_section() -> None:
    """The calls say their types, so that one whose signature a literal would fit better stays uncalled."""
    url = await new_granted_store()
    schema = parse_url(url).quoted_schema
    kinds = ", ".join("text" if name == "now_us" else kind for name, kind in PARAMETERS.items())
    body = "RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', session_user; END $$"
    await run(
        url,
        f"CREATE FUNCTION {schema}.append({kinds}) {body}",
        f"CREATE FUNCTION {schema}.register_types(text[], integer[], bytea[], text) {body}",
    )
    async with opened(connect(as_role(url, "writer"), SystemClock())) as writer:
        await append_one(writer, event("Mine"))
        await writer.register_types([StoredType("Mine", 1, ("a",))])
        assert await writer.stored_types() == [StoredType("Mine", 1, ("a",))]


# ── batches written by hand ──────────────────────────────────────────────────


FORGED: Mapping[str, Mapping[str, str]] = {
    "a tag of an event that is stored": {
        "tag_events": "{-1}",
        "event_commits": "[-1:1]={1,9,9}",
        "event_types": "[-1:1]={1,1,1}",
    },
    "events counted from 0": {"event_ids": "[0:0]={00}"},
    "a moment that nobody can read": {"now_us": "9223372036854775807"},
    "the first moment that nobody can read": {"now_us": str(to_microseconds(datetime.max.replace(tzinfo=UTC)) + 1)},
    "a gap behind the head": {"smooth": "false", "event_counts": "{9}"},
    "an event beyond the head": {"smooth": "false", "event_counts": "{0}", "event_ends": "{0}"},
    "an event of a commit that takes none": {"smooth": "false", "refused": "{true}"},
    "an event of no commit": {"event_commits": "{2}"},
    "an event of no commit, judged one by one": {"smooth": "false", "event_commits": "{2}"},
    "an event of nothing": {"event_commits": "{NULL}"},
    "commits that end before they begin": {"event_ends": "{-1}"},
    "commits that end nowhere": {"event_ends": "{NULL}"},
    "an outcome beyond the head": {
        "event_ends": "{9,1}",
        "event_counts": "{9,1}",
        "keeps_any": "true",
        "command_ids": "{x,y}",
        "keeps": "{true,true}",
        "payload_hashes": "{aa,bb}",
        "rejections": "{NULL,NULL}",
    },
}
"""What a writer may send by hand in place of what a batch of one event says, by what it would do."""


@pytest.mark.parametrize("lies", FORGED.values(), ids=FORGED)
async def test_g13_a_batch_that_contradicts_itself_is_refused(lies: Mapping[str, str]) -> None:
    """Whatever a writer sends by hand, what is stored stays as it is, and others can write and read on."""
    url = await new_granted_store()
    writer = connect(as_role(url, "writer"), SystemClock())
    async with (
        opened(connect(url, SystemClock())) as owner,
        opened(writer),
        by_hand(as_role(url, "writer")) as link,
    ):
        for _ in range(3):
            await append_one(owner, event("Old", "theirs"))
        before = await history_of(owner)
        forged = Batch([commit(event("Forged", "mine"))], [None], None)
        _, arguments = writer._call(forged, writer._known.now, closely=False)
        values = [lies.get(name, argument) for name, argument in zip(PARAMETERS, arguments, strict=True)]
        numbered = enumerate(zip(PARAMETERS.values(), values, strict=True), 1)
        sent = ", ".join(f"${n}::{'text::' if isinstance(value, str) else ''}{kind}" for n, (kind, value) in numbered)
        with pytest.raises(asyncpg.PostgresError) as refused:
            await link.execute(
                f"SELECT {parse_url(url).quoted_schema}.append({sent})",
                *values,
            )
        assert refused.value.sqlstate == CONTRADICTORY
        assert await history_of(owner) == before
        assert (await owner.read(EventQuery((QueryItem(tags=frozenset({"mine"})),)), START, 10)).events == []
        await append_one(owner, event("New", "theirs"))
        found = await owner.read(EventQuery((QueryItem(tags=frozenset({"theirs"})),)), START, 10)
        assert [recorded.position for recorded in found.events] == [1, 2, 3, 4]


# ── the tables that projectors make ──────────────────────────────────────────


@asynccontextmanager
async def reading(url: str) -> AsyncGenerator[PostgresReadStore]:
    store = postgres_read_store.connect(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def shown_by_view(url: str, role: Role) -> list[tuple[Any, ...]]:
    """What a program other than Diptych sees."""
    async with by_hand(as_role(url, role)) as link:
        rows = await link.fetch(f"SELECT * FROM {parse_url(url).quoted_schema}.school_seats")
        return [tuple(row) for row in rows]


async def owners(url: str) -> dict[str, str]:
    """Whose the tables of rows and the views are."""
    async with by_hand(url) as link:
        rows = await link.fetch(
            "SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class AS c "
            "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind IN ('r', 'v') "
            "AND c.relname NOT LIKE 'diptych%' AND c.relname <> 'migrations'",
            parse_url(url).schema,
        )
        return {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("role", ["reader", "projector"])
async def test_g13_whoever_adds_nothing_leaves_to_others_what_models_fold(role: Role) -> None:
    """It learns what is kept, and is refused where it would keep some itself."""
    url = await new_granted_store()
    contexts = [outgrown_orders.newer()]
    folds = decided_models(contexts, event_types(contexts))
    async with (
        opened(connect(as_role(url, "writer"), SystemClock())) as writer,
        opened(connect(as_role(url, role), SystemClock())) as store,
    ):
        assert await writer.keep_models([ModelUnion("orders.Other", 1, ())], b"")
        kept = await store.stored_models()
        known = KnownModels(folds, store, lambda: None)
        await known.open()
        assert known.mark == kept.mark
        with pytest.raises(NotGranted):
            await store.keep_models([ModelUnion("orders.Order", 1, ())], kept.mark)
        assert await writer.stored_models() == kept


async def test_what_one_worker_made_another_one_replaces_and_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and views belong to the role, not to the user who made them, and readers see each at once."""
    monkeypatch.setattr("diptych.adapters.postgres.read_catalog.DROPPED_TABLE_KEPT_S", 0)
    url = await new_granted_read_store()
    other = f"{ROLE_PREFIX}_other_worker"
    async with by_hand(url) as link:
        await make_login(link, other, role_name(ROLE_PREFIX, "projector"))
    async with (
        reading(as_role(url, "projector")) as first,
        reading(url_as(url, other)) as second,
        reading(as_role(url, "reader")) as reader,
    ):
        await build(first, SEATS, [("a", 1)])
        assert await rows_of(reader) == await shown_by_view(url, "reader") == [("a", 1)]
        made = await create(second, SEATS, live=False)
        made = await write(second, made, upserts=[("b", 2)], checkpoint=(await reader.generations())[0].checkpoint)
        assert await second.switch(NAME, made.number)
        assert await rows_of(reader) == await shown_by_view(url, "reader") == [("b", 2)]
    assert await owners(url) == {
        "school_seats": role_name(ROLE_PREFIX, "projector"),
        "school_seats__g2": role_name(ROLE_PREFIX, "projector"),
    }


async def test_tables_of_before_the_roles_change_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that ran as the owner until now goes on: its rows are read, replaced and dropped by the roles."""
    monkeypatch.setattr("diptych.adapters.postgres.read_catalog.DROPPED_TABLE_KEPT_S", 0)
    url = await new_read_store()
    async with reading(url) as owner:
        await build(owner, SEATS, [("a", 1)])
        await run(url, f"CREATE VIEW {parse_url(url).schema}.of_others AS SELECT 1 AS one")
        await run(url, f"CREATE TABLE {parse_url(url).schema}.of_others__g1 (one integer)")
        before = await owners(url)
        await grant(url, "read_store")
        projector = role_name(ROLE_PREFIX, "projector")
        others = {name: owner for name, owner in before.items() if name.startswith("of_others")}
        assert len(others) == 2
        assert await owners(url) == dict.fromkeys(before, projector) | others
        await build(owner, ARTICLES, [], "press.Articles")
        assert (await owners(url))["press_articles__g1"] == projector
    async with reading(as_role(url, "projector")) as worker, reading(as_role(url, "reader")) as reader:
        assert await rows_of(reader) == await shown_by_view(url, "reader") == [("a", 1)]
        made = await create(worker, SEATS, live=False)
        made = await write(worker, made, upserts=[("b", 2)], checkpoint=(await reader.generations())[0].checkpoint)
        assert await worker.switch(NAME, made.number)
        assert await rows_of(reader) == await shown_by_view(url, "reader") == [("b", 2)]
        assert "school_seats__g1" not in await owners(url)


# ── the script ───────────────────────────────────────────────────────────────


async def rights(url: str) -> list[tuple[Any, ...]]:
    """Every right and owner in the database: of schemas, tables, functions, what is to be made; and the roles."""
    async with by_hand(url) as link:
        rows = await link.fetch(
            "SELECT 'schema', nspname::text, nspowner::text, nspacl::text FROM pg_namespace "
            "UNION ALL SELECT 'relation', oid::text, relowner::text, relacl::text FROM pg_class WHERE oid > 16384 "
            "UNION ALL SELECT 'function', oid::text, proowner::text, proacl::text FROM pg_proc WHERE oid > 16384 "
            "UNION ALL SELECT 'default', defaclnamespace::text, defaclrole::text, defaclacl::text FROM pg_default_acl "
            "ORDER BY 1, 2, 3"
        )
        return [tuple(row) for row in rows]


async def test_the_script_may_be_run_again() -> None:
    """The second time changes nothing; a right that was given by hand, or is not the roles' any more, is taken back."""
    url = await new_granted_stores()
    read_url = default_read_store(url)
    async with reading(as_role(read_url, "projector")) as store:
        await build(store, SEATS, [("a", 1)])
    before = await rights(url)
    assert any(ROLE_PREFIX in str(row) for row in before)
    await grant(url, "event_store")
    await grant(read_url, "read_store")
    assert await rights(url) == before
    reader = role_name(ROLE_PREFIX, "reader")
    await run(url, f"GRANT DELETE ON {parse_url(url).quoted_schema}.events TO {reader}")
    await run(url, f"GRANT EXECUTE ON FUNCTION {parse_url(url).quoted_schema}.append TO {reader}, PUBLIC")
    assert await rights(url) != before
    await grant(url, "event_store")
    assert await rights(url) == before


@pytest.mark.parametrize("port", ["event_store", "read_store"])
async def test_stores_in_one_schema_get_no_roles(port: Port) -> None:
    """Whoever makes tables there could make functions beside the section: each script looks, and grants nothing."""
    url = await new_store()
    await migrate(url, "read_store")
    before = await rights(url)
    with pytest.raises(asyncpg.RaiseError, match="Give read models a schema of their own"):
        await run(url, grants_sql(url, port, ROLE_PREFIX) or "")
    assert await rights(url) == before


async def test_an_administrator_who_is_no_superuser_may_run_it() -> None:
    """Who owns the database and may make roles: the one that many a hosted server gives."""
    prefix, admin = f"{ROLE_PREFIX}_hosted", f"{ROLE_PREFIX}_admin"
    database = await new_database()
    async with by_hand(database) as link:
        await make_login(link, admin)
        await link.execute(f'ALTER ROLE "{admin}" CREATEROLE')
        await link.execute(f'ALTER DATABASE {await link.fetchval("SELECT current_database()")} OWNER TO "{admin}"')
        await link.execute(f"REVOKE CONNECT ON DATABASE {await link.fetchval('SELECT current_database()')} FROM PUBLIC")
    if GIVEN:
        remove_at_exit(*(f'DROP ROLE IF EXISTS "{role_name(prefix, role)}"' for role in ROLES))
    url = url_as(database, admin)
    await migrate(url, "read_store")
    async with reading(url) as owner:
        await build(owner, SEATS, [("a", 1)])
        for _ in range(2):
            await run(url, grants_sql(url, "read_store", prefix) or "")
        await create(owner, SEATS)
    worker, reader = f"{prefix}_worker", f"{prefix}_looking"
    async with by_hand(url) as link:
        for user, role in ((worker, role_name(prefix, "projector")), (reader, role_name(prefix, "reader"))):
            await make_login(link, user, role)
    async with reading(url_as(database, worker)) as store, reading(url_as(database, reader)) as looking:
        made = await create(store, SEATS, live=False)
        assert await store.switch(NAME, made.number)
        assert await rows_of(looking) == []


async def test_every_table_of_a_store_is_thought_of() -> None:
    """One that a later migration makes has to be in the grants too, and each function."""
    for url, port in ((await new_store(), "event_store"), (await new_read_store(), "read_store")):
        script = grants_sql(url, port, "p") or ""  # type: ignore[arg-type]
        schema = parse_url(url)
        async with by_hand(url) as link:
            names = await link.fetch(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = $1::text::regnamespace "
                "UNION SELECT proname FROM pg_proc WHERE pronamespace = $1::text::regnamespace",
                schema.schema,
            )
        assert len(names) > 5
        assert [name for (name,) in names if f" {schema.quoted_schema}.{name} TO" not in script] == []


@pytest.mark.parametrize("prefix", ["", 'a"b', "a'; DROP ROLE postgres; --", "pg_mine", "a" * 41, "a b"])
async def test_a_prefix_that_needs_escaping_is_refused(prefix: str) -> None:
    """Nothing of it is in a script."""
    with pytest.raises(ConfigurationError, match="the roles' prefix="):
        grants_sql("postgresql://h/d", "event_store", prefix)


async def test_names_are_quoted() -> None:
    """A schema and roles in capitals are those, not their small namesakes."""
    url = with_parameter(await new_database(), "schema", "Select")
    await migrate(url, "read_store")
    script = grants_sql(url, "read_store", f"{ROLE_PREFIX}_Order") or ""
    if GIVEN:
        remove_at_exit(*(f'DROP ROLE IF EXISTS "{ROLE_PREFIX}_Order_{role}"' for role in ROLES))
    await run(url, script)
    worker = f"{ROLE_PREFIX}_Order_worker"
    async with by_hand(url) as link:
        await make_login(link, worker, f"{ROLE_PREFIX}_Order_projector")
    async with reading(url_as(url, worker)) as store:
        await build(store, SEATS, [("a", 1)])
        assert await rows_of(store) == [("a", 1)]
    assert (await owners(url))["school_seats__g1"] == f"{ROLE_PREFIX}_Order_projector"
