"""The shop decides on orders: coupons, checkout on credit, payments and cancellations, each as one boundary."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from importlib import import_module
from pathlib import Path

import pytest

from diptych import Application, BoundedContext, Rejected, replace
from diptych.testing import InMemoryApplication, scenario
from shop import shop
from shop.accounts.messages import AccountId, PaymentRefunded, PaymentTaken
from shop.accounts.write_side import INSUFFICIENT_FUNDS
from shop.invoice import command_of
from shop.messages.identities import CustomerId, OrderId
from shop.ordering.messages.commands import (
    CancelOrder,
    Checkout,
    GrantCredit,
    IssueCoupon,
    PayOrder,
    RefundOrder,
    SettleCredit,
    ShipOrder,
)
from shop.ordering.messages.events import (
    BoughtOnCredit,
    CouponIssued,
    CreditGranted,
    CreditSettled,
    OrderCancelled,
)
from shop.ordering.messages.identities import CouponId
from shop.ordering.read_side.coupon_status import CouponStatus
from shop.ordering.read_side.order_status import OrderStatus
from shop.ordering.write_side.credit import CREDIT_EXCEEDED
from shop.read_side.product_sales import TopProducts
from shop.stock.messages import GoodsReleased, GoodsReserved, GoodsShipped, Item, ReceiveGoods, SetPrice
from shop.stock.write_side import OUT_OF_STOCK
from shop.workload import Workload
from tests.shop_orders import (
    ADA,
    BOB,
    CONTEXTS,
    COUPON,
    ITEMS,
    LAMP,
    MUG,
    ORDER,
    OTHER,
    PURSE,
    RESERVED,
    SAFE,
    SUBMIT,
    SUBMITTED,
    TOTAL,
    funded,
    stocked,
)

SHOP = scenario(*CONTEXTS).given(*stocked(3))
ISSUED = CouponIssued(coupon_id=COUPON, worth=Decimal(25), uses=1)
WITH_COUPON = replace(SUBMITTED, coupon_id=COUPON, total=Decimal(35))
PAID = PaymentTaken(account_id=PURSE, order_id=ORDER, amount=TOTAL)
SHIPPED = GoodsShipped(order_id=ORDER, items=ITEMS)
CANCEL = CancelOrder(order_id=ORDER, because="changed-mind")
CANCELLED = OrderCancelled(order_id=ORDER, customer_id=ADA, coupon_id=None, credit=Decimal(0), because="changed-mind")
ON_CREDIT = BoughtOnCredit(order_id=ORDER, customer_id=ADA, items=ITEMS, total=TOTAL)
CHECKOUT = Checkout(order_id=ORDER, customer_id=ADA, items=ITEMS)


def granted(limit: int, customer: CustomerId = ADA) -> CreditGranted:
    return CreditGranted(customer_id=customer, limit=Decimal(limit))


# ── submission and coupons ───────────────────────────────────────────────────


def test_an_order_is_taken_at_the_prices_of_now() -> None:
    """Once; how much is in stock is no question yet."""
    SHOP.when(SUBMIT).then(SUBMITTED)
    SHOP.given(SUBMITTED).when(SUBMIT).then_rejected("order-exists")
    items = (*ITEMS, Item(sku=MUG, quantity=1))
    SHOP.when(replace(SUBMIT, items=items)).then_rejected("not-for-sale", sku=MUG)
    lamps = (Item(sku=LAMP, quantity=500),)
    SHOP.when(replace(SUBMIT, items=lamps)).then(replace(SUBMITTED, items=lamps, total=Decimal(15_000)))


def test_a_coupon_takes_its_worth_off_an_order() -> None:
    """And never more than the order costs."""
    SHOP.given(ISSUED).when(replace(SUBMIT, coupon_id=COUPON)).then(WITH_COUPON)
    dear = replace(ISSUED, worth=Decimal(1_000))
    free = replace(WITH_COUPON, total=Decimal(0))
    SHOP.given(dear).when(replace(SUBMIT, coupon_id=COUPON)).then(free)


def test_coupons_are_limited_across_all_customers() -> None:
    """The last one is gone for others too; other coupons are not, and orders without one go on."""
    used = SHOP.given(ISSUED, replace(ISSUED, coupon_id=CouponId("autumn")), WITH_COUPON)
    bobs = replace(SUBMIT, order_id=OTHER, customer_id=BOB)
    used.when(replace(bobs, coupon_id=COUPON)).then_rejected("coupon-used-up", coupon_id=COUPON)
    used.when(bobs).then(replace(SUBMITTED, order_id=OTHER, customer_id=BOB))
    autumn = replace(WITH_COUPON, order_id=OTHER, customer_id=BOB, coupon_id=CouponId("autumn"))
    used.when(replace(bobs, coupon_id=CouponId("autumn"))).then(autumn)
    used.then_row(CouponStatus(coupon_id=COUPON, worth=Decimal(25), left=0))


def test_a_cancelled_order_gives_its_coupon_back() -> None:
    """The next order can use it."""
    used = SHOP.given(ISSUED, WITH_COUPON)
    cancelled = replace(CANCELLED, coupon_id=COUPON)
    used.when(CANCEL).then(cancelled)
    again = replace(WITH_COUPON, order_id=OTHER)
    used.given(cancelled).when(replace(SUBMIT, order_id=OTHER, coupon_id=COUPON)).then(again)
    used.given(cancelled).then_row(CouponStatus(coupon_id=COUPON, worth=Decimal(25), left=1))


def test_a_coupon_is_issued_once() -> None:
    """And one that was not is none."""
    issue = IssueCoupon(coupon_id=COUPON, worth=Decimal(25), uses=1)
    SHOP.when(issue).then(ISSUED)
    SHOP.given(ISSUED).when(issue).then_rejected("coupon-exists")
    SHOP.when(replace(issue, worth=Decimal(0))).then_rejected("no-amount")
    SHOP.when(replace(SUBMIT, coupon_id=COUPON)).then_rejected("no-such-coupon", coupon_id=COUPON)


@pytest.mark.anyio
async def test_racing_orders_use_no_more_coupons_than_there_are(store_url: str) -> None:
    """Nine customers race for three."""
    async with Application(*CONTEXTS, store=store_url, projecting=False) as app:
        await app.execute(SetPrice(sku=LAMP, unit_price=Decimal(30)))
        await app.execute(IssueCoupon(coupon_id=COUPON, worth=Decimal(5), uses=3))
        wanted = replace(SUBMIT, coupon_id=COUPON)
        orders = [replace(wanted, order_id=OrderId(f"o{n}"), customer_id=CustomerId(f"c{n}")) for n in range(9)]
        outcomes = await asyncio.gather(*(app.execute(each) for each in orders), return_exceptions=True)
        refused = [outcome.code for outcome in outcomes if isinstance(outcome, Rejected)]
        assert refused == ["coupon-used-up"] * 6


# ── checkout ─────────────────────────────────────────────────────────────────


def test_a_checkout_reserves_and_charges_at_once() -> None:
    """Up to the limit itself."""
    SHOP.given(granted(60)).when(CHECKOUT).then(ON_CREDIT, RESERVED)
    SHOP.given(granted(60), ON_CREDIT, RESERVED).when(CHECKOUT).then_rejected("order-exists")


def test_a_checkout_without_credit_reserves_nothing() -> None:
    """None granted, too little of it, or used up already; another's does not help."""
    SHOP.when(CHECKOUT).then_rejected(CREDIT_EXCEEDED, limit=Decimal(0), total=TOTAL)
    SHOP.given(granted(59), granted(900, BOB)).when(CHECKOUT).then_rejected(CREDIT_EXCEEDED)
    owing = SHOP.given(granted(100), replace(ON_CREDIT, order_id=OTHER))
    owing.when(CHECKOUT).then_rejected(CREDIT_EXCEEDED, owed=TOTAL)


