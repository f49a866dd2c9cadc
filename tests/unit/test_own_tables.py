"""Handlers that read and write tables of their own, in the transaction of the append (rule 25; G1, G3, G4)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from diptych import (
    Application,
    BoundedContext,
    CommandContext,
    ConfigurationError,
    Conflict,
    ContextChanged,
    Receipt,
    Rejected,
    SyncApplication,
    Transaction,
)
from diptych.adapters.postgres.transactions import _LentTransaction
from diptych.application.bounded_context import BoundedContext as Context
from diptych.errors import InvalidEvent, MissingService, NotPure, OutcomeUnknown, StoreClosed, TransactionMisused
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Commit, KeptState
from diptych.event_store.position import START, Position
from diptych.testing import scenario
from diptych.testing.contracts.event_store_case import let_others_run
from diptych.testing.contracts.transactions import Gate
from diptych.write_side.state_form import STATE_STORED
from tests.own_tables import (
    AccountId,
    Bank,
    Database,
    Deposit,
    Deposited,
    Deposits,
    Link,
    Look,
    Looked,
    Note,
    Open,
    Opened,
)

pytestmark = pytest.mark.anyio

ADA, BOB = AccountId("ada"), AccountId("bob")
WAIT_S = 20.0
CALLERS = 8
DEPOSITS = 6


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    """A bank in each database, with two accounts."""
    database: Database = request.param
    with closing(Bank(database, tmp_path)) as made:
        made.sql("INSERT INTO accounts VALUES ('ada', 0), ('bob', 0)")
        yield made


SHARED = pytest.mark.parametrize("bank", ["sqlite", "postgres"], indirect=True)
"""Where the history can be opened again, or by somebody else."""


@asynccontextmanager
async def running(bank: Bank, **settings: Any) -> AsyncGenerator[Application]:
    async with Application(bank.context, store=bank.url, **settings) as app:
        yield app


@asynccontextmanager
async def running_twice(bank: Bank) -> AsyncGenerator[tuple[Application, Application]]:
    """Two applications on one history; in memory, where nobody can share it, one for both."""
    async with running(bank) as app:
        if bank.database == "memory":
            yield app, app
        else:
            async with running(bank) as other:
                yield app, other


async def types_of(app: Application) -> list[str]:
    """The stored events' types; their positions have to be contiguous from 1."""
    found = await app.partition().store.read(ALL_EVENTS, START, 10_000)
    assert [event.position for event in found.events] == list(range(1, len(found.events) + 1))
    return [event.type.removeprefix("bank.") for event in found.events]


# ── together ─────────────────────────────────────────────────────────────────


@SHARED
async def test_g1_rows_events_and_outcome_are_committed_together(bank: Bank) -> None:
    """The receipt has the events; the row is there; the id has its outcome, and the handler is not run again."""
    async with running(bank) as app:
        receipt = await app.execute(Deposit(account=ADA, cents=5), command_id="d-1")
        assert receipt.events == (Deposited(account=ADA, cents=5, balance=5),)
        assert receipt.position == 1
        assert bank.balances() == {"ada": 5, "bob": 0}
        assert await app.execute(Deposit(account=ADA, cents=5), command_id="d-1") == receipt
        assert (bank.runs, bank.balances()["ada"]) == (1, 5)
    async with running(bank) as app:
        assert await app.execute(Deposit(account=ADA, cents=5), command_id="d-1") == receipt


@SHARED
async def test_states_of_models_are_kept_with_rows_and_events(bank: Bank) -> None:
    """Also of those that the handler is not decided on; of what is taken back, nothing is kept."""

    @bank.context.command_handler
    def look(command: Look, deposits: Deposits) -> Looked:
        return Looked(account=command.account, count=deposits.count)

    async with running(bank) as app:
        await app.execute(Look(account=ADA))
    async with running(bank) as app:
        receipts = [await app.execute(Deposit(account=ADA), command_id=f"d-{number}") for number in range(3)]
        with pytest.raises(Rejected):
            await app.execute(Deposit(account=ADA, at_most=3))
        kept = await app.partition().store.model_state("bank.Deposits", '["ada"]')
        assert kept == KeptState(STATE_STORED, b'{"count":3}', Position(receipts[-1].position))
        assert bank.balances()["ada"] == 3
    async with running(bank) as app:
        assert (await app.execute(Look(account=ADA))).events == (Looked(account=ADA, count=3),)


