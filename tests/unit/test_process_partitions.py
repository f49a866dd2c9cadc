"""Processes of one partition, and commands that belong to another one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from diptych import Application, BoundedContext, Command, Event, Identity, ProcessManager, Reaction
from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.process_managers import sender
from diptych.testing import ManualClock
from tests.tenants import Places
from tests.transferring import TransferId

pytestmark = pytest.mark.anyio

ONE, TWO = TransferId("t1"), TransferId("t2")


class TenantId(Identity): ...


class Shipped(Event):
    tenant: TenantId
    order: TransferId
    to: str


class Booked(Event):
    tenant: TenantId
    order: TransferId


class Ship(Command):
    tenant: TenantId
    order: TransferId
    to: str


class Book(Command):
    tenant: TenantId
    order: TransferId


class Shipping(ProcessManager[TransferId]):
    order: TransferId

    def react(self, event: Shipped) -> Reaction[Shipping]:
        return Reaction(self, [Book(tenant=TenantId(event.to), order=self.order)])


def tenants() -> BoundedContext:
    context = BoundedContext("shipping")
    context.process_manager(Shipping)

    @context.command_handler
    def ship(command: Ship) -> Shipped:
        return Shipped(tenant=command.tenant, order=command.order, to=command.to)

    @context.command_handler
    def book(command: Book) -> Booked:
        return Booked(tenant=command.tenant, order=command.order)

    return context


async def types_in(app: Application, partition: str) -> list[str]:
    return [recorded.type.partition(".")[2] async for recorded in app.partition(partition).events(ALL_EVENTS)]


async def test_g10_a_process_sends_to_another_tenant_once(places: Places) -> None:
    """Where there is one; where there is none, it is listed with that reason, and nothing happens anywhere."""
    clock = ManualClock()
    app = Application(tenants(), partition_by=TenantId, store=places("a", "b"), clock=clock)
    async with app:
        await app.execute(Ship(tenant=TenantId("a"), order=ONE, to="b"))
        await app.execute(Ship(tenant=TenantId("a"), order=TWO, to="nowhere"))
        await app.partition("a").process_worker.at_rest()
        assert await types_in(app, "a") == ["Shipped", "Shipped"]
        assert await types_in(app, "b") == ["Booked"]
        assert await app.partition("b").processes.list(ended=True) == []
        (waiting,) = (await app.partition("a").processes.show("Shipping", TWO)).commands
        assert "there is no partition 'nowhere'" in waiting.failure


async def test_g10_what_waits_for_a_partition_that_is_not_open_yet_is_sent_once_it_is(
    kept_places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions open one after the other, and the first has something for the last."""
    clock, stores = ManualClock(), kept_places("a", "b")
    app = Application(tenants(), partition_by=TenantId, store=stores, clock=clock)
    async with app:
        worker = app.partition("a").process_worker

        async def refuse(*_: object) -> object:
            raise StoreUnavailable("not now")

        monkeypatch.setattr(worker._runners[0].sender, "_execute", refuse)
        await app.execute(Ship(tenant=TenantId("a"), order=ONE, to="b"))
        await worker.at_rest()
    clock.advance(sender.SEND_BACKOFF_MAX_S)
    again = Application(tenants(), partition_by=TenantId, store=stores, clock=clock)
    b_open = again._partition
    tried = asyncio.Event()

    def held_up(name: str, *wanted: Any) -> Any:
        found = b_open(name, *wanted)
        if name == "a":
            failed = found.process_worker._runners[0].sender._failed

            def note(item: Any, error: Exception) -> Any:
                tried.set()
                return failed(item, error)

            monkeypatch.setattr(found.process_worker._runners[0].sender, "_failed", note)
            return found
        opening = found.store.open

        async def late() -> None:
            await tried.wait()
            await opening()

        monkeypatch.setattr(found.store, "open", late)
        return found

    monkeypatch.setattr(again, "_partition", held_up)
    async with again:
        clock.advance(sender.SEND_BACKOFF_MAX_S)
        again.partition("a").process_worker._runners[0].sender.wake()
        await again.partition("a").process_worker.at_rest()
        assert await types_in(again, "b") == ["Booked"]
        (found,) = (await again.partition("a").status()).processes
        assert (found.count.waiting, found.count.dead) == (0, 0)


async def test_a_command_that_named_no_partition_is_edited_to_name_one(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that took effect after all, in whichever partition it belongs to, is refused."""
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 1)
    app = Application(tenants(), partition_by=TenantId, store=places("a", "b"), clock=ManualClock())
    async with app:
        here = app.partition("a")
        for order in (ONE, TWO):
            await app.execute(Ship(tenant=TenantId("a"), order=order, to="nowhere"))
        await here.process_worker.at_rest()
        first, second = (await here.parked.list(kind="command")).items
        with pytest.raises(ConfigurationError, match="say which partition"):
            _ = app.parked
        for item in (first, second):
            await here.parked.retry(item.id, actor="ann", reason="it moved", edited={"tenant": "b"})
        await here.process_worker.at_rest()
        assert await types_in(app, "b") == ["Booked", "Booked"]
        assert (await here.parked.list()).items == []


async def test_what_took_effect_in_another_partition_is_not_edited(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome is looked for where the command belongs."""
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 1)
    app = Application(tenants(), partition_by=TenantId, store=places("a", "b"), clock=ManualClock())
    async with app:
        here = app.partition("a")

        async def fail(*_: object) -> object:
            raise ArithmeticError("no")

        with monkeypatch.context() as patched:
            patched.setattr(here.process_worker._runners[0].sender, "_execute", fail)
            await app.execute(Ship(tenant=TenantId("a"), order=ONE, to="b"))
            await here.process_worker.at_rest()
        (item,) = (await here.parked.list(kind="command")).items
        (dead,) = (await here.processes.show("Shipping", ONE)).commands
        await app.execute(Book(tenant=TenantId("b"), order=ONE), command_id=dead.id)
        with pytest.raises(ConfigurationError, match="has taken effect after all"):
            await here.parked.retry(item.id, actor="ann", reason="it moved", edited={"order": "t9"})
