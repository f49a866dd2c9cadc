"""What is in stock, and what is running out."""

from __future__ import annotations

from decimal import Decimal

from diptych import Indexed, Key, Query, Reader, ReadModel, at_most, replace
from shop.messages.identities import Sku
from shop.read_side.limit import Limit
from shop.stock.context import stock
from shop.stock.messages import GoodsReceived, GoodsReleased, GoodsReserved, GoodsShipped, Item, PriceSet

__all__ = ["ScarceProducts", "StockLevel", "StockOf", "scarce_products", "stock_level", "stock_level_of_item"]


class StockLevel(ReadModel):
    """One product: its price, the units on the shelf, and those of them that are for nobody yet."""

    sku: Key[Sku]
    unit_price: Decimal | None = None
    on_hand: int = 0
    available: Indexed[int] = 0


class StockOf(Query[StockLevel | None]):
    """One product; null where nothing is known of it."""

    sku: Sku


class ScarceProducts(Query[list[StockLevel]]):
    """The products of which so many units or fewer are available, the scarcest first."""

    available: int = 0
    limit: Limit = 10


@stock.projection
def stock_level(row: StockLevel, event: PriceSet | GoodsReceived) -> StockLevel:
    """What concerns one product as a whole."""
    match event:
        case PriceSet(unit_price=unit_price):
            return replace(row, unit_price=unit_price)
        case GoodsReceived(quantity=quantity):
            return replace(row, on_hand=row.on_hand + quantity, available=row.available + quantity)


def items(event: GoodsReserved | GoodsReleased | GoodsShipped) -> tuple[Item, ...]:
    """The parts of the event, each of which concerns one product."""
    return event.items


@stock.projection(each=items)
def stock_level_of_item(row: StockLevel, event: GoodsReserved | GoodsReleased | GoodsShipped, item: Item) -> StockLevel:
    """What concerns one item of an order. The read model is fed by two functions, each for events of its own."""
    match event:
        case GoodsReserved():
            return replace(row, available=row.available - item.quantity)
        case GoodsReleased():
            return replace(row, available=row.available + item.quantity)
        case GoodsShipped():
            return replace(row, on_hand=row.on_hand - item.quantity)


@stock.query_handler
async def scarce_products(query: ScarceProducts, read: Reader) -> list[StockLevel]:
    """The first rows by what is available."""
    return await read.find(StockLevel, available=at_most(query.available), order_by="available", limit=query.limit)
