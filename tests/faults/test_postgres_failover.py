"""A primary that is killed under load, and a standby, made by streaming, that is promoted in its place.

What goes through it is whole and divided alike: a partition forks, or does not, for itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from diptych import Application, Query, Receipt, Rejected
from diptych.adapters.connect import commits_survive
from diptych.adapters.postgres import connection
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.application.follower import Follower
from diptych.errors import HistoryDiverged
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.merged_log import MergedLog
from tests.faults.counting import CounterId, CountOf, Increment, TotalOf, counting
from tests.faults.failing_over import (
    GROWN,
    KEPT,
    LOST,
    SHARED,
    Branch,
    caught_up,
    fail_over,
    increments,
    sent,
)
from tests.faults.incrementing import (
    COMMANDS,
    COUNTERS,
    WAIT_S,
    Calls,
    again,
    called,
    divided,
    events_of,
    in_schema,
    loaded,
    partitions_of,
    prepared,
    schemas,
    token_of,
    whole,
)
from tests.faults.leased_stock import TOLD, WHOLE, Count, Sku, stocking, told
from tests.postgres_cluster import Server, cluster, migrated
from tests.postgres_server import with_parameter

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="servers are killed by signals here"),
]


@pytest.fixture
async def pair() -> AsyncGenerator[tuple[Server, Server]]:
    """A primary with both stores' tables, and its standby."""
    with cluster() as primary:
        await migrated(primary.url())
        standby = primary.standby(primary.data.with_name("second"))
        yield primary, standby


# ── under load ───────────────────────────────────────────────────────────────


async def test_a_failover_to_a_synchronous_standby_loses_nothing_and_doubles_nothing(
    pair: tuple[Server, Server],
) -> None:
    """What the killed primary acknowledged is on the promoted standby, once; callers and workers find it there."""
    primary, standby = pair
    await prepared(primary.url())
    await primary.confirm_with_standby()
    async with loaded(primary.url(standby)) as load:
        async with load.failing():
            await asyncio.to_thread(primary.kill)
            await load.failed()
            await asyncio.to_thread(standby.promote)
        await load.acknowledged(COMMANDS)


async def test_a_failover_to_an_asynchronous_standby_under_load_doubles_nothing(
    pair: tuple[Server, Server],
) -> None:
    """Of what the killed primary acknowledged some is lost; the same ids bring it back once, and all else holds."""
    primary, standby = pair
    await prepared(primary.url())
    async with called(primary.url(standby)) as load:
        async with load.running():
            await load.begun()
            await caught_up(primary)
            await standby.cut_off()
            await load.acknowledged(COMMANDS)
            for calls in load.both:
                await calls.look()
            lost = [calls.shown.pop() for calls in load.both]
            async with load.failing():
                await asyncio.to_thread(primary.kill)
                await load.failed()
                before = [dict(calls.receipts) for calls in load.both]
                await asyncio.to_thread(standby.promote)
            await load.acknowledged(COMMANDS)
        for calls, (token, _), acknowledged in zip(load.both, lost, before, strict=True):
            await brought_back(calls, acknowledged)
            with pytest.raises(HistoryDiverged):
                await calls.app.query(TotalOf(name="all"), after=token, wait_s=WAIT_S)
            await calls.prove()


async def brought_back(calls: Calls, before: dict[int, Receipt]) -> None:
    """Send everything again that was acknowledged: of every history something was lost, and of nothing later."""
    there = {recorded.event_id for partition in partitions_of(calls.app) for recorded in await events_of(partition)}
    lost = {number for number, receipt in calls.receipts.items() if receipt.place.event_id not in there}
    assert lost <= before.keys()
    histories = {calls.receipts[number].place.history_id for number in lost}
    assert histories == {partition.log.history_id for partition in partitions_of(calls.app)}, "nothing was lost"
    assert all(partition.store.forks for partition in partitions_of(calls.app))
    calls.receipts = await again(calls.app, calls.receipts)


# ── which server ─────────────────────────────────────────────────────────────