async def test_g1_a_handler_that_fails_leaves_nothing(bank: Bank) -> None:
    """Its own exception comes out as it is; rows, events and outcome are as before, and the next command is well."""
    failing = [True]

    def fail(connection: Any, context: CommandContext) -> None:
        if failing:
            failing.clear()
            raise KeyError("mine")

    bank.hook = fail
    async with running(bank) as app:
        with pytest.raises(KeyError, match="mine"):
            await app.execute(Deposit(account=ADA), command_id="d-1")
        assert bank.balances()["ada"] == 0
        assert await types_of(app) == []
        await app.execute(Deposit(account=ADA), command_id="d-1")
        assert bank.balances()["ada"] == 1


async def test_an_event_that_cannot_be_stored_takes_the_rows_back(bank: Bank) -> None:
    """The handler's events are checked before anything is committed."""
    async with running(bank) as app:
        with pytest.raises(InvalidEvent):
            await app.execute(Open(account=AccountId("a" * 600)))
        assert await types_of(app) == []
        assert bank.balances() == {"ada": 0, "bob": 0}


# ── decided on truth ─────────────────────────────────────────────────────────


@SHARED
async def test_g3_what_lost_the_race_is_taken_back_and_decided_again(bank: Bank) -> None:
    """A model that was stale is found out by the append; the second run's rows are the only ones."""
    async with running(bank) as app, running(bank) as other:
        await app.execute(Deposit(account=ADA, at_most=3))
        await other.execute(Deposit(account=ADA))
        await other.execute(Note(account=ADA))
        bank.runs = 0
        receipt = await app.execute(Deposit(account=ADA, cents=10, at_most=3))
        assert bank.runs == 2
        assert receipt.events == (Deposited(account=ADA, cents=10, balance=12),)
        assert bank.balances()["ada"] == 12
        with pytest.raises(Rejected, match="too-many"):
            await app.execute(Deposit(account=ADA, at_most=3))


async def test_it_knows_what_it_has_appended_itself(bank: Bank) -> None:
    """One after the other on one model, no decision is taken twice."""
    async with running(bank) as app:
        for _ in range(3):
            await app.execute(Deposit(account=ADA))
        await app.execute(Note(account=ADA))
        await app.execute(Deposit(account=ADA))
        assert bank.runs == 4


@SHARED
async def test_g3_events_of_others_are_no_conflict(bank: Bank) -> None:
    """What its models would not fold does not matter."""
    async with running(bank) as app, running(bank) as other:
        await app.execute(Deposit(account=ADA))
        await other.execute(Note(account=BOB))
        bank.runs = 0
        await app.execute(Deposit(account=ADA))
        assert bank.runs == 1


async def test_ordinary_commands_know_what_such_handlers_have_appended(bank: Bank) -> None:
    """And the other way round: both decide on the same models, in one order."""
    async with running(bank) as app:
        for number in range(1, 4):
            noted = await app.execute(Note(account=ADA))
            assert noted.events[0].number == number  # type: ignore[attr-defined]
            await app.execute(Deposit(account=ADA))
        with pytest.raises(Rejected) as rejected:
            await app.execute(Deposit(account=ADA, at_most=3))
        assert rejected.value.facts == {"deposits": 3}
        assert await types_of(app) == ["Noted", "Deposited"] * 3 + ["DepositRefused"]


async def test_g3_it_loses_to_a_stale_screen(bank: Bank) -> None:
    """What its models fold has changed since the answer that it is based on: the rows are as before."""
    async with running(bank) as app:
        shown = await app.execute(Deposit(account=ADA))
        await app.execute(Note(account=BOB))
        second = await app.execute(Deposit(account=ADA), based_on=shown)
        assert isinstance(second, Receipt)
        with pytest.raises(ContextChanged):
            await app.execute(Deposit(account=ADA), based_on=shown)
        assert bank.balances()["ada"] == 2


