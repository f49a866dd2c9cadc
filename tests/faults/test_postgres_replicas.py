"""Queries on streaming replicas: real standbys, whose replay is paused and resumed, and which are killed."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from anyio.lowlevel import checkpoint

from diptych import Application, BoundedContext, NotFresh, Query, Reader, Receipt, Value, replace
from diptych.adapters.connect import default_read_store
from diptych.adapters.postgres import query_source, replica
from diptych.adapters.postgres.query_source import ReadReplicas
from diptych.application.follower import Follower
from diptych.errors import Blocked, ConfigurationError, HistoryDiverged, StoreUnavailable
from diptych.read_side.query_source import ReplicaStatus
from tests.faults.replicated import (
    AllStockOf,
    Answered,
    Receive,
    Received,
    Sku,
    Stock,
    StockOf,
    everywhere,
    receive,
    stock,
    stock_of,
    warehouse,
)
from tests.parking import retry
from tests.postgres_server import by_hand, left_in_transaction, new_database, new_stores, run, with_parameter
from tests.postgres_standby import NAME, OTHER_NAME, SKIPPED, Standby, the_standby

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from diptych.read_side.query_source import ReplicaPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(SKIPPED), reason=SKIPPED)]

WAIT_S_MAX = 20
"""No wait of a test that is to succeed takes longer …"""
LONGEST_S = 60
"""… so that one which ends only with the caller's own wait fails."""
WAL_WRITER_S = 10
"""How long the server may be set to leave commits that nobody waits for, at most."""
PENS, INKS = Sku("pens"), Sku("inks")
PRIMARY = ""


@pytest.fixture(scope="module")
def standby() -> Standby:
    return the_standby()


@pytest.fixture
async def url(standby: Standby) -> str:
    """Stores in schemas of their own, which the standby has as well."""
    made = await new_stores()
    await standby.caught_up()
    return made


@asynccontextmanager
async def replicated(
    url: str, *standbys: Standby, policy: ReplicaPolicy = "wait", context: BoundedContext = warehouse
) -> AsyncIterator[Application]:
    """An application that asks queries on standbys, which have replayed its first build."""
    replicas = [standby.url_of(url) for standby in standbys]
    async with Application(context, store=url, read_replicas=replicas, replica_policy=policy) as app:
        await app.projected()
        for standby in standbys:
            await standby.caught_up()
        yield app


async def ask(app: Application, **freshness: Any) -> Answered:
    return await app.query(StockOf(sku=PENS), **freshness)


def source_of(app: Application) -> ReadReplicas:
    return source_in(app.partition())


def source_in(follower: Follower) -> ReadReplicas:
    source = follower.panel.source
    assert isinstance(source, ReadReplicas)
    return source


def asked_for(freshness: str, receipt: Receipt) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "after": {"after": receipt},
        "latest": {"freshness": "latest"},
        "within": {"within_s": 0},
    }
    return kinds[freshness]


async def waits(app: Application) -> None:
    """Return once somebody waits for a replica."""
    await waits_on(app.partition())


async def waits_on(follower: Follower) -> None:
    """Return once somebody waits for a replica of that partition."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not any(each.watch.waiting for each in source_in(follower)._replicas):
            await checkpoint()


# ── where queries go ─────────────────────────────────────────────────────────


async def test_queries_are_asked_on_the_replica_and_show_what_it_has_replayed(url: str, standby: Standby) -> None:
    """An eventual answer is the replica's, however old, and its token says so."""
    async with replicated(url, standby) as app:
        first = await app.execute(Receive(sku=PENS))
        await app.projected()
        async with standby.paused():
            second = await app.execute(Receive(sku=PENS))
            await app.projected()
            old = await app.answer(StockOf(sku=PENS))
            assert old.value == Answered(units=1, server=NAME)
            assert old.shows[0].high.position == first.position
        new = await app.answer(StockOf(sku=PENS), after=second)
        assert new.value == Answered(units=2, server=NAME)
        assert new.shows[0].high.position == second.position


