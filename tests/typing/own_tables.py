"""Handlers that take the transaction: what type checkers know of it."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, TypeAlias, assert_type

import asyncpg
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from diptych import BoundedContext, Command, Event, Identity, Transaction

if TYPE_CHECKING:
    Link: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Link = asyncpg.Connection

till = BoundedContext("till")


class Tables(DeclarativeBase): ...


class Row(Tables):
    __tablename__ = "rows"
    id: Mapped[str] = mapped_column(primary_key=True)


class TillId(Identity): ...


class Open(Command):
    till: TillId


class Opened(Event):
    till: TillId


@till.command_handler
def on_sqlite(command: Open, transaction: Transaction[sqlite3.Connection]) -> Opened:
    assert_type(transaction.connection, sqlite3.Connection)
    return Opened(till=command.till)


@till.command_handler
async def on_postgres(command: Open, transaction: Transaction[Link]) -> Opened:
    assert_type(transaction.connection, Link)
    assert_type(await transaction.connection.execute("SELECT 1"), str)
    return Opened(till=command.till)


@till.command_handler
async def on_either(command: Open, transaction: Transaction) -> Opened:
    assert_type(transaction.connection, Any)
    return Opened(till=command.till)


@till.command_handler
async def with_sqlalchemy(command: Open, session: AsyncSession) -> Opened:
    assert_type((await session.scalars(select(Row))).one(), Row)
    return Opened(till=command.till)


def closed(transaction: Transaction[sqlite3.Connection]) -> None:
    transaction.connection.fetch("SELECT 1")  # type: ignore[attr-defined]  # that is asyncpg's
