"""Orders by older code and by newer code on one store: the newer one's model folds `Frozen` as well."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import asyncpg
import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    DecisionModel,
    Event,
    Identity,
    Rejected,
    Transaction,
    replace,
)
from diptych.errors import NewerHistory

__all__ = [
    "Box",
    "BoxByCarrier",
    "Carrier",
    "Freeze",
    "FreezeAndPack",
    "Kept",
    "OrderId",
    "Pack",
    "Ship",
    "ShipBooked",
    "ShipByCarrier",
    "Start",
    "Together",
    "expect_newer",
    "newer",
    "older",
    "together",
]


class OrderId(Identity): ...


class Ship(Command):
    order: OrderId


class ShipBooked(Command):
    """Handled with own tables."""

    order: OrderId


class ShipByCarrier(Command):
    """Handled with a service, by a handler that is not idempotent."""

    order: OrderId


class Box(Command):
    """Decided on no model; its event is folded by the model."""

    order: OrderId


class BoxByCarrier(Command):
    """The same, with a service."""

    order: OrderId


class Pack(Command):
    """Decided on another model."""

    order: OrderId


class Freeze(Command):
    order: OrderId


class FreezeAndPack(Command):
    """Two events at once, of which older code's model folds the second alone."""

    order: OrderId


class Start(Command):
    """The same of an order that the handler makes up each time."""


class Shipped(Event):
    order: OrderId


class Packed(Event):
    order: OrderId


class Frozen(Event):
    order: OrderId


class Carrier:
    """A service; `called` is done when it is."""

    def __init__(self) -> None:
        self.calls = 0
        self.called: Callable[[], Awaitable[object]] | None = None

    async def fetch(self) -> None:
        self.calls += 1
        if self.called is not None:
            await self.called()


class Kept(NamedTuple):
    """How the states of the model are kept."""

    state_stored: bool = False
    snapshot_every: int | None = None


_numbers = count()
EVENTS = Kept()
"""Not at all."""


def older(kept: Kept = EVENTS, *, version: int = 1) -> BoundedContext:
    """It knows `Frozen`, and its model does not fold it."""

    class Order(
        DecisionModel[OrderId], state_stored=kept.state_stored, snapshot_every=kept.snapshot_every, version=version
    ):
        shipped: int = 0
        frozen: bool = False

        def evolve(self, event: Shipped | Packed) -> Order:
            return replace(self, shipped=self.shipped + isinstance(event, Shipped))

    return _orders(Order)


def newer(kept: Kept = EVENTS, *, version: int = 1) -> BoundedContext:
    """Its model folds `Frozen`."""

    class Order(
        DecisionModel[OrderId], state_stored=kept.state_stored, snapshot_every=kept.snapshot_every, version=version
    ):
        shipped: int = 0
        frozen: bool = False

        def evolve(self, event: Shipped | Packed | Frozen) -> Order:
            if isinstance(event, Frozen):
                return replace(self, frozen=True)
            return replace(self, shipped=self.shipped + isinstance(event, Shipped))

    return _orders(Order)


class Boxes(DecisionModel[OrderId]):
    """Another model, the same in both."""

    packed: int = 0

    def evolve(self, event: Packed) -> Boxes:
        return replace(self, packed=self.packed + 1)


def _orders(order: Any) -> BoundedContext:
    context = BoundedContext("orders")

    def shipped(command: Any, order: Any) -> Shipped:
        if order.frozen:
            raise Rejected("frozen")
        return Shipped(order=command.order)

    def ship(command: Ship, order: Any) -> Shipped:
        return shipped(command, order)

    async def ship_by_carrier(command: ShipByCarrier, order: Any, carrier: Carrier) -> Shipped:
        await carrier.fetch()
        return shipped(command, order)

    for handler in (ship, ship_by_carrier):
        handler.__annotations__["order"] = order
        context.command_handler(handler)

    @context.command_handler
    def box(command: Box) -> Packed:
        return Packed(order=command.order)

    @context.command_handler
    async def box_by_carrier(command: BoxByCarrier, carrier: Carrier) -> Packed:
        await carrier.fetch()
        return Packed(order=command.order)

    @context.command_handler
    def pack(command: Pack, boxes: Boxes) -> Packed:
        return Packed(order=command.order)

    @context.command_handler
    def freeze(command: Freeze) -> Frozen:
        return Frozen(order=command.order)

    @context.command_handler
    def freeze_and_pack(command: FreezeAndPack) -> list[Frozen | Packed]:
        return [Frozen(order=command.order), Packed(order=command.order)]

    @context.command_handler
    def start(command: Start) -> list[Frozen | Packed]:
        order = OrderId(f"order-{next(_numbers)}")
        return [Frozen(order=order), Packed(order=order)]

    return context


def with_own_tables(context: BoundedContext, url: str) -> BoundedContext:
    """The same context, with a handler that takes the transaction of the database."""
    (ship,) = (found.function for found in context.command_handlers if found.function.__name__ == "ship")

    def booked(command: ShipBooked, order: Any, transaction: Transaction[sqlite3.Connection]) -> Shipped:
        return ship(Ship(order=command.order), order)  # type: ignore[no-any-return]

    async def booked_there(command: ShipBooked, order: Any, transaction: Transaction[asyncpg.Connection]) -> Shipped:
        return ship(Ship(order=command.order), order)  # type: ignore[no-any-return]

    handler: Any = booked_there if url.startswith("postgres") else booked
    handler.__annotations__["order"] = ship.__annotations__["order"]
    context.command_handler(handler)
    return context


class Together(NamedTuple):
    """An older process, and how a newer one is started beside it."""

    old: Application
    carrier: Carrier
    url: str
    context: BoundedContext

    async def beside(self, *commands: Command) -> None:
        """Newer code opens the store, executes these, and is gone."""
        async with Application(self.context, store=self.url, services={Carrier: Carrier()}, projecting=False) as new:
            for command in commands:
                await new.execute(command)


@asynccontextmanager
async def together(url: str, kept: Kept = EVENTS) -> AsyncGenerator[Together]:
    """Older code, open on the store; newer code is not there yet."""
    carrier = Carrier()
    context = with_own_tables(older(kept), url)
    async with Application(context, store=url, services={Carrier: carrier}, projecting=False) as old:
        yield Together(old, carrier, url, newer(kept))


async def expect_newer(call: Awaitable[object], position: int) -> None:
    """The call has to end in NewerHistory, for the event at that position."""
    with pytest.raises(NewerHistory) as raised:
        await call
    assert (raised.value.type, raised.value.position) == ("orders.Frozen", position)