async def test_replicas_take_turns_and_no_answer_goes_back(url: str, standby: Standby) -> None:
    """Whoever gives the last answer's token never sees less, though one replica has stopped replaying."""
    other = the_standby(OTHER_NAME)
    await other.caught_up()
    async with replicated(url, standby, other) as app:
        await app.execute(Receive(sku=PENS))
        await app.projected()
        await other.caught_up()
        async with standby.paused():
            answers = [await app.answer(StockOf(sku=PENS)) for _ in range(4)]
            assert {answer.value.server for answer in answers} == {NAME, OTHER_NAME}
            for units in range(2, 6):
                receipt = await app.execute(Receive(sku=PENS))
                fresh = await app.answer(StockOf(sku=PENS), after=receipt, wait_s=WAIT_S_MAX)
                assert fresh.value == Answered(units=units, server=OTHER_NAME)
                again = [await ask(app, after=fresh, wait_s=WAIT_S_MAX) for _ in range(2)]
                assert again == [fresh.value] * 2


# ── freshness ────────────────────────────────────────────────────────────────


async def test_g7_a_token_waits_on_the_replica_until_it_is_replayed(url: str, standby: Standby) -> None:
    """By the policy "wait", and it is answered there, also where nothing more is written on the primary."""
    async with replicated(url, standby) as app, standby.paused():
        receipt = await app.execute(Receive(sku=PENS))
        await app.projected()
        asked = asyncio.create_task(ask(app, after=receipt, wait_s=LONGEST_S))
        await waits(app)
        assert not asked.done()
        await standby.resume()
        assert await asyncio.wait_for(asked, WAIT_S_MAX) == Answered(units=1, server=NAME)


@pytest.mark.parametrize("freshness", ["after", "latest", "within"])
async def test_g7_past_the_wait_a_replica_that_is_behind_is_not_fresh(
    url: str, standby: Standby, freshness: str
) -> None:
    """Never an older answer; the error names the replica, and both positions."""
    async with replicated(url, standby) as app, standby.paused():
        receipt = await app.execute(Receive(sku=PENS))
        await app.projected()
        asked = asked_for(freshness, receipt)
        for wait_s in (0, 0.05):
            with pytest.raises(NotFresh, match="on the replica postgresql:") as refusal:
                await ask(app, wait_s=wait_s, **asked)
            assert (refusal.value.wanted, refusal.value.reached) == (1, 0)


@pytest.mark.parametrize("freshness", ["after", "latest", "within"])
async def test_g7_what_a_replica_does_not_show_yet_the_primary_answers(
    url: str, standby: Standby, freshness: str
) -> None:
    """By the policy "primary", without a wait; eventual answers stay the replica's."""
    async with replicated(url, standby, policy="primary") as app, standby.paused():
        receipt = await app.execute(Receive(sku=PENS))
        await app.projected()
        asked = asked_for(freshness, receipt)
        assert await ask(app, wait_s=0, **asked) == Answered(units=1, server=PRIMARY)
        assert await ask(app) == Answered(units=0, server=NAME)


async def test_g7_what_the_primary_has_not_folded_either_is_waited_for_there(url: str, standby: Standby) -> None:
    """The policy "primary" waits like an application without replicas."""
    replicas = [standby.url_of(url)]
    async with (
        replicated(url, standby) as projecting,
        Application(warehouse, store=url, read_replicas=replicas, replica_policy="primary", projecting=False) as asking,
        standby.paused(),
    ):
        running = projecting.partition()
        async with running.projector.lock:
            receipt = await projecting.execute(Receive(sku=PENS))
            asked = asyncio.create_task(ask(asking, after=receipt, wait_s=WAIT_S_MAX))
            changes = running.read_store.changes
            await asyncio.wait([asked], timeout=0)
        assert await asked == Answered(units=1, server=PRIMARY)
        assert await running.read_store.wait_for_change(changes, WAIT_S_MAX) != changes


