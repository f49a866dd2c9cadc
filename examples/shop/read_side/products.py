"""The catalogue: what a product is called, found by words."""

from __future__ import annotations

from diptych import Key, Query, Reader, ReadModel, Searchable
from shop.context import shop
from shop.messages.events import OrderPlaced
from shop.messages.identities import Sku
from shop.messages.order_line import OrderLine
from shop.read_side.limit import Limit

__all__ = ["Product", "ProductSearch", "product", "product_search"]


class Product(ReadModel):
    """One product, under the description that it was last sold with."""

    sku: Key[Sku]
    description: Searchable[str] = ""


class ProductSearch(Query[list[Product]]):
    """The products in whose description every word of the text begins a word."""

    text: str
    limit: Limit = 10


def lines(event: OrderPlaced) -> tuple[OrderLine, ...]:
    """The parts of the event, each of which names one product."""
    return event.lines


@shop.projection(each=lines)
def product(row: Product, event: OrderPlaced, line: OrderLine) -> Product:
    """Keep the description, where there is one."""
    return Product(sku=row.sku, description=line.description) if line.description else row


@shop.query_handler
async def product_search(query: ProductSearch, read: Reader) -> list[Product]:
    """The best matches first."""
    return await read.search(Product, query.text, limit=query.limit)
