"""An order from its submission to its end. Who pays, ships or cancels decides on the same model: one is first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Literal

from diptych import DecisionModel, Rejected, replace
from shop.accounts.messages import AccountId, PaymentRefunded, PaymentTaken
from shop.messages.identities import CustomerId, OrderId, Sku
from shop.ordering.context import ordering
from shop.ordering.messages.commands import CancelOrder, ShipOrder, SubmitOrder
from shop.ordering.messages.events import BoughtOnCredit, OrderCancelled, OrderSubmitted
from shop.ordering.messages.identities import CouponId
from shop.ordering.write_side.coupons import Coupon, discount
from shop.stock.messages import GoodsReserved, GoodsShipped, Item
from shop.stock.write_side import Price, Reservation

__all__ = ["Order", "cancel_order", "check_new", "price", "ship_order", "submit_order"]


class Order(DecisionModel[OrderId]):
    """What is known of one order.

    Attributes:
        state: "unknown" before it is submitted, then as far as it has come.
        paid_from: the account that paid; None while none has.
        credit: what of its total the customer owes.
    """

    order_id: OrderId
    state: Literal["unknown", "submitted", "reserved", "paid", "on-credit", "refunded", "shipped", "cancelled"] = (
        "unknown"
    )
    customer_id: CustomerId | None = None
    coupon_id: CouponId | None = None
    paid_from: AccountId | None = None
    total: Decimal = Decimal(0)
    credit: Decimal = Decimal(0)

    def evolve(
        self,
        event: OrderSubmitted
        | BoughtOnCredit
        | GoodsReserved
        | PaymentTaken
        | PaymentRefunded
        | GoodsShipped
        | OrderCancelled,
    ) -> Order:
        """One step further."""
        match event:
            case OrderSubmitted(customer_id=customer, coupon_id=coupon, total=total):
                return replace(self, state="submitted", customer_id=customer, coupon_id=coupon, total=total)
            case BoughtOnCredit(customer_id=customer, total=total):
                return replace(self, state="on-credit", customer_id=customer, total=total, credit=total)
            case GoodsReserved():
                return replace(self, state="reserved") if self.state == "submitted" else self
            case PaymentTaken():
                return replace(self, state="paid", paid_from=event.account_id)
            case PaymentRefunded():
                return replace(self, state="refunded")
            case GoodsShipped():
                return replace(self, state="shipped")
            case OrderCancelled():
                return replace(self, state="cancelled")


@ordering.command_handler
def submit_order(
    command: SubmitOrder, order: Order, prices: Mapping[Sku, Price], coupons: Mapping[CouponId, Coupon]
) -> OrderSubmitted:
    """Take the order at the prices of now. Whether there are enough goods is found when they are reserved.

    `coupons` holds the one coupon of the command, or none: a mapping is also how to ask for the model of an optional
    field.
    """
    check_new(order)
    off = sum((discount(coupon) for coupon in coupons.values()), Decimal(0))
    return OrderSubmitted(
        order_id=command.order_id,
        customer_id=command.customer_id,
        account_id=command.account_id,
        coupon_id=command.coupon_id,
        items=command.items,
        total=max(price(command.items, prices) - off, Decimal(0)),
    )


@ordering.command_handler
def ship_order(command: ShipOrder, order: Order, reservation: Reservation) -> GoodsShipped:
    """Send what is reserved, if it is paid or owed."""
    if order.state not in ("paid", "on-credit"):
        raise Rejected("not-to-be-shipped", state=order.state)
    if not reservation.items:
        raise Rejected("not-reserved", order_id=command.order_id)
    return GoodsShipped(order_id=command.order_id, items=reservation.items)


@ordering.command_handler
def cancel_order(command: CancelOrder, order: Order) -> OrderCancelled | None:
    """Give up the order, if it is not paid; one that is given up already stays so."""
    if order.state == "cancelled":
        return None
    if order.customer_id is None or order.state in ("paid", "shipped"):
        raise Rejected("not-to-be-cancelled", state=order.state)
    return OrderCancelled(
        order_id=command.order_id,
        customer_id=order.customer_id,
        coupon_id=order.coupon_id,
        credit=order.credit,
        because=command.because,
    )


def check_new(order: Order) -> None:
    """Refuse to take an order twice.

    Raises:
        Rejected: "order-exists".
    """
    if order.state != "unknown":
        raise Rejected("order-exists", order_id=order.order_id)


def price(items: Iterable[Item], prices: Mapping[Sku, Price]) -> Decimal:
    """What the items cost together.

    Raises:
        Rejected: "not-for-sale", naming a product without a price.
    """
    total = Decimal(0)
    for item in items:
        unit_price = prices[item.sku].unit_price
        if unit_price is None:
            raise Rejected("not-for-sale", sku=item.sku)
        total += item.quantity * unit_price
    return total
