"""An application whose processes are in roles with few rights, and what one says that is in the wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from diptych import Application, BoundedContext, Event, NotFresh
from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres.connection import parse_url
from diptych.adapters.postgres.deployment import migrate
from diptych.adapters.postgres.event_store import connect
from diptych.adapters.postgres.grants import Role, role_name
from diptych.application.registration import event_types
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, NotGranted, SchemaChanged
from diptych.event_store.event_store import StoredType
from diptych.event_store.history import History
from diptych.messages.message import MessageMeta
from diptych.testing.contracts.event_store_case import append_one, event, opened
from tests.cli_project import Project, project_in
from tests.faults.counting import Count, CounterId, CountOf, Increment, counting
from tests.postgres_server import (
    ROLE_PREFIX,
    as_role,
    by_hand,
    grant,
    in_thread,
    login,
    new_database,
    new_granted_stores,
    new_store,
    run,
    with_parameter,
)

pytestmark = pytest.mark.anyio

HANG_S = 30
"""Seconds after which a test that waits in vain fails."""
A, B = CounterId("a"), CounterId("b")


@pytest.fixture
async def url() -> str:
    return await new_granted_stores()


def application(url: str, store: Role, read_store: Role, *, projecting: bool, read_url: str = "") -> Application:
    read_url = as_role(read_url or default_read_store(url), read_store)
    return Application(counting, store=as_role(url, store), read_store=read_url, projecting=projecting)


def api_of(url: str, read_url: str = "") -> Application:
    """As `diptych run --role api` does it: the writer's role for the events, the reader's for the rows."""
    return application(url, "writer", "reader", projecting=False, read_url=read_url)


def worker_of(url: str, read_url: str = "") -> Application:
    """As `diptych run --role worker` does it: the projector's role for both."""
    return application(url, "projector", "projector", projecting=True, read_url=read_url)


@asynccontextmanager
async def api_and_worker(url: str, read_url: str = "") -> AsyncGenerator[tuple[Application, Application]]:
    async with asyncio.timeout(HANG_S), api_of(url, read_url) as api, worker_of(url, read_url) as worker:
        yield api, worker


# ── an application in roles ──────────────────────────────────────────────────


async def test_an_api_and_a_worker_do_their_part_in_roles_of_their_own(url: str) -> None:
    """Command, projection and query that waits for it; again from new tables after a rebuild; and after a restart."""
    for restart in range(2):
        async with api_and_worker(url) as (api, worker):
            total = 3 * restart + 3
            for n in range(total - 2, total + 1):
                receipt = await api.execute(Increment(counter=A), command_id=f"a-{n}")
                assert await api.query(CountOf(counter=A), after=receipt) == Count(counter=A, value=n, events=n)
                assert await api.query(CountOf(counter=A), within_s=0.0) is not None
            assert await worker.rebuilds.rebuild("counting.Count") == (await api.status()).head
            receipt = await api.execute(Increment(counter=B), command_id=f"b-{restart}")
            assert await api.query(CountOf(counter=B), after=receipt) is not None
            found = await api.query(CountOf(counter=A), freshness="latest")
            assert found == Count(counter=A, value=total, events=total)
            assert (await api.health()).ready
    schema = parse_url(default_read_store(url)).quoted_schema
    async with by_hand(as_role(url, "reader")) as link:
        assert await link.fetchval(f"SELECT number FROM {schema}.diptych_generations WHERE live") == 3
        assert await link.fetchval(f"SELECT events FROM {schema}.counting_count WHERE counter = 'a'") == 6


async def test_events_and_rows_may_be_in_two_databases() -> None:
    """Each database gets what its URL prints, and the roles are the same."""
    events, rows = await new_store(), with_parameter(await new_database(), "schema", "rows")
    await migrate(rows, "read_store")
    await grant(events, "event_store")
    await grant(rows, "read_store")
    async with api_and_worker(events, rows) as (api, _):
        receipt = await api.execute(Increment(counter=A))
        assert await api.query(CountOf(counter=A), after=receipt) == Count(counter=A, value=1, events=1)


