"""`POST /commands/{Command}?dry-run=true`: what would come of a command."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from diptych.entrypoints.http import http_app
from tests.http_library import Outside, open_library

pytestmark = pytest.mark.anyio

LEND = {"book": "emma", "reader": "bob", "fee": "1.50"}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with open_library(Outside()) as app:
        transport = httpx2.ASGITransport(http_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://library") as made:
            yield made


async def test_the_events_are_told_and_nothing_is_done(client: httpx2.AsyncClient) -> None:
    """They have their stored names and their data; there is no receipt, and no token."""
    tried = await client.post("/commands/Lend?dry-run=true", json=LEND)
    assert tried.status_code == 200
    assert tried.json() == {
        "events": [{"type": "library.Lent", "data": {"book": "emma", "reader": "bob", "fee": "1.50"}}]
    }
    assert "consistency-token" not in tried.headers
    done = await client.post("/commands/Lend?dry-run=false", json=LEND)
    assert done.json()["position"] == 1


async def test_a_refusal_is_the_problem_that_it_would_be(client: httpx2.AsyncClient) -> None:
    """A key is not used up by it."""
    await client.post("/commands/Lend", json=LEND)
    key = {"Idempotency-Key": "k"}
    refused = await client.post("/commands/Lend?dry-run=true", json=LEND, headers=key)
    assert (refused.status_code, refused.json()["code"]) == (409, "lent-already")
    await client.post("/commands/GiveBack", json={"book": "emma"})
    done = await client.post("/commands/Lend", json=LEND, headers=key)
    assert (done.status_code, done.json()["position"]) == (200, 3)


async def test_a_handler_with_effects_is_not_run(client: httpx2.AsyncClient) -> None:
    """It is a 422 that does not tell where the function is."""
    refused = await client.post("/commands/Call?dry-run=true", json={})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:diptych:problem:not-pure")
    assert refused.json()["command"] == "Call"
    assert "http_library" not in refused.text


@pytest.mark.parametrize("asked", ["dryrun=true", "dry-run", "dry-run=1", "dry-run=true&dry-run=false", "x"])
async def test_what_is_misspelt_is_not_executed(client: httpx2.AsyncClient, asked: str) -> None:
    """A query string that a command has not got is refused, since it may have been meant as a dry run."""
    refused = await client.post(f"/commands/Lend?{asked}", json=LEND)
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:diptych:problem:malformed-query-string")
    assert (await client.post("/commands/Lend", json=LEND)).json()["position"] == 1


async def test_a_stale_screen_is_told(client: httpx2.AsyncClient) -> None:
    """The basis counts as it would for the command."""
    shown = await client.get("/queries/BookOf?book=emma")
    await client.post("/commands/Lend", json=LEND)
    stale = {"If-Match": shown.headers["etag"]}
    assert (await client.post("/commands/Lend?dry-run=true", json=LEND, headers=stale)).status_code == 412
