"""Processes on every store: what is kept, what is sent once, what is helped on by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandContext,
    Event,
    ProcessManager,
    Reaction,
    Receipt,
    Rejected,
    replace,
)
from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import START, Place
from diptych.messages.codec import decode
from diptych.messages.envelope import Envelope
from diptych.process_managers import sender
from diptych.process_managers.process_store import Outgoing, ProcessChange
from diptych.process_managers.processes import InstanceStatus
from diptych.testing import ManualClock
from diptych.write_side.command_bus import NextCommand
from tests.tenants import Places
from tests.transferring import OVERDUE, Confirm, Deposit, Refund, Request, TransferId, Transferring, banking

pytestmark = pytest.mark.anyio

ONE, TWO = TransferId("t1"), TransferId("t2")


async def at_rest(app: Application) -> None:
    """Every process has reacted to everything, and sent what is due."""
    await app.partition().process_worker.at_rest()


async def happened(app: Application) -> list[str]:
    """The names of all events, in order."""
    return [recorded.type.partition(".")[2] async for recorded in app.events(ALL_EVENTS)]


async def one(app: Application, *, ended: bool = True) -> InstanceStatus:
    (found,) = await app.processes.list(ended=ended)
    return found


def application(url: str, clock: ManualClock | None = None, *contexts: BoundedContext) -> Application:
    return Application(*(contexts or (banking(),)), store=url, clock=clock or ManualClock())


# ── the way through ──────────────────────────────────────────────────────────


async def test_a_process_sees_its_instances_through(store_url: str) -> None:
    """Each on its own: one is confirmed, one is overdue, one is rejected."""
    clock = ManualClock()
    async with application(store_url, clock) as app:
        await app.execute(Request(transfer=ONE))
        await app.execute(Request(transfer=TWO))
        await app.execute(Request(transfer=TransferId("t3"), to="closed"))
        await app.execute(Confirm(transfer=ONE))
        await at_rest(app)
        clock.advance(OVERDUE)
        await at_rest(app)
        assert sorted(await happened(app)) == sorted(
            ["Requested"] * 3
            + ["Deposited"] * 2
            + ["Confirmed", "Transferring.DepositRejected", "DepositOverdue"]
            + ["Refunded"] * 2
        )
        assert [(found.id, found.ended) for found in await app.processes.list(ended=True)] == [
            ("t1", True),
            ("t2", True),
            ("t3", True),
        ]
        assert await app.processes.list() == []


async def test_g10_timeouts_survive_a_restart(store_url: str) -> None:
    """What was set before is due after; and what was fired is not fired again."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    clock = ManualClock()
    async with application(store_url, clock) as app:
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        shown = await app.processes.show("Transferring", ONE)
        assert [(item.name, item.due_at) for item in shown.timeouts] == [("bank.DepositOverdue", clock.now() + OVERDUE)]
    clock.advance(OVERDUE)
    for _ in range(2):
        async with application(store_url, clock) as app:
            await at_rest(app)
            assert await happened(app) == ["Requested", "Deposited", "DepositOverdue", "Refunded"]


async def test_a_new_process_begins_at_the_head(store_url: str) -> None:
    """Old events of an old history make it do nothing; what comes after its first opening does."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    without = banking()
    without.process_managers.clear()
    without.events = (*banking().process_managers[0].published,)
    for context, expected in (
        (without, ["Requested"]),
        (banking(), ["Requested", "Requested", "Deposited"]),
    ):
        async with application(store_url, None, context) as app:
            await app.execute(Request(transfer=ONE if context is without else TWO))
            await at_rest(app)
            assert await happened(app) == expected


async def test_a_new_process_begins_with_the_first_event_if_told_to(store_url: str) -> None:
    """`from_beginning=True`: the whole history is reacted to, once."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    without = banking()
    without.process_managers.clear()
    async with application(store_url, None, without) as app:
        await app.execute(Request(transfer=ONE))
    context = banking()
    context.process_managers.clear()
    context.process_manager(starts=None, from_beginning=True)(Transferring)
    for _ in range(2):
        async with application(store_url, None, context) as app:
            await at_rest(app)
            assert await happened(app) == ["Requested", "Deposited"]


