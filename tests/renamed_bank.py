"""A small domain whose history has former names: accounts, and moves between them by code of now and by older code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from diptych import (
    BoundedContext,
    By,
    Command,
    DecisionModel,
    Event,
    Identity,
    Key,
    Query,
    Reader,
    ReadModel,
    Rejected,
    replace,
)
from diptych.application.partition import Partition
from diptych.event_store.event_store import Appended, Commit
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes


class BranchId(Identity, formerly=["office"]): ...


class AccountId(Identity, formerly=["acct"]): ...


class Move(Command):
    branch: BranchId
    source: AccountId
    target: AccountId
    cents: int


class MoveBound(Move):
    """Decided on two models, each bound by its field."""


class MoveMapped(Move):
    """Decided on a model for each account that the command names."""


class MoveOutside(Move):
    """Decided before it is submitted: its handler is async."""


class Moved(Event, version=2, formerly=["Transferred"]):
    branch: BranchId
    source: AccountId
    target: AccountId
    cents: int


class Account(DecisionModel[AccountId]):
    account: AccountId
    cents: int = 100

    def evolve(self, event: Moved) -> Account:
        change = event.cents * ((event.target == self.account) - (event.source == self.account))
        return replace(self, cents=self.cents + change)


class Pair(DecisionModel[AccountId, BranchId]):
    moves: int = 0

    def evolve(self, event: Moved) -> Pair:
        return Pair(moves=self.moves + 1)


class Balance(ReadModel):
    account: Key[AccountId]
    cents: int = 100


class BalanceOf(Query[Balance | None]):
    branch: BranchId
    account: AccountId


MAIN, ADA, BOB = BranchId("main"), AccountId("ada"), AccountId("bob")


def bank(context: BoundedContext | None = None, slices: int = 1) -> BoundedContext:
    """Nobody's balance goes below nothing."""
    context = context or BoundedContext("bank")

    def decided(command: Move, source: Account) -> Moved:
        if source.cents < command.cents:
            raise Rejected("not-enough", cents=source.cents)
        return Moved(branch=command.branch, source=command.source, target=command.target, cents=command.cents)

    @context.command_handler
    def move_bound(
        command: MoveBound,
        source: Annotated[Account, By("source")],
        target: Annotated[Account, By("target")],
        pair: Annotated[Pair, By("source", "branch")],
    ) -> Moved:
        return decided(command, source)

    @context.command_handler
    def move_mapped(command: MoveMapped, accounts: Mapping[AccountId, Account]) -> Moved:
        return decided(command, accounts[command.source])

    @context.command_handler(idempotent=True)
    async def move_outside(command: MoveOutside, source: Annotated[Account, By("source")]) -> Moved:
        return decided(command, source)

    @context.upcaster(Moved, from_version=1)
    def moved_from_1(stored: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**stored, "cents": round(float(stored["euros"]) * 100)}

    @context.projection(partitions=slices, each=sides, key=lambda side: side[0])
    def balances(row: Balance, event: Moved, side: tuple[AccountId, int]) -> Balance:
        return replace(row, cents=row.cents + side[1])

    @context.query_handler
    async def balance_of(query: BalanceOf, reader: Reader) -> Balance | None:
        return await reader.get(Balance, query.account)

    return context


def sides(event: Moved) -> Iterator[tuple[AccountId, int]]:
    """What an event is to each of its accounts."""
    yield event.source, -event.cents
    yield event.target, event.cents


WAYS = [MoveBound, MoveMapped, MoveOutside]
STORED = {
    "another type": ("bank.Transferred", 1, '"euros":"0.70"', "account", "branch"),
    "other tags": ("bank.Moved", 2, '"cents":70', "acct", "office"),
    "all of it": ("bank.Transferred", 1, '"euros":"0.70"', "acct", "branch"),
}
"""Names with which older code stores a move: type, version, field, and the tags of accounts and branches."""


async def store_as_older_code(partition: Partition, names: str, source: str = ADA, target: str = BOB) -> None:
    """Bob has 70 of Ada's cents, by a process with older code that has the same store open; or others have."""
    type, version, amount, account, branch = STORED[names]
    data = f'{{"branch":"main","source":"{source}","target":"{target}",{amount}}}'.encode()
    tags = tuple(dict.fromkeys((f"{account}:{source}", f"{account}:{target}", f"{branch}:main")))
    commit = Commit(events=(NewEvent(unique_bytes(), type, version, data, tags),))
    (result,) = await partition.store.append([commit])
    assert isinstance(result, Appended)
