"""Stock is decided product by product, and what is promised to an order, order by order."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from diptych import DecisionModel, Rejected, replace
from shop.messages.identities import OrderId, Sku
from shop.messages.order_line import is_price
from shop.stock.context import stock
from shop.stock.messages import (
    GoodsReceived,
    GoodsReleased,
    GoodsReserved,
    GoodsShipped,
    Item,
    PriceSet,
    ReceiveGoods,
    ReleaseGoods,
    ReserveGoods,
    SetPrice,
    units_of,
)

__all__ = [
    "OUT_OF_STOCK",
    "Price",
    "Product",
    "Reservation",
    "check_available",
    "receive_goods",
    "release_goods",
    "reserve_goods",
    "set_price",
]

OUT_OF_STOCK = "out-of-stock"
"""The code of a refusal for want of goods."""


class Product(DecisionModel[Sku], state_stored=True):
    """The units of one product.

    It sees many events in its life, and only what is left of them matters: so its state is stored, and not its events
    folded. It is kept with every commit that moves goods, also with those that `ordering` decides.
    """

    sku: Sku
    on_hand: int = 0
    reserved: int = 0

    @property
    def available(self) -> int:
        """What can still be promised."""
        return self.on_hand - self.reserved

    def evolve(self, event: GoodsReceived | GoodsReserved | GoodsReleased | GoodsShipped) -> Product:
        """Move units: onto the shelf, to an order and back, out of the house."""
        if isinstance(event, GoodsReceived):
            return replace(self, on_hand=self.on_hand + event.quantity)
        units = units_of(self.sku, event.items)
        match event:
            case GoodsReserved():
                return replace(self, reserved=self.reserved + units)
            case GoodsReleased():
                return replace(self, reserved=self.reserved - units)
            case GoodsShipped():
                return replace(self, on_hand=self.on_hand - units, reserved=self.reserved - units)


class Price(DecisionModel[Sku]):
    """What one product costs. It is no field of `Product`: who only asks the price loses no race about units."""

    unit_price: Decimal | None = None

    def evolve(self, event: PriceSet) -> Price:
        """The latest one holds."""
        return Price(unit_price=event.unit_price)


class Reservation(DecisionModel[OrderId]):
    """What is promised to one order now, and whether something ever was."""

    items: tuple[Item, ...] = ()
    was_made: bool = False

    def evolve(self, event: GoodsReserved | GoodsReleased | GoodsShipped) -> Reservation:
        """It is made once, and then used up or given back."""
        return Reservation(items=event.items if isinstance(event, GoodsReserved) else (), was_made=True)


@stock.command_handler
def set_price(command: SetPrice) -> PriceSet:
    """Any price is taken that is one."""
    if not is_price(command.unit_price):
        raise Rejected("no-price", sku=command.sku, unit_price=str(command.unit_price))
    return PriceSet(sku=command.sku, unit_price=command.unit_price)


@stock.command_handler
def receive_goods(command: ReceiveGoods) -> GoodsReceived:
    """Whatever comes in is taken."""
    return GoodsReceived(sku=command.sku, quantity=command.quantity)


@stock.command_handler
def reserve_goods(command: ReserveGoods, reservation: Reservation, products: Mapping[Sku, Product]) -> GoodsReserved:
    """Promise the goods once, if there are enough of each."""
    if reservation.was_made:
        raise Rejected("reserved-already", order_id=command.order_id)
    check_available(command.items, products)
    return GoodsReserved(order_id=command.order_id, items=command.items)


@stock.command_handler
def release_goods(command: ReleaseGoods, reservation: Reservation) -> GoodsReleased | None:
    """Give back what is promised, if anything is."""
    if not reservation.items:
        return None
    return GoodsReleased(order_id=command.order_id, items=reservation.items)


def check_available(items: tuple[Item, ...], products: Mapping[Sku, Product]) -> None:
    """Refuse to promise more than there is.

    Raises:
        Rejected: "out-of-stock", naming the first product of which there is too little.
    """
    for sku, product in products.items():
        wanted = units_of(sku, items)
        if wanted > product.available:
            raise Rejected(OUT_OF_STOCK, sku=sku, wanted=wanted, available=product.available)
