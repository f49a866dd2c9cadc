"""Orders whose events are tagged anew, by a process that says how far it is, and goes on when it is told to."""

from __future__ import annotations

import asyncio
import sys

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Untagged, replace
from diptych.adapters.connect import connect_event_store
from diptych.application.registration import event_types
from diptych.clock import SystemClock
from diptych.event_store import pages
from diptych.event_store.history import History
from diptych.event_store.retag import plan_retag


class OrderId(Identity): ...


class BuyerId(Identity): ...


class Place(Command):
    order: OrderId
    buyer: BuyerId


def shop(*, tagged: bool) -> BoundedContext:
    """Orders, whose buyers give a tag or do not. A buyer has five of them at most, where that can be decided on."""
    context = BoundedContext("shop")
    if tagged:

        class OrderPlaced(Event):
            order: OrderId
            buyer: BuyerId

        class Orders(DecisionModel[BuyerId]):
            count: int = 0

            def evolve(self, event: OrderPlaced) -> Orders:
                return replace(self, count=self.count + 1)

        @context.command_handler
        def place_of_buyer(command: Place, orders: Orders) -> OrderPlaced | None:
            return OrderPlaced(order=command.order, buyer=command.buyer) if orders.count < 5 else None

    else:

        class OrderPlacedBefore(Event, stored_as="shop.OrderPlaced"):
            order: OrderId
            buyer: Untagged[BuyerId]

        @context.command_handler
        def place(command: Place) -> OrderPlacedBefore:
            return OrderPlacedBefore(order=command.order, buyer=command.buyer)

    return context


async def retag(url: str) -> None:
    """Tag anew, an event at a time; wait for a line on stdin after each."""
    pages.FIRST_PAGE_EVENTS = pages.PAGE_EVENTS_MAX = 1
    store = connect_event_store(url, SystemClock())
    await store.open()
    plan = await plan_retag(store, History(event_types([shop(tagged=True)])))

    def tell(done: int, _: int | None) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()
        sys.stdin.readline()

    await plan.run((), tell)
    await store.close()


if __name__ == "__main__":
    asyncio.run(retag(sys.argv[1]))
