"""PostgreSQL's read store when things go wrong: cut connections, stopped and killed processes, races between them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from anyio.lowlevel import checkpoint

import diptych
from diptych import Application
from diptych.adapters.postgres import attempts, read_catalog
from diptych.adapters.postgres.connection import parse_url
from diptych.adapters.postgres.read_store import PostgresReadStore, connect
from diptych.errors import StoreUnavailable
from diptych.read_side.read_store import Fenced, Order, SliceWrite, Written
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    shown_generation,
    stored_generation,
    write,
)
from tests.faults.counting import Count, CounterId, CountOf, Increment, counting
from tests.postgres_line import Line
from tests.postgres_server import by_hand, left_in_transaction, new_read_store, new_stores, run
from tests.school import Auditor, CourseId, Enrol, OpenCourse, Seats, SeatsOf, StudentId, school, with_seats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

    from diptych.adapters.postgres.connection import Link
    from diptych.read_side.read_store import Key

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 20
PYTHON = CourseId("python")
KILLS = 3
ROWS = 300
WORKER = """
import asyncio, sys
from diptych.adapters.postgres.read_store import connect
from diptych.event_store.position import Position
from diptych.read_side.read_store import BlockedKey, SliceWrite
from diptych.testing.contracts.read_store_cases import ARTICLES, NAME, SEATS, place

def told(text):
    print(text, flush=True)

async def keep_writing(store, rows, blocking):
    while True:
        writes = []
        for generation in await store.generations():
            position = Position(generation.checkpoint.position + 1)
            wide = len(generation.table.columns) == 4
            upserts = [(f"c{n}", position, f"word{position}", None)[:4 if wide else 2] for n in range(rows)]
            block = [BlockedKey(generation.name, "[]", position, "boom")] * blocking
            writes.append(SliceWrite(generation, place(position), upserts, block=block))
        await store.write(writes)
        told(position)

async def make(store):
    made = [await store.create_generation(NAME, str(n), SEATS, place(0), live=n == 0) for n in range(20)]
    told([generation.number for generation in made])

async def stop_in_the_middle(store):
    (generation,) = await store.generations()
    async with store._writing.connection() as link:
        from diptych.adapters.postgres.read_catalog import begin
        from diptych.adapters.postgres import read_writes
        await link.execute(begin(durably=False))
        plan = read_writes.plan(SliceWrite(generation, place(5), upserts=[("a", 99)]), store._builds)
        await read_writes.apply(link, store._catalog, [plan])
        told("in the middle")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        try:
            await link.execute("COMMIT")
            told("committed")
        except Exception as error:
            told(type(error).__name__)
    told(await store.write([SliceWrite(generation, place(6), upserts=[("a", 100)])]))

async def main(url, what, *arguments):
    store = connect(url)
    await store.open()
    told("ready")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await {"write": keep_writing, "make": make, "stop": stop_in_the_middle}[what](store, *map(int, arguments))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def url() -> str:
    return await new_read_store()


@pytest.fixture
async def store(url: str) -> AsyncGenerator[PostgresReadStore]:
    store = connect(url)
    await store.open()
    yield store
    await store.close()


@contextmanager
def worker(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, which begins with the next line that it reads."""
    environment = {**os.environ, "PYTHONPATH": str(Path(diptych.__file__).parents[1])}
    command = [sys.executable, "-c", WORKER, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        try:
            assert line_of(process.stdout) == "ready"
            yield process
        finally:
            process.kill()


def line_of(pipe: IO[str] | None) -> str:
    assert pipe is not None
    return pipe.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


# ── connections ──────────────────────────────────────────────────────────────


async def cut(link: Link, which: str) -> None:
    """End the server's side of connections to this database, once there are any in that state."""
    statement = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND ({which})"
    )
    async with asyncio.timeout(WAIT_S_MAX):
        while not await link.fetchval(statement):
            pass


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[Link]:
    """While a transaction by hand holds the table, whoever writes to it waits in the middle of its own."""
    async with by_hand(url) as link, link.transaction():
        await link.execute(f"LOCK TABLE {url.rpartition('schema=')[2]}.{table} IN EXCLUSIVE MODE")
        yield link


