"""A partition is a history of its own: whatever goes on in the others, it is as if its application were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Application, Rejected
from diptych.application.partition import Partition
from diptych.event_store.event_query import ALL_EVENTS
from tests.postgres_server import new_stores
from tests.tenants import Sku, Stock, TenantId, UnitsOnShelf, warehouse

TENANTS = tuple(TenantId(name) for name in ("acme", "globex", "hooli"))
SKUS = tuple(Sku(name) for name in ("pen", "cup"))


class Sent(NamedTuple):
    """A command, and the id that it is sent with."""

    command: Stock
    command_id: str | None


sent = st.builds(
    Sent,
    st.builds(Stock, tenant=st.sampled_from(TENANTS), sku=st.sampled_from(SKUS), units=st.integers(1, 6)),
    st.none() | st.text("ab", min_size=1, max_size=1),
)


async def outcome(app: Application, one: Sent) -> object:
    """What became of it, in words that two applications share."""
    try:
        receipt = await app.execute(one.command, command_id=one.command_id)
    except Rejected as rejected:
        return rejected.code, rejected.facts
    except Exception as error:  # noqa: BLE001 — that the same is raised is the law
        return type(error)
    return receipt.position, receipt.events


async def told(app: Application, partition: Partition, tenant: TenantId) -> object:
    """The history, and the rows."""
    events = [(event.position, event.type, event.data) async for event in partition.events(ALL_EVENTS)]
    return events, [await app.query(UnitsOnShelf(tenant=tenant, sku=sku), freshness="latest") for sku in SKUS]


async def outcomes(app: Application, sequence: Sequence[Sent], *, at_once: bool) -> list[object]:
    """What became of each: one after the other, or those of every tenant at the same time as the others'."""
    if not at_once:
        return [await outcome(app, one) for one in sequence]
    found: dict[int, object] = {}

    async def of_tenant(tenant: TenantId) -> None:
        for place, one in enumerate(sequence):
            if one.command.tenant == tenant:
                found[place] = await outcome(app, one)

    await asyncio.gather(*map(of_tenant, TENANTS))
    return [found[place] for place in range(len(sequence))]


async def in_memory(folder: Path) -> dict[TenantId, str]:
    """All of one kind."""
    return dict.fromkeys(TENANTS, "memory:")


async def each_elsewhere(folder: Path) -> dict[TenantId, str]:
    """Of every kind one."""
    return dict(zip(TENANTS, ("memory:", f"sqlite:{folder}/events.db", await new_stores()), strict=True))


@pytest.mark.parametrize(("made", "examples"), [(in_memory, 40), (each_elsewhere, 8)])
def test_a_partition_is_as_if_it_were_alone(
    made: Callable[[Path], Awaitable[dict[TenantId, str]]], examples: int
) -> None:
    """Outcomes, events and rows of each tenant are those of an application that hears this tenant's commands alone."""

    async def compare(sequence: Sequence[Sent], stores: dict[TenantId, str], *, at_once: bool) -> None:
        async with Application(warehouse(), partition_by=TenantId, store=stores) as app:
            found = await outcomes(app, sequence, at_once=at_once)
            for tenant in TENANTS:
                mine = [place for place, one in enumerate(sequence) if one.command.tenant == tenant]
                async with Application(warehouse(), store="memory:") as alone:
                    assert [await outcome(alone, sequence[place]) for place in mine] == [found[n] for n in mine]
                    shown = await told(app, app.partition(tenant), tenant)
                    assert shown == await told(alone, alone.partition(), tenant)

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(sent, max_size=14), st.booleans())
    def holds(sequence: list[Sent], at_once: bool) -> None:
        async def run() -> None:
            with TemporaryDirectory() as folder:
                await compare(sequence, await made(Path(folder)), at_once=at_once)

        asyncio.run(run())

    holds()