async def test_who_waits_on_a_replica_has_the_primary_send_what_it_has(url: str, standby: Standby) -> None:
    """Rows are committed without waiting for the disk; they are not left until the server gets around to it."""
    await run(url, f"ALTER SYSTEM SET wal_writer_delay = '{WAL_WRITER_S}s'", "SELECT pg_reload_conf()")
    try:
        async with replicated(url, standby) as app:
            async with asyncio.timeout(WAIT_S_MAX):  # left to it, one or two would take that long
                for units in range(1, 21):
                    receipt = await app.execute(Receive(sku=PENS))
                    assert await ask(app, after=receipt, wait_s=LONGEST_S) == Answered(units=units, server=NAME)
    finally:
        await run(url, "ALTER SYSTEM RESET wal_writer_delay", "SELECT pg_reload_conf()")


async def test_a_rebuild_is_shown_when_it_is_replayed(url: str, standby: Standby) -> None:
    """The rows of before answer until then, from a table that the replica still has."""
    async with replicated(url, standby) as app:
        await app.execute(Receive(sku=PENS))
        await app.projected()
        async with standby.paused():
            before = await app.answer(StockOf(sku=PENS))
            await app.rebuilds.rebuild("warehouse.Stock")
            receipt = await app.execute(Receive(sku=PENS))
            await app.projected()
            assert (await app.answer(StockOf(sku=PENS))).value == before.value == Answered(units=1, server=NAME)
            asked = asyncio.create_task(ask(app, after=receipt, wait_s=LONGEST_S))
            await waits(app)
            await standby.resume()
            assert await asyncio.wait_for(asked, WAIT_S_MAX) == Answered(units=2, server=NAME)


class Faulty:
    """A projection that cannot fold while it is told so."""

    def __init__(self) -> None:
        self.fails = True
        self.context = BoundedContext("warehouse")
        self.context.command_handler(receive)
        self.context.query_handler(stock_of)

        @self.context.projection(version=1)
        def stock(row: Stock, event: Received) -> Stock:
            if self.fails:
                raise ValueError("no such shelf")
            return replace(row, units=row.units + 1)


async def test_a_replica_has_not_the_last_word_on_what_is_blocked(url: str, standby: Standby) -> None:
    """A key that it still shows as blocked was replayed on the primary; one that is blocked there stays an error."""
    faulty = Faulty()
    async with replicated(url, standby, context=faulty.context) as app:
        receipt = await app.execute(Receive(sku=PENS))
        await app.projected()
        async with standby.paused():
            with pytest.raises(Blocked, match="no such shelf"):
                await ask(app, after=receipt)
            faulty.fails = False
            assert await retry(app, '["pens"]') is None
            assert (await app.answer(StockOf(sku=PENS))).incomplete
            assert await ask(app, after=receipt) == Answered(units=1, server=PRIMARY)


# ── replicas that fail ───────────────────────────────────────────────────────


async def test_queries_go_on_without_a_killed_replica_and_with_it_when_it_is_back(url: str, standby: Standby) -> None:
    """The primary stands in, also for the query that was about to be asked there; health tells of it."""
    async with replicated(url, standby) as app:
        await app.execute(Receive(sku=PENS))
        await app.projected()
        await standby.caught_up()
        assert (await ask(app)).server == NAME
        standby.kill()
        try:
            assert [await ask(app) for _ in range(3)] == [Answered(units=1, server=PRIMARY)] * 3
            health = await app.health()
            assert (health.ready, len(health.impaired)) == (True, 1)
            assert "no query is asked on the replica postgresql:" in health.impaired[0]
        finally:
            standby.start()
        await standby.caught_up()
        source_of(app).look_soon()
        async with asyncio.timeout(WAIT_S_MAX):
            while (await app.status()).replicas[0].left_out:
                await checkpoint()
        assert (await ask(app)).server == NAME
        assert (await app.health()).impaired == ()