@pytest.mark.parametrize("deletes", [(), [("z",)]], ids=["in one statement", "in several"])
async def test_a_write_whose_connection_is_cut_leaves_nothing_half(
    url: str, store: PostgresReadStore, deletes: Sequence[Key]
) -> None:
    """Its checkpoint may have moved, its rows had not: neither is kept, and the next write goes on from there."""
    generation = await build(store, SEATS, [("a", 1)])
    async with locked(url, "school_seats__g1"), by_hand(url) as other:
        writing = asyncio.create_task(store.write([SliceWrite(generation, place(5), [("a", 5)], deletes)]))
        await cut(other, "wait_event_type = 'Lock'")
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(writing, WAIT_S_MAX)
        assert await stored_generation(store) == generation
        assert await rows_of(store) == [("a", 1)]
    await write(store, generation, checkpoint=place(5), upserts=[("a", 5)])
    assert await rows_of(store) == [("a", 5)]


async def test_idle_connections_that_were_cut_are_made_anew(url: str, store: PostgresReadStore) -> None:
    """A restart of the server cuts all of them; the next reads, writes and waits go on."""
    generation = await build(store, SEATS, [("a", 1)])
    await store.wait_for_change(0, 0)
    async with by_hand(url) as other:
        await cut(other, "state LIKE 'idle%'")
    assert await rows_of(store) == [("a", 1)]
    generation = await write(store, generation, upserts=[("a", 2)])
    seen = await store.wait_for_change(0, 0)
    waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
    await asyncio.wait([waiting], timeout=0)
    await write(store, generation, upserts=[("a", 3)])
    assert await asyncio.wait_for(waiting, WAIT_S_MAX) != seen


