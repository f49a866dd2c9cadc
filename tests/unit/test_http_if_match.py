"""`If-Match` on commands: the ETag of the answer that the user was looking at."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from diptych.entrypoints.http import http_app
from tests.http_library import Outside, open_library

pytestmark = pytest.mark.anyio

LEND = {"book": "emma", "reader": "bob"}
HASH = "0" * 32


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with open_library(Outside()) as app:
        transport = httpx2.ASGITransport(http_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://library") as made:
            await made.post("/commands/GiveBack", json={"book": "emma"})
            yield made


async def tag_of(client: httpx2.AsyncClient, after: httpx2.Response | None = None) -> str:
    """The ETag of a look at the book."""
    token = {} if after is None else {"Consistency-Token": after.headers["consistency-token"]}
    found = await client.get("/queries/BookOf?book=emma", headers=token)
    assert found.status_code == 200
    return str(found.headers["etag"])


async def test_a_command_on_a_screen_that_still_holds_takes_effect(client: httpx2.AsyncClient) -> None:
    """Also where other things have changed, and a proxy has weakened the tag."""
    tag = await tag_of(client)
    await client.post("/commands/Lend", json={"book": "ulysses", "reader": "ada"})
    lent = await client.post("/commands/Lend", json=LEND, headers={"If-Match": f"W/{tag}"})
    assert lent.status_code == 200, lent.text


async def test_a_command_on_a_stale_screen_is_a_412(client: httpx2.AsyncClient) -> None:
    """The problem tells which events have come, not what they say; after another look it is decided."""
    tag = await tag_of(client)
    lent = await client.post("/commands/Lend", json={"book": "emma", "reader": "ada"})
    stale = await client.post("/commands/Lend", json=LEND, headers={"If-Match": tag, "Idempotency-Key": "k"})
    assert (stale.status_code, stale.headers["content-type"]) == (412, "application/problem+json")
    told = stale.json()
    assert told["type"] == "urn:diptych:problem:context-changed"
    assert told["more"] is False
    (event,) = told["events"]
    assert (event["position"], event["type"]) == (lent.json()["position"], "library.Lent")
    assert set(event) == {"position", "type", "recorded_at"}
    now = await tag_of(client, lent)
    refused = await client.post("/commands/Lend", json=LEND, headers={"If-Match": now, "Idempotency-Key": "k"})
    assert (refused.status_code, refused.json()["code"]) == (409, "lent-already")


@pytest.mark.parametrize("value", ["", "*", "emma", '"emma"', f'"{HASH}.AA", "{HASH}.AB"', f'"{HASH}."'])
async def test_what_is_no_tag_of_an_answer_is_refused(client: httpx2.AsyncClient, value: str) -> None:
    """An If-Match that says nothing about what was seen is a mistake, and is never taken for agreement."""
    refused = await client.post("/commands/Lend", json=LEND, headers={"If-Match": value})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:diptych:problem:unknown-token")


async def test_a_tag_of_another_history_is_refused(client: httpx2.AsyncClient) -> None:
    """So is one whose token nobody gave out."""
    async with open_library(Outside()) as other:
        transport = httpx2.ASGITransport(http_app(other))
        async with httpx2.AsyncClient(transport=transport, base_url="http://elsewhere") as stranger:
            foreign = await tag_of(stranger)
    for tag in (foreign, f'"{HASH}.nonsense"'):
        refused = await client.post("/commands/Lend", json=LEND, headers={"If-Match": tag})
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:diptych:problem:unknown-token")