async def test_a_replica_comes_back_without_being_asked_about(
    url: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While queries come it is looked at again, and none of them waits for that."""
    async with replicated(url, standby) as app:
        standby.kill()
        try:
            assert (await ask(app)).server == PRIMARY
        finally:
            standby.start()
        monkeypatch.setattr(query_source, "REPLICAS_LOOK_S", 0)
        source_of(app)._look_at = 0
        async with asyncio.timeout(WAIT_S_MAX):
            while (await ask(app)).server != NAME:
                pass


async def test_an_application_opens_without_its_replica(url: str, standby: Standby) -> None:
    """One that is down is no reason not to start; it is told in the status."""
    standby.kill()
    try:
        async with Application(warehouse, store=url, read_replicas=[standby.url_of(url)]) as app:
            await app.projected()
            assert await ask(app) == Answered(units=0, server=PRIMARY)
            (status,) = (await app.status()).replicas
            assert "check that the server runs" in status.left_out
    finally:
        standby.start()


async def test_nobody_waits_for_a_replica_that_is_silent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: health tells it, and is there before the look at it has ended."""
    monkeypatch.setattr(query_source, "REPLICAS_LOOK_S", 0)
    monkeypatch.setattr(replica, "LOOK_S_MAX", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d"
        async with Application(warehouse, store=url, read_replicas=[place]) as app:
            monkeypatch.setattr(replica, "LOOK_S_MAX", LONGEST_S)
            for _ in range(2):
                health = await app.health()
                assert health.ready
                assert any(place in told for told in health.impaired)
                assert source_of(app)._looking is not None


async def test_who_waits_on_a_replica_that_dies_is_answered_elsewhere(url: str, standby: Standby) -> None:
    """Nobody waits for what will not come."""
    async with replicated(url, standby) as app, standby.paused():
        receipt = await app.execute(Receive(sku=PENS))
        await app.projected()
        asked = asyncio.create_task(ask(app, after=receipt, wait_s=LONGEST_S))
        await waits(app)
        standby.kill()
        try:
            assert await asyncio.wait_for(asked, WAIT_S_MAX) == Answered(units=1, server=PRIMARY)
        finally:
            standby.start()


class Slept(Value):
    server: str


class Sleep(Query[Slept]): ...


def sleeping() -> BoundedContext:
    """A context with a query that does not end on a standby."""
    context = BoundedContext("warehouse")
    context.command_handler(receive)
    context.projection(stock)
    context.query_handler(stock_of)

    @context.query_handler
    async def sleep(query: Sleep, read: Reader) -> Slept:
        statement = (
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_sleep(600)::text || current_setting('cluster_name') "
            "ELSE '' END AS server"
        )
        await read.get(Stock, PENS)
        (slept,) = await read.sql(Slept, statement, touches=[Stock])
        return slept

    return context


@pytest.fixture
async def impatient(url: str, standby: Standby) -> AsyncIterator[Standby]:
    """The standby, which ends at once what is in the way of its replay."""
    standby.kill()
    standby.start("-c max_standby_streaming_delay=0")
    await standby.caught_up()
    yield standby
    standby.kill()
    standby.start()


async def be_in_the_way(app: Application, url: str, standby: Standby) -> None:
    """Once a statement sleeps on the standby, have it replay that rows are gone which the sleeper could still see."""
    schema = default_read_store(url).rpartition("schema=")[2]
    async with by_hand(standby.url_of(url)) as look, asyncio.timeout(WAIT_S_MAX):
        while not await look.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
            pass
    await app.execute(Receive(sku=PENS))
    await app.projected()
    async with by_hand(url) as primary, asyncio.timeout(WAIT_S_MAX):
        while await left_in_transaction(primary):  # the projector's last snapshot, which sees those rows, is soon over
            pass
    await run(url, f"VACUUM {schema}.warehouse_stock__g1")
    await standby.caught_up()


async def test_what_is_in_the_way_of_the_replay_is_an_error_worth_a_retry(url: str, impatient: Standby) -> None:
    """A statement that is cancelled for it is `StoreUnavailable`, and speaks against no replica."""
    async with replicated(url, impatient) as app:
        receipt = await app.execute(Receive(sku=PENS))
        assert (await ask(app, after=receipt, wait_s=WAIT_S_MAX)).server == NAME
        (each,) = source_of(app)._replicas
        async with each.snapshot(strict=False) as snapshot:
            sleeping = asyncio.create_task(snapshot._fetch("SELECT pg_sleep(600)"))
            await be_in_the_way(app, url, impatient)
            with pytest.raises(StoreUnavailable, match=r"(?s)conflict with recovery.*send it again") as cancelled:
                await sleeping
        assert not each.fails(cancelled.value)


async def test_a_query_that_is_in_the_way_of_the_replay_is_asked_on_the_primary(url: str, impatient: Standby) -> None:
    """It may cut the connection, to go on replaying; it is in use again at once, and nobody hears of it."""
    async with replicated(url, impatient, context=sleeping()) as app:
        receipt = await app.execute(Receive(sku=PENS))
        assert (await ask(app, after=receipt, wait_s=WAIT_S_MAX)).server == NAME
        asked = asyncio.create_task(app.query(Sleep()))
        await be_in_the_way(app, url, impatient)
        assert await asyncio.wait_for(asked, WAIT_S_MAX) == Slept(server=PRIMARY)
        (each,) = source_of(app)._replicas
        async with asyncio.timeout(WAIT_S_MAX):
            while each.left_out:  # it is looked at
                await checkpoint()
        assert (await ask(app)).server == NAME


# ── partitions ───────────────────────────────────────────────────────────────


async def test_each_partition_is_asked_on_its_replica_and_all_go_on_without_it(standby: Standby) -> None:
    """A token of one waits there for its rows and for those across; health names each that has lost its replica."""
    stores = {name: await new_stores() for name in (PENS, INKS, "*")}
    await standby.caught_up()
    replicas = {name: [standby.url_of(url)] for name, url in stores.items()}
    async with Application(warehouse, everywhere, partition_by=Sku, store=stores, read_replicas=replicas) as app:
        await app.execute(Receive(sku=INKS))
        await app.projected()
        await standby.caught_up()
        questions: list[Query[Answered]] = [StockOf(sku=PENS), StockOf(sku=INKS), AllStockOf(name="all")]
        async with standby.paused():
            receipt = await app.execute(Receive(sku=PENS))
            await app.projected()
            assert [(await app.query(each)) for each in questions] == [answered(units) for units in (0, 1, 1)]
            asked = [asyncio.create_task(app.query(each, after=receipt, wait_s=LONGEST_S)) for each in questions]
            for follower in (app.partition(PENS), app.across):
                await waits_on(follower)
            assert await asked[1] == answered(1), "a token of another partition is not waited for"
            await standby.resume()
            found = await asyncio.wait_for(asyncio.gather(*asked), WAIT_S_MAX)
            assert found == [answered(units) for units in (1, 1, 2)]
        standby.kill()
        try:
            found = [await app.query(each, after=receipt, wait_s=WAIT_S_MAX) for each in questions]
            assert found == [Answered(units=units, server=PRIMARY) for units in (1, 1, 2)]
            health = await app.health()
            assert health.ready
            told = [told.partition(": no query is asked on the replica")[:2] for told in health.impaired]
            assert told == [(f"partition '{name}'", ": no query is asked on the replica") for name in stores]
        finally:
            standby.start()


def answered(units: int) -> Answered:
    """By the replica."""
    return Answered(units=units, server=NAME)


# ── what is no replica ───────────────────────────────────────────────────────


async def test_g13_a_replicas_connection_refuses_to_write(url: str, standby: Standby) -> None:
    """As that of the primary does, and besides, no standby could."""
    async with replicated(url, standby) as app:
        (each,) = source_of(app)._replicas
        async with each.snapshot(strict=False) as snapshot:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await snapshot.connection.execute("CREATE TABLE public.written (it int)")
        async with each.snapshot(strict=False) as snapshot:
            with pytest.raises(asyncpg.PostgresError, match="during recovery"):
                await snapshot.connection.execute("ROLLBACK; BEGIN READ WRITE; CREATE TABLE public.written (it int)")
            await snapshot.connection.execute("ROLLBACK; BEGIN")


async def test_a_replica_of_another_database_is_refused(url: str, standby: Standby) -> None:
    """What is no copy of the read store is an error when the application opens, and shows no password."""
    elsewhere = standby.url_of(await new_database())
    await standby.caught_up()
    with_password = with_parameter(elsewhere, "password", "hunter2")
    with pytest.raises(ConfigurationError, match="is no replica of the read store") as refusal:
        async with Application(warehouse, store=url, read_replicas=[with_password]):
            pass
    assert "hunter2" not in str(refusal.value)


async def test_what_is_not_in_recovery_is_left_out(url: str) -> None:
    """The primary itself, or a standby that was promoted, may be ahead on a way of its own."""
    async with Application(warehouse, store=url, read_replicas=[url.partition("&schema=")[0]]) as app:
        await app.projected()
        (status,) = (await app.status()).replicas
        assert "is no replica: it replays nobody's log" in status.left_out
        assert (await ask(app)).server == PRIMARY


async def test_rule_17_a_replica_of_another_history_answers_no_strict_query(url: str, standby: Standby) -> None:
    """The event at its checkpoint is not the history's: it is left out at once, and the primary's rows are judged."""
    schema = default_read_store(url).rpartition("schema=")[2]
    async with replicated(url, standby) as app:
        receipt = await app.execute(Receive(sku=PENS))
        assert (await ask(app, after=receipt, wait_s=WAIT_S_MAX)).server == NAME
        await run(url, f"UPDATE {schema}.diptych_generations SET event_id = decode(repeat('ab', 16), 'hex')")
        await standby.caught_up()
        assert await ask(app) == Answered(units=1, server=NAME)  # eventual answers are not checked one by one
        with pytest.raises(HistoryDiverged):  # its rows are the same ones here
            await ask(app, after=receipt)
        assert "follows another history" in source_of(app)._replicas[0].left_out
        assert "follows another history" in (await app.status()).replicas[0].left_out
        assert (await ask(app)).server == PRIMARY


@pytest.mark.parametrize(
    ("read_store", "replica_url", "told"),
    [
        ("sqlite:read.db", "postgresql://u@h/d", "read models in sqlite: have no replicas"),
        ("memory:", "postgresql://u@h/d", "read models in memory: have no replicas"),
        ("postgresql://u@h/d?schema=rows", "sqlite:read.db", "is postgresql://user@host/database"),
        ("postgresql://u@h/d?schema=rows", "postgresql://u:hunter2@r/d?schema=x", "names the schema x"),
        ("postgresql://u@h/d?schema=rows", "postgresql://u:hun/ter2@r/d", "cannot be read"),
    ],
)
async def test_replicas_that_make_no_sense_are_refused(read_store: str, replica_url: str, told: str) -> None:
    """Before anything is opened, and without a password in the text."""
    with pytest.raises(ConfigurationError, match=told) as refusal:
        async with Application(warehouse, store="memory:", read_store=read_store, read_replicas=[replica_url]):
            pass
    assert "ter2" not in str(refusal.value)


async def test_status_tells_how_far_a_replica_is_behind(
    url: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes of the log, and by the age of what it shows; nothing where it has replayed all."""
    monkeypatch.setattr(query_source, "REPLICAS_LOOK_S", 0)
    async with replicated(url, standby) as app:
        async with standby.paused(), asyncio.timeout(WAIT_S_MAX):
            await app.execute(Receive(sku=PENS))
            await app.projected()
            while not ((behind := (await app.status()).replicas[0]).lag_bytes and behind.lag_s):
                assert (behind.left_out, behind.url) == ("", source_of(app)._replicas[0].url.shown)
        async with asyncio.timeout(WAIT_S_MAX):
            while (status := (await app.status()).replicas) != [ReplicaStatus(url=behind.url, lag_bytes=0, lag_s=0.0)]:
                assert status[0].left_out == ""
