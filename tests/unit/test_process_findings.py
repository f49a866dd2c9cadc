"""What a review of processes tried: code of several versions, forks, failures in sending, odd identities."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandRejected,
    Event,
    ProcessManager,
    Reaction,
    Rejected,
    replace,
)
from diptych.errors import (
    CommandIdReused,
    Conflict,
    HistoryDiverged,
    NewerHistory,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
)
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Appended, Commit
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.process_managers import process_leases, process_runner, sender
from diptych.process_managers.process_runner import ProcessRunner
from diptych.process_managers.process_store import ProcessChange, StoredProcess
from diptych.testing import ManualClock
from tests.own_tables import AccountId, Bank, Database, Deposit, Open, Opened
from tests.transferring import Request, TransferId, Transferring, banking

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)

ONE, TWO = TransferId("t1"), TransferId("t2")
NAME = "bank.Transferring"


async def at_rest(app: Application) -> None:
    """Every process has reacted to everything, and sent what is due."""
    await app.partition().process_worker.at_rest()


async def happened(app: Application) -> list[str]:
    """The names of all events, in order."""
    return [recorded.type.partition(".")[2] async for recorded in app.events(ALL_EVENTS)]


def runner_of(app: Application) -> ProcessRunner:
    return app.partition().process_worker._runners[0]


async def stored(app: Application) -> StoredProcess:
    (found,) = [found for found in await runner_of(app).store.processes() if found.name == NAME]
    return found


async def append(app: Application, type: str, data: bytes, *tags: str, version: int = 1) -> None:
    """Store an event as it is, by code that is not ours."""
    commit = Commit(events=(NewEvent(unique_bytes(), type, version, data, tags),))
    (result,) = await app.partition().store.append([commit])
    assert isinstance(result, Appended)


# ── events that this code cannot read ────────────────────────────────────────


@pytest.mark.parametrize(
    ("version", "data", "says"),
    [
        (9, b'{"transfer":"t1","to":"open"}', "newer code has stored it"),
        (1, b'{"transfer":"t1"}', "missing required field"),
    ],
    ids=["newer", "unreadable"],
)
async def test_what_cannot_be_read_stops_the_process_and_frees_it(
    store_url: str, version: int, data: bytes, says: str
) -> None:
    """It says so, sends nothing more, and others get it at once; where they go on, all is well here."""
    async with Application(banking(), store=store_url, clock=ManualClock()) as app:
        await append(app, "bank.Requested", data, "transfer:t1", version=version)
        await at_rest(app)
        runner = runner_of(app)
        await asyncio.wait(runner._tasks[:1])
        assert (runner.stopped, runner.hold) == (True, None)
        (status,) = (await app.status()).processes
        assert says in status.stopped
        assert "left to workers with other code" in status.stopped
        health = await app.health()
        assert (health.ready, says in health.reason) == (False, True)
        epochs = await runner.store.lease("other code", [NAME], 60)
        here = await stored(app)
        assert epochs == {NAME: here.epoch}
        there = await app.partition().store.head()
        gone_on = ProcessChange(
            process=NAME, epoch=here.epoch, after=here.checkpoint, checkpoint=there, fingerprint="other code"
        )
        assert await runner.store.commit(gone_on)
        assert [found.stopped for found in (await app.status()).processes] == [""]
        assert (await app.health()).ready


async def test_a_process_that_is_left_is_not_asked_for_again(store_url: str) -> None:
    """However often leases are renewed; the others of the application are."""
    context = banking()

    class Beside(ProcessManager[TransferId]):
        def react(self, event: Other) -> Reaction[Beside]:
            return Reaction(self)

    context.process_manager(Beside)
    async with Application(context, store=store_url) as app:
        await append(app, "bank.Requested", b"{}", "transfer:t1", version=9)
        await at_rest(app)
        leases = app.partition().process_worker._leases
        await asyncio.wait(runner_of(app)._tasks[:1])
        await leases.renew()
        assert [leases.epoch(name) is not None for name in (NAME, "bank.Beside")] == [False, True]


class Other(Event):
    transfer: TransferId


def counting(version: int) -> BoundedContext:
    """A context of one of two versions of the code; the newer one has a newer event."""

    class Counted(Event, version=version):
        transfer: TransferId

    class Seen(Event):
        transfer: TransferId

    class Count(Command):
        transfer: TransferId

    class See(Command):
        transfer: TransferId

    class Counting(ProcessManager[TransferId]):
        transfer: TransferId

        def react(self, event: Counted) -> Reaction[Counting]:
            return Reaction(self, [See(transfer=self.transfer)])

    context = BoundedContext("counts")
    context.process_manager(Counting)

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(transfer=command.transfer)

    @context.command_handler
    def see(command: See) -> Seen:
        return Seen(transfer=command.transfer)

    if version == 2:

        @context.upcaster(Counted, from_version=1)
        def counted_from_1(stored: Mapping[str, Any]) -> Mapping[str, Any]:
            return stored

    return context


@kept
async def test_newer_code_goes_on_where_older_code_stops(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While both run: the older one had the process, meets what the newer one has stored, and hands it over."""
    monkeypatch.setattr(process_leases, "LEASE_RENEW_S", 0.02)
    async with (
        Application(counting(1), store=store_url) as older,
        Application(counting(2), store=store_url) as newer,
    ):
        assert runner_of(newer).hold is None
        (count,) = [cls for cls in newer.commands.names if cls.__name__ == "Count"]
        await newer.execute(count(transfer=ONE))
        while runner_of(newer).hold is None:
            await runner_of(newer).moved(1.0)
        await at_rest(newer)
        assert await happened(newer) == ["Counted", "Seen"]
        assert runner_of(older).stopped
        assert [found.stopped for found in (await older.status()).processes] == [""]


