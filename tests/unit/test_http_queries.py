"""Queries over HTTP: answers that say what they show, and wait for what they have to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from diptych import Application
from diptych.entrypoints.http import http_app
from diptych.event_store.position import NOWHERE, Place, Position, Token
from tests.http_library import Outside, library, open_library

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def served(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://library") as made:
        yield made


@pytest.fixture
async def app(store_url: str) -> AsyncIterator[Application]:
    async with open_library(store=store_url) as opened:
        yield opened


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with served(app) as made:
        yield made


def problem(response: httpx2.Response, status: int, name: str) -> dict[str, Any]:
    """The members of the problem that a response has to be."""
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:diptych:problem:{name}"
    return body


async def lend(client: httpx2.AsyncClient, book: str, reader: str = "ada", fee: str = "0") -> dict[str, str]:
    """Lend a book; the header that asks for an answer that shows it."""
    response = await client.post("/commands/Lend", json={"book": book, "reader": reader, "fee": fee})
    assert response.status_code == 200, response.text
    return {"Consistency-Token": response.headers["consistency-token"]}


async def test_an_answer_is_the_value(client: httpx2.AsyncClient) -> None:
    """The body is the answer's JSON, decimals as strings; GET and POST answer alike."""
    shown = await lend(client, "emma", fee="1.50")
    got = await client.get("/queries/BookOf", params={"book": "emma"}, headers=shown)
    posted = await client.post("/queries/BookOf", json={"book": "emma"}, headers=shown)
    assert got.json() == posted.json() == {"book": "emma", "reader": "ada", "fees": "1.50", "loans": 1}
    assert got.headers["etag"] == posted.headers["etag"]
    assert got.headers["consistency-token"]


async def test_none_is_an_answer(client: httpx2.AsyncClient) -> None:
    """What is not there is 200 `null`, not 404."""
    response = await client.get("/queries/BookOf?book=nobody")
    assert (response.status_code, response.content) == (200, b"null")


async def test_head_is_get_without_a_body(client: httpx2.AsyncClient) -> None:
    """HEAD has the header fields of GET."""
    got = await client.get("/queries/BookOf?book=emma")
    head = await client.head("/queries/BookOf?book=emma")
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(got.headers)
    assert (await client.head("/health/ready")).status_code == 200


async def test_if_none_match_looks_at_what_is_shown(client: httpx2.AsyncClient) -> None:
    """304 as long as the answer is the same, also when the history has moved on; then 200."""
    shown = await lend(client, "emma")
    first = await client.get("/queries/BookOf?book=emma", headers=shown)
    tag = first.headers["etag"]
    assert tag.startswith('"')
    moved = await lend(client, "ulysses")
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        same = await client.get("/queries/BookOf?book=emma", headers={**moved, "If-None-Match": known})
        assert (same.status_code, same.content) == (304, b""), known
        assert same.headers["consistency-token"] != first.headers["consistency-token"]
        assert same.headers["etag"].partition(".")[0] == tag.partition(".")[0]
    returned = await client.post("/commands/GiveBack", json={"book": "emma"})
    after = {"Consistency-Token": returned.headers["consistency-token"], "If-None-Match": tag}
    changed = await client.get("/queries/BookOf?book=emma", headers=after)
    assert (changed.status_code, changed.json()["reader"]) == (200, None)


async def test_an_answer_waits_for_its_token_or_is_none() -> None:
    """With a token that nobody projects, the answer is a 503 with the wait over, never an older one."""
    app = Application(library, store="memory:", services={Outside: Outside()}, projecting=False)
    async with app, served(app) as client:
        token = await lend(client, "emma")
        response = await client.get("/queries/BookOf?book=emma", headers={**token, "Prefer": "wait=0"})
        told = problem(response, 503, "not-fresh")
        assert (told["wanted"], told["reached"]) == (1, 0)
        assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=7", "wait=7"),
        ("respond-async, wait=7", "wait=7"),
        ("Wait = 7; foo", "wait=7"),
        ("wait=7, wait=9", "wait=7"),
        ('wait="7"', "wait=7"),
        ("wait=99999", "wait=60"),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait", None),
        ("await=7", None),
        ("", None),
    ],
)
async def test_a_preferred_wait_is_applied_and_said(
    client: httpx2.AsyncClient, prefer: str, applied: str | None
) -> None:
    """`Prefer: wait` is read as RFC 7240 has it, up to the longest wait; what cannot be read is ignored."""
    response = await client.get("/queries/BookOf?book=emma", headers={"Prefer": prefer})
    assert response.status_code == 200
    assert response.headers.get("preference-applied") == applied


