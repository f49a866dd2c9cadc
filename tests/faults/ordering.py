"""Orders that take three steps and a timeout each, by a process that sends: what is killed in the crash tests of G10.

No command handler here looks at anything: a command that is executed twice leaves its event twice. Each says so on
stdout before it decides.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections import Counter
from datetime import timedelta

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandRejected,
    Event,
    Identity,
    ProcessManager,
    Reaction,
    Rejected,
    Timeout,
    replace,
)
from diptych.adapters.sqlite.process_store import SqliteProcessStore
from diptych.event_store.event_query import ALL_EVENTS
from diptych.process_managers import process_leases

STOPPED_BY = "ORDERING_STOPPED_BY"
"""The environment variable that names the order whose first event stops the process, in the middle of a reaction."""
DIES_AT = "ORDERING_DIES_AT"
"""The environment variable that says at which statement on processes, once it is open, the process is killed."""
OVERDUE = timedelta(milliseconds=30)
"""After which the timeout of an order fires, which is always heard."""


class OrderId(Identity): ...


class Place(Command):
    order: OrderId


class Charge(Command):
    order: OrderId


class Ship(Command):
    order: OrderId


class Refund(Command):
    order: OrderId


class Placed(Event):
    order: OrderId


class Charged(Event):
    order: OrderId


class Shipped(Event):
    order: OrderId


class Refunded(Event):
    order: OrderId


class LookAgain(Timeout):
    order: OrderId


class Ordering(ProcessManager[OrderId]):
    order: OrderId
    done: bool = False
    looked: bool = False

    def react(
        self, event: Placed | Charged | Shipped | Refunded | LookAgain | CommandRejected[Ship]
    ) -> Reaction[Ordering]:
        match event:
            case Placed():
                stop_at(self.order)
                return Reaction(self, [Charge(order=self.order)], [(LookAgain(order=self.order), OVERDUE)])
            case Charged():
                return Reaction(self, [Ship(order=self.order)])
            case CommandRejected():
                return Reaction(self, [Refund(order=self.order)])
            case Shipped() | Refunded():
                return Reaction(replace(self, done=True), ended=self.looked)
            case LookAgain():
                return Reaction(replace(self, looked=True), ended=self.done)


def stop_at(order: str) -> None:
    if order == os.environ.get(STOPPED_BY):
        say("stopping")
        os.kill(os.getpid(), signal.SIGSTOP)
        say("woken")


def say(text: str) -> None:
    print(text, flush=True)


ordering = BoundedContext("ordering")
ordering.process_manager(starts=[Placed], from_beginning=True)(Ordering)


@ordering.command_handler
def place(command: Place) -> Placed:
    return Placed(order=command.order)


@ordering.command_handler
def charge(command: Charge) -> Charged:
    say("charge")
    return Charged(order=command.order)


@ordering.command_handler
def ship(command: Ship) -> Shipped:
    say("ship")
    if int(command.order) % 3 == 0:
        raise Rejected("sold-out")
    return Shipped(order=command.order)


@ordering.command_handler
def refund(command: Refund) -> Refunded:
    say("refund")
    return Refunded(order=command.order)


def expected(orders: int) -> Counter[str]:
    """How often each event is there in the end, for orders numbered from 0."""
    sold_out = len(range(0, orders, 3))
    return Counter(
        {
            "Placed": orders,
            "Charged": orders,
            "LookAgain": orders,
            "Ordering.ShipRejected": sold_out,
            "Refunded": sold_out,
            "Shipped": orders - sold_out,
        }
    )


async def seen_through(app: Application, wait_s: float) -> None:
    """Wait until every order has ended."""
    async with asyncio.timeout(wait_s):
        while True:
            await app.partition().process_worker.at_rest()
            head = (await app.partition().store.head()).position
            if not await app.processes.list(limit=1):
                return
            await app.partition().store.wait_for_events(head, 1.0)


async def happened(app: Application) -> tuple[Counter[str], int]:
    """How often each event is there, and the most often that one is for one order."""
    found = [(recorded.type.partition(".")[2], recorded.tags) async for recorded in app.events(ALL_EVENTS)]
    return Counter(name for name, _ in found), max(Counter(found).values())


def soon_taken_over() -> None:
    """Let leases be short, for tests that wait for them to run out."""
    process_leases.LEASE_S, process_leases.LEASE_RENEW_S = 0.6, 0.1


async def run(url: str) -> None:
    """See orders through, until this process is ended."""
    async with Application(ordering, store=url) as app:
        if os.environ.get(STOPPED_BY):
            commit = app.partition().process_worker._store.commit

            async def told(change: object) -> bool:
                done = await commit(change)  # type: ignore[arg-type]
                say(f"committed {done}")
                return done

            app.partition().process_worker._store.commit = told  # type: ignore[method-assign]
        if DIES_AT in os.environ:
            die_at_statement(app.partition().process_worker._store, int(os.environ[DIES_AT]))
        say("open")
        await asyncio.to_thread(sys.stdin.readline)


def die_at_statement(store: object, left: int) -> None:
    """Be killed before so many statements of transactions of the process store in SQLite have run."""
    assert isinstance(store, SqliteProcessStore)
    connection = store._writer._connection
    assert connection is not None
    begun = itertools.count(1)

    def count(statement: str) -> None:
        if next(begun) == left:
            os.kill(os.getpid(), signal.SIGKILL)

    connection.set_trace_callback(count)


if __name__ == "__main__":
    soon_taken_over()
    asyncio.run(run(sys.argv[1]))