# ── forks ────────────────────────────────────────────────────────────────────


async def test_a_fork_that_a_read_meets_stops_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failover a read may say so; the process looks where it is in the history that is there, and goes on."""
    async with Application(banking(), store=store_url, clock=ManualClock()) as app:
        store, read, left = app.partition().store, app.partition().store.read, [1]

        async def diverged(*wanted: Any, **options: Any) -> Any:
            while left:
                left.pop()
                raise HistoryDiverged("what was read", "the history turned out to be another one meanwhile")
            return await read(*wanted, **options)

        monkeypatch.setattr(store, "read", diverged)
        await app.execute(Request(transfer=ONE))
        while not await app.processes.list():
            await runner_of(app).moved(1.0)
        await at_rest(app)
        assert await happened(app) == ["Requested", "Deposited"]
        assert left == []


@pytest.mark.parametrize("lost", ["by a fork", "with the lease"])
async def test_g10_what_is_lost_while_it_is_about_to_be_sent_is_not_sent(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover lost the event that it is a reaction to; or another worker had the process, and the instance ended."""
    monkeypatch.setattr(process_leases, "LEASE_RENEW_S", 0.02)
    monkeypatch.setattr(process_runner, "IDLE_WAIT_S", 0.02)  # nobody wakes it here
    async with Application(banking(), clock=ManualClock()) as app:
        store, runner = app.partition().store, runner_of(app)
        outcome, forks, asked = store.outcome, itertools.count(1), list[str]()

        async def lose(command_id: str) -> Any:
            if not asked and (waiting := await runner.store.due(NAME, 1 << 60, 1)):
                asked.append(waiting[0].type)
                here = await stored(app)
                change = ProcessChange(
                    process=NAME,
                    epoch=here.epoch,
                    after=here.checkpoint,
                    checkpoint=here.checkpoint,
                    fingerprint=here.fingerprint,
                    emptied=["t1"],
                )
                assert await runner.store.commit(change)
                if lost == "by a fork":
                    number = next(forks)
                    monkeypatch.setattr(type(store), "forks", property(lambda _: number))
                else:
                    app.partition().process_worker._leases._until = float("-inf")
            return await outcome(command_id)

        monkeypatch.setattr(store, "outcome", lose)
        await app.execute(Request(transfer=ONE))
        await at_rest(app)
        assert asked == ["bank.Deposit"]
        assert await happened(app) == ["Requested"]
        await app.execute(Request(transfer=TWO))
        await at_rest(app)
        assert await happened(app) == ["Requested", "Requested", "Deposited"]


# ── failures in sending ──────────────────────────────────────────────────────


NOT_NOW: list[Exception] = [
    StoreUnavailable("not now"),
    Overloaded("commands_waiting_max", 1),
    OutcomeUnknown("c", "the connection was lost"),
    NewerHistory("bank.Requested", 9, Position(1), "run newer code"),
    Conflict("Deposit", 10, 3),
]
FAILURES: list[Exception] = [CommandIdReused("c"), ArithmeticError("a defect")]


