"""Where two rules meet on PostgreSQL: failover and leases or types, copies and open applications, roles and leases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from diptych import Application, NotFresh
from diptych.adapters.connect import connect_event_store, default_read_store
from diptych.adapters.postgres.grants import role_name
from diptych.clock import SystemClock
from diptych.errors import HistoryDiverged
from diptych.event_store import copying
from diptych.event_store.event_store import HistoryPart
from diptych.event_store.tagging import UNTOUCHED
from tests.faults.counting import Count, CounterId, CountOf, Increment, counting
from tests.faults.failing_over import LOST, SHARED, caught_up, fail_over, increments, sent
from tests.faults.incrementing import WAIT_S
from tests.postgres_cluster import Server, cluster, migrated
from tests.postgres_server import (
    ROLE_PREFIX,
    as_role,
    by_hand,
    make_login,
    new_granted_stores,
    new_stores,
    server_url,
    url_as,
)

pytestmark = pytest.mark.anyio
A = CounterId("a")


@pytest.fixture
def primary() -> Iterator[Server]:
    with cluster() as primary:
        yield primary


async def standby_of(primary: Server) -> Server:
    """A standby, of a primary that has the tables."""
    await migrated(primary.url())
    return primary.standby(primary.data.with_name("second"))


async def test_a_worker_that_takes_over_goes_on_with_no_rows_of_a_lost_history(primary: Server, tmp_path: Path) -> None:
    """It was idle, and never saw the events that the failover lost: to itself there was no fork."""
    standby = await standby_of(primary)
    url, rows = primary.url(standby), f"sqlite:{tmp_path}/rows.db"
    async with (
        asyncio.timeout(WAIT_S),
        Application(counting, store=url, read_store=rows) as busy,
        Application(counting, store=url, read_store=rows) as idle,
    ):
        await increments(busy, 1, SHARED)
        await caught_up(primary)
        await standby.cut_off()
        await increments(busy, SHARED + 1, SHARED + LOST)
        await busy.projected()
        leases = idle.partition().leases
        assert not leases._leased.epochs
        fail_over(primary, standby, 3 * LOST)
        await sent(busy, Increment(counter=CounterId("c0")), "after the fork")
        while not idle.partition().projector.slices[0].stopped:  # by itself: it had the lease, and looked
            await checkpoint()
        assert (await idle.status()).projections[0].stopped
        assert not (await idle.health()).ready


async def test_a_strict_answer_shows_no_rows_of_a_history_that_was_never_seen_here(
    primary: Server, tmp_path: Path
) -> None:
    """To an application that knew only what both branches share there was no fork; the rows are of the lost one."""
    standby = await standby_of(primary)
    url, rows = primary.url(standby), f"sqlite:{tmp_path}/rows.db"
    async with (
        Application(counting, store=url, read_store=rows) as busy,
        Application(counting, store=url, read_store=rows, projecting=False) as api,
    ):
        await increments(busy, 1, SHARED)
        await busy.projected()
        assert await api.query(CountOf(counter=CounterId("c0"))) is not None
        await caught_up(primary)
        await standby.cut_off()
        await increments(busy, SHARED + 1, SHARED + LOST)
        await busy.projected()
        fail_over(primary, standby, 0)
        receipt = await sent(busy, Increment(counter=CounterId("new")), "after the fork")
        with pytest.raises((HistoryDiverged, NotFresh)):
            await api.query(CountOf(counter=CounterId("new")), after=receipt, wait_s=1)


@pytest.mark.parametrize("events_lost", [0, 1])
async def test_types_that_a_failover_has_lost_are_registered_again(primary: Server, events_lost: int) -> None:
    """The application can be opened again, though its events were appended under types that nobody knew there."""
    standby = await standby_of(primary)
    await caught_up(primary)
    await standby.cut_off()
    url = primary.url(standby)
    async with Application(counting, store=url, projecting=False) as app:
        for n in range(events_lost):
            await sent(app, Increment(counter=A), f"lost {n}")
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(standby.promote)
        await sent(app, Increment(counter=A), "kept")
        assert app.partition().store.forks == events_lost
    async with Application(counting, store=url, projecting=False) as app:
        assert (await app.status()).head == 1


async def test_an_application_that_was_open_on_an_empty_store_writes_nothing_to_a_half_copy(tmp_path: Path) -> None:
    """Its outcomes are not there yet: a command that is sent again would take effect twice."""
    source_url, target_url = f"sqlite:{tmp_path}/source.db", await new_stores()
    async with Application(counting, store=source_url) as app:
        for n in range(5):
            await app.execute(Increment(counter=A), command_id=f"n{n}")
    source, target = connect_event_store(source_url, SystemClock()), connect_event_store(target_url, SystemClock())
    await source.open()
    await target.open()
    try:
        async with Application(counting, store=target_url, projecting=False) as waiting:
            at = await copying.copied_up_to(source, target)
            await target.restore(HistoryPart(at))
            await copying._copy_events(source, target, at, await source.head(), UNTOUCHED, lambda *_: None)
            for _ in range(2):
                with pytest.raises(HistoryDiverged, match="another history id"):
                    await waiting.execute(Increment(counter=A), command_id="n4")
        assert (await target.head()).position == 5
    finally:
        await target.close()
        await source.close()


async def test_a_projector_that_has_ended_gives_its_leases_up() -> None:
    """A worker whose right to the events was taken away says so, and another one that has it goes on."""
    url = await new_granted_stores()
    rows = default_read_store(url)
    user, role = f"{ROLE_PREFIX}_poor", role_name(ROLE_PREFIX, "projector")
    async with by_hand(server_url()) as link:
        await make_login(link, user, role)
    rows_as = as_role(rows, "projector")
    async with (
        Application(
            counting, store=as_role(url, "writer"), read_store=as_role(rows, "reader"), projecting=False
        ) as api,
        Application(counting, store=url_as(url, user), read_store=rows_as) as poor,
        Application(counting, store=as_role(url, "projector"), read_store=rows_as) as good,
    ):
        await api.query(CountOf(counter=A), after=await api.execute(Increment(counter=A)), wait_s=WAIT_S)
        assert [bool(app.partition().leases._leased.epochs) for app in (poor, good)] == [True, False]
        async with by_hand(server_url()) as link:
            await link.execute(f'REVOKE "{role}" FROM "{user}"')
        receipt = await api.execute(Increment(counter=A))
        assert await api.query(CountOf(counter=A), after=receipt, wait_s=WAIT_S) == Count(counter=A, value=2, events=2)
        assert "permission denied" in poor.partition().projector.failure
