"""Live queries: what changes an answer without an event of this process, or without any event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from diptych import Answer, Application
from diptych.read_side import read_model_watch
from diptych.read_side import slice as slice_of_projection
from diptych.testing import ManualClock
from tests.parking import discard, retry
from tests.tenants import ACME, GLOBEX, PEN, Places, Stock, TenantId, UnitsEverywhere, UnitsOnShelf, warehouses
from tests.watched import (
    Add,
    All,
    Break,
    Counter,
    CounterId,
    CounterOf,
    Faults,
    Hold,
    Note,
    Notes,
    TicketOf,
    Tickets,
    counters,
)

pytestmark = pytest.mark.anyio
R = TypeVar("R")
A, B = CounterId("a"), CounterId("b")
WAIT_S = 30
"""Seconds after which a test gives up."""


@pytest.fixture(params=["sqlite", "postgres"])
def kept_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that several applications have open."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/events.db"
    from tests.postgres_server import in_thread, new_stores

    return in_thread(new_stores())


@pytest.fixture(params=["memory", "sqlite"])
def clocked_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store whose events are recorded by the clock of the application."""
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/events.db"


async def following(answers: AsyncGenerator[Answer[R]]) -> Answer[R]:
    """The next answer."""
    async with asyncio.timeout(WAIT_S):
        return await anext(answers)


async def until(answers: AsyncGenerator[Answer[R]], value: object) -> Answer[R]:
    """The next answer of that value: other processes may have folded a part of it before."""
    async with asyncio.timeout(WAIT_S):
        async for answer in answers:
            if answer.value == value:
                return answer
    raise AssertionError("the answers have ended")


# ── other processes ──────────────────────────────────────────────────────────


async def test_what_another_process_appends_and_projects_is_noticed(kept_url: str) -> None:
    """By an application that does neither."""
    async with (
        Application(counters(), store=kept_url) as other,
        Application(counters(), store=kept_url, projecting=False) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
        aclosing(app.subscribe(All())) as rows,
    ):
        assert (await following(answers)).value is None
        assert (await following(rows)).value == []
        for count in (1, 2):
            await other.execute(Add(counter=A))
            assert (await following(answers)).value == Counter(counter=A, count=count)
            assert (await following(rows)).value == [Counter(counter=A, count=count)]


async def test_what_is_appended_here_and_projected_elsewhere_is_noticed(kept_url: str) -> None:
    """The commands of one process, folded by another one."""
    async with (
        Application(counters(), store=kept_url),
        Application(counters(), store=kept_url, projecting=False) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
    ):
        await following(answers)
        for count in (1, 2, 3):
            await app.execute(Add(counter=A))
            assert (await following(answers)).value == Counter(counter=A, count=count)