def test_a_checkout_without_goods_charges_nothing() -> None:
    """Whoever has them, and by whichever way they were promised."""
    SHOP.given(granted(900), replace(RESERVED, order_id=OTHER)).when(CHECKOUT).then_rejected(OUT_OF_STOCK, sku=LAMP)
    SHOP.given(granted(900)).when(replace(CHECKOUT, items=(Item(sku=MUG, quantity=1),))).then_rejected(OUT_OF_STOCK)


def test_credit_is_there_again_when_it_was_settled_or_the_order_cancelled() -> None:
    """Nobody settles more than they owe."""
    owing = SHOP.given(granted(60), replace(ON_CREDIT, order_id=OTHER))
    settle = SettleCredit(customer_id=ADA, amount=TOTAL)
    settled = CreditSettled(customer_id=ADA, amount=TOTAL)
    owing.when(settle).then(settled)
    owing.given(settled).when(CHECKOUT).then(ON_CREDIT, RESERVED)
    owing.given(settled).when(settle).then_rejected("more-than-owed", owed=Decimal(0))
    cancelled = replace(CANCELLED, order_id=OTHER, credit=TOTAL)
    owing.when(replace(CANCEL, order_id=OTHER)).then(cancelled)
    owing.given(cancelled).when(CHECKOUT).then(ON_CREDIT, RESERVED)
    SHOP.when(GrantCredit(customer_id=ADA, limit=Decimal(60))).then(granted(60))


