"""Checkout: goods of several products and a customer's credit as one dynamic boundary.

Nothing owns this rule but the decision: neither stock nor credit is an aggregate around the other. What is given takes
effect only if nothing happened meanwhile to these products, their prices, this customer's credit and this order. Other
customers check out other products side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shop.messages.identities import Sku
from shop.ordering.context import ordering
from shop.ordering.messages.commands import Checkout
from shop.ordering.messages.events import BoughtOnCredit
from shop.ordering.write_side.credit import Credit, check_credit
from shop.ordering.write_side.orders import Order, check_new, price
from shop.stock.messages import GoodsReserved
from shop.stock.write_side import Price, Product, check_available

__all__ = ["checkout"]


@ordering.command_handler
def checkout(
    command: Checkout,
    order: Order,
    products: Mapping[Sku, Product],
    prices: Mapping[Sku, Price],
    credit: Credit,
) -> Iterator[BoughtOnCredit | GoodsReserved]:
    """Charge and reserve at once. The fulfilment that the first event begins hears of the second one."""
    check_new(order)
    check_available(command.items, products)
    total = price(command.items, prices)
    check_credit(credit, total)
    yield BoughtOnCredit(order_id=command.order_id, customer_id=command.customer_id, items=command.items, total=total)
    yield GoodsReserved(order_id=command.order_id, items=command.items)
