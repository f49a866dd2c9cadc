"""Partitions for tests: a warehouse whose every message names a tenant, and places to keep partitions in."""

from __future__ import annotations

from pathlib import Path

from diptych import (
    Application,
    BoundedContext,
    Command,
    DecisionModel,
    Event,
    Identity,
    Key,
    Query,
    Reader,
    ReadModel,
    Rejected,
    Untagged,
    replace,
)


class TenantId(Identity): ...


class Sku(Identity): ...


class Stock(Command):
    tenant: TenantId
    sku: Sku
    units: int


class Move(Command):
    """From one tenant to another, which cannot be decided."""

    source: TenantId
    target: TenantId
    sku: Sku


class Lend(Command):
    """Its event is of the tenant in `to`, which the command does not tell as one."""

    tenant: TenantId
    to: Untagged[TenantId]
    sku: Sku


class Stocked(Event):
    sku: Sku
    units: int


class Lent(Event):
    tenant: TenantId
    sku: Sku


class Shelf(DecisionModel[Sku]):
    units: int = 0

    def evolve(self, event: Stocked) -> Shelf:
        return replace(self, units=self.units + event.units)


class OnShelf(ReadModel):
    sku: Key[Sku]
    units: int = 0


class UnitsOnShelf(Query[int]):
    tenant: TenantId
    sku: Sku


def warehouse() -> BoundedContext:
    """A context whose every message names a tenant."""
    context = BoundedContext("warehouse")

    @context.command_handler
    def stock(command: Stock, shelf: Shelf) -> Stocked:
        if shelf.units + command.units > 10:
            raise Rejected("full", units=shelf.units)
        return Stocked(sku=command.sku, units=command.units)

    @context.command_handler
    def lend(command: Lend) -> Lent:
        return Lent(tenant=command.to, sku=command.sku)

    @context.projection
    def on_shelf(row: OnShelf, event: Stocked) -> OnShelf:
        return replace(row, units=row.units + event.units)

    @context.query_handler
    async def units_on_shelf(query: UnitsOnShelf, read: Reader) -> int:
        row = await read.get(OnShelf, query.sku)
        return 0 if row is None else row.units

    return context


ACME, GLOBEX, PEN = TenantId("acme"), TenantId("globex"), Sku("pen")


class Places:
    """Where partitions are kept: in one database, or one folder."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder

    def __call__(self, *names: str) -> dict[str, str]:
        """A store for each partition."""
        if self.kind == "memory":
            return dict.fromkeys(names, "memory:")
        if self.kind == "sqlite":
            return {name: f"sqlite:{self._folder}/{name}.db" for name in names}
        from tests.postgres_server import in_thread, new_stores

        return {name: in_thread(new_stores()) for name in names}


def by_tenant(places: Places, *names: str) -> Application:
    return Application(warehouse(), partition_by=TenantId, store=places(*(names or (ACME, GLOBEX))))


class OnAllShelves(ReadModel):
    """Of all tenants."""

    sku: Key[Sku]
    units: int = 0


class UnitsEverywhere(Query[OnAllShelves | None]):
    """Names no tenant."""

    sku: Sku


def warehouses() -> BoundedContext:
    """A warehouse with a read model across tenants."""
    context = warehouse()

    @context.projection(commutative=True)
    def on_all_shelves(row: OnAllShelves, event: Stocked) -> OnAllShelves:
        return replace(row, units=row.units + event.units)

    return context
