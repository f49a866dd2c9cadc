"""Commands over HTTP that are executed after the reply (RFC 7240), and the status of any command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from diptych import Application
from diptych.entrypoints.http import http_app
from tests.reminders import Gate, NoteId, Remind, reminders
from tests.tenants import Sku, Stock, TenantId, warehouse
from tests.unit.test_http_commands import problem

pytestmark = pytest.mark.anyio
LATER = {"Prefer": "respond-async"}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def app(gate: Gate) -> AsyncIterator[Application]:
    async with Application(reminders(), services={Gate: gate}) as opened:
        yield opened


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://notes") as made:
        yield made


async def at_rest(app: Application) -> None:
    await app.partition().process_worker.at_rest()


async def test_a_command_is_accepted_and_its_status_followed(
    app: Application, gate: Gate, client: httpx2.AsyncClient
) -> None:
    """202 with the place of its status, which says what becomes of it; in the end its receipt and token."""
    response = await client.post("/commands/Slow", json={"note": "one"}, headers=LATER)
    assert response.status_code == 202
    command_id = response.json()["command_id"]
    assert response.json() == {"command_id": command_id, "state": "accepted"}
    assert response.headers["location"] == f"/commands/{command_id}"
    assert response.headers["preference-applied"] == "respond-async"
    await gate.arrived.wait()
    running = await client.get(response.headers["location"])
    assert (running.status_code, running.json()["state"], running.json()["attempts"]) == (200, "running", 0)
    assert running.json()["command"] == "reminders.Slow"
    assert (running.headers["retry-after"], running.headers["cache-control"]) == ("1", "no-cache")
    gate.open.set()
    await at_rest(app)
    done = await client.get(response.headers["location"])
    receipt = done.json()["receipt"]
    assert done.json() == {"command_id": command_id, "state": "done", "receipt": receipt}
    assert (receipt["command_id"], receipt["position"]) == (command_id, 1)
    assert done.headers["consistency-token"] == receipt["token"]
    assert "retry-after" not in done.headers
    head = await client.head(response.headers["location"])
    assert (head.status_code, head.content) == (200, b"")


async def test_the_idempotency_key_is_its_id(app: Application, client: httpx2.AsyncClient) -> None:
    """Sent again it is the same command, also when it is executed by then; another one under the key is refused."""
    headers = {**LATER, "Idempotency-Key": "a/b_c?&~"}
    for _ in range(2):
        response = await client.post("/commands/Remind", json={"note": "one"}, headers=headers)
        assert response.status_code == 202
        assert response.headers["location"] == "/commands/a%2Fb_c%3F%26~"
        await at_rest(app)
        found = await client.get(response.headers["location"])
        assert (found.json()["command_id"], found.json()["state"]) == ("a/b_c?&~", "done")
    again = await client.post("/commands/Remind", json={"note": "one"}, headers={**headers, "Prefer": "wait=1"})
    assert (again.status_code, again.json()["position"]) == (200, 1)
    problem(await client.post("/commands/Remind", json={"note": "x"}, headers=headers), 422, "command-id-reused")


async def test_what_became_of_a_command_is_told(app: Application, client: httpx2.AsyncClient) -> None:
    """Rejected by the domain, cancelled, or waiting for its time; and of commands that were executed at once, too."""
    await client.post("/commands/Remind", json={"note": "one", "text": "no"}, headers={**LATER, "Idempotency-Key": "r"})
    await at_rest(app)
    found = (await client.get("/commands/r")).json()
    assert (found["state"], found["rejection"]) == ("rejected", {"code": "not-now", "facts": {"note": "one"}})
    hour = timedelta(hours=1)
    await app.schedule(Remind(note=NoteId("two")), after=hour, expires_after=hour, command_id="c")
    waits = (await client.get("/commands/c")).json()
    assert (waits["state"], waits["expires_at"] > waits["due_at"]) == ("accepted", True)
    await app.scheduled.cancel("c")
    found = (await client.get("/commands/c")).json()
    assert (found["state"], found["rejection"]["code"]) == ("rejected", "cancelled")
    receipt = (await client.post("/commands/Remind", json={"note": "x"}, headers={"Idempotency-Key": "now"})).json()
    assert (await client.get("/commands/now")).json()["receipt"] == receipt


async def test_why_it_failed_is_not_for_clients(
    app: Application, gate: Gate, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it was given up is; what the code raised is in the log and on the command line."""
    monkeypatch.setattr("diptych.process_managers.sender.SEND_ATTEMPTS_MAX", 1)
    gate.open.set()
    response = await client.post("/commands/Slow", json={"note": "fail"}, headers=LATER)
    await at_rest(app)
    found = (await client.get(response.headers["location"])).json()
    assert (found["state"], found["attempts"]) == ("failed", 1)
    assert "out of order" not in str(found)


