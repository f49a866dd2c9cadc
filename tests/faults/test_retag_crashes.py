"""Events that are tagged anew by a process that is killed, and while others append: nothing is lost, nobody misled."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from diptych import Application
from diptych.adapters.connect import connect_event_store
from diptych.application.registration import event_types
from diptych.clock import SystemClock
from diptych.errors import Retagged
from diptych.event_store.history import History
from diptych.event_store.retag import plan_retag
from diptych.testing.contracts.event_store_case import history_of, opened
from tests.faults.retagging import BuyerId, OrderId, Place, shop

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True),
]
EVENTS = 6
COMMANDS_MAX = 10_000
"""Commands of one writer, which is to be refused long before."""
EXIT_WAIT_S = 60.0


def placed(number: int) -> Place:
    return Place(order=OrderId(f"o{number}"), buyer=BuyerId(f"b{number % 2}"))


async def fill(url: str) -> None:
    async with Application(shop(tagged=False), store=url) as app:
        for number in range(EVENTS):
            await app.execute(placed(number))


async def tags(url: str) -> list[set[str]]:
    async with opened(connect_event_store(url, SystemClock())) as store:
        return [set(event.tags) for event in await history_of(store)]


@pytest.mark.parametrize("killed_after", [1, 4])
async def test_a_process_that_is_killed_leaves_work_that_can_be_done_again(store_url: str, killed_after: int) -> None:
    """Each event has its old tags or its new ones, nobody opens or appends; run again, all have the new ones."""
    await fill(store_url)
    async with Application(shop(tagged=False), store=store_url) as before:
        command = [sys.executable, "-m", "tests.faults.retagging", store_url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(1, killed_after + 1):
                assert await asyncio.to_thread(process.stdout.readline) == f"{number}\n"
                if number < killed_after:
                    process.stdin.write("\n")
                    process.stdin.flush()
            process.kill()
            assert await asyncio.to_thread(process.wait, EXIT_WAIT_S) == -9
        with pytest.raises(Retagged):
            await before.execute(placed(7))
    old, new = [{f"order:o{n}"} for n in range(EVENTS)], [{f"order:o{n}", f"buyer:b{n % 2}"} for n in range(EVENTS)]
    assert await tags(store_url) == new[:killed_after] + old[killed_after:]
    for tagged in (False, True):
        with pytest.raises(Retagged):
            await Application(shop(tagged=tagged), store=store_url).open()
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await plan_retag(store, History(event_types([shop(tagged=True)])))
        (done,) = await plan.run((), lambda *_: None)
        assert (plan.resumed, done.events, done.retagged) == (True, EVENTS, EVENTS - killed_after)
    assert await tags(store_url) == new
    async with Application(shop(tagged=True), store=store_url) as app:
        for number in range(EVENTS, EVENTS + 6):
            await app.execute(placed(number))
    buyers = [tag for found in await tags(store_url) for tag in found if tag.startswith("buyer:")]
    assert sorted(buyers) == ["buyer:b0"] * 5 + ["buyer:b1"] * 5


async def test_what_others_append_meanwhile_is_tagged_anew_or_refused(store_url: str) -> None:
    """Writers go on until the work begins, and no further: what they were told is there is there, with its new tags."""
    await fill(store_url)
    told: list[int] = []
    halfway = asyncio.Event()

    async def write(first: int) -> None:
        async with Application(shop(tagged=False), store=store_url) as app:
            for number in range(first, first + COMMANDS_MAX):
                await app.execute(placed(number))
                told.append(number)
                if len(told) > EVENTS:
                    halfway.set()

    writers = [asyncio.create_task(write(first)) for first in (100_000, 200_000)]
    await halfway.wait()
    async with opened(connect_event_store(store_url, SystemClock())) as store:
        plan = await plan_retag(store, History(event_types([shop(tagged=True)])))
        (done,) = await plan.run((), lambda *_: None)
    for writer in writers:
        with pytest.raises(Retagged):
            await writer
    expected = [*range(EVENTS), *sorted(told)]
    found = await tags(store_url)
    assert done.events == done.retagged == len(expected) == len(found)
    assert sorted(map(sorted, found)) == sorted([f"buyer:b{n % 2}", f"order:o{n}"] for n in expected)