async def test_a_token_that_is_none_is_refused(app: Application, client: httpx2.AsyncClient) -> None:
    """Other letters than tokens have are a 400; what this history did not give out is a 409 at once."""
    for text in ("", "ü", "a;b", "x" * 65_537):
        headers = [(b"Consistency-Token", text.encode("latin-1"))]
        assert problem(await client.get("/queries/BookOf?book=a", headers=headers), 400, "invalid-header")
    history_id = bytes.fromhex((await app.status()).history_id)
    foreign = [
        Place(b"x" * 16, Position(0), NOWHERE),
        Place(history_id, Position(9), NOWHERE),
        Place(history_id, Position(2**64 - 1), NOWHERE),
        Place(history_id, Position(-1), NOWHERE),
        Place(history_id, Position(0), b"x" * 16),
    ]
    for text in ["abc", "kgGT", "a b", "a,", ",", "x" * 513, *(str(Token(place.position, place)) for place in foreign)]:
        headers = [(b"Consistency-Token", text.encode())]
        problem(await client.get("/queries/BookOf?book=a", headers=headers), 409, "unknown-token")


async def test_blocked_keys_are_said() -> None:
    """An eventual answer that lacks an event says so; one with a token is a 503 that names the key."""
    async with open_library() as app, served(app) as client:
        await lend(client, "emma")
        torn = await client.post("/commands/Tear", json={"book": "emma"})
        await app.projected()
        eventual = await client.get("/queries/BookOf?book=emma")
        assert (eventual.status_code, eventual.headers["answer-incomplete"]) == (200, "?1")
        assert "answer-incomplete" not in (await client.get("/queries/BookOf?book=other")).headers
        token = {"Consistency-Token": torn.headers["consistency-token"]}
        answer = await client.get("/queries/BookOf?book=emma", headers=token)
        assert problem(answer, 503, "blocked")["keys"] == ['["emma"]']
        (parked,) = (await app.parked.list()).items
        assert (await app.parked.show(parked.id)).trace.startswith("Traceback")
        told = [answer, await client.get("/health/ready")]
        assert [each.text for each in told if "Traceback" in each.text] == []


