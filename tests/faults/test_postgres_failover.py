"""A primary that is killed under load, and a standby, made by streaming, that is promoted in its place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from diptych import Application, Command, HistoryDiverged, Receipt, Rejected, Unavailable
from diptych.adapters.connect import commits_survive
from diptych.adapters.postgres import connection
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.event_store.event_query import ALL_EVENTS
from tests.faults.counting import CounterId, CountOf, Increment, counting
from tests.faults.incrementing import WAIT_S, Load, events_of, execute, prove
from tests.faults.leased_stock import TOLD, Count, Sku, warehouse
from tests.postgres_cluster import Server, cluster, migrated
from tests.postgres_server import by_hand, in_thread, with_parameter

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="servers are killed by signals here"),
]

COMMANDS = 60
SHARED, LOST = 9, 6
ATTEMPTS_MAX = 10


@pytest.fixture
async def pair() -> AsyncGenerator[tuple[Server, Server]]:
    """A primary with both stores' tables, and its standby."""
    with cluster() as primary:
        await migrated(primary.url())
        standby = primary.standby(primary.data.with_name("second"))
        yield primary, standby


async def test_a_failover_to_a_synchronous_standby_loses_nothing_and_doubles_nothing(
    pair: tuple[Server, Server],
) -> None:
    """What the killed primary acknowledged is on the promoted standby, once; callers and workers find it there."""
    primary, standby = pair
    await primary.confirm_with_standby()
    url = primary.url(standby)
    async with Application(counting, store=url, projecting=False) as app, Application(counting, store=url) as worker:
        load = Load(app)
        async with load.running():
            await load.acknowledged(COMMANDS)
            async with load.failing():
                await asyncio.to_thread(primary.kill)
                await load.failed()
                await asyncio.to_thread(standby.promote)
            await load.acknowledged(COMMANDS)
        await prove(app, load.receipts)
        assert (await worker.health()).ready
        assert await worker.rebuilds.verify("counting.Count") is None


async def test_it_is_told_whether_commits_survive_the_loss_of_a_machine(pair: tuple[Server, Server]) -> None:
    """As the server is set now, and whether there is a standby that could confirm them."""
    primary, standby = pair
    assert "not the loss of the server's machine" in await commits_survive(primary.url())
    await primary.confirm_with_standby()
    assert (await commits_survive(primary.url())).endswith("a synchronous standby confirms them")
    standby.kill()
    while "no synchronous standby" not in await commits_survive(primary.url()):
        pass


async def test_a_failover_to_an_asynchronous_standby_under_load_doubles_nothing(
    pair: tuple[Server, Server],
) -> None:
    """Of what the killed primary acknowledged some is lost; the same ids bring it back once, and all else holds."""
    primary, standby = pair
    url = primary.url(standby)
    async with Application(counting, store=url, projecting=False) as app, Application(counting, store=url) as worker:
        load = Load(app)
        async with load.running():
            await load.acknowledged(COMMANDS)
            await standby.cut_off()
            await load.acknowledged(COMMANDS)
            async with load.failing():
                await asyncio.to_thread(primary.kill)
                before = dict(load.receipts)
                await asyncio.to_thread(standby.promote)
            await load.acknowledged(COMMANDS)
        there = {recorded.event_id for recorded in await events_of(app)}
        lost = {number for number, receipt in load.receipts.items() if receipt.place.event_id not in there}
        assert lost, "the standby had everything"
        assert lost <= before.keys()
        await prove(app, {number: await execute(app, number) for number in load.receipts})
        assert (await worker.health()).ready
        assert await worker.rebuilds.verify("counting.Count") is None


