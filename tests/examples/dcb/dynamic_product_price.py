"""Orders at the price that was displayed, for a while after it changed (dcb.events/examples)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from diptych import (
    BoundedContext,
    Command,
    CommandContext,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Rejected,
    Value,
    replace,
)

prices = BoundedContext("prices")
GRACE = timedelta(minutes=10)


class ProductId(Identity): ...


class DisplayedItem(Value):
    product_id: ProductId
    displayed_price: int


class OrderedItem(Value):
    product_id: ProductId
    price: int


class OrderProduct(Command):
    product_id: ProductId
    displayed_price: int


class OrderProducts(Command):
    items: tuple[DisplayedItem, ...]


class ProductDefined(Event):
    product_id: ProductId
    price: int


class ProductPriceChanged(Event):
    product_id: ProductId
    new_price: int


class ProductOrdered(Event):
    product_id: ProductId
    price: int


class ProductsOrdered(Event):
    items: tuple[OrderedItem, ...]


class Replaced(Value):
    price: int
    at: datetime


class Price(DecisionModel[ProductId]):
    product: ProductId
    current: int | None = None
    earlier: tuple[Replaced, ...] = ()

    def evolve(self, event: ProductDefined | ProductPriceChanged, context: EventContext) -> Price:
        match event:
            case ProductDefined():
                return replace(self, current=event.price)
            case ProductPriceChanged():
                assert self.current is not None
                replaced = Replaced(price=self.current, at=context.recorded_at)
                return replace(self, current=event.new_price, earlier=(*self.earlier, replaced))

    def check(self, displayed: int, now: datetime) -> None:
        """Refuse a price that is not, and was not until just now, the product's."""
        still_valid = [replaced.price for replaced in self.earlier if now - replaced.at <= GRACE]
        if displayed not in (self.current, *still_valid):
            raise Rejected("price-invalid", product=self.product)


@prices.command_handler
def order_product(command: OrderProduct, price: Price, context: CommandContext) -> ProductOrdered:
    price.check(command.displayed_price, context.now)
    return ProductOrdered(product_id=command.product_id, price=command.displayed_price)


@prices.command_handler
def order_products(
    command: OrderProducts, priced: Mapping[ProductId, Price], context: CommandContext
) -> ProductsOrdered:
    for item in command.items:
        priced[item.product_id].check(item.displayed_price, context.now)
    ordered = [OrderedItem(product_id=item.product_id, price=item.displayed_price) for item in command.items]
    return ProductsOrdered(items=tuple(ordered))
