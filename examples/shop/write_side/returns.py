"""Taking back: at most what the customer has bought and not yet returned, product by product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from diptych import DecisionModel, Rejected
from shop.context import shop
from shop.messages.commands import ReturnGoods
from shop.messages.events import GoodsReturned, OrderPlaced, ReturnRefused
from shop.messages.identities import CustomerId, ReturnId, Sku
from shop.messages.order_line import OrderLine
from shop.write_side.plausible import check_plausible

__all__ = ["MORE_THAN_BOUGHT", "GoodsReturn", "Purchases", "return_goods"]

MORE_THAN_BOUGHT = "more-than-bought"
"""The code of a refusal that is kept as a fact."""


class Purchases(DecisionModel[CustomerId]):
    """What one customer still has of everything bought: units bought less units returned, by product."""

    units: Mapping[Sku, int] = {}

    def evolve(self, event: OrderPlaced | GoodsReturned) -> Purchases:
        """More with an order, less with a return."""
        sign = 1 if isinstance(event, OrderPlaced) else -1
        units = dict(self.units)
        for sku, quantity in quantities(event.lines).items():
            units[sku] = units.get(sku, 0) + sign * quantity
        return Purchases(units=units)


class GoodsReturn(DecisionModel[ReturnId]):
    """What is known of one return before it is decided: whether it was decided before."""

    is_decided: bool = False

    def evolve(self, event: GoodsReturned | ReturnRefused) -> GoodsReturn:
        """It is decided, one way or the other."""
        return GoodsReturn(is_decided=True)


@shop.command_handler
def return_goods(command: ReturnGoods, purchases: Purchases, goods_return: GoodsReturn) -> GoodsReturned:
    """Take the goods back, or refuse the whole return and keep the refusal as a fact."""
    if goods_return.is_decided:
        raise Rejected("return-exists", return_id=command.return_id)
    check_plausible(command.lines, command.returned_at)
    for sku, quantity in quantities(command.lines).items():
        kept = purchases.units.get(sku, 0)
        if quantity > kept:
            raise Rejected(MORE_THAN_BOUGHT, record=refused(command), sku=sku, wanted=quantity, bought=kept)
    return GoodsReturned(
        return_id=command.return_id,
        customer_id=command.customer_id,
        country=command.country,
        returned_at=command.returned_at,
        lines=command.lines,
    )


def refused(command: ReturnGoods) -> ReturnRefused:
    """The fact that a refusal leaves."""
    return ReturnRefused(return_id=command.return_id, customer_id=command.customer_id, returned_at=command.returned_at)


def quantities(lines: tuple[OrderLine, ...]) -> Counter[Sku]:
    """Units by product: one product may stand in several lines."""
    counted: Counter[Sku] = Counter()
    for line in lines:
        counted[line.sku] += line.quantity
    return counted
