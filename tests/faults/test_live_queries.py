"""Live queries on servers that lag, are away for a while, or come back without what they had shown."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Self, TypeVar

import pytest

from diptych import Answer, Application
from diptych.errors import HistoryDiverged, Unavailable
from tests.faults.failing_over import caught_up
from tests.faults.replicated import Answered, Receive, Sku, StockOf
from tests.faults.test_postgres_replicas import replicated
from tests.postgres_cluster import cluster, migrated
from tests.postgres_server import new_stores
from tests.postgres_standby import NAME, OTHER_NAME, SKIPPED, the_standby
from tests.watched import Add, All, Counter, CounterId, CounterOf, counters

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="servers are killed by signals here"),
]
R = TypeVar("R")
A = CounterId("a")
PENS = Sku("pens")
WAIT_S = 60
"""Seconds after which a test gives up."""


async def following(answers: AsyncGenerator[Answer[R]]) -> Answer[R]:
    """The next answer."""
    async with asyncio.timeout(WAIT_S):
        return await anext(answers)


def on_a_loop_of_its_own(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Not on that of other tests, which fails where the driver leaves the end of a connection to nobody."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    del run.__dict__["__wrapped__"]  # it is no coroutine
    return run


class Noticed(logging.Handler):
    """Hears what a logger tells inside the block."""

    def __init__(self, logger: str, level: int) -> None:
        super().__init__()
        self._logger, self._wanted = logging.getLogger(logger), level
        self._heard: asyncio.Queue[str] = asyncio.Queue()

    def __enter__(self) -> Self:
        self._before = self._logger.level
        self._logger.setLevel(self._wanted)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.put_nowait(record.getMessage())

    async def told(self, text: str) -> None:
        """Return once it has told that."""
        while text not in await self._heard.get():
            pass


async def executed(app: Application, command: Add) -> None:
    """A command under one id, until its server is there."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await app.execute(command, command_id="the one")
            except Unavailable:
                continue
            return


@pytest.mark.skipif(bool(SKIPPED), reason=SKIPPED)
async def test_answers_never_go_back_to_what_a_replica_still_shows() -> None:
    """Of two replicas one stands still: answers come from the other one, in order, and none is from before."""
    url, still, other = await new_stores(), the_standby(), the_standby(OTHER_NAME)
    await still.caught_up()
    await other.caught_up()
    async with (
        replicated(url, still, other) as app,
        aclosing(app.subscribe(StockOf(sku=PENS))) as one,
        aclosing(app.subscribe(StockOf(sku=PENS))) as two,
    ):
        assert {(await following(each)).value.units for each in (one, two)} == {0}
        async with still.paused():
            for units in range(1, 5):
                await app.execute(Receive(sku=PENS))
                for each in (one, two):
                    assert (await following(each)).value == Answered(units=units, server=OTHER_NAME)


@pytest.mark.skipif(bool(SKIPPED), reason=SKIPPED)
async def test_an_answer_comes_once_the_replica_shows_it() -> None:
    """What the primary has and the only replica has not is no change yet."""
    url, standby = await new_stores(), the_standby()
    await standby.caught_up()
    async with replicated(url, standby) as app, aclosing(app.subscribe(StockOf(sku=PENS))) as answers:
        assert (await following(answers)).value == Answered(units=0, server=NAME)
        async with standby.paused():
            waiting = asyncio.create_task(following(answers))
            await app.execute(Receive(sku=PENS))
            await app.projected()
            assert not waiting.done()
            await standby.resume()
            assert (await waiting).value == Answered(units=1, server=NAME)


@on_a_loop_of_its_own
async def test_a_server_that_is_away_for_a_while_ends_no_live_query() -> None:
    """It goes on where it was, with what happens afterwards."""
    with cluster() as server:
        url = await migrated(server.url())
        async with (
            Application(counters(), store=url) as app,
            aclosing(app.subscribe(CounterOf(counter=A))) as keyed,
            aclosing(app.subscribe(All())) as rows,
        ):
            await following(keyed)
            await following(rows)
            one, all_of_them = asyncio.create_task(following(keyed)), asyncio.create_task(following(rows))
            await asyncio.to_thread(server.kill)
            attempt = asyncio.create_task(executed(app, Add(counter=A)))
            await asyncio.to_thread(server.start)
            await attempt
            assert (await one).value == Counter(counter=A, count=1)
            assert (await all_of_them).value == [Counter(counter=A, count=1)]


@on_a_loop_of_its_own
async def test_an_answer_that_cannot_be_had_is_asked_for_again() -> None:
    """Who asks for the next one while the server is away has it when that is back."""
    with cluster() as server:
        url = await migrated(server.url())
        async with (
            Application(counters(), store=url) as app,
            aclosing(app.subscribe(CounterOf(counter=A))) as answers,
            aclosing(app.subscribe(All())) as rows,
        ):
            await following(answers)
            await following(rows)
            await app.execute(Add(counter=A))
            await following(rows)
            await asyncio.to_thread(server.kill)
            with Noticed("diptych.live_queries", logging.INFO) as noticed:
                waiting = asyncio.create_task(following(answers))
                async with asyncio.timeout(WAIT_S):
                    await noticed.told("a live query waits")
            await asyncio.to_thread(server.start)
            assert (await waiting).value == Counter(counter=A, count=1)


@on_a_loop_of_its_own
async def test_what_a_failover_has_lost_is_told() -> None:
    """An answer was shown that is of no history any more: what follows it would contradict it."""
    with cluster() as primary:
        await migrated(primary.url())
        standby = primary.standby(primary.data.with_name("second"))
        async with Application(counters(), store=primary.url(standby)) as app:
            receipt = await app.execute(Add(counter=A))
            async with aclosing(app.subscribe(CounterOf(counter=A), after=receipt)) as answers:
                assert (await following(answers)).value == Counter(counter=A, count=1)
                await caught_up(primary)
                await standby.cut_off()
                await app.execute(Add(counter=A))
                assert (await following(answers)).value == Counter(counter=A, count=2)
                waiting = asyncio.create_task(following(answers))
                await asyncio.to_thread(primary.kill)
                await asyncio.to_thread(standby.promote)
                with pytest.raises(HistoryDiverged):
                    await waiting
            async with aclosing(app.subscribe(CounterOf(counter=A), after=receipt)) as answers:
                assert (await following(answers)).value == Counter(counter=A, count=1)
