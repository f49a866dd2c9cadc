"""A rebuild beside a server under load, by a process that is killed in the middle: see `benchmarks.rebuild`."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.rebuild import ACCOUNTS, TIMES, fill, rebuilt_under_load

pytestmark = pytest.mark.anyio

EVENTS = 5_000
HANG_S = 120.0


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
async def test_g6_a_rebuild_under_load_is_exact_and_goes_on_where_it_was_killed(store_url: str) -> None:
    """No query fails or goes back in time; none differs by the same code, and all do, exactly, by the other."""
    async with asyncio.timeout(HANG_S):
        await fill(store_url, EVENTS)
        for times, changed in ((1, 0), (TIMES, ACCOUNTS)):
            found = await rebuilt_under_load(store_url, times, EVENTS)
            assert (found.rows, found.changed) == (ACCOUNTS, changed)
            assert EVENTS > found.resumed_at >= found.killed_at > 0
            assert found.position > EVENTS, "commands went on meanwhile"
            assert found.queries > 0
