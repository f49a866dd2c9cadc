"""Purses on three write models, on every store, and what plain Python says of a history of them.

Handlers of own tables, with a row of money for each account, beside pure ones that are decided on models folded from
events, kept as snapshots, and state-stored.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import msgspec
from hypothesis import strategies as st

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Rejected, Transaction
from diptych import replace as changed
from diptych.adapters.memory.event_store import connect as connect_memory
from diptych.adapters.postgres.event_store import connect as connect_postgres
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.application.registration import command_handlers, event_types
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.write_side.command_bus import CommandBus
from tests.own_tables import Link
from tests.postgres_server import by_hand, new_store, run

READ_MAX = 10_000
NOTES_MAX = 4
MOVEMENTS_MAX = 12
TABLE = "CREATE TABLE purses (id TEXT PRIMARY KEY, cents BIGINT NOT NULL)"
Kind: TypeAlias = Literal["memory", "sqlite", "postgres"]
IN_MEMORY = "file:/purses?vfs=memdb"


class AccountId(Identity): ...


class Pay(Command):
    """Own tables, decided on no model."""

    account: AccountId
    cents: int


class Spend(Command):
    """Own tables, decided on a model folded from events and on a state-stored one."""

    account: AccountId
    cents: int


class Note(Command):
    """Pure, decided on a model folded from events and on a state-stored one."""

    account: AccountId


class Tally(Command):
    """Pure, decided on snapshots."""


class Moved(Event):
    account: AccountId
    cents: int
    balance: int


class Short(Event):
    account: AccountId


class Noted(Event):
    account: AccountId
    number: int
    cents: int


class Tallied(Event):
    movements: int


class Notes(DecisionModel[AccountId]):
    count: int = 0

    def evolve(self, event: Noted) -> Notes:
        return changed(self, count=self.count + 1)


class Money(DecisionModel[AccountId], state_stored=True):
    cents: int = 0

    def evolve(self, event: Moved) -> Money:
        return changed(self, cents=self.cents + event.cents)


class Movements(DecisionModel, snapshot_every=3):
    count: int = 0

    def evolve(self, event: Moved) -> Movements:
        return changed(self, count=self.count + 1)


def spent(command: Spend, notes: Notes, money: Money, balance: int) -> Moved:
    if notes.count >= NOTES_MAX:
        raise Rejected("closed")
    if money.cents < command.cents:
        raise Rejected("short", record=Short(account=command.account))
    return Moved(account=command.account, cents=-command.cents, balance=balance)


UPDATE = "UPDATE purses SET cents = cents + {} WHERE id = {} RETURNING cents"


def context(kind: Kind) -> BoundedContext:
    made = BoundedContext("purse", events=[Short])

    @made.command_handler
    def note(command: Note, notes: Notes, money: Money) -> Noted:
        if notes.count >= NOTES_MAX:
            raise Rejected("closed")
        return Noted(account=command.account, number=notes.count + 1, cents=money.cents)

    @made.command_handler
    def tally(command: Tally, movements: Movements) -> Tallied:
        if movements.count >= MOVEMENTS_MAX:
            raise Rejected("enough")
        return Tallied(movements=movements.count)

    (_add_postgres if kind == "postgres" else _add_sqlite)(made)
    return made


def _add_sqlite(made: BoundedContext) -> None:
    def move(transaction: Transaction[sqlite3.Connection], account: str, cents: int) -> int:
        (row,) = transaction.connection.execute(UPDATE.format("?", "?"), (cents, account)).fetchall()
        return int(row[0])

    @made.command_handler
    def pay(command: Pay, transaction: Transaction[sqlite3.Connection]) -> Moved:
        balance = move(transaction, command.account, command.cents)
        return Moved(account=command.account, cents=command.cents, balance=balance)

    @made.command_handler
    def spend(command: Spend, notes: Notes, money: Money, transaction: Transaction[sqlite3.Connection]) -> Moved:
        return spent(command, notes, money, move(transaction, command.account, -command.cents))


def _add_postgres(made: BoundedContext) -> None:
    async def move(transaction: Transaction[Link], account: str, cents: int) -> int:
        return int(await transaction.connection.fetchval(UPDATE.format("$1", "$2"), cents, account))

    @made.command_handler
    async def pay(command: Pay, transaction: Transaction[Link]) -> Moved:
        balance = await move(transaction, command.account, command.cents)
        return Moved(account=command.account, cents=command.cents, balance=balance)

    @made.command_handler
    async def spend(command: Spend, notes: Notes, money: Money, transaction: Transaction[Link]) -> Moved:
        return spent(command, notes, money, await move(transaction, command.account, -command.cents))


# ── the same in plain Python ─────────────────────────────────────────────────


def cents(log: Sequence[Event], account: str) -> int:
    return sum(event.cents for event in log if isinstance(event, Moved) and event.account == account)


def notes(log: Sequence[Event], account: str) -> int:
    return sum(isinstance(event, Noted) and event.account == account for event in log)


def movements(log: Sequence[Event]) -> int:
    return sum(isinstance(event, Moved) for event in log)


def serial(log: Sequence[Event], command: Command) -> Event | str:
    """What a command gives where it is executed alone, after this history: an event, perhaps a fact, or why not."""
    match command:
        case Pay(account=account, cents=given):
            return Moved(account=account, cents=given, balance=cents(log, account) + given)
        case Tally():
            return "enough" if movements(log) >= MOVEMENTS_MAX else Tallied(movements=movements(log))
        case Note(account=account) | Spend(account=account) if notes(log, account) >= NOTES_MAX:
            return "closed"
        case Note(account=account):
            return Noted(account=account, number=notes(log, account) + 1, cents=cents(log, account))
        case Spend(account=account, cents=taken):
            left = cents(log, account) - taken
            return Short(account=account) if left < 0 else Moved(account=account, cents=-taken, balance=left)
        case _:
            raise AssertionError(command)


def concerns(command: Command, event: Event) -> bool:
    """Whether what the command is decided on has this event in it."""
    match command, event:
        case ((Note(account=account) | Spend(account=account)), (Moved() | Noted())):
            return event.account == account
        case Tally(), Moved():
            return True
        case _:
            return False


# ── what is executed ─────────────────────────────────────────────────────────


ACCOUNTS = [AccountId("ada"), AccountId("bob")]
accounts = st.sampled_from(ACCOUNTS)
commands = st.one_of(
    st.builds(Pay, account=accounts, cents=st.integers(1, 3)),
    st.builds(Spend, account=accounts, cents=st.integers(1, 4)),
    st.builds(Note, account=accounts),
    st.builds(Tally),
)


def two_instances(kind: Kind, place: str) -> list[EventStore]:
    """Of one store; in memory, where there can be one alone, that one twice."""
    clock = SystemClock()
    if kind == "memory":
        return [connect_memory("memory:?own_tables=purses", clock)] * 2
    if kind == "postgres":
        return [connect_postgres(place, clock) for _ in range(2)]
    return [SqliteEventStore(place, clock, synchronous="NORMAL", beside_tables=True) for _ in range(2)]


class World:
    """Two instances of one store, and its table.

    Attributes:
        stores: the instances, open.
    """

    def __init__(self, kind: Kind, place: str) -> None:
        self._kind: Kind = kind
        self._place = place
        self.stores = two_instances(kind, place)

    async def make_table(self) -> None:
        rows = "INSERT INTO purses VALUES ('ada', 0), ('bob', 0)"
        if self._kind == "postgres":
            await run(self._place, "DROP TABLE IF EXISTS purses", TABLE, rows)
        else:
            with closing(sqlite3.connect(self._place, uri=True)) as connection, connection:
                connection.executescript(f"{TABLE}; {rows}")

    async def rows(self) -> dict[str, int]:
        if self._kind != "postgres":
            with closing(sqlite3.connect(self._place, uri=True)) as connection:
                return dict(connection.execute("SELECT id, cents FROM purses").fetchall())
        async with by_hand(self._place) as link:
            return {row[0]: row[1] for row in await link.fetch("SELECT id, cents FROM purses")}

    async def cold_bus(self, index: int, cached: int) -> CommandBus:
        """A bus that knows nothing."""
        parts, store = [context(self._kind)], self.stores[index]
        types = event_types(parts)
        bus = CommandBus(command_handlers(parts, {}, types), store, History(types), SystemClock())
        bus._cache._limit = cached
        await bus.open()
        return bus

    async def log(self) -> list[Event]:
        history = History(event_types([context(self._kind)]))
        found = (await self.stores[0].read(ALL_EVENTS, START, READ_MAX)).events
        assert [event.position for event in found] == list(range(1, len(found) + 1))
        return [history.event(recorded) for recorded in found]


@asynccontextmanager
async def opened(kind: Kind) -> AsyncIterator[World]:
    with TemporaryDirectory() as folder:
        file = str(Path(folder, "events.db"))
        world = World(kind, {"memory": IN_MEMORY, "sqlite": file}.get(kind) or await new_store())
        for store in world.stores:
            await store.open()
        await world.make_table()
        try:
            yield world
        finally:
            for store in world.stores:
                await store.close()


async def check_kept(world: World, log: Sequence[Event]) -> None:
    """Rows and kept states are what the events make of them."""
    assert await world.rows() == {account: cents(log, account) for account in ACCOUNTS}
    for account in ACCOUNTS:
        kept = await world.stores[1].model_state("purse.Money", msgspec.json.encode([account]).decode())
        at = 0 if kept is None else kept.position
        assert (0 if kept is None else msgspec.json.decode(kept.data)["cents"]) == cents(log[:at], account)
        assert not [event for event in log[at:] if isinstance(event, Moved) and event.account == account]
    kept = await world.stores[1].model_state("purse.Movements", "[]")
    assert kept is None or msgspec.json.decode(kept.data)["count"] == movements(log[: kept.position])