async def test_it_is_told_whether_commits_survive_the_loss_of_a_machine(pair: tuple[Server, Server]) -> None:
    """As the server is set now, and whether there is a standby that could confirm them."""
    primary, standby = pair
    assert "not the loss of the server's machine" in await commits_survive(primary.url())
    await primary.confirm_with_standby()
    assert (await commits_survive(primary.url())).endswith("a synchronous standby confirms them")
    standby.kill()
    while "no synchronous standby" not in await commits_survive(primary.url()):
        pass


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


# ── a history that is another one ────────────────────────────────────────────


FORKING = [CounterId(name) for name in (*GROWN, KEPT)]
"""The partitions of what is divided: one for each way to fork, and one that does not."""


@asynccontextmanager
async def branches(url: str, rows: Path | None = None) -> AsyncGenerator[list[Branch]]:
    """Histories that are about to fork, each way once of an application of its own, and once as a partition of one.

    Args:
        url: of the server.
        rows: a folder where the read models are kept, and the order of what is across; None keeps them on the server.
    """
    found: list[Branch] = []
    async with AsyncExitStack() as stack:
        for name, others in GROWN.items():
            app, worker = await opened(stack, whole, **whole_stores(url, name, rows))
            found.append(Branch(app, worker, COUNTERS, SHARED + others))
        app, worker = await opened(stack, divided, **divided_stores(url, rows))
        found += [Branch(app, worker, [name], SHARED + GROWN[name]) for name in FORKING if name != KEPT]
        yield [*found, Branch(app, worker, [KEPT], SHARED)]


async def opened(
    stack: AsyncExitStack, made: Callable[..., Application], **stores: Any
) -> tuple[Application, Application]:
    """One that decides, and one that folds."""
    app = await stack.enter_async_context(made(projecting=False, **stores))
    return app, await stack.enter_async_context(made(**stores))


def whole_stores(url: str, name: str, rows: Path | None, rows_name: str = "rows") -> dict[str, Any]:
    """Of the application whose history forks in that way."""
    kept = {} if rows is None else {"read_store": f"sqlite:{rows}/{rows_name}-of-{name}.db"}
    return {"url": in_schema(url, f"whole_{name}"), **kept}


def divided_stores(url: str, rows: Path | None, rows_name: str = "rows") -> dict[str, Any]:
    """Of the application whose partitions fork in all ways."""
    stores = schemas(url, FORKING)
    if rows is None:
        return {"stores": stores}
    reads = {name: f"sqlite:{rows}/{rows_name}-{name}.db" for name in FORKING if name != KEPT}
    reads[KEPT] = f"sqlite:{rows}/rows-{KEPT}.db"
    return {"stores": {**stores, "*": f"sqlite:{rows}/{rows_name}-across.db"}, "read_store": reads}


async def forked(primary: Server, standby: Server, found: Sequence[Branch]) -> list[dict[int, Receipt]]:
    """Fail over, and let others go on; what was acknowledged of each history that the standby had not got."""
    for branch in found:
        await branch.increments(1, SHARED)
    await caught_up(primary)
    await standby.cut_off()
    lost = [await branch.increments(SHARED + 1, SHARED + LOST) for branch in found if KEPT not in branch.counters]
    for branch in found:
        await branch.worker.projected()
    others = {f"whole_{name}": (events, COUNTERS) for name, events in GROWN.items()}
    fail_over(primary, standby, others | {name: (events, [CounterId(name)]) for name, events in GROWN.items()})
    return lost


@pytest.fixture
async def forking(pair: tuple[Server, Server]) -> tuple[Server, Server]:
    """The pair, with the tables of all branches."""
    primary, _ = pair
    for name in (*(f"whole_{name}" for name in GROWN), *schemas(primary.url(), FORKING)):
        await migrated(in_schema(primary.url(), "across" if name == "*" else name))
    return pair