@pytest.mark.anyio
async def test_racing_checkouts_hold_both_limits(store_url: str) -> None:
    """Eight race, with goods for five and credit for three: three are bought, and no other goods are promised."""
    async with Application(*CONTEXTS, store=store_url, projecting=False) as app:
        await app.execute(SetPrice(sku=LAMP, unit_price=Decimal(30)))
        await app.execute(ReceiveGoods(sku=LAMP, quantity=5))
        await app.execute(GrantCredit(customer_id=ADA, limit=Decimal(100)))
        one = (Item(sku=LAMP, quantity=1),)
        checkouts = [Checkout(order_id=OrderId(f"o{n}"), customer_id=ADA, items=one) for n in range(8)]
        outcomes = await asyncio.gather(*(app.execute(each) for each in checkouts), return_exceptions=True)
        assert sorted(outcome.code for outcome in outcomes if isinstance(outcome, Rejected)) == [CREDIT_EXCEEDED] * 5
        await app.execute(GrantCredit(customer_id=BOB, limit=Decimal(900)))
        bobs = Checkout(order_id=OrderId("bobs"), customer_id=BOB, items=(Item(sku=LAMP, quantity=3),))
        with pytest.raises(Rejected, match=OUT_OF_STOCK):
            await app.execute(bobs)
        await app.execute(replace(bobs, items=(Item(sku=LAMP, quantity=2),)))


# ── payment, shipping, cancellation ──────────────────────────────────────────


def test_an_order_is_paid_from_an_account_that_holds_enough() -> None:
    """Any account, once the goods are reserved, and once."""
    pay = PayOrder(order_id=ORDER, account_id=PURSE)
    reserved = SHOP.given(*funded(60), *funded(59, SAFE), SUBMITTED, RESERVED)
    reserved.when(pay).then(PAID)
    reserved.when(replace(pay, account_id=SAFE)).then_rejected(INSUFFICIENT_FUNDS, missing=Decimal(1))
    reserved.when(replace(pay, account_id=AccountId("none"))).then_rejected("no-such-account")
    reserved.given(PAID).when(pay).then_rejected("not-to-be-paid", state="paid")
    SHOP.given(*funded(60), SUBMITTED).when(pay).then_rejected("not-to-be-paid", state="submitted")