# ── refusals ─────────────────────────────────────────────────────────────────


async def test_g4_a_rejection_takes_the_rows_back_and_is_kept(bank: Bank) -> None:
    """With what it records; the same id hears it again, and the handler is not run."""
    async with running(bank) as app:
        for _ in range(2):
            with pytest.raises(Rejected, match="too-many") as rejected:
                await app.execute(Deposit(account=ADA, at_most=0), command_id="d-1")
            assert rejected.value.facts == {"deposits": 0}
        assert bank.runs == 1
        assert bank.balances()["ada"] == 0
        assert await types_of(app) == ["DepositRefused"]


async def test_g4_the_same_command_in_another_process_in_the_way_is_a_duplicate(bank: Bank) -> None:
    """It inserts the row that the first has inserted: its caller hears the first one's receipt, not of the row."""
    async with running_twice(bank) as (app, other):
        gate = Gate()
        bank.hook = lambda connection, context: gate.pass_through(connection)
        carl = AccountId("carl")
        first = asyncio.create_task(app.execute(Open(account=carl), command_id="o-1"))
        await gate.entered()
        begun = asyncio.Event()
        bank.begun = begun.set
        second = asyncio.create_task(other.execute(Open(account=carl), command_id="o-1"))
        await let_others_run()  # on SQLite it waits for the writer, and has found no outcome before
        if bank.database == "postgres":
            await begun.wait()
        gate.open()
        async with asyncio.timeout(WAIT_S):
            assert await first == await second
        bank.begun = lambda: None
        with pytest.raises((sqlite3.IntegrityError, asyncpg.UniqueViolationError)):
            await other.execute(Open(account=carl))
        assert await types_of(app) == ["Opened"]


# ── dry runs ─────────────────────────────────────────────────────────────────


async def test_a_dry_run_is_run_and_taken_back(bank: Bank) -> None:
    """It says what would come of it, on the rows as they are, and nothing stays."""
    async with running(bank) as app:
        dry: list[bool] = []
        bank.hook = lambda connection, context: dry.append(context.dry_run)
        verdict = await app.can(Deposit(account=ADA, cents=3))
        assert verdict.events == (Deposited(account=ADA, cents=3, balance=3),)
        assert not await app.can(Deposit(account=ADA, at_most=0))
        assert dry == [True, True]
        assert bank.balances()["ada"] == 0
        assert await types_of(app) == []
        assert app.can_be_tried(Deposit)


# ── with services ────────────────────────────────────────────────────────────


class Bell:
    rung = 0


def ringing(bank: Bank, *, idempotent: bool) -> Context:
    """A handler that takes a service as well."""
    from tests.own_tables import Account

    context = BoundedContext("bank", events=[Opened])

    async def ring_async(command: Note, account: Account, transaction: Transaction, bell: Bell) -> Deposited:
        bell.rung += 1
        return Deposited(account=command.account, cents=0, balance=account.deposits)

    def ring(command: Note, account: Account, transaction: Transaction, bell: Bell) -> Deposited:
        bell.rung += 1
        return Deposited(account=command.account, cents=0, balance=account.deposits)

    declare: Callable[[Any], Any] = context.command_handler(idempotent=idempotent)
    declare(ring_async if bank.database == "postgres" else ring)
    return context


@SHARED
@pytest.mark.parametrize("idempotent", [False, True])
async def test_with_services_it_is_run_again_only_where_it_says_so(bank: Bank, idempotent: bool) -> None:
    """It may have done something outside; and what would come of it cannot be said without doing it."""
    bell = Bell()
    settings: dict[str, Any] = {"store": bank.url, "services": {Bell: bell}}
    context = ringing(bank, idempotent=idempotent)
    async with Application(context, **settings) as app, Application(context, **settings) as other:
        await app.execute(Note(account=ADA))
        await other.execute(Note(account=ADA))
        bell.rung = 0
        if idempotent:
            await app.execute(Note(account=ADA))
        else:
            with pytest.raises(Conflict):
                await app.execute(Note(account=ADA))
        assert bell.rung == (2 if idempotent else 1)
        with pytest.raises(NotPure):
            await app.can(Note(account=ADA))


