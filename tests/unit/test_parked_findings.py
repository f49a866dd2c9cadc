"""What reviews have found in how failures are dealt with: each decision is about the one event that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from diptych import Application, BoundedContext, Command, Event, EventContext, Identity, Key, Query, ReadModel, replace
from diptych.errors import ConfigurationError
from diptych.read_side import subscriber
from diptych.read_side.read_store import SliceWrite
from tests.parking import ACTOR, REASON, parked

pytestmark = pytest.mark.anyio


class JobId(Identity, tag="job"): ...


class Work(Command):
    job: JobId
    n: int


class Worked(Event):
    job: JobId
    n: int


class Tally(ReadModel):
    job: Key[JobId]
    total: int = 0


class TallyOf(Query[Tally | None]):
    job: JobId


ONE = JobId("one")


def works(fails: set[int]) -> BoundedContext:
    context = BoundedContext("works")

    @context.command_handler
    def work(command: Work) -> Worked:
        return Worked(job=command.job, n=command.n)

    @context.projection
    def tally(row: Tally, event: Worked) -> Tally:
        if event.n in fails:
            raise LookupError(f"nobody folds {event.n}")
        return replace(row, total=row.total + event.n)

    return context


async def test_g9_of_several_who_discard_at_once_only_one_event_is_left_out(store_url: str) -> None:
    """Whoever decided about the event that is left out already is told; what blocks the key now is looked at first."""
    async with Application(works({5, 6}), store=store_url) as app:
        for n in (5, 6, 7):
            await app.execute(Work(job=ONE, n=n))
        await app.projected()
        (item,) = await parked(app)
        discards = [app.parked.discard(item.id, actor=ACTOR, reason=REASON) for _ in range(3)]
        found = await asyncio.gather(*discards, return_exceptions=True)
        assert sorted(isinstance(each, ConfigurationError) for each in found) == [False, True, True]
        (behind,) = await parked(app)
        assert (behind.position, [each.position for each in (await app.parked.discarded()).items]) == (2, [1])


async def test_what_fails_for_the_first_time_is_not_listed_for_what_failed_before_it(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber's failures are counted for each event, also behind one that was discarded."""
    monkeypatch.setattr(subscriber, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(subscriber, "BACKOFF_MAX_S", 0.01)
    context, fails, listed, taken = works(set()), {1: 1_000_000, 2: 1}, asyncio.Event(), asyncio.Event()

    @context.subscriber
    async def tell(events: Sequence[tuple[Worked, EventContext]]) -> None:
        for event, _ in events:
            if fails.get(event.n, 0):
                fails[event.n] -= 1
                raise ValueError("no such address")
            taken.set()

    async with Application(context, store=store_url) as app:
        store, noted = app.partition().read_store, list[int]()
        write = store.write

        async def seen(writes: Sequence[SliceWrite]) -> Any:
            result = await write(writes)
            noted.extend(blocked.position for each in writes for blocked in each.block)
            if noted:
                listed.set()
            return result

        monkeypatch.setattr(store, "write", seen)
        for n in (1, 2):
            await app.execute(Work(job=ONE, n=n))
        await listed.wait()
        (item,) = await parked(app)
        await app.parked.discard(item.id, actor=ACTOR, reason=REASON)
        await taken.wait()
        assert (set(noted), fails[2]) == ({1}, 0)
