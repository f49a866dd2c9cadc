"""What is wanted at the same moment is done at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from anyio.lowlevel import checkpoint

from diptych.errors import StoreClosed
from diptych.process_managers.together import Together

pytestmark = pytest.mark.anyio


class Doubling:
    """Doubles numbers once it may; 13 fails for all that are doubled with it."""

    def __init__(self) -> None:
        self.batches: list[Sequence[int]] = []
        self.may = asyncio.Event()

    async def __call__(self, numbers: Sequence[int]) -> Sequence[int]:
        self.batches.append(numbers)
        await self.may.wait()
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


async def test_what_gathers_is_done_at_once() -> None:
    """The first is done alone; what comes meanwhile together, up to the limit, each with a result of its own."""
    doubling = Doubling()
    together = Together(doubling, 3, "doubling")
    first = asyncio.create_task(together.result(0))
    while not doubling.batches:
        await checkpoint()
    others = asyncio.gather(*(together.result(number) for number in range(1, 6)))
    await checkpoint()
    assert together.waiting == 5
    doubling.may.set()
    assert (await first, await others) == (0, [2, 4, 6, 8, 10])
    assert doubling.batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_failure_is_heard_by_those_it_is_of() -> None:
    """The next ones are done."""
    doubling = Doubling()
    doubling.may.set()
    together = Together(doubling, 2, "doubling")
    found = await asyncio.gather(*(together.result(number) for number in (13, 1, 2)), return_exceptions=True)
    assert [str(each) for each in found] == ["13", "13", "4"]


async def test_what_was_asked_for_is_done_also_where_nobody_waits_any_more() -> None:
    """`end` waits for it."""
    doubling = Doubling()
    together = Together(doubling, 2, "doubling")
    callers = [asyncio.create_task(together.result(number)) for number in (1, 13, 3)]
    while not doubling.batches:
        await checkpoint()
    for caller in callers:
        caller.cancel()
    doubling.may.set()
    await together.end()
    await together.end()
    assert doubling.batches == [[1, 13], [3]]


async def test_nobody_is_left_waiting_when_the_loop_is_torn_down() -> None:
    """Neither those whose turn it is, nor those behind them."""
    doubling = Doubling()
    together = Together(doubling, 1, "doubling")
    callers = [asyncio.create_task(together.result(number)) for number in (1, 2)]
    while not doubling.batches:
        await checkpoint()
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "doubling"]
    task.cancel()
    for caller in callers:
        with pytest.raises(StoreClosed, match="torn down"):
            await caller


async def test_what_was_said_to_be_undone_is_not_done_later() -> None:
    """Torn down in the middle, it tells whoever waits; what comes afterwards is done alone."""
    begun, go_on, done = asyncio.Event(), asyncio.Event(), list[str]()

    async def do(wanted: Sequence[str]) -> Sequence[str]:
        begun.set()
        await go_on.wait()
        done.extend(wanted)
        return wanted

    together = Together(do, 1, "test")
    calls = [asyncio.create_task(together.result(name)) for name in ("a", "b")]
    await begun.wait()
    (task,) = [found for found in asyncio.all_tasks() if found.get_name() == "test"]
    task.cancel()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert ["is not known" in str(found[0]), "was not done" in str(found[1])] == [True, True]
    assert all(isinstance(each, StoreClosed) for each in found)
    go_on.set()
    assert (await together.result("c"), done, together.waiting) == ("c", ["c"], 0)
