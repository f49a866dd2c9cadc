"""The shop decides: an order once, a return within what was bought."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from diptych import Application, Rejected, replace
from diptych.errors import InvalidMessage
from shop import shop
from shop.messages.commands import PlaceOrder, ReturnGoods
from shop.messages.events import GoodsReturned, ReturnRefused
from shop.messages.identities import CustomerId, OrderId, ReturnId, Sku
from shop.messages.order_line import PRICE_MAX, OrderLine
from shop.read_side.customer_orders import CustomerOrders
from shop.read_side.import_totals import ImportSummary, Summary
from shop.read_side.placed_orders import OrderDetails
from shop.read_side.products import ProductSearch
from shop.write_side.orders import Order, place_order
from shop.write_side.returns import MORE_THAN_BOUGHT, GoodsReturn, Purchases, return_goods

NOON = datetime(2011, 1, 10, 12, tzinfo=UTC)


def line(sku: str, quantity: int, price: str = "1.50", description: str = "RED TEAPOT") -> OrderLine:
    return OrderLine(sku=Sku(sku), description=description, quantity=quantity, unit_price=Decimal(price))


def order(number: str, *lines: OrderLine, customer: str = "12345", at: datetime = NOON) -> PlaceOrder:
    return PlaceOrder(
        order_id=OrderId(number), customer_id=CustomerId(customer), country="France", placed_at=at, lines=lines
    )


def goods_return(number: str, *lines: OrderLine, customer: str = "12345") -> ReturnGoods:
    return ReturnGoods(
        return_id=ReturnId(number), customer_id=CustomerId(customer), country="France", returned_at=NOON, lines=lines
    )


def bought(*lines: OrderLine) -> Purchases:
    return Purchases().evolve(place_order(order("1", *lines), Order()))


def test_an_order_that_was_placed_is_refused() -> None:
    """Two orders never share a number."""
    placed = Order().evolve(place_order(order("1", line("A", 1)), Order()))
    with pytest.raises(Rejected, match="order-exists"):
        place_order(order("1", line("B", 1)), placed)


@pytest.mark.parametrize("price", ["-0.01", "NaN", "Infinity", "0.0000001", str(PRICE_MAX + 1)])
def test_what_is_no_price_is_refused(price: str) -> None:
    """No fact holds an amount that could not be summed exactly."""
    with pytest.raises(Rejected, match="no-price"):
        place_order(order("1", line("A", 1, price)), Order())
    with pytest.raises(Rejected, match="no-price"):
        return_goods(goods_return("C1", line("A", 1, price)), bought(line("A", 1)), GoodsReturn())


@pytest.mark.parametrize("year", [1, 1899, 3000, 9999])
def test_what_is_no_time_is_refused(year: int) -> None:
    """No fact holds a time that some read model could not show."""
    with pytest.raises(Rejected, match="no-time"):
        place_order(order("1", line("A", 1), at=NOON.replace(year=year)), Order())
    asked = replace(goods_return("C1", line("A", 1)), returned_at=NOON.replace(year=year))
    with pytest.raises(Rejected, match="no-time"):
        return_goods(asked, bought(line("A", 1)), GoodsReturn())


def test_a_gift_is_an_order() -> None:
    """Price 0 is a price."""
    assert place_order(order("1", line("A", 3, "0")), Order()).lines == (line("A", 3, "0"),)


def test_all_that_was_bought_can_be_returned() -> None:
    """The limit itself is within the limit, over all lines of one product."""
    event = return_goods(
        goods_return("C1", line("A", 2), line("A", 3), line("B", 1)),
        bought(line("A", 4), line("B", 1), line("A", 1)),
        GoodsReturn(),
    )
    assert isinstance(event, GoodsReturned)


@pytest.mark.parametrize(
    "lines", [[line("A", 6)], [line("A", 3), line("A", 3)], [line("A", 1), line("B", 1)]], ids=["one", "sum", "other"]
)
def test_one_product_too_many_refuses_the_whole_return(lines: list[OrderLine]) -> None:
    """A return is taken as a whole or not at all, and the refusal is kept as a fact."""
    command = goods_return("C1", *lines)
    with pytest.raises(Rejected) as refusal:
        return_goods(command, bought(line("A", 5)), GoodsReturn())
    assert refusal.value.code == MORE_THAN_BOUGHT
    assert refusal.value.record == ReturnRefused(
        return_id=command.return_id, customer_id=command.customer_id, returned_at=command.returned_at
    )


def test_what_was_returned_cannot_be_returned_again() -> None:
    """Earlier returns count against what was bought, and the model that counts is not changed in place."""
    before = bought(line("A", 5))
    first = return_goods(goods_return("C1", line("A", 4)), before, GoodsReturn())
    after = before.evolve(first)
    assert before.units == {"A": 5}
    assert after.units == {"A": 1}
    with pytest.raises(Rejected, match=MORE_THAN_BOUGHT):
        return_goods(goods_return("C2", line("A", 2)), after, GoodsReturn())


@pytest.mark.parametrize("event", [GoodsReturned, ReturnRefused])
def test_a_return_is_decided_once(event: type[GoodsReturned | ReturnRefused]) -> None:
    """Two returns never share a number, whichever way the first one went."""
    asked = goods_return("C1", line("A", 1))
    fields = {name: getattr(asked, name) for name in event.__struct_fields__}
    with pytest.raises(Rejected, match="return-exists"):
        return_goods(asked, bought(line("A", 5)), GoodsReturn().evolve(event(**fields)))


@pytest.mark.anyio
async def test_a_refused_return_stays_refused_under_its_id(store_url: str) -> None:
    """An outcome is kept: later purchases do not turn a refusal that is asked for again (G4)."""
    async with Application(shop, store=store_url) as app:
        for _ in range(2):
            with pytest.raises(Rejected, match=MORE_THAN_BOUGHT):
                await app.execute(goods_return("C1", line("A", 1)), command_id="C1")
            await app.execute(order("1", line("A", 9)), command_id="1")
        summary = await app.query(ImportSummary(), freshness="latest")
    assert summary == Summary(orders=1, returns_accepted=0, returns_rejected=1, customers=1, products=1)


@pytest.mark.anyio
async def test_customers_do_not_return_what_others_bought(store_url: str) -> None:
    """A decision stands on the facts of its own customer."""
    async with Application(shop, store=store_url) as app:
        await app.execute(order("1", line("A", 1), customer="1"))
        with pytest.raises(Rejected, match=MORE_THAN_BOUGHT):
            await app.execute(goods_return("C1", line("A", 1), customer="2"))
        assert (await app.execute(goods_return("C2", line("A", 1), customer="1"))).position == 3


@pytest.mark.anyio
@pytest.mark.parametrize("lines", [(), (line("A", 0),), (line("A", -1),)], ids=["none", "zero", "negative"])
async def test_an_order_without_goods_is_no_message(lines: tuple[OrderLine, ...]) -> None:
    """What is no order by its form never reaches a decision."""
    async with Application(shop, store="memory:") as app:
        with pytest.raises(InvalidMessage):
            await app.execute(order("1", *lines))


@pytest.mark.anyio
async def test_orders_are_shown_with_their_lines(store_url: str) -> None:
    """An order is found by its number, with amounts as exact as they were given."""
    async with Application(shop, store=store_url) as app:
        receipt = await app.execute(order("1", line("A", 2, "1.50"), line("B", 1, "40.0")))
        found = await app.query(OrderDetails(order_id=OrderId("1")), after=receipt)
        assert found is not None
        assert (found.lines, str(found.total)) == ((line("A", 2, "1.50"), line("B", 1, "40.0")), "43.00")
        assert await app.query(OrderDetails(order_id=OrderId("2"))) is None


@pytest.mark.anyio
async def test_a_customers_orders_come_in_pages(store_url: str) -> None:
    """The latest order is first, each order is on one page, and other customers' orders on none."""
    async with Application(shop, store=store_url) as app:
        for day in range(1, 6):
            receipt = await app.execute(order(f"{day}", line("A", day), at=NOON.replace(day=day)))
        receipt = await app.execute(order("6", line("A", 1), customer="other"))
        pages, cursor = list[list[str]](), None
        while True:
            asked = CustomerOrders(customer_id=CustomerId("12345"), limit=2, cursor=cursor)
            page = await app.query(asked, after=receipt)
            pages.append([row.order_id for row in page.items])
            if (cursor := page.next) is None:
                break
    assert pages == [["5", "4"], ["3", "2"], ["1"]]


@pytest.mark.anyio
async def test_products_are_found_by_words(store_url: str) -> None:
    """Every word counts, by its beginning; a sale without description keeps the one before."""
    async with Application(shop, store=store_url) as app:
        await app.execute(order("1", line("A", 1), line("B", 1, description="RED CLOCK")))
        receipt = await app.execute(order("2", line("A", 1, description="")))
        found = await app.query(ProductSearch(text="teap red"), after=receipt)
        assert [(row.sku, row.description) for row in found] == [("A", "RED TEAPOT")]
        assert {row.sku for row in await app.query(ProductSearch(text="red"))} == {"A", "B"}
        assert await app.query(ProductSearch(text="teapot clock")) == []