async def test_an_api_that_is_first_waits_for_the_worker(url: str) -> None:
    """On an empty history it makes no table, which is not its right: it opens, and answers once a worker was there."""
    async with asyncio.timeout(HANG_S), api_of(url) as api:
        receipt = await api.execute(Increment(counter=A))
        with pytest.raises(NotFresh, match="not built from the history yet"):
            await api.query(CountOf(counter=A), wait_s=0.0)
        asked = asyncio.create_task(api.query(CountOf(counter=A), after=receipt, wait_s=HANG_S))
        async with worker_of(url):
            assert await asked == Count(counter=A, value=1, events=1)


async def test_a_worker_that_is_first_says_what_is_missing(url: str) -> None:
    """New event types are the writer's to add; once an api was there, nothing is new, and nothing is written."""
    with pytest.raises(
        NotGranted, match=r"register_types \(event types that are new here: counting.Incremented\)"
    ) as no:
        await worker_of(url).open()
    assert no.value.role == login("projector")
    assert "writer's role" in str(no.value)
    async with api_of(url):
        pass
    async with worker_of(url) as worker, application(url, "reader", "reader", projecting=False) as looking:
        assert (await worker.status()).head == (await looking.status()).head == 0


async def test_types_are_registered_when_they_are_new_or_changed(url: str) -> None:
    """What is known is not written again; tag names that no event holds to yet may still change."""
    reader, writer = connect(as_role(url, "reader"), SystemClock()), connect(as_role(url, "writer"), SystemClock())
    async with opened(reader), opened(writer):
        await writer.register_types([StoredType("A", 1, ("x",)), StoredType("B", 1, ())])
        await reader.register_types([StoredType("A", 1, ("x",))])
        for other in (StoredType("A", 1, ("y",)), StoredType("A", 2, ("x",)), StoredType("C", 1, ())):
            with pytest.raises(NotGranted):
                await reader.register_types([StoredType("B", 1, ()), other])
        await writer.register_types([StoredType("A", 1, ("y",))])
        await append_one(writer, event("A"), event("D"))
        assert await writer.stored_types() == [StoredType("A", 1, ("y",)), StoredType("D", 1, ())]
        await reader.register_types([StoredType("A", 1, ("x",))])  # events hold it to y: told elsewhere
        with pytest.raises(NotGranted):
            await reader.register_types([StoredType("D", 1, ("d",))])  # stored by whoever did not register it
        await writer.register_types([StoredType("D", 1, ("d",))])
        assert (await writer.stored_types())[1] == StoredType("D", 1, ("d",))


async def test_who_may_not_write_compares_schemas_and_keeps_none(url: str) -> None:
    """A reader opens on what a writer has yet to tell of: facts that are not known, and a schema that is new."""

    def counters(**more: str | None) -> BoundedContext:
        fields = {"counter": CounterId, **dict.fromkeys(more, str)}
        defaults = {name: default for name, default in more.items() if default is not None}
        namespace = {"__module__": __name__, "__annotations__": fields, **defaults}
        made: Any = MessageMeta("Counted", (Event,), namespace)
        return BoundedContext("tally", events=[made])

    async def stored(role: Role, context: BoundedContext) -> list[StoredType]:
        store = connect(as_role(url, role), SystemClock())
        async with opened(store):
            await History(event_types([context])).register(store, ["tally"])
            return await store.stored_types()

    assert await stored("writer", counters()) == []
    writer = connect(as_role(url, "writer"), SystemClock())
    async with opened(writer):
        assert await stored("reader", counters(note="")) == []  # no event is stored: nothing to keep to
        await append_one(writer, event("tally.Counted", "counter:a"))
    schema = parse_url(url).quoted_schema
    await run(url, f"UPDATE {schema}.event_versions SET facts = NULL")
    read_only: tuple[Role, Role] = ("reader", "projector")
    for role in read_only:
        assert [type.facts for type in await stored(role, counters())] == [None]
    (known,) = [type.facts for type in await stored("writer", counters())]
    assert known is not None
    for role in read_only:
        assert [type.facts for type in await stored(role, counters(note=""))] == [known]
        with pytest.raises(SchemaChanged, match="note is new and has no default"):
            await stored(role, counters(note=None))
    (joined,) = [type.facts for type in await stored("writer", counters(note=""))]
    assert joined is not None
    assert len(joined.schemas) == 2
    assert [type.facts for type in await stored("reader", counters())] == [joined]


