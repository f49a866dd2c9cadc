"""Callers that increment counters while something fails, and the proof that nothing was lost, doubled or skipped."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count

from diptych import Application, Receipt, Unavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import decode
from diptych.messages.envelope import Envelope
from tests.faults.counting import CounterId, CountOf, Increment, Incremented

__all__ = ["CALLERS", "WAIT_S", "Load", "events_of", "execute", "prove"]

WAIT_S = 30.0
CALLERS = 8
COUNTERS = 3


class Load:
    """Callers that send one command after the other, each under its id until it is acknowledged."""

    def __init__(self, app: Application) -> None:
        self.receipts: dict[int, Receipt] = {}
        self.failures = Tally[type[Exception]]()
        self._app = app
        self._numbers = count(1)
        self._progress = asyncio.Condition()
        self._failing = False
        self._waiting = 0
        self._over = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """While the block runs, they call; at its end, every command that was begun is acknowledged."""
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._call())
            yield
            self._over = True

    @asynccontextmanager
    async def failing(self) -> AsyncGenerator[None]:
        """While the block runs, something is wrong: who fails sends again once it is over."""
        self._failing = True
        yield
        self._failing = False
        async with self._progress:
            self._progress.notify_all()

    async def acknowledged(self, more: int) -> None:
        """Wait until so many more commands are acknowledged."""
        wanted = len(self.receipts) + more
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.receipts) >= wanted)

    async def failed(self) -> None:
        """Wait until every caller has failed."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._waiting == CALLERS)

    async def _call(self) -> None:
        while not self._over:
            number = next(self._numbers)
            receipt = await self._outcome(number)
            async with self._progress:
                self.receipts[number] = receipt
                self._progress.notify_all()

    async def _outcome(self, number: int) -> Receipt:
        while True:
            try:
                return await execute(self._app, number)
            except Unavailable as error:
                async with self._progress:
                    self.failures[type(error)] += 1
                    self._waiting += 1
                    self._progress.notify_all()
                    await self._progress.wait_for(lambda: not self._failing)
                    self._waiting -= 1


async def execute(app: Application, number: int) -> Receipt:
    """Send the command of this number, under its id."""
    return await app.execute(Increment(counter=CounterId(f"c{number % COUNTERS}")), command_id=f"n{number}")


async def events_of(app: Application) -> list[RecordedEvent]:
    """The history, whose positions have no gap, and whose counters none and no repetition."""
    events = [recorded async for recorded in app.events(ALL_EVENTS)]
    assert [recorded.position for recorded in events] == list(range(1, len(events) + 1))
    reached = Tally[CounterId]()
    for recorded in events:
        event = decode(recorded.data, Incremented)
        reached[event.counter] += 1
        assert event.to == reached[event.counter]
    return events


async def prove(app: Application, receipts: dict[int, Receipt]) -> None:
    """Each acknowledged command is where its receipt says, once; says it when it is sent again; rows equal the fold."""
    events = await events_of(app)
    done = [(decode(recorded.metadata, Envelope).command_id, recorded.position) for recorded in events]
    assert Tally(done) == Tally((f"n{number}", receipt.position) for number, receipt in receipts.items())
    assert {number: await execute(app, number) for number in receipts} == receipts
    last = max(receipts.values(), key=lambda receipt: receipt.position)
    for number in range(COUNTERS):
        counter = CounterId(f"c{number}")
        row = await app.query(CountOf(counter=counter), after=last, wait_s=WAIT_S)
        of_counter = sum(f"counter:c{number}" in recorded.tags for recorded in events)
        assert row is not None
        assert (row.value, row.events) == (of_counter, of_counter)
