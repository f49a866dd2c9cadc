"""The shop's stock, accounts and ordering, as their tests meet them: what most of them begin with."""

from __future__ import annotations

from decimal import Decimal

from diptych import Application, Command
from diptych.event_store.event_query import ALL_EVENTS
from shop.accounts import accounts
from shop.accounts.messages import AccountId, AccountOpened, DepositMoney, MoneyDeposited, OpenAccount
from shop.messages.identities import CustomerId, OrderId, Sku
from shop.ordering import ordering
from shop.ordering.messages.commands import SubmitOrder
from shop.ordering.messages.events import OrderSubmitted
from shop.ordering.messages.identities import CouponId
from shop.stock import stock
from shop.stock.messages import GoodsReceived, GoodsReserved, Item, PriceSet, ReceiveGoods, SetPrice

CONTEXTS = (stock, accounts, ordering)
ORDER, OTHER = OrderId("o1"), OrderId("o2")
ADA, BOB = CustomerId("ada"), CustomerId("bob")
PURSE, SAFE = AccountId("purse"), AccountId("safe")
LAMP, MUG = Sku("lamp"), Sku("mug")
COUPON = CouponId("spring")

ITEMS = (Item(sku=LAMP, quantity=2),)
TOTAL = Decimal(60)
"""What the items cost."""
SUBMIT = SubmitOrder(order_id=ORDER, customer_id=ADA, account_id=PURSE, items=ITEMS)
SUBMITTED = OrderSubmitted(order_id=ORDER, customer_id=ADA, account_id=PURSE, coupon_id=None, items=ITEMS, total=TOTAL)
RESERVED = GoodsReserved(order_id=ORDER, items=ITEMS)


def stocked(units: int = 3) -> tuple[PriceSet, GoodsReceived]:
    """Lamps, at 30 each."""
    return PriceSet(sku=LAMP, unit_price=Decimal(30)), GoodsReceived(sku=LAMP, quantity=units)


def funded(amount: int, account: AccountId = PURSE) -> tuple[AccountOpened, MoneyDeposited]:
    """An account that holds so much."""
    return (
        AccountOpened(account_id=account, customer_id=ADA),
        MoneyDeposited(account_id=account, amount=Decimal(amount)),
    )


def opening(*, funds: int) -> tuple[Command, ...]:
    """Commands for the same: three lamps, and an account that holds so much."""
    return (
        SetPrice(sku=LAMP, unit_price=Decimal(30)),
        ReceiveGoods(sku=LAMP, quantity=3),
        OpenAccount(account_id=PURSE, customer_id=ADA),
        DepositMoney(account_id=PURSE, amount=Decimal(funds)),
    )


async def at_rest(app: Application) -> None:
    """Every process has reacted to everything, and sent what is due; every projection shows it."""
    await app.partition().process_worker.at_rest()
    await app.projected()


async def happened(app: Application, *, after: int = 0) -> list[str]:
    """The names of all events after a position, in order."""
    return [recorded.type async for recorded in app.events(ALL_EVENTS) if recorded.position > after]
