"""A context whose folds and subscriber tell, outside, which process worked on which event: pid and position.

It is served whole and divided, a partition for each SKU; each history tells into files of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych import Application, BoundedContext, Command, Event, EventContext, Identity, Key, Query, ReadModel, replace

TOLD = "STOCK_TOLD"
"""The environment variable that names the folder of the files folded.txt and heard.txt, of each history some."""
STOPPED_BY = "STOCK_STOPPED_BY"
"""The environment variable that names the history and SKU whose event stops the process in the middle of its fold."""
WHOLE = "whole"
"""What is told of the only history, and where that is."""
ACROSS = "*"


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


class AllStock(ReadModel):
    name: Key[str]
    events: int = 0


class AllStockOf(Query[AllStock | None]):
    name: str


def stocking(*, divided: bool) -> BoundedContext:
    """The context; divided, it has a row of all partitions too."""
    context = BoundedContext("warehouse")

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(sku=command.sku)

    @context.projection
    def stock(row: Stock, event: Counted, context: EventContext) -> Stock:
        history = event.sku if divided else WHOLE
        tell(history, "folded.txt", [context.position])
        if f"{history} {event.sku}" == os.environ.get(STOPPED_BY):
            os.kill(os.getpid(), signal.SIGSTOP)
            print("woken", flush=True)
        return replace(row, events=row.events + 1)

    @context.subscriber
    async def hear(events: Sequence[tuple[Counted, EventContext]]) -> None:
        history = events[0][0].sku if divided else WHOLE
        tell(history, "heard.txt", [context.position for _, context in events])

    if divided:

        @context.projection(key=lambda event: "all", commutative=True)
        def all_stock(row: AllStock, event: Counted, context: EventContext) -> AllStock:
            tell(ACROSS, "folded.txt", [context.position])
            return replace(row, events=row.events + 1)

    return context


def tell(history: str, name: str, positions: Sequence[int]) -> None:
    with _file(Path(os.environ[TOLD]), history, name).open("a") as file:
        file.writelines(f"{os.getpid()} {position}\n" for position in positions)


def told(folder: Path, history: str, name: str) -> dict[int, list[int]]:
    """What each process worked on in a history: positions by pid."""
    found: dict[int, list[int]] = {}
    for line in _file(folder, history, name).read_text().splitlines():
        pid, position = map(int, line.split())
        found.setdefault(pid, []).append(position)
    return found


def _file(folder: Path, history: str, name: str) -> Path:
    return folder / f"{history.replace(ACROSS, 'across')} {name}"


def applications(stores: dict[str, str], **settings: Any) -> tuple[Application, Application]:
    """One that is whole, and one that is divided."""
    own = {name: url for name, url in stores.items() if name != WHOLE}
    return (
        Application(stocking(divided=False), store=stores[WHOLE], **settings),
        Application(stocking(divided=True), partition_by=Sku, store=own, **settings),
    )


async def run(stores: dict[str, str]) -> None:
    """Project, and count what stdin says, a line for each, in both; it says back that it is there, or has counted."""
    whole, divided = applications(stores)
    async with whole, divided:
        print("open", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            for app in (whole, divided):
                receipt = await app.execute(Count(sku=Sku(line.strip())))
                await app.query(StockOf(sku=Sku(line.strip())), after=receipt)
            await divided.query(AllStockOf(name="all"), freshness="latest")
            print("counted", flush=True)


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
