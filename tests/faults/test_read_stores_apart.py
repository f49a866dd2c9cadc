"""Read models in several stores, one of which cannot be reached: the others are folded and asked as ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from diptych import Application
from diptych.application import follower, partitions
from diptych.application.read_routing import ReadStores
from diptych.errors import StoreUnavailable
from diptych.read_side import live_queries
from diptych.read_side.snapshot_turns import SNAPSHOT_WAIT_S_MAX, SNAPSHOTS_MAX
from tests.postgres_line import Line
from tests.postgres_server import new_read_store
from tests.tenants import ACME, GLOBEX, PEN, Stock, TenantId, warehouse
from tests.unit.test_read_stores import A, Both, BothOf, Count, CountOf, Put, Weight, WeightOf, shelves

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name == "nt", reason="the line is a Unix socket")]

WAIT_S = 20


@pytest.mark.parametrize("is_default", [False, True])
async def test_a_store_that_is_gone_holds_up_no_other(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, *, is_default: bool
) -> None:
    """What is in the others is projected and answered, and health says so; once it is back, nothing is missing."""
    kept = f"sqlite:{tmp_path}/rows.db"
    line = Line(await new_read_store(), tmp_path_factory.mktemp("l"))
    far = await line.open()
    default, sent = (far, {Count: kept}) if is_default else (kept, {Weight: far})
    async with Application(
        shelves(), store=f"sqlite:{tmp_path}/events.db", read_store=default, read_stores=sent
    ) as app:
        await app.execute(Put(shelf=A, weight=1))
        await app.projected()
        assert (await app.health()).impaired == ()
        await line.close()
        line.cut()
        last = await app.execute(Put(shelf=A, weight=2))
        assert await app.query(CountOf(shelf=A), after=last, wait_s=WAIT_S) == Count(shelf=A, things=2)
        with pytest.raises(StoreUnavailable):
            await app.query(WeightOf(shelf=A), after=last, wait_s=WAIT_S)
        with pytest.raises(StoreUnavailable):
            await app.query(BothOf(shelf=A), after=last, wait_s=WAIT_S)
        status = {found.name: found for found in (await app.status()).projections}
        assert (status["shelves.Count"].checkpoint, status["shelves.Count"].stopped) == (2, "")
        assert status["shelves.Weight"].checkpoint == 1, "as it was when it was last heard of"
        assert status["shelves.Weight"].stopped
        health = await app.health()
        assert health.ready
        (told,) = health.impaired
        assert "check that the server runs" in told
        await line.open()
        async with asyncio.timeout(WAIT_S):
            assert await app.query(BothOf(shelf=A), after=last, wait_s=WAIT_S) == Both(things=2, total=3)
            await app.projected()
        assert (await app.health()).impaired == ()
    await line.close()


async def test_health_waits_for_no_partition_that_hangs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "HEALTH_S_MAX", 0.5)
    line = Line(await new_read_store(), tmp_path_factory.mktemp("l"))
    stores, rows = {name: f"sqlite:{tmp_path}/{name}.db" for name in (ACME, GLOBEX)}, {ACME: await line.open()}
    async with Application(warehouse(), partition_by=TenantId, store=stores, read_store=rows) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        await app.projected()
        line.swallows = True
        async with asyncio.timeout(SNAPSHOT_WAIT_S_MAX / 2):
            health = await app.health()
        assert health.ready
        assert health.impaired == ("partition 'acme': no answer within HEALTH_S_MAX=0.5 s",)
        line.swallows = False
        line.cut()
    await line.close()


@pytest.fixture
async def far(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Application, Line]]:
    """Weights are at the end of a line, and counts in memory."""
    line = Line(await new_read_store(), tmp_path_factory.mktemp("l"))
    sent: ReadStores = {Weight: await line.open(), Count: "memory:"}
    async with Application(shelves(), store=f"sqlite:{tmp_path}/events.db", read_stores=sent) as app:
        yield app, line
        line.swallows = False
        line.cut()
    await line.close()


async def test_live_queries_of_a_store_that_hangs_take_no_turn_from_others(
    far: tuple[Application, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is woken by another store and asks it again; what rests on that other one alone is told what is new."""
    monkeypatch.setattr(live_queries, "ANSWERS_AT_ONCE_MAX", 1)
    app, line = far
    async with aclosing(app.subscribe(BothOf(shelf=A))) as both, aclosing(app.subscribe(CountOf(shelf=A))) as alone:
        assert await anext(both) == await app.answer(BothOf(shelf=A))
        await anext(alone)
        line.swallows = True
        waiting = asyncio.ensure_future(anext(both))
        async with asyncio.timeout(SNAPSHOT_WAIT_S_MAX / 2):
            for things in (1, 2):  # the first one wakes both
                await app.execute(Put(shelf=A, weight=1))
                assert (await anext(alone)).value == Count(shelf=A, things=things)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_what_waits_for_a_store_that_hangs_takes_no_turn_from_others(
    far: tuple[Application, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More queries than there are snapshots wait for one store; a key in another one is answered meanwhile."""
    monkeypatch.setattr(follower, "STATUS_S_MAX", 0.05)
    app, line = far
    last = await app.execute(Put(shelf=A, weight=1))
    await app.projected()
    line.swallows = True
    waiting = [asyncio.create_task(app.query(BothOf(shelf=A))) for _ in range(2 * SNAPSHOTS_MAX)]
    await checkpoint()
    async with asyncio.timeout(SNAPSHOT_WAIT_S_MAX / 2):
        assert await app.query(CountOf(shelf=A), after=last) == Count(shelf=A, things=1)
        health = await app.health()
    assert health.ready, "and it is told of within a time"
    assert "STATUS_S_MAX" in health.impaired[0]
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
