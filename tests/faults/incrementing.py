"""Callers that increment counters while something fails, and the proof that nothing was lost, doubled or skipped.

They call two applications on one server: one that is whole, and one that has a partition for each counter and a row of
them all. So one outage is lived through by both, and both are held to the same.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter as Tally
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from diptych import Application, ConfigurationError, Receipt
from diptych.application.follower import Follower
from diptych.application.partition import Partition
from diptych.errors import Unavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import Place
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import decode
from diptych.messages.envelope import Envelope
from tests.faults.counting import CounterId, CountOf, Increment, Incremented, TotalOf, counting, totals
from tests.postgres_cluster import migrated

__all__ = [
    "CALLERS",
    "COMMANDS",
    "COUNTERS",
    "WAIT_S",
    "Calls",
    "Load",
    "again",
    "called",
    "divided",
    "events_of",
    "execute",
    "in_schema",
    "loaded",
    "partitions_of",
    "prepared",
    "prove",
    "schemas",
    "token_of",
    "whole",
]

WAIT_S = 60.0
WELL_LOOK_S = 0.1
"""After which those who were held up are asked again whether they are well."""
CALLERS = 8
"""Of each application."""
COMMANDS = 40
"""Acknowledged by each application before what fails, and after it."""
LOOKS = 4
"""How often what is shown is looked at before it is remembered: who looks takes in what is across, as others do."""
COUNTERS = [CounterId(f"c{number}") for number in range(3)]


# ── the applications ─────────────────────────────────────────────────────────


def in_schema(url: str, schema: str) -> str:
    """The URL of a store in another schema of the same database."""
    return re.sub(r"schema=\w+", f"schema={schema}", url)


def schemas(url: str, names: Sequence[str] = COUNTERS) -> dict[str, str]:
    """The stores of a divided application, in schemas beside that of a URL."""
    return {name: in_schema(url, name) for name in names} | {"*": in_schema(url, "across")}


async def prepared(url: str, names: Sequence[str] = COUNTERS) -> str:
    """The URL, once the tables are there of what is whole and of what is divided."""
    for each in (url, *schemas(url, names).values()):
        await migrated(each)
    return url


def whole(url: str, **settings: Any) -> Application:
    """All counters in one history."""
    return Application(counting, totals, store=url, **settings)


def divided(stores: dict[str, str], **settings: Any) -> Application:
    """A history for each counter, and a row across them."""
    return Application(counting, totals, partition_by=CounterId, store=stores, **settings)


def partitions_of(app: Application, names: Sequence[str] = COUNTERS) -> list[Partition]:
    """Each partition that there is of these names; of what is whole the only one."""
    return [app.partition()] if _is_whole(app) else [app.partition(name) for name in names]


def followers_of(app: Application) -> list[Follower]:
    """What follows each partition, and what follows all of them."""
    return [*partitions_of(app), *([] if _is_whole(app) else [app.across])]


def _is_whole(app: Application) -> bool:
    try:
        return bool(app.partition())
    except ConfigurationError:  # say which
        return False


async def execute(app: Application, number: int, counters: Sequence[CounterId] = COUNTERS) -> Receipt:
    """Send the command of this number, under its id."""
    return await app.execute(Increment(counter=counters[number % len(counters)]), command_id=f"n{number}")


async def again(app: Application, numbers: Iterable[int]) -> dict[int, Receipt]:
    """Send the commands of these numbers, all at once."""
    receipts = await asyncio.gather(*(execute(app, number) for number in numbers))
    return dict(zip(numbers, receipts, strict=True))


# ── the callers ──────────────────────────────────────────────────────────────


@dataclass
class Calls:
    """Callers of one application that send one command after the other, each under its id until it is acknowledged.

    Attributes:
        app: what they call.
        worker: another one of the same stores, which projects.
        shown: the tokens of what they have seen before anything failed, and the rows that were counted then.
        failing: who fails waits until it is over.
        held: who has an outcome waits until it is over.
        told: what those who failed were told.
    """

    app: Application
    worker: Application
    receipts: dict[int, Receipt] = field(default_factory=dict)
    failures: Tally[type[Exception]] = field(default_factory=Tally)
    shown: list[tuple[str, int]] = field(default_factory=list)
    over: bool = False
    failing: bool = False
    held: bool = False
    told: set[str] = field(default_factory=set)
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)
    _waiting: int = 0

    async def again(self) -> None:
        """Who has failed sends again."""
        self.failing = False
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

    async def call(self) -> None:
        """Be one of the callers."""
        while not self.over:
            async with self._progress:
                await self._progress.wait_for(lambda: not self.held)
            number = next(self._numbers)
            receipt = await self._outcome(number)
            async with self._progress:
                self.receipts[number] = receipt
                self._progress.notify_all()

    async def _outcome(self, number: int) -> Receipt:
        while True:
            try:
                return await execute(self.app, number)
            except Unavailable as error:
                async with self._progress:
                    self.failures[type(error)] += 1
                    self.told.add(str(error))
                    self._waiting += 1
                    self._progress.notify_all()
                    await self._progress.wait_for(lambda: not self.failing)
                    self._waiting -= 1

    @asynccontextmanager
    async def pausing(self) -> AsyncGenerator[None]:
        """While the block runs, nobody calls anew."""
        self.held = True
        yield
        self.held = False
        async with self._progress:
            self._progress.notify_all()

    async def look(self) -> None:
        """See what is there folded, again and again while others write and fold, and remember the last of it."""
        await self.worker.projected()
        seen = [await self.app.answer(TotalOf(name="all"), freshness="latest", wait_s=WAIT_S) for _ in range(LOOKS)]
        last = seen[-1]
        assert last.value is not None
        self.shown.append((last.token, last.value.events))

    async def prove(self) -> None:
        """All that was told holds; rows are shown as before and more of them; and those who fold them are well."""
        await prove(self.app, self.receipts)
        for token, events in self.shown:
            row = await self.app.query(TotalOf(name="all"), after=token)
            assert row is not None
            assert row.events >= events
        assert (await self.worker.health()).ready
        async with asyncio.timeout(WAIT_S):
            while (await self.worker.health()).impaired:  # until the schedulers have tried again, too
                log = followers_of(self.worker)[0].log
                await log.wait_for_events((await log.head()).position, WELL_LOOK_S)
        for follower in followers_of(self.worker):
            for slice in follower.projector.slices:
                assert (await follower.rebuilds.compare(slice.projection.name)).same


@dataclass(frozen=True)
class Load:
    """Callers of an application that is whole, and of one that is divided."""

    whole: Calls
    divided: Calls

    @property
    def both(self) -> Sequence[Calls]:
        """The one and the other."""
        return self.whole, self.divided

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """While the block runs, they call; at its end, every command that was begun is acknowledged."""
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            for calls in self.both:
                for _ in range(CALLERS):
                    group.create_task(calls.call())
            yield
            for calls in self.both:
                calls.over = True

    @asynccontextmanager
    async def failing(self) -> AsyncGenerator[None]:
        """While the block runs, something is wrong: who fails sends again once it is over."""
        for calls in self.both:
            calls.failing = True
        yield
        for calls in self.both:
            await calls.again()

    async def begun(self) -> None:
        """Wait until something is done and seen."""
        await self.acknowledged(COMMANDS)
        for calls in self.both:
            async with calls.pausing():  # else who folds runs after those who call
                await calls.look()

    async def acknowledged(self, more: int) -> None:
        """Wait until either application has acknowledged so many more commands."""
        await asyncio.gather(*(calls.acknowledged(more) for calls in self.both))

    async def failed(self) -> None:
        """Wait until every caller has failed."""
        await asyncio.gather(*(calls.failed() for calls in self.both))

    async def refused(self, failure: type[Exception], told: str) -> None:
        """A command is refused, in words that say whether it may be sent again."""
        for calls in self.both:
            with pytest.raises(failure, match=told):
                await calls.app.execute(Increment(counter=COUNTERS[0]), command_id="refused")

    async def still_answers(self) -> None:
        """Rows are shown, each counter's and that of all."""
        for calls in self.both:
            rows = [await calls.app.query(CountOf(counter=counter)) for counter in COUNTERS]
            assert all(row and row.value for row in rows)
            total = await calls.app.query(TotalOf(name="all"))
            assert total is not None
            assert total.events