async def test_past_the_limit_of_events_all_are_woken(kept_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more is folded at once than is looked at, no answer is missed."""
    monkeypatch.setattr(read_model_watch, "TOUCHED_EVENTS_MAX", 2)
    async with (
        Application(counters(), store=kept_url, projecting=False) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
    ):
        await following(answers)
        for number in range(5):
            await app.execute(Add(counter=CounterId(f"x{number}")))
        await app.execute(Add(counter=A))
        async with Application(counters(), store=kept_url):
            assert (await following(answers)).value == Counter(counter=A, count=1)


# ── without an event ─────────────────────────────────────────────────────────


async def test_a_blocked_key_and_what_becomes_of_it(store_url: str) -> None:
    """The answer says that it is incomplete; tried again by hand it is another one, though nothing was appended."""
    faults = Faults()
    async with (
        Application(counters(faults), store=store_url) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
        aclosing(app.subscribe(CounterOf(counter=B))) as others,
    ):
        assert not (await following(answers)).incomplete
        await following(others)
        await app.execute(Break(counter=A))
        blocked = await following(answers)
        assert (blocked.value, blocked.incomplete) == (None, True)
        await app.execute(Add(counter=B))
        shown = await following(others)
        assert (shown.value, shown.incomplete) == (Counter(counter=B, count=1), False)
        waiting = asyncio.create_task(following(answers))
        await app.projected()
        faults.mended = True
        await retry(app, '["a"]')
        mended = await waiting
        assert (mended.value, mended.incomplete) == (Counter(counter=A, count=-1), False)


async def test_a_discard_is_a_change(store_url: str) -> None:
    """What is left out by hand gives another answer, though nothing was appended."""
    async with (
        Application(counters(), store=store_url) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
    ):
        await following(answers)
        await app.execute(Break(counter=A))
        assert (await following(answers)).incomplete
        waiting = asyncio.create_task(following(answers))
        await app.projected()
        await discard(app, '["a"]')
        mended = await waiting
        assert (mended.value, mended.incomplete) == (None, False)
        await app.execute(Add(counter=A, count=5))
        assert (await following(answers)).value == Counter(counter=A, count=5)


async def test_a_rebuild_is_a_change(store_url: str) -> None:
    """The rows of another generation are another answer, and it goes on with that one."""
    faults = Faults()
    async with (
        Application(counters(faults), store=store_url) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
    ):
        await following(answers)
        await app.execute(Break(counter=A))
        assert (await following(answers)).incomplete
        faults.mended = True
        await app.rebuilds.rebuild("counters.Counter")
        rebuilt = await following(answers)
        assert (rebuilt.value, rebuilt.incomplete) == (Counter(counter=A, count=-1), False)
        await app.execute(Add(counter=A, count=3))
        assert (await following(answers)).value == Counter(counter=A, count=2)


async def test_a_projection_that_stops_is_told(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer of its read model is incomplete from then on."""
    monkeypatch.setattr(slice_of_projection, "BLOCKED_KEYS_MAX", 0)
    async with (
        Application(counters(), store=store_url) as app,
        aclosing(app.subscribe(CounterOf(counter=A))) as answers,
    ):
        assert not (await following(answers)).incomplete
        await app.execute(Break(counter=B))
        assert (await following(answers)).incomplete


async def test_a_projection_that_stops_where_it_is_is_told(store_url: str) -> None:
    """Its first event tells no key: nothing moves but that it has stopped."""
    async with (
        Application(counters(), store=store_url) as app,
        aclosing(app.subscribe(Notes())) as answers,
    ):
        assert not (await following(answers)).incomplete
        await app.execute(Note(text=""))
        stopped = await following(answers)
        assert (stopped.value, stopped.incomplete) == ([], True)


async def test_a_row_expires_while_nothing_happens(clocked_url: str) -> None:
    """A row that was read, and a count: by the clock."""
    clock = ManualClock()
    async with Application(counters(), store=clocked_url, clock=clock) as app:
        receipt = await app.execute(Hold(counter=A, minutes=10))
        await app.execute(Hold(counter=B, minutes=60))
        clock.advance(timedelta(minutes=9, seconds=59.99))
        async with (
            aclosing(app.subscribe(TicketOf(counter=A), after=receipt)) as answers,
            aclosing(app.subscribe(Tickets(), after=receipt)) as counts,
        ):
            assert (await following(answers)).value is not None
            assert (await until(counts, 2)).value == 2
            gone = [asyncio.create_task(following(each)) for each in (answers, counts)]
            await asyncio.wait(gone, timeout=0)
            assert not any(each.done() for each in gone)
            clock.advance(1)
            assert [(await each).value for each in gone] == [None, 1]


async def test_a_row_expires_by_the_times_of_the_log(tmp_path: Path) -> None:
    """An event was recorded by a clock that is ahead of this one: what has expired by then is shown no more."""
    url, ahead = f"sqlite:{tmp_path}/events.db", ManualClock()
    async with (
        Application(counters(), store=url, clock=ManualClock()) as app,
        Application(counters(), store=url, clock=ahead) as other,
    ):
        receipt = await app.execute(Hold(counter=A, minutes=10))
        async with (
            aclosing(app.subscribe(TicketOf(counter=A), after=receipt)) as answers,
            aclosing(app.subscribe(Tickets(), after=receipt)) as counts,
        ):
            assert (await following(answers)).value is not None
            assert (await following(counts)).value == 1
            ahead.advance(timedelta(hours=1))
            await other.execute(Note(text="later"))
            assert (await following(answers)).value is None
            assert (await following(counts)).value == 0


# ── partitions ───────────────────────────────────────────────────────────────


async def test_each_partition_and_what_is_across_them_is_followed(places: Places) -> None:
    """A query of one partition rests while another one changes; one across all of them is answered anew by each."""
    stores = places(ACME, GLOBEX, "*")
    async with (
        Application(warehouses(), partition_by=TenantId, store=stores) as app,
        aclosing(app.subscribe(UnitsOnShelf(tenant=ACME, sku=PEN))) as acme,
        aclosing(app.subscribe(UnitsOnShelf(tenant=GLOBEX, sku=PEN))) as globex,
        aclosing(app.subscribe(UnitsEverywhere(sku=PEN))) as everywhere,
    ):
        assert [(await following(each)).value for each in (acme, globex)] == [0, 0]
        assert (await following(everywhere)).value is None
        waiting = asyncio.create_task(following(globex))
        await app.execute(Stock(tenant=ACME, sku=PEN, units=3))
        assert (await following(acme)).value == 3
        row = (await following(everywhere)).value
        assert row is not None
        assert row.units == 3
        await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=4))
        assert (await waiting).value == 4
        last = await following(everywhere)
        assert last.value is not None
        assert last.value.units == 7
        async with aclosing(app.subscribe(UnitsEverywhere(sku=PEN), after=last)) as resumed:
            assert (await following(resumed)).value == last.value