async def test_only_events_that_start_begin_an_instance(store_url: str) -> None:
    """Others that meet none are ignored."""
    async with application(store_url) as app:
        await app.execute(Confirm(transfer=ONE))
        await at_rest(app)
        assert await app.processes.list(ended=True) == []


async def test_a_retired_process_does_nothing_more(store_url: str) -> None:
    """What it has left in the history can be read, its instances are listed, and nothing is sent."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    clock = ManualClock()
    async with application(store_url, clock) as app:
        await app.execute(Request(transfer=ONE))
        await app.execute(Request(transfer=TWO, to="closed"))
        await at_rest(app)
        before = await happened(app)
    clock.advance(OVERDUE)
    retired = banking()
    retired.process_managers.clear()
    retired.process_manager(retired=True)(Transferring)
    async with application(store_url, clock, retired) as app:
        await app.execute(Request(transfer=TransferId("t3")))
        await at_rest(app)
        assert await happened(app) == [*before, "Requested"]
        assert [found.id for found in await app.processes.list()] == ["t1"]
        assert (await app.status()).processes[0].lag_events == 0


# ── once ─────────────────────────────────────────────────────────────────────


async def put_back(app: Application, state: ProcessManager[Any]) -> None:
    """Have what the first event made go out once more: as after a crash before its removal was noted."""
    runner = app.partition().process_worker._runners[0]
    first = (await app.partition().store.read(ALL_EVENTS, START, 1)).events[0]
    given = runner._given(first)
    (command, *_) = runner.outbox.of("t1", runner.process.react(state, given.event, given.context), given)
    (stored,) = [found for found in await runner.store.processes() if found.name == runner.process.name]
    change = ProcessChange(
        process=stored.name,
        epoch=stored.epoch,
        after=stored.checkpoint,
        checkpoint=stored.checkpoint,
        fingerprint=stored.fingerprint,
        added=[command],
    )
    assert await runner.store.commit(change)
    runner.sender.wake()
    await at_rest(app)
    assert (await app.processes.show(stored.name, "t1")).commands == []


async def test_g10_a_command_is_sent_again_under_its_id_to_no_effect(store_url: str) -> None:
    """A worker that fails after a command took effect, and before it noted that: the next one sends it again."""
    ids: list[str] = []

    async def note(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if context.actor is not None:
            ids.append(context.command_id)
        return await proceed(command, context)

    app = Application(banking(), store=store_url, clock=ManualClock(), command_middleware=[note])
    async with app:
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        await put_back(app, Transferring(transfer=ONE))
        assert len(ids) == 2
        assert len(set(ids)) == 1
        assert await happened(app) == ["Requested", "Deposited"]
        assert (await one(app)).state == {"transfer": "t1", "deposits": 1}


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "by a middleware"])
async def test_g10_a_rejection_comes_back_once(store_url: str, *, kept: bool) -> None:
    """However often the command is sent: also where it is not rejected any more."""
    refusing = [] if kept else [True]

    async def refuse(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if isinstance(command, Deposit) and refusing:
            refusing.clear()
            raise Rejected("not-today")
        return await proceed(command, context)

    app = Application(banking(), store=store_url, clock=ManualClock(), command_middleware=[refuse])
    async with app:
        await app.execute(Request(transfer=ONE, to="closed" if kept else "open"))
        await at_rest(app)
        await put_back(app, Transferring(transfer=ONE))
        assert await happened(app) == ["Requested", "Transferring.DepositRejected", "Refunded"]


async def test_g10_what_is_sent_is_what_was_kept(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that could not be sent goes out as it was when the process reacted, whatever react would say now."""
    clock = ManualClock()
    async with application(store_url, clock) as app:
        runner = app.partition().process_worker._runners[0]

        async def refuse(*_: object) -> object:
            raise StoreUnavailable("not now")

        with monkeypatch.context() as patched:
            patched.setattr(runner.sender, "_execute", refuse)
            await app.execute(Request(transfer=ONE))
            await at_rest(app)
            (waiting,) = (await app.processes.show("Transferring", ONE)).commands
            assert (waiting.attempts, waiting.dead, waiting.failure.partition(" (")[0]) == (
                0,
                False,
                "StoreUnavailable: not now",
            )
        monkeypatch.setattr(runner.process, "_react", lambda *_: Reaction(Transferring(transfer=TWO), ended=True))
        clock.advance(60)
        runner.sender.wake()
        await at_rest(app)
        assert await happened(app) == ["Requested", "Deposited"]
        assert (await one(app)).ended  # the deposit met the new code