@asynccontextmanager
async def called(url: str) -> AsyncGenerator[Load]:
    """Both applications, on a server that was `prepared`: one of each that is called, and one that folds."""
    async with AsyncExitStack() as stack:

        async def calls(app: Application, worker: Application) -> Calls:
            return Calls(await stack.enter_async_context(app), await stack.enter_async_context(worker))

        yield Load(
            await calls(whole(url, projecting=False), whole(url)),
            await calls(divided(schemas(url), projecting=False), divided(schemas(url))),
        )


@asynccontextmanager
async def loaded(url: str) -> AsyncGenerator[Load]:
    """Both applications under load while the block runs. In the end, all that their callers were told holds."""
    async with called(url) as load:
        async with load.running():
            await load.begun()
            yield load
            await load.acknowledged(COMMANDS)
        for calls in load.both:
            await calls.prove()


# ── the proof ────────────────────────────────────────────────────────────────


async def events_of(partition: Partition) -> list[RecordedEvent]:
    """A history, whose positions have no gap, and whose counters none and no repetition."""
    events = [recorded async for recorded in partition.events(ALL_EVENTS)]
    assert [recorded.position for recorded in events] == list(range(1, len(events) + 1))
    reached = Tally[CounterId]()
    for recorded in events:
        event = decode(recorded.data, Incremented)
        reached[event.counter] += 1
        assert event.to == reached[event.counter]
    return events


def token_of(receipts: Sequence[Receipt]) -> str:
    """What shows all that was acknowledged: the last place in each history."""
    last: dict[bytes, Receipt] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.position):
        last[receipt.place.history_id] = receipt
    return ",".join(receipt.token for receipt in last.values())


async def prove(app: Application, receipts: dict[int, Receipt]) -> None:
    """Each acknowledged command is where its receipt says, once; says it when it is sent again; rows equal the fold."""
    done, reached = Tally[tuple[str | None, Place]](), Tally[str]()
    for partition in partitions_of(app):
        for recorded in await events_of(partition):
            place = Place(partition.log.history_id, recorded.position, recorded.event_id)
            done[decode(recorded.metadata, Envelope).command_id, place] += 1
            reached[decode(recorded.data, Incremented).counter] += 1
    assert done == Tally((f"n{number}", receipt.place) for number, receipt in receipts.items())
    assert await again(app, receipts) == receipts
    last = token_of(list(receipts.values()))
    for counter in COUNTERS:
        row = await app.query(CountOf(counter=counter), after=last, wait_s=WAIT_S)
        assert row is not None
        assert (row.value, row.events) == (reached[counter], reached[counter])
    total = await app.query(TotalOf(name="all"), after=last, wait_s=WAIT_S)
    assert total is not None
    assert total.events == reached.total()
