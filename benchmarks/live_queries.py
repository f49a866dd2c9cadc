"""What a thousand open live queries cost one process: memory, and processor time while idle and for each command.

Commands are executed one after the other, each waited for until every answer that it changes is there. Beside them the
same commands without any live query, each waited for with a query of its own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from benchmarks.bank import AccountId, Balance, BalanceOf, Credit, bank
from benchmarks.measure import arguments, environment
from diptych import Application, Query, Reader
from diptych.clock import pause

SUBSCRIPTIONS = 1_000
IDLE_S = 3.0
"""Seconds for which nothing happens while processor time is measured."""


class Richest(Query[list[Balance]]):
    """Any command may change it; with other numbers they are other queries."""

    number: int


@bank.query_handler
async def richest(query: Richest, read: Reader) -> list[Balance]:
    return await read.find(Balance, order_by="-balance", limit=10)


class Answers:
    """What all consumers have heard."""

    def __init__(self) -> None:
        self._count = 0
        self._wanted = 0
        self._there = asyncio.Event()

    async def hear(self, app: Application, query: Query[Any]) -> None:
        """Consume a live query for good."""
        async with aclosing(app.subscribe(query)) as answers:
            async for _ in answers:
                self._count += 1
                if self._count == self._wanted:
                    self._there.set()

    async def more(self, count: int, work: Awaitable[object] | None = None) -> None:
        """Do the work, and wait until so many more answers have been heard."""
        self._wanted = self._count + count
        self._there.clear()
        if work is not None:
            await work
        await self._there.wait()


def say(figure: str, **facts: object) -> None:
    """One JSON line."""
    print(json.dumps({"figure": figure, **facts, "environment": environment()}), flush=True)


async def idle_cpu_percent() -> float:
    """Processor time while nothing happens, in percent of one core."""
    used, begun = time.process_time(), time.perf_counter()
    await pause(IDLE_S)
    return 100 * (time.process_time() - used) / (time.perf_counter() - begun)


async def per_command(seconds: float, once: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """Processor time and time until it is shown, of one command after the other."""
    took: list[float] = []
    used, begun = time.process_time(), time.perf_counter()
    while (started := time.perf_counter()) - begun < seconds:
        await once(len(took))
        took.append(time.perf_counter() - started)
    cpu_ms = 1000 * (time.process_time() - used) / len(took)
    return {"cpu_ms": round(cpu_ms, 3), "p50_ms": round(1000 * statistics.median(took), 3), "commands": len(took)}


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Application]:
    """An application with a row for each subscription."""
    async with Application(bank, store=url) as app:
        await asyncio.gather(
            *(app.execute(Credit(account=AccountId(f"a{n}"), amount=1_000_000 + n)) for n in range(SUBSCRIPTIONS))
        )
        await app.projected()
        yield app


async def subscribed(name: str, url: str, query: Callable[[int], Query[Any]], changed: int, seconds: float) -> None:
    """Open the live queries, rest, execute commands of which each changes so many of them, and close."""
    async with opened(url) as app:
        answers = Answers()
        tracemalloc.start()
        consumers = [asyncio.create_task(answers.hear(app, query(n))) for n in range(SUBSCRIPTIONS)]
        await answers.more(SUBSCRIPTIONS)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        idle = await idle_cpu_percent()

        async def once(number: int) -> None:
            command = Credit(account=AccountId(f"a{number % 10 + SUBSCRIPTIONS - 10}"), amount=1)
            await answers.more(changed, app.execute(command))

        facts = await per_command(seconds, once)
    await asyncio.gather(*consumers)
    kib = round(held / 1024 / SUBSCRIPTIONS, 1)
    say(f"live-queries-{name}", subscriptions=SUBSCRIPTIONS, kib_each=kib, idle_cpu_percent=round(idle, 2), **facts)


async def unsubscribed(url: str, seconds: float) -> None:
    """The same commands, each waited for with a query."""
    async with opened(url) as app:
        idle = await idle_cpu_percent()

        async def once(number: int) -> None:
            account = AccountId(f"a{number % 10 + SUBSCRIPTIONS - 10}")
            receipt = await app.execute(Credit(account=account, amount=1))
            await app.query(BalanceOf(account=account), after=receipt)

        facts = await per_command(seconds, once)
    say("live-queries-none", subscriptions=0, idle_cpu_percent=round(idle, 2), **facts)


def main() -> None:
    """Print a line without live queries, one with keyed ones, and two with such as any command changes."""
    seconds = arguments(__doc__ or "").seconds
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(unsubscribed(f"sqlite:{folder}/none.db", seconds))
        asyncio.run(
            subscribed(
                "keyed", f"sqlite:{folder}/keyed.db", lambda n: BalanceOf(account=AccountId(f"a{n}")), 1, seconds
            )
        )
        asyncio.run(
            subscribed("any-row", f"sqlite:{folder}/any.db", lambda n: Richest(number=n), SUBSCRIPTIONS, seconds)
        )
        asyncio.run(
            subscribed("equal", f"sqlite:{folder}/equal.db", lambda _: Richest(number=0), SUBSCRIPTIONS, seconds)
        )


if __name__ == "__main__":
    main()
