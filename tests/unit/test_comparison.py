"""What a rebuild would change, row by row, before it switches (G6)."""

from __future__ import annotations

import pytest

from diptych import Application, BoundedContext, Command, Event, Identity, Key, Query, ReadModel, replace
from diptych.read_side import comparison
from diptych.read_side.comparison import Comparison, RowDifference

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)]
"""In memory rows are of the code that runs."""


class ItemId(Identity): ...


class Count(Command):
    item: ItemId
    amount: int


class Counted(Event):
    item: ItemId
    amount: int


class StockOf(Query["Stock | None"]):
    item: ItemId


class Stock(ReadModel):
    item: Key[ItemId]
    amount: int = 0


def counting() -> BoundedContext:
    context = BoundedContext("counting")

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(item=command.item, amount=command.amount)

    return context


def plain() -> BoundedContext:
    context = counting()

    @context.projection
    def stock(row: Stock, event: Counted) -> Stock:
        return replace(row, amount=row.amount + event.amount)

    return context


def sold_out_is_gone() -> BoundedContext:
    """The same with another fold: what comes to nothing has no row, and what is odd counts double."""
    context = counting()

    @context.projection
    def stock(row: Stock, event: Counted) -> Stock | None:
        amount = row.amount + event.amount * (1 + event.amount % 2)
        return replace(row, amount=amount) if amount else None

    return context


async def kept_by(context: BoundedContext, url: str, *counts: tuple[str, int]) -> None:
    async with Application(context, store=url) as app:
        for item, amount in counts:
            await app.execute(Count(item=ItemId(item), amount=amount))
        await app.projected()


async def generations(app: Application) -> list[tuple[int, bool]]:
    return [(found.number, found.live) for found in await app.partition().read_store.generations()]


async def test_what_a_changed_fold_does_to_the_rows_is_told(store_url: str) -> None:
    """Added, removed and changed rows by count, with samples by key; the live rows and the build are as before."""
    await kept_by(plain(), store_url, ("a", 2), ("b", 3), ("c", 4), ("c", -4), ("d", 0))
    async with Application(sold_out_is_gone(), store=store_url, projecting=False) as app:
        before = await generations(app)
        found = await app.rebuilds.compare("Stock")
        assert found == Comparison(
            read_model="counting.Stock",
            position=found.position,
            rows=2,
            added=0,
            removed=2,
            changed=1,
            samples=(
                RowDifference({"item": "b", "amount": 3}, {"item": "b", "amount": 6}),
                RowDifference({"item": "c", "amount": 0}, None),
                RowDifference({"item": "d", "amount": 0}, None),
            ),
            blocked=0,
        )
        assert found.position == 5
        assert not found.same
        assert await generations(app) == before


async def test_a_switch_waits_for_a_yes(store_url: str) -> None:
    """A no, or an error, leaves the live rows and drops the build; a yes switches to what was compared."""
    await kept_by(plain(), store_url, ("a", 1))
    async with Application(sold_out_is_gone(), store=store_url, projecting=False) as app:
        before = await generations(app)
        assert await app.rebuilds.rebuild("Stock", approve=lambda found: found.same) is None
        assert await generations(app) == before

        def fail(found: Comparison) -> bool:
            raise KeyError(found.read_model)

        with pytest.raises(KeyError):
            await app.rebuilds.rebuild("Stock", approve=fail)
        assert await generations(app) == before
        assert await app.rebuilds.rebuild("Stock", approve=lambda found: found.changed == 1) == 1
        assert await app.query(StockOf(item=ItemId("a"))) == Stock(item=ItemId("a"), amount=2)


