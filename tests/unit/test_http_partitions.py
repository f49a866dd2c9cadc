"""An application in partitions over HTTP: the messages say where they belong, and the tokens what they are of."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from diptych.entrypoints.http import http_app
from tests.tenants import ACME, GLOBEX, Places, by_tenant

pytestmark = pytest.mark.anyio


async def test_commands_and_queries_go_to_the_partition_that_they_name(tmp_path: Path) -> None:
    """A key names a command of each tenant; a token of two receipts is understood; another tenant is a 422."""
    async with by_tenant(Places("sqlite", tmp_path)) as app:
        transport = httpx2.ASGITransport(http_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://warehouse") as client:
            tokens = []
            for tenant, units in ((ACME, 3), (GLOBEX, 4)):
                body = {"tenant": tenant, "sku": "pen", "units": units}
                told = await client.post("/commands/Stock", json=body, headers={"Idempotency-Key": "first"})
                assert (told.status_code, told.json()["position"]) == (200, 1)
                tokens.append(told.headers["consistency-token"])
            for tenant, units in ((ACME, 3), (GLOBEX, 4)):
                asked = {"tenant": tenant, "sku": "pen"}
                shown = await client.get(
                    "/queries/UnitsOnShelf", params=asked, headers={"Consistency-Token": ", ".join(tokens)}
                )
                assert (shown.status_code, shown.json()) == (200, units)
                assert shown.headers["consistency-token"] in tokens
            unknown = await client.post("/commands/Stock", json={"tenant": "hooli", "sku": "pen", "units": 1})
            assert unknown.status_code == 422
            assert unknown.json()["errors"] == [{"path": "$.tenant", "message": "there is no partition 'hooli'"}]
            assert (await client.get("/health/ready")).json() == {"ready": True}