async def test_a_query_string_says_every_kind_of_value(client: httpx2.AsyncClient) -> None:
    """Text is read as the field's type says, repeated names are a list, and silence is the default."""
    query = (
        "shelf=science&limit=3&exact=true&ratio=-1.5e2&fees=1.10&fees=2&marks=a+b&marks=%C3%BC&marks=&on=2026-01-31"
        "&since=2026-01-31T09%3A30%3A00%2B01:00&serial=01890a5d-ac96-774b-bcce-b302099a8057&size=12&kind=film"
        "&data=AAEC&lasting=PT10M"
    )
    answer = (await client.get(f"/queries/Ask?{query}")).json()
    assert answer == {
        "shelf": "science",
        "limit": 3,
        "exact": True,
        "ratio": -150.0,
        "fees": ["1.10", "2"],
        "marks": ["a b", "ü", ""],
        "since": "2026-01-31T09:30:00+01:00",
        "on": "2026-01-31",
        "serial": "01890a5d-ac96-774b-bcce-b302099a8057",
        "size": 12,
        "kind": "film",
        "data": "AAEC",
        "lasting": "PT600S",
    }
    silent = (await client.get("/queries/Ask?shelf=fiction&size=large")).json()
    assert (silent["marks"], silent["limit"], silent["since"], silent["size"]) == ([], 10, None, "large")


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", {"$.shelf": "This field is required"}),
        ("shelf=poetry", {"$.shelf": "Invalid enum value 'poetry'"}),
        ("shelf=science&limit=1e1", {"$.limit": "Expected `int`, got `str`"}),
        ("shelf=science&limit=+1", {"$.limit": "Expected `int`, got `str`"}),
        ("shelf=science&limit=101", {"$.limit": "Expected `int` <= 100"}),
        ("shelf=science&limit=", {"$.limit": "Expected `int`, got `str`"}),
        ("shelf=science&exact=True", {"$.exact": "Expected `bool`, got `str`"}),
        ("shelf=science&exact=1", {"$.exact": "Expected `bool`, got `str`"}),
        ("shelf=science&ratio=NaN", {"$.ratio": "Expected `float | null`, got `str`"}),
        ("shelf=science&on=null", {"$.on": "Invalid RFC3339 encoded date"}),
        ("shelf=science&since=2026-01-31T09:30:00", {"$.since": "Expected `datetime` with a timezone component"}),
        ("shelf=science&fees=1&fees=x", {"$.fees[1]": "Invalid decimal string"}),
        ("shelf=science&marks=a&marks=a&marks=a&marks=a", {"$.marks": "Expected `array` of length <= 3"}),
        (
            "shelf=science&shelf=fiction&limit=0&shlf=1",
            {
                "$.shelf": "This is one value, and was given 2 times",
                "$.limit": "Expected `int` >= 1",
                "$.shlf": "There is no such field; did you mean shelf?",
            },
        ),
        ("shelf=science&marks=a%00", {"$.marks[0]": "Text must not contain NUL (U+0000)"}),
        ('shelf=science&a"b=1', {'$["a\\"b"]': "There is no such field"}),
    ],
)
async def test_a_query_string_is_read_strictly(client: httpx2.AsyncClient, query: str, errors: dict[str, str]) -> None:
    """What is not exactly a value of the type is an error at its path, and all errors are told."""
    told = problem(await client.get(f"/queries/Ask?{query}"), 422, "invalid-message")["errors"]
    assert {error["path"]: error["message"] for error in told} == errors
    assert len(told) == len(errors)


@pytest.mark.parametrize("query", ["book=%ff", "book=%ed%a0%80", "&".join(["book=a"] * 1_001)])
async def test_a_query_string_that_is_no_text_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    """Percent-encoded bytes are UTF-8, and there is an end to them."""
    problem(await client.get(f"/queries/BookOf?{query}"), 400, "malformed-query-string")


async def test_a_query_that_is_no_string_needs_a_body(client: httpx2.AsyncClient) -> None:
    """A query with nested fields is asked with POST alone."""
    response = await client.get("/queries/Count")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"
    assert (await client.post("/queries/Count", json={"remarks": [{"page": 1}], "by_reader": {"ada": 1}})).json() == 2
    body = {"remarks": {}, "by_reader": {"ada": "x", "bob": 1}}
    told = problem(await client.post("/queries/Count", json=body), 422, "invalid-message")["errors"]
    assert [error["path"] for error in told] == ["$.remarks", "$.by_reader.ada"]


async def test_a_value_that_no_column_holds_is_refused(client: httpx2.AsyncClient) -> None:
    """A filter value that the read side refuses is a 422 at its field; one for a cursor that is none a 409."""
    told = problem(await client.get("/queries/Charged?fees=NaN"), 422, "invalid-message")["errors"]
    assert [error["path"] for error in told] == ["$.fees"]
    pages = await client.get("/queries/Shelved?cursor=no")
    assert problem(pages, 409, "unknown-cursor")["errors"][0]["path"] == "$.cursor"