# ── stuck ────────────────────────────────────────────────────────────────────


class Fragile(ProcessManager[TransferId]):
    transfer: TransferId
    heard: tuple[int, ...] = ()

    def react(self, event: Noted) -> Reaction[Fragile]:
        if event.n in BROKEN:
            raise ZeroDivisionError(f"not {event.n}")
        return Reaction(replace(self, heard=(*self.heard, event.n)), [Remember(transfer=self.transfer, n=event.n)])


class Noted(Event):
    transfer: TransferId
    n: int


class Remembered(Event):
    transfer: TransferId
    n: int


class Note(Command):
    transfer: TransferId
    n: int


class Remember(Command):
    transfer: TransferId
    n: int


BROKEN: set[int] = set()


@pytest.fixture
def broken() -> set[int]:
    """The numbers that `Fragile` cannot react to; those above 99 cannot be remembered."""
    BROKEN.clear()
    return BROKEN


def noting() -> BoundedContext:
    context = BoundedContext("notes")
    context.process_manager(Fragile)

    @context.command_handler
    def note(command: Note) -> Noted:
        return Noted(transfer=command.transfer, n=command.n)

    @context.command_handler
    def remember(command: Remember) -> Remembered:
        if command.n > 99:
            if command.n in BROKEN or not BROKEN:
                raise Rejected("too-much", n=command.n)
            raise ArithmeticError("cannot count so far")
        return Remembered(transfer=command.transfer, n=command.n)

    return context


async def test_an_instance_whose_reaction_fails_is_blocked_alone(store_url: str, broken: set[int]) -> None:
    """Its state stays, it says where and why, and the others go on."""
    broken.add(2)
    async with application(store_url, None, noting()) as app:
        for n in (1, 2, 3):
            for transfer in (ONE, TWO) if n != 2 else (ONE,):
                await app.execute(Note(transfer=transfer, n=n))
        await at_rest(app)
        first, second = await app.processes.list()
        assert (first.state["heard"], second.state["heard"]) == ([1], [1, 3])
        assert (first.blocked > 0, second.blocked) == (True, 0)
        assert first.failure.startswith("ZeroDivisionError: not 2 (react, line ")
        assert await app.processes.list(stuck=True) == [first]
        health = await app.health()
        assert health.ready
        assert health.impaired == ("process notes.Fragile: instances are stuck, the first is 't1'",)


async def test_a_blocked_instance_is_retried_by_hand(store_url: str, broken: set[int]) -> None:
    """It takes what it missed, in order, and sends what follows from that; who did it is in the history."""
    broken.add(2)
    async with application(store_url, None, noting()) as app:
        for n in (1, 2, 3):
            await app.execute(Note(transfer=ONE, n=n))
        await at_rest(app)
        await app.processes.retry("Fragile", ONE, reason="again")
        await at_rest(app)
        assert (await one(app)).state["heard"] == [1]
        broken.clear()
        await app.processes.retry("notes.Fragile", ONE, reason="mended", actor="ann")
        await at_rest(app)
        found = await one(app)
        assert (found.state["heard"], found.blocked, found.failure) == ([1, 2, 3], 0, "")
        assert (await happened(app)).count("Remembered") == 3
        shown = await app.processes.show("Fragile", ONE)
        assert [event.type for event in shown.events] == ["notes.Noted"] * 3 + ["notes.Fragile.InstanceRetried"] * 2
        assert b'"actor":"ann"' in shown.events[-1].metadata