async def test_nothing_is_known_under_other_ids(client: httpx2.AsyncClient) -> None:
    """404; the name of a command is to be posted to; a query string that says anything else is refused."""
    problem(await client.get("/commands/never"), 404, "not-found")
    problem(await client.get("/commands/"), 404, "not-found")
    problem(await client.get("/commands/never?partition=nowhere"), 404, "not-found")
    response = await client.get("/commands/Remind")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"
    for query in ("x=1", "partition=a&partition=b", "partition", "%ff=1"):
        problem(await client.get(f"/commands/never?{query}"), 400, "malformed-query-string")


@pytest.mark.parametrize(
    ("preference", "later"),
    [
        ("respond-async", True),
        ("Respond-Async, wait=10", True),
        ("wait=10;x=y, respond-async;foo", True),
        ("respond-asynchronously", False),
        ("x=respond-async", False),
        ("wait=10", False),
    ],
)
async def test_the_preference_is_read_as_it_is_written(
    client: httpx2.AsyncClient, preference: str, *, later: bool
) -> None:
    """Among others, in any case; what is another one does nothing."""
    response = await client.post("/commands/Remind", json={"note": "one"}, headers={"Prefer": preference})
    assert response.status_code == (202 if later else 200)


async def test_what_is_refused_is_refused_before_it_is_accepted(
    app: Application, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields, scopes, a full queue; a command that is based on an answer. A dry run is answered at once."""
    problem(await client.post("/commands/Remind", json={"note": 1}, headers=LATER), 422, "invalid-message")
    problem(await client.post("/commands/Note", json={"note": "one"}, headers=LATER), 403, "forbidden")
    receipt = (await client.post("/commands/Remind", json={"note": "one"})).json()
    tag = f'"{"0" * 32}.{receipt["token"]}"'
    response = await client.post("/commands/Remind", json={"note": "one"}, headers={**LATER, "If-Match": tag})
    assert problem(response, 400, "invalid-header")["header"] == "Prefer"
    dry = await client.post("/commands/Remind?dry-run=true", json={"note": "one"}, headers=LATER)
    assert (dry.status_code, len(dry.json()["events"])) == (200, 1)
    monkeypatch.setattr("diptych.process_managers.scheduler.SCHEDULED_MAX", 0)
    response = await client.post("/commands/Remind", json={"note": "one"}, headers=LATER)
    assert problem(response, 503, "overloaded")["limit_name"] == "SCHEDULED_MAX"
    assert await app.scheduled.list() == []


async def test_where_it_is_mounted_is_part_of_the_location(app: Application) -> None:
    """So that a client can follow it."""
    outer = Starlette(routes=[Mount("/api", http_app(app))])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(outer), base_url="http://notes") as client:
        response = await client.post("/api/commands/Remind", json={"note": "one"}, headers=LATER)
        assert response.headers["location"].startswith("/api/commands/")
        assert (await client.get(response.headers["location"])).status_code == 200


async def test_of_an_application_in_partitions_the_location_says_which() -> None:
    """The status is that of the partition's own; another one knows nothing of it."""
    stores = dict.fromkeys(("n1", "n 2"), "memory:")
    async with Application(warehouse(), store=stores, partition_by=TenantId) as app:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://x") as client:
            body = {"tenant": "n 2", "sku": "a", "units": 1}
            response = await client.post("/commands/Stock", json=body, headers={**LATER, "Idempotency-Key": "k"})
            assert response.headers["location"] == "/commands/k?partition=n%202"
            await app.partition("n 2").process_worker.at_rest()
            found = await client.get(response.headers["location"])
            assert found.json()["state"] == "done"
            for elsewhere in ("", "?partition=n1"):
                problem(await client.get(f"/commands/k{elsewhere}"), 404, "not-found")
        accepted = await app.schedule(Stock(tenant=TenantId("n1"), sku=Sku("a"), units=1), after=timedelta(hours=1))
        assert accepted.partition == "n1"
        assert [each.command_id for each in await app.partition("n1").scheduled.list()] == [accepted.command_id]
