"""Applications behind a real PgBouncer in transaction mode, and one that goes away and comes back."""

from __future__ import annotations

import asyncio

import pytest

from diptych.errors import Unavailable
from tests.faults.incrementing import COMMANDS, loaded, prepared
from tests.postgres_pooler import PGBOUNCER, pooled, start, stop
from tests.postgres_server import new_database, with_parameter

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer on this machine"),
]


async def through_pooler() -> str:
    """A new database with the stores of what is whole and what is divided, as callers know it."""
    return pooled(await prepared(with_parameter(await new_database(), "schema", "own")))


async def test_load_behind_a_pooler_loses_nothing_and_doubles_nothing() -> None:
    """Callers, workers and rows across, whole and divided, whose every transaction has another session."""
    async with loaded(await through_pooler()) as load:
        await load.acknowledged(COMMANDS)


async def test_a_pooler_that_is_restarted_loses_nothing_and_doubles_nothing() -> None:
    """Whoever is cut off hears it, and goes on by itself once it is back."""
    async with loaded(await through_pooler()) as load, load.failing():
        await asyncio.to_thread(stop)
        await load.failed()
        await asyncio.to_thread(start)
    for calls in load.both:
        assert all(issubclass(failure, Unavailable) for failure in calls.failures)