@pytest.mark.parametrize("error", NOT_NOW + FAILURES, ids=lambda error: type(error).__name__)
async def test_pauses_between_attempts_grow_whatever_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only not possible now is waited for without end, and less and less often; the rest is given up."""
    clock = ManualClock()
    async with Application(banking(), store="memory:", clock=clock) as app:
        runner = runner_of(app)

        async def fail(*_: object) -> object:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(runner.sender, "_execute", fail)
            await app.execute(Request(transfer=ONE))
            pauses, given_up = list[float](), False
            while len(pauses) < sender.SEND_ATTEMPTS_MAX:
                runner.sender.wake()
                await at_rest(app)
                (waiting,) = (await app.processes.show("Transferring", ONE)).commands
                pauses.append((waiting.due_at - clock.now()).total_seconds())
                given_up = waiting.dead
                clock.advance(pauses[-1])
        assert pauses == [min(sender.SEND_BACKOFF_FIRST_S * 2**n, sender.SEND_BACKOFF_MAX_S) for n in range(10)]
        assert given_up == (error in FAILURES)
        if given_up:
            await app.processes.retry("Transferring", ONE)
        runner.sender.wake()
        await at_rest(app)
        assert await happened(app) == ["Requested", *(["Transferring.InstanceRetried"] * given_up), "Deposited"]
        assert runner.sender._refused == {}


# ── code that was mended ─────────────────────────────────────────────────────


class Heard(ProcessManager[TransferId]):
    transfer: TransferId
    heard: int = 0

    def react(self, event: Other) -> Reaction[Heard]:
        if BROKEN:
            raise ZeroDivisionError("not yet mended")
        return Reaction(replace(self, heard=self.heard + 1))


BROKEN: list[bool] = []


@pytest.fixture
def broken() -> list[bool]:
    """Whether `Heard` can react to nothing."""
    BROKEN[:] = [True]
    return BROKEN


def hearing() -> BoundedContext:
    context = BoundedContext("bank", events=[Other])
    context.process_manager(Heard)
    return context


@kept
@pytest.mark.parametrize("crash", [True, False], ids=["a crash", "an outage"])
async def test_every_blocked_instance_is_retried_with_new_code(
    store_url: str, broken: list[bool], monkeypatch: pytest.MonkeyPatch, *, crash: bool
) -> None:
    """Also where the first try failed in the middle: with this start, or with the next one."""
    monkeypatch.setattr(process_runner, "BLOCKED_PAGE", 1)
    async with Application(hearing(), store=store_url) as app:
        for transfer in (ONE, TWO):
            await append(app, "bank.Other", b'{"transfer":"%s"}' % transfer.encode(), f"transfer:{transfer}")
        await at_rest(app)
        assert [found.blocked for found in await app.processes.list()] == [1, 2]
    broken.clear()
    monkeypatch.setattr("diptych.application.wiring.process_fingerprint", lambda _: "of other code")
    catch_up, failing = ProcessRunner._catch_up, [True]

    async def fail(runner: ProcessRunner, folded: Any, instance: str, before: int) -> None:
        if instance == TWO and failing:
            if not crash:
                failing.clear()
            raise StoreUnavailable("not now")
        await catch_up(runner, folded, instance, before)

    with monkeypatch.context() as patched:
        patched.setattr(ProcessRunner, "_catch_up", fail)
        async with Application(hearing(), store=store_url) as app:
            while not runner_of(app).failure if crash else failing:
                await runner_of(app).moved(0.05)
            if not crash:
                while runner_of(app).failure:
                    await runner_of(app).moved(0.05)
                await at_rest(app)
                assert [found.state["heard"] for found in await app.processes.list()] == [1, 1]
    async with Application(hearing(), store=store_url) as app:
        await at_rest(app)
        assert [found.state["heard"] for found in await app.processes.list()] == [1, 1]


async def test_nothing_is_at_rest_while_blocked_instances_are_retried(
    broken: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What they want to send may not be there yet: whoever waits for rest would look too early."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(hearing(), store=url) as app:
        await append(app, "bank.Other", b'{"transfer":"t1"}', "transfer:t1")
        await at_rest(app)
    broken.clear()
    monkeypatch.setattr("diptych.application.wiring.process_fingerprint", lambda _: "of other code")
    catch_up, begun, go_on = ProcessRunner._catch_up, asyncio.Event(), asyncio.Event()

    async def slowly(runner: ProcessRunner, folded: Any, instance: str, before: int) -> None:
        begun.set()
        await go_on.wait()
        await catch_up(runner, folded, instance, before)

    monkeypatch.setattr(ProcessRunner, "_catch_up", slowly)
    async with Application(hearing(), store=url) as app:
        await begun.wait()
        assert not await runner_of(app).sender.rest(0.2)
        go_on.set()
        await at_rest(app)
        assert [found.state["heard"] for found in await app.processes.list()] == [1]


# ── the event loop ───────────────────────────────────────────────────────────


TURNS = itertools.count()
SEEN: list[int] = []


class Busy(ProcessManager[TransferId]):
    def react(self, event: Other) -> Reaction[Busy]:
        SEEN.append(next(TURNS))
        return Reaction(self)


async def test_other_work_has_its_turn_within_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reactions that take long hold up nothing else on the event loop."""
    monkeypatch.setattr(process_runner, "REACTING_S_MAX", 0.0)
    SEEN.clear()
    context = BoundedContext("bank", events=[Other])
    context.process_manager(Busy)
    events = [NewEvent(unique_bytes(), "bank.Other", 1, b'{"transfer":"t1"}', ("transfer:t1",)) for _ in range(20)]
    async with Application(context) as app:

        async def work() -> None:
            while len(SEEN) < len(events):
                next(TURNS)
                await anyio.lowlevel.checkpoint()

        working = asyncio.create_task(work())
        await app.partition().store.append([Commit(events=tuple(events))])
        await at_rest(app)
        await working
    between = [later - earlier - 1 for earlier, later in itertools.pairwise(SEEN)]
    assert all(between)