# ── in the wrong role ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("role", "read_role", "projecting", "refused"),
    [
        ("projector", "reader", True, "diptych_projections"),
        ("projector", "writer", True, "schema"),
        ("projector", "writer", False, "schema"),
    ],
)
async def test_a_process_in_the_wrong_role_does_not_open(
    url: str, role: Role, read_role: Role, refused: str, *, projecting: bool
) -> None:
    """The error says what was refused, to whom, and what to do; it is none that a retry mends."""
    async with api_of(url):
        pass
    with pytest.raises(NotGranted, match=f"permission denied for .*{refused}.*diptych migrate --grants") as no:
        await application(url, role, read_role, projecting=projecting).open()
    assert no.value.role == login(read_role)
    assert isinstance(no.value, ConfigurationError)
    assert "of tests" not in str(no.value)


async def test_a_command_in_the_wrong_role_is_refused(url: str) -> None:
    """Nothing is appended; whoever only reads can read on."""
    async with api_of(url):
        pass
    async with application(url, "projector", "reader", projecting=False) as app:
        with pytest.raises(NotGranted, match="permission denied for function append, as") as no:
            await app.execute(Increment(counter=A))
        assert no.value.role == login("projector")
        with pytest.raises(NotGranted, match="permission denied for table outcomes"):
            await app.execute(Increment(counter=A), command_id="1")
        assert (await app.status()).head == 0


async def test_a_right_that_is_taken_away_ends_the_projections(url: str) -> None:
    """A worker does not try for ever: its health says what was refused, and to whom."""
    schema = parse_url(default_read_store(url)).quoted_schema
    projector = role_name(ROLE_PREFIX, "projector")
    async with api_and_worker(url) as (api, worker):
        await api.query(CountOf(counter=A), after=await api.execute(Increment(counter=A)))
        await run(url, f"REVOKE INSERT, UPDATE ON {schema}.diptych_generations FROM {projector}")
        await api.execute(Increment(counter=A))
        with pytest.raises(NotFresh, match=f"permission denied for table diptych_generations, as {login('projector')}"):
            await worker.projected()
        health = await worker.health()
        assert not health.ready
        assert "projections have stopped: NotGranted" in health.reason
        await run(url, f"GRANT INSERT, UPDATE ON {schema}.diptych_generations TO {projector}")


async def test_whom_it_is_connected_as_is_told_where_the_url_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libpq finds it: in the URL, among its parameters, in the environment."""
    monkeypatch.setenv("PGUSER", "from_outside")
    assert parse_url("postgresql://h/d").user == "from_outside"
    assert parse_url("postgresql://h/d?user=given").user == "given"
    assert parse_url("postgresql://a%40b:secret@h/d").user == "a@b"
    monkeypatch.delenv("PGUSER")
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    assert parse_url("postgresql://h/d").user == "me"


# ── the command line ─────────────────────────────────────────────────────────


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\n')
        yield made


def test_commands_that_look_need_only_read(project: Project) -> None:
    """`status`, `events` and `parked list` are the reader's; `rebuild` is the projector's, and says so."""
    url = in_thread(new_granted_stores())
    rows = default_read_store(url)
    code, _, err = project.run(
        "rebuild", "Seats", "--store", as_role(url, "reader"), "--read-store", as_role(rows, "reader")
    )
    assert code == 1
    assert "event types that are new here" in err
    assert (
        project.run("status", "--store", as_role(url, "writer"), "--read-store", as_role(rows, "projector")).code == 0
    )
    looking = ("--store", as_role(url, "reader"), "--read-store", as_role(rows, "reader"))
    for command in (("status", *looking), ("events", *looking[:2]), ("parked", "list", *looking)):
        code, _, err = project.run(*command)
        assert (code, err) == (0, "")
    code, out, err = project.run("rebuild", "Seats", *looking)
    assert (code, out) == (1, "")
    assert f"permission denied for table diptych_projections, as {login('reader')}" in err
    working = ("--store", as_role(url, "projector"), "--read-store", as_role(rows, "projector"))
    assert project.run("rebuild", "Seats", *working).code == 0
