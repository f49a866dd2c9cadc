"""The shop's stock: what is promised is there, once, and its stored state is the fold of its events."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from diptych import Application, Rejected
from diptych.testing import scenario
from shop.messages.identities import OrderId
from shop.stock import stock
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
)
from shop.stock.read_side import ScarceProducts, StockLevel, StockOf
from shop.stock.write_side import OUT_OF_STOCK
from tests.shop_orders import ITEMS, LAMP, MUG, ORDER, OTHER, RESERVED, at_rest, stocked


def test_goods_come_in() -> None:
    """Known before or not."""
    scenario(stock).when(ReceiveGoods(sku=LAMP, quantity=3)).then(GoodsReceived(sku=LAMP, quantity=3))


@pytest.mark.parametrize("price", ["-1", "0.0000001", "1E+30"])
def test_what_is_no_price_is_refused(price: str) -> None:
    """The latest price is one that can be summed."""
    scenario(stock).when(SetPrice(sku=LAMP, unit_price=Decimal(price))).then_rejected("no-price")
    scenario(stock).when(SetPrice(sku=LAMP, unit_price=Decimal("0.5"))).then(
        PriceSet(sku=LAMP, unit_price=Decimal("0.5"))
    )


def test_goods_are_promised_while_there_are_any() -> None:
    """All of them: what others were promised before is not there."""
    begun = scenario(stock).given(*stocked(3))
    begun.when(ReserveGoods(order_id=ORDER, items=ITEMS)).then(RESERVED)
    begun.given(RESERVED).when(ReserveGoods(order_id=OTHER, items=ITEMS)).then_rejected(
        OUT_OF_STOCK, sku=LAMP, wanted=2, available=1
    )


def test_all_items_of_an_order_are_promised_or_none() -> None:
    """One product too few refuses the others too, and items of one product count together."""
    begun = scenario(stock).given(*stocked(9), GoodsReceived(sku=MUG, quantity=1))
    two_mugs = Item(sku=MUG, quantity=1), Item(sku=MUG, quantity=1)
    begun.when(ReserveGoods(order_id=ORDER, items=(*ITEMS, *two_mugs))).then_rejected(OUT_OF_STOCK, sku=MUG, wanted=2)
    begun.when(ReserveGoods(order_id=ORDER, items=(*ITEMS, two_mugs[0]))).then(
        GoodsReserved(order_id=ORDER, items=(*ITEMS, two_mugs[0]))
    )


def test_what_is_released_can_be_promised_again() -> None:
    """To others; an order has goods promised once."""
    released = GoodsReleased(order_id=ORDER, items=ITEMS)
    begun = scenario(stock).given(*stocked(2), RESERVED)
    begun.when(ReleaseGoods(order_id=ORDER)).then(released)
    after = begun.given(released)
    after.when(ReleaseGoods(order_id=ORDER)).then_nothing()
    after.when(ReserveGoods(order_id=ORDER, items=ITEMS)).then_rejected("reserved-already")
    after.when(ReserveGoods(order_id=OTHER, items=ITEMS)).then(GoodsReserved(order_id=OTHER, items=ITEMS))


def test_what_is_shipped_is_gone() -> None:
    """It is neither on the shelf nor promised, and cannot be released."""
    shipped = scenario(stock).given(*stocked(3), RESERVED, GoodsShipped(order_id=ORDER, items=ITEMS))
    shipped.when(ReleaseGoods(order_id=ORDER)).then_nothing()
    shipped.when(ReserveGoods(order_id=OTHER, items=ITEMS)).then_rejected(OUT_OF_STOCK, available=1)
    shipped.then_row(StockLevel(sku=LAMP, unit_price=Decimal(30), on_hand=1, available=1))


def test_stock_levels_follow() -> None:
    """Promised goods are on the shelf, and not available."""
    begun = scenario(stock).given(*stocked(3), RESERVED)
    begun.then_row(StockLevel(sku=LAMP, unit_price=Decimal(30), on_hand=3, available=1))
    begun.given(GoodsReleased(order_id=ORDER, items=ITEMS)).then_row(
        StockLevel(sku=LAMP, unit_price=Decimal(30), on_hand=3, available=3)
    )
    begun.then_no_row(StockLevel, MUG)


@pytest.mark.anyio
async def test_racing_orders_are_promised_no_more_than_there_is(store_url: str) -> None:
    """The stored state is judged with every commit: of ten that race for five lamps, five get one."""
    async with Application(stock, store=store_url) as app:
        await app.execute(ReceiveGoods(sku=LAMP, quantity=5))
        outcomes = await asyncio.gather(
            *(
                app.execute(ReserveGoods(order_id=OrderId(f"o{n}"), items=(Item(sku=LAMP, quantity=1),)))
                for n in range(10)
            ),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
        assert [refusal.code for refusal in refused] == [OUT_OF_STOCK] * 5
        await at_rest(app)
        assert await app.query(StockOf(sku=LAMP)) == StockLevel(sku=LAMP, on_hand=5, available=0)
        assert [row.sku for row in await app.query(ScarceProducts())] == [LAMP]
        assert await app.query(ScarceProducts(available=-1)) == []


@pytest.mark.anyio
async def test_the_stored_state_outlives_the_application(store_url: str) -> None:
    """The next one goes on from it."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    async with Application(stock, store=store_url) as app:
        await app.execute(ReceiveGoods(sku=LAMP, quantity=2))
        await app.execute(ReserveGoods(order_id=ORDER, items=ITEMS))
    async with Application(stock, store=store_url) as app:
        with pytest.raises(Rejected, match=OUT_OF_STOCK):
            await app.execute(ReserveGoods(order_id=OTHER, items=ITEMS))
