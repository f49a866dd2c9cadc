"""A projection that is split into slices, in applications: who folds what, and what a query waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    Event,
    Identity,
    Key,
    NotFresh,
    Query,
    ReadModel,
    replace,
)
from diptych.application.partition import Partition
from diptych.read_side import leases, projector
from diptych.read_side.partitions import slice_of
from diptych.read_side.read_model import key_text
from diptych.read_side.read_store import SliceWrite, Written
from diptych.read_side.reader import Reader
from diptych.read_side.rebuild_policy import RebuildPolicy, Throttle
from tests.parking import discard, parked

pytestmark = pytest.mark.anyio

WAIT_S = 20.0
SKUS = 12


class Sku(Identity): ...


class Count(Command):
    sku: Sku


class Counted(Event):
    sku: Sku


class Stock(ReadModel):
    sku: Key[Sku]
    events: int = 0


class StockOf(Query[Stock | None]):
    sku: Sku


class Stocks(Query[list[Stock]]):
    skus: tuple[Sku, ...] = ()


def warehouse(folded: list[Sku] | None = None, partitions: int = 2) -> BoundedContext:
    """One read model in slices; tells what is folded."""
    context = BoundedContext("warehouse")

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(sku=command.sku)

    @context.projection(partitions=partitions)
    def stock(row: Stock, event: Counted) -> Stock:
        if event.sku == "poisoned":
            raise ValueError("poisoned")
        if folded is not None:
            folded.append(event.sku)
        return replace(row, events=row.events + 1)

    @context.query_handler
    async def stocks(query: Stocks, read: Reader) -> list[Stock]:
        if query.skus:
            return list((await read.get_many(Stock, query.skus)).values())
        return await read.find(Stock)

    return context


def skus_of(number: int, slices: int = 2) -> Iterator[Sku]:
    """Those that belong to a slice."""
    return (sku for n in range(1_000) if slice_of(key_text((sku := Sku(f"s{n}"),)), slices) == number)


on_disk = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)


@on_disk
async def test_processes_share_one_projection(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folds the keys of the slices that it holds, each event once, and answers for all of them."""
    monkeypatch.setattr(leases, "LEASE_RENEW_S", 0.05)
    monkeypatch.setattr(leases, "LEASE_LOOK_S", 0.0)
    folded: list[list[Sku]] = [[], []]
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as closing:
        one, two = [
            await closing.enter_async_context(Application(warehouse(each, partitions=4), store=store_url))
            for each in folded
        ]
        if not store_url.startswith("sqlite"):  # there, whoever comes first holds all, until it ends
            await shared(one.partition(), two.partition())
        receipts = [await app.execute(Count(sku=Sku(f"s{n}"))) for app in (one, two) for n in range(SKUS)]
        for app in (one, two):
            rows = await app.query(Stocks(), after=receipts[-1], wait_s=WAIT_S)
            assert {row.sku: row.events for row in rows} == {Sku(f"s{n}"): 2 for n in range(SKUS)}
            (status,) = (await app.status()).projections
            assert (status.slices, status.lag_events, status.live) == (4, 0, True)
        assert sorted(folded[0] + folded[1]) == sorted([Sku(f"s{n}") for n in range(SKUS)] * 2)
        assert not set(folded[0]) & set(folded[1])
        assert bool(folded[1]) == (not store_url.startswith("sqlite"))


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
async def test_processes_share_a_build(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built beside is built in parallel: each folds its slices, each event once, and they switch as one."""
    monkeypatch.setattr(leases, "LEASE_RENEW_S", 0.05)
    monkeypatch.setattr(leases, "LEASE_LOOK_S", 0.0)
    monkeypatch.setattr(projector, "IDLE_WAIT_S", 0.02)
    monkeypatch.setattr(projector, "BATCH_EVENTS_MAX", 1)
    monkeypatch.setattr(projector, "BATCH_EVENTS_MIN", 1)
    folded: list[list[Sku]] = [[], []]
    held_up = RebuildPolicy(events_per_s=0.001)
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as closing:
        async with Application(warehouse(), store=store_url, projecting=False) as app:
            receipts = [await app.execute(Count(sku=Sku(f"s{n}"))) for n in range(SKUS)]
        one, two = [
            await closing.enter_async_context(
                Application(warehouse(each, partitions=4), store=store_url, rebuilding=held_up)
            )
            for each in folded
        ]
        await shared(one.partition(), two.partition())
        assert not (await one.status()).projections[0].live
        for app in (one, two):
            app.partition().projector._throttle = Throttle(None)
        rows = await two.query(Stocks(), after=receipts[-1], wait_s=WAIT_S)
        assert sorted(row.sku for row in rows) == sorted(Sku(f"s{n}") for n in range(SKUS))
        assert sorted(folded[0] + folded[1]) == sorted(Sku(f"s{n}") for n in range(SKUS))
        assert min(map(len, folded)) > 0


async def shared(*processes: Partition) -> None:
    """Wait until all hold as many slices."""
    while (
        len({len(process.leases._leased.epochs.keys() - process.leases._leased.surplus) for process in processes}) > 1
    ):
        await asyncio.wait(
            [
                asyncio.create_task(process.leases.wait(process.leases.version, asyncio.Event().wait))
                for process in processes
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )


@on_disk
async def test_a_token_waits_for_the_slices_that_its_query_needs(store_url: str) -> None:
    """Keys of a slice that is there are answered, whatever the others lack; what needs all of them is not."""
    (there, *_), (missing, *_) = skus_of(0), skus_of(1)
    async with asyncio.timeout(WAIT_S), Application(warehouse(), store=store_url) as app:
        await app.execute(Count(sku=there))
        await app.projected()
    async with asyncio.timeout(WAIT_S), Application(warehouse(), store=store_url, projecting=False) as app:
        receipt = await app.execute(Count(sku=missing))
        running = app.partition()
        first, second = await running.read_store.generations()
        head = await running.store.head()
        (result,) = await running.read_store.write([SliceWrite(first, head)])
        assert isinstance(result, Written)
        assert second.checkpoint.position < head.position
        assert await app.query(StockOf(sku=there), after=receipt) == Stock(sku=there, events=1)
        answer = await app.answer(Stocks(skus=(there,)), after=receipt)
        assert answer.shows[0].low == head.position
        queries: list[Query[Any]] = [StockOf(sku=missing), Stocks(skus=(there, missing)), Stocks()]
        for query in queries:
            with pytest.raises(NotFresh) as missed:
                await app.query(query, after=receipt, wait_s=0.0)
            assert missed.value.reached == second.checkpoint.position
        eventual = await app.answer(Stocks())
        assert (eventual.shows[0].low, eventual.shows[0].high) == (second.checkpoint.position, head)


@on_disk
async def test_another_number_of_slices_takes_effect_when_it_is_opened(store_url: str) -> None:
    """Without a rebuild: the generation is the same one, no event is folded again, and none is left out."""
    for times, partitions in enumerate((1, 4, 3, 1), 1):
        folded: list[Sku] = []
        async with asyncio.timeout(WAIT_S), Application(warehouse(folded, partitions), store=store_url) as app:
            (status,) = (await app.status()).projections
            assert status.slices == partitions
            receipts = [await app.execute(Count(sku=Sku(f"s{n}"))) for n in range(SKUS)]
            rows = await app.query(Stocks(), after=receipts[-1], wait_s=WAIT_S)
            assert [row.events for row in rows] == [times] * SKUS
            assert len(folded) == SKUS
            assert {slice.number for slice in await app.partition().read_store.generations()} == {1}
            assert (await app.rebuilds.compare("Stock")).same


@on_disk
async def test_a_rebuild_of_slices_is_switched_to_as_one(store_url: str) -> None:
    """The new generation has as many, shows the same rows, and goes on."""
    at_once = RebuildPolicy(keep_s=0)
    app = Application(warehouse(partitions=3), store=store_url, rebuilding=at_once)
    async with asyncio.timeout(WAIT_S), app:
        for n in range(SKUS):
            await app.execute(Count(sku=Sku(f"s{n}")))
        await app.rebuilds.rebuild("Stock")
        receipt = await app.execute(Count(sku=Sku("s0")))
        rows = await app.query(Stocks(), after=receipt, wait_s=WAIT_S)
        assert sum(row.events for row in rows) == SKUS + 1
        assert [(slice.number, slice.slice) for slice in await app.partition().read_store.generations()] == [
            (2, 0),
            (2, 1),
            (2, 2),
        ]


@on_disk
async def test_g9_a_blocked_key_is_dealt_with_in_its_slice(store_url: str) -> None:
    """It blocks itself alone, is listed once, and is discarded wherever its slice is."""
    async with asyncio.timeout(WAIT_S), Application(warehouse(partitions=5), store=store_url) as app:
        await app.execute(Count(sku=Sku("poisoned")))
        receipt = await app.execute(Count(sku=Sku("s1")))
        assert await app.query(StockOf(sku=Sku("s1")), after=receipt) == Stock(sku=Sku("s1"), events=1)
        (blocked,) = await parked(app)
        assert (blocked.key, blocked.position) == ('["poisoned"]', 1)
        assert await discard(app, blocked.key) is None
        assert await parked(app) == []


@pytest.mark.parametrize("partitions", [0, -1, 257, 1.5, "2"])
async def test_a_number_that_cannot_be_is_refused(partitions: int) -> None:
    """With its bounds, when the application is opened."""
    with pytest.raises(ConfigurationError, match=r"partitions= is 1 to 256 \(SLICES_MAX\)"):
        async with Application(warehouse(partitions=partitions), store="memory:"):
            pass


async def test_two_functions_of_one_read_model_agree() -> None:
    """One of them may say the number, or both the same."""
    context = warehouse(partitions=2)

    class Removed(Event):
        sku: Sku

    @context.projection(partitions=3)
    def removed(row: Stock | None, event: Removed) -> Stock | None:
        return None

    with pytest.raises(ConfigurationError, match=r"partitions=3, .*stock partitions=2"):
        async with Application(context, store="memory:"):
            pass