async def test_commands_are_decided_on_the_history_that_is_there_after_a_fork(forking: tuple[Server, Server]) -> None:
    """What was acknowledged and lost is in no cache any more: nothing is appended to it, and nothing refused by it."""
    primary, standby = forking
    async with branches(primary.url(standby)) as found:
        lost = await forked(primary, standby, found)
        *those_that_fork, kept = found
        for branch, receipts in zip(those_that_fork, lost, strict=True):
            await goes_on(branch, receipts)
        assert kept.partition.store.forks == 0
        events = [await events_of(branch.partition) for branch in those_that_fork[len(GROWN) :]]
        receipt = await kept.app.execute(Increment(counter=KEPT))
        assert receipt.position == SHARED + 1
        with pytest.raises(HistoryDiverged):
            await kept.app.query(TotalOf(name="all"), after=lost[-1][SHARED + LOST], wait_s=WAIT_S)
        await kept.worker.projected()
        row = await kept.app.query(TotalOf(name="all"), after=receipt, wait_s=WAIT_S)
        assert row is not None
        assert row.events == sum(map(len, events)) + SHARED + 1
        assert (await kept.worker.across.rebuilds.compare("totals.Total")).same
        assert (await kept.worker.health()).impaired == ()


async def goes_on(branch: Branch, lost: dict[int, Receipt]) -> None:
    """Commands are decided on what is there now, and what was lost is done once when it is sent again."""
    app, counter = branch.app, branch.counters[0]
    each = len(branch.counters)
    reached = branch.grown // each
    with pytest.raises(Rejected, match="full"):
        await sent(app, Increment(counter=counter, below=reached), "refused")
    receipt = await sent(app, Increment(counter=counter, below=reached + 1), "accepted")
    assert receipt.position == branch.grown + 1
    assert len(await events_of(branch.partition)) == receipt.position

    for token in (lost[SHARED + LOST], lost[SHARED + 1]):
        with pytest.raises(HistoryDiverged, match="token"):
            await app.query(CountOf(counter=counter), after=token, wait_s=WAIT_S)
    again = await branch.increments(SHARED + 1, SHARED + LOST)
    assert again == await branch.increments(SHARED + 1, SHARED + LOST)
    assert len(await events_of(branch.partition)) == branch.grown + 1 + LOST
    row = await app.query(CountOf(counter=counter), after=token_of(list(again.values())), wait_s=WAIT_S)
    assert row is not None
    assert row.events == row.value == reached + 1 + LOST // each
    assert (await branch.folding.rebuilds.compare("counting.Count")).same
    assert (await branch.worker.health()).ready


async def test_a_read_model_of_the_lost_history_stops_and_is_not_taken_for_an_answer(
    forking: tuple[Server, Server], tmp_path: Path
) -> None:
    """Rows that are kept elsewhere outlive the fork: their projection says so, and no strict query shows them."""
    primary, standby = forking
    url = primary.url(standby)
    async with branches(url, tmp_path) as found:
        await forked(primary, standby, found)
        *those_that_fork, kept = found
        receipts = [await stops(branch) for branch in those_that_fork]
        assert [(await branch.worker.health()).ready for branch in found[: len(GROWN)]] == [False] * len(GROWN)

        receipts.append(await kept.app.execute(Increment(counter=KEPT)))
        row = await kept.app.query(CountOf(counter=KEPT), after=receipts[-1], wait_s=WAIT_S)
        assert row is not None
        assert row.events == SHARED + 1
        with pytest.raises(HistoryDiverged, match="the order of what is merged"):
            await kept.app.query(TotalOf(name="all"), after=receipts[-1], wait_s=WAIT_S)
        health = await kept.worker.health()
        assert health.ready, "one of its partitions is as it was"
        assert [told.partition(":")[0] for told in health.impaired] == [f"partition '{name}'" for name in (*GROWN, "*")]
    await reopened(url, tmp_path, receipts)


async def stops(branch: Branch) -> Receipt:
    """Its rows are those of before, and of no use to who asks for what is there now."""
    app, counter = branch.app, branch.counters[0]
    receipt = await sent(app, Increment(counter=counter), "after the fork")
    with pytest.raises(HistoryDiverged, match=r"read model counting\.Count"):
        await app.query(CountOf(counter=counter), after=receipt, wait_s=WAIT_S)
    seen, partition = 0, branch.folding
    while not (stopped := (await partition.status()).projections[0].stopped):
        seen = await partition.read_store.wait_for_change(seen, WAIT_S)
    assert "another history" in stopped
    assert "built anew" in stopped
    row = await app.query(CountOf(counter=counter))
    assert row is not None
    assert row.events == (SHARED + LOST) // len(branch.counters), "nothing of the other history was folded onto it"
    return receipt