async def test_a_write_that_is_kept_back_since_the_server_says_goodbye_is_made_on_another_connection(
    url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The goodbye has come, the end of the line has not: nothing was sent, so that it is sent again."""
    line = Line(url, tmp_path_factory.mktemp("l"))
    store = connect(await line.open())
    await store.open()
    try:
        generation = await build(store, SEATS, [("a", 1)])
        await line.say_goodbye()
        await write(store, generation, upserts=[("a", 2)])
        assert await rows_of(store) == [("a", 2)]
    finally:
        await store.close()
        await line.close()


async def test_a_snapshot_whose_connection_is_cut_says_so(url: str, store: PostgresReadStore) -> None:
    """Its reads are unavailable; the next snapshot is fine."""
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        await shown_generation(snapshot, NAME)
        async with by_hand(url) as other:
            await cut(other, "state = 'idle in transaction'")
        with pytest.raises(StoreUnavailable):
            await shown_generation(snapshot, NAME)
        with pytest.raises(StoreUnavailable):
            await snapshot.count(NAME, ())
    assert await rows_of(store) == [("a", 1)]


async def test_a_cancelled_write_is_finished_and_leaves_no_transaction(url: str, store: PostgresReadStore) -> None:
    """Who has cancelled it does not know its outcome; it is whole."""
    generation = await build(store, SEATS, [("a", 1)])
    async with locked(url, "school_seats__g1"), by_hand(url) as other:
        writing = asyncio.create_task(store.write([SliceWrite(generation, place(5), upserts=[("a", 5)])]))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        async with asyncio.timeout(WAIT_S_MAX):
            while not await other.fetchval(waiting):
                pass
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await store.close()  # waits for it
    async with by_hand(url) as other:
        left = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert await other.fetchval(left) == 0
    await store.open()
    assert await rows_of(store) == [("a", 5)]


async def test_a_write_that_waits_too_long_for_a_lock_changes_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is in the way."""
    monkeypatch.setattr(read_catalog, "LOCK_WAIT_S", 0.05)
    store = connect(url)
    await store.open()
    generation = await build(store, SEATS, [("a", 1)])
    async with locked(url, "school_seats__g1"):
        for deletes in ((), [("z",)]):
            with pytest.raises(StoreUnavailable, match="another transaction holds its lock"):
                await store.write([SliceWrite(generation, place(5), [("a", 5)], deletes)])
    assert await stored_generation(store) == generation
    await write(store, generation, upserts=[("a", 5)])
    await store.close()


async def test_a_write_that_the_server_ends_for_anothers_sake_is_tried_again(
    url: str, store: PostgresReadStore
) -> None:
    """A deadlock or a failed serialization says that nothing was done; past the limit it is unavailable."""
    generation = await build(store, SEATS, [("a", 1)])
    schema = url.rpartition("schema=")[2]
    await run(
        url,
        f"CREATE SEQUENCE {schema}.tries",
        f"""CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('{schema}.tries') % 8 < 4 THEN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END IF;
            RETURN NEW; END $$""",
        f"CREATE TRIGGER fail BEFORE UPDATE ON {schema}.diptych_generations "
        f"FOR EACH ROW EXECUTE FUNCTION {schema}.fail()",
    )
    generation = await write(store, generation, upserts=[("a", 2)])
    assert await rows_of(store) == [("a", 2)]
    await run(url, f"ALTER SEQUENCE {schema}.tries MINVALUE 0 MAXVALUE 3 CYCLE RESTART 0")
    with pytest.raises(StoreUnavailable, match="send it again"):
        await write(store, generation, upserts=[("a", 3)])
    assert await stored_generation(store) == generation
    assert await rows_of(store) == [("a", 2)]


class Absent:
    async def look(self, taken: int) -> None: ...


async def test_a_projector_goes_on_when_its_connections_are_cut(url: str, tmp_path: Path) -> None:
    """Its events are in SQLite, its rows here: adapters know nothing of each other. Nothing is lost or doubled."""
    rounds = 10
    context, services = with_seats(school()), {Auditor: Absent()}
    store = f"sqlite:{tmp_path}/events.db"
    async with Application(context, store=store, read_store=url, services=services) as app:
        receipt = await app.execute(OpenCourse(course=PYTHON, capacity=rounds))
        async with by_hand(url) as other:
            for number in range(rounds):
                receipt = await app.execute(Enrol(course=PYTHON, student=StudentId(f"s{number}")))
                await cut(other, "true")
        answer = await app.query(SeatsOf(course=PYTHON), after=receipt, wait_s=WAIT_S_MAX)
        assert answer == Seats(course=PYTHON, taken=rounds)
        assert (await app.rebuilds.compare("school.Seats")).same


async def test_who_is_cancelled_while_their_token_is_looked_up_leaves_nothing_behind() -> None:
    """Neither a task nor a transaction; the next one is answered."""
    url = await new_stores()
    query = CountOf(counter=CounterId("c"))
    async with Application(counting, store=url) as app, by_hand(url) as other:
        receipt = await app.execute(Increment(counter=query.counter))
        assert await app.query(query, after=receipt) == Count(counter=query.counter, value=1, events=1)
        before = asyncio.all_tasks()
        events = f"{parse_url(url).quoted_schema}.events"
        await other.execute(f"BEGIN; LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE")
        asking = asyncio.create_task(app.query(query, after=receipt))
        waits = f"SELECT count(*) FROM pg_locks WHERE relation = '{events}'::regclass AND NOT granted"
        while not await other.fetchval(waits):
            pass
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(WAIT_S_MAX):
            while asyncio.all_tasks() - before:
                await checkpoint()
            await other.execute("ROLLBACK")
            while await left_in_transaction(other):
                pass
        assert await app.query(query, after=receipt) == Count(counter=query.counter, value=1, events=1)


# ── processes ────────────────────────────────────────────────────────────────


async def test_two_processes_make_one_generation(url: str, store: PostgresReadStore) -> None:
    """Racing with the same folds, one after the other, both are given the same ones, without a gap."""
    with worker(url, "make") as one, worker(url, "make") as other:
        go_on(one)
        go_on(other)
        made = [line_of(one.stdout), line_of(other.stdout)]
    assert made[0] == made[1]
    assert [generation.number for generation in await store.generations()] == list(range(1, 21))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("blocking", [0, 1], ids=["in one statement", "in several"])
async def test_rows_and_checkpoint_agree_after_kill_9(url: str, store: PostgresReadStore, blocking: int) -> None:
    """Killed at any instant: all that is stored is of one position, none before the last acknowledged."""
    await create(store, SEATS)
    await create(store, ARTICLES, "articles")
    reached = 0
    for kill in range(KILLS):
        with worker(url, "write", ROWS, blocking) as process:
            go_on(process)
            for _ in range(2 + 3 * kill):
                acknowledged = int(line_of(process.stdout))
            process.kill()
            assert process.stdout is not None
            acknowledged = int([str(acknowledged), *process.stdout.read().split("\n")[:-1]][-1])
        position = await agreed(url, store, blocking)
        assert position >= acknowledged > reached
        reached = position


async def agreed(url: str, store: PostgresReadStore, blocking: int) -> int:
    """The one position that everything stored is of, once the server has noticed that the writer is gone."""
    async with by_hand(url) as other, asyncio.timeout(WAIT_S_MAX):
        busy = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND state IN ('active', 'idle in transaction') AND backend_type = 'client backend'"
        )
        while await other.fetchval(busy):
            pass
    seats, articles = await rows_of(store), await rows_of(store, order=(Order("id"),), name="articles")
    async with store.snapshot() as snapshot:
        generations = [await shown_generation(snapshot, name) for name in (NAME, "articles")]
        blocked = [*await snapshot.blocked(NAME), *await snapshot.blocked("articles")]
        (position,) = {generation.checkpoint.position for generation in generations if generation}
        found = await snapshot.search("articles", f"word{position}", ROWS * 2)
    assert len(seats) == len(articles) == len(found) == ROWS
    assert {taken for _, taken in seats} == {position} == {row[1] for row in articles}
    assert {key.position for key in blocked} == ({position} if blocking else set())
    return position


