"""What is served beside a replica: stock that is counted, and queries that tell on which server they were answered."""

from __future__ import annotations

from diptych import BoundedContext, Command, Event, Identity, Key, Query, Reader, ReadModel, Value, replace

warehouse = BoundedContext("warehouse")


class Sku(Identity): ...


class Receive(Command):
    sku: Sku


class Received(Event):
    sku: Sku


class Stock(ReadModel):
    sku: Key[Sku]
    units: int = 0


class Answered(Value):
    """How many units a server shows, and which one it is; the primary has no name."""

    units: int
    server: str


class StockOf(Query[Answered]):
    sku: Sku


@warehouse.command_handler
def receive(command: Receive) -> Received:
    return Received(sku=command.sku)


@warehouse.projection
def stock(row: Stock, event: Received) -> Stock:
    return replace(row, units=row.units + 1)


@warehouse.query_handler
async def stock_of(query: StockOf, read: Reader) -> Answered:
    statement = (
        "SELECT coalesce((SELECT units FROM warehouse_stock WHERE sku = ?), 0) AS units, "
        "CASE WHEN pg_is_in_recovery() THEN current_setting('cluster_name') ELSE '' END AS server"
    )
    (answered,) = await read.sql(Answered, statement, query.sku, touches=[Stock])
    return answered


everywhere = BoundedContext("everywhere")
"""Follows the stock of all partitions, where each SKU is one."""


class AllStock(ReadModel):
    name: Key[str]
    units: int = 0


class AllStockOf(Query[Answered]):
    name: str


@everywhere.projection(key=lambda event: "all", commutative=True)
def all_stock(row: AllStock, event: Received) -> AllStock:
    return replace(row, units=row.units + 1)


@everywhere.query_handler
async def all_stock_of(query: AllStockOf, read: Reader) -> Answered:
    statement = (
        "SELECT coalesce((SELECT units FROM everywhere_all_stock WHERE name = ?), 0) AS units, "
        "CASE WHEN pg_is_in_recovery() THEN current_setting('cluster_name') ELSE '' END AS server"
    )
    (answered,) = await read.sql(Answered, statement, query.name, touches=[AllStock])
    return answered
