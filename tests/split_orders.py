"""A shop whose orders held an address once, and whose history has pings that mean nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from diptych import (
    Application,
    BoundedContext,
    Command,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Key,
    ProcessManager,
    Query,
    Reaction,
    ReadModel,
    Rejected,
    replace,
)
from diptych.application.partition import Partition
from diptych.event_store.event_store import Appended, Commit, StoredType
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes

Fields = Mapping[str, Any]
WAIT_S = 20
"""Seconds that a subscriber or process may take."""
LOOK_S = 0.1
"""Seconds after which is looked again."""


class OrderId(Identity, formerly=["purchase"]): ...


PEN, INK = OrderId("pen"), OrderId("ink")


class OrderPlaced(Event, version=3, formerly=["OrderCreated"]):
    order: OrderId
    cents: int
    currency: str


class AddressGiven(Event, version=2):
    order: OrderId
    lines: list[str]


class Pinged(Event, version=2):
    order: OrderId


class Shipped(Event):
    order: OrderId
    what: str


class Place(Command):
    order: OrderId
    cents: int = 100


class Giving(Command):
    order: OrderId
    street: str


class GiveAddress(Giving):
    """Decided on the order's addresses alone."""


class GiveAnyAddress(Giving):
    """Decided on the addresses of all orders."""


class GiveOutside(Giving):
    """Decided before it is submitted: its handler is async."""


class Look(Command):
    """What a decision on an order sees, as the facts of a rejection."""

    order: OrderId


class Ship(Command):
    order: OrderId
    what: str


class Order(DecisionModel[OrderId]):
    seen: tuple[str, ...] = ()

    def evolve(self, event: OrderPlaced | AddressGiven | Pinged, context: EventContext) -> Order:
        return Order(seen=(*self.seen, f"{shown(event)} {context.ordinal}"))


class Addresses(DecisionModel[OrderId]):
    count: int = 0

    def evolve(self, event: AddressGiven) -> Addresses:
        return Addresses(count=self.count + len(event.lines))


class KeptAddresses(DecisionModel[OrderId], state_stored=True):
    streets: tuple[str, ...] = ()

    def evolve(self, event: AddressGiven) -> KeptAddresses:
        return KeptAddresses(streets=(*self.streets, event.lines[0]))


class Turnover(DecisionModel[OrderId], snapshot_every=2):
    cents: int = 0

    def evolve(self, event: OrderPlaced) -> Turnover:
        return Turnover(cents=self.cents + event.cents)


class EveryAddress(DecisionModel):
    count: int = 0

    def evolve(self, event: AddressGiven) -> EveryAddress:
        return EveryAddress(count=self.count + 1)


class Seen(ReadModel):
    order: Key[OrderId]
    events: str = ""


class SeenOf(Query[Seen | None]):
    order: OrderId


class Line(ReadModel):
    line: Key[str]
    orders: int = 0


class Shipping(ProcessManager[OrderId]):
    order: OrderId
    cents: int = 0

    def react(self, event: OrderPlaced | AddressGiven) -> Reaction[Shipping]:
        if isinstance(event, OrderPlaced):
            return Reaction(replace(self, cents=self.cents + event.cents), [Ship(order=self.order, what="bill")])
        return Reaction(self, [Ship(order=self.order, what=f"parcel of {self.cents} to {event.lines[0]}")])


def shown(event: Event) -> str:
    """An event in a word."""
    if isinstance(event, OrderPlaced):
        return f"placed {event.cents} {event.currency}"
    return f"address {'/'.join(event.lines)}" if isinstance(event, AddressGiven) else type(event).__name__


def lines_of(event: AddressGiven) -> list[str]:
    """The lines of an address, each to be folded."""
    return event.lines


def apart(stored: Fields) -> Iterator[tuple[type[Event], Fields]]:
    """An order without its address, and the address where it had one."""
    yield OrderPlaced, {"order": stored["order"], "cents": stored["cents"]}
    if stored["street"]:
        yield AddressGiven, {"order": stored["order"], "street": stored["street"]}


def in_lines(stored: Fields) -> Fields:
    return {"order": stored["order"], "lines": [stored["street"], "Germany"]}


def in_euros(stored: Fields) -> Fields:
    return {**stored, "currency": "EUR"}


def nothing(stored: Fields) -> Sequence[tuple[type[Event], Fields]]:
    return ()


