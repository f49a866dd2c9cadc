"""What reviews have found in commands in time: one that is slow holds up no other, and being refused costs little."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from diptych import Application
from diptych.errors import Overloaded
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import START
from diptych.process_managers import scheduler, sender
from diptych.process_managers.process_store import InstanceCount
from tests.reminders import Gate, NoteId, Remind, Slow, reminders

pytestmark = pytest.mark.anyio

ONE, TWO = NoteId("one"), NoteId("two")
FOR_EVER_S, PATIENCE_S = 600.0, 30.0


def application(store: str, gate: Gate | None = None, **settings: Any) -> Application:
    return Application(reminders(), store=store, services={Gate: gate or Gate()}, **settings)


async def first_event(app: Application) -> str:
    """What the first event is about, once there is one."""
    async with asyncio.timeout(PATIENCE_S):
        await app.partition().store.wait_for_events(START, PATIENCE_S)
        return await anext(found.tags[0].partition(":")[2] async for found in app.events(ALL_EVENTS))


async def test_what_others_accept_does_not_wait_for_what_is_under_way(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker goes on looking for it while a command of before takes its time."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    monkeypatch.setattr(sender, "DUE_WAIT_S", FOR_EVER_S)
    gate = Gate()
    async with application(store_url, gate) as worker, application(store_url, gate, projecting=False) as front:
        await worker.schedule(Slow(note=ONE))
        await gate.arrived.wait()
        await front.schedule(Remind(note=TWO))
        assert await first_event(worker) == "two"
        gate.open.set()


async def test_what_is_due_does_not_wait_for_what_is_under_way(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks again when the next one is due, and not when the slow one is done."""
    monkeypatch.setattr(sender, "DUE_WAIT_S", FOR_EVER_S)
    monkeypatch.setattr(scheduler.ScheduledSender, "look_s", FOR_EVER_S)
    gate = Gate()
    async with application(store_url, gate) as app:
        await app.schedule(Slow(note=ONE))
        await gate.arrived.wait()
        await app.schedule(Remind(note=TWO), after=timedelta(milliseconds=200))
        assert await first_event(app) == "two"
        gate.open.set()


async def test_whoever_is_refused_for_want_of_room_has_nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is counted now and then, also while it is full; what is cancelled here makes room at once."""
    monkeypatch.setattr(scheduler, "SCHEDULED_MAX", 2)
    monkeypatch.setattr(scheduler, "FULL_COUNT_AGE_S", FOR_EVER_S)
    async with application("memory:") as app:
        store, counts = app.partition().scheduled._store, 0
        count = store.count

        async def counted(process: str) -> InstanceCount:
            nonlocal counts
            counts += 1
            return await count(process)

        monkeypatch.setattr(store, "count", counted)
        for command_id in ("a", "b"):
            await app.schedule(Remind(note=ONE), after=timedelta(hours=1), command_id=command_id)
        for _ in range(5):
            with pytest.raises(Overloaded):
                await app.schedule(Remind(note=ONE))
        await app.scheduled.cancel("a")
        await app.schedule(Remind(note=TWO), after=timedelta(hours=1))
        with pytest.raises(Overloaded):
            await app.schedule(Remind(note=ONE))
        assert counts == 1