def test_what_is_given_up_is_not_paid_and_what_is_paid_is_not_given_up() -> None:
    """Both decide on the order: whichever is first holds."""
    reserved = SHOP.given(*funded(60), SUBMITTED, RESERVED)
    reserved.when(CANCEL).then(CANCELLED)
    reserved.given(CANCELLED).when(PayOrder(order_id=ORDER, account_id=PURSE)).then_rejected("not-to-be-paid")
    reserved.given(PAID).when(CANCEL).then_rejected("not-to-be-cancelled", state="paid")
    reserved.given(CANCELLED).when(CANCEL).then_nothing()
    SHOP.when(CANCEL).then_rejected("not-to-be-cancelled", state="unknown")


def test_what_is_reserved_and_settled_is_shipped_once() -> None:
    """Paid or owed; neither cancelled nor released."""
    ship = ShipOrder(order_id=ORDER)
    reserved = SHOP.given(*funded(60), SUBMITTED, RESERVED)
    reserved.when(ship).then_rejected("not-to-be-shipped", state="reserved")
    reserved.given(PAID).when(ship).then(SHIPPED)
    reserved.given(PAID, SHIPPED).when(ship).then_rejected("not-to-be-shipped", state="shipped")
    reserved.given(PAID, GoodsReleased(order_id=ORDER, items=ITEMS)).when(ship).then_rejected("not-reserved")
    bought = SHOP.given(granted(60), ON_CREDIT, RESERVED)
    bought.when(ship).then(SHIPPED)
    bought.given(replace(CANCELLED, credit=TOTAL)).when(ship).then_rejected("not-to-be-shipped", state="cancelled")


def test_a_refund_goes_back_to_the_account_that_paid() -> None:
    """Once, and not for goods that are gone."""
    refund = RefundOrder(order_id=ORDER)
    refunded = PaymentRefunded(account_id=PURSE, order_id=ORDER, amount=TOTAL)
    paid = SHOP.given(*funded(60), SUBMITTED, RESERVED, PAID)
    paid.when(refund).then(refunded)
    paid.given(refunded).when(refund).then_nothing()
    paid.given(refunded).when(CANCEL).then(CANCELLED)
    paid.given(SHIPPED).when(refund).then_nothing()


def test_the_status_of_an_order_follows() -> None:
    """Through events of three contexts; what was reserved for no order is none."""
    status = OrderStatus(order_id=ORDER, customer_id=ADA, total=TOTAL, status="submitted")
    SHOP.given(SUBMITTED).then_row(status)
    reserved = SHOP.given(*funded(60), SUBMITTED, RESERVED).then_row(replace(status, status="reserved"))
    reserved.given(PAID).then_row(replace(status, status="paid"))
    reserved.given(PAID, SHIPPED).then_row(replace(status, status="shipped"))
    reserved.given(CANCELLED).then_row(replace(status, status="cancelled", because="changed-mind"))
    SHOP.given(ON_CREDIT, RESERVED).then_row(replace(status, status="on-credit"))
    SHOP.given(GoodsReserved(order_id=OTHER, items=ITEMS)).then_no_row(OrderStatus, OTHER)


# ── the contexts ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.name)
def test_a_context_names_all_its_modules(context: BoundedContext) -> None:
    """No handler, projection or process is missing because its module was forgotten."""
    examples = Path(import_module("shop").__path__[0]).parent
    paths = (examples / "shop" / context.name).rglob("*.py")
    declaring = [path for path in paths if f"\n@{context.name}." in path.read_text(encoding="utf-8")]
    assert {".".join(path.relative_to(examples).with_suffix("").parts) for path in declaring} == set(context.modules)


@pytest.mark.anyio
async def test_the_contexts_run_beside_the_import() -> None:
    """All four in one application: the orders of an import are no orders to be fulfilled."""
    async with InMemoryApplication(shop, *CONTEXTS) as app:
        for invoice in Workload(orders=5):
            await app.execute(command_of(invoice))
        assert await app.query(TopProducts()) != []
        assert await app.processes.list(ended=True) == []
        assert await app.rows(OrderStatus) == []