async def test_samples_are_few_and_pages_many(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are counted, however many; a few are shown."""
    monkeypatch.setattr(comparison, "COMPARE_PAGE_ROWS", 2)
    await kept_by(plain(), store_url, *((f"i{number}", number) for number in range(9)))
    async with Application(sold_out_is_gone(), store=store_url, projecting=False) as app:
        monkeypatch.setattr(comparison, "SAMPLES_MAX", 1)
        found = await app.rebuilds.compare("Stock")
        assert (found.rows, found.added, found.removed, found.changed) == (8, 0, 1, 4)
        assert [sample.after and sample.after["item"] for sample in found.samples] == [None, "i1"]


async def test_a_read_model_that_is_new_is_all_added(store_url: str) -> None:
    """There are no rows to compare with."""
    await kept_by(counting(), store_url, ("a", 1), ("b", 0))
    async with Application(plain(), store=store_url, projecting=False) as app:
        found = await app.rebuilds.compare("Stock")
        assert (found.rows, found.added, found.removed, found.changed) == (2, 2, 0, 0)


async def test_columns_and_keys_may_change(store_url: str) -> None:
    """Columns that come or go are a change of every row; with another key every row is another one."""
    await kept_by(plain(), store_url, ("a", 1), ("b", 2))
    wider, other = counting(), counting()

    def with_unit() -> type[ReadModel]:
        class Stock(ReadModel):
            item: Key[ItemId]
            amount: int = 0
            unit: str = "kg"

        @wider.projection
        def stock(row: Stock, event: Counted) -> Stock:
            return replace(row, amount=row.amount + event.amount)

        return Stock

    def by_amount() -> type[ReadModel]:
        class Stock(ReadModel):
            amount: Key[int]
            items: int = 0

        @other.projection
        def stock(row: Stock, event: Counted) -> Stock:
            return replace(row, items=row.items + 1)

        return Stock

    with_unit()
    by_amount()
    async with Application(wider, store=store_url, projecting=False) as app:
        found = await app.rebuilds.compare("Stock")
        assert (found.rows, found.changed) == (2, 2)
        assert found.samples[0] == RowDifference({"item": "a", "amount": 1}, {"item": "a", "amount": 1, "unit": "kg"})
    async with Application(other, store=store_url, projecting=False) as app:
        found = await app.rebuilds.compare("Stock")
        assert (found.rows, found.added, found.removed, found.changed) == (2, 2, 2, 0)


async def test_rows_are_compared_where_both_are_while_the_live_ones_go_on(store_url: str) -> None:
    """Another process projects meanwhile: what is compared is of one position, and nothing differs."""
    async with (
        Application(plain(), store=store_url) as working,
        Application(plain(), store=store_url, projecting=False) as looking,
    ):
        for number in range(20):
            await working.execute(Count(item=ItemId(f"i{number}"), amount=1))
        for number in range(3):
            receipt = await working.execute(Count(item=ItemId("more"), amount=number))
            found = await looking.rebuilds.compare("Stock")
            assert found.same
            assert found.position <= receipt.position


async def test_a_comparison_leaves_the_builds_of_others_alone(store_url: str) -> None:
    """Whoever only looks takes away nothing that another process is building."""
    await kept_by(plain(), store_url, ("a", 1))
    async with (
        Application(plain(), store=store_url) as server,
        Application(sold_out_is_gone(), store=store_url, projecting=False) as other,
    ):
        projector = server.partition().projector
        (made,) = await projector.generations.create(projector.slices[0].projection, live=False, anew=True, slices=1)
        assert not (await other.partition().rebuilds.compare("Stock")).same
        assert made.number in {found.number for found in await server.partition().read_store.generations()}


async def test_what_has_become_live_while_it_was_compared_is_not_dropped(store_url: str) -> None:
    """A server that begins with the new code goes on with the build that is there."""
    await kept_by(plain(), store_url, ("a", 1))
    async with Application(sold_out_is_gone(), store=store_url, projecting=False) as asking:
        rebuilds = asking.partition().stores[0].rebuilds
        compared = await rebuilds._compared(rebuilds._projection("Stock"), None)  # pyright: ignore[reportPrivateUsage]
        async with Application(sold_out_is_gone(), store=store_url) as server:
            await server.projected()
            await rebuilds._drop(compared[1])  # pyright: ignore[reportPrivateUsage]
            receipt = await server.execute(Count(item=ItemId("a"), amount=2))
            assert await server.query(StockOf(item=ItemId("a")), after=receipt) == Stock(item=ItemId("a"), amount=4)


async def test_nobody_goes_on_with_a_build_that_is_only_compared(store_url: str) -> None:
    """A server that begins with the new code while it is built makes its own, which stays when that one is dropped."""
    await kept_by(plain(), store_url, ("a", 1), ("b", 2))
    async with Application(sold_out_is_gone(), store=store_url, projecting=False) as asking:
        rebuilds = asking.partition().stores[0].rebuilds
        projection = rebuilds._projection("Stock")  # pyright: ignore[reportPrivateUsage]
        comparison, build = await rebuilds._compared(projection, None, on_trial=True)  # pyright: ignore[reportPrivateUsage]
        assert comparison.changed == 1
        async with Application(sold_out_is_gone(), store=store_url) as server:
            assert build[0].generation.number not in {
                slice.generation.number for slice in server.partition().projector.slices
            }
            await rebuilds._drop(build)  # pyright: ignore[reportPrivateUsage]
            await server.projected()
            receipt = await server.execute(Count(item=ItemId("a"), amount=2))
            assert await server.query(StockOf(item=ItemId("a")), after=receipt) == Stock(item=ItemId("a"), amount=4)
