"""A bank whose balances are in a table of its own, with handlers for each database that can hold it."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import asyncpg

from diptych import (
    BoundedContext,
    Command,
    CommandContext,
    DecisionModel,
    Event,
    Identity,
    Rejected,
    Transaction,
    replace,
)
from tests.postgres_server import by_hand, in_thread, new_stores, run

if TYPE_CHECKING:
    Link: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Link = asyncpg.Connection

__all__ = [
    "AccountId",
    "Bank",
    "Database",
    "Deposit",
    "DepositRefused",
    "Deposited",
    "Deposits",
    "Hook",
    "Look",
    "Looked",
    "Note",
    "Noted",
    "Open",
    "Opened",
]

Database: TypeAlias = Literal["memory", "sqlite", "postgres"]
Hook: TypeAlias = Callable[[Any, CommandContext], Any]
"""What a test does in the middle of a handler, with its connection; it may be awaitable on PostgreSQL."""

DEPOSITS_MAX = 100
_numbers = count()
TABLE = "CREATE TABLE accounts (id TEXT PRIMARY KEY, cents BIGINT NOT NULL)"


class AccountId(Identity): ...


class Open(Command):
    account: AccountId


class Deposit(Command):
    account: AccountId
    cents: int = 1
    at_most: int = DEPOSITS_MAX


class Note(Command):
    """Decided on the model alone."""

    account: AccountId
    text: str = ""


class Opened(Event):
    account: AccountId


class Deposited(Event):
    account: AccountId
    cents: int
    balance: int


class DepositRefused(Event):
    account: AccountId


class Noted(Event):
    account: AccountId
    number: int


class Account(DecisionModel[AccountId]):
    deposits: int = 0
    notes: int = 0

    def evolve(self, event: Deposited | Noted) -> Account:
        if isinstance(event, Noted):
            return replace(self, notes=self.notes + 1)
        return replace(self, deposits=self.deposits + 1)


class Deposits(DecisionModel[AccountId], state_stored=True):
    """State-stored, and changed by handlers that are not decided on it."""

    count: int = 0

    def evolve(self, event: Deposited) -> Deposits:
        return replace(self, count=self.count + 1)


class Look(Command):
    account: AccountId


class Looked(Event):
    account: AccountId
    count: int


class Bank:
    """One bank on one database.

    Attributes:
        url: of the event store, in whose database the table is.
        runs: how often a handler with the transaction was run.
        hook: called in the middle of each.
        begun: called where one that opens an account begins.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        """Make its table."""
        self.database = database
        self.runs = 0
        self.hook: Hook = lambda connection, context: None
        self.begun: Callable[[], Any] = lambda: None
        self.path = str(folder / "bank.db")
        self._kept = ExitStack()
        if database == "postgres":
            self.url = in_thread(new_stores())
            in_thread(run(self.url, "DROP TABLE IF EXISTS accounts", TABLE))
        else:
            self.url = f"sqlite:{self.path}?own_tables=true"
            if database == "memory":
                name = f"bank-{next(_numbers)}"
                self.path = f"file:/{name}?vfs=memdb"
                self.url = f"memory:?own_tables={name}"
                self._kept.enter_context(closing(sqlite3.connect(self.path, uri=True)))
            self.sql(TABLE)
        self.context = _context(self)

    def close(self) -> None:
        """Let go of a table in memory."""
        self._kept.close()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What somebody else sees, or does, in the table; statements have no parameters."""
        if self.database == "postgres":
            return in_thread(_fetched(self.url, statement))
        with closing(sqlite3.connect(self.path, uri=True)) as connection, connection:
            return connection.execute(statement).fetchall()

    def balances(self) -> dict[str, int]:
        """What is committed in the table."""
        return dict(self.sql("SELECT id, cents FROM accounts"))


async def _fetched(url: str, statement: str) -> list[tuple[Any, ...]]:
    async with by_hand(url) as link:
        return [tuple(row) for row in await link.fetch(statement)]


def _decided(command: Deposit, account: Account, balance: int) -> Deposited:
    if account.deposits >= command.at_most:
        raise Rejected("too-many", record=DepositRefused(account=command.account), deposits=account.deposits)
    return Deposited(account=command.account, cents=command.cents, balance=balance)


def _context(bank: Bank) -> BoundedContext:
    context = BoundedContext("bank", events=[DepositRefused])

    @context.command_handler
    def note(command: Note, account: Account) -> Noted:
        return Noted(account=command.account, number=account.notes + 1)

    (_add_postgres if bank.database == "postgres" else _add_sqlite)(context, bank)
    return context


def _add_sqlite(context: BoundedContext, bank: Bank) -> None:
    @context.command_handler
    def open_account(command: Open, transaction: Transaction[sqlite3.Connection], context: CommandContext) -> Opened:
        bank.runs += 1
        bank.begun()
        transaction.connection.execute("INSERT INTO accounts VALUES (?, 0)", (command.account,))
        bank.hook(transaction.connection, context)
        return Opened(account=command.account)

    @context.command_handler
    def deposit(
        command: Deposit, account: Account, transaction: Transaction[sqlite3.Connection], context: CommandContext
    ) -> Deposited:
        bank.runs += 1
        connection = transaction.connection
        connection.execute("UPDATE accounts SET cents = cents + ? WHERE id = ?", (command.cents, command.account))
        (balance,) = connection.execute("SELECT cents FROM accounts WHERE id = ?", (command.account,)).fetchone()
        bank.hook(connection, context)
        return _decided(command, account, balance)


def _add_postgres(context: BoundedContext, bank: Bank) -> None:
    async def hook(connection: Any, context: CommandContext) -> None:
        answer = bank.hook(connection, context)
        if inspect.isawaitable(answer):
            await answer

    @context.command_handler
    async def open_account(command: Open, transaction: Transaction[Link], context: CommandContext) -> Opened:
        bank.runs += 1
        bank.begun()
        await transaction.connection.execute("INSERT INTO accounts VALUES ($1, 0)", command.account)
        await hook(transaction.connection, context)
        return Opened(account=command.account)

    @context.command_handler
    async def deposit(
        command: Deposit, account: Account, transaction: Transaction[Link], context: CommandContext
    ) -> Deposited:
        bank.runs += 1
        statement = "UPDATE accounts SET cents = cents + $1 WHERE id = $2 RETURNING cents"
        balance = await transaction.connection.fetchval(statement, command.cents, command.account)
        await hook(transaction.connection, context)
        return _decided(command, account, balance)