# ── many at a time ───────────────────────────────────────────────────────────


async def test_many_callers_beside_ordinary_commands_come_to_the_right_total(bank: Bank) -> None:
    """Eight callers of two processes change one row each many times, others decide on models: nothing is lost."""
    async with running_twice(bank) as (app, other):

        async def deposit(number: int) -> None:
            one = app if number % 2 else other
            account = AccountId(f"a{number}")
            await one.execute(Open(account=account))
            for turn in range(DEPOSITS):
                await one.execute(Deposit(account=account, cents=number), command_id=f"{number}-{turn}")

        async def note(number: int) -> None:
            for _ in range(DEPOSITS):
                await app.execute(Note(account=AccountId(f"a{number}")))

        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*map(deposit, range(CALLERS)), *map(note, range(CALLERS)))
        assert bank.balances() == {"ada": 0, "bob": 0} | {f"a{n}": n * DEPOSITS for n in range(CALLERS)}
        stored = await types_of(app)
        assert {kind: stored.count(kind) for kind in set(stored)} == {
            "Opened": CALLERS,
            "Deposited": CALLERS * DEPOSITS,
            "Noted": CALLERS * DEPOSITS,
        }


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_rows_that_are_locked_in_two_orders_are_tried_again(bank: Bank) -> None:
    """A deadlock is the database's way to say so: the handler is run again, and both take effect once."""
    gates = {ADA: Gate(), BOB: Gate()}
    waited = set[str]()

    async def lock_the_other(connection: Link, context: CommandContext) -> None:
        mine = AccountId(context.command_id)
        if mine not in waited:
            waited.add(mine)
            await passed(gates[mine], connection)
        await connection.execute("UPDATE accounts SET cents = cents + 100 WHERE id <> $1", mine)

    bank.hook = lock_the_other
    async with running(bank) as app:
        calls = [asyncio.create_task(app.execute(Deposit(account=each), command_id=each)) for each in gates]
        for gate in gates.values():
            await gate.entered()
        for gate in gates.values():
            gate.open()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*calls)
        assert bank.balances() == {"ada": 101, "bob": 101}
        assert bank.runs >= 3
        assert await types_of(app) == ["Deposited", "Deposited"]


async def passed(gate: Gate, connection: object) -> None:
    waiting = gate.pass_through(connection)
    assert isinstance(waiting, Awaitable)
    await waiting


# ── misuse, and what does not fit ────────────────────────────────────────────


async def test_a_handler_that_ends_the_transaction_is_told(bank: Bank) -> None:
    """No event is stored."""
    bank.hook = lambda connection, context: (
        connection.execute("COMMIT") if bank.database == "postgres" else connection.commit()
    )
    async with running(bank) as app:
        with pytest.raises(TransactionMisused):
            await app.execute(Deposit(account=ADA))
        assert await types_of(app) == []


