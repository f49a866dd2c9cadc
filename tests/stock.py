"""A warehouse whose models are kept in every way: from events alone, as snapshots, and state-stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from anyio.lowlevel import checkpoint

from diptych import BoundedContext, By, Command, DecisionModel, Event, Identity, Rejected, replace

__all__ = [
    "Count",
    "Counted",
    "Everything",
    "Find",
    "Missed",
    "Move",
    "Moved",
    "Pair",
    "PlaceId",
    "Product",
    "Receive",
    "Received",
    "Register",
    "Sell",
    "Sku",
    "Sold",
    "Take",
    "warehouse",
]

SNAPSHOT_EVERY = 3


class Sku(Identity): ...


class PlaceId(Identity): ...


class Received(Event):
    sku: Sku
    place: PlaceId
    count: int


class Moved(Event):
    sku: Sku
    source: PlaceId
    target: PlaceId
    count: int


class Sold(Event):
    skus: tuple[Sku, ...]
    place: PlaceId


class Missed(Event):
    sku: Sku
    place: PlaceId


class Counted(Event):
    total: int


class Receive(Command):
    sku: Sku
    place: PlaceId
    count: int


class Move(Command):
    sku: Sku
    source: PlaceId
    target: PlaceId
    count: int


class Sell(Command):
    skus: tuple[Sku, ...]
    place: PlaceId


class Take(Command):
    """Decided before it is submitted: its handler is async."""

    sku: Sku
    place: PlaceId


class Find(Command):
    """Its handler makes up an identity, another one each time."""

    place: PlaceId


class Count(Command): ...


class Product(DecisionModel[Sku], state_stored=True):
    """State-stored, scoped by one identity."""

    sku: Sku
    on_hand: int = 0

    missed: int = 0

    def evolve(self, event: Received | Sold | Missed) -> Product:
        if isinstance(event, Received):
            return replace(self, on_hand=self.on_hand + event.count)
        if isinstance(event, Missed):
            return replace(self, missed=self.missed + 1)
        return replace(self, on_hand=self.on_hand - event.skus.count(self.sku))


class Pair(DecisionModel[Sku, PlaceId], state_stored=True):
    """State-stored, scoped by two; an event may concern several."""

    sku: Sku
    place: PlaceId
    there: int = 0

    def evolve(self, event: Received | Moved | Sold) -> Pair:
        match event:
            case Received(count=count):
                return replace(self, there=self.there + count)
            case Sold(skus=skus):
                return replace(self, there=self.there - skus.count(self.sku))
            case Moved(source=source, target=target, count=count):
                change = count * ((target == self.place) - (source == self.place))
                return replace(self, there=self.there + change)


class Everything(DecisionModel, state_stored=True):
    """State-stored, scoped by none: one for all."""

    moved: int = 0

    def evolve(self, event: Moved) -> Everything:
        return replace(self, moved=self.moved + event.count)


class Register(DecisionModel[PlaceId], snapshot_every=SNAPSHOT_EVERY):
    """From events, with snapshots."""

    sales: int = 0

    def evolve(self, event: Sold) -> Register:
        return replace(self, sales=self.sales + len(event.skus))


class Till(DecisionModel):
    """From events alone."""

    counted: int = 0

    def evolve(self, event: Sold | Counted) -> Till:
        return replace(self, counted=self.counted + 1)


SALES_MAX = 20


def warehouse() -> BoundedContext:
    """The context; whoever makes it again has code of its own."""
    context = BoundedContext("stock", events=[Missed])

    @context.command_handler
    def receive(command: Receive) -> Received:
        return Received(sku=command.sku, place=command.place, count=command.count)

    @context.command_handler
    def move(command: Move, everything: Everything, source: Annotated[Pair, By("sku", "source")]) -> Moved:
        if source.there < command.count:
            raise Rejected("not there", there=source.there)
        if everything.moved + command.count > 2 * SALES_MAX:
            raise Rejected("moved too much", moved=everything.moved)
        return Moved(sku=command.sku, source=command.source, target=command.target, count=command.count)

    @context.command_handler
    def sell(command: Sell, products: Mapping[Sku, Product], register: Register) -> Iterator[Sold]:
        if register.sales + len(command.skus) > SALES_MAX:
            raise Rejected("closed", sales=register.sales)
        for sku, product in products.items():
            if product.on_hand < command.skus.count(sku):
                raise Rejected("out of stock", sku=sku, on_hand=product.on_hand)
        yield Sold(skus=command.skus, place=command.place)

    _add_odd_ones(context)

    @context.command_handler
    def count(command: Count, till: Till) -> Counted:
        return Counted(total=till.counted)

    return context


def _add_odd_ones(context: BoundedContext) -> None:
    @context.command_handler
    async def take(command: Take, product: Product) -> Sold:
        for _ in range(3):
            await checkpoint()
        if product.on_hand < 1:
            raise Rejected("out of stock", record=Missed(sku=command.sku, place=command.place))
        return Sold(skus=(command.sku,), place=command.place)

    @context.command_handler
    def find(command: Find) -> Received:
        return Received(sku=Sku.new(), place=command.place, count=1)