async def reopened(url: str, rows: Path, receipts: Sequence[Receipt]) -> None:
    """Nothing is opened on rows of another history; anew they are those of the history that is there."""
    of_whole, of_divided = receipts[: len(GROWN)], receipts[len(GROWN) :]
    for (name, others), receipt in zip(GROWN.items(), of_whole, strict=True):
        with pytest.raises(HistoryDiverged, match="Remove the read store"):
            await whole(**whole_stores(url, name, rows)).open()
        async with whole(**whole_stores(url, name, rows, "anew")) as app:
            row = await app.query(CountOf(counter=COUNTERS[0]), after=receipt, wait_s=WAIT_S)
            assert row is not None
            assert row.events == (SHARED + others) // len(COUNTERS) + 1
    with pytest.raises(HistoryDiverged, match="Remove the read store") as refusal:
        await divided(**divided_stores(url, rows)).open()
    assert refusal.value.__notes__ == ["It was opening the partition 'shorter'."]
    async with divided(**divided_stores(url, rows, "anew")) as app:
        total = await app.query(TotalOf(name="all"), after=token_of(of_divided), wait_s=WAIT_S)
        assert total is not None
        assert total.events == len(FORKING) * (SHARED + 1) + sum(GROWN.values())


async def test_a_subscriber_of_the_lost_history_stops(
    pair: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its checkpoint is kept elsewhere it says so, and is told nothing of the other history."""
    monkeypatch.setenv(TOLD, str(tmp_path))
    primary, standby = pair
    url, rows = primary.url(standby), f"sqlite:{tmp_path}/rows.db"
    async with Application(stocking(divided=False), store=url, read_store=rows) as app:
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
    assert told(tmp_path, WHOLE, "heard.txt") == {os.getpid(): [1, 2]}


@asynccontextmanager
async def undecided(
    primary: Server, standby: Server
) -> AsyncGenerator[tuple[Application, Application, Receipt, Receipt]]:
    """What is whole and what is divided, which nobody folds, and what was acknowledged to each that will be lost."""
    url = primary.url(standby)
    await prepared(primary.url())
    async with whole(url, projecting=False) as one, divided(schemas(url), projecting=False) as other:
        for app in (one, other):
            await increments(app, 1, SHARED)
        await caught_up(primary)
        await standby.cut_off()
        lost = [await increments(app, SHARED + 1, SHARED + LOST) for app in (one, other)]
        number = SHARED + LOST - (SHARED + LOST) % len(COUNTERS)
        yield one, other, lost[0][number], lost[1][number]


HISTORIES: list[tuple[str, list[CounterId]]] = [("own", COUNTERS), *((counter, [counter]) for counter in COUNTERS)]
"""The schema of each history, and what is counted in it."""
MORE = {schema: (3 * LOST, counters) for schema, counters in HISTORIES}
"""What others write in each after the failover: more than was lost."""


def asked_of(
    one: Application, other: Application, lost: Receipt, lost_of_partition: Receipt
) -> list[tuple[Application, Follower, Query[Any], Receipt]]:
    """What is asked of what is whole, of a partition and across: of whom, whose rows, what, and after which token."""
    return [
        (one, one.partition(), CountOf(counter=COUNTERS[0]), lost),
        (other, other.partition(COUNTERS[0]), CountOf(counter=COUNTERS[0]), lost_of_partition),
        (other, other.across, TotalOf(name="all"), lost_of_partition),
    ]


async def test_who_waits_while_the_history_forks_is_told(pair: tuple[Server, Server]) -> None:
    """A token that was good when the wait began is not taken for what is at its position now."""
    primary, standby = pair
    async with undecided(primary, standby) as (one, other, lost, lost_of_partition):
        waiting: list[asyncio.Task[object]] = []
        for app, follower, query, token in asked_of(one, other, lost, lost_of_partition):
            waiting.append(asyncio.create_task(app.query(query, after=token, wait_s=WAIT_S)))
            assert isinstance(follower.read_store, PostgresReadStore)
            while not follower.read_store._changes._noticed.waiting:
                await checkpoint()
        fail_over(primary, standby, MORE)
        url = primary.url(standby)
        async with whole(url), divided(schemas(url)):
            for each in waiting:
                with pytest.raises(HistoryDiverged, match="consistency token"):
                    await each


@pytest.mark.parametrize("by_itself", [True, False], ids=["wrote it", "was told"])
async def test_a_fork_that_is_found_beside_the_rows_is_not_answered_across(
    pair: tuple[Server, Server], tmp_path: Path, by_itself: bool
) -> None:
    """Rows that are kept elsewhere, and were found in the history, are looked up again once a fork is found."""
    primary, standby = pair
    url, rows = primary.url(standby), f"sqlite:{tmp_path}/rows.db"
    async with (
        whole(url, read_store=rows) as worker,
        whole(url, read_store=rows, projecting=False) as app,
    ):
        writer = app if by_itself else worker
        shared = await increments(writer, 1, SHARED)
        await caught_up(primary)
        await standby.cut_off()
        lost = await increments(writer, SHARED + 1, SHARED + LOST)
        for token in (lost[SHARED + LOST], shared[SHARED]):
            row = await app.query(CountOf(counter=COUNTERS[0]), after=token, wait_s=WAIT_S)
            assert row is not None
        fail_over(primary, standby, 3 * LOST)
        with pytest.raises(HistoryDiverged, match=r"read model counting\.Count"):
            await app.query(CountOf(counter=COUNTERS[0]), after=shared[SHARED], wait_s=WAIT_S)


async def test_a_fork_between_the_looks_at_the_token_and_at_the_rows_is_not_answered_across(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the other history, as far as the token and good there, do not show what the token tells of."""
    primary, standby = pair
    async with undecided(primary, standby) as (one, other, lost, lost_of_partition):
        waiting: list[asyncio.Task[object]] = []
        forked = asyncio.Event()
        for app, follower, query, token in asked_of(one, other, lost, lost_of_partition):
            looked = hold_between(monkeypatch, follower, forked)
            waiting.append(asyncio.create_task(app.query(query, after=token, wait_s=WAIT_S)))
            await looked.wait()
        fail_over(primary, standby, MORE)
        url = primary.url(standby)
        async with whole(url) as worker, divided(schemas(url)) as others:
            await worker.projected()
            await others.projected()
            forked.set()
            for each in waiting:
                with pytest.raises(HistoryDiverged, match="consistency token"):
                    await each


def hold_between(monkeypatch: pytest.MonkeyPatch, follower: Follower, forked: asyncio.Event) -> asyncio.Event:
    """Let rows be read only once it has forked; what is given is set when the token was looked up before."""
    log, read_store = follower.log, follower.read_store
    assert isinstance(read_store, PostgresReadStore)
    looks_up = "covering" if isinstance(log, MergedLog) else "place_at"
    look_up, take, looked = getattr(log, looks_up), read_store._snapshots.take, asyncio.Event()

    async def look(place: object) -> object:
        found = await look_up(place)
        looked.set()
        return found

    async def take_late() -> Any:
        await forked.wait()
        return await take()

    monkeypatch.setattr(log, looks_up, look)
    monkeypatch.setattr(read_store._snapshots, "take", take_late)
    return looked


async def test_who_follows_the_events_is_not_led_across_a_fork(pair: tuple[Server, Server]) -> None:
    """A reader in the middle of one history is told, and given nothing of the other one."""
    primary, standby = pair
    async with undecided(primary, standby) as (one, other, *_):
        followed = [
            (one.partition(), SHARED + LOST),
            (other.partition(COUNTERS[0]), (SHARED + LOST) // len(COUNTERS)),
            (other.across, SHARED + LOST),
        ]
        waiting: list[asyncio.Future[object]] = []
        for follower, events in followed:
            following = aiter(follower.events(ALL_EVENTS, follow=True))
            for _ in range(events):
                await anext(following)
            waiting.append(asyncio.ensure_future(anext(following)))
        await asyncio.wait(waiting, timeout=0)
        fail_over(primary, standby, MORE)
        for each in waiting:
            with pytest.raises(HistoryDiverged, match="read"):
                await each