def test_a_handler_that_executes_a_command_is_told_and_does_not_wait_for_itself(tmp_path: Path) -> None:
    """On SQLite nobody but itself can write meanwhile; the next command finds all well."""
    bank = Bank("sqlite", tmp_path)
    with SyncApplication(bank.context, store=bank.url) as app:
        app.execute(Open(account=ADA))
        bank.hook = lambda connection, context: app.execute(Note(account=ADA))
        with pytest.raises(TransactionMisused, match="executes another command"):
            app.execute(Deposit(account=ADA))
        bank.hook = lambda connection, context: None
        app.execute(Note(account=ADA))
        assert app.execute(Deposit(account=ADA)).position == 3


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_g4_an_unknown_outcome_is_learnt_by_the_same_id(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost before or behind the commit: the same command again takes effect once."""
    commit_it = _LentTransaction._commit

    async def lose_before(transaction: Any, commit: Commit) -> None:
        transaction._link.terminate()
        await commit_it(transaction, commit)

    async def lose_behind(transaction: Any, commit: Commit) -> None:
        await commit_it(transaction, commit)
        transaction._link.terminate()
        raise OutcomeUnknown("lost", "the connection was lost")

    async with running(bank) as app:
        for turn, lose in enumerate((lose_before, lose_behind), 1):
            with monkeypatch.context() as patched:
                patched.setattr(_LentTransaction, "_commit", lose)
                with pytest.raises(OutcomeUnknown) as unknown:
                    await app.execute(Deposit(account=ADA), command_id=f"d-{turn}")
                assert unknown.value.command_id == f"d-{turn}"
            receipt = await app.execute(Deposit(account=ADA), command_id=f"d-{turn}")
            assert receipt.events == (Deposited(account=ADA, cents=1, balance=turn),)
        assert bank.balances()["ada"] == 2
        assert bank.runs == 3
        assert await types_of(app) == ["Deposited", "Deposited"]


async def test_a_closed_application_runs_no_handler(bank: Bank) -> None:
    """It says so."""
    async with running(bank) as app:
        partition = app.partition()
        await partition.commands.close()
        with pytest.raises(StoreClosed):
            await app.execute(Deposit(account=ADA))
    assert bank.runs == 0


def declared(handler: Callable[..., Any]) -> BoundedContext:
    context = BoundedContext("bank")
    context.command_handler(handler)
    return context


def plain(command: Open, transaction: Transaction) -> Opened: ...


async def plain_async(command: Open, transaction: Transaction) -> Opened: ...


def of_sqlite(command: Open, transaction: Transaction[sqlite3.Connection]) -> Opened: ...


async def of_sqlite_async(command: Open, transaction: Transaction[sqlite3.Connection]) -> Opened: ...


def of_asyncpg(command: Open, transaction: Transaction[Link]) -> Opened: ...


def twice(command: Open, one: Transaction, other: Transaction) -> Opened: ...


@pytest.mark.parametrize(
    ("handler", "store", "told"),
    [
        (plain, "memory:", "plain takes the transaction, and events in memory are in none"),
        (plain_async, "sqlite:{folder}/a.db", "a handler is synchronous there: write `def`"),
        (of_asyncpg, "sqlite:{folder}/a.db", r"SQLite gives a Transaction\[sqlite3.Connection\]"),
        (plain, "postgresql://nowhere/at_all", "a handler awaits there: write `async def`"),
        (of_sqlite_async, "postgresql://nowhere/at_all", r"PostgreSQL gives a Transaction\[asyncpg.Connection\]"),
        (twice, "sqlite:{folder}/a.db", "parameter `other` is the transaction once more"),
    ],
)
async def test_what_does_not_fit_is_told_when_the_application_opens(
    handler: Callable[..., Any], store: str, told: str, tmp_path: Path
) -> None:
    """Before anything is connected, naming the handler and the remedy."""
    with pytest.raises(ConfigurationError, match=told):
        await Application(declared(handler), store=store.format(folder=tmp_path)).open()


async def test_a_transaction_is_no_service(tmp_path: Path) -> None:
    """A type that nobody lends is still a missing service."""

    def unknown(command: Open, connection: sqlite3.Connection) -> Opened: ...

    with pytest.raises(MissingService):
        await Application(declared(unknown), store=f"sqlite:{tmp_path}/a.db").open()


def test_it_works_without_an_event_loop(tmp_path: Path) -> None:
    """A synchronous application has them too."""
    bank = Bank("sqlite", tmp_path)
    with SyncApplication(bank.context, store=bank.url) as app:
        app.execute(Open(account=ADA))
        app.execute(Deposit(account=ADA, cents=2))
    assert bank.balances() == {"ada": 2}


@pytest.mark.parametrize("bank", ["memory"], indirect=True)
def test_scenarios_run_handlers_on_tables_in_memory(bank: Bank) -> None:
    """The test's own connection has made the rows, and sees what came of them."""
    told = scenario(bank.context, stores=lambda: bank.url)
    told.when(Deposit(account=ADA, cents=3)).then(Deposited(account=ADA, cents=3, balance=3))
    told.when(Deposit(account=ADA, at_most=0)).then_rejected("too-many")
    assert bank.balances() == {"ada": 3, "bob": 0}
