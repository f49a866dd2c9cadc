"""A context whose projection and subscriber tell, outside, which process worked on which event: pid and position."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from diptych import Application, BoundedContext, Command, Event, EventContext, Identity, Key, Query, ReadModel, replace

TOLD = "STOCK_TOLD"
"""The environment variable that names the folder of folded.txt and heard.txt."""
STOPPED_BY = "STOCK_STOPPED_BY"
"""The environment variable that names the SKU whose event stops the process that folds it, in the middle."""

warehouse = BoundedContext("warehouse")


class Sku(Identity): ...


class Count(Command):
    sku: Sku


class Counted(Event):
    sku: Sku


class Stock(ReadModel):
    sku: Key[Sku]
    events: int = 0


class StockOf(Query[Stock | None]):
    sku: Sku


@warehouse.command_handler
def count(command: Count) -> Counted:
    return Counted(sku=command.sku)


@warehouse.projection
def stock(row: Stock, event: Counted, context: EventContext) -> Stock:
    tell("folded.txt", [context.position])
    if event.sku == os.environ.get(STOPPED_BY):
        os.kill(os.getpid(), signal.SIGSTOP)
        print("woken", flush=True)
    return replace(row, events=row.events + 1)


@warehouse.subscriber
async def hear(events: Sequence[tuple[Counted, EventContext]]) -> None:
    tell("heard.txt", [context.position for _, context in events])


def tell(name: str, positions: Sequence[int]) -> None:
    with (Path(os.environ[TOLD]) / name).open("a") as file:
        file.writelines(f"{os.getpid()} {position}\n" for position in positions)


async def run(url: str) -> None:
    """Project, and count what stdin says, a line for each; what it says back is that it is there, or has counted."""
    async with Application(warehouse, store=url) as app:
        print("open", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            receipt = await app.execute(Count(sku=Sku(line.strip())))
            await app.query(StockOf(sku=Sku(line.strip())), after=receipt)
            print(receipt.position, flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