def splitting(split: Any = apart) -> BoundedContext:
    """A context with the events alone, as they are read."""
    shop = BoundedContext("shop", events=[OrderPlaced, AddressGiven, Pinged, Shipped])
    shop.upcaster(OrderPlaced, from_version=1, into={OrderPlaced: 2, AddressGiven: 1})(split)
    shop.upcaster(OrderPlaced, from_version=2)(in_euros)
    shop.upcaster(AddressGiven, from_version=1)(in_lines)
    shop.upcaster(Pinged, from_version=1, into={})(nothing)
    return shop


def orders(
    split: Any = apart, *, told: list[tuple[Event, EventContext]] | None = None, shipping: bool = True
) -> BoundedContext:
    """The shop of today, with a subscriber that keeps what it is told; and with a process, or not."""
    shop = splitting(split)

    @shop.command_handler
    def place(command: Place, turnover: Turnover) -> OrderPlaced:
        return OrderPlaced(order=command.order, cents=command.cents, currency="EUR")

    @shop.command_handler
    def give(command: GiveAddress, addresses: Addresses) -> AddressGiven:
        return AddressGiven(order=command.order, lines=[command.street, str(addresses.count)])

    @shop.command_handler
    def give_any(command: GiveAnyAddress, every: EveryAddress) -> AddressGiven:
        return AddressGiven(order=command.order, lines=[command.street, str(every.count)])

    @shop.command_handler(idempotent=True)
    async def give_outside(command: GiveOutside, addresses: Addresses) -> AddressGiven:
        return AddressGiven(order=command.order, lines=[command.street, str(addresses.count)])

    @shop.command_handler
    def look(
        command: Look, order: Order, addresses: Addresses, kept: KeptAddresses, turnover: Turnover, every: EveryAddress
    ) -> None:
        raise Rejected(
            "seen",
            order=list(order.seen),
            addresses=addresses.count,
            kept=list(kept.streets),
            cents=turnover.cents,
            every=every.count,
        )

    @shop.command_handler
    def ship(command: Ship) -> Shipped:
        return Shipped(order=command.order, what=command.what)

    @shop.projection
    def seen(row: Seen, event: OrderPlaced | AddressGiven | Pinged | Shipped, context: EventContext) -> Seen:
        return replace(row, events=f"{row.events}{shown(event)} {context.ordinal};")

    @shop.projection(each=lines_of, key=lambda line: line)
    def lines(row: Line, event: AddressGiven, line: str) -> Line:
        return replace(row, orders=row.orders + 1)

    if shipping:
        shop.process_manager(from_beginning=True)(Shipping)
    if told is not None:

        @shop.subscriber
        async def listen(events: Sequence[tuple[OrderPlaced | AddressGiven | Pinged, EventContext]]) -> None:
            told.extend(events)

    return shop


def placed(order: str = "pen", cents: int = 250, street: str = "Hafen 1", *, former: bool = False) -> NewEvent:
    """An order as code of version 1 has stored it; or as code before that, with former names."""
    data = f'{{"order":"{order}","cents":{cents},"street":"{street}"}}'.encode()
    name, tag = ("shop.OrderCreated", "purchase") if former else ("shop.OrderPlaced", "order")
    return NewEvent(unique_bytes(), name, 1, data, (f"{tag}:{order}",))


def pinged(order: str = "pen") -> NewEvent:
    """A ping as code of version 1 has stored it."""
    return NewEvent(unique_bytes(), "shop.Pinged", 1, f'{{"order":"{order}"}}'.encode(), (f"order:{order}",))


async def store(partition: Partition, *events: NewEvent) -> None:
    """Append events as a process with older code does, which has the same store open."""
    names = {(event.type, event.version, event.tags[0].partition(":")[0]) for event in events}
    await partition.store.register_types([StoredType(name, version, (tag,)) for name, version, tag in sorted(names)])
    (result,) = await partition.store.append([Commit(events=events)])
    assert isinstance(result, Appended)


class StreetId(Identity): ...


class StreetNamed(Event):
    order: OrderId
    street: StreetId


def by_streets() -> BoundedContext:
    """A part that would be found by what no stored order is tagged with."""
    shop = BoundedContext("shop", events=[OrderPlaced, StreetNamed])

    @shop.upcaster(OrderPlaced, from_version=1, into={StreetNamed: 1})
    def streets(stored: Fields) -> Any:
        yield StreetNamed, {"order": stored["order"], "street": stored["street"]}

    shop.upcaster(OrderPlaced, from_version=2)(in_euros)
    return shop


async def until(happened: Callable[[], bool], app: Application) -> None:
    looked = 0
    async with asyncio.timeout(WAIT_S):
        while not happened():
            looked = await app.partition().read_store.wait_for_change(looked, LOOK_S)
