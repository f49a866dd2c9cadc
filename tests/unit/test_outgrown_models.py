"""Newer code beside older code whose models fold fewer events: what the older one still decides, and what it does not.

Two applications on one store. That the newer one's events are not folded by the older one is found where its commits
are judged: what was cached, kept, or decided just before makes no difference (rule 22).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from diptych import Application, BoundedContext, Command, CommandContext, Conflict, DecisionModel, Receipt, Rejected
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.errors import ConfigurationError, NewerHistory
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import EventStore
from diptych.event_store.model_unions import NONE_KEPT, ModelUnion, OutgrownQuery
from diptych.process_managers import sender
from diptych.testing.contracts.event_store_case import SettableClock, let_others_run
from diptych.write_side.command_bus import NextCommand
from diptych.write_side.known_models import CodedModels, KnownModels
from tests.outgrown_orders import (
    Box,
    BoxByCarrier,
    Carrier,
    Freeze,
    FreezeAndPack,
    Frozen,
    Kept,
    OrderId,
    Pack,
    Packed,
    Ship,
    ShipBooked,
    ShipByCarrier,
    Shipped,
    Start,
    Together,
    expect_newer,
    newer,
    older,
    together,
)
from tests.postgres_server import in_thread, new_stores

pytestmark = pytest.mark.anyio

A, B = OrderId("a"), OrderId("b")
KEPT = [Kept(), Kept(state_stored=True), Kept(snapshot_every=1)]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that a second application finds."""
    return in_thread(new_stores()) if request.param == "postgres" else f"sqlite:{tmp_path}/events.db"


def opened(context: BoundedContext, url: str) -> Application:
    return Application(context, store=url, services={Carrier: Carrier()}, projecting=False)


# ── what is decided, and what is not ─────────────────────────────────────────


@pytest.mark.parametrize("kept", KEPT, ids=["events", "state-stored", "snapshots"])
async def test_g3_older_code_decides_nothing_where_there_is_what_only_newer_code_folds(url: str, kept: Kept) -> None:
    """Neither what it had in its cache nor what is kept helps it; it is worth a retry, and nothing is done."""
    async with together(url, kept) as found:
        for order in (A, B):
            await found.old.execute(Ship(order=order))
        await found.beside(Freeze(order=A))
        await expect_newer(found.old.execute(Ship(order=A), command_id="mine"), 3)
        await expect_newer(found.old.execute(Ship(order=A)), 3)
        assert (await found.old.execute(Ship(order=B))).position == 4
        assert await found.old.partition().store.outcome("mine") is None
    async with opened(newer(kept), url) as new:
        with pytest.raises(Rejected, match="frozen"):
            await new.execute(Ship(order=A), command_id="mine")


async def test_what_is_decided_on_other_models_goes_on(url: str) -> None:
    """For the same order, too: those fold what newer code's fold."""
    async with together(url) as found:
        await found.beside(Freeze(order=A))
        for command in (Pack(order=A), Box(order=A), Freeze(order=A), Pack(order=B)):
            await found.old.execute(command)


async def test_a_newer_model_alone_changes_nothing(url: str) -> None:
    """Until there is an event that older code does not fold, it decides as before: nothing is lacking."""
    async with together(url) as found:
        await found.old.execute(Ship(order=A))
        await found.beside(Ship(order=A))
        assert (await found.old.execute(Ship(order=A))).position == 3


async def test_a_dry_run_says_the_same(url: str) -> None:
    """Also where the newer code comes between."""
    async with together(url) as found:
        assert await found.old.can(Ship(order=A))
        await found.beside(Freeze(order=A))
        await expect_newer(found.old.can(Ship(order=A)), 1)
        await expect_newer(found.old.can(ShipBooked(order=A)), 1)
        assert await found.old.can(Ship(order=B))


async def test_what_is_based_on_an_answer_says_the_same(url: str) -> None:
    """Older code could not tell its caller what has changed."""
    async with together(url) as found:
        shown = await found.old.execute(Ship(order=A))
        await found.beside(Freeze(order=A))
        await found.old.execute(Box(order=B))
        await expect_newer(found.old.execute(Ship(order=A), based_on=shown), 2)


async def test_own_tables_are_decided_likewise(url: str) -> None:
    """Their decision models are guarded as all are."""
    async with together(url) as found:
        await found.old.execute(ShipBooked(order=A))
        await found.beside(Freeze(order=A))
        await expect_newer(found.old.execute(ShipBooked(order=A)), 2)
        assert (await found.old.execute(ShipBooked(order=B))).position == 3