async def test_a_blocked_instance_is_retried_with_new_code(
    store_url: str, broken: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the fingerprint differs from that of the code that has worked on it."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    broken.add(2)
    async with application(store_url, None, noting()) as app:
        for n in (1, 2, 3):
            await app.execute(Note(transfer=ONE, n=n))
        await at_rest(app)
    broken.clear()
    for fingerprint, expected in (("", [1]), ("of other code", [1, 2, 3])):
        if fingerprint:
            monkeypatch.setattr("diptych.application.wiring.process_fingerprint", lambda _: "of other code")
        async with application(store_url, None, noting()) as app:
            await at_rest(app)
            assert (await one(app)).state["heard"] == expected


async def test_an_instance_is_closed_by_hand(store_url: str) -> None:
    """It ends, whatever it waits for is dropped, and why is kept."""
    clock = ManualClock()
    async with application(store_url, clock) as app:
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        await app.processes.close("Transferring", ONE, reason="by phone", actor="ann")
        await at_rest(app)
        clock.advance(OVERDUE)
        await at_rest(app)
        found = await one(app)
        assert (found.ended, found.failure) == (True, "closed by hand: by phone")
        assert await happened(app) == ["Requested", "Deposited", "Transferring.InstanceClosed"]
        assert (await app.status()).processes[0].count.waiting == 0
        *_, closed = [recorded async for recorded in app.events(ALL_EVENTS)]
        envelope = decode(closed.metadata, Envelope)
        assert (envelope.actor, envelope.reason) == ("ann", "by phone")


async def test_a_command_is_given_by_hand(store_url: str) -> None:
    """It goes out as one of the instance's own."""
    async with application(store_url) as app:
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        await app.processes.send("Transferring", ONE, Refund(transfer=ONE, because="goodwill"), reason="asked")
        await at_rest(app)
        assert await happened(app) == ["Requested", "Deposited", "Transferring.CommandGiven", "Refunded"]


async def test_what_cannot_be_helped_is_refused() -> None:
    """A process or instance that is not there, a command that nobody handles."""

    class Unknown(Command): ...

    async with application("memory:") as app:
        with pytest.raises(ConfigurationError, match=r"no process 'Nobody' here.*bank\.Transferring"):
            await app.processes.list("Nobody")
        with pytest.raises(ConfigurationError, match=r"bank\.Transferring has no instance 't1'"):
            await app.processes.retry("Transferring", ONE)
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        with pytest.raises(TypeError, match="Unknown has no command handler"):
            await app.processes.send("Transferring", ONE, Unknown())


async def test_a_command_that_fails_is_given_up_after_a_while(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried `SEND_ATTEMPTS_MAX` times, then listed with its failure; a retry by hand sends it again."""
    clock = ManualClock()
    async with application(store_url, clock) as app:
        await app.execute(Request(transfer=ONE, to="broken"))
        for _ in range(sender.SEND_ATTEMPTS_MAX):
            await at_rest(app)
            clock.advance(sender.SEND_BACKOFF_MAX_S)
            app.partition().process_worker._runners[0].sender.wake()
        await at_rest(app)
        (waiting,) = (await app.processes.show("Transferring", ONE)).commands
        assert (waiting.attempts, waiting.dead) == (sender.SEND_ATTEMPTS_MAX, True)
        assert waiting.failure.startswith("ZeroDivisionError: the machine is broken")
        assert [found.id for found in await app.processes.list(stuck=True)] == ["t1"]
        await app.processes.retry("Transferring", ONE)
        await at_rest(app)
        (waiting,) = (await app.processes.show("Transferring", ONE)).commands
        assert (waiting.attempts, waiting.dead) == (1, False)


async def test_a_store_that_fails_is_told_and_tried_again(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it fails with, a defect included: status says so, and everything is sent once it does not any more."""
    async with application(store_url) as app:
        runner = app.partition().process_worker._runners[0]
        monkeypatch.setattr(sender, "STORE_BACKOFF_S", 0.01)

        async def fail(*_: object) -> list[Outgoing]:
            raise ZeroDivisionError("a defect")

        with monkeypatch.context() as patched:
            patched.setattr(runner.store, "due", fail)
            await app.execute(Request(transfer=ONE))
            await at_rest(app)
            assert (await app.status()).processes[0].stopped.startswith("ZeroDivisionError: a defect")
        while runner.sender.failure:
            await runner.sender.rest(0.01)
        await at_rest(app)
        assert await happened(app) == ["Requested", "Deposited"]
        assert (await app.status()).processes[0].stopped == ""


async def test_a_command_whose_handler_is_cancelled_from_within_is_tried_again(store_url: str) -> None:
    """As any other failure: the sender goes on."""
    clock, cancelling = ManualClock(), [True]

    async def cancel(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if isinstance(command, Deposit) and cancelling:
            cancelling.clear()
            raise asyncio.CancelledError
        return await proceed(command, context)

    app = Application(banking(), store=store_url, clock=clock, command_middleware=[cancel])
    async with app:
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        (waiting,) = (await app.processes.show("Transferring", ONE)).commands
        assert (waiting.attempts, waiting.failure) == (1, "TimeoutError: it was cancelled")
        clock.advance(sender.SEND_BACKOFF_MAX_S)
        app.partition().process_worker._runners[0].sender.wake()
        await at_rest(app)
        assert await happened(app) == ["Requested", "Deposited"]


async def test_a_rejection_that_nobody_hears_is_listed(store_url: str) -> None:
    """Where `react` names no CommandRejected of it, the command is given up at once, and not forgotten."""
    async with application(store_url, None, noting()) as app:
        BROKEN.clear()
        await app.execute(Note(transfer=ONE, n=100))
        await at_rest(app)
        (waiting,) = (await app.processes.show("Fragile", ONE)).commands
        assert (waiting.attempts, waiting.dead) == (1, True)
        assert "rejected with too-much (n=100), and Fragile.react takes no CommandRejected[Remember]" in waiting.failure


# ── a history that forked ────────────────────────────────────────────────────


async def test_a_checkpoint_of_another_history_stops_the_process(store_url: str) -> None:
    """Nothing is sent, and status and health say why."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    async with application(store_url) as app:
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        runner = app.partition().process_worker._runners[0]
        (stored,) = [found for found in await runner.store.processes() if found.name == runner.process.name]
        astray = Place(stored.checkpoint.history_id, stored.checkpoint.position, b"x" * 16)
        change = ProcessChange(
            process=stored.name,
            epoch=stored.epoch,
            after=stored.checkpoint,
            checkpoint=astray,
            fingerprint=stored.fingerprint,
        )
        assert await runner.store.commit(change)
    async with application(store_url) as app:
        await at_rest(app)
        await app.execute(Request(transfer=TWO))
        await at_rest(app)
        assert (await happened(app)).count("Deposited") == 1
        (status,) = (await app.status()).processes
        assert "another event is at position" in status.stopped
        assert "Nothing is sent" in status.stopped
        assert status.lag_events > 0
        health = await app.health()
        assert not health.ready
        assert "processes have stopped: process bank.Transferring" in health.reason


# ── partitions ───────────────────────────────────────────────────────────────


class Invoice(Command):
    transfer: TransferId


class Invoiced(Event):
    transfer: TransferId


class Billing(ProcessManager[TransferId]):
    transfer: TransferId

    def react(self, event: Noted) -> Reaction[Billing]:
        return Reaction(self, [Invoice(transfer=self.transfer)], ended=True)


async def test_g10_a_process_sends_to_another_partition(places: Places) -> None:
    """It follows the events of its own, and its command is decided where it belongs; once."""
    shop, billing = BoundedContext("shop"), BoundedContext("billing")
    shop.process_manager(Billing)

    @shop.command_handler
    def note(command: Note) -> Noted:
        return Noted(transfer=command.transfer, n=command.n)

    @billing.command_handler
    def invoice(command: Invoice) -> Invoiced:
        return Invoiced(transfer=command.transfer)

    app = Application(shop, billing, partition_by="context", store=places("shop", "billing"))
    async with app:
        await app.execute(Note(transfer=ONE, n=1))
        await app.partition("shop").process_worker.at_rest()
        assert [found.id for found in await app.partition("shop").processes.list(ended=True)] == ["t1"]
        found = [recorded.type async for recorded in app.partition("billing").events(ALL_EVENTS)]
        assert found == ["billing.Invoiced"]
