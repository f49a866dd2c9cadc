"""Handlers that take a session or connection of SQLAlchemy's, bound to the transaction of the append (rule 25)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Connection, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from diptych import Application, BoundedContext, Command, ConfigurationError, Event, Identity, Rejected, Transaction
from diptych.errors import TransactionMisused
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import START
from diptych.messages.codec import decode
from tests.own_tables import Bank, Database

pytestmark = pytest.mark.anyio


class Tables(DeclarativeBase): ...


class Row(Tables):
    __tablename__ = "accounts"
    id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class AccountId(Identity): ...


class Pay(Command):
    account: AccountId
    cents: int


class Paid(Event):
    account: AccountId
    balance: int


Step = Callable[[Any], Any]
"""What a handler does with its session beside paying."""


class OwnSession(AsyncSession):
    """Derived, as other libraries do."""


class OwnSyncSession(Session): ...


def paying(database: Database, step: Step, *, kind: str) -> BoundedContext:
    context = BoundedContext("bank")
    if database != "postgres":
        _add_sync(context, step, kind)
    else:
        _add_async(context, step, kind)
    return context


def _add_sync(context: BoundedContext, step: Step, kind: str) -> None:
    def pay(command: Pay, session: Session) -> Paid:
        row = session.execute(select(Row).where(Row.id == command.account).with_for_update()).scalar_one()
        row.cents += command.cents
        step(session)
        return Paid(account=command.account, balance=row.cents)

    def pay_derived(command: Pay, session: OwnSyncSession) -> Paid:
        assert type(session) is OwnSyncSession
        return pay(command, session)

    def pay_connection(command: Pay, connection: Connection) -> Paid:
        changed = update(Row).where(Row.id == command.account).values(cents=Row.cents + command.cents)
        balance = connection.execute(changed.returning(Row.cents)).scalar_one()
        step(connection)
        return Paid(account=command.account, balance=balance)

    handlers: dict[str, Callable[..., Any]] = {"session": pay, "derived": pay_derived, "connection": pay_connection}
    context.command_handler(handlers[kind])


def _add_async(context: BoundedContext, step: Step, kind: str) -> None:
    async def pay(command: Pay, session: AsyncSession) -> Paid:
        chosen = select(Row).where(Row.id == command.account).with_for_update()
        row = (await session.execute(chosen)).scalar_one()
        row.cents += command.cents
        await session.run_sync(step)
        return Paid(account=command.account, balance=row.cents)

    async def pay_derived(command: Pay, session: OwnSession) -> Paid:
        assert type(session) is OwnSession
        return await pay(command, session)

    async def pay_connection(command: Pay, connection: AsyncConnection) -> Paid:
        changed = update(Row).where(Row.id == command.account).values(cents=Row.cents + command.cents)
        balance = (await connection.execute(changed.returning(Row.cents))).scalar_one()
        await connection.run_sync(step)
        return Paid(account=command.account, balance=balance)

    handlers: dict[str, Callable[..., Any]] = {"session": pay, "derived": pay_derived, "connection": pay_connection}
    context.command_handler(handlers[kind])


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    with closing(Bank(request.param, tmp_path)) as made:
        made.sql("INSERT INTO accounts VALUES ('ada', 0), ('bob', 0)")
        yield made


SHARED = pytest.mark.parametrize("bank", ["sqlite", "postgres"], indirect=True)
"""Where others have the history and the tables, also while a handler works."""


@asynccontextmanager
async def running(bank: Bank, step: Step = lambda _: None, *, kind: str = "session") -> AsyncGenerator[Application]:
    async with Application(paying(bank.database, step, kind=kind), store=bank.url) as app:
        yield app


async def count(app: Application) -> int:
    return len((await app.partition().store.read(ALL_EVENTS, START, 100)).events)


CALLERS = 8
TURNS = 6
PAY = Pay(account=AccountId("ada"), cents=5)


@pytest.mark.parametrize("kind", ["session", "derived", "connection"])
async def test_what_it_changes_is_committed_with_the_events(bank: Bank, kind: str) -> None:
    """Flushed, if need be, before the append; again and again over the same connection."""
    async with running(bank, kind=kind) as app:
        for balance in (5, 10, 15):
            receipt = await app.execute(PAY)
            assert receipt.events == (Paid(account=AccountId("ada"), balance=balance),)
            assert bank.balances() == {"ada": balance, "bob": 0}


@SHARED
async def test_many_callers_change_one_row_under_its_lock(bank: Bank) -> None:
    """Eight callers of two processes, beside ordinary commands: each reads what the one before it wrote."""
    ordinary = BoundedContext("notes")

    class Note(Command):
        account: AccountId

    class Noted(Event):
        account: AccountId

    @ordinary.command_handler
    def note(command: Note) -> Noted:
        return Noted(account=command.account)

    contexts = paying(bank.database, lambda _: None, kind="session"), ordinary
    async with Application(*contexts, store=bank.url) as app, Application(*contexts, store=bank.url) as other:

        async def call(number: int) -> None:
            for _ in range(TURNS):
                await (app if number % 2 else other).execute(PAY)
                await app.execute(Note(account=AccountId("bob")))

        await asyncio.gather(*map(call, range(CALLERS)))
        found = (await app.partition().store.read(ALL_EVENTS, START, 1000)).events
    assert [event.position for event in found] == list(range(1, 2 * CALLERS * TURNS + 1))
    balances = [decode(event.data, Paid).balance for event in found if event.type == "bank.Paid"]
    assert balances == [5 * number for number in range(1, CALLERS * TURNS + 1)]
    assert bank.balances()["ada"] == balances[-1]


@SHARED
@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_its_own_commit_commits_nothing_early(bank: Bank, kind: str) -> None:
    """Code that commits, as it has always done, runs unchanged; what fails after it takes everything back."""
    seen: list[dict[str, int]] = []

    def commit_and_look(session: Session) -> None:
        session.commit()
        seen.append(bank.balances())
        session.execute(text("UPDATE accounts SET cents = 7 WHERE id = 'bob'"))
        session.commit()

    def commit_and_fail(session: Session) -> None:
        session.commit()
        raise KeyError("mine")

    async with running(bank, commit_and_fail, kind=kind) as app:
        with pytest.raises(KeyError):
            await app.execute(PAY)
        assert await count(app) == 0
    assert bank.balances() == {"ada": 0, "bob": 0}
    async with running(bank, commit_and_look, kind=kind) as app:
        await app.execute(PAY)
        assert seen == [{"ada": 0, "bob": 0}]
        assert bank.balances() == {"ada": 5, "bob": 7}


async def test_its_own_rollback_takes_back_what_came_since_its_last_commit(bank: Bank) -> None:
    """As it always does; the transaction of the append goes on."""

    def commit_and_roll_back(session: Session) -> None:
        session.commit()
        session.execute(text("UPDATE accounts SET cents = 100 WHERE id = 'bob'"))
        session.rollback()
        session.get_one(Row, "ada")

    async with running(bank, commit_and_roll_back) as app:
        assert (await app.execute(PAY)).events == (Paid(account=AccountId("ada"), balance=5),)
    assert bank.balances() == {"ada": 5, "bob": 0}


async def test_savepoints_are_its_own(bank: Bank) -> None:
    """A nested transaction that fails leaves the rest."""

    def try_twice(session: Session) -> None:
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(text("INSERT INTO accounts VALUES ('bob', 1)"))
        with session.begin_nested():
            session.execute(text("INSERT INTO accounts VALUES ('carl', 1)"))

    async with running(bank, try_twice) as app:
        await app.execute(PAY)
    assert bank.balances() == {"ada": 5, "bob": 0, "carl": 1}


async def test_a_rejection_takes_back_what_it_has_committed_itself(bank: Bank) -> None:
    """Nothing of it is flushed either."""

    def reject(session: Session) -> None:
        session.commit()
        session.add(Row(id="bob", cents=1))  # could not be flushed
        raise Rejected("no")

    async with running(bank, reject) as app:
        for _ in range(2):
            with pytest.raises(Rejected, match="no"):
                await app.execute(PAY, command_id="p-1")
    assert bank.balances() == {"ada": 0, "bob": 0}


async def test_what_cannot_be_flushed_is_the_handlers_error(bank: Bank) -> None:
    """It comes out as SQLAlchemy raised it, and nothing is done."""
    adding = [True]

    def add_again(session: Session) -> None:
        if adding:
            session.add(Row(id="bob", cents=1))

    async with running(bank, add_again) as app:
        with pytest.raises(IntegrityError):
            await app.execute(PAY)
        assert await count(app) == 0
        adding.clear()
        await app.execute(PAY)
        assert await count(app) == 1
    assert bank.balances() == {"ada": 5, "bob": 0}


async def test_a_transaction_that_is_ended_by_hand_is_found_out(bank: Bank) -> None:
    """SQL that commits past SQLAlchemy is refused, or told of."""
    async with running(bank, lambda session: session.execute(text("COMMIT"))) as app:
        with pytest.raises(TransactionMisused):
            await app.execute(PAY)
        assert await count(app) == 0


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_json_comes_to_others_as_before(bank: Bank) -> None:
    """SQLAlchemy decodes JSON on its connections; a plain transaction's are others."""
    seen: list[Any] = []
    context = BoundedContext("bank")

    async def pay(command: Pay, session: AsyncSession) -> Paid:
        value = (await session.execute(text("SELECT '[1]'::json").columns(value=JSON))).scalar_one()
        seen.append(value)
        return Paid(account=command.account, balance=0)

    class Look(Command):
        account: AccountId

    async def look(command: Look, transaction: Transaction) -> None:
        seen.append(await transaction.connection.fetchval("SELECT '[1]'::json"))

    context.command_handler(pay)
    context.command_handler(look)
    async with Application(context, store=bank.url) as app:
        await app.execute(PAY)
        await app.execute(Look(account=AccountId("ada")))
    assert seen == [[1], "[1]"]


@pytest.mark.parametrize(
    ("bank", "told"),
    [("sqlite", "AsyncSession awaits: take a Session"), ("postgres", "Session does not await: take an AsyncSession")],
    indirect=["bank"],
)
async def test_a_session_of_the_other_kind_is_told_when_the_application_opens(bank: Bank, told: str) -> None:
    """With the kind to take."""

    async def pay_async(command: Pay, session: Session) -> Paid: ...

    def pay(command: Pay, session: AsyncSession) -> Paid: ...

    context = BoundedContext("bank")
    context.command_handler(pay_async if bank.database == "postgres" else pay)
    with pytest.raises(ConfigurationError, match=told):
        await Application(context, store=bank.url).open()