async def test_a_writer_that_was_stopped_in_the_middle_is_fenced(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for what it had locked no longer than the limit; when it wakes, it has written nothing, nor can."""
    generation = await build(store, SEATS, [("a", 1)])
    program = WORKER.replace("    store = connect(url)\n", f"    {SHORT_PATIENCE}\n    store = connect(url)\n")
    monkeypatch.setattr(sys.modules[__name__], "WORKER", program)
    with worker(url, "stop") as process:
        go_on(process)
        assert line_of(process.stdout) == "in the middle"
        current = await asyncio.wait_for(write(store, generation, upserts=[("a", 2)]), WAIT_S_MAX)
        go_on(process)
        assert line_of(process.stdout) != "committed"
        assert line_of(process.stdout) == str([Fenced()])
    assert await rows_of(store) == [("a", 2)]
    assert await stored_generation(store) == current


SHORT_PATIENCE = "from diptych.adapters.postgres import read_catalog; read_catalog.TRANSACTION_IDLE_S_MAX = 0.2"


async def test_writers_of_the_same_slices_never_lock_each_other_out(
    url: str, store: PostgresReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which they name them: one of them writes both, the other neither, without a deadlock."""
    monkeypatch.setattr(attempts, "CHANGE_ATTEMPTS_MAX", 1)
    generations = [await create(store, SEATS), await create(store, ARTICLES, "articles")]
    writes = [SliceWrite(generation, place(1)) for generation in generations]
    other = connect(url)
    await other.open()
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%diptych_generations%'"
    )
    async with by_hand(url) as look:
        async with by_hand(url) as link, link.transaction():
            name = f"{url.rpartition('schema=')[2]}.diptych_generations"
            await link.execute(f"SELECT 1 FROM {name} WHERE name = '{NAME}' FOR UPDATE")
            racers = [asyncio.create_task(store.write(writes)), asyncio.create_task(other.write(writes[::-1]))]
            async with asyncio.timeout(WAIT_S_MAX):
                while await look.fetchval(waiting) < len(racers):
                    pass
        results = [{type(result) for result in await racer} for racer in racers]
    assert sorted(map(str, results)) == sorted(map(str, [{Fenced}, {Written}]))
    await other.close()