@pytest.mark.parametrize("attributes", ["primary", "read-write"])
async def test_of_several_hosts_the_one_that_will_do_is_used(
    pair: tuple[Server, Server], attributes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a replica is, nor one that lets nobody in yet, nor one that answers nothing, which is not waited for."""
    monkeypatch.setattr(connection, "CONNECT_S_MAX", 1.0)
    primary, standby = pair
    url = with_parameter(standby.url(primary), "target_session_attrs", attributes)

    async def works(number: int) -> None:
        async with Application(counting, store=url) as app:
            receipt = await app.execute(Increment(counter=CounterId("c0")))
            row = await app.query(CountOf(counter=CounterId("c0")), after=receipt, wait_s=WAIT_S)
            assert row is not None
            assert row.events == number

    await works(1)
    standby.kill()
    standby.configure("hot_standby = off")
    standby.start()
    await works(2)
    silent = standby.processes()[0]
    silent.suspend()
    await works(3)
    standby.kill()
    await works(4)


async def increments(app: Application, first: int, last: int) -> dict[int, Receipt]:
    """Concurrent commands of these numbers."""
    receipts = await asyncio.gather(*(execute(app, number) for number in range(first, last + 1)))
    return dict(enumerate(receipts, first))


def fail_over(primary: Server, standby: Server, others: int) -> None:
    """Promote the standby and let others write there, while the loop, and with it all that is open, stands still."""

    async def write() -> None:
        async with Application(counting, store=standby.url(), projecting=False) as other:
            await increments(other, 1_002, 1_001 + others)

    primary.kill()
    standby.promote()
    in_thread(write())


async def sent(app: Application, command: Command, command_id: str) -> Receipt:
    """Send a command as callers do, again with its id where that is said to be safe."""
    for _ in range(ATTEMPTS_MAX):
        try:
            return await app.execute(command, command_id=command_id)
        except Unavailable:
            pass
    raise AssertionError("never acknowledged")


GROWN = pytest.mark.parametrize("others", [0, LOST // 2, LOST, 3 * LOST], ids=["shorter", "short", "as long", "longer"])


@GROWN
async def test_commands_are_decided_on_the_history_that_is_there_after_a_fork(
    pair: tuple[Server, Server], others: int
) -> None:
    """What was acknowledged and lost is in no cache any more: nothing is appended to it, and nothing refused by it."""
    primary, standby = pair
    url = primary.url(standby)
    async with Application(counting, store=url, projecting=False) as app, Application(counting, store=url) as worker:
        await increments(app, 1, SHARED)
        await worker.projected()
        await caught_up(primary)
        await standby.cut_off()
        lost = await increments(app, SHARED + 1, SHARED + LOST)
        await worker.projected()
        fail_over(primary, standby, others)

        reached = (SHARED + others) // 3
        with pytest.raises(Rejected, match="full"):
            await sent(app, Increment(counter=CounterId("c0"), below=reached), "refused")
        receipt = await sent(app, Increment(counter=CounterId("c0"), below=reached + 1), "accepted")
        assert receipt.position == SHARED + others + 1
        assert len(await events_of(app)) == receipt.position

        for token in (lost[SHARED + LOST], lost[SHARED + 1]):
            with pytest.raises(HistoryDiverged, match="token"):
                await app.query(CountOf(counter=CounterId("c0")), after=token, wait_s=WAIT_S)
        again = await increments(app, SHARED + 1, SHARED + LOST)
        assert again == await increments(app, SHARED + 1, SHARED + LOST)
        assert len(await events_of(app)) == SHARED + others + 1 + LOST
        last = max(again.values(), key=lambda receipt: receipt.position)
        row = await app.query(CountOf(counter=CounterId("c0")), after=last, wait_s=WAIT_S)
        assert row is not None
        assert row.events == row.value == reached + 1 + LOST // 3
        assert await worker.rebuilds.verify("counting.Count") is None
        assert (await worker.health()).ready


@GROWN
async def test_a_read_model_of_the_lost_history_stops_and_is_not_taken_for_an_answer(
    pair: tuple[Server, Server], others: int, tmp_path: Path
) -> None:
    """Rows that are kept elsewhere outlive the fork: their projection says so, and no strict query shows them."""
    primary, standby = pair
    url, rows = primary.url(standby), f"sqlite:{tmp_path}/rows.db"
    async with Application(counting, store=url, read_store=rows) as app:
        await increments(app, 1, SHARED)
        await caught_up(primary)
        await standby.cut_off()
        await increments(app, SHARED + 1, SHARED + LOST)
        await app.projected()
        fail_over(primary, standby, others)

        receipt = await sent(app, Increment(counter=CounterId("c0")), "after the fork")
        with pytest.raises(HistoryDiverged, match=r"read model counting\.Count"):
            await app.query(CountOf(counter=CounterId("c0")), after=receipt, wait_s=WAIT_S)
        seen = 0
        while not (stopped := (await app.status()).projections[0].stopped):
            seen = await app.partition().read_store.wait_for_change(seen, WAIT_S)
        assert "another history" in stopped
        assert "built anew" in stopped
        health = await app.health()
        assert not health.ready
        row = await app.query(CountOf(counter=CounterId("c0")))
        assert row is not None
        assert row.events == (SHARED + LOST) // 3, "nothing of the other history was folded onto it"
    with pytest.raises(HistoryDiverged, match="Remove the read store"):
        await Application(counting, store=url, read_store=rows).open()
    async with Application(counting, store=url, read_store=f"sqlite:{tmp_path}/anew.db") as app:
        row = await app.query(CountOf(counter=CounterId("c0")), after=receipt, wait_s=WAIT_S)
        assert row is not None
        assert row.events == (SHARED + others) // 3 + 1


async def test_a_subscriber_of_the_lost_history_stops(
    pair: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its checkpoint is kept elsewhere it says so, and is told nothing of the other history."""
    monkeypatch.setenv(TOLD, str(tmp_path))
    primary, standby = pair
    url, rows = primary.url(standby), f"sqlite:{tmp_path}/rows.db"
    async with Application(warehouse, store=url, read_store=rows) as app:
        await app.execute(Count(sku=Sku("shared")))
        await caught_up(primary)
        await standby.cut_off()
        await app.execute(Count(sku=Sku("lost")))
        read_store, seen = app.partition().read_store, 0
        while (await app.status()).subscribers[0].checkpoint < 2:
            seen = await read_store.wait_for_change(seen, WAIT_S)
        fail_over(primary, standby, 0)
        for number in range(LOST):
            await sent(app, Count(sku=Sku(f"other{number}")), f"other {number}")
        while not (stopped := (await app.status()).subscribers[0].stopped):
            await checkpoint()
        assert "the subscriber warehouse.hear belongs to another history" in stopped
    assert [line.split()[1] for line in (tmp_path / "heard.txt").read_text().splitlines()] == ["1", "2"]


async def test_who_waits_while_the_history_forks_is_told(pair: tuple[Server, Server]) -> None:
    """A token that was good when the wait began is not taken for what is at its position now."""
    primary, standby = pair
    url = primary.url(standby)
    async with Application(counting, store=url, projecting=False) as app:
        await increments(app, 1, SHARED)
        await caught_up(primary)
        await standby.cut_off()
        lost = await increments(app, SHARED + 1, SHARED + LOST)
        waiting = asyncio.create_task(
            app.query(CountOf(counter=CounterId("c0")), after=lost[SHARED + LOST], wait_s=WAIT_S)
        )
        read_store = app.partition().read_store
        assert isinstance(read_store, PostgresReadStore)
        while not read_store._changes._noticed.waiting:
            await checkpoint()
        fail_over(primary, standby, 3 * LOST)
        async with Application(counting, store=url):
            with pytest.raises(HistoryDiverged, match="consistency token"):
                await waiting


async def test_who_follows_the_events_is_not_led_across_a_fork(pair: tuple[Server, Server]) -> None:
    """A reader in the middle of one history is told, and given nothing of the other one."""
    primary, standby = pair
    async with Application(counting, store=primary.url(standby), projecting=False) as app:
        await increments(app, 1, SHARED)
        await caught_up(primary)
        await standby.cut_off()
        await increments(app, SHARED + 1, SHARED + LOST)
        following = aiter(app.events(ALL_EVENTS, follow=True))
        for _ in range(SHARED + LOST):
            await anext(following)
        next_event = asyncio.ensure_future(anext(following))
        await asyncio.wait([next_event], timeout=0)
        fail_over(primary, standby, 3 * LOST)
        with pytest.raises(HistoryDiverged, match="read"):
            await next_event


async def caught_up(primary: Server) -> None:
    """Wait until the standby has all that is written."""
    behind = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"
    async with by_hand(primary.url()) as link:
        while not await link.fetchval(behind):
            pass
