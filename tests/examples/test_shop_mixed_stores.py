"""The shop with its events in one kind of store and its read models in another: neither knows of the other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shop.demo import DemoResult, run_demo
from tests.postgres_server import new_read_store, new_store

ORDERS = 60

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("events_on_server", [True, False])
async def test_events_and_read_models_of_different_kinds_agree(tmp_path: Path, *, events_on_server: bool) -> None:
    """Its figures are those of the shop in memory, and every read model equals a fold of the history."""
    expected = await run_demo(store="memory:", orders=ORDERS)
    if events_on_server:
        result = await run_demo(store=await new_store(), read_store=f"sqlite:{tmp_path}/rows.db", orders=ORDERS)
    else:
        result = await run_demo(store=f"sqlite:{tmp_path}/shop.db", read_store=await new_read_store(), orders=ORDERS)
    assert result.verified
    assert without_speed(result) == without_speed(expected)


def without_speed(result: DemoResult) -> DemoResult:
    return msgspec.structs.replace(result, commands_per_s=0, events_per_s=0)