# ── rejections ───────────────────────────────────────────────────────────────


class Try(Command):
    transfer: TransferId


class Refused(Event):
    transfer: TransferId


class Trying(ProcessManager[TransferId]):
    transfer: TransferId
    facts: tuple[tuple[str, str], ...] = ()

    def react(self, event: Other | CommandRejected[Try]) -> Reaction[Trying]:
        if isinstance(event, Other):
            return Reaction(self, [Try(transfer=self.transfer)])
        return Reaction(replace(self, facts=tuple(sorted((name, repr(value)) for name, value in event.facts.items()))))


def trying(facts: Mapping[str, Any]) -> BoundedContext:
    context = BoundedContext("bank", events=[Other])
    context.process_manager(Trying)

    @context.command_handler
    async def try_it(command: Try) -> Refused:
        raise Rejected("no", record=Refused(transfer=command.transfer), **facts)

    return context


@pytest.mark.parametrize(
    "facts", [{"n": 1}, {"text": "a\0b"}, {"ratio": float("nan")}, {"when": timedelta(1)}], ids=str
)
async def test_whatever_a_rejection_stands_on_reaches_the_process(store_url: str, facts: Mapping[str, Any]) -> None:
    """With the event that counts it stored once; also of a handler that is async."""
    async with Application(trying(facts), store=store_url, clock=ManualClock()) as app:
        await append(app, "bank.Other", b'{"transfer":"t1"}', "transfer:t1")
        await at_rest(app)
        shown = await app.processes.show("Trying", ONE)
        assert shown.commands == []
        assert await happened(app) == ["Other", "Refused", "Trying.TryRejected"]
        assert [name for name, _ in shown.status.state["facts"]] == list(facts)


# ── handlers with tables of their own ────────────────────────────────────────


class Giving(ProcessManager[AccountId]):
    """Gives every account three cents, of which two are too many."""

    account: AccountId
    refused: int = 0

    def react(self, event: Opened | CommandRejected[Deposit]) -> Reaction[Giving]:
        if isinstance(event, Opened):
            return Reaction(self, [Deposit(account=self.account, at_most=1) for _ in range(3)])
        return Reaction(replace(self, refused=self.refused + 1))


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_g10_commands_that_write_tables_of_their_own_take_effect_once(database: Database, tmp_path: Path) -> None:
    """Rows, events and rejections each once, also where a worker begins anew; all of it in one place."""
    bank = Bank(database, tmp_path)
    bank.context.process_manager(Giving)
    for _ in range(2):
        async with Application(bank.context, store=bank.url, clock=ManualClock()) as app:
            if not bank.balances():
                await app.execute(Open(account=AccountId("ada")))
            await at_rest(app)
            assert await happened(app) == [
                *["Opened", "Deposited"],
                *["DepositRefused", "Giving.DepositRejected"] * 2,
            ]
            assert [found.state["refused"] for found in await app.processes.list()] == [2]
        assert bank.balances() == {"ada": 1}
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} <= {"bank.db", "bank.read.db"}


# ── who only looks ───────────────────────────────────────────────────────────


@kept
async def test_an_application_that_does_not_project_runs_no_process_and_helps_on(store_url: str) -> None:
    """It appends what is to be done, takes nothing from who works, and says that all is well."""
    clock = ManualClock()
    async with Application(banking(), store=store_url, clock=clock, projecting=False) as app:
        await app.execute(Request(transfer=ONE))
        assert await app.processes.list() == []
        (found,) = (await app.status()).processes
        assert (found.stopped, found.count.running) == ("", 0)
        assert (await app.health()).ready
    async with (
        Application(banking(), store=store_url, clock=clock) as worker,
        Application(banking(), store=store_url, clock=clock, projecting=False) as app,
    ):
        await app.execute(Request(transfer=TWO))
        await at_rest(worker)
        await app.processes.close("Transferring", TWO, reason="by phone")
        await at_rest(worker)
        assert [found.ended for found in await app.processes.list(ended=True)] == [True]
        assert Transferring.__name__ in (await app.status()).processes[0].name
