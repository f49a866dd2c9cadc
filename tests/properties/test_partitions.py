"""A partition is a history of its own: whatever goes on in the others, it is as if its application were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Application, Rejected
from diptych.application.partition import Partition
from diptych.event_store.event_query import ALL_EVENTS
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


@settings(max_examples=40, deadline=None)
@given(st.lists(sent, max_size=14))
def test_a_partition_is_as_if_it_were_alone(sequence: Sequence[Sent]) -> None:
    """Outcomes, events and rows of each tenant are those of an application that hears this tenant's commands alone."""

    async def compare() -> None:
        async with Application(warehouse(), partition_by=TenantId, store=dict.fromkeys(TENANTS, "memory:")) as app:
            outcomes = [await outcome(app, one) for one in sequence]
            for tenant in TENANTS:
                mine = [place for place, one in enumerate(sequence) if one.command.tenant == tenant]
                async with Application(warehouse(), store="memory:") as alone:
                    assert [await outcome(alone, sequence[place]) for place in mine] == [outcomes[n] for n in mine]
                    shown = await told(app, app.partition(tenant), tenant)
                    assert shown == await told(alone, alone.partition(), tenant)

    asyncio.run(compare())
