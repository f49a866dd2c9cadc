"""Several queries in one request: `POST /queries`, of one moment, each as if it were asked alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from diptych import Application, BoundedContext, Command, Event, Key, Page, Query, Reader, ReadModel
from diptych.application.query_panel import QUERIES_TOGETHER_MAX
from diptych.entrypoints.http import client_watch, http_app
from diptych.entrypoints.http.authenticator import Unauthorized, bearer_token
from diptych.read_side.query_limits import limited
from diptych.security import Actor, requires
from tests.unit.test_http_live_queries import Streamed

pytestmark = pytest.mark.anyio


class Count(Command):
    what: str


class Counted(Event):
    what: str


class Sum(ReadModel):
    what: Key[str]
    times: int = 0


class Last(ReadModel):
    what: Key[str]
    times: int = 0


class SumOf(Query[Sum | None]):
    what: str


class Sums(Query[list[Sum]]): ...


class SumPages(Query[Page[Sum]]):
    cursor: str | None = None


@requires("sums:all")
class AllSums(Query[list[Last]]): ...


class Difference(Query[int]):
    """0, where both read models are of one moment."""


@limited(rows=1)
class OneSum(Query[list[Sum]]): ...


class Never(Query[int]): ...


@pytest.fixture
def begun() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def ended() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def app(store_url: str, begun: asyncio.Event, ended: asyncio.Event) -> AsyncIterator[Application]:
    context = BoundedContext("sums")

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(what=command.what)

    @context.projection
    def summed(row: Sum, event: Counted) -> Sum:
        return Sum(what=row.what, times=row.times + 1)

    @context.projection
    def last(row: Last, event: Counted) -> Last:
        return Last(what=row.what, times=row.times + 1)

    @context.query_handler
    async def difference(query: Difference, read: Reader) -> int:
        return len(await read.find(Sum)) - len(await read.find(Last))

    @context.query_handler
    async def never(query: Never, read: Reader) -> int:
        begun.set()
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    async with Application(context, store=store_url) as opened:
        for what in ("a", "b", "b"):
            await opened.execute(Count(what=what))
        await opened.projected()
        yield opened


class Everyone:
    """Lets in whoever says what they may do."""

    scheme = {"type": "http", "scheme": "bearer"}

    async def authenticate(self, connection: Any) -> Actor:
        token = bearer_token(connection)
        if token is None:
            raise Unauthorized("say who you are")
        return Actor("ada", {f"sums:{token}"})


async def asked(
    app: Application, *queries: Any, authenticator: Any = None, body: Any = None, **headers: str
) -> httpx2.Response:
    transport = httpx2.ASGITransport(http_app(app, authenticator=authenticator))
    async with httpx2.AsyncClient(transport=transport, base_url="http://sums") as client:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post("/queries", json={"queries": queries} if body is None else body, headers=fields)


def problem(reply: Any, status: int, name: str) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()
    assert (reply.status_code, found["type"]) == (status, f"urn:diptych:problem:{name}")
    return found


SUM_A = {"type": "SumOf", "data": {"what": "a"}}


async def test_queries_are_answered_in_their_order(app: Application) -> None:
    """By their short and full names; each answer as it would be alone, with those fields that are wanted of it."""
    nothing = {"type": "sums.SumOf", "data": {"what": "z"}}
    some = {"type": "Sums", "fields": ["times"]}
    reply = await asked(app, SUM_A, nothing, some, {"type": "Difference"}, {"type": "SumPages", "fields": ["what"]})
    assert reply.status_code == 200
    assert reply.json() == {
        "answers": [
            {"what": "a", "times": 1},
            None,
            [{"times": 1}, {"times": 2}],
            0,
            {"items": [{"what": "a"}, {"what": "b"}], "next": None},
        ]
    }


async def test_they_are_of_one_moment_with_one_token(app: Application) -> None:
    """They wait for a token as one, tell theirs, and are known again by their ETag while nothing changes."""
    receipt = await app.execute(Count(what="a"))
    reply = await asked(app, SUM_A, {"type": "Difference"}, consistency_token=receipt.token, prefer="wait=10")
    assert (reply.json()["answers"], reply.headers["preference-applied"]) == ([{"what": "a", "times": 2}, 0], "wait=10")
    assert reply.headers["consistency-token"] == receipt.token
    again = await asked(app, SUM_A, {"type": "Difference"}, if_none_match=reply.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    await app.execute(Count(what="a"))
    before = await asked(app, SUM_A, {"type": "Difference"}, as_of=receipt.token)
    assert before.json()["answers"] == [{"what": "a", "times": 2}, 0]
    problem(await asked(app, SUM_A, as_of=receipt.token, consistency_token=receipt.token), 400, "invalid-header")


async def test_every_error_in_them_is_told_with_its_place(app: Application) -> None:
    """Of all queries at once, as paths into the request."""
    reply = await asked(app, SUM_A, {"type": "SumOf", "data": {"what": 5, "x": 1}}, {"type": "Sums", "fields": ["y"]})
    errors = problem(reply, 422, "invalid-message")["errors"]
    assert {error["path"] for error in errors} == {
        "$.queries[1].data.what",
        "$.queries[1].data.x",
        "$.queries[2].fields",
    }
    reply = await asked(app, {"type": "SumOf"}, {"type": "SumOf", "dat": {}})
    assert [error["path"] for error in problem(reply, 422, "invalid-message")["errors"]] == ["$.queries[1].dat"]
    reply = await asked(app, SUM_A, {"type": "SumOf"})
    assert [error["path"] for error in problem(reply, 422, "invalid-message")["errors"]] == ["$.queries[1].data.what"]
    reply = await asked(app, {"type": "Difference", "fields": ["what"]})
    assert [error["path"] for error in problem(reply, 422, "invalid-message")["errors"]] == ["$.queries[0].fields"]
    reply = await asked(app, SUM_A, {"type": "SumOf", "data": {"what": "a\0"}})
    assert [error["path"] for error in problem(reply, 422, "invalid-message")["errors"]] == ["$.queries[1].data.what"]


@pytest.mark.parametrize(
    "body", [{}, [], {"queries": []}, {"queries": [SUM_A] * (QUERIES_TOGETHER_MAX + 1)}, {"queries": [SUM_A], "x": 1}]
)
async def test_what_is_no_request_for_several_is_refused(body: Any) -> None:
    """Too many, none, or something else."""
    async with Application(BoundedContext("empty"), store="memory:") as app:
        problem(await asked(app, body=body), 422, "invalid-message")


async def test_the_first_that_fails_is_the_problem_of_all(app: Application) -> None:
    """No answer is given without the others: an unknown name, a cursor, a limit, a method."""
    assert problem(await asked(app, SUM_A, {"type": "SumsOf"}), 404, "unknown-message")["close"][:2] == [
        "SumOf",
        "Sums",
    ]
    problem(await asked(app, SUM_A, {"type": "SumPages", "data": {"cursor": "bm9uZQ"}}), 409, "unknown-cursor")
    assert problem(await asked(app, SUM_A, {"type": "OneSum"}), 422, "query-too-costly")["query"] == "OneSum"
    found = problem(await asked(app, SUM_A, {"type": "Never"}, query_timeout="1"), 503, "query-timed-out")
    assert (found["query"], found["seconds"]) == ("query_many", 1)
    transport = httpx2.ASGITransport(http_app(app))
    async with httpx2.AsyncClient(transport=transport, base_url="http://sums") as client:
        reply = await client.get("/queries")
        problem(reply, 405, "method-not-allowed")
        assert reply.headers["allow"] == "POST"
        sent = {"content-type": "application/json"}
        problem(await client.post("/queries", content=b"{", headers=sent), 400, "malformed-json")


async def test_each_requires_what_it_requires_alone(app: Application) -> None:
    """Together they are no way around a scope, or around the authenticator."""
    both = (SUM_A, {"type": "AllSums"})
    problem(await asked(app, *both), 403, "forbidden")
    assert (await asked(app, *both, authenticator=Everyone())).status_code == 401
    reply = await asked(app, *both, authenticator=Everyone(), authorization="Bearer one")
    assert problem(reply, 403, "forbidden")["missing"] == ["sums:all"]
    reply = await asked(app, *both, authenticator=Everyone(), authorization="Bearer all")
    assert (len(reply.json()["answers"][1]), reply.headers["cache-control"]) == (2, "private, no-cache")


async def test_a_client_that_goes_away_stops_them(
    app: Application, begun: asyncio.Event, ended: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stops a single one."""
    monkeypatch.setattr(client_watch, "CLIENT_LOOK_S", 0)
    body = json.dumps({"queries": [SUM_A, {"type": "Never"}]}).encode()
    asking = Streamed(http_app(app), "/queries", {"content-type": "application/json"}, "POST", body)
    await begun.wait()
    asking.gone.set()
    await asyncio.wait((asking.serving,), timeout=10)
    assert asking.serving.done()
    assert ended.is_set()
    assert asking.sent.empty()


async def test_the_document_describes_each_query(app: Application) -> None:
    """By the name that it is asked by, with its fields, and the answers there may be."""
    transport = httpx2.ASGITransport(http_app(app, authenticator=Everyone()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://sums") as client:
        operation = (await client.get("/openapi.json")).json()["paths"]["/queries"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    each = content["schema"]["properties"]["queries"]["items"]["anyOf"]
    assert {one["properties"]["type"]["const"] for one in each} == set(app.queries.names.values())
    (sum_of,) = [one for one in each if one["properties"]["type"]["const"] == "SumOf"]
    assert sum_of["required"] == ["type", "data"]
    assert sum_of["properties"]["fields"]["items"] == {"enum": ["what", "times"]}
    assert {"200", "304", "401", "403", "404", "410", "422", "503"} <= set(operation["responses"])
    assert list(operation["responses"]["200"]["content"]) == ["application/json"]
