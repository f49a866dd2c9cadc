"""Payments: an order and an account as one boundary, so that no account pays for what is given up meanwhile."""

from __future__ import annotations

from diptych import Rejected
from shop.accounts.messages import PaymentRefunded, PaymentTaken
from shop.accounts.write_side import Account, check_pays
from shop.ordering.context import ordering
from shop.ordering.messages.commands import PayOrder, RefundOrder
from shop.ordering.write_side.orders import Order

__all__ = ["pay_order", "refund_order"]


@ordering.command_handler
def pay_order(command: PayOrder, order: Order, account: Account) -> PaymentTaken:
    """Take the money once the goods are reserved, if the account holds it."""
    if order.state != "reserved":
        raise Rejected("not-to-be-paid", state=order.state)
    check_pays(account, order.total)
    return PaymentTaken(account_id=command.account_id, order_id=command.order_id, amount=order.total)


@ordering.command_handler
def refund_order(command: RefundOrder, order: Order) -> PaymentRefunded | None:
    """Give the money back to where it came from, if any is there and the goods are not gone."""
    if order.state != "paid" or order.paid_from is None:
        return None
    return PaymentRefunded(account_id=order.paid_from, order_id=command.order_id, amount=order.total)