async def test_a_command_that_is_due_waits_for_newer_code(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, as often as it takes, and never parked; the newer code executes it."""
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 1)
    monkeypatch.setattr(sender, "SEND_BACKOFF_FIRST_S", 0.0)
    tried, often = count(), asyncio.Event()

    async def counting(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if not context.dry_run and next(tried) == 3:
            often.set()
        return await proceed(command, context)

    async with opened(newer(), url) as new:
        await new.execute(Freeze(order=A))
    services = {Carrier: Carrier()}
    async with Application(older(), store=url, services=services, command_middleware=[counting]) as old:
        await old.schedule(Ship(order=A), command_id="due")
        await often.wait()
        assert (await old.parked.list()).items == []
    async with Application(newer(), store=url, services=services) as new:
        await new.partition().process_worker.at_rest()
        found = await new.scheduled.status("due")
        assert found is not None
        assert found.state == "rejected"


# ── between deciding and appending ───────────────────────────────────────────


def just_before(
    store: EventStore, method: str, monkeypatch: pytest.MonkeyPatch, found: Together, *commands: Any
) -> None:
    """Newer code comes once, when the older process has decided and begins to append."""
    original, comes = getattr(store, method), [found]

    async def overtaken(*arguments: Any, **named: Any) -> Any:
        if comes:
            await comes.pop().beside(*commands)
        return await original(*arguments, **named)

    monkeypatch.setattr(store, method, overtaken)


@pytest.mark.parametrize("kept", KEPT, ids=["events", "state-stored", "snapshots"])
@pytest.mark.parametrize(("command", "method"), [(Ship, "append"), (ShipBooked, "transact")])
async def test_g3_newer_code_may_come_between_deciding_and_appending(
    url: str, kept: Kept, command: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No commit that was decided without the event comes behind it."""
    async with together(url, kept) as found:
        await found.old.execute(Ship(order=A))
        just_before(found.old.partition().store, method, monkeypatch, found, Freeze(order=A))
        await expect_newer(found.old.execute(command(order=A)), 2)
        assert (await found.old.partition().store.head()).position == 2


@pytest.mark.parametrize(("command", "method"), [(Ship, "append"), (ShipBooked, "transact"), (Pack, "append")])
async def test_what_lacks_nothing_is_decided_again(
    url: str, command: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer code came, and no event of its own: nobody hears of it."""
    async with together(url) as found:
        just_before(found.old.partition().store, method, monkeypatch, found)
        assert (await found.old.execute(command(order=A))).position == 1


async def test_all_of_a_batch_are_decided_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on its own: what lacks something says so, the others are appended, once."""
    async with together(url) as found:
        just_before(found.old.partition().store, "append", monkeypatch, found, Freeze(order=A))
        commands = [Ship(order=A), Ship(order=B), Pack(order=A), Box(order=A), Ship(order=B)]
        answers = await asyncio.gather(*map(found.old.execute, commands), return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == ["NewerHistory", *["Receipt"] * 4]
        assert (await found.old.partition().store.head()).position == 5


async def test_a_handler_that_is_not_idempotent_is_not_run_twice(url: str) -> None:
    """Newer code comes while it runs. Where it lacks nothing the same decision is sent again."""
    async with together(url) as found:
        found.carrier.called = found.beside
        await found.old.execute(ShipByCarrier(order=A))
        assert found.carrier.calls == 1


async def test_a_handler_that_is_not_idempotent_has_lost_to_what_came_meanwhile(url: str) -> None:
    """As it does to any event that its model folds; sent again, it is not run any more."""
    async with together(url) as found:
        found.carrier.called = lambda: found.beside(Freeze(order=B))
        with pytest.raises(Conflict):
            await found.old.execute(ShipByCarrier(order=B))
        await expect_newer(found.old.execute(ShipByCarrier(order=B)), 1)
        assert found.carrier.calls == 1
        found.carrier.called = None
        await found.old.execute(ShipByCarrier(order=A))


@pytest.mark.parametrize("command", [ShipByCarrier, BoxByCarrier])
async def test_a_handler_that_is_not_idempotent_is_not_believed_either(url: str, command: Any) -> None:
    """It was run on a state, or is to keep one, that lacks what came before the process learned of it."""
    async with together(url, Kept(state_stored=True)) as found:
        await found.beside(Freeze(order=A))
        await expect_newer(found.old.execute(command(order=A)), 1)
        assert found.carrier.calls == 1


async def test_what_comes_in_the_same_batch_is_not_passed_over(url: str) -> None:
    """The older process appends the event itself: pending, committed, and behind what it has cached."""
    async with together(url) as found:
        await found.beside()
        await found.old.execute(Ship(order=A))
        commands = [Freeze(order=A), Ship(order=A)]
        frozen, shipped = await asyncio.gather(*map(found.old.execute, commands), return_exceptions=True)
        assert not isinstance(frozen, BaseException)
        assert isinstance(shipped, NewerHistory)
        await expect_newer(found.old.execute(Ship(order=A)), 2)


class Gate:
    """Where calls of a store's method that were done wait before they are answered, the first one alone."""

    def __init__(
        self, store: EventStore, method: str, monkeypatch: pytest.MonkeyPatch, *, before: bool = False
    ) -> None:
        self.arrived, self.open = asyncio.Event(), asyncio.Event()
        original, first = getattr(store, method), [True]

        async def held(*arguments: Any, **named: Any) -> Any:
            holds = bool(first) and first.pop()
            if holds and before:
                await self._wait()
            result = await original(*arguments, **named)
            if holds and not before:
                await self._wait()
            return result

        monkeypatch.setattr(store, method, held)

    async def _wait(self) -> None:
        self.arrived.set()
        await self.open.wait()


@pytest.mark.parametrize(
    ("command", "method", "other"), [(Ship, "append", ShipBooked), (ShipBooked, "transact", Ship)], ids=["batch", "own"]
)
async def test_what_was_decided_before_is_not_gone_on_from(
    url: str, command: Any, method: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer comes after the process has learned what newer code folds: its states were folded without."""
    async with together(url) as found:
        gate = Gate(found.old.partition().store, method, monkeypatch)
        shipped = asyncio.create_task(found.old.execute(command(order=A)))
        await gate.arrived.wait()
        await found.beside(Freeze(order=A))
        await found.old.execute(other(order=B))
        gate.open.set()
        assert (await shipped).position == 1
        await expect_newer(found.old.execute(Ship(order=A)), 2)


async def test_a_batch_is_decided_under_one_mark(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decided before the process learned waits behind what was not, for the same transaction."""
    async with together(url) as found:
        carried = asyncio.Event()
        found.carrier.called = carried.wait
        before = asyncio.create_task(found.old.execute(ShipByCarrier(order=A)))
        while not found.carrier.calls:
            await let_others_run()
        await found.beside(Freeze(order=A))
        await found.old.execute(Ship(order=B))
        gate = Gate(found.old.partition().store, "append", monkeypatch, before=True)
        in_flight = asyncio.create_task(found.old.execute(Pack(order=B)))
        await gate.arrived.wait()
        waiting = found.old.partition().commands._group._waiting
        behind = asyncio.create_task(found.old.execute(Ship(order=B)))
        while len(waiting) < 1:
            await let_others_run()
        carried.set()
        while len(waiting) < 2:
            await let_others_run()
        gate.open.set()
        with pytest.raises(Conflict):
            await before
        assert [(await done).position for done in (in_flight, behind)] == [3, 4]


@pytest.mark.parametrize("kept", KEPT, ids=["events", "state-stored", "snapshots"])
async def test_newer_code_may_come_while_a_model_is_folded(
    url: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the process may have learned of it before the fold is done: it is folded again."""
    async with opened(older(kept), url) as first:
        await first.execute(Box(order=A))
    async with together(url, kept) as found:
        gate = Gate(found.old.partition().store, "read", monkeypatch)
        shipped = asyncio.create_task(found.old.execute(Ship(order=A)))
        await gate.arrived.wait()
        await found.beside(Freeze(order=A))
        await found.old.execute(Ship(order=B))
        gate.open.set()
        await expect_newer(shipped, 2)


# ── states that are kept ─────────────────────────────────────────────────────


async def test_no_state_is_kept_that_lacks_an_event(url: str) -> None:
    """Commits of older code would evolve a state-stored model without it, whichever handler decided."""
    async with together(url, Kept(state_stored=True)) as found:
        await found.old.execute(Ship(order=A))
        await found.beside(Freeze(order=A))
        await expect_newer(found.old.execute(Box(order=A)), 2)
        await found.old.execute(Box(order=B))
    async with opened(newer(Kept(state_stored=True)), url) as new:
        with pytest.raises(Rejected, match="frozen"):
            await new.execute(Ship(order=A))


@pytest.mark.parametrize("kept", KEPT[1:], ids=["state-stored", "snapshots"])
async def test_a_state_that_newer_code_has_kept_is_not_gone_on_from(url: str, kept: Kept) -> None:
    """What lies before it is looked for as well, by a process that has cached nothing."""
    async with opened(newer(kept), url) as new:
        await new.execute(Freeze(order=A))
        await new.execute(Box(order=A))
    async with opened(older(kept), url) as old:
        await expect_newer(old.execute(Ship(order=A)), 1)


async def test_a_state_is_not_kept_behind_an_event_of_the_same_commit(url: str) -> None:
    """Older code appends both at once, and its model would be taken to be whole up to the second."""
    async with together(url, Kept(state_stored=True)) as found:
        await found.beside()
        await expect_newer(found.old.execute(FreezeAndPack(order=A)), 1)
        assert (await found.old.partition().store.head()).position == 0


async def test_nor_is_that_of_an_order_that_was_made_up(url: str) -> None:
    """What nobody can have read is known to be new, and still has both events in its first commit."""
    async with together(url, Kept(state_stored=True)) as found:
        await found.beside()
        with pytest.raises(NewerHistory):
            await found.old.execute(Start())
        assert (await found.old.partition().store.head()).position == 0


async def test_older_code_prunes_nothing_that_newer_code_folds_otherwise(url: str) -> None:
    """It would keep the states that it makes of the events, before their data are dropped."""
    async with together(url, Kept(state_stored=True)) as found:
        await found.old.execute(Pack(order=A))
        await found.beside(Freeze(order=B))
        context = older(Kept(state_stored=True))
        context.command_handlers[:] = [
            each for each in context.command_handlers if each.function.__name__ in {"ship", "box", "freeze"}
        ]
        async with opened(context, url) as pruning:
            far = datetime(9000, 1, 1, tzinfo=UTC)
            with pytest.raises(ConfigurationError, match=r"orders\.Order does not fold orders\.Frozen here"):
                await pruning.pruning.prune(Packed, before=far)


# ── which one is the newer ───────────────────────────────────────────────────


async def test_an_older_process_that_starts_again_is_older_still(url: str) -> None:
    """In the middle of a rolling release, however often: it does not replace what newer code folds."""
    async with opened(newer(), url) as new:
        await new.execute(Freeze(order=A))
        for _ in range(2):
            async with opened(older(), url) as old:
                await expect_newer(old.execute(Ship(order=A)), 1)
                await old.execute(Ship(order=B))
            with pytest.raises(Rejected, match="frozen"):
                await new.execute(Ship(order=A))


async def test_code_of_before_that_comes_for_the_first_time_is_not_newer(url: str) -> None:
    """A release that was skipped here is rolled back to: nothing of it is kept, and it is older all the same."""
    async with opened(newer(), url) as new:
        await new.execute(Freeze(order=A))
    async with opened(older(), url) as old:
        await expect_newer(old.execute(Ship(order=A)), 1)
        kept = (await old.partition().store.stored_models()).by_name()["orders.Order"]
    assert kept.types == ("orders.Frozen", "orders.Packed", "orders.Shipped")


async def test_newer_code_that_leaves_an_event_out_says_so(url: str) -> None:
    """With a higher version it decides, and whoever folds more lacks nothing."""
    async with opened(newer(), url) as new:
        await new.execute(Freeze(order=A))
        async with opened(older(version=2), url) as on_purpose:
            await on_purpose.execute(Ship(order=A))
            with pytest.raises(Rejected, match="frozen"):
                await new.execute(Ship(order=A))
            async with opened(newer(), url) as again:
                await again.execute(Ship(order=B))
            await on_purpose.execute(Ship(order=A))
        async with opened(older(), url) as old:
            await old.execute(Ship(order=A))
        async with opened(newer(version=3), url) as last, opened(older(version=2), url) as left_behind:
            await expect_newer(left_behind.execute(Ship(order=A)), 1)
            with pytest.raises(Rejected, match="frozen"):
                await last.execute(Ship(order=A))


async def test_two_lines_of_code_keep_out_of_each_others_way(url: str) -> None:
    """Each folds an event that the other does not: neither is the newer, and each decides where it lacks nothing."""

    def line(*events: Any) -> BoundedContext:
        class Order(DecisionModel[OrderId]):
            frozen: bool = False

            def evolve(self, event: Any) -> Order:
                return self

        Order.evolve.__annotations__["event"] = Shipped | events[0]
        context = older()
        for each in context.command_handlers:
            if "order" in each.function.__annotations__:
                each.function.__annotations__["order"] = Order
        return context

    async with opened(line(Frozen), url) as freezing, opened(line(Packed), url) as packing:
        await freezing.execute(Freeze(order=A))
        await packing.execute(Box(order=B))
        await expect_newer(packing.execute(ShipByCarrier(order=A)), 1)
        with pytest.raises(NewerHistory, match=r"orders\.Packed"):
            await freezing.execute(ShipByCarrier(order=B))
        await packing.execute(ShipByCarrier(order=B))
        await freezing.execute(ShipByCarrier(order=A))


async def test_models_of_one_name_lack_what_none_of_them_folds(url: str) -> None:
    """Two classes of one context may have one name: they keep nobody out."""
    context = older()

    class Order(DecisionModel[OrderId]):
        def evolve(self, event: Frozen) -> Order:
            return self

    def freeze(command: Freeze, order: Order) -> Frozen:
        return Frozen(order=command.order)

    freeze.__annotations__["order"] = Order
    context.command_handlers[:] = [each for each in context.command_handlers if each.function.__name__ != "freeze"]
    context.command_handler(freeze)
    async with opened(context, url) as app:
        await app.execute(Freeze(order=A))
        await app.execute(Ship(order=A))
        await app.execute(Freeze(order=A))
        kept = (await app.partition().store.stored_models()).by_name()["orders.Order"]
    assert kept.types == ("orders.Frozen", "orders.Packed", "orders.Shipped")


# ── what is said, and learned ────────────────────────────────────────────────


async def test_it_is_logged_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """When it is learned: which model, which events, and what to do where it is meant."""
    async with together(url) as found:
        await found.beside(Freeze(order=A))
        with caplog.at_level(logging.WARNING, "diptych"):
            for _ in range(3):
                await expect_newer(found.old.execute(Ship(order=A)), 1)
    told = [record.getMessage() for record in caplog.records if "does not fold" in record.getMessage()]
    assert len(told) == 1
    assert "orders.Order does not fold orders.Frozen here" in told[0]
    assert "say version=2 in the class statement" in told[0]


async def test_a_lower_version_that_folds_more_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever forgets the version in a later release hears that nothing of it is made known."""
    async with opened(older(version=2), url), opened(newer(version=2), url):
        pass
    assert not caplog.records or "has version" not in caplog.text
    async with opened(older(version=3), url) as last:
        async with opened(newer(), url) as forgotten:
            await forgotten.execute(Freeze(order=A))
            with pytest.raises(Rejected, match="frozen"):
                await forgotten.execute(Ship(order=A))
        await last.execute(Ship(order=A))
    told = [record.getMessage() for record in caplog.records if "has version=1 here" in record.getMessage()]
    assert len(told) == 1
    assert "say version=3 or higher in the class statement" in told[0]


async def test_what_a_failover_has_lost_is_kept_again() -> None:
    """Its mark is another one: what was kept is looked at again, and the code's models are kept."""
    store = MemoryEventStore(SettableClock())
    await store.open()
    async with Application(newer(), services={Carrier: Carrier()}, projecting=False) as app:
        partition = app.partition()
        assert isinstance(partition.store, MemoryEventStore)
        await app.execute(Ship(order=A))
        partition.store._models = NONE_KEPT
        await app.execute(Ship(order=A))
        assert "orders.Order" in partition.store._models.by_name()


async def test_others_may_keep_models_at_the_same_time() -> None:
    """What was not kept, since somebody else came between, is kept on the next look."""

    class Overtaken(MemoryEventStore):
        overtakes = 3

        async def keep_models(self, models: Any, instead_of: bytes) -> bool:
            if self.overtakes:
                self.overtakes -= 1
                await super().keep_models([ModelUnion(f"other.{self.overtakes}", 1, ())], self._models.mark)
            return await super().keep_models(models, instead_of)

    store = Overtaken(SettableClock())
    await store.open()
    async with Application(newer(), services={Carrier: Carrier()}, projecting=False) as app:
        handlers = app.partition().commands._handlers.values()
        known = KnownModels([(each.context, fold) for each in handlers for fold in each.folds], store, lambda: None)
        await known.open()
    kept = await store.stored_models()
    assert known.mark == kept.mark
    assert {"orders.Order", "orders.Boxes", "other.0", "other.1", "other.2"} == set(kept.by_name())
    assert CodedModels([]).outgrown(kept) == {}


def test_what_only_newer_code_folds_is_looked_for_by_every_tag() -> None:
    """Of an identity that was renamed, by each name; the item of now stays the first."""
    tags = [frozenset({"order:a"}), frozenset({"parcel:a"})]
    query = EventQuery(tuple(QueryItem(frozenset({"Shipped"}), each) for each in tags))
    found = OutgrownQuery.of(query, frozenset({"Frozen"}), ModelUnion("orders.Order", 1, ("Frozen", "Shipped")))
    assert found.items[:2] == query.items
    assert [item.tags for item in found.only_beyond.items] == tags
    assert found.matches("Frozen", ["parcel:a"])
    assert not found.matches("Frozen", ["order:b"])