async def test_it_can_be_mounted_anywhere() -> None:
    """Mounted below a path of another application, everything is there, and the document says where."""
    async with open_library() as app:
        outer = Starlette(routes=[Mount("/api/v1", http_app(app))])
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(outer), base_url="http://library") as client:
            assert (await client.get("/api/v1/queries/BookOf?book=a")).content == b"null"
            assert (await client.get("/api/v1/openapi.json")).json()["servers"] == [{"url": "/api/v1"}]
            assert (await client.get("/api/v1/nothing")).headers["content-type"] == "application/problem+json"


async def test_its_lifespan_opens_what_is_not_open_and_closes_no_more() -> None:
    """The lifespan opens and closes a closed application, and leaves an open one alone."""
    app = open_library()
    asgi = http_app(app)
    async with asgi.router.lifespan_context(asgi):
        assert (await app.health()).ready
    async with app:
        async with asgi.router.lifespan_context(asgi):
            assert (await app.health()).ready
        assert (await app.health()).ready


class _Keys(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-api-key")
        return None if name is None else (AuthCredentials(), SimpleUser(name))


async def test_who_is_authenticated_is_the_actor() -> None:
    """The user of Starlette's own middleware is the actor of a command; without one there is none."""
    outside = Outside()
    async with open_library(outside) as app:
        asgi = http_app(app)
        asgi.add_middleware(AuthenticationMiddleware, backend=_Keys())
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(asgi), base_url="http://library") as client:
            await client.post("/commands/Call", json={}, headers={"X-API-Key": "ada"})
            await client.post("/commands/Call", json={})
    assert [context.actor for context in outside.seen] == ["ada", None]


async def test_the_document_describes_every_message(client: httpx2.AsyncClient) -> None:
    """Each command and query is there with its words, schema and an example that is taken as it stands."""
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert document["info"]["title"] == "library"
    paths = document["paths"]
    names = {
        "Lend",
        "GiveBack",
        "Tear",
        "Call",
        "Order",
        "BookOf",
        "LentTo",
        "Charged",
        "Shelved",
        "Ask",
        "Count",
        "Knock",
    }
    assert {path.rpartition("/")[2] for path in paths if not path.startswith("/health")} == names | {
        "{command_id}",
        "queries",
    }
    lend = paths["/commands/Lend"]["post"]
    assert lend["summary"] == "Lend a book to a reader."
    assert "one reader at a time" in lend["description"]
    example = lend["requestBody"]["content"]["application/json"]["example"]
    assert example == {"book": "book-1", "reader": "reader-1"}
    assert (await client.post("/commands/Lend", content=json.dumps(example), headers=JSON)).status_code == 200
    assert set(paths["/queries/Count"]) == {"post"}
    limit = next(found for found in paths["/queries/Ask"]["get"]["parameters"] if found.get("name") == "limit")
    assert (limit["description"], limit["schema"]["maximum"], limit["required"]) == ("How many", 100, False)
    assert set(document["components"]["responses"]) == {
        "400",
        "404",
        "405",
        "408",
        "409",
        "410",
        "412",
        "413",
        "415",
        "422",
        "500",
        "503",
    }


async def test_the_document_lists_the_idempotency_key_of_every_command(client: httpx2.AsyncClient) -> None:
    """An optional header of each command and of no query, with the 422 that a second use for another payload gets."""
    document = (await client.get("/openapi.json")).json()
    key = {"$ref": "#/components/parameters/IdempotencyKey"}
    operations = [(path, found) for path, methods in document["paths"].items() for found in methods.values()]
    listing = {path for path, found in operations if key in found.get("parameters", [])}
    assert listing == {f"/commands/{name}" for name in ("Lend", "GiveBack", "Tear", "Call", "Order")}
    described = document["components"]["parameters"]["IdempotencyKey"]
    assert (described["name"], described["in"]) == ("Idempotency-Key", "header")
    assert not described.get("required")
    assert "422" in described["description"]
    reasons = document["components"]["responses"]["422"]["content"]["application/problem+json"]["schema"]["anyOf"]
    assert {"$ref": "#/components/schemas/problem.command-id-reused"} in reasons
    assert all("422" in found["responses"] for path, found in operations if path in listing)
